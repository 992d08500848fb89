"""Runs the synthetic recipe as a user would."""

import json
import os
import shutil
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


MAIN = """
import runpy
runpy.run_path("train.py", run_name="__main__")
"""
STOP = (
    """
import speechbrain as sb
class Stop(Exception): pass
save = sb.utils.checkpoints.Checkpointer.save_and_keep_only
n_saved = 0
def stop(*args, **kwargs):
    global n_saved
    save(*args, **kwargs)
    n_saved += 1
    if n_saved == %d: raise Stop
sb.utils.checkpoints.Checkpointer.save_and_keep_only = stop
"""
    + MAIN
)


def run(output, *overrides, script=("train.py",)):
    """Runs train.py or a script; returns the finished process."""
    return subprocess.run(
        [
            sys.executable,
            *script,
            "hparams/student_gated.yaml",
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


def table(folder):
    """That of a chain, without the column of seconds."""
    lines = (folder / "chain.md").read_text().splitlines()
    return [line.rsplit("|", 2)[0] for line in lines]


def figures(folder):
    """The result of a run, without what the machine decides."""
    result = json.loads((folder / "result.json").read_text())
    return {key: result[key] for key in ("test", "valid", "widths", "steps")}


@pytest.mark.parametrize("dense", [False, True])
def test_the_budget_is_met(dense, tmp_path):
    out = run(tmp_path, *["--gate_layers=[]"] * dense)
    assert out.returncode == 0, out.stdout[-3000:]
    result = json.loads((tmp_path / "result.json").read_text())
    share = result["macs_per_second"] / result["macs_per_second_full"]
    assert share == (1.0 if dense else 0.25)


def test_resumed_run_equals_the_uninterrupted_one(tmp_path):
    """Stopped after epoch 2, which is before the cut, and started again."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(whole).returncode == 0
    first = run(parts, script=("-c", STOP % 2))
    assert "Stop" in first.stdout
    assert not (parts / "result.json").exists()
    assert run(parts).returncode == 0
    assert figures(whole) == figures(parts)


CHAIN = (
    "--budgets=[0.5,0.25]",
    "--stage={number_of_epochs: 4, freeze_epoch: 3}",
)


def test_a_chain_goes_on_from_cut_models(tmp_path):
    """Stopped in each run, and started again: the same to the bit."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    out = run(whole, *CHAIN)
    assert out.returncode == 0, out.stdout[-3000:]
    for _ in range(3):
        out = run(parts, *CHAIN, script=("-c", STOP % 5))
        assert "Stop" in out.stdout or "All budgets" in out.stdout
    assert run(parts, *CHAIN).returncode == 0
    assert table(whole) == table(parts)
    for name in ("dense", "0.5", "0.25"):
        assert figures(whole / name) == figures(parts / name)
    results = [
        json.loads((whole / name / "result.json").read_text())
        for name in ("dense", "0.5", "0.25")
    ]
    macs = [result["macs_per_second"] for result in results]
    assert [x / macs[0] for x in macs] == [1.0, 0.5, 0.25]
    # Each is trained at the size of the one before
    full = [result["macs_per_second_full"] for result in results]
    assert full == [macs[0], macs[0], macs[1]]


def test_a_budget_is_added_to_a_chain(tmp_path):
    """It goes on from the next greater one; what was there stays."""
    assert run(tmp_path, CHAIN[1], "--budgets=[0.5]").returncode == 0
    before = (tmp_path / "0.5" / "result.json").read_bytes()
    out = run(tmp_path, *CHAIN)
    assert out.returncode == 0, out.stdout[-3000:]
    assert (tmp_path / "0.5" / "result.json").read_bytes() == before
    result = json.loads((tmp_path / "0.25" / "result.json").read_text())
    assert result["widths"]["hidden1"] == 2


def test_a_chain_starts_from_a_trained_model(tmp_path):
    """Which is the teacher; nothing dense is trained again."""
    assert run(tmp_path / "first", "--gate_layers=[]").returncode == 0
    compact = tmp_path / "first" / "compact"
    out = run(tmp_path / "next", *CHAIN, f"--pretrained={compact}")
    assert out.returncode == 0, out.stdout[-3000:]
    assert not (tmp_path / "next" / "dense").exists()
    saved = tmp_path / "first" / "save"
    out = run(tmp_path / "more", *CHAIN, f"--pretrained={saved}")
    assert out.returncode == 0, out.stdout[-3000:]
    # The last checkpoint is what was saved as compact
    assert figures(tmp_path / "more" / "0.25") == figures(
        tmp_path / "next" / "0.25"
    )


@pytest.mark.parametrize("budgets", ["[0.5,1.5]", "[0]"])
def test_impossible_budgets_are_refused_before_training(budgets, tmp_path):
    out = run(tmp_path, f"--budgets={budgets}")
    assert out.returncode != 0
    assert "budgets must be in (0, 1)" in out.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("override", ["budget=0.3", "lr=0.03"])
def test_overrides_that_a_chain_does_not_use_are_refused(override, tmp_path):
    """Each of its runs has a budget, and here a rate, of its own."""
    stage = "--stage={freeze_epoch: 3, lr: 0.01}"
    dense = "--dense={freeze_epoch: 2, lr: 0.02}"
    out = run(tmp_path, CHAIN[0], stage, dense, f"--{override}")
    assert out.returncode == 2
    assert f"{override.partition('=')[0]} has no effect: with" in out.stdout
    assert not list(tmp_path.iterdir())


def test_killed_behind_the_last_epoch(tmp_path):
    """What is left is done by the next call, with the same figures."""
    assert run(tmp_path).returncode == 0
    before = figures(tmp_path)
    (tmp_path / "result.json").unlink()
    out = run(tmp_path)
    assert out.returncode == 0, out.stdout[-3000:]
    assert figures(tmp_path) == before


def test_tensorboard_goes_on_where_a_run_is_resumed(tmp_path):
    """A step is an epoch, and there is one of each."""
    pytest.importorskip("tensorboard")
    option = "--use_tensorboard=True"
    first = run(tmp_path, option, script=("-c", STOP % 2))
    assert "Stop" in first.stdout
    assert list(scalars(tmp_path)["loss/valid"]) == [1, 2]
    # As if it had been stopped behind the log, before the checkpoint
    newest = max(tmp_path.glob("save/CKPT*"), key=lambda p: p.stat().st_mtime)
    shutil.rmtree(newest)
    assert run(tmp_path, option).returncode == 0
    logged = scalars(tmp_path)
    assert set(logged) == {
        *("lr", "loss/train", "loss/valid"),
        *("macs_per_second", "macs_ratio", "complexity_weight"),
        "width/hidden1",
    }
    assert all(list(steps) == [1, 2, 3, 4] for steps in logged.values())
    lines = (tmp_path / "gates.jsonl").read_text().splitlines()
    widths = [json.loads(line)["width hidden1"] for line in lines]
    assert list(logged["width/hidden1"].values()) == pytest.approx(widths)


def test_missing_tensorboard_is_named_before_training(tmp_path):
    hidden = 'import sys\nsys.modules["tensorboard"] = None\n'
    script = "-c", hidden + MAIN
    out = run(tmp_path, "--use_tensorboard=True", script=script)
    assert out.returncode != 0
    assert "'speechbrain-noisegate[tensorboard]'" in out.stdout
    assert not (tmp_path / "train_log.txt").exists()
    # Nothing else needs it
    out = run(tmp_path, script=script)
    assert out.returncode == 0, out.stdout[-3000:]


def test_finished_run_is_left_alone(tmp_path):
    assert run(tmp_path).returncode == 0
    before = (tmp_path / "result.json").read_bytes()
    out = run(tmp_path)
    assert out.returncode == 0
    assert "finished" in out.stdout
    assert (tmp_path / "result.json").read_bytes() == before
