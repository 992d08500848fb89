"""Cuts the layers of a model to some of their features.

Authors
 * The noisegate developers, 2026
"""

import copy

import speechbrain as sb
import torch
from speechbrain.lobes.models import resepformer
from speechbrain.nnet import RNN
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import (
    SpectralNormLoadStateDictPreHook as _SpectralNormLoading,
)

from noisegate.leaves import (
    ATTENTION,
    CELLS,
    FEATURES,
    RECURRENT,
    TRANSPOSED,
    depthwise,
    n_read,
)


def kept_features(groups, keep):
    """Returns the features that layers keep when groups are cut.

    Arguments
    ---------
    groups : list of noisegate.groups.Group
        The groups of a model.
    keep : dict of str to torch.Tensor
        Channels that stay, ascending, of the groups to cut by name.

    Returns
    -------
    dict of (str, str) to torch.Tensor
        Features that stay, ascending, by path and role of the ports. A layer
        may read several groups.
    """
    masks = {}
    for group in groups:
        if group.name not in keep:
            continue
        stays = torch.zeros(group.size, dtype=torch.bool)
        stays[keep[group.name].cpu()] = True
        for port in group.ports:
            if port.layer == FEATURES:
                continue
            key = port.layer, port.role
            if port.index is None:
                mask = stays
            else:
                mask = stays[port.index] | (port.index < 0)
            masks[key] = mask & masks.get(key, True)
    return {key: mask.nonzero().flatten() for key, mask in masks.items()}


def cut(model, kept):
    """Cuts layers in place.

    Arguments
    ---------
    model : torch.nn.Module
        A plain model.
    kept : dict of (str, str) to torch.Tensor
        See :func:`kept_features`.

    Returns
    -------
    torch.nn.Module
        The model.

    Example
    -------
    >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1))
    >>> index = torch.tensor([0, 2])
    >>> cut(net, {("0", "out"): index, ("1", "in"): index})
    Sequential(
      (0): Linear(in_features=3, out_features=2, bias=True)
      (1): Linear(in_features=2, out_features=1, bias=True)
    )
    """
    fold(model)
    for (path, role), index in kept.items():
        if role.startswith("axis"):
            path, _, name = path.rpartition(".")
            owner = model.get_submodule(path)
            index = index.to(getattr(owner, name).device)
            _select(owner, name, int(role[4:]), index)
            continue
        layer = model.get_submodule(path)
        device = next(layer.parameters(), index).device
        _cut_layer(layer, role, index.to(device))
    for module in model.modules():
        _renew_sizes(module)
    return model


def detached_copy(model):
    """Returns a deep copy of a model.

    Arguments
    ---------
    model : torch.nn.Module
        The model; tensors that its last pass left in it, as torch's older
        weight normalization does, may be part of a graph.

    Returns
    -------
    torch.nn.Module
    """
    for module in model.modules():
        for name, value in vars(module).items():
            if torch.is_tensor(value) and value.grad_fn is not None:
                setattr(module, name, value.detach())
    return copy.deepcopy(model)


def fold(model):
    """Replaces weight and spectral normalization by plain weights, in place.

    Arguments
    ---------
    model : torch.nn.Module
        The model.

    Example
    -------
    >>> layer = torch.nn.utils.parametrizations.weight_norm(
    ...     torch.nn.Linear(3, 2)
    ... )
    >>> fold(layer)
    >>> [name for name, _ in layer.named_parameters()]
    ['bias', 'weight']
    """
    for module in model.modules():
        for remove in (
            torch.nn.utils.remove_weight_norm,
            torch.nn.utils.remove_spectral_norm,
        ):
            try:
                remove(module)
            except ValueError:  # has none
                pass
        hooks = module._load_state_dict_pre_hooks
        for key, hook in list(hooks.items()):
            # torch 2.11 leaves it, and it asks for what was folded
            if isinstance(getattr(hook, "hook", hook), _SpectralNormLoading):
                del hooks[key]
        if parametrize.is_parametrized(module):
            # Copies of a layer share its class, from which torch would
            # delete the parametrized tensor
            kind = type(module)
            module.__class__ = type(
                kind.__name__, kind.__bases__, dict(kind.__dict__)
            )
            for name in list(module.parametrizations):
                parametrize.remove_parametrizations(module, name)


def _renew_sizes(module):
    """Sizes that modules of SpeechBrain keep as numbers and compute with."""
    if isinstance(module, (sb.nnet.CNN.Conv1d, sb.nnet.CNN.Conv2d)):
        module.in_channels = module.conv.in_channels
    elif isinstance(module, (RNN.RNNCell, RNN.GRUCell, RNN.LSTMCell)):
        module.hidden_size = module.rnn_cells[0].hidden_size
    elif isinstance(module, RNN.AttentionalRNNDecoder):
        module.hidden_size = module.rnn.rnn_cells[0].hidden_size
        module.attn_dim = module.attn.mlp_out.out_features
    elif isinstance(module, (RNN.LiGRU, RNN.SLiGRU)):
        module.hidden_size = module.rnn[0].u.in_features
    elif isinstance(module, (RNN.LiGRU_Layer, RNN.SLiGRU_Layer)):
        if module.hidden_size != module.u.in_features:
            module.hidden_size = module.u.in_features
            module.drop_masks = module.drop_masks[:, : module.hidden_size]
    elif isinstance(module, resepformer.SegLSTM):
        module.hidden_size = module.lstm.hidden_size


def _select(module, name, dim, index):
    parameter = getattr(module, name, None)
    if parameter is None:
        return
    selected = parameter.detach().index_select(dim, index).clone()
    if isinstance(parameter, torch.nn.Parameter):
        selected = torch.nn.Parameter(selected, parameter.requires_grad)
    setattr(module, name, selected)


