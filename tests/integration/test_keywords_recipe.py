"""Runs the keyword recipe as a user would, on its sample."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

RECIPE = Path(__file__).parents[2] / "recipes" / "Keywords"
SMALL = ["--channels=[8, 8, 8, 8]", "--n_mels=20", "--number_of_epochs=3"]
SMALL += ["--stage={number_of_epochs: 3, freeze_epoch: 2}"]
SMALL += ["--budgets=[0.5, 0.25]", "--kappa_min=0.1", "--noprogressbar"]
LOAD = """
import csv, sys
import soundfile
import torch
from speechbrain.inference.interfaces import Pretrained

class Recognizer(Pretrained):
    HPARAMS_NEEDED = ["modules"]

folder, sample = sys.argv[1:]
recognizer = Recognizer.from_hparams(folder, savedir=folder)
assert "noisegate" not in sys.modules
mods, encoder = recognizer.mods, recognizer.hparams.label_encoder
with open(sample + "/clips.csv", encoding="utf-8") as fin:
    rows = [row for row in csv.DictReader(fin) if row["split"] == "test"]
    for row in rows[::100]:
        start = round(float(row["start_s"]) * 16000)
        path = sample + "/" + row["file"]
        signal, _ = soundfile.read(path, 16000, start, dtype="float32")
        signal = torch.from_numpy(signal)[None]
        feats = mods.compute_features(signal)
        feats = mods.mean_var_norm(feats, torch.ones(1))
        decision = mods.model(feats).argmax(-1)
        print(row["id"], encoder.decode_torch(decision)[0])
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a chain."""
    folder = tmp_path_factory.mktemp("keywords")
    command = [sys.executable, "train.py", "hparams/tc_resnet8_gated.yaml"]
    out = subprocess.run(
        [*command, f"--output_folder={folder}", *SMALL],
        cwd=RECIPE,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert out.returncode == 0, (out.stdout + out.stderr)[-3000:]
    return folder


def test_all_budgets_are_met(trained):
    """Each by a model that is cut from the one before."""
    rows = json.loads((trained / "chain.json").read_text())
    assert [row["name"] for row in rows] == ["dense", "0.5", "0.25"]
    assert rows[0]["macs_share"] == 1.0
    for row in rows[1:]:
        assert 0.9 * float(row["name"]) < row["macs_share"]
        assert row["macs_share"] <= float(row["name"])
        assert 0 <= row["test error_rate"] <= 100
    result = json.loads((trained / "0.25" / "result.json").read_text())
    low, high = result["test_intervals_95"]["error_rate"]
    assert low <= result["test"]["error_rate"] <= high


def test_the_cut_model_loads_with_speechbrain_alone(trained):
    """And decides as the recipe says that it did."""
    folder = trained / "0.25" / "compact"
    out = subprocess.run(
        [sys.executable, "-c", LOAD, str(folder), str(RECIPE / "sample")],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(folder)},
        check=False,
    )
    assert out.returncode == 0, out.stderr[-3000:]
    with open(trained / "0.25" / "decisions.csv", encoding="utf-8") as fin:
        said = {row["id"]: row["decision"] for row in csv.DictReader(fin)}
    lines = [line.split() for line in out.stdout.splitlines() if line]
    found = {name: word for name, word in lines if name in said}
    assert len(found) == 9
    assert found == {name: said[name] for name in found}
