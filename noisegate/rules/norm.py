"""Normalizations, and what else treats each channel by itself.

Authors
 * The noisegate developers, 2026
"""

import math

import torch
from speechbrain.lobes.models import conv_tasnet, dual_path

from noisegate.rules.base import Cost, LayerRule, register, select


@register(torch.nn.InstanceNorm1d, torch.nn.InstanceNorm2d)
class EachRule(LayerRule):
    """Treats each channel by itself: nothing but parameters to cut."""

    size_names = ("num_features",)

    @property
    def scale_and_shift(self):
        """tuple : weight and bias, None where the layer has none."""
        return self.layer.weight, getattr(self.layer, "bias", None)

    def sizes(self):
        # SpeechBrain's QuasiRNN makes a layer with a tensor
        return {"norm": int(getattr(self.layer, self.size_names[0]))}

    def axes(self, n_dims):
        return [min(1, n_dims - 1) - n_dims]

    def cut(self, role, index):
        for name in ("weight", "bias", "running_mean", "running_var"):
            select(self.layer, name, 0, index)
        for name in self.size_names:
            setattr(self.layer, name, len(index))

    def cost(self, widths, calls):
        n = widths["norm"]
        params = sum(tensor is not None for tensor in self.scale_and_shift) * n
        return Cost(0, params, calls["positions"] * n)


@register(
    torch.nn.BatchNorm1d,
    torch.nn.BatchNorm2d,
    torch.nn.BatchNorm3d,
    torch.nn.SyncBatchNorm,
)
class BatchNormRule(EachRule):
    """One kind, in whose place DDP puts another: they evaluate alike."""

    kind = "BatchNorm"


@register(torch.nn.PReLU)
class PReLURule(EachRule):
    """Has one parameter per channel, or one for all: then it is no layer."""

    size_names = ("num_parameters",)

    def sizes(self):
        return super().sizes() if self.layer.num_parameters > 1 else {}


class NormRule(EachRule):
    """Takes mean and variance over channels: the open ones, if masked."""

    masks = ("norm",)
    axis = 1  # of the channels
    centred = True  # takes the mean away
    alone = False  # statistics are over channels alone, not over positions

    def axes(self, n_dims):
        return [self.axis - n_dims if self.axis >= 0 else self.axis]

    def masked(self, weights, args, kwargs):
        x = [*args, *kwargs.values()][0]
        x32 = x.float() if x.dtype in (torch.bfloat16, torch.half) else x
        channels = self.axes(x.dim())
        over = channels if self.alone else list(range(1 - x.dim(), 0))
        shape = self.shape(x)
        counts = weights("norm", self.n_read, x32).view(shape)
        n_positions = math.prod([x.shape[dim] for dim in over]) / counts.numel()
        # Stochastic gates may all be closed at once
        counts = counts / (counts.sum().clamp(min=1e-6) * n_positions)
        if self.centred:
            x32 = x32 - (x32 * counts).sum(over, keepdim=True)
        variance = (x32.square() * counts).sum(over, keepdim=True)
        eps = getattr(self.layer, "eps", 1e-8)
        eps = torch.finfo(x.dtype).eps if eps is None else eps  # as RMSNorm
        y = x32 * torch.rsqrt(variance + eps)
        scale, shift = self.scale_and_shift
        if scale is not None:
            y = y * scale.view(shape)
        if shift is not None:
            y = y + shift.view(shape)
        return y.to(x.dtype)


@register(torch.nn.GroupNorm)
class GroupNormRule(NormRule):
    """Of several groups whole ones are cut: the others do not see them."""

    size_names = ("num_channels",)

    @property
    def masks(self):
        """tuple : one group is normalized over its open channels."""
        return ("norm",) if self.layer.num_groups == 1 else ()

    @property
    def n_blocks(self):
        """int : its groups."""
        return self.layer.num_groups

    def cut(self, role, index):
        n_groups = self.layer.num_groups * len(index) / self.n_read
        self.layer.num_groups = math.ceil(n_groups)
        super().cut(role, index)


@register(torch.nn.LayerNorm)
class LayerNormRule(NormRule):
    """Over the last axis, or over several."""

    alone = True

    def sizes(self):
        return {"norm": math.prod(self.layer.normalized_shape)}

    def axes(self, n_dims):
        return list(range(-len(self.layer.normalized_shape), 0))

    def cut(self, role, index):
        """Keeps the same entries along one of the normalized axes."""
        layer = self.layer
        keep = torch.zeros(self.n_read, dtype=torch.bool)
        keep[index.cpu()] = True
        keep = keep.view(layer.normalized_shape)
        shape = list(layer.normalized_shape)
        for axis in reversed(range(len(shape))):
            others = [other for other in range(len(shape)) if other != axis]
            along = keep.any(dim=others) if others else keep
            n_others = keep.numel() // shape[axis]
            if int(along.sum()) * n_others == int(keep.sum()):
                selected = along.nonzero().flatten().to(index.device)
                select(layer, "weight", axis, selected)
                select(layer, "bias", axis, selected)
                shape[axis] = len(selected)
                layer.normalized_shape = tuple(shape)
                return
        raise ValueError(f"{layer} cannot be cut to features that fill no axis")


@register(torch.nn.RMSNorm)
class RMSNormRule(LayerNormRule):
    """Takes the mean square over the last axes."""

    centred = False


@register(dual_path.CumulativeLayerNorm)
class CumulativeNormRule(LayerNormRule):
    """Over channels (axis 1) alone."""

    def axes(self, n_dims):
        return NormRule.axes(self, n_dims)


@register(dual_path.GlobalLayerNorm)
class GlobalNormRule(NormRule):
    """Over channels (axis 1) and positions."""

    size_names = ("dim",)


@register(conv_tasnet.GlobalLayerNorm)
class LastGlobalNormRule(NormRule):
    """Over channels (the last axis) and positions."""

    axis = -1

    @property
    def scale_and_shift(self):
        """tuple : weight and bias."""
        return self.layer.gamma, self.layer.beta

    def sizes(self):
        return {"norm": self.layer.gamma.numel()}

    def cut(self, role, index):
        select(self.layer, "gamma", -1, index)
        select(self.layer, "beta", -1, index)


@register(conv_tasnet.ChannelwiseLayerNorm)
class LastChannelNormRule(LastGlobalNormRule):
    """Over channels (the last axis) alone."""

    alone = True
