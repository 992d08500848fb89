"""Convolutions, and SpeechBrain's modules around them and around pooling.

Authors
 * The noisegate developers, 2026
"""

import math

import speechbrain as sb
import torch

from noisegate.rules.base import Cost, LayerRule, inner, register, select


@register(torch.nn.Conv1d, torch.nn.Conv2d)
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

    def locked(self):
        if self.layer.groups == 1 or self.depthwise:
            return {}
        return dict.fromkeys(("in", "out"), "convolves in groups")

    def mixes(self):
        if self.layer.in_channels == 1:
            return "convolves over it"
        return super().mixes()

    def cut(self, role, index):
        if role != "norm":
            return super().cut(role, index)
        select(self.layer, "weight", 0, index)
        select(self.layer, "bias", 0, index)
        n = len(index)
        self.layer.in_channels = self.layer.out_channels = n
        self.layer.groups = n

    def cost(self, widths, calls):
        n_out = widths["norm"] if self.depthwise else widths["out"]
        # What a group reads may not change
        n_in = self.layer.in_channels // self.layer.groups
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

    def record(self, args, kwargs, output):
        x = [*args, *kwargs.values()][0]
        return {"positions": x.numel() // self.layer.in_channels}


@register(sb.nnet.CNN.Conv1d, sb.nnet.CNN.Conv2d)
class SpeechBrainConvRule(LayerRule):
    """SpeechBrain's modules around a convolution."""

    def renew(self):
        self.layer.in_channels = inner(self.layer.conv, "in_channels")
