"""Gates: learned widths for groups of features.

A gate holds the width of one group of N channels. It is the only place where
the width is parameterized and the only place where noise is drawn. Where the
features of the group are, and which layers read them, is not known here: see
:mod:`noisegate.groups` and :mod:`noisegate.gates`.

Authors
 * The noisegate developers, 2026
"""

import math
from numbers import Real

import torch

# d sqrt(g)/dg is infinite at g = 0 and d sqrt(1 - g)/dg at g = 1: the values
# are exact, the derivatives are those at this distance from the two ends.
_GRADIENT_MARGIN = 1e-2
# What a ramp that follows the width is of it, and the most that it is: with
# few channels left, a wide one would leave none of them unharmed
_RAMP_SHARE, _RAMP = 1 / 16, 4


def check_number(name, value, least, most=math.inf, whole=False, above=False):
    """Raises ValueError, which names the argument, if a value is no finite
    number in [least, most] (``above``: in (least, most]), or not whole."""
    good = isinstance(value, Real) and not isinstance(value, bool)
    good = good and math.isfinite(value) and least <= value <= most
    if good and not (above and value == least) and not (whole and value % 1):
        return
    kind, low = "whole number" if whole else "number", "(" if above else "["
    raise ValueError(
        f"{name} must be a {kind} in {low}{least}, {most}], got {value!r}"
    )


