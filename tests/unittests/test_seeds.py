"""What is drawn is a function of the run, the step and the process."""

import random

import numpy as np
import pytest
import speechbrain as sb
import torch
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.utils.train_logger import FileTrainLogger

from noisegate.checkpoints import Seeds
from tests.unittests import brains
from tests.unittests.brains import (
    EPOCHS,
    STEPS,
    Killed,
    brain,
    forget_keys,  # noqa: F401
)


def crops():
    """Data of which each use draws: from torch, numpy and Python."""
    data = brains.dataset()
    whole = [data[i]["feats"] for i in range(len(data))]
    labels = [data[i]["labels"] for i in range(len(data))]
    new = DynamicItemDataset({f"{i:03}": {"n": i} for i in range(len(data))})

    def crop(i):
        start = int(torch.randint(5, (1,)))
        noise = np.random.normal(size=(5, 8)) * random.random()
        part = whole[i][start : start + 5]
        yield part + torch.from_numpy(noise).float()
        yield labels[i][start : start + 5]

    new.add_dynamic_item(crop, takes="n", provides=["feats", "labels"])
    new.set_output_keys(["id", "feats", "labels"])
    return new


def fit(trainer, n_workers=0):
    trainer.fit(
        trainer.counter,
        crops(),
        brains.dataset(8),
        train_loader_kwargs={
            "batch_size": 4,
            "shuffle": True,
            "num_workers": n_workers,
        },
        valid_loader_kwargs={"batch_size": 4},
    )
    return trainer.modules.state_dict()


def resumed(folder, kill, n_workers):
    options = {"ckpt_interval_steps": 1}
    trainer = brain(folder, **options)
    trainer.kill = kill
    with pytest.raises(Killed):
        fit(trainer, n_workers)
    # Another process, in which other things were drawn
    random.seed(5)
    np.random.seed(5)
    trainer = brain(folder, seed=77, **options)
    found = fit(trainer, n_workers)
    assert trainer.optimizer_step == EPOCHS * STEPS
    return found


@pytest.mark.parametrize(
    "kill", [("batch", 1, 2), ("batch", 2, 4), ("batch", 4, 3)]
)
def test_crops_go_on_within_an_epoch(kill, tmp_path):
    (tmp_path / "whole").mkdir()
    expected = fit(brain(tmp_path / "whole"))
    (tmp_path / "parts").mkdir()
    found = resumed(tmp_path / "parts", kill, n_workers=0)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[k], found[k]) for k in expected)


@pytest.mark.parametrize(
    "kill", [("start of", "TRAIN", 3), ("batch", 2, 4), ("batch", 4, 3)]
)
def test_crops_of_workers_go_on(kill, tmp_path):
    (tmp_path / "whole").mkdir()
    expected = fit(brain(tmp_path / "whole"), n_workers=2)
    (tmp_path / "parts").mkdir()
    found = resumed(tmp_path / "parts", kill, n_workers=2)
    assert all(torch.equal(expected[k], found[k]) for k in expected)


class Logging(brains.TinyBrain):
    """Logs as the recipes do."""

    def on_stage_end(self, stage, stage_loss, epoch=None):
        if stage == sb.Stage.VALID:
            stats = {"loss": float(stage_loss)}
            self.log_stats(epoch, 0.1, stats, stats)
        super().on_stage_end(stage, stage_loss, epoch)


def test_no_epoch_is_logged_twice(tmp_path):
    """Nor in gates.jsonl, which test_brain.py looks at."""
    path = tmp_path / "train_log.txt"

    def logging_brain():
        trainer = brain(tmp_path, brain_class=Logging)
        trainer.hparams.train_logger = FileTrainLogger(path)
        return trainer

    trainer = logging_brain()
    trainer.kill = "end of", "VALID", 3
    with pytest.raises(Killed):
        fit(trainer)
    assert len(path.read_text("utf-8").splitlines()) == 3
    fit(logging_brain())
    lines = path.read_text("utf-8").splitlines()
    assert [line.split(",")[0] for line in lines] == [
        f"epoch: {epoch}" for epoch in range(1, EPOCHS + 1)
    ]


def test_places_and_processes_have_seeds_of_their_own(monkeypatch):
    torch.manual_seed(3)
    seeds = Seeds()
    places = [("step", e, s) for e in range(4) for s in range(9)]
    found = {seeds.at(*place) for place in (*places, ("draw", 1, 2))}
    monkeypatch.setenv("RANK", "1")
    found |= {seeds.at(*place) for place in places}
    torch.manual_seed(4)
    found |= {Seeds().at(*place) for place in places}
    assert len(found) == 3 * len(places) + 1


def test_the_seed_of_a_run_is_saved(tmp_path):
    torch.manual_seed(3)
    seeds = Seeds()
    seeds.save(tmp_path / "seeds.ckpt")
    torch.manual_seed(4)
    other = Seeds()
    assert other.at(1) != seeds.at(1)
    other.load(tmp_path / "seeds.ckpt", end_of_epoch=True)
    assert other.at(1) == seeds.at(1)
    for draw in (
        torch.rand,
        lambda n: np.random.rand(n),
        lambda n: [random.random() for _ in range(n)],
    ):
        other.set("step", 1, 2)
        first = list(draw(3))
        seeds.set("step", 1, 2)
        assert list(draw(3)) == first
