"""A last batch of one item, from which batch normalization cannot estimate."""

import pytest
import speechbrain as sb
import torch
from speechbrain.dataio.sampler import ReproducibleWeightedRandomSampler

from noisegate.gates import Gates
from noisegate.loss import ComplexityLoss
from tests.unittests import brains


class Pooled(brains.TinyBrain):
    """One vector for each item, normalized over the batch."""

    def compute_forward(self, batch, stage):
        return self.modules.model(batch.to(self.device).feats[0].mean(1))

    def compute_objectives(self, predictions, batch, stage):
        target = batch.labels[0].mean(1, keepdim=True)
        loss = torch.nn.functional.mse_loss(predictions, target)
        return loss + self.complexity_term(stage)


def pooled():
    net = torch.nn.Sequential(
        torch.nn.Linear(8, 16), torch.nn.BatchNorm1d(16), torch.nn.Linear(16, 1)
    )
    gates = Gates(net, input_shape=[4, 8])
    loss = ComplexityLoss(gates, budget=0.5, freeze_epoch=2)
    trainer = Pooled(
        {"model": net},
        lambda parameters: torch.optim.Adam(parameters, lr=0.01),
        {"gates": gates, "complexity_loss": loss},
        {"device": "cpu", "noprogressbar": True},
    )
    trainer.counter = sb.utils.epoch_loop.EpochCounter(limit=2)
    return trainer


def fit(trainer, n_items, **options):
    trainer.fit(
        trainer.counter,
        brains.dataset(n_items),
        brains.dataset(5),  # evaluation takes a batch of one
        train_loader_kwargs={"batch_size": 4, **options},
        valid_loader_kwargs={"batch_size": 4},
    )
    return trainer


def weighted(n):
    return ReproducibleWeightedRandomSampler([1.0] * n, n, True, seed=1)


@pytest.mark.parametrize("how", ["in order", "shuffled", "sampled"])
@pytest.mark.parametrize("n_items, steps", [(8, 2), (9, 2), (10, 3), (17, 4)])
def test_one_item_alone_is_left_out_and_that_is_said(
    n_items, steps, how, caplog
):
    options = {
        "in order": {},
        "shuffled": {"shuffle": True},
        "sampled": {"sampler": weighted(n_items)},
    }[how]
    trainer = fit(pooled(), n_items, **options)
    assert trainer.optimizer_step == 2 * steps
    said = f"last of {n_items} items would be a batch of its own"
    assert (said in caplog.text) == (n_items % 4 == 1)


def test_a_list_is_a_dataset():
    """Of which nothing is drawn."""
    items = [brains.dataset(8)[i] for i in range(8)]
    loader = torch.utils.data.DataLoader(
        items, batch_size=4, collate_fn=sb.dataio.batch.PaddedBatch
    )
    trainer = pooled()
    trainer.fit(trainer.counter, loader, loader)
    assert trainer.optimizer_step == 4


def test_what_the_user_asked_for_stays():
    assert fit(pooled(), 10, drop_last=True).optimizer_step == 4
    # Batches of one are the user's wish
    loader = pooled().make_dataloader(
        brains.dataset(3), sb.Stage.TRAIN, batch_size=1
    )
    assert len(loader) == 3
