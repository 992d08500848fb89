"""Which features of a model share a width, and which layers read them.

A :class:`Group` is a set of N channels. Its :class:`Port` s say where these
channels appear: as outputs or inputs of a layer, inside a normalization, in
the recurrence of an RNN, in the heads of an attention layer. Groups are all
that gates, cost formulas and compaction know of a model.

:func:`find_groups` derives the groups of chains of SpeechBrain layers
(``Sequential`` and what it can hold).

Authors
 * The noisegate developers, 2026
"""

import dataclasses
from typing import Optional

import speechbrain as sb
import torch
from speechbrain.lobes.models.transformer.Transformer import (
    TransformerEncoderLayer,
)

from noisegate.layers import GATED_LAYERS

# Layers that treat each channel for itself and map 0 to 0 or are followed by
# the gate of whatever reads them, so that they need no port.
_CHANNELWISE = (
    torch.nn.ReLU,
    torch.nn.LeakyReLU,
    torch.nn.ELU,
    torch.nn.GELU,
    torch.nn.SiLU,
    torch.nn.Tanh,
    torch.nn.Sigmoid,
    torch.nn.Hardswish,
    torch.nn.Dropout,
    torch.nn.Identity,
    sb.nnet.activations.Swish,
    sb.nnet.dropout.Dropout2d,
)
_CONTAINERS = (
    sb.nnet.containers.Sequential,
    torch.nn.Sequential,
)
# SpeechBrain's wrappers and the attribute that holds the torch layer
_WRAPPERS = {
    sb.nnet.linear.Linear: "w",
    sb.nnet.CNN.Conv1d: "conv",
    sb.nnet.CNN.Conv2d: "conv",
    sb.nnet.normalization.BatchNorm1d: "norm",
    sb.nnet.normalization.BatchNorm2d: "norm",
    sb.nnet.normalization.LayerNorm: "norm",
    sb.nnet.RNN.GRU: "rnn",
}
FEATURES = "features"


@dataclasses.dataclass
class Port:
    """One appearance of a group's channels.

    Arguments
    ---------
    layer : str
        Path of the torch layer in the model; "features" for the front-end.
    role : str
        "out": the layer computes the channels. "in": it reads them.
        "norm": it normalizes them. "hidden": they are its recurrent units.
        "heads": the inner widths of its attention heads follow the group.
    index : torch.Tensor
        Channel of each feature of the layer, None for the identity.
    """

    layer: str
    role: str
    index: Optional[torch.Tensor] = None


@dataclasses.dataclass
class Group:
    """Channels that share one width.

    Arguments
    ---------
    name : str
        Path of the layer that produces the channels first.
    size : int
        Number of channels.
    ports : list of Port
        Where the channels appear.
    granularity : int
        Integer widths must be multiples of this.
    min_width : int
        Smallest integer width that the layers can have.
    fixed : str
        Why the width may not change; None if it may.
    gate : callable
        Gate factory given by the layer itself, or None.
    wanted : bool
        Whether the layer asks for a gate (see :mod:`noisegate.layers`).
    """

    name: str
    size: int
    ports: list = dataclasses.field(default_factory=list)
    granularity: int = 1
    min_width: int = 1
    fixed: Optional[str] = None
    gate: Optional[object] = None
    wanted: bool = False

    def add(self, layer, role, index=None):
        """Adds a port."""
        self.ports.append(Port(layer, role, index))

    def find(self, role):
        """Returns the ports of one role."""
        return [port for port in self.ports if port.role == role]


@dataclasses.dataclass
class _Flow:
    """Features between two layers: their group and the channel of each."""

    group: Group
    index: Optional[torch.Tensor] = None

    def read_by(self, layer, n_features):
        """Registers a layer that reads the features."""
        size = self.group.size
        index = self.index
        if index is None and n_features != size:
            # (batch, time, freq, channel) flattened: channels vary fastest
            if n_features % size:
                raise ValueError(
                    f"{layer} reads {n_features} features, which is no "
                    f"multiple of the {size} channels of {self.group.name}"
                )
            index = torch.arange(n_features) % size
        self.group.add(layer, "in", index)


def find_groups(model, features=None):
    """Finds the channel groups of a chain of layers.

    Follows SpeechBrain's ``Sequential`` containers (and torch's) of Linear,
    Conv1d, Conv2d, BatchNorm, LayerNorm, GRU and TransformerEncoderLayer,
    and activations between them.

    Arguments
    ---------
    model : torch.nn.Module
        The model; its input are the features.
    features : speechbrain.lobes.features.Fbank
        Front-end whose filters are channels too, optional.

    Returns
    -------
    list of Group
        In data-flow order; the last one is the output of the model (fixed).

    Raises
    ------
    ValueError
        For a layer that cannot be followed; names it.

    Example
    -------
    >>> from speechbrain.nnet.containers import Sequential
    >>> from speechbrain.nnet.linear import Linear
    >>> net = Sequential(input_shape=[None, None, 8])
    >>> net.append(Linear, n_neurons=16, layer_name="hidden")
    >>> net.append(torch.nn.ReLU(), layer_name="act")
    >>> net.append(Linear, n_neurons=1, layer_name="out")
    >>> for group in find_groups(net):
    ...     print(group.name, group.size, group.fixed)
    features 8 the input of the model
    hidden 16 None
    out 1 the output of the model
    """
    if features is None:
        group = Group(FEATURES, _input_size(model))
        group.fixed = "the input of the model"
    else:
        group = Group(FEATURES, features.compute_fbanks.n_mels)
        group.wanted = isinstance(features, GATED_LAYERS)
        group.gate = getattr(features, "gate", None)
        group.add(FEATURES, "out")
        if features.deltas or features.context:
            group.fixed = "deltas or context windows follow the filterbank"
    groups = [group]
    last = _follow("", model, _Flow(group), groups)
    last.group.fixed = "the output of the model"
    return groups


