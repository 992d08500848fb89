"""Gates and widths that noise gates are compared with.

Authors
 * The noisegate developers, 2026
"""

import json
import math

import torch

from noisegate.cut import kept_features
from noisegate.gate import Bounded, Gate, check_number
from noisegate.loss import ComplexityLoss
from noisegate.rules.base import rule_of


class _DrawnGate(Gate):
    """One random gate per channel, with a location that is learned.

    Subclasses say how gates are drawn and how probable it is that one is not
    zero. Evaluation keeps the channels of highest location, as many as the
    rounded width says, with factor 1.
    """

    learned = "location"

    def __init__(self, size, kappa_min, granularity, start):
        super().__init__(size, kappa_min, granularity)
        self.location = torch.nn.Parameter(torch.full((size,), start))
        self._noise = None  # (version of the parameter, numbers (size,))

    def _open(self, location):
        """Probability that a gate is not zero."""
        raise NotImplementedError

    def _numbers(self):
        """Draws random numbers (size,)."""
        raise NotImplementedError

    def _draw(self, noise):
        """Gates (size,) for random numbers."""
        raise NotImplementedError

    def width(self):
        """Returns the expected number of non-zero gates."""
        if self.frozen is not None:
            return self.frozen + 0.0 * self.location.sum()
        total = self._open(self.location).sum()
        return Bounded.apply(total, self.min_width, self.size)

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

    def channel_weights(self, training):
        """See the base class. All layers of one training step have the same
        gates: new ones are drawn when the parameter was changed."""
        if self.is_hard(training):
            return super().channel_weights(training)
        version = self.location._version
        if self._noise is None or self._noise[0] != version:
            self._noise = version, self._numbers()
        return self.watched(self._draw(self._noise[1]))


class HardConcreteGate(_DrawnGate):
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
    >>> gate = HardConcreteGate(size=4)
    >>> round(float(gate.width()), 2)
    3.96
    >>> gate.freeze(2)
    >>> gate.mix(torch.ones(1, 4), torch.ones(4), training=True).tolist()
    [[1.0, 1.0, 0.0, 0.0]]
    """

    lr = 0.1

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
        check_number("open_init", open_init, 1e-6, 1 - 1e-6)
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

    def _numbers(self):
        return torch.rand_like(self.location).clamp(1e-6, 1 - 1e-6)

    def _draw(self, u):
        s = torch.sigmoid(
            (torch.log(u) - torch.log1p(-u) + self.location) / self.beta
        )
        return (s * (self.zeta - self.gamma) + self.gamma).clamp(0, 1)


class STGGate(_DrawnGate):
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
    >>> gate = STGGate(size=4, mu_init=0.5)
    >>> round(float(gate.width()), 2)
    3.37
    """

    limit = 2.0

    def __init__(
        self, size, kappa_min=0.0625, granularity=1, sigma=0.5, mu_init=1.5
    ):
        super().__init__(size, kappa_min, granularity, mu_init)
        check_number("sigma", sigma, 0, above=True)
        self.sigma = sigma

    def _open(self, location):
        return torch.special.ndtr(location / self.sigma)

    def _numbers(self):
        return torch.randn_like(self.location)

    def _draw(self, noise):
        return (self.location + self.sigma * noise).clamp(0, 1)


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
    >>> gate.mix(torch.ones(1, 4), torch.ones(4), training=True).tolist()
    [[1.0, 1.0, 1.0, 0.0]]
    """

    learned = "present_width"

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

    def is_hard(self, training):
        """See the base class."""
        return True


class FixedWidths(ComplexityLoss):
    """A narrow model from the first step on, nothing learned about widths.

    What is trained is the model cut to these sizes. Initial weights that depend
    on the number of inputs of a layer are scaled to the smaller number.

    Arguments
    ---------
    gates : noisegate.gates.Gates
        The gates, of any kind.
    budget : float
        Share of the MACs at full width, in (0, 1].
    widths : str or dict
        "uniform": all widths reduced by one factor, to the budget. A dict
        from group to width, or the path of a ``result.json`` with such a dict
        as "widths": of another run, whose widths are trained from scratch.
        They may be below ``kappa_min``, as those of a chain are at its end.
    freeze_epoch : int
        As in ComplexityLoss; has no effect.

    Raises
    ------
    ValueError
        If the given widths miss a group, do not fit it or exceed the budget.

    Example
    -------
    >>> from noisegate.gates import Gates
    >>> net = torch.nn.Sequential(
    ...     torch.nn.Linear(8, 16), torch.nn.Linear(16, 1)
    ... )
    >>> gates = Gates(net, input_shape=[1, 100, 8])
    >>> loss = FixedWidths(gates, budget=0.5)
    >>> gates.integer_widths(), gates.frozen
    ({'0': 8}, True)
    """

    fixed = True

    def __init__(self, gates, budget, widths="uniform", freeze_epoch=2):
        if widths != "uniform":
            for group in gates.groups:
                if group.name in gates:
                    gate = gates[group.name]
                    gate.min_width = min(gate.min_width, group.min_width)
        super().__init__(gates, budget=budget, freeze_epoch=freeze_epoch)
        if widths == "uniform":
            full = {name: g.size for name, g in gates.items()}
            widths = self._round_to_budget(full)
        elif isinstance(widths, str):
            with open(widths, encoding="utf-8") as fin:
                widths = json.load(fin)["widths"]
        missing = sorted(set(gates) - set(widths))
        if missing:
            raise ValueError(f"widths: none is given for {missing}")
        widths = {name: int(widths[name]) for name in gates}
        ratio = gates.cost.ratio(widths)
        if ratio > 1.01 * budget:
            raise ValueError(
                f"widths: they cost {ratio:.4g} of the MACs, which is more "
                f"than the budget of {budget:.4g}"
            )
        gates.freeze(widths)
        self._rescale()

    @torch.no_grad()
    def _rescale(self):
        """Initial weights as in layers that are as small as the open part."""
        gates = self.gates
        keep = gates.open_channels()
        for (path, role), kept in kept_features(gates.groups, keep).items():
            if role not in ("in", "hidden"):
                continue
            layer = gates.model.get_submodule(path)
            sizes = rule_of(layer).sizes()
            # RNNs are initialised by their number of units
            if (role == "hidden") != ("hidden" in sizes):
                continue
            total = sizes[role]
            for parameter in layer.parameters(recurse=False):
                parameter.mul_((total / len(kept)) ** 0.5)
