"""Gates: learned widths for groups of features.

A gate holds the width of one group of N channels. It is the only place where
the width is parameterized and the only place where noise is drawn. Where the
features of the group are, and which layers read them, is not known here: see
:mod:`noisegate.groups` and :mod:`noisegate.attach`.

Authors
 * The noisegate developers, 2026
"""

import math

import torch

# d sqrt(g)/dg is infinite at g = 0 and d sqrt(1 - g)/dg at g = 1: the values
# are exact, the gradients are those at this distance from the two ends.
_GRADIENT_MARGIN = 1e-2


def bounded_sqrt(x):
    """Square root with the exact value and a bounded derivative.

    Arguments
    ---------
    x : torch.Tensor
        Values in [0, 1].

    Returns
    -------
    torch.Tensor
        ``x.sqrt()``, whose derivative is taken at ``max(x, 0.01)``.

    Example
    -------
    >>> x = torch.tensor([0.0, 0.25], requires_grad=True)
    >>> y = bounded_sqrt(x)
    >>> y.sum().backward()
    >>> y.tolist(), x.grad.tolist()
    ([0.0, 0.5], [5.0, 1.0])
    """
    value = x.detach().sqrt()
    slope = 0.5 / x.detach().clamp(min=_GRADIENT_MARGIN).sqrt()
    return value + slope * (x - x.detach())


class Gate(torch.nn.Module):
    """What all gates share: bounds, order of the channels, freezing.

    A channel's ``rank`` says when it is closed: the gate of width K keeps the
    channels of rank 0 .. K - 1. At first the rank is the index; it can be
    changed with :meth:`reorder`.

    Subclasses give :meth:`width`, :meth:`refresh` and :meth:`set_width`.

    Arguments
    ---------
    size : int
        Number of channels N of the group.
    kappa_min : float
        Smallest relative width, in (0, 1].
    granularity : int
        Integer widths are multiples of this (e.g. the number of attention
        heads, or 8). It must divide ``size``.

    Raises
    ------
    ValueError
        For a ``kappa_min`` or ``granularity`` out of range.
    """

    def __init__(self, size, kappa_min=0.0625, granularity=1):
        super().__init__()
        if not 0 < kappa_min <= 1:
            raise ValueError(f"kappa_min must be in (0, 1], got {kappa_min}")
        if granularity < 1 or size % granularity:
            raise ValueError(
                f"granularity must divide the size {size}, got {granularity}"
            )
        self.size = size
        self.granularity = granularity
        steps = math.ceil(kappa_min * size / granularity - 1e-9)
        self.min_width = granularity * max(1, steps)
        self.register_buffer("rank", torch.arange(size))
        # Integer width after freezing, -1 before
        self.register_buffer("frozen_width", torch.tensor(-1))
        self._frozen = None  # the same as a Python int, read once
        self.mask = None

    @property
    def frozen(self):
        """int or None : the integer width, once the gate is frozen."""
        if self._frozen is None:
            self._frozen = int(self.frozen_width)
        return None if self._frozen < 0 else self._frozen

    def __getstate__(self):
        # Copies do not take what belongs to one forward pass
        return {**self.__dict__, "mask": None, "edge": None}

    def _load_from_state_dict(self, *args, **kwargs):
        super()._load_from_state_dict(*args, **kwargs)
        self._frozen = None
        self.mask = None

    def width(self):
        """Returns the differentiable, real-valued width.

        Returns
        -------
        torch.Tensor
            Scalar in [min_width, size].
        """
        raise NotImplementedError

    def integer_width(self):
        """Returns the width after rounding up to the granularity.

        Returns
        -------
        int
            What evaluation and compaction keep.
        """
        if self.frozen is not None:
            return self.frozen
        width = float(self.width().detach())
        steps = math.ceil(width / self.granularity - 1e-4)
        return min(self.size, max(self.min_width, steps * self.granularity))

    def order(self):
        """Returns the rank of each channel, 0 for the last to be closed.

        Returns
        -------
        torch.Tensor
            Permutation (size,).
        """
        return self.rank

    def open_channels(self):
        """Returns the channels kept in evaluation, in ascending order.

        Returns
        -------
        torch.Tensor
            Indices (integer_width,).
        """
        keep = self.order() < self.integer_width()
        return keep.nonzero().flatten()

    @torch.no_grad()
    def freeze(self, width):
        """Fixes the gate to an integer width; there is no noise from here on.

        Arguments
        ---------
        width : int
            Number of channels to keep, a multiple of ``granularity``.
        """
        if not self.min_width <= width <= self.size or (
            width % self.granularity
        ):
            raise ValueError(
                f"width must be a multiple of {self.granularity} in "
                f"[{self.min_width}, {self.size}], got {width}"
            )
        self.rank.copy_(self.order())
        self.set_width(width)
        self.frozen_width.fill_(width)
        self._frozen = width

    @torch.no_grad()
    def reorder(self, usefulness):
        """Ranks the fully open channels by descending usefulness.

        The function of the model does not change by this: channels at the
        edge and closed ones keep their ranks. It decides which channels come
        to the edge next. Ties keep their order.

        Arguments
        ---------
        usefulness : torch.Tensor
            One value per channel (size,).
        """
        if self.frozen is not None:
            return
        n_open = int(self.width())
        channels = torch.argsort(self.rank)[:n_open]  # in order of rank
        best_first = torch.argsort(
            usefulness[channels], descending=True, stable=True
        )
        self.rank[channels[best_first]] = torch.arange(
            n_open, device=self.rank.device
        )

    def refresh(self):
        """Prepares the gate for one forward pass: called by the model.

        Sets ``mask`` (size,), the factor of each channel, or None if all
        channels are fully open.
        """
        raise NotImplementedError

    def _refresh_hard(self):
        """The mask of evaluation and of frozen gates: 0 or 1."""
        width = self.integer_width()
        if width == self.size:
            self.mask = None
        else:
            self.mask = (self.order() < width).to(torch.float32)

    def channel_weights(self):
        """Returns the share (size,) of each channel that counts, or None.

        Used where a layer combines channels without reading them one by one:
        normalization statistics, recurrent and attention weights.

        Returns
        -------
        torch.Tensor or None
            Differentiable; None if all are 1.
        """
        return self.mask

    def tied_weights(self, n):
        """Returns the weights of n channels whose width follows this gate's.

        Arguments
        ---------
        n : int
            Number of channels of the other group, e.g. the dimensions of an
            attention head: n * width / size of them are open.

        Returns
        -------
        torch.Tensor or None
            Weights (n,), the first open, the last closed; None if all open.
        """
        if self.mask is None:
            return None
        hard = self.frozen is not None or not self.training
        width = self.integer_width() if hard else self.width()
        ranks = torch.arange(n, device=self.rank.device)
        return (width * (n / self.size) - ranks).clamp(0, 1)

    def mix(self, x, std, dim=-1, index=None):
        """Applies the gate to features that a layer is about to read.

        Arguments
        ---------
        x : torch.Tensor
            Features; dimension ``dim`` has one entry per feature.
        std : torch.Tensor
            Running standard deviation (size,) of the channels.
        dim : int
            Feature dimension of ``x``.
        index : torch.Tensor
            Channel of each feature; None if feature i is channel i.

        Returns
        -------
        torch.Tensor
            The gated features; ``x`` itself if the gate is fully open.
        """
        if self.mask is None:
            return x
        mask = self.mask if index is None else self.mask[index]
        shape = [1] * x.dim()
        shape[dim] = -1
        return x * mask.to(x.dtype).view(shape)


