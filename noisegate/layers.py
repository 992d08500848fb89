"""SpeechBrain layers that ask for a gate on their output features.

Each is the plain layer and computes what the plain layer computes; on top it
carries a gate factory. :class:`noisegate.gates.Gates` finds these layers in
a model and puts the gates where the features are *read*, which is what makes
the masked model equal to the cut one. Normalization layers need no gated
twin: a plain BatchNorm or LayerNorm behind a gated layer belongs to its group
and gets its statistics from the open features only.

Authors
 * The noisegate developers, 2026
"""

import speechbrain as sb
from speechbrain.lobes.models.transformer.Transformer import (
    TransformerEncoderLayer,
)


class GatedFbank(sb.lobes.features.Fbank):
    """Filterbank whose number of mel bands is learned.

    Arguments
    ---------
    *args : tuple
        Passed to ``speechbrain.lobes.features.Fbank``.
    gate : callable
        Gate factory (``!name:noisegate.gate.NoiseGate``); None takes the
        default of :class:`noisegate.gates.Gates`.
    **kwargs : dict
        Passed to ``speechbrain.lobes.features.Fbank``.

    Example
    -------
    >>> import torch
    >>> GatedFbank(n_mels=8)(torch.rand(2, 1600)).shape
    torch.Size([2, 11, 8])
    """

    def __init__(self, *args, gate=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.gate = gate


class GatedLinear(sb.nnet.linear.Linear):
    """Linear layer whose number of neurons is learned.

    Arguments
    ---------
    n_neurons : int
        Number of neurons at full width.
    input_shape : tuple
        Shape of an example input; alternatively use ``input_size``.
    gate : callable
        Gate factory, see :class:`GatedFbank`.
    **kwargs : dict
        Passed to ``speechbrain.nnet.linear.Linear``.

    Example
    -------
    >>> import torch
    >>> GatedLinear(5, input_shape=(2, 3, 4))(torch.rand(2, 3, 4)).shape
    torch.Size([2, 3, 5])
    """

    def __init__(self, n_neurons, input_shape=None, gate=None, **kwargs):
        super().__init__(n_neurons, input_shape=input_shape, **kwargs)
        self.gate = gate


class GatedConv1d(sb.nnet.CNN.Conv1d):
    """Convolution over time whose number of output channels is learned.

    Arguments
    ---------
    out_channels : int
        Number of output channels at full width.
    kernel_size : int
        Kernel size.
    input_shape : tuple
        Shape (batch, time, channel); alternatively use ``in_channels``.
    gate : callable
        Gate factory, see :class:`GatedFbank`.
    **kwargs : dict
        Passed to ``speechbrain.nnet.CNN.Conv1d``.

    Example
    -------
    >>> import torch
    >>> GatedConv1d(5, 3, input_shape=(2, 9, 4))(torch.rand(2, 9, 4)).shape
    torch.Size([2, 9, 5])
    """

    def __init__(
        self, out_channels, kernel_size, input_shape=None, gate=None, **kwargs
    ):
        super().__init__(
            out_channels, kernel_size, input_shape=input_shape, **kwargs
        )
        self.gate = gate


class GatedConv2d(sb.nnet.CNN.Conv2d):
    """Convolution over time and frequency with learned output channels.

    Arguments
    ---------
    out_channels : int
        Number of output channels at full width.
    kernel_size : tuple
        Kernel size.
    input_shape : tuple
        Shape (batch, time, freq[, channel]); alternatively ``in_channels``.
    gate : callable
        Gate factory, see :class:`GatedFbank`.
    **kwargs : dict
        Passed to ``speechbrain.nnet.CNN.Conv2d``.

    Example
    -------
    >>> import torch
    >>> conv = GatedConv2d(5, (3, 3), input_shape=(2, 9, 8, 4))
    >>> conv(torch.rand(2, 9, 8, 4)).shape
    torch.Size([2, 9, 8, 5])
    """

    def __init__(
        self, out_channels, kernel_size, input_shape=None, gate=None, **kwargs
    ):
        super().__init__(
            out_channels, kernel_size, input_shape=input_shape, **kwargs
        )
        self.gate = gate


class GatedGRU(sb.nnet.RNN.GRU):
    """GRU whose number of units is learned.

    All layers and both directions of one GRU share their width.

    Arguments
    ---------
    hidden_size : int
        Number of units at full width.
    input_shape : tuple
        Shape of an example input; alternatively use ``input_size``.
    gate : callable
        Gate factory, see :class:`GatedFbank`.
    **kwargs : dict
        Passed to ``speechbrain.nnet.RNN.GRU``.

    Example
    -------
    >>> import torch
    >>> net = GatedGRU(5, input_shape=(2, 9, 4), bidirectional=True)
    >>> net(torch.rand(2, 9, 4))[0].shape
    torch.Size([2, 9, 10])
    """

    def __init__(self, hidden_size, input_shape=None, gate=None, **kwargs):
        super().__init__(hidden_size, input_shape=input_shape, **kwargs)
        self.gate = gate


class GatedTransformerEncoderLayer(TransformerEncoderLayer):
    """Transformer encoder layer whose feed-forward width is learned.

    The model width belongs to the layer that makes the input of the encoder
    (a :class:`GatedLinear`, a :class:`GatedFbank`): gate it there. The heads
    stay whole: each keeps d_model / nhead of its dimensions.

    Arguments
    ---------
    *args : tuple
        Passed to SpeechBrain's ``TransformerEncoderLayer``.
    gate : callable
        Gate factory, see :class:`GatedFbank`.
    **kwargs : dict
        Passed to SpeechBrain's ``TransformerEncoderLayer``.

    Example
    -------
    >>> import torch
    >>> net = GatedTransformerEncoderLayer(d_ffn=16, nhead=2, d_model=8)
    >>> net(torch.rand(2, 9, 8))[0].shape
    torch.Size([2, 9, 8])
    """

    def __init__(self, *args, gate=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.gate = gate


GATED_LAYERS = (
    GatedFbank,
    GatedLinear,
    GatedConv1d,
    GatedConv2d,
    GatedGRU,
    GatedTransformerEncoderLayer,
)