def bounded_sqrt(x):
    """Square root of values in [0, 1]: exact, with a bounded derivative, which
    is taken at ``max(x, 0.01)``.

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


class Bounded(torch.autograd.Function):
    """Values in bounds; gradients pass there, so that they can come back."""

    @staticmethod
    def forward(ctx, x, low, high):
        """Returns what is in the bounds."""
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx, gradient):
        """Returns the gradient of x."""
        return gradient, None, None


class _Mix(torch.autograd.Function):
    """``factors`` x, and noise for some features.

    Whatever the number of features, autograd keeps only those at the edge;
    each of its steps on its own would cost a kernel. ``table`` (3, features)
    has derivatives by the width of what multiplies x and of what multiplies
    the noise, and what multiplies the noise. ``reached`` is called by the
    backward pass.
    """

    @staticmethod
    def forward(ctx, x, kappa, factors, features, table, dim, reached):
        """Returns the mixed features."""
        shape = [1] * x.dim()
        shape[dim] = -1
        factors = factors.to(x.dtype).view(shape)
        slope, noise_slope, scale = (t.view(shape) for t in table.to(x.dtype))
        at_edge = x.index_select(dim, features)
        noise = torch.randn_like(at_edge)
        y = (x * factors).index_add_(dim, features, scale * noise)
        slopes = slope * at_edge + noise_slope * noise
        ctx.save_for_backward(factors, features, slopes)
        ctx.dim, ctx.reached, ctx.dtype = dim, reached, kappa.dtype
        return y

    @staticmethod
    def backward(ctx, gradient):
        """Returns the gradients of x and kappa."""
        factors, features, slopes = ctx.saved_tensors
        if ctx.reached is not None:
            ctx.reached()
        by_width = gradient.index_select(ctx.dim, features) * slopes.conj()
        total = torch.real(by_width).sum(dtype=ctx.dtype).view(1)
        needed = ctx.needs_input_grad[0]
        return gradient * factors if needed else None, total, *[None] * 5


class Gate(torch.nn.Module):
    """What all gates share: bounds, order of the channels, freezing.

    A channel's ``rank`` says when it is closed: the gate of width K keeps the
    channels of rank 0 .. K - 1. At first the rank is the index; it can be
    changed with :meth:`reorder`.

    What a gate does is a function of its state, and of ``training``: whether
    the layer where it acts is in training mode. Evaluation and frozen gates
    keep channels or not, nothing in between, and draw nothing. Subclasses
    give :meth:`width`, :meth:`set_width`, what training does, and
    ``learned``, the name of the tensor that the width follows from.

    Layers in training compute with tensors alone, so that no GPU is waited
    for and ``torch.compile`` has nothing to guard. What is decided in Python
    asks :meth:`known`.

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

    lr = 0.01  # of what is learned, by an adaptive optimizer

    def __init__(self, size, kappa_min=0.0625, granularity=1):
        super().__init__()
        check_number("kappa_min", kappa_min, 0, 1, above=True)
        check_number("granularity", granularity, 1, whole=True)
        if size % granularity:
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
        self._frozen = -1  # the same as a Python int
        self._known = None, None  # see known()
        self._prepared = {}  # see NoiseGate._edge()
        # Since they were last set to False: whether a layer in training mode
        # ran, whether it asked for the width, whether a gradient came back
        self.ran = self.asked = self.reached = False

    @property
    def frozen(self):
        """int or None : the integer width, once the gate is frozen."""
        return None if self._frozen < 0 else self._frozen

    def _load_from_state_dict(self, *args, **kwargs):
        super()._load_from_state_dict(*args, **kwargs)
        self._frozen = int(self.frozen_width)
        self._prepared = {}

    def __getstate__(self):
        # Ids are of this one
        return {**self.__dict__, "_known": (None, None), "_prepared": {}}

    def width(self):
        """Returns the differentiable width, a scalar in [min_width, size]."""
        raise NotImplementedError

    def known(self, width=None):
        """Returns the width (float), as who has read it says, or read.

        From a GPU it is read again only if an optimizer, or what else changes
        tensors in place, has changed it. Changes of ``.data`` leave no trace:
        call :meth:`noisegate.Gates.clamp` behind them.
        """
        learned = getattr(self, self.learned)
        if learned.is_cpu:
            state = learned.tolist()
        else:
            state = id(learned), learned._version
        if width is None and self._known[0] != state:
            width = self.width().detach().reshape(1).tolist()[0]
        if width is not None:
            self._known = state, width
        return self._known[1]

    def integer_width(self):
        """Returns the width (int) rounded up to the granularity: what
        evaluation and compaction keep."""
        return int(self._kept())

    def _kept(self):
        """The same for layers, which do not wait for its value."""
        if self.frozen is not None:
            return self.frozen
        steps = (self.width().detach() / self.granularity - 1e-4).ceil()
        return (steps * self.granularity).clamp(self.min_width, self.size)

    def order(self):
        """Returns the rank of each channel (size,), 0 is closed last."""
        return self.rank

    def open_channels(self):
        """Returns the channels (integer_width,) that evaluation keeps, in
        ascending order."""
        keep = self.order() < self.integer_width()
        return keep.nonzero().flatten()

    @torch.no_grad()
    def freeze(self, width):
        """Fixes the gate to an integer width, a multiple of ``granularity``;
        there is no noise from here on."""
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
        to the edge next. Ties keep their order; usefulness is (size,).
        """
        if self.frozen is not None:
            return
        n_open = int(self.known())
        channels = torch.argsort(self.rank)[:n_open]  # in order of rank
        best_first = torch.argsort(
            usefulness[channels], descending=True, stable=True
        )
        self.rank[channels[best_first]] = torch.arange(
            n_open, device=self.rank.device
        )

    def is_hard(self, training):
        """Returns whether channels are kept or not, nothing in between."""
        return not training or self.frozen is not None

    def is_open(self, training):
        """Returns whether it is known that all channels are fully open. What
        is compiled shall not depend on it: it would be compiled again."""
        if self.frozen is None and torch.compiler.is_compiling():
            return False
        return self.is_hard(training) and self.integer_width() == self.size

    def channel_weights(self, training):
        """Returns the share (size,) of each channel that counts.

        Used where a layer combines channels without reading them one by one:
        normalization statistics, recurrent and attention weights.
        Differentiable in training.
        """
        return (self.order() < self._kept()).to(torch.float32)

    def tied_weights(self, n, training):
        """Returns the weights (n,) of n other channels, e.g. the dimensions
        of an attention head, whose width follows this gate's: the first n *
        width / size of them are open."""
        hard = self.is_hard(training)
        width = self._kept() if hard else self.width()
        ranks = torch.arange(n, device=self.rank.device)
        return (width * (n / self.size) - ranks).clamp(0, 1)

    def mix(self, x, variance, training, dim=-1, index=None, places=None):
        """Returns gated features; ``x`` itself if the gate is known to be
        fully open.

        ``dim`` is the axis of the features in ``x``, ``index`` the channel of
        each (None if feature i is channel i), ``places`` the features (size,
        n) of each channel, or None if channels differ in their numbers,
        ``variance`` (size,) the running variance of the channels.
        """
        if self.is_open(training):
            return x
        return self._scale(x, self.channel_weights(training), dim, index)

    @staticmethod
    def _scale(x, weights, dim, index):
        weights = weights if index is None else weights[index]
        shape = [1] * x.dim()
        shape[dim] = -1
        return x * weights.to(x).view(shape)

    def watched(self, value):
        """Returns a value of the gate that a layer in training computes with,
        and notes whether a gradient reaches it: if compiled, which no hook of
        a gradient can be, whether one could."""
        self.asked = True
        if torch.compiler.is_compiling():
            self.reached = value.requires_grad
        elif value.requires_grad:
            value.register_hook(self._note_gradient)
        return value

    def _note_gradient(self, gradient=None):
        self.reached = True


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
        1 is the published form; None follows the width, a sixteenth of it and
        at most 4.

    Example
    -------
    >>> gate = NoiseGate(size=4)
    >>> x, variance = torch.ones(2, 3, 4), torch.ones(4)
    >>> torch.equal(gate.mix(x, variance, training=True), x)
    True
    >>> gate.freeze(2)
    >>> gate.mix(x, variance, training=True)[0, 0].tolist()
    [1.0, 1.0, 0.0, 0.0]
    """

    learned = "kappa"

    def __init__(self, size, kappa_min=0.0625, granularity=1, ramp=None):
        super().__init__(size, kappa_min, granularity)
        if ramp is not None:
            check_number("ramp", ramp, 1)
        self.ramp = ramp
        # One element, not a scalar: weight decay spares vectors only
        self.kappa = torch.nn.Parameter(torch.ones(1))

    def width(self):
        """Returns K = kappa * size, bounded, differentiable."""
        if self.frozen is not None:  # still a function of kappa, for DDP
            return self.frozen + 0.0 * self.kappa.sum()
        least = self.min_width / self.size
        return Bounded.apply(self.kappa, least, 1.0).sum() * self.size

    def _ramp(self):
        """The ramp at the present width."""
        if self.ramp is not None:
            return self.ramp
        return (self.width().detach() * _RAMP_SHARE).clamp(1, _RAMP)

    @torch.no_grad()
    def clamp(self):
        """Brings the parameter back into its bounds after a step."""
        self.kappa.clamp_(self.min_width / self.size, 1.0)

    @torch.no_grad()
    def set_width(self, width):
        """Sets the width, a number in [min_width, size]."""
        self.kappa.fill_(width / self.size)

    def is_open(self, training):
        """See the base class."""
        if self.is_hard(training) or torch.compiler.is_compiling():
            return super().is_open(training)
        return self.known() >= self.size

    def channel_weights(self, training):
        """See the base class; those at the edge count by their gates g."""
        if self.is_hard(training):
            return super().channel_weights(training)
        width = self.watched(self.width())
        gate = (width - self.rank - 1) / self._ramp() + 1
        # Of those that are open or closed there is no gradient
        at_edge = (gate > 0) & (gate < 1)
        return torch.where(at_edge, gate, gate.detach().clamp(0, 1))

    def _edge(self):
        """Factors (size,) and table (3, size) of :class:`_Mix`, and which
        channels (n,) may be between open and closed; once for each width."""
        if torch.compiler.is_compiling():
            return self._at_edge()
        key = self.known(), self.rank._version, self.rank.device
        found = self._prepared.get(key)
        if found is None:
            found = self._at_edge()
            self._prepared = {key: found}
        return found

    @torch.no_grad()
    def _at_edge(self):
        ramp = self._ramp()
        gate = ((self.width() - self.rank - 1) / ramp + 1).clamp(0, 1)
        # No more channels than these are between open and closed
        n_edge = min(self.size, math.ceil(self.ramp or _RAMP))
        first = (gate >= 1).sum().clamp(max=self.size - n_edge)
        ranks = torch.arange(self.size, device=self.rank.device)
        channels = torch.empty_like(self.rank).index_copy(0, self.rank, ranks)
        signal, noise = gate.sqrt(), (1 - gate).sqrt() * (gate > 0)
        # d gate / d kappa, and 0 where it is open or closed
        slope = self.size / ramp * ((gate > 0) & (gate < 1))
        by_signal = slope / 2 / gate.clamp(min=_GRADIENT_MARGIN).sqrt()
        by_noise = -slope / 2 / (1 - gate).clamp(min=_GRADIENT_MARGIN).sqrt()
        table = torch.stack([by_signal, by_noise, noise])
        return signal, table, channels[first + ranks[:n_edge]]

    def mix(self, x, variance, training, dim=-1, index=None, places=None):
        """Zeroes closed features, mixes noise into those at the edge."""
        if self.is_hard(training):
            return super().mix(x, variance, training, dim, index, places)
        if self.is_open(training):
            return x
        factors, table, features = self._edge()
        channels = features
        if index is not None:
            factors = factors[index]
            features = torch.arange(len(index), device=index.device)
            if places is not None:
                features = places[channels].flatten()
            channels = index[features]
        table = table[:, channels]
        std = variance[channels].sqrt()
        table = torch.cat([table[:1], table[1:] * std])
        self.asked, reached = True, self._note_gradient
        if torch.compiler.is_compiling():
            self.reached, reached = torch.is_grad_enabled(), None
        return _Mix.apply(x, self.kappa, factors, features, table, dim, reached)
