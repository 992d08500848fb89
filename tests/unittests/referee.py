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