class NoiseGate(Gate):
    """Width learned by feature-noise injection (arXiv 2601.13704).

    With K the width, the channel of rank r has the gate

        g = clamp((K - r - 1) / ramp + 1, 0, 1)

    It passes unharmed for g = 1, is exactly zero for g = 0, and between the
    two becomes ``sqrt(g) x + sqrt(1 - g) std n`` with n ~ N(0, 1), so that its
    variance stays and its information fades. K = kappa * size is a parameter:
    the task loss sees it through the noise, the complexity loss directly.
    Evaluation keeps the K (rounded up) channels of lowest rank and draws
    nothing.

    Arguments
    ---------
    size : int
        Number of channels N of the group.
    kappa_min : float
        Smallest relative width, in (0, 1].
    granularity : int
        Integer widths are multiples of this.
    ramp : float
        Number of channels over which the transition is spread, at least 1.
        1 is the published form.

    Example
    -------
    >>> gate = NoiseGate(size=4)
    >>> x, std = torch.ones(2, 3, 4), torch.ones(4)
    >>> gate.refresh()
    >>> torch.equal(gate.mix(x, std), x)
    True
    >>> _ = gate.freeze(2)
    >>> gate.refresh()
    >>> gate.mix(x, std)[0, 0].tolist()
    [1.0, 1.0, 0.0, 0.0]
    """

    def __init__(self, size, kappa_min=0.0625, granularity=1, ramp=4.0):
        super().__init__(size, kappa_min, granularity)
        if ramp < 1:
            raise ValueError(f"ramp must be at least 1, got {ramp}")
        self.ramp = float(ramp)
        # One element, not a scalar: weight decay spares vectors only
        self.kappa = torch.nn.Parameter(torch.ones(1))
        self.edge = None

    def width(self):
        """Returns K = kappa * size, bounded, differentiable."""
        if self.frozen is not None:  # still a function of kappa, for DDP
            return self.frozen + 0.0 * self.kappa.sum()
        kappa = self.kappa.sum()
        bounded = kappa.clamp(self.min_width / self.size, 1.0)
        # The gradient passes at the bounds, so that the width can come back
        return (bounded.detach() + kappa - kappa.detach()) * self.size

    @torch.no_grad()
    def clamp(self):
        """Brings the parameter back into its bounds after a step."""
        self.kappa.clamp_(self.min_width / self.size, 1.0)

    @torch.no_grad()
    def set_width(self, width):
        """Sets the width, a number in [min_width, size]."""
        self.kappa.fill_(width / self.size)

    def refresh(self):
        """Finds the channels at the edge; see the base class."""
        self.edge = None
        if not self.training or self.frozen is not None:
            return self._refresh_hard()
        gate = (self.width() - self.rank - 1) / self.ramp + 1
        partial = (gate > 0) & (gate < 1)
        if bool((gate >= 1).all()):
            self.mask = None
            return
        self.mask = (gate >= 1).to(torch.float32)
        edge = partial.nonzero().flatten()
        if len(edge):
            self.edge = (edge, gate[edge], partial)

    def channel_weights(self):
        """See the base class; those at the edge count by their gates g."""
        if self.mask is None or self.edge is None:
            return self.mask
        edge, gate, _ = self.edge
        return self.mask.index_add(0, edge, gate)

    def mix(self, x, std, dim=-1, index=None):
        """Zeroes closed features, mixes noise into those at the edge."""
        y = super().mix(x, std, dim, index)
        if self.mask is None or self.edge is None:
            return y
        edge, gate, partial = self.edge
        if index is not None:
            features = partial[index].nonzero().flatten()
            channels = index[features]
            position = partial.cumsum(0)[channels] - 1
            edge, gate, std = features, gate[position], std[channels]
        else:
            std = std[edge]
        shape = [1] * x.dim()
        shape[dim] = -1
        at_edge = x.index_select(dim, edge)
        signal = bounded_sqrt(gate).to(x.dtype).view(shape)
        noise = (bounded_sqrt(1 - gate) * std).to(x.dtype).view(shape)
        mixed = signal * at_edge + noise * torch.randn_like(at_edge)
        return y.index_add_(dim, edge, mixed)  # y is a new tensor, not x


