#!/usr/bin/env python3
"""Searches for models that are silently wrong, among random graphs of layers.

> python benchmarks/graphs.py --graphs=2000

A graph is a list of operations on earlier features (batch, frames, channels):
layers, normalizations, sums, products, concatenations, parts, attention. It
is gated, cut to random widths and compared in float64, for other lengths and
batches than the gates were found with; its cost is compared with what torch
counts. hypothesis draws the graphs and makes a smaller one of what fails.

Authors
 * The noisegate developers, 2026
"""

import argparse
import copy
import logging
import sys
import time
from pathlib import Path

import torch
from hypothesis import (
    HealthCheck,
    Phase,
    given,
    seed,
    settings,
    strategies as st,
)
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from noisegate.compact import compact
from noisegate.cost import count_macs
from noisegate.gates import Gates
from noisegate.trial import relative_difference
from tests.unittests.models import random_widths, scramble

N_INPUTS, TOLERANCE = 6, 1e-9
WIDTHS = st.sampled_from([2, 3, 4, 6, 8, 12, 24])
OPERATIONS = (
    "linear conv depthwise gru lstm layer_norm rms_norm batch_norm relu tanh "
    "scale sum sum product cat half glu maxout attention heads pool mix"
).split()
# The operation, its operands (counted from the last one), a width, a variant
GRAPHS = st.lists(
    st.tuples(
        st.sampled_from(OPERATIONS),
        st.integers(0, 3),
        st.integers(0, 3),
        WIDTHS,
        st.integers(0, 2),
    ),
    min_size=2,
    max_size=9,
)


