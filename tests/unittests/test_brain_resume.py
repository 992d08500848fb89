"""A run that is stopped, and one of two processes, equal one that is not."""

import functools
import os
import shutil
import socket

import pytest
import speechbrain as sb
import torch
import torch.multiprocessing as mp

import noisegate.brain
from tests.unittests import models
from tests.unittests.brains import (
    BATCH,
    EPOCHS,
    STEPS,
    Killed,
    assert_same,
    brain,
    evaluate,
    fit,
    forget_keys,  # noqa: F401
    history,
    short_runs,  # noqa: F401
    state,
)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """State and history of runs that nothing stopped."""
    runs = {}
    for gate in models.GATES:
        folder = tmp_path_factory.mktemp(gate)
        runs[gate] = state(fit(brain(folder, gate=gate))), history(folder)
    return runs


KILLS = [
    ("batch", 1, 3),
    ("batch", 2, 1),
    ("batch", 2, 4),
    ("end of", "TRAIN", 1),
    ("end of", "TRAIN", 2),
    ("start of", "VALID", 2),
    ("end of", "VALID", 2),
    ("start of", "TRAIN", 3),
    ("batch", 3, 1),
    ("batch", 4, 3),
]


@pytest.mark.parametrize(
    "gate, kill",
    [("noise", kill) for kill in KILLS]
    + [("stochastic", kill) for kill in KILLS[::4]],
    ids=lambda k: k if isinstance(k, str) else "-".join(map(str, k)),
)
def test_a_resumed_run_equals_the_uninterrupted_one(
    uninterrupted, gate, kill, tmp_path
):
    """Bit for bit, wherever the process ended, with noise and dropout."""
    expected, lines = uninterrupted[gate]
    options = {"gate": gate, "ckpt_interval_steps": 2}
    trainer = brain(tmp_path, **options)
    trainer.kill = kill
    with pytest.raises(Killed):
        fit(trainer)
    resumed = fit(brain(tmp_path, seed=77, **options))
    assert resumed.optimizer_step == EPOCHS * STEPS
    assert_same(state(resumed), expected)
    assert history(tmp_path) == lines


@pytest.mark.parametrize(
    "damage",
    [
        ("gate_optimizer.ckpt", lambda whole: None),
        ("model.ckpt", lambda whole: b""),
        ("model.ckpt", lambda whole: whole[: len(whole) // 2]),
        ("model.ckpt", lambda whole: bytes(len(whole))),
        ("counter.ckpt", lambda whole: b"7"),
        ("brain.ckpt", lambda whole: whole.replace(b": ", b": 1")),
        ("CKPT.yaml", lambda whole: b""),
        ("checksums.ckpt", lambda whole: whole[:-9]),
        ("checksums.ckpt", lambda whole: b"1"),
    ],
    ids=lambda damage: damage[0],
)
def test_a_damaged_checkpoint(uninterrupted, damage, tmp_path, caplog):
    """Is set aside: the run goes on from the one before."""
    expected, lines = uninterrupted["noise"]
    trainer = brain(tmp_path, ckpt_interval_steps=2)
    trainer.kill = "batch", 3, 2
    with pytest.raises(Killed):
        fit(trainer)
    last = trainer.checkpointer.find_checkpoint()
    earlier = tmp_path / "earlier"
    shutil.copytree(last.path, earlier)
    trainer.checkpointer.delete_checkpoints(num_to_keep=0)
    trainer = brain(tmp_path, ckpt_interval_steps=2)
    (tmp_path / "gates.jsonl").unlink()
    trainer.kill = "batch", 2, 1
    with pytest.raises(Killed):
        fit(trainer)
    broken = tmp_path / "save" / "CKPT+2100-01-01+00-00-00+00"
    earlier.rename(broken)
    name, change = damage
    whole = (broken / name).read_bytes()
    changed = change(whole)
    assert changed != whole
    (broken / name).unlink()
    if changed is not None:
        (broken / name).write_bytes(changed)
    with caplog.at_level("WARNING"):
        resumed = fit(brain(tmp_path, ckpt_interval_steps=2))
    assert "is damaged or incomplete" in caplog.text
    assert (tmp_path / "save" / f"incomplete_{broken.name}").is_dir()
    assert_same(state(resumed), expected)
    assert history(tmp_path) == lines


def test_the_seed_matters():
    """Otherwise equal runs would show nothing."""
    first, second = fit(brain(seed=0)), fit(brain(seed=1))
    weight = "model conv.conv.weight"
    assert not torch.equal(state(first)[weight], state(second)[weight])


FROZEN = {"conv": 9, "rnn": 7, "hidden": 5}


SGD = functools.partial(torch.optim.SGD, lr=0.1)


def frozen_brain(**options):
    """No noise, no dropout, plain gradient descent."""
    trainer = brain(
        dropout=0.0,
        opt_class=SGD,
        epochs=2,
        loss={"budget": 1.0},
        sorting="ascending",
        **options,
    )
    trainer.gates.freeze(FROZEN)
    return trainer


def free_port():
    """A port that nobody listens on."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def worker(rank, port, folder):
    """One of two processes: two runs, of which it keeps the states."""
    torch.set_num_threads(1)
    noisegate.brain._REORDER_STEPS = 3
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE="2",
        MASTER_ADDR="localhost",
        MASTER_PORT=str(port),
    )
    run_opts = {"distributed_launch": True, "distributed_backend": "gloo"}
    sb.utils.distributed.ddp_init_group(run_opts)
    result = {}
    for gate in models.GATES:
        trainer = brain(folder / gate, gate=gate, **run_opts)
        fit(trainer)
        result[gate] = state(trainer)
        result[gate + " loss"] = evaluate(trainer)
        result[gate + " next"] = torch.rand(3)
    result["frozen"] = state(
        fit(frozen_brain(**run_opts), BATCH // 2, shuffle=False)
    )
    torch.save(result, folder / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What two processes have learned."""
    folder = tmp_path_factory.mktemp("ddp")
    for gate in models.GATES:
        (folder / gate).mkdir()
    mp.spawn(worker, args=(free_port(), folder), nprocs=2)
    return folder, [torch.load(folder / f"rank{r}.pt") for r in (0, 1)]


@pytest.mark.parametrize("gate", models.GATES)
def test_processes_agree(ranks, gate):
    """Parameters, widths and dual weight are equal in all of them."""
    folder, (first, second) = ranks
    ours = {
        key: value
        for key, value in first[gate].items()
        if not key.endswith((".variance", "._extra_state"))
    }
    assert_same(ours, {key: second[gate][key] for key in ours})
    assert len(history(folder / gate)) == EPOCHS
    # Though they drew different noise
    assert not torch.equal(first[gate + " next"], second[gate + " next"])


def test_two_processes_equal_one_with_twice_the_batch(ranks):
    """Gradients are averaged as without gates."""
    _, (first, second) = ranks
    alone = state(fit(frozen_brain(), BATCH, shuffle=False))
    before = {
        "model " + k: v.clone()
        for k, v in frozen_brain().gates.model.state_dict().items()
    }
    compared = 0
    for key, value in alone.items():
        if not key.startswith("model ") or "tap" in key:
            continue
        for rank in (first, second):
            torch.testing.assert_close(
                rank["frozen"][key], value, rtol=0, atol=1e-5
            )
        compared += not torch.equal(value, before[key])
    assert compared > 8
