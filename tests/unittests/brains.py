"""A Brain as recipes build it, at toy size, for the tests of training."""

import functools
import inspect
import json

import pytest
import speechbrain as sb
import torch
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.nnet.CNN import Conv1d
from speechbrain.nnet.containers import Sequential
from speechbrain.nnet.linear import Linear
from speechbrain.nnet.normalization import LayerNorm
from speechbrain.nnet.RNN import GRU
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.epoch_loop import EpochCounter

import noisegate.brain
from noisegate.evaluation.recorded import RecordedBrain
from noisegate.gates import Gates
from noisegate.loss import ComplexityLoss
from tests.unittests import models

BUDGET = 0.5
ITEMS, BATCH = 16, 4
STEPS = ITEMS // BATCH
EPOCHS, FREEZE = 4, 3


@pytest.fixture(autouse=True, scope="module")
def short_runs():
    """Channels are ranked often enough to happen in these runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(noisegate.brain, "_REORDER_STEPS", 3)
        yield


@pytest.fixture(autouse=True)
def forget_keys():
    """SpeechBrain 1.1.2 adds to a default argument at each save: slow."""
    keys = inspect.signature(Checkpointer.save_and_keep_only).parameters
    keys["importance_keys"].default.clear()


class Killed(Exception):
    """Stands for the end of the process."""


class TinyBrain(RecordedBrain):
    """Frame-wise detection; ``kill`` says where the process ends."""

    kill = None
    batches = 0

    def die(self, *where):
        """Ends the process if it is at that place."""
        if self.kill == where:
            raise Killed

    def compute_forward(self, batch, stage):
        """Returns the score of each frame."""
        batch = batch.to(self.device)
        return self.modules.model(batch.feats[0])

    def compute_objectives(self, predictions, batch, stage):
        """Returns cross-entropy and complexity."""
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            predictions.squeeze(-1).float(), batch.labels[0]
        )
        return loss + self.complexity_term(stage)

    def on_fit_batch_start(self, batch, should_step):
        """May end the process before a batch."""
        super().on_fit_batch_start(batch, should_step)
        self.die("batch", self._epoch, self.step)

    def on_stage_start(self, stage, epoch=None):
        """May end the process before the validation."""
        super().on_stage_start(stage, epoch)
        self.die("start of", stage.name, epoch)

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Saves a checkpoint after each validation."""
        super().on_stage_end(stage, stage_loss, epoch)
        self.die("end of", stage.name, epoch)
        if stage == sb.Stage.VALID and self.checkpointer is not None:
            meta = {"loss": float(stage_loss)} if self.widths_are_final else {}
            self.checkpointer.save_and_keep_only(meta=meta, min_keys=["loss"])


def dataset(n=ITEMS, frames=10):
    """Random features; a frame is positive if two of them say so."""
    draw = torch.Generator().manual_seed(1)
    feats = torch.randn(n, frames, 8, generator=draw)
    labels = (feats[..., 0] * feats[..., 3] > 0).float()
    data = DynamicItemDataset({f"{i:03}": {"n": i} for i in range(n)})
    data.add_dynamic_item(lambda i: feats[i], takes="n", provides="feats")
    data.add_dynamic_item(lambda i: labels[i], takes="n", provides="labels")
    data.set_output_keys(["id", "feats", "labels"])
    return data


def brain(
    folder=None,
    seed=0,
    dropout=0.2,
    gate="noise",
    layers=None,
    brain_class=TinyBrain,
    loss=None,
    loss_class=ComplexityLoss,
    opt_class=None,
    gate_opt_class=None,
    epochs=EPOCHS,
    sorting="random",
    adapt=None,
    **run_opts,
):
    """A Brain as a recipe builds it, in a process of that seed."""
    torch.manual_seed(seed)
    net = Sequential(input_shape=[None, None, 8])
    net.append(Conv1d, out_channels=16, kernel_size=3, layer_name="conv")
    net.append(LayerNorm, layer_name="norm")
    net.append(torch.nn.ReLU(), layer_name="act")
    net.append(torch.nn.Dropout(dropout), layer_name="drop")
    net.append(GRU, hidden_size=12, bidirectional=True, layer_name="rnn")
    net.append(Linear, n_neurons=10, layer_name="hidden")
    net.append(torch.nn.ReLU(), layer_name="act2")
    net.append(Linear, n_neurons=1, layer_name="out")
    if adapt is not None:
        net = adapt(net)
    gates = Gates(
        net,
        input_shape=[1, 10, 8],
        gate=models.GATES.get(gate, gate),
        layers=layers,
        segment_s=0.1,
    )
    loss = loss_class(
        gates, **(loss or {"budget": BUDGET, "freeze_epoch": FREEZE})
    )
    hparams = {"gates": gates, "complexity_loss": loss}
    hparams["sorting"] = sorting  # read by SpeechBrain with many processes
    counter = EpochCounter(limit=epochs)
    checkpointer = None
    if folder is not None:
        hparams["output_folder"] = str(folder)
        checkpointer = Checkpointer(
            str(folder / "save"), {"model": net, "counter": counter}
        )
    made = brain_class(
        {"model": net},
        opt_class or functools.partial(torch.optim.Adam, lr=0.01),
        hparams,
        {"device": "cpu", "noprogressbar": True, **run_opts},
        checkpointer,
        gate_opt_class=gate_opt_class,
    )
    made.counter = counter
    return made


def fit(trainer, batch_size=BATCH, shuffle=True):
    """Runs the epochs that are left; returns the Brain."""
    trainer.fit(
        trainer.counter,
        dataset(),
        dataset(8),
        train_loader_kwargs={"batch_size": batch_size, "shuffle": shuffle},
        valid_loader_kwargs={"batch_size": 4},
    )
    return trainer


def state(trainer):
    """All that a run has learned, as flat pairs."""
    optimizers = {
        key: opt.state_dict()["state"]
        for key, opt in trainer.optimizers_dict.items()
    }
    flat = {
        f"{key} {n} {name}": value
        for key, of_parameters in optimizers.items()
        for n, values in of_parameters.items()
        for name, value in values.items()
    }
    model = trainer.gates.model
    flat.update({"model " + k: v for k, v in model.state_dict().items()})
    loss = trainer.complexity_loss.state_dict()
    flat.update({"loss " + k: v for k, v in loss.items()})
    return {k: torch.as_tensor(v).clone() for k, v in flat.items()}


def assert_same(first, second):
    """Two states, to the bit."""
    assert first.keys() == second.keys()
    different = [k for k in first if not torch.equal(first[k], second[k])]
    assert not different


def history(folder):
    """Lines of gates.jsonl."""
    with open(folder / "gates.jsonl") as fin:
        return [json.loads(line) for line in fin]


def evaluate(trainer):
    """Loss on the test set."""
    return trainer.evaluate(
        dataset(8),
        min_key="loss",
        progressbar=False,
        test_loader_kwargs={"batch_size": 4},
    )