class Graph(nn.Module):
    """Runs a graph; operands that do not fit get a linear layer between."""

    def __init__(self, graph):
        super().__init__()
        self.graph, self.layers = graph, nn.ModuleDict()
        self.made = [N_INPUTS]  # widths
        self.calls = []  # (operation, operands, name of the layer, variant)
        for operation, first, second, width, variant in graph:
            self._add(operation, first, second, width, variant)
        self._add("linear", 0, 0, 3, 0)

    def _layer(self, layer):
        name = str(len(self.layers))
        self.layers[name] = layer
        return name

    def _note(self, operation, operands, width, layer=None, variant=0):
        name = None if layer is None else self._layer(layer)
        self.calls.append((operation, operands, name, variant))
        self.made.append(width)
        return len(self.made) - 1

    def _fit(self, node, width):
        if self.made[node] == width:
            return node
        layer = nn.Linear(self.made[node], width)
        return self._note("layer", [node], width, layer)

    def _add(self, operation, first, second, width, variant):
        last = len(self.made) - 1
        a, b = max(0, last - first), max(0, last - second)
        n = self.made[a]
        if operation == "linear":
            self._note("layer", [a], width, nn.Linear(n, width))
        elif operation == "conv":
            kernel = 2 * variant + 1
            layer = nn.Conv1d(n, width, kernel, padding=variant)
            self._note("conv", [a], width, layer)
        elif operation == "depthwise":
            layer = nn.Conv1d(n, n, 3, padding=1, groups=n)
            self._note("conv", [a], n, layer)
        elif operation in ("gru", "lstm"):
            kind = nn.GRU if operation == "gru" else nn.LSTM
            both = variant == 1
            layer = kind(n, width, 1 + variant // 2, True, True, 0.0, both)
            self._note("recurrent", [a], width * (1 + both), layer)
        elif operation in ("layer_norm", "rms_norm"):
            kind = nn.LayerNorm if operation == "layer_norm" else nn.RMSNorm
            self._note("layer", [a], n, kind(n))
        elif operation == "batch_norm":
            self._note("conv", [a], n, nn.BatchNorm1d(n))
        elif operation in ("relu", "tanh", "pool"):
            self._note(operation, [a], n)
        elif operation == "scale":
            layer = nn.Linear(n, n if variant else 1)
            self._note("scale", [a], n, layer)
        elif operation in ("sum", "product"):
            self._note(operation, [a, self._fit(b, n)], n)
        elif operation == "mix":
            self._note(operation, [a, b], n, None, variant)
        elif operation == "cat":
            self._note("cat", [a, b], n + self.made[b])
        elif operation in ("half", "glu", "maxout"):
            a = a if n % 2 == 0 else self._fit(a, n + 1)
            self._note(operation, [a], self.made[a] // 2, None, variant)
        elif operation == "attention":
            a = a if n % 2 == 0 else self._fit(a, n + 1)
            layer = nn.MultiheadAttention(self.made[a], 2, batch_first=True)
            self._note("attention", [a], self.made[a], layer)
        else:
            width = 4 * (1 + width // 4)
            layer = nn.Linear(n, 3 * width)
            self._note("heads", [a], width, layer, variant)

    def forward(self, x):
        """Returns scores (batch, frames, 3)."""
        made = [x]
        for operation, operands, name, variant in self.calls:
            layer = self.layers[name] if name else None
            values = [made[i] for i in operands]
            made.append(RUN[operation](layer, variant, *values))
        return made[-1]


def _heads(layer, variant, x):
    """Attention of fused projections, by heads of four dimensions."""
    fused = layer(x)
    if variant:  # how models take them apart
        q, k, v = fused.chunk(3, -1)
    else:
        q, k, v = fused.unflatten(-1, (3, -1)).unbind(-2)
    q, k, v = (y.unflatten(-1, (-1, 4)).transpose(1, 2) for y in (q, k, v))
    y = nn.functional.scaled_dot_product_attention(q, k, v)
    return y.transpose(1, 2).flatten(2)


def _halves(variant, x):
    """Two halves: one after the other, or in turns."""
    return x.chunk(2, -1) if variant else x.unflatten(-1, (-1, 2)).unbind(-1)


def _mix(variant, x, y):
    """What all channels of y decide on: weights of frames, a length."""
    if variant == 0:
        return x * y.sum(-1, keepdim=True).softmax(1)
    if variant == 1:
        return (y @ y.transpose(1, 2)).softmax(-1) @ x
    return x + y.norm(dim=-1, keepdim=True)


RUN = {
    "layer": lambda layer, _, x: layer(x),
    "conv": lambda layer, _, x: layer(x.transpose(1, 2)).transpose(1, 2),
    "recurrent": lambda layer, _, x: layer(x)[0],
    "attention": lambda layer, _, x: layer(x, x, x, need_weights=False)[0],
    "heads": _heads,
    "scale": lambda layer, _, x: x * layer(x.mean(1, keepdim=True)).sigmoid(),
    "sum": lambda _, __, x, y: x + y,
    "product": lambda _, __, x, y: x * y,
    "mix": lambda _, variant, x, y: _mix(variant, x, y),
    "cat": lambda _, __, x, y: torch.cat([x, y], -1),
    "half": lambda _, variant, x: _halves(variant, x)[0],
    "glu": lambda _, v, x: _halves(v, x)[0] * _halves(v, x)[1].sigmoid(),
    "maxout": lambda _, v, x: torch.maximum(*_halves(v, x)),
    "relu": lambda _, __, x: x.relu(),
    "tanh": lambda _, __, x: x.tanh(),
    "pool": lambda _, __, x: x + x.amax(1, keepdim=True),
}


@torch.no_grad()
def build(graph):
    """A model of a graph, with parameters that hide nothing."""
    torch.manual_seed(0)
    model = Graph(graph).eval()
    for parameter in model.parameters():
        parameter.copy_(
            torch.randn_like(parameter) / parameter.shape[-1] ** 0.5
        )
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm1d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    return model


class Loud(Exception):
    """A cut model raises: wrong, but nothing is silent."""


class Warned(logging.Handler):
    """Keeps what is logged as a warning."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.messages = []

    def emit(self, record):
        """Keeps a message."""
        self.messages.append(record.getMessage())


def check(graph):
    """Returns the gateable share of a graph, None if it has no gate; raises
    AssertionError if something is wrong and nothing says so, Loud if the cut
    model fails."""
    model, warned = build(graph), Warned()
    logging.getLogger("noisegate").addHandler(warned)
    try:
        found = Gates(model, input_shape=[1, 20, N_INPUTS])
    except ValueError as error:
        assert "no group of channels" in str(error), error
        return None
    finally:
        logging.getLogger("noisegate").removeHandler(warned)
    for draw in range(3):
        gates = copy.deepcopy(found)
        model = gates.model.double().eval()
        scramble(gates, draw)
        widths = random_widths(gates, draw) if draw else gates.min_widths()
        gates.freeze(widths)
        small, _ = compact(gates)
        for shape in ((1, 20), (3, 20), (2, 31)):
            x = torch.randn(*shape, N_INPUTS, dtype=torch.float64)
            with torch.no_grad():
                expected = model(x)
                try:
                    made = small(x)
                except RuntimeError as error:
                    raise Loud(f"{error}, widths {widths}") from error
            difference = relative_difference([expected], [made])
            assert difference <= TOLERANCE, (difference, widths, shape)
        said = gates.cost.macs(widths)
        counted = count_macs(small, [x.new_zeros(1, 20, N_INPUTS)])
        assert said == counted or warned.messages, (said, counted, widths)
    least = found.cost.macs(found.min_widths())
    return 1 - float(least) / float(found.cost.macs())


def search(n_graphs, first_seed=0):
    """Checks many graphs; returns the gateable shares (None of those without
    gates) and prints those whose cut model raises."""
    shares, started = [], time.process_time()

    @seed(first_seed)
    @settings(
        max_examples=n_graphs,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(GRAPHS)
    def run(graph):
        try:
            shares.append(check(graph))
        except Loud as error:
            print(f"raises: {error}: {graph}", flush=True)
        if len(shares) % 100 == 0:
            seconds = time.process_time() - started
            print(f"{len(shares)} graphs, {seconds:.0f} CPU s", flush=True)

    run()
    return shares


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--graphs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("noisegate").propagate = False
    shares = search(arguments.graphs, arguments.seed)
    gated = sorted(share for share in shares if share is not None)
    print(
        f"{len(shares)} graphs, {len(gated)} with gates, median gateable share "
        f"{gated[len(gated) // 2]:.2f}; none silently wrong"
    )