class _DrawnGate(Gate):
    """One random gate per channel, with a location that is learned.

    Subclasses say how gates are drawn and how probable it is that one is not
    zero. Evaluation keeps the channels of highest location, as many as the
    rounded width says, with factor 1.
    """

    def __init__(self, size, kappa_min, granularity, start):
        super().__init__(size, kappa_min, granularity)
        self.location = torch.nn.Parameter(torch.full((size,), start))

    def _open(self, location):
        """Probability that a gate is not zero."""
        raise NotImplementedError

    def _draw(self):
        """Draws the gates (size,)."""
        raise NotImplementedError

    def width(self):
        """Returns the expected number of non-zero gates."""
        if self.frozen is not None:
            return self.frozen + 0.0 * self.location.sum()
        total = self._open(self.location).sum()
        bounded = total.clamp(self.min_width, self.size)
        return bounded.detach() + total - total.detach()

    def order(self):
        """Ranks the channels by descending location."""
        if self.frozen is not None:
            return self.rank
        best_first = torch.argsort(
            self.location.detach(), descending=True, stable=True
        )
        return torch.argsort(best_first)

    def reorder(self, usefulness):
        """Does nothing: these gates have an order of their own."""

    @torch.no_grad()
    def clamp(self):
        """Keeps the gates where their probability still has a gradient."""
        self.location.clamp_(-self.limit, self.limit)

    @torch.no_grad()
    def set_width(self, width):
        """Shifts all locations so that the expected width is ``width``."""
        low, high = -4 * self.limit, 4 * self.limit
        for _ in range(50):
            shift = (low + high) / 2
            total = self._open(self.location + shift).sum()
            low, high = (shift, high) if total < width else (low, shift)
        self.location.add_(shift)

    def refresh(self):
        """Draws the gates of one forward pass; see the base class."""
        if not self.training or self.frozen is not None:
            return self._refresh_hard()
        self.mask = self._draw()


