"""Runs the synthetic recipe as a user would."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

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


def run(method, output, *overrides):
    """Runs train.py; returns the finished process."""
    return subprocess.run(
        [
            sys.executable,
            "train.py",
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
    script = (
        "import sys, train, speechbrain as sb\n"
        "class Stop(Exception): pass\n"
        "save = train.StudentBrain.save\n"
        "def stop(self):\n"
        "    save(self)\n"
        "    if self.hparams.epoch_counter.current == 2: raise Stop\n"
        "train.StudentBrain.save = stop\n"
        "h, r, o = sb.parse_arguments(sys.argv[1:])\n"
        "train.train(h, r, o)\n"
    )
    first = subprocess.run(
        [
            sys.executable,
            "-c",
            script,
            f"hparams/{method}.yaml",
            f"--output_folder={parts}",
            "--noprogressbar",
            *SMALL,
        ],
        cwd=RECIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
        timeout=600,
    )
    assert "Stop" in first.stdout
    assert not (parts / "result.json").exists()
    assert run(method, parts).returncode == 0
    figures = [
        json.loads((folder / "result.json").read_text())
        for folder in (whole, parts)
    ]
    assert figures[0]["test"] == figures[1]["test"]


def test_finished_run_is_left_alone(tmp_path):
    assert run("gated", tmp_path).returncode == 0
    before = (tmp_path / "result.json").read_bytes()
    out = run("gated", tmp_path)
    assert out.returncode == 0
    assert "finished" in out.stdout
    assert (tmp_path / "result.json").read_bytes() == before
