"""Runs the synthetic recipe as a user would."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.events import scalars

RECIPE = Path(__file__).parents[2] / "recipes" / "Synthetic"
SMALL = [
    "--n_features=8",
    "--hidden_sizes=[8]",
    "--teacher_widths=[2]",
    "--n_train=8",
    "--n_valid=2",
    "--n_test=2",
    "--kappa_min=0.125",
    "--number_of_epochs=4",
    "--freeze_epoch=3",
]


STOP = """
import sys, train, speechbrain as sb
class Stop(Exception): pass
save = train.StudentBrain.save
def stop(self):
    save(self)
    if self.hparams.epoch_counter.current == 2: raise Stop
train.StudentBrain.save = stop
"""
MAIN = "train.train(*sb.parse_arguments(sys.argv[1:]))\n"


def run(method, output, *overrides, script=("train.py",)):
    """Runs train.py or a script; returns the finished process."""
    return subprocess.run(
        [
            sys.executable,
            *script,
            f"hparams/{method}.yaml",
            f"--output_folder={output}",
            "--noprogressbar",
            *SMALL,
            *overrides,
        ],
        cwd=RECIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
        timeout=600,
    )


@pytest.mark.parametrize("method", ["gated", "stochastic", "pruned", "dense"])
def test_every_method_runs(method, tmp_path):
    out = run(method, tmp_path)
    assert out.returncode == 0, out.stdout[-3000:]
    result = json.loads((tmp_path / "result.json").read_text())
    budget = 1.0 if method == "dense" else 0.25
    assert result["macs_per_frame"] == budget * 2 * 64


@pytest.mark.parametrize("method", ["gated", "pruned"])
def test_resumed_run_equals_the_uninterrupted_one(method, tmp_path):
    """Stopped after epoch 2, which is before the cut, and started again."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(method, whole).returncode == 0
    first = run(method, parts, script=("-c", STOP + MAIN))
    assert "Stop" in first.stdout
    assert not (parts / "result.json").exists()
    assert run(method, parts).returncode == 0
    figures = [
        json.loads((folder / "result.json").read_text())
        for folder in (whole, parts)
    ]
    for key in ("test", "valid", "history", "steps"):
        assert figures[0][key] == figures[1][key]


def test_killed_behind_the_last_epoch(tmp_path):
    """What is left is done by the next call, with the same figures."""
    assert run("gated", tmp_path).returncode == 0
    result = tmp_path / "result.json"
    before = json.loads(result.read_text())
    result.unlink()
    out = run("gated", tmp_path)
    assert out.returncode == 0, out.stdout[-3000:]
    assert json.loads(result.read_text()) == before


def test_tensorboard_goes_on_where_a_run_is_resumed(tmp_path):
    """A step is an epoch, and there is one of each."""
    pytest.importorskip("tensorboard")
    option = "--use_tensorboard=True"
    first = run("gated", tmp_path, option, script=("-c", STOP + MAIN))
    assert "Stop" in first.stdout
    figures = scalars(tmp_path)
    assert list(figures["loss/valid"]) == [1, 2]
    assert run("gated", tmp_path, option).returncode == 0
    figures = scalars(tmp_path)
    assert set(figures) == {
        *("lr", "loss/train", "loss/valid", "standard_error/valid"),
        *("macs_per_second", "macs_ratio", "complexity_weight"),
        "width/hidden1",
    }
    assert all(list(steps) == [1, 2, 3, 4] for steps in figures.values())
    history = json.loads((tmp_path / "result.json").read_text())["history"]
    assert len(history) == 4
    for epoch, line in enumerate(history, start=1):
        assert figures["loss/valid"][epoch] == pytest.approx(line["loss"])
        assert figures["width/hidden1"][epoch] == line["width hidden1"]


def test_missing_tensorboard_is_named_before_training(tmp_path):
    hidden = 'import sys\nsys.modules["tensorboard"] = None\n'
    script = hidden + "import train, speechbrain as sb\n" + MAIN
    out = run(
        "dense", tmp_path, "--use_tensorboard=True", script=("-c", script)
    )
    assert out.returncode != 0
    assert "pip install tensorboard" in out.stdout
    assert not (tmp_path / "train_log.txt").exists()
    # Nothing else needs it
    out = run("dense", tmp_path, script=("-c", script))
    assert out.returncode == 0, out.stdout[-3000:]


def test_finished_run_is_left_alone(tmp_path):
    assert run("gated", tmp_path).returncode == 0
    before = (tmp_path / "result.json").read_bytes()
    out = run("gated", tmp_path)
    assert out.returncode == 0
    assert "finished" in out.stdout
    assert (tmp_path / "result.json").read_bytes() == before