def _cut_layer(layer, role, index):
    """Keeps the features ``index`` of a layer; see Port for the roles."""
    if isinstance(layer, RECURRENT + CELLS):
        _cut_recurrent(layer, role, index)
    elif isinstance(layer, ATTENTION):
        _cut_attention(layer, role, index)
    elif isinstance(layer, torch.nn.LayerNorm):
        _cut_layer_norm(layer, index)
    elif isinstance(layer, torch.nn.Embedding):
        _select(layer, "weight", 1, index)
        layer.embedding_dim = len(index)
    elif role == "norm":
        _cut_each(layer, index)
    else:
        weight_dim = int(role == "in")
        if isinstance(layer, TRANSPOSED):
            weight_dim = 1 - weight_dim
        _select(layer, "weight", weight_dim, index)
        if role == "out":
            _select(layer, "bias", 0, index)
        what = "channels" if hasattr(layer, "in_channels") else "features"
        setattr(layer, f"{role}_{what}", len(index))


def _cut_each(layer, index):
    for name in ("weight", "bias", "running_mean", "running_var"):
        _select(layer, name, 0, index)
    for name in ("gamma", "beta"):
        _select(layer, name, -1, index)
    if depthwise(layer):
        layer.in_channels = layer.out_channels = layer.groups = len(index)
        return
    for name in ("num_features", "num_channels", "num_parameters", "dim"):
        if hasattr(layer, name):
            setattr(layer, name, len(index))


def _cut_layer_norm(layer, index):
    """Keeps the same entries along one of the normalized axes."""
    keep = torch.zeros(n_read(layer), dtype=torch.bool)
    keep[index.cpu()] = True
    keep = keep.view(layer.normalized_shape)
    shape = list(layer.normalized_shape)
    for axis in reversed(range(len(shape))):
        others = [other for other in range(len(shape)) if other != axis]
        along = keep.any(dim=others) if others else keep
        if int(along.sum()) * (keep.numel() // shape[axis]) == int(keep.sum()):
            selected = along.nonzero().flatten().to(index.device)
            _select(layer, "weight", axis, selected)
            _select(layer, "bias", axis, selected)
            shape[axis] = len(selected)
            layer.normalized_shape = tuple(shape)
            return
    raise ValueError(f"{layer} cannot be cut to features that fill no axis")


def _cut_recurrent(layer, role, index):
    if role == "out":  # its outputs are its hidden units
        return
    names = [name for name, _ in layer.named_parameters()]
    if role == "in":
        for name in names:
            if name == "weight_ih" or name.startswith("weight_ih_l0"):
                _select(layer, name, 1, index)
        layer.input_size = len(index)
    else:
        size = layer.hidden_size
        directions = 2 if getattr(layer, "bidirectional", False) else 1
        below = torch.cat([index + d * size for d in range(directions)])
        for name in names:
            parts = getattr(layer, name).shape[0] // size
            rows = torch.cat([index + part * size for part in range(parts)])
            _select(layer, name, 0, rows)
            if name.startswith("weight_hh"):
                _select(layer, name, 1, index)
            elif name.startswith("weight_ih_l") and "_l0" not in name:
                _select(layer, name, 1, below)
        layer.hidden_size = len(index)
    if isinstance(layer, RECURRENT):
        layer._init_flat_weights()


def _cut_attention(layer, role, index):
    if role == "in":
        _select(layer, "in_proj_weight", 1, index)
    elif role == "out":
        _select(layer.out_proj, "weight", 0, index)
        _select(layer.out_proj, "bias", 0, index)
        layer.out_proj.out_features = len(index)
    elif not isinstance(layer, torch.nn.MultiheadAttention):
        _cut_heads(layer, index)
    else:  # each head keeps its first dimensions
        heads, full = layer.num_heads, layer.head_dim
        size = len(index) // heads
        first = torch.arange(size, device=index.device)
        inner = torch.cat([first + head * full for head in range(heads)])
        rows = torch.cat([inner + part * heads * full for part in range(3)])
        _select(layer, "in_proj_weight", 0, rows)
        _select(layer, "in_proj_bias", 0, rows)
        _select(layer.out_proj, "weight", 1, inner)
        layer.out_proj.in_features = len(inner)
        with torch.no_grad():
            # The smaller layer divides by sqrt(size), training by sqrt(full)
            scale = (size / full) ** 0.5
            layer.in_proj_weight[: len(inner)] *= scale
            if layer.in_proj_bias is not None:
                layer.in_proj_bias[: len(inner)] *= scale
        layer.head_dim = size
        layer.embed_dim = layer.kdim = layer.vdim = len(inner)


def _cut_heads(layer, index):
    """Keeps some dimensions of each head of RelPosMHAXL."""
    heads, full = layer.num_heads, layer.head_dim
    head = torch.arange(heads, device=index.device)[:, None]
    inner = (head * full + index).flatten()
    # Queries, keys and values of a head lie side by side
    parts = torch.cat([index + part * full for part in range(3)])
    rows = (head * 3 * full + parts).flatten()
    _select(layer, "in_proj_weight", 0, rows)
    _select(layer.linear_pos, "weight", 0, inner)
    _select(layer.out_proj, "weight", 1, inner)
    layer.linear_pos.out_features = layer.out_proj.in_features = len(inner)
    for name in ("pos_bias_u", "pos_bias_v"):
        # The layer reads its memory as (heads, dimensions)
        bias = getattr(layer, name)
        chosen = bias.detach().view(heads, full)[:, index].reshape(-1, heads)
        setattr(layer, name, torch.nn.Parameter(chosen, bias.requires_grad))
    layer.head_dim = layer.vhead_dim = len(index)
