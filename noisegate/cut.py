"""Cuts the layers of a model to some of their features.

Authors
 * The noisegate developers, 2026
"""

import contextlib
import copy

import torch
from torch.nn.utils import parametrize

from noisegate._private import forget_spectral_norm, own_class
from noisegate.rules.base import rule_of, select, shared_parameters
from noisegate.rules.features import FEATURES


def kept_features(groups, keep):
    """Returns the features that layers keep when groups are cut.

    ``keep`` has the channels that stay, ascending, of the groups to cut by
    name; the result the features by path and role of the ports. A layer may
    read several groups.
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
            index = port.index
            mask = stays if index is None else stays[index] | (index < 0)
            masks[key] = mask & masks.get(key, True)
    return {key: mask.nonzero().flatten() for key, mask in masks.items()}


def cut(model, kept):
    """Cuts the layers of a plain model in place, see :func:`kept_features`,
    and returns it.

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
    tied = shared_parameters(model)
    for (path, role), index in kept.items():
        if role.startswith("axis"):
            path, _, name = path.rpartition(".")
            owner = model.get_submodule(path)
            index = index.to(getattr(owner, name).device)
            select(owner, name, int(role[4:]), index)
            continue
        layer = model.get_submodule(path)
        tensors = [*layer.parameters(), *layer.buffers(), index]
        device = tensors[0].device
        rule_of(layer).cut(role, index.to(device))
    for (_, owner, name), *others in tied:
        for _, other, its_name in others:
            setattr(other, its_name, getattr(owner, name))
    for module in model.modules():
        rule_of(module).renew()
    return model


def cut_copy(model, groups, keep):
    """Returns a cut copy of a plain model, see :func:`kept_features`, that
    shares with it the parameters that stay whole."""
    shared = {
        id(parameter): parameter
        for name, parameter in model.named_parameters()
        if "parametrizations." not in name  # are folded in place
    }
    return cut(detached_copy(model, shared), kept_features(groups, keep))


def detached_copy(model, memo=None):
    """Returns a deep copy of a model, in which the last pass may have left
    tensors that are part of a graph, as torch's older weight norm does.
    Raises ValueError if it has parts that cannot be copied."""
    for module in model.modules():
        for name, value in vars(module).items():
            if torch.is_tensor(value) and value.grad_fn is not None:
                setattr(module, name, value.detach())
    try:
        twin = copy.deepcopy(model, memo)
    except (TypeError, RuntimeError) as error:
        name = type(model).__name__
        raise ValueError(
            f"{name} cannot be copied ({error}): give what keeps it from that "
            "a __deepcopy__, or make it in the forward"
        ) from error
    for parameter in twin.parameters():
        if parameter.grad_fn is not None:  # torch.jit clones it
            parameter.detach_().requires_grad_()
    return twin


def fold(model):
    """Replaces weight and spectral normalization by plain weights, in place.

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
            with contextlib.suppress(ValueError):  # has none
                remove(module)
        forget_spectral_norm(module)
        if parametrize.is_parametrized(module):
            own_class(module)
            for name in list(module.parametrizations):
                parametrize.remove_parametrizations(module, name)
