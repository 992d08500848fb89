"""The complexity term of the loss, and the budget that it keeps.

Authors
 * The noisegate developers, 2026
"""

import math

import torch
from speechbrain.utils.logger import get_logger

from noisegate.gate import check_number

logger = get_logger(__name__)

_LAG = 1.1  # times the target: who costs more is narrowed


class _Linear(torch.autograd.Function):
    """A number that was computed on the host, and its slopes (floats)."""

    @staticmethod
    def forward(ctx, number, slopes, *variables):
        """Returns the number as a tensor."""
        ctx.slopes = slopes
        return variables[0].new_full((), number)

    @staticmethod
    def backward(ctx, gradient):
        """Returns the gradients of the variables."""
        return None, None, *[gradient * slope for slope in ctx.slopes]


class ComplexityLoss(torch.nn.Module):
    """The complexity term of the loss, and the budget that steers it.

    With a fixed ``weight`` this is the published form,
    ``task loss + weight x complexity``, complexity being MACs relative to the
    full widths. With a budget the weight is a dual variable: it rises while
    the complexity is above ``target(progress)`` and falls below, and the
    target moves geometrically from 1 to the budget over the first
    ``tighten`` of the time in which widths are learned. Steps are taken in
    the logarithm, because the scale of the task loss is not known:

        v = (complexity - target) / target
        integral += integral_gain x v
        log weight = integral + proportional_gain x v

    Where gates lag behind the target by more than a tenth, as where there are
    few steps, all are narrowed by one factor. At the end widths are rounded
    such that the budget is met exactly.

    Arguments
    ---------
    gates : noisegate.gates.Gates
        The gates.
    budget : float
        Target: share of the MACs at full width, in (0, 1].
    max_macs_per_second : float
        Target in absolute terms; give one of the two, or ``weight``.
    weight : float
        Fixed weight of the complexity.
    initial_weight : float
        First value of the dual variable.
    integral_gain : float
        Step size of the dual variable.
    proportional_gain : float
        Immediate reaction to a missed target.
    tighten : float
        Share of the learning time at the end of which target == budget.
    freeze_epoch : int
        First epoch with final widths, at least 2; widths are learned in the
        epochs before.

    Raises
    ------
    ValueError
        If the budget cannot be reached with the smallest widths that the
        gates allow: says what can be.

    Example
    -------
    >>> from speechbrain.nnet.containers import Sequential
    >>> from speechbrain.nnet.linear import Linear
    >>> from noisegate.gates import Gates
    >>> net = Sequential(input_shape=[None, None, 8])
    >>> net.append(Linear, n_neurons=16, layer_name="hidden")
    >>> net.append(Linear, n_neurons=1, layer_name="out")
    >>> gates = Gates(net, input_shape=[1, 100, 8])
    >>> loss = ComplexityLoss(gates, budget=0.5)
    >>> loss.step(progress=1.0)
    >>> loss.freeze()
    {'hidden': 8}
    """

    fixed = False  # whether all widths are final from the first step on

    def __init__(
        self,
        gates,
        budget=None,
        max_macs_per_second=None,
        weight=None,
        initial_weight=0.05,
        integral_gain=0.1,
        proportional_gain=3.0,
        tighten=0.8,
        freeze_epoch=2,
    ):
        super().__init__()
        given = (budget, max_macs_per_second, weight)
        if sum(value is not None for value in given) != 1:
            raise ValueError(
                "give exactly one of budget, max_macs_per_second, weight; got "
                f"{budget}, {max_macs_per_second}, {weight}"
            )
        for name, value, *limits in (
            ("budget", budget, 0, 1),
            ("max_macs_per_second", max_macs_per_second, 0),
            ("weight", weight, 0),
            ("initial_weight", initial_weight, 1e-5, 1e3),
            ("integral_gain", integral_gain, 0),
            ("proportional_gain", proportional_gain, 0),
            ("tighten", tighten, 1e-6, 1),
        ):
            if value is not None:
                check_number(name, value, *limits)
        check_number("freeze_epoch", freeze_epoch, 2, whole=True)
        full = gates.cost.macs_per_second()
        if max_macs_per_second is not None:
            budget = min(1.0, max_macs_per_second / full)
        if not gates:  # asked for as layers: []
            logger.info("no gates: the model stays dense, whatever the budget")
            budget = None if budget is None else 1.0
        if budget is not None:
            least = float(gates.cost.ratio(gates.min_widths()))
            if not least <= budget <= 1:
                raise ValueError(
                    f"budget {budget:.4g} ({round(budget * full)} MACs per "
                    f"second) is out of reach: with these gates and kappa_min "
                    f"it must be in [{least:.4g}, 1], that is from "
                    f"{math.ceil(least * full)} to {full} MACs per second"
                )
        self.freeze_epoch = freeze_epoch
        self._gates = (gates,)  # its parameters are the model's
        self._at = self._line = None  # see _linearized()
        self.budget = budget
        self.fixed_weight = weight
        self.tighten, self.integral_gain = tighten, integral_gain
        self.proportional_gain = proportional_gain
        self.register_buffer("progress", torch.tensor(0.0))
        self.register_buffer("integral", torch.tensor(math.log(initial_weight)))
        self.register_buffer("log_weight", self.integral.clone())

    @property
    def gates(self):
        """noisegate.gates.Gates : the gates."""
        return self._gates[0]

    @property
    def weight(self):
        """float : the present weight of the complexity."""
        return float(self._weight())

    def _weight(self):
        """The same, a tensor that no device waits for if it is learned."""
        if self.gates.frozen or self.budget == 1:
            return 0.0
        if self.fixed_weight is not None:
            return self.fixed_weight
        return self.log_weight.exp()

    def target(self):
        """Returns the share of the full MACs aimed at now."""
        return self.budget ** min(1.0, float(self.progress) / self.tighten)

    def forward(self):
        """Returns the term to add to the task loss, a scalar tensor: ``weight
        x complexity``. Its gradient is zero once the widths are frozen."""
        if not self.gates:
            return torch.zeros((), device=self.progress.device)
        widths = self.gates.widths().values()
        return self._weight() * _Linear.apply(*self._linearized(), *widths)

    def _linearized(self):
        """The complexity and its derivatives by width, a float and a list of
        floats: on the host, as a device would start a kernel for each layer."""
        widths = {name: gate.known() for name, gate in self.gates.items()}
        if self._at != widths:
            leaves = torch.tensor(list(widths.values()), dtype=torch.float64)
            leaves.requires_grad_()
            with torch.enable_grad():
                ratio = self.gates.cost.ratio(dict(zip(widths, leaves)))
            slopes = torch.autograd.grad(ratio, leaves)[0].tolist()
            self._at = widths
            self._line = ratio.reshape(1).tolist()[0], slopes
        return self._line

    @torch.no_grad()
    def step(self, progress):
        """Updates schedule and dual variable, after an optimizer step.

        ``progress`` is the share, in [0, 1], of the time in which widths are
        learned.
        """
        self.progress.fill_(progress)
        if self.fixed_weight is not None or not self.gates:
            return
        ratio, _ = self._linearized()
        violation = max(-1.0, min(1.0, ratio / self.target() - 1))
        self.integral.add_(self.integral_gain * violation).clamp_(-12.0, 7.0)
        self.log_weight.copy_(
            self.integral + self.proportional_gain * violation
        )
        self.log_weight.clamp_(-12.0, 7.0)
        self._narrow(ratio)

    def _narrow(self, ratio):
        """Narrows all gates by one factor if they lag behind the target, as
        they do where there are few steps; by one step of Newton's method."""
        limit = _LAG * self.target()
        if ratio <= limit:
            return
        widths = {name: gate.known() for name, gate in self.gates.items()}
        slopes = zip(self._linearized()[1], widths.values())
        by_log_factor = sum(slope * width for slope, width in slopes)
        factor = math.exp((limit - ratio) / by_log_factor)
        for name, gate in self.gates.items():
            gate.set_width(max(gate.min_width, factor * widths[name]))
        self.gates.clamp()

    @torch.no_grad()
    def freeze(self):
        """Rounds all widths and fixes them.

        With a budget the widths are scaled by one factor, the greatest with
        which they meet it when rounded (to the nearest by ratio); what is left
        goes to gates that have least of what they have learned, if it fits. Of
        this, and the same with a gate of coarse steps held one step higher,
        the widths nearest to the learned ones are taken.

        Returns the final widths (dict).
        """
        gates = self.gates
        widths = {name: float(k) for name, k in gates.widths().items()}
        if self.budget is None or not gates:
            final = gates.integer_widths()
        else:
            final = self._round_to_budget(widths)
        gates.freeze(final)
        return final

    def _round_to_budget(self, widths):
        gates, cost = self.gates, self.gates.cost
        limit = self.budget * cost.macs() * (1 + 1e-9)

        def scaled(factor, raised):
            """Widths times a factor, as the nearest by ratio; one a step up."""
            near = {}
            for name, gate in gates.items():
                step, width = gate.granularity, widths[name] * factor
                below = max(gate.min_width, int(width) // step * step)
                above = min(gate.size, below + step)
                near[name] = above if below * above < width**2 else below
                if name == raised:
                    near[name] = min(gate.size, near[name] + step)
            return near

        def rounded(raised):
            low, high = 0.0, max(gate.size for gate in gates.values()) + 1.0
            for _ in range(60):
                middle = (low + high) / 2
                fits = cost.macs(scaled(middle, raised)) <= limit
                low, high = (middle, high) if fits else (low, middle)
            final = scaled(low, raised)
            while True:
                fits = [
                    (more[name] / widths[name], name, more)
                    for name, gate in gates.items()
                    for more in [
                        {**final, name: final[name] + gate.granularity}
                    ]
                    if more[name] <= gate.size and cost.macs(more) <= limit
                ]
                if not fits:
                    return final
                *_, final = min(fits)  # no two have one name

        # A coarse step may leave much, which would go to all others
        held = [n for n in gates if 1 < gates[n].granularity > widths[n] / 3]
        found = [rounded(name) for name in (None, *held)]
        found[1:] = [f for f in found[1:] if cost.macs(f) <= limit]
        return min(
            found,
            key=lambda f: max(
                abs(math.log(f[n] / k)) for n, k in widths.items()
            ),
        )
