"""Counts multiply-accumulates of a forward pass, to referee the cost model."""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def count_macs(function, *args):
    """Matrix products of one call, in MACs; fused CPU kernels count as 0."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            torch.no_grad(),
            torch.backends.mkldnn.flags(enabled=False),
            sdpa_kernel(SDPBackend.MATH),
            FlopCounterMode(display=False) as counter,
        ):
            function(*args)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    flops = counter.get_total_flops()
    assert flops % 2 == 0
    return flops // 2


def test_referee_counts_fused_layers():
    """Products are counted in the layers that have fused kernels."""
    x = torch.rand(2, 10, 8)
    linear = torch.nn.Linear(8, 3)
    assert count_macs(linear, x) == 2 * 10 * 8 * 3
    gru = torch.nn.GRU(8, 5, batch_first=True).eval()
    assert count_macs(gru, x) == 2 * 10 * 3 * 5 * (8 + 5)
    att = torch.nn.MultiheadAttention(8, 2, batch_first=True).eval()
    expected = 2 * 10 * 4 * 8 * 8 + 2 * 2 * 10 * 10 * 8
    assert count_macs(att, x, x, x) == expected