def _input_size(model):
    """Input size of the first layer that has weights."""
    for module in model.modules():
        for attribute in ("in_features", "in_channels", "input_size"):
            if isinstance(getattr(module, attribute, None), int):
                return getattr(module, attribute)
        if isinstance(module, torch.nn.MultiheadAttention):
            return module.embed_dim
        if isinstance(module, torch.nn.LayerNorm):
            return module.normalized_shape[-1]
    raise ValueError(f"no layer with weights in {type(model).__name__}")


def _follow(path, module, flow, groups):
    """Follows the features through one module; returns the flow behind it."""

    def join(*names):
        return ".".join(name for name in (path, *names) if name)

    if isinstance(module, _CONTAINERS):
        for name, child in module.named_children():
            flow = _follow(join(name), child, flow, groups)
        return flow
    if isinstance(module, TransformerEncoderLayer):
        return _follow_encoder(join, module, flow, groups)
    for wrapper, attribute in _WRAPPERS.items():
        if isinstance(module, wrapper):
            leaf = getattr(module, attribute)
            flow = _follow_leaf(join(attribute), leaf, flow, groups, path)
            if getattr(module, "unsqueeze", False):
                # SpeechBrain takes away an output axis of size 1 then
                flow.group.min_width = min(2, flow.group.size)
            if isinstance(module, GATED_LAYERS):
                flow.group.wanted, flow.group.gate = True, module.gate
            return flow
    if isinstance(module, _CHANNELWISE):
        return flow
    if next(module.children(), None) is None:
        return _follow_leaf(path, module, flow, groups, path)
    raise _unknown(path, module)


def _unknown(path, module):
    return ValueError(
        f"features cannot be followed through '{path}' "
        f"({type(module).__module__}.{type(module).__name__}): use layers of "
        "speechbrain.nnet or torch.nn that noisegate.groups lists"
    )


def _follow_leaf(path, leaf, flow, groups, name):
    """Follows the features through a torch layer."""
    if isinstance(leaf, torch.nn.modules.batchnorm._BatchNorm):
        if flow.index is None and leaf.num_features != flow.group.size:
            raise _unknown(path, leaf)
        flow.group.add(path, "norm", flow.index)
        return flow
    if isinstance(leaf, torch.nn.LayerNorm):
        if leaf.normalized_shape != (flow.group.size,):
            flow.group.fixed = f"{path} normalizes over more than channels"
        flow.group.add(path, "norm")
        return flow
    if isinstance(leaf, torch.nn.Linear):
        n_in, n_out, index = leaf.in_features, leaf.out_features, None
    elif isinstance(leaf, (torch.nn.Conv1d, torch.nn.Conv2d)):
        if leaf.groups != 1:
            raise ValueError(
                f"'{path}' has groups={leaf.groups}: grouped convolutions "
                "cannot be followed"
            )
        n_in, n_out, index = leaf.in_channels, leaf.out_channels, None
        if isinstance(leaf, torch.nn.Conv2d) and n_in == 1:
            # Input features are positions on the frequency axis here
            flow.group.fixed = f"{path} convolves over it"
            flow = _Flow(Group("", 1))
    elif isinstance(leaf, torch.nn.GRU):
        n_in, n_out = leaf.input_size, leaf.hidden_size
        if leaf.bidirectional:
            index = torch.arange(2 * n_out) % n_out
        else:
            index = None
    else:
        raise _unknown(path, leaf)
    flow.read_by(path, n_in)
    group = Group(name, n_out)
    group.add(path, "out", index)
    if isinstance(leaf, torch.nn.GRU):
        group.add(path, "hidden")
    groups.append(group)
    return _Flow(group, index)


def _follow_encoder(join, layer, flow, groups):
    """Follows the features through a TransformerEncoderLayer.

    Its residual sums tie input, attention output and feed-forward output to
    one group. The inner widths of the heads follow the model width, so that
    the cut layer is an ordinary layer of smaller ``d_model`` with all its
    heads, as in the published models.
    """
    if type(layer.self_att) is not sb.nnet.attention.MultiheadAttention:
        raise _unknown(join("self_att"), layer.self_att)
    attention = layer.self_att.att
    if flow.index is not None or not attention._qkv_same_embed_dim:
        raise _unknown(join(), layer)
    model_width = flow.group
    heads = attention.num_heads
    if model_width.granularity % heads:
        model_width.granularity *= heads
    path = join("self_att.att")
    for role in ("in", "heads", "out"):
        model_width.add(path, role)
    model_width.add(join("norm1.norm"), "norm")
    model_width.add(join("norm2.norm"), "norm")
    ffn = layer.pos_ffn
    if layer.pos_ffn_type == "regularFFN":
        first, last = "pos_ffn.ffn.0", "pos_ffn.ffn.3"
        width = ffn.ffn[0].out_features
    else:
        first, last = "pos_ffn.0.conv", "pos_ffn.2.conv"
        width = ffn[0].conv.out_channels
    hidden = Group(join("pos_ffn"), width)
    hidden.wanted = isinstance(layer, GATED_LAYERS)
    hidden.gate = getattr(layer, "gate", None)
    model_width.add(join(first), "in")
    hidden.add(join(first), "out")
    hidden.add(join(last), "in")
    model_width.add(join(last), "out")
    groups.append(hidden)
    return _Flow(model_width)
