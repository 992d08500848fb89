"""Runs the ASVspoof recipe as a user would: train.py in its own process."""

import csv
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch

from noisegate.cli import main
from noisegate.deploy.spoofing import SpoofingDetector
from noisegate.evaluation.metrics import eer
from noisegate.evaluation.trials import read_scores
from tests.bad_audio import assert_named, bad_files
from tests.integration.events import scalars

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "ASVspoof"
SAMPLE_RATE = 16000
TABLE = ROOT / "tests" / "recipes" / "ASVspoof.csv"
GATED = "hparams/mini_resnet34_gated_all.yaml"

with open(TABLE, encoding="utf-8") as table:
    ROWS = list(csv.DictReader(table))


def write_tree(folder):
    """The tree of 2019 LA with beeps (bona fide) and noises (spoofs)."""
    rng = np.random.default_rng(0)
    protocols = folder / "ASVspoof2019_LA_cm_protocols"
    protocols.mkdir(parents=True)
    sets = (("train", "T", "trn", 4), ("dev", "D", "trl", 2))
    number = 1000000
    for name, letter, kind, n_speakers in (*sets, ("eval", "E", "trl", 3)):
        audio = folder / f"ASVspoof2019_LA_{name}" / "flac"
        audio.mkdir(parents=True)
        lines = []
        for speaker in range(n_speakers):
            for attack in ("-", "-", "-", "A01", "A02", "A03"):
                number += 1
                utterance = f"LA_{letter}_{number}"
                n = int(SAMPLE_RATE * rng.uniform(0.4, 1.4))
                time = np.arange(n) / SAMPLE_RATE
                wav = 0.01 * rng.normal(size=n)
                if attack == "-":
                    hz = 100 * (speaker + 2)
                    tone = np.sin(2 * math.pi * hz * time)
                    wav += 0.1 * tone * (np.sin(10 * math.pi * time) > 0)
                else:
                    wav += 0.1 * rng.normal(size=n)
                path = audio / f"{utterance}.flac"
                sf.write(path, wav, SAMPLE_RATE)
                label = "bonafide" if attack == "-" else "spoof"
                name_of_speaker = f"LA_{letter}{speaker:03d}"
                lines.append(
                    f"{name_of_speaker} {utterance} - {attack} {label}"
                )
        path = protocols / f"ASVspoof2019.LA.cm.{name}.{kind}.txt"
        path.write_text("\n".join(lines) + "\n")


