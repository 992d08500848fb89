"""Random graphs of layers: none is silently wrong."""

import pytest
import torch
from torch import nn

from benchmarks import graphs
from noisegate.rules import norm


def test_some_graphs():
    """Of the search in benchmarks/graphs.py, the first ones."""
    shares = graphs.search(30)
    assert len(shares) >= 30
    assert sum(share is not None for share in shares) > 10


def test_even_widths_in_the_middle_are_no_chance():
    """Halves of halves: cut to 2, and often to others, they are exact."""
    graph = [("half", 0, 0, 2, 0), ("half", 0, 0, 2, 0), ("linear", 1, 0, 8, 0)]
    graphs.check(graph)


def test_the_search_finds_a_fault(monkeypatch):
    """A norm over all channels, if no trial is made."""
    monkeypatch.setattr("noisegate.gates.lock_inexact", lambda *args: None)
    monkeypatch.setattr(norm.NormRule, "masks", ())
    graph = [("linear", 0, 0, 8, 0), ("layer_norm", 0, 0, 2, 0)]
    with pytest.raises(AssertionError, match="layers.0"):
        graphs.check(graph)


def test_all_operations_run():
    """Each on a width that is even and on one that is not."""
    for operation in graphs.OPERATIONS:
        for width in (3, 4):
            graph = [("linear", 0, 0, width, 0), (operation, 0, 1, 6, 1)]
            model = graphs.build(graph)
            assert isinstance(model, nn.Module)
            made = model(torch.randn(2, 9, graphs.N_INPUTS))
            assert made.shape == (2, 9, 3) and made.isfinite().all()
