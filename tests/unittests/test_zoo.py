"""Models of SpeechBrain as they are: cuts are exact, costs are counted.

The fast part of benchmarks/zoo.py, on models that test_swap_in.py has not.
"""

import copy

import pytest
import torch

from benchmarks.zoo_models import ZOO, build
from noisegate.compact import compact
from noisegate.cost import count_macs
from noisegate.gates import Gates
from noisegate.probe import tensors
from tests.unittests import models

FAST = [
    "ESPnetVGG",
    "GatedNN",
    "EnhanceResnet",
    "L2I NMFEncoder",
    "MetricGAN discriminator",
    "TransformerEncoder",
    "Transducer",
    "nnet SLiGRU",
    "UNet (diffusion)",
]


def run(model, inputs):
    """The floating point outputs of one pass."""
    with torch.no_grad():
        torch.manual_seed(3)
        outputs = tensors(model(*copy.deepcopy(inputs)))
    return [x for x in outputs if x.is_floating_point()]


@pytest.mark.parametrize("name", FAST)
def test_cut_models_are_exact_and_cost_what_is_said(name):
    """At random and at the smallest widths; weights load into a fresh one."""
    model, inputs = build(name)
    found = Gates(model, example=copy.deepcopy(inputs))
    for seed in range(2):
        gates = copy.deepcopy(found)
        models.scramble(gates, seed)
        widths = models.random_widths(gates, seed)
        gates.freeze(widths if seed else gates.min_widths())
        gates.model.eval()
        small, _ = compact(gates)
        for x, y in zip(run(gates.model, inputs), run(small, inputs)):
            assert x.shape == y.shape
            assert (x - y).abs().max() <= 1e-5 * x.abs().max()
        counted = count_macs(small, copy.deepcopy(inputs))
        assert gates.cost.macs(gates.integer_widths()) == counted
        lines = models.corrections(build(name)[0], small)
        loaded = models.corrected(build(name)[0], lines)
        loaded.load_state_dict(small.state_dict())
        assert torch.equal(run(loaded, inputs)[0], run(small, inputs)[0])


def test_the_registry_is_large_enough():
    """And its models are built the same each time."""
    assert len(ZOO) >= 60
    (one, x), (other, y) = build("GatedNN"), build("GatedNN")
    assert torch.equal(run(one, x)[0], run(other, y)[0])


@pytest.mark.parametrize(
    "name, reason",
    [
        ("Tacotron2", "changes by .* from one pass to the next"),
        ("L2I Theta", "classifier.0: the output of the model"),
    ],
)
def test_what_cannot_be_gated_says_why(name, reason):
    """A random forward, a single layer."""
    model, inputs = build(name)
    with pytest.raises(ValueError, match=reason):
        Gates(model, example=inputs)
