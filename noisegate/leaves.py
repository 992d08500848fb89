"""What is known of the layers of torch and SpeechBrain.

Everything else that a model is made of is observed by
:mod:`noisegate.probe`.

Authors
 * The noisegate developers, 2026
"""

import math

import torch
from speechbrain.lobes.models import conv_tasnet, dual_path
from speechbrain.nnet.attention import RelPosMHAXL, RoPEMHA

CONVS = (torch.nn.Conv1d, torch.nn.Conv2d)
TRANSPOSED = (torch.nn.ConvTranspose1d, torch.nn.ConvTranspose2d)
RECURRENT = (torch.nn.GRU, torch.nn.LSTM, torch.nn.RNN)
CELLS = (torch.nn.GRUCell, torch.nn.LSTMCell, torch.nn.RNNCell)
ATTENTION = (torch.nn.MultiheadAttention, RelPosMHAXL, RoPEMHA)
FEATURES = "features"

_MAKERS = (
    torch.nn.Linear,
    torch.nn.Embedding,
    *CONVS,
    *TRANSPOSED,
    *RECURRENT,
    *CELLS,
    *ATTENTION,
)
# Axis of the channels, and whether statistics are over them alone or over
# everything but the batch
_NORMS = (
    (dual_path.CumulativeLayerNorm, 1, True),
    (dual_path.GlobalLayerNorm, 1, False),
    (conv_tasnet.ChannelwiseLayerNorm, -1, True),
    (conv_tasnet.GlobalLayerNorm, -1, False),
    (torch.nn.GroupNorm, 1, False),
    (torch.nn.LayerNorm, None, True),
)
_EACH = (
    torch.nn.modules.batchnorm._BatchNorm,
    torch.nn.InstanceNorm1d,
    torch.nn.InstanceNorm2d,
)


def depthwise(layer):
    """Returns whether a layer is a convolution of each channel by itself.

    Arguments
    ---------
    layer : torch.nn.Module
        Any layer.

    Returns
    -------
    bool

    Example
    -------
    >>> depthwise(torch.nn.Conv1d(8, 8, 3, groups=8))
    True
    """
    return (
        isinstance(layer, CONVS + TRANSPOSED)
        and layer.groups > 1
        and layer.groups == layer.in_channels == layer.out_channels
    )


def kind(layer):
    """Returns what a layer does to channels.

    Arguments
    ---------
    layer : torch.nn.Module
        Any layer.

    Returns
    -------
    str or None
        "maker": combines channels to new ones. "each": treats them one by
        one. "norm": normalizes over them. None: not a leaf.
    """
    if depthwise(layer) or isinstance(layer, _EACH):
        return "each"
    if isinstance(layer, torch.nn.PReLU):
        return "each" if layer.num_parameters > 1 else None
    if isinstance(layer, tuple(norm for norm, _, _ in _NORMS)):
        return "norm"
    return "maker" if isinstance(layer, _MAKERS) else None


def find_leaves(model):
    """Returns the layers that are looked at as a whole.

    Arguments
    ---------
    model : torch.nn.Module
        The model.

    Returns
    -------
    dict of str to torch.nn.Module
        By path.
    """
    leaves = {}
    for path, layer in model.named_modules():
        inner = any(path.startswith(leaf + ".") for leaf in leaves)
        if kind(layer) is not None and not inner and path:
            leaves[path] = layer
    return leaves


def n_made(layer):
    """Returns the number of channels that a maker makes.

    Arguments
    ---------
    layer : torch.nn.Module
        A maker; the channels of an RNN are its units.

    Returns
    -------
    int
    """
    if isinstance(layer, ATTENTION):
        return layer.out_proj.out_features
    for attribute in (
        "out_features",
        "out_channels",
        "hidden_size",
        "embedding_dim",
    ):
        if hasattr(layer, attribute):
            return getattr(layer, attribute)
    raise TypeError(f"{type(layer)} makes no channels")


def n_read(layer):
    """Returns the number of features that a layer reads or treats.

    Arguments
    ---------
    layer : torch.nn.Module
        A leaf.

    Returns
    -------
    int
    """
    if isinstance(layer, torch.nn.LayerNorm):
        return math.prod(layer.normalized_shape)
    if kind(layer) == "norm" and not isinstance(layer, torch.nn.GroupNorm):
        return scale_and_shift(layer)[0].numel()
    if hasattr(layer, "in_proj_weight"):
        return layer.in_proj_weight.shape[1]
    for attribute in (
        "in_features",
        "in_channels",
        "input_size",
        "num_features",
        "num_channels",
        "num_parameters",
    ):
        if hasattr(layer, attribute):
            # SpeechBrain's QuasiRNN makes it with a tensor
            return int(getattr(layer, attribute))
    raise TypeError(f"{type(layer)} reads no features")


def out_index(layer):
    """Returns the channel of each output feature of a maker.

    Arguments
    ---------
    layer : torch.nn.Module
        A maker.

    Returns
    -------
    torch.Tensor
        (features,): the two directions of an RNN share their units.
    """
    channels = torch.arange(n_made(layer))
    return channels.repeat(2 if getattr(layer, "bidirectional", False) else 1)


def normalized(layer, n_dims):
    """Returns the axes that a normalization works on.

    Arguments
    ---------
    layer : torch.nn.Module
        LayerNorm or the like.
    n_dims : int
        Number of axes of its input.

    Returns
    -------
    channels : list of int
        Axes of the features, all negative.
    statistics : list of int
        Axes over which mean and variance are taken.
    """
    for norm, axis, alone in _NORMS:
        if isinstance(layer, norm):
            break
    if axis is None:
        channels = list(range(-len(layer.normalized_shape), 0))
    else:
        channels = [axis - n_dims if axis >= 0 else axis]
    everything = list(range(1 - n_dims, 0))
    return channels, channels if alone else everything


def scale_and_shift(layer):
    """Returns the parameters of a normalization.

    Arguments
    ---------
    layer : torch.nn.Module
        LayerNorm or the like.

    Returns
    -------
    tuple
        Weight and bias, None where the layer has none.
    """
    if hasattr(layer, "gamma"):
        return layer.gamma, layer.beta
    return layer.weight, layer.bias


def feature_shape(layer, tensor):
    """Returns the shape that sets one value per feature against a tensor.

    Arguments
    ---------
    layer : torch.nn.Module
        A leaf.
    tensor : torch.Tensor
        What it reads or puts out.

    Returns
    -------
    list of int
        1 for each axis that is none of the features.
    """
    n_dims = tensor.dim()
    axes = [-1]
    if isinstance(layer, CONVS + TRANSPOSED):
        axes = [-1 - len(layer.kernel_size)]
    elif kind(layer) == "each":
        axes = [min(1, n_dims - 1) - n_dims]
    elif kind(layer) == "norm":
        axes = normalized(layer, n_dims)[0]
    return [
        tensor.shape[axis] if axis in axes else 1 for axis in range(-n_dims, 0)
    ]