class StochasticGate(_DrawnGate):
    """Hard-concrete gates, one per channel (Louizos et al., 2018).

    The published rival of the noise gate. In training each channel is
    multiplied by

        z = clamp(s (zeta - gamma) + gamma, 0, 1),
        s = sigmoid((log u - log(1 - u) + log_alpha) / beta),  u ~ U(0, 1)

    with log_alpha the location, and the width is the expected number of
    non-zero z (their equation 12).

    Arguments
    ---------
    size : int
        Number of channels N of the group.
    kappa_min : float
        Smallest relative width, in (0, 1].
    granularity : int
        Integer widths are multiples of this.
    open_init : float
        Probability of a non-zero gate at the beginning, in (0, 1).
    beta : float
        Temperature.
    gamma : float
        Lower end of the stretched interval, below 0.
    zeta : float
        Upper end of the stretched interval, above 1.

    Example
    -------
    >>> gate = StochasticGate(size=4)
    >>> round(float(gate.width()), 2)
    3.96
    >>> gate.freeze(2)
    >>> gate.refresh()
    >>> gate.mix(torch.ones(1, 4), torch.ones(4)).tolist()
    [[1.0, 1.0, 0.0, 0.0]]
    """

    limit = 8.0

    def __init__(
        self,
        size,
        kappa_min=0.0625,
        granularity=1,
        open_init=0.99,
        beta=2 / 3,
        gamma=-0.1,
        zeta=1.1,
    ):
        if not 0 < open_init < 1:
            raise ValueError(f"open_init must be in (0, 1), got {open_init}")
        if not (gamma < 0 and zeta > 1 and beta > 0):
            raise ValueError(
                "gamma < 0, zeta > 1 and beta > 0 are needed, got "
                f"gamma={gamma}, zeta={zeta}, beta={beta}"
            )
        offset = beta * math.log(-gamma / zeta)
        start = math.log(open_init / (1 - open_init)) + offset
        super().__init__(size, kappa_min, granularity, start)
        self.beta, self.gamma, self.zeta = beta, gamma, zeta
        self.offset = offset

    def _open(self, location):
        return torch.sigmoid(location - self.offset)

    def _draw(self):
        u = torch.rand_like(self.location).clamp(1e-6, 1 - 1e-6)
        s = torch.sigmoid(
            (torch.log(u) - torch.log1p(-u) + self.location) / self.beta
        )
        return (s * (self.zeta - self.gamma) + self.gamma).clamp(0, 1)


class GaussianGate(_DrawnGate):
    """STG: Gaussian gates, one per channel (Yamada et al., 2020).

    In training each channel is multiplied by

        z = clamp(mu + sigma n, 0, 1),  n ~ N(0, 1)

    with mu the location, and the width is the expected number of non-zero z,
    the sum of Phi(mu / sigma) (their equation 6; "Feature selection using
    stochastic gates", ICML 2020).

    Arguments
    ---------
    size : int
        Number of channels N of the group.
    kappa_min : float
        Smallest relative width, in (0, 1].
    granularity : int
        Integer widths are multiples of this.
    sigma : float
        Standard deviation of the noise, above 0.
    mu_init : float
        Location at the beginning. Theirs is 0.5, which closes 16 % of the
        channels; here all are open at first, as in the other gates.

    Example
    -------
    >>> gate = GaussianGate(size=4, mu_init=0.5)
    >>> round(float(gate.width()), 2)
    3.37
    """

    limit = 2.0

    def __init__(
        self, size, kappa_min=0.0625, granularity=1, sigma=0.5, mu_init=1.5
    ):
        super().__init__(size, kappa_min, granularity, mu_init)
        if sigma <= 0:
            raise ValueError(f"sigma must be above 0, got {sigma}")
        self.sigma = sigma

    def _open(self, location):
        return torch.special.ndtr(location / self.sigma)

    def _draw(self):
        noise = self.sigma * torch.randn_like(self.location)
        return (self.location + noise).clamp(0, 1)


class HardGate(Gate):
    """Open or closed, by decisions that are made elsewhere (pruning).

    There is nothing to learn: :meth:`set_width` and ``rank`` say which
    channels are zero, in training and evaluation alike.

    Arguments
    ---------
    size : int
        Number of channels N of the group.
    kappa_min : float
        Smallest relative width, in (0, 1].
    granularity : int
        Integer widths are multiples of this.

    Example
    -------
    >>> gate = HardGate(size=4)
    >>> gate.set_width(3)
    >>> gate.refresh()
    >>> gate.mix(torch.ones(1, 4), torch.ones(4)).tolist()
    [[1.0, 1.0, 1.0, 0.0]]
    """

    def __init__(self, size, kappa_min=0.0625, granularity=1):
        super().__init__(size, kappa_min, granularity)
        self.register_buffer("present_width", torch.tensor(float(size)))

    def width(self):
        """Returns the width, which has no gradient."""
        if self.frozen is not None:
            return torch.tensor(float(self.frozen))
        return self.present_width

    def clamp(self):
        """Does nothing."""

    def reorder(self, usefulness):
        """Does nothing: who prunes sets the ranks."""

    @torch.no_grad()
    def set_width(self, width):
        """Sets the width, an integer in [min_width, size]."""
        self.present_width.fill_(width)

    def refresh(self):
        """Sets the mask; see the base class."""
        self._refresh_hard()
