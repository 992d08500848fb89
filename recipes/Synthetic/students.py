"""The student of the synthetic problems.

Authors
 * The noisegate developers, 2026
"""

import torch
from speechbrain.nnet.containers import Sequential
from speechbrain.nnet.linear import Linear


def student(n_features, hidden_sizes, linear=False):
    """Builds a network of linear layers, with tanh between them or nothing.

    Arguments
    ---------
    n_features : int
        Number of inputs, and of outputs.
    hidden_sizes : list of int
        Widths of the hidden layers.
    linear : bool
        Whether the hidden units are linear, otherwise tanh.

    Returns
    -------
    speechbrain.nnet.containers.Sequential
        Takes (batch, time, n_features); hidden layers are "hidden1", ...

    Example
    -------
    >>> net = student(8, [16])
    >>> net(torch.randn(2, 10, 8)).shape
    torch.Size([2, 10, 8])
    """
    net = Sequential(input_shape=[None, None, n_features])
    for i, size in enumerate(hidden_sizes, start=1):
        net.append(Linear, n_neurons=size, layer_name=f"hidden{i}")
        if not linear:
            net.append(torch.nn.Tanh(), layer_name=f"act{i}")
    net.append(Linear, n_neurons=n_features, layer_name="out")
    return net
