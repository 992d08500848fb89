"""Regression problems whose right layer sizes are known.

A teacher maps Gaussian features x to targets y = teacher(x) + label noise. Its
hidden widths, or the usefulness of each of its features, are chosen; a student
of larger widths has to find them.

Authors
 * The noisegate developers, 2026
"""

import math

import torch

# What a teacher's hidden units see: the tanh is used beyond its linear range
_GAIN = 1.5
_N_CALIBRATION = 20000


class Teacher:
    """A fixed random network with clean targets of unit variance.

    With ``decay`` it is a linear map whose singular values s_i are those of
    s_i^2 ~ exp(-i / decay): its features have known, decaying usefulness.
    Otherwise it has hidden layers of the given widths. All weights are
    semi-orthogonal, so that no unit can stand in for another: a student needs
    exactly these widths.

    Arguments
    ---------
    n_features : int
        Number of inputs, and of outputs.
    widths : list of int
        Hidden sizes; ignored with ``decay``.
    linear : bool
        Whether the hidden units are linear, otherwise tanh.
    decay : float
        Features over which the usefulness falls to 1/e; None for teachers
        with hidden layers.
    seed : int
        Of the weights.

    Example
    -------
    >>> teacher = Teacher(8, widths=[2], linear=True, seed=0)
    >>> x = torch.randn(1000, 8)
    >>> y = teacher(x)
    >>> int(torch.linalg.matrix_rank(y, rtol=1e-4))
    2
    >>> [round(teacher.optimal_error(k), 3) for k in (0, 1, 2, 3)]
    [1.0, 0.5, 0.0, 0.0]
    """

    def __init__(self, n_features, widths=(), linear=False, decay=None, seed=0):
        self.linear = linear or decay is not None
        generator = torch.Generator().manual_seed(seed)

        def orthogonal(rows, columns):
            weight = torch.empty(rows, columns)
            return torch.nn.init.orthogonal_(weight, generator=generator)

        if decay is not None:
            widths = [n_features]
        if not widths or not all(0 < r <= n_features for r in widths):
            raise ValueError(
                f"teacher_widths must lie in [1, {n_features}], got {widths}"
            )
        sizes = [n_features, *widths, n_features]
        self.weights = [orthogonal(n, m) for m, n in zip(sizes, sizes[1:])]
        self.energy = torch.ones(widths[-1])
        if decay is not None:
            self.energy = torch.exp(-torch.arange(n_features) / decay)
            self.weights[-1] = self.weights[-1] * self.energy.sqrt()
        # Each layer's input to its units and the targets get a known scale
        x = torch.randn(_N_CALIBRATION, n_features, generator=generator)
        for layer, weight in enumerate(self.weights):
            last = layer == len(self.weights) - 1
            scale = (1.0 if last else _GAIN) / (x @ weight.T).std()
            self.weights[layer] = weight * scale
            x = self._layer(layer, x)

    def _layer(self, layer, x):
        x = x @ self.weights[layer].T
        if self.linear or layer == len(self.weights) - 1:
            return x
        return x.tanh()

    def __call__(self, x):
        """Returns the clean targets.

        Arguments
        ---------
        x : torch.Tensor
            Features (..., n_features), standard normal.

        Returns
        -------
        torch.Tensor
            (..., n_features), of unit variance on average.
        """
        for layer in range(len(self.weights)):
            x = self._layer(layer, x)
        return x

    def optimal_error(self, width):
        """Returns the least mean squared error of a student of this width.

        Of all maps of rank K the one that keeps the K largest singular values
        is the best (Eckart and Young, 1936); what it leaves is the energy of
        the others. For one hidden layer of linear units.

        Arguments
        ---------
        width : int
            Hidden width K of the student.

        Returns
        -------
        float
            Per output, on clean targets.
        """
        if not self.linear or len(self.weights) != 2:
            raise ValueError(
                "the optimum is known for one linear hidden layer only"
            )
        total = self.energy.sum()
        return (
            float(self.energy[width:].sum() / total)
            if width < len(self.energy)
            else 0.0
        )


def synthesize(teacher, n_sequences, n_frames, label_noise, seed):
    """Draws features and targets.

    Arguments
    ---------
    teacher : Teacher
        The teacher.
    n_sequences : int
        Number of items.
    n_frames : int
        Frames of each item.
    label_noise : float
        Variance of the noise added to the targets (clean ones have 1).
    seed : int
        Of features and noise.

    Returns
    -------
    dict of str to dict
        By item name: "x", "y" (noisy) and "clean", each (n_frames,
        n_features).

    Example
    -------
    >>> teacher = Teacher(8, widths=[2])
    >>> data = synthesize(teacher, 3, 10, label_noise=0.1, seed=0)
    >>> len(data), data["0"]["y"].shape
    (3, torch.Size([10, 8]))
    """
    generator = torch.Generator().manual_seed(seed)
    n_features = teacher.weights[0].shape[1]
    shape = (n_sequences, n_frames, n_features)
    x = torch.randn(shape, generator=generator)
    clean = teacher(x)
    noise = torch.randn(shape, generator=generator)
    y = clean + math.sqrt(label_noise) * noise
    return {
        str(i): {"x": x[i], "y": y[i], "clean": clean[i]}
        for i in range(n_sequences)
    }
