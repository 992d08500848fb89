"""Convolutions, and SpeechBrain's modules around them and around pooling.

Authors
 * The noisegate developers, 2026
"""

import math

import speechbrain as sb
import torch

from noisegate.rules.base import Cost, LayerRule, inner, register, select


@register(torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
class ConvRule(LayerRule):
    """``MACs = positions in out kernel / groups``; each channel by itself
    (depthwise) is a group."""

    family = "conv"

    @property
    def depthwise(self):
        """bool : whether each channel is convolved by itself."""
        layer = self.layer
        return 1 < layer.groups == layer.in_channels == layer.out_channels

    def sizes(self):
        if self.depthwise:
            return {"norm": self.layer.in_channels}
        return {"in": self.layer.in_channels, "out": self.layer.out_channels}

    def axes(self, n_dims):
        return [-1 - len(self.layer.kernel_size)]

    @property
    def n_blocks(self):
        """int : its groups."""
        return self.layer.groups

    @property
    def reading(self):
        """torch.Tensor : see the base class."""
        parts = self.layer.weight.chunk(self.layer.groups)
        return torch.cat([part.movedim(1, 0) for part in parts])

    def mixes(self):
        if self.layer.in_channels == 1:
            return "convolves over it"
        return super().mixes()

    def cut(self, role, index):
        layer, n = self.layer, len(index)
        for part in ("in", "out") if role == "norm" else (role,):
            axis = self.weight_axes[part]
            n_before = getattr(layer, f"{part}_channels")
            if part == "in":
                layer.groups = math.ceil(layer.groups * n / n_before)
            else:
                select(layer, "bias", 0, index)
            if layer.weight.shape[axis] == n_before:  # else it is of a group
                select(layer, "weight", axis, index)
            setattr(layer, f"{part}_channels", n)

    def cost(self, widths, calls):
        n_out = widths["norm"] if self.depthwise else widths["out"]
        n_in = self.layer.in_channels // self.layer.groups  # of whole groups
        if self.layer.groups == 1:
            n_in = widths["in"]
        weights = n_in * n_out * math.prod(self.layer.kernel_size)
        params = weights + n_out * (self.layer.bias is not None)
        positions = calls["positions"]
        return Cost(positions * weights, params, positions * n_out)


@register(torch.nn.ConvTranspose1d, torch.nn.ConvTranspose2d)
class TransposedConvRule(ConvRule):
    """Each input position is multiplied by the whole kernel."""

    weight_axes = {"in": 0, "out": 1}
    reading = LayerRule.reading

    def record(self, args, kwargs, output):
        x = [*args, *kwargs.values()][0]
        return {"positions": x.numel() // self.layer.in_channels}


@register(sb.nnet.CNN.Conv1d, sb.nnet.CNN.Conv2d)
class SpeechBrainConvRule(LayerRule):
    """SpeechBrain's modules around a convolution."""

    def renew(self):
        self.layer.in_channels = inner(self.layer.conv, "in_channels")
