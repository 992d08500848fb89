"""Runs the keyword recipe as a user would, on its sample."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from noisegate.cli import main
from noisegate.deploy.runtime import Model

RECIPE = Path(__file__).parents[2] / "recipes" / "Keywords"
SMALL = ["--channels=[8, 8, 8, 8]", "--n_mels=20", "--number_of_epochs=3"]
SMALL += ["--stage={number_of_epochs: 3, freeze_epoch: 2}"]
SMALL += ["--budgets=[0.5, 0.25]", "--kappa_min=0.1", "--noprogressbar"]
LOAD = """
import csv, sys
import soundfile
import torch
from speechbrain.inference.classifiers import EncoderClassifier

folder, sample = sys.argv[1:]
classifier = EncoderClassifier.from_hparams(folder, savedir=folder)
assert "noisegate" not in sys.modules
with open(sample + "/clips.csv", encoding="utf-8") as fin:
    rows = [row for row in csv.DictReader(fin) if row["split"] == "test"]
    for row in rows[::100]:
        start = round(float(row["start_s"]) * 16000)
        path = sample + "/" + row["file"]
        signal, _ = soundfile.read(path, 16000, start, dtype="float32")
        wavs = torch.from_numpy(signal)[None]
        words = classifier.classify_batch(wavs)[3]
        soundfile.write("clip.wav", signal, 16000)
        assert classifier.classify_file("clip.wav")[3] == words
        print(row["id"], words[0])
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


def test_the_cut_model_loads_with_speechbrain_alone(trained, tmp_path):
    """And decides as the recipe says that it did."""
    folder = trained / "0.25" / "compact"
    out = subprocess.run(
        [sys.executable, "-c", LOAD, str(folder), str(RECIPE / "sample")],
        cwd=tmp_path,
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


def test_the_cut_model_is_exported_with_its_labels(trained, capsys, tmp_path):
    """Its file says what the classes are; code of the recipe is run for it,
    so the command has to be told to."""
    folder, path = trained / "0.25" / "compact", tmp_path / "words.onnx"
    with pytest.raises(SystemExit):
        main(["export", str(folder), f"--output={path}"])
    assert "tc_resnet8.TCResNet8" in capsys.readouterr().err
    main(["export", str(folder), f"--output={path}", "--trust"])
    model = Model(path)
    assert len(model.facts["labels"]) == 12 and "up" in model.facts["labels"]
    assert model.run(np.zeros((3, 16000), np.float32))[0].shape == (3, 12)
