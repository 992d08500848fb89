"""SpeechBrain layers that ask for a gate on their output features.

Each of these classes makes the plain layer and notes on it that its width
shall be learned, and by which gate (``gate``, a factory such as
``!name:noisegate.NoiseGate``). :class:`noisegate.gates.Gates` finds such
layers in a model and puts the gates where the features are *read*, which is
what makes the masked model equal to the cut one. Normalization layers need no
such class: a plain BatchNorm or LayerNorm behind a gated layer belongs to
its group and gets its statistics from the open features only.

Authors
 * The noisegate developers, 2026
"""

import speechbrain as sb
from speechbrain.lobes.models.transformer.Transformer import (
    TransformerEncoderLayer,
)


def declared_gate(layer):
    """Returns the wish of a layer: (gate factory or None,), None if none."""
    return vars(layer).get("declared_gate")


def undeclare(model):
    """Takes the wishes out of a model, which then has plain layers only."""
    for layer in model.modules():
        vars(layer).pop("declared_gate", None)
    return model


class _Gated:
    """Makes a plain layer that asks for a gate."""

    plain = None

    def __new__(cls, *args, gate=None, **kwargs):
        layer = cls.plain(*args, **kwargs)
        layer.declared_gate = (gate,)
        return layer


class _GatedWithShape(_Gated):
    """The same for layers to which SpeechBrain's Sequential gives a shape."""

    def __new__(cls, *args, input_shape=None, gate=None, **kwargs):
        return super().__new__(
            cls, *args, input_shape=input_shape, gate=gate, **kwargs
        )


class GatedFbank(_Gated):
    """Filterbank whose number of mel bands is learned.

    Takes the arguments of ``speechbrain.lobes.features.Fbank`` and ``gate``.

    Example
    -------
    >>> import torch
    >>> GatedFbank(n_mels=8)(torch.rand(2, 1600)).shape
    torch.Size([2, 11, 8])
    """

    plain = sb.lobes.features.Fbank


class GatedLinear(_GatedWithShape):
    """Linear layer whose number of neurons is learned.

    Takes the arguments of ``speechbrain.nnet.linear.Linear`` and ``gate``.

    Example
    -------
    >>> import torch
    >>> GatedLinear(5, input_shape=(2, 3, 4))(torch.rand(2, 3, 4)).shape
    torch.Size([2, 3, 5])
    """

    plain = sb.nnet.linear.Linear


class GatedConv1d(_GatedWithShape):
    """Convolution over time whose number of output channels is learned.

    Takes the arguments of ``speechbrain.nnet.CNN.Conv1d`` and ``gate``.

    Example
    -------
    >>> import torch
    >>> GatedConv1d(5, 3, input_shape=(2, 9, 4))(torch.rand(2, 9, 4)).shape
    torch.Size([2, 9, 5])
    """

    plain = sb.nnet.CNN.Conv1d


class GatedConv2d(_GatedWithShape):
    """Convolution over time and frequency with learned output channels.

    Takes the arguments of ``speechbrain.nnet.CNN.Conv2d`` and ``gate``.

    Example
    -------
    >>> import torch
    >>> conv = GatedConv2d(5, (3, 3), input_shape=(2, 9, 8, 4))
    >>> conv(torch.rand(2, 9, 8, 4)).shape
    torch.Size([2, 9, 8, 5])
    """

    plain = sb.nnet.CNN.Conv2d


class GatedGRU(_GatedWithShape):
    """GRU whose number of units is learned.

    All layers and both directions of one GRU share their width. Takes the
    arguments of ``speechbrain.nnet.RNN.GRU`` and ``gate``.

    Example
    -------
    >>> import torch
    >>> net = GatedGRU(5, input_shape=(2, 9, 4), bidirectional=True)
    >>> net(torch.rand(2, 9, 4))[0].shape
    torch.Size([2, 9, 10])
    """

    plain = sb.nnet.RNN.GRU


class GatedTransformerEncoderLayer(_Gated):
    """Transformer encoder layer whose feed-forward width is learned.

    The model width belongs to the layer that makes the input of the encoder
    (a :class:`GatedLinear`, a :class:`GatedFbank`): gate it there. The heads
    stay whole: each keeps d_model / nhead of its dimensions. Takes the
    arguments of SpeechBrain's ``TransformerEncoderLayer`` and ``gate``.

    Example
    -------
    >>> import torch
    >>> net = GatedTransformerEncoderLayer(d_ffn=16, nhead=2, d_model=8)
    >>> net(torch.rand(2, 9, 8))[0].shape
    torch.Size([2, 9, 8])
    """

    plain = TransformerEncoderLayer