def write_asv_scores(folder):
    """Scores of speaker verification, as the organizers give them."""
    scores = folder / "ASVspoof2019_LA_asv_scores"
    scores.mkdir()
    lines = ["bonafide target 9", "bonafide target 4", "bonafide target 8"]
    lines += [f"bonafide nontarget {x}" for x in (1, 2, 3, 8.5)]
    for attack, high in (("A01", 9), ("A02", 5), ("A03", 6)):
        lines += [f"{attack} spoof {high}", f"{attack} spoof 0"]
    for name in ("dev", "eval"):
        path = scores / f"ASVspoof2019.LA.asv.{name}.gi.trl.scores.txt"
        path.write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A small generated corpus."""
    folder = tmp_path_factory.mktemp("corpus") / "LA"
    write_tree(folder)
    return folder


def run(hparams, output, corpus, *overrides, launcher=()):
    """Runs train.py; returns the finished process."""
    command = [
        sys.executable,
        *launcher,
        "train.py",
        str(hparams),
        f"--data_folder={corpus}",
        "--make_mini_la=False",
        f"--output_folder={output}",
        "--noprogressbar",
        "--num_workers=0",
        "--batch_size=4",
        "--segment_s=1.0",
        *overrides,
    ]
    if "--n_bootstraps=0" not in overrides:
        command.append("--n_bootstraps=20")
    return subprocess.run(
        command,
        cwd=RECIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,  # SpeechBrain logs errors on either
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
        timeout=600,
    )


@pytest.mark.parametrize(
    "row", ROWS, ids=lambda row: Path(row["Hparam_file"]).stem
)
def test_every_row_runs_with_debug(row, corpus, tmp_path):
    """Each YAML trains, meets its budget, compacts and tests."""
    flags = ("--debug", "--debug_batches=10")  # so that both classes occur
    flags += ("--n_bootstraps=0",)  # no intervals
    out = run(ROOT / row["Hparam_file"], tmp_path, corpus, *flags)
    assert out.returncode == 0, out.stdout[-3000:]
    files = row["test_debug_checks"].partition("=[")[2].rstrip("]")
    for name in files.split(","):
        assert (tmp_path / name).stat().st_size > 0
    result = json.loads((tmp_path / "result.json").read_text())
    limit = result["budget"] * result["macs_per_second_full"]
    assert result["macs_per_second"] <= 1.01 * limit
    assert 0 <= result["test"]["EER"] <= 100


def test_mini_learns_and_its_files_agree(corpus, tmp_path, capsys):
    """Beeps against noise: no errors; scores and compact model are right."""
    write_asv_scores(corpus)
    out = run(
        GATED,
        tmp_path,
        corpus,
        "--gate_layers=[]",
        "--number_of_epochs=12",
        "--freeze_epoch=2",
    )
    assert out.returncode == 0, out.stdout[-3000:]
    result = json.loads((tmp_path / "result.json").read_text())
    test = result["test"]
    assert test["EER"] == test["EER A01"] == test["minDCF"] == 0.0
    assert test["min t-DCF 2019"] == 0.0 < test["min t-DCF"] < 1
    assert math.isnan(test["min t-DCF A02"])  # never fools the verification
    assert set(result["test_intervals_95"]) == {
        *("EER", "minDCF", "actDCF", "Cllr", "min t-DCF", "min t-DCF 2019")
    }
    ids, attacks, labels, scores = read_scores(tmp_path / "scores.txt")
    assert len(ids) == 18 and set(attacks) == {"-", "A01", "A02", "A03"}
    assert eer(scores, labels) == test["EER"]

    # The saved model gives the same scores, calibrated as on valid
    folder = str(tmp_path / "compact")
    detector = SpoofingDetector.from_hparams(folder, savedir=folder)
    assert detector.mods.model.channels == [8, 16, 32, 64]
    valid = result["valid"]
    scale, offset = valid["calibration_scale"], valid["calibration_offset"]
    for name, label, score in list(zip(ids, labels, scores))[::6]:
        audio = corpus / "ASVspoof2019_LA_eval" / "flac" / f"{name}.flac"
        ratio, accepted = detector.classify_file(audio, p_bonafide=0.5)
        assert ratio == pytest.approx(scale * score + offset, abs=1e-3)
        assert accepted == bool(label)
    path = tmp_path / "spoof.onnx"
    main(["export", folder, f"--output={path}", f"--check={audio}", "--trust"])
    capsys.readouterr()
    main(["spoof", str(audio), f"--model={path}"])
    said = capsys.readouterr().out.split("\t")
    assert float(said[1]) == pytest.approx(ratio, abs=2e-3)
    assert said[2].strip() == ("bonafide" if ratio > 0 else "spoof")
    (tmp_path / "bad").mkdir()
    bad = bad_files(tmp_path / "bad")
    files = [str(file) for file in (*bad, audio)]
    with pytest.raises(SystemExit) as stopped:
        main(["spoof", *files, f"--model={path}"])
    assert stopped.value.code == 2
    assert_named(files, *capsys.readouterr())
    empty = bad[0]
    with pytest.raises(ValueError, match="empty.wav has no samples"):
        detector.classify_file(empty)


def test_one_class_and_natural_sampling(corpus, tmp_path):
    """OC-softmax trains on cosines; classes as they are in the data."""
    out = run(
        GATED,
        tmp_path,
        corpus,
        "--gate_layers=[]",
        "--debug",
        "--one_class=True",
        "--bonafide_share=null",
        "--precision=bf16",
    )
    assert out.returncode == 0, out.stdout[-3000:]
    *_, scores = read_scores(tmp_path / "scores.txt")
    assert max(map(abs, scores)) <= 1.01


def test_tensorboard_has_each_epoch(corpus, tmp_path):
    """Losses, valid figures and widths."""
    pytest.importorskip("tensorboard")
    out = run(
        GATED,
        tmp_path,
        corpus,
        "--debug",
        "--debug_batches=10",
        "--use_tensorboard=True",
    )
    assert out.returncode == 0, out.stdout[-3000:]
    figures = scalars(tmp_path)
    assert {"loss/train", "Cllr/valid", "lr", "macs_ratio"} < set(figures)
    assert all(list(steps) == [1, 2] for steps in figures.values())
    with open(tmp_path / "gates.jsonl", encoding="utf-8") as fin:
        last = [json.loads(line) for line in fin][-1]
    widths = {k: v for k, v in last.items() if k.startswith("width ")}
    assert widths
    for name, width in widths.items():
        assert figures[name.replace(" ", "/")][2] == width


@pytest.mark.skipif(
    torch.cuda.device_count() < 2,
    reason="SpeechBrain makes SyncBatchNorm of batch normalization when there "
    "are several processes, and that works on GPUs only",
)
def test_two_processes(corpus, tmp_path):
    """Under torchrun there is one result, and it meets the budget."""
    launcher = ["-m", "torch.distributed.run", "--standalone"]
    launcher += ["--nproc_per_node=2"]
    out = run(
        GATED,
        tmp_path,
        corpus,
        "--debug",
        # Otherwise each process has a checkpoint folder of its own
        "--debug_persistently",
        launcher=launcher,
    )
    assert out.returncode == 0, out.stdout[-3000:]
    result = json.loads((tmp_path / "result.json").read_text())
    limit = result["budget"] * result["macs_per_second_full"]
    assert result["macs_per_second"] <= 1.01 * limit


def test_a_result_of_unknown_settings_is_kept(corpus, tmp_path):
    """It is said, and nothing is trained or touched."""
    (tmp_path / "result.json").write_text("{}")
    out = run(GATED, tmp_path, corpus)
    assert out.returncode == 2
    assert "holds a run of unknown settings" in out.stdout
    assert (tmp_path / "result.json").read_text() == "{}"
    assert not (tmp_path / "train_log.txt").exists()


@pytest.mark.parametrize(
    "override, message",
    [
        ("--data_folder=nowhere", "nowhere"),
        ("--bonafide_share=1.5", "bonafide_share must be in (0, 1), got 1.5"),
        ("--width=0", "width must be positive, got 0"),
        ("--bonafide_weight=1", "bonafide_weight must be between 0 and 1"),
    ],
)
def test_wrong_values_are_clear_errors(corpus, tmp_path, override, message):
    """The error names what is wrong, and no result appears."""
    out = run(
        "hparams/mini_resnet34_gated_all.yaml", tmp_path, corpus, override
    )
    assert out.returncode != 0
    assert message in out.stdout
    assert not (tmp_path / "result.json").exists()


def test_a_missing_extra_is_named_before_the_training(tmp_path):
    """The intervals of the test need it, which comes last."""
    blocked = tmp_path / "sitecustomize.py"
    blocked.write_text("import sys\nsys.modules['confidence_intervals'] = None")
    out = subprocess.run(
        [sys.executable, "train.py", "hparams/mini_xvector_gated.yaml"]
        + [f"--output_folder={tmp_path / 'run'}", "--data_folder=none"],
        cwd=RECIPE,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert out.returncode == 2
    assert "confidence_intervals is missing: pip install" in out.stderr
