"""Numbers that go wrong: batches with NaN, settings out of their range."""

import functools
import math

import pytest
import torch
from speechbrain.dataio.dataset import DynamicItemDataset

from noisegate.baselines.gates import HardConcreteGate
from noisegate.gate import NoiseGate
from noisegate.gates import Gates
from noisegate.loss import ComplexityLoss
from noisegate.teacher import Teacher
from tests.unittests import brains

BAD = [math.nan, math.inf, -1, "25%", "abc", None, True, [1]]


def spoiled(value, where="feats"):
    """The data of the toy Brain, with one item that is not finite."""
    data = brains.dataset()
    feats = [data[i]["feats"].clone() for i in range(len(data))]
    feats[6][3, 2] = value
    new = DynamicItemDataset({f"{i:03}": {"n": i} for i in range(len(data))})
    new.add_dynamic_item(lambda i: feats[i], takes="n", provides="feats")
    labels = [data[i]["labels"] for i in range(len(data))]
    new.add_dynamic_item(lambda i: labels[i], takes="n", provides="labels")
    new.set_output_keys(["id", "feats", "labels"])
    return new


def fit(trainer, data):
    trainer.fit(
        trainer.counter,
        data,
        brains.dataset(8),
        train_loader_kwargs={"batch_size": 4, "shuffle": False},
        valid_loader_kwargs={"batch_size": 4},
    )
    return trainer


@pytest.mark.parametrize("gate", ["noise", "stochastic"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_training_goes_on_without_a_batch_that_is_not_finite(value, gate):
    trainer = brains.brain(gate=gate, skip_nonfinite_grads=True)
    fit(trainer, spoiled(value))
    for name, tensor in trainer.modules.state_dict().items():
        assert tensor.isfinite().all(), name
    assert trainer.gates.frozen
    assert trainer.gate_stats()["macs_ratio"] <= brains.BUDGET


def test_the_error_says_where(tmp_path):
    with pytest.raises(ValueError) as error:
        fit(brains.brain(tmp_path), spoiled(math.nan))
    said = str(error.value)
    assert "loss is nan in epoch 1, step 2" in said  # items 4 to 7
    assert "'004', '005', '006', '007'" in said
    assert "first in the input of 'model.conv" in said
    assert "--skip_nonfinite_grads" in said


class Overflowing(brains.TinyBrain):
    """A finite loss whose gradient is not."""

    def compute_objectives(self, predictions, batch, stage):
        loss = super().compute_objectives(predictions, batch, stage)
        zero = (predictions[0, 0] * 0).abs().sum()
        return loss + zero.sqrt()


def test_a_gradient_that_is_not_finite_is_an_error():
    trainer = brains.brain(brain_class=Overflowing)
    with pytest.raises(ValueError, match="in epoch 1, step [12]"):
        brains.fit(trainer)


def test_widths_that_collapse_are_a_warning(caplog):
    fast = functools.partial(torch.optim.SGD, lr=50.0)
    loss = {"weight": 5.0, "freeze_epoch": brains.FREEZE}
    trainer = brains.brain(loss=loss, gate_opt_class=fast)
    trainer.complexity_loss.budget = brains.BUDGET
    brains.fit(trainer)
    assert "had collapsed to 0." in caplog.text
    assert "gates are too fast" in caplog.text


def test_the_warning_is_not_given_otherwise(caplog):
    brains.fit(brains.brain())
    assert "collapsed" not in caplog.text


@pytest.mark.parametrize("value", [v for v in BAD if v is not None] + [0.5])
@pytest.mark.parametrize(
    "name, make",
    [
        ("kappa_min", NoiseGate),
        ("granularity", NoiseGate),
        ("ramp", NoiseGate),
        ("open_init", HardConcreteGate),
        ("weight", functools.partial(Teacher, {})),
        ("temperature", functools.partial(Teacher, {})),
        ("budget", None),
        ("weight", None),
        ("tighten", None),
        ("freeze_epoch", None),
        ("integral_gain", None),
        ("proportional_gain", None),
    ],
)
def test_settings_out_of_their_range_are_refused_by_name(name, make, value):
    half = ("kappa_min", "open_init", "weight", "temperature", "budget")
    half += ("tighten", "integral_gain", "proportional_gain")
    if value == 0.5 and name in half:
        pytest.skip("0.5 is in its range")
    options = {name: value}
    if make is None:
        gates = Gates(torch.nn.Sequential(*layers()), input_shape=[1, 9, 8])
        if name != "weight":
            options.setdefault("budget", 0.5)
        with pytest.raises(ValueError, match=f"{name} must be"):
            ComplexityLoss(gates, **options)
        return
    if make in (NoiseGate, HardConcreteGate):
        options["size"] = 8
    with pytest.raises(ValueError, match=f"{name} must be"):
        make(**options)


def layers():
    yield torch.nn.Linear(8, 16)
    yield torch.nn.ReLU()
    yield torch.nn.Linear(16, 1)


@pytest.mark.parametrize("given", ["conv*", 3, True, 0.5])
def test_layers_as_a_text_are_refused(given):
    with pytest.raises(ValueError, match="layers must be a list"):
        net = torch.nn.Sequential(*layers())
        Gates(net, input_shape=[1, 9, 8], layers=given)
