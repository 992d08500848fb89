"""Structures whose channels belong together, at toy and at usual widths."""

import pytest
import torch
from torch import nn

from noisegate.gates import Gates


class Heads(nn.Module):
    """Fused projections, heads of a constant width."""

    def __init__(self, width, per_head):
        super().__init__()
        self.first = nn.Linear(8, width)
        self.fused = nn.Linear(width, 3 * width)
        self.last = nn.Linear(width, 5)
        self.per_head = per_head

    def forward(self, x):
        """Attention, added to what it reads."""
        x = self.first(x)
        q, k, v = (
            y.unflatten(-1, (-1, self.per_head)).transpose(1, 2)
            for y in self.fused(x).chunk(3, -1)
        )
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.last(x + y.transpose(1, 2).flatten(2))


class Maxout(nn.Module):
    """The greatest of three channels."""

    def __init__(self, width, in_turns):
        super().__init__()
        self.first = nn.Linear(8, 3 * width)
        self.last = nn.Linear(width, 5)
        self.shape, self.axis = ((-1, 3), -1) if in_turns else ((3, -1), -2)

    def forward(self, x):
        """Reads channels in turns, or thirds of them."""
        return self.last(
            self.first(x).unflatten(-1, self.shape).amax(self.axis)
        )


class HandWrittenLSTM(nn.Module):
    """Four chunks of one layer, three of which make the state."""

    def __init__(self, width, _):
        super().__init__()
        self.first = nn.Linear(8, 4 * width)
        self.again = nn.Linear(width, 4 * width)
        self.last = nn.Linear(width, 5)

    def forward(self, x):
        """One step after the other."""
        h = c = x.new_zeros(len(x), self.again.in_features)
        states = []
        for step in self.first(x).unbind(1):
            i, f, g, o = (step + self.again(h)).chunk(4, -1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            states.append(h)
        return self.last(torch.stack(states, 1))


class FeatureMaps(nn.Module):
    """Max-feature-map by constant sizes of the parts."""

    def __init__(self, width, by_split):
        super().__init__()
        self.first = nn.Linear(8, 2 * width)
        self.last = nn.Linear(width, 5)
        self.by_split = by_split

    def forward(self, x):
        """Halves by ``split`` or ``chunk``."""
        x = self.first(x)
        half = x.shape[-1] // 2
        parts = x.split(half, -1) if self.by_split else x.chunk(2, -1)
        return self.last(torch.maximum(*parts))


def groups(model):
    """Gateable groups with the number of their channels."""
    gates = Gates(model.eval(), input_shape=[1, 12, 8])
    return {name: gate.size for name, gate in gates.items()}


@pytest.mark.parametrize("width", [24, 192])
@pytest.mark.parametrize("per_head", [4, 12])
def test_heads(width, per_head):
    """Whole heads stay or go, with what they are added to."""
    found = groups(Heads(width, per_head))
    assert found == {"first": width // per_head}


@pytest.mark.parametrize("width", [8, 160])
@pytest.mark.parametrize(
    "kind, variant",
    [
        (Maxout, True),
        (Maxout, False),
        (HandWrittenLSTM, None),
        (FeatureMaps, True),
        (FeatureMaps, False),
    ],
)
def test_channels_that_meet(kind, variant, width):
    """One width for what is read together."""
    found = groups(kind(width, variant))
    assert found == {"first": width}


def test_several_head_counts_on_one_width():
    """Steps are the least common multiple."""

    class Two(nn.Module):
        """Four heads, then six."""

        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(8, 24), nn.Linear(24, 5)
            self.four = nn.MultiheadAttention(24, 4, batch_first=True)
            self.six = nn.MultiheadAttention(24, 6, batch_first=True)

        def forward(self, x):
            """Residual attention."""
            x = self.first(x)
            x = x + self.four(x, x, x)[0]
            return self.last(x + self.six(x, x, x)[0])

    gates = Gates(Two().eval(), input_shape=[1, 12, 8])
    assert gates["first"].granularity == gates["first"].min_width == 12
