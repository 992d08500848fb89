"""What the gates are compared with: fixed widths and magnitude pruning.

Both take the place of :class:`noisegate.cost.ComplexityLoss` in a recipe's
YAML, so that everything else of a run is the same: data, steps, optimizer,
choice of the best epoch, cutting and test.

Authors
 * The noisegate developers, 2026
"""

import json

import torch

from noisegate.cost import ComplexityLoss
from noisegate.cut import kept_features
from noisegate.gate import HardGate
from noisegate.leaves import CELLS, RECURRENT, n_made, n_read


class FixedWidths(ComplexityLoss):
    """A narrow model from the first step on, nothing learned about widths.

    With closed channels the model computes, and learns, what a model that is
    built with these sizes would. Initial weights that depend on the number of
    inputs of a layer are scaled to the smaller number.

    Arguments
    ---------
    gates : noisegate.attach.Gates
        The gates, of any kind.
    budget : float
        Share of the MACs at full width, in (0, 1].
    widths : str or dict
        "uniform": all widths reduced by one factor, to the budget. A dict
        from group to width, or the path of a ``result.json`` with such a dict
        as "widths": of another run, whose widths are trained from scratch.
    freeze_epoch : int
        As in ComplexityLoss; has no effect.

    Raises
    ------
    ValueError
        If the given widths miss a group, do not fit it or exceed the budget.

    Example
    -------
    >>> from noisegate.attach import Gates
    >>> net = torch.nn.Sequential(
    ...     torch.nn.Linear(8, 16), torch.nn.Linear(16, 1)
    ... )
    >>> gates = Gates(net, input_shape=[1, 100, 8])
    >>> loss = FixedWidths(gates, budget=0.5)
    >>> gates.integer_widths(), gates.frozen
    ({'0': 8}, True)
    """

    def __init__(self, gates, budget, widths="uniform", freeze_epoch=2):
        super().__init__(gates, budget=budget, freeze_epoch=freeze_epoch)
        if widths == "uniform":
            full = {name: g.size for name, g in gates.gates.items()}
            widths = self._round_to_budget(full)
        elif isinstance(widths, str):
            with open(widths, encoding="utf-8") as fin:
                widths = json.load(fin)["widths"]
        missing = sorted(set(gates.gates) - set(widths))
        if missing:
            raise ValueError(f"widths: none is given for {missing}")
        widths = {name: int(widths[name]) for name in gates.gates}
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
        keep = {n: gate.open_channels() for n, gate in gates.gates.items()}
        for (path, role), kept in kept_features(gates.groups, keep).items():
            if role not in ("in", "hidden"):
                continue
            layer = gates.model.get_submodule(path)
            # RNNs are initialised by their number of units
            if (role == "hidden") != isinstance(layer, RECURRENT + CELLS):
                continue
            total = n_made(layer) if role == "hidden" else n_read(layer)
            for parameter in layer.parameters(recurse=False):
                parameter.mul_((total / len(kept)) ** 0.5)


class MagnitudePruning(ComplexityLoss):
    """Gradual pruning by weight magnitude while the model trains.

    Channels whose reading weights have the smallest norm are closed first, in
    all groups at once (norms relative to the mean of their group; Li et al.,
    "Pruning filters for efficient ConvNets", 2017), following the cubic
    schedule of Zhu and Gupta ("To prune, or not to prune", 2017): to a share
    of ``budget + (1 - budget) (1 - t)^3`` of the MACs, where t goes from 0 to
    1 in the first ``tighten`` of the epochs before ``freeze_epoch``. What is
    closed stays closed, the rest goes on training.

    Arguments
    ---------
    gates : noisegate.attach.Gates
        The gates, all of them :class:`noisegate.gate.HardGate`.
    budget : float
        Share of the MACs at full width, in (0, 1].
    tighten : float
        Share of the time before ``freeze_epoch`` after which the budget
        applies.
    freeze_epoch : int
        First epoch in which nothing is pruned any more, at least 2.
    n_prunings : int
        Number of times at which channels are closed.

    Raises
    ------
    ValueError
        If a gate is of another kind.

    Example
    -------
    >>> from noisegate.attach import Gates
    >>> net = torch.nn.Sequential(
    ...     torch.nn.Linear(8, 16), torch.nn.Linear(16, 1)
    ... )
    >>> gates = Gates(net, gate=HardGate, input_shape=[1, 100, 8])
    >>> loss = MagnitudePruning(gates, budget=0.5)
    >>> loss.step(progress=1.0)
    >>> gates.integer_widths()
    {'0': 8}
    """

    def __init__(
        self, gates, budget, tighten=0.8, freeze_epoch=2, n_prunings=20
    ):
        super().__init__(
            gates, budget=budget, tighten=tighten, freeze_epoch=freeze_epoch
        )
        for name, gate in gates.gates.items():
            if not isinstance(gate, HardGate):
                raise ValueError(
                    f"pruning needs gates of the kind HardGate, '{name}' has "
                    f"a {type(gate).__name__}"
                )
        if n_prunings < 1:
            raise ValueError(f"n_prunings must be >= 1, got {n_prunings}")
        self.n_prunings = n_prunings

    @property
    def weight(self):
        """float : 0, the loss has no term for the complexity."""
        return 0.0

    def target(self):
        """Returns the share of the full MACs aimed at now."""
        left = 1 - min(1.0, float(self.progress) / self.tighten)
        return self.budget + (1 - self.budget) * left**3

    @torch.no_grad()
    def step(self, progress):
        """Closes channels if it is time to."""
        times = self.n_prunings / self.tighten
        before = int(float(self.progress) * times)
        self.progress.fill_(progress)
        if int(progress * times + 1e-9) > before:
            self._prune(self.target())

    @torch.no_grad()
    def freeze(self):
        """Closes what is left to close, and fixes all widths."""
        self._prune(self.budget)
        widths = self.gates.integer_widths()
        self.gates.freeze(widths)
        return widths

    def _prune(self, target):
        gates, cost = self.gates.gates, self.gates.cost
        magnitudes = {}
        for name, energy in self.gates.weight_energies().items():
            gate = gates[name]
            is_open = gate.order() < gate.integer_width()
            magnitude = energy.sqrt()
            magnitude = magnitude / magnitude[is_open].mean().clamp(min=1e-12)
            magnitude[~is_open] = -1.0
            best_first = torch.argsort(magnitude, descending=True, stable=True)
            gate.rank.copy_(torch.argsort(best_first))
            magnitudes[name] = magnitude

        def widths(threshold):
            chosen = {}
            for name, magnitude in magnitudes.items():
                gate, step = gates[name], gates[name].granularity
                n_above = int((magnitude > threshold).sum())
                width = -(-n_above // step) * step
                present = gate.integer_width()
                chosen[name] = max(gate.min_width, min(width, present))
            return chosen

        levels = torch.cat(list(magnitudes.values())).unique().tolist()
        low, high = 0, len(levels) - 1
        while low < high:
            middle = (low + high) // 2
            if cost.ratio(widths(levels[middle])) <= target * (1 + 1e-9):
                high = middle
            else:
                low = middle + 1
        for name, width in widths(levels[low]).items():
            gates[name].set_width(width)
