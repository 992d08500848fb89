"""What the YAML of a saved folder does to a module as it was built."""

import math

import numpy as np
import pytest
import torch

from noisegate.compact import compact
from noisegate.gates import Gates
from tests.unittests import models


class Scales(torch.nn.Module):
    """Layers with scales whose names YAML takes for other things."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(5, 8)
        self.no = torch.nn.Parameter(torch.rand(8))
        self.register_buffer("null", torch.rand(8))
        scales = [torch.rand(8), torch.rand(8)]
        self.scales = torch.nn.ParameterList(scales)
        self.last = torch.nn.Linear(8, 2)
        self.eps, self.floor = 0.0, 0.0

    def forward(self, x):
        x = self.first(x) * self.no + self.null
        for scale in self.scales:
            x = (x + self.eps) * scale
        return self.last(x.clamp(min=self.floor))


EPS = [1e-5, 1e-16, 3e7, 0.25, 2, True, np.float64(1e-7)]


@pytest.mark.parametrize("eps", EPS)
@pytest.mark.parametrize("floor", [0.0, -math.inf])
def test_names_and_numbers_that_yaml_reads_otherwise(eps, floor):
    """Parameters by number or called no; floats without a point."""
    torch.manual_seed(0)
    model = Scales()
    model.eps, model.floor = eps, floor
    gates = Gates(model, example=[torch.randn(3, 5)])
    gates.freeze(dict.fromkeys(gates, 3))
    small, _ = compact(gates)
    loaded = models.corrected(Scales(), models.corrections(Scales(), small))
    loaded.load_state_dict(small.state_dict())
    assert isinstance(eps, type(loaded.eps)) and loaded.eps == eps
    x = torch.randn(4, 5)
    assert torch.equal(loaded(x), small(x))


@pytest.mark.parametrize("choice", [None, [], [1, 2.5], {"a": [None, "no"]}])
def test_settings_that_are_no_numbers(choice):
    """Set behind the constructor: none, lists, mappings."""
    torch.manual_seed(0)
    model = Scales()
    model.floor, model.choice, model.cache = choice, choice, [model.first]
    lines = models.corrections(Scales(), model)
    assert len(lines) == 2
    loaded = models.corrected(Scales(), lines)
    assert loaded.floor == choice == loaded.choice
