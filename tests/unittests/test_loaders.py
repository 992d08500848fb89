"""Loaders of SpeechBrain and torch that recipes use: what they give is drawn
anew in each epoch, and a run that was stopped goes on with it."""

import pytest
import speechbrain as sb
import torch
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.dataio.sampler import (
    DynamicBatchSampler,
    ReproducibleRandomSampler,
    ReproducibleWeightedRandomSampler,
)

from tests.unittests import brains
from tests.unittests.brains import (
    Killed,
    TinyBrain,
    assert_same,
    brain,
    forget_keys,  # noqa: F401
    state,
)

N = 16
SORTED = {"batch_size": 4, "shuffle": False}
PERSISTENT = {**SORTED, "num_workers": 1, "persistent_workers": True}


def noisy():
    """Features of other lengths, with noise that is drawn for each use."""
    draw = torch.Generator().manual_seed(1)
    n_frames = [6 + (i * 7) % 9 for i in range(N)]
    feats = [torch.randn(n, 8, generator=draw) for n in n_frames]
    data = DynamicItemDataset(
        {f"{i:03}": {"n": i, "duration": n} for i, n in enumerate(n_frames)}
    )

    def draw_item(i):
        yield feats[i] + torch.randn(1)
        yield (feats[i][:, 0] > 0).float()

    data.add_dynamic_item(draw_item, takes="n", provides=["feats", "labels"])
    data.set_output_keys(["id", "feats", "labels", "duration"])
    return data


class Stream(torch.utils.data.IterableDataset):
    """Items in a row, as of a web dataset: it has no length."""

    def __iter__(self):
        data = noisy()
        return (data[i] for i in range(N))


def dynamic(data):
    """Batches of about as many frames."""
    return DynamicBatchSampler(
        data,
        max_batch_length=50,
        num_buckets=3,
        length_func=lambda item: item["duration"],
        shuffle=True,
        batch_ordering="random",
    )


class Noting(TinyBrain):
    """Notes what it was given, by epoch."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.order, self.values = {}, {}

    def compute_forward(self, batch, stage):
        if stage == sb.Stage.TRAIN:
            self.order.setdefault(self._epoch, []).extend(batch.id)
            values = self.values.setdefault(self._epoch, {})
            for name, feats in zip(batch.id, batch.feats[0]):
                values[name] = float(feats[0].sum())
        return super().compute_forward(batch, stage)


def fit(trainer, data, options):
    """Runs the epochs that are left; returns the Brain."""
    valid = brains.dataset(8)
    kwargs = {"valid_loader_kwargs": {"batch_size": 4}}
    trainer.fit(
        trainer.counter, data, valid, train_loader_kwargs=options, **kwargs
    )
    return trainer


def test_items_are_drawn_anew_in_each_epoch():
    """Also by workers that persist, for another Brain, and from datasets that
    torch asks for whole batches."""
    data = noisy()
    parts = torch.utils.data.Subset(noisy(), range(N))
    for given, options in (
        (data, SORTED),
        (data, SORTED),  # once more
        (noisy(), PERSISTENT),
        (parts, {**SORTED, "collate_fn": PaddedBatch}),
    ):
        torch.manual_seed(0)
        trainer = fit(brain(brain_class=Noting), given, options)
        first, second, third, _ = trainer.values.values()
        assert first.keys() == second.keys() == third.keys()
        for name, value in first.items():
            assert len({value, second[name], third[name]}) == 3, name


@pytest.mark.parametrize("options", [SORTED, {**PERSISTENT, "num_workers": 2}])
def test_persistent_or_not_is_the_same(options):
    """What is drawn does not depend on the workers."""
    found = fit(brain(), noisy(), options)
    assert_same(state(found), state(fit(brain(), noisy(), PERSISTENT)))


SAMPLERS = {
    "random": lambda data: {
        "sampler": ReproducibleRandomSampler(data),
        "batch_size": 4,
    },
    "weighted": lambda data: {
        "sampler": ReproducibleWeightedRandomSampler([1.0] * N, N, True),
        "batch_size": 4,
    },
    "dynamic": lambda data: {"batch_sampler": dynamic(data)},
}


@pytest.mark.parametrize("kind", SAMPLERS)
@pytest.mark.parametrize("made", [False, True])
def test_samplers_draw_anew_in_each_epoch(kind, made):
    """sb.Brain tells only its own of the epoch, with one process."""
    data = noisy()
    trainer, options = brain(brain_class=Noting), SAMPLERS[kind](data)
    if made:  # a loader, in place of what it is made of
        options.setdefault("collate_fn", PaddedBatch)
        data, options = torch.utils.data.DataLoader(data, **options), {}
    orders = fit(trainer, data, options).order.values()
    assert len({tuple(order) for order in orders}) == brains.EPOCHS


@pytest.mark.parametrize("kind", SAMPLERS)
@pytest.mark.parametrize("kill", [("batch", 2, 2), ("batch", 3, 1)])
def test_samplers_go_on_within_an_epoch(kind, kill, tmp_path):
    def run(folder, kill=None):
        data = noisy()
        trainer = brain(tmp_path / folder, ckpt_interval_steps=1)
        trainer.kill = kill
        return fit(trainer, data, SAMPLERS[kind](data))

    whole = state(run("whole"))
    with pytest.raises(Killed):
        run("parts", kill)
    assert_same(whole, state(run("parts")))


def test_a_stream_needs_a_nominal_length():
    options = {"batch_size": 4, "collate_fn": PaddedBatch}
    with pytest.raises(ValueError, match="no length.*looped_nominal_epoch"):
        fit(brain(), Stream(), options)
    found = fit(brain(), Stream(), {**options, "looped_nominal_epoch": 3})
    assert found.gates.frozen
    assert found.optimizer_step == 3 * brains.EPOCHS
