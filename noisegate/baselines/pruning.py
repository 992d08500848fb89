"""Pruning that noise gates are compared with: by magnitude, torch-pruning.

Both take the place of :class:`noisegate.loss.ComplexityLoss` in a recipe's
YAML, so that everything else of a run is the same: data, steps, optimizer,
choice of the best epoch, cutting and test.

Authors
 * The noisegate developers, 2026
"""

import functools
import warnings

import torch
from speechbrain.utils.logger import get_logger

from noisegate.baselines.gates import HardGate
from noisegate.compact import compact
from noisegate.cut import cut, kept_features
from noisegate.extras import extra
from noisegate.gate import check_number
from noisegate.loss import ComplexityLoss
from noisegate.rules.base import rule_of
from noisegate.rules.features import FEATURES

logger = get_logger(__name__)


_RECURRENT = (torch.nn.GRU, torch.nn.LSTM, torch.nn.RNN)
_STEPS = 400  # of torch-pruning's own examples, from all channels to none


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
    gates : noisegate.gates.Gates
        The gates, all of them :class:`noisegate.baselines.gates.HardGate`.
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
    >>> from noisegate.gates import Gates
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
        for name, gate in gates.items():
            if not isinstance(gate, HardGate):
                raise ValueError(
                    f"pruning needs gates of the kind HardGate, '{name}' has "
                    f"a {type(gate).__name__}"
                )
        check_number("n_prunings", n_prunings, 1, whole=True)
        self.n_prunings = n_prunings

    def _weight(self):
        """0: the loss has no term for the complexity."""
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
        gates, cost = self.gates, self.gates.cost
        energies, magnitudes = {}, {}
        for name, tap in gates.taps():
            energies[name] = energies.get(name, 0) + tap.energy()
        for name, energy in energies.items():
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


class TorchPruning(MagnitudePruning):
    """Gradual pruning by torch-pruning while the model trains.

    torch-pruning (Fang et al., "DepGraph: towards any structural pruning",
    CVPR 2023) says what is pruned: its dependency graph, its
    ``GroupMagnitudeImportance`` (norm of the weights of a channel, relative
    to the mean of its group) and its ``BasePruner`` with one ranking of all
    groups, in steps of a 400th of the channels until the MACs are met, as in
    its examples. It works on a copy of the model that is cut to the present
    widths, at the times and to the shares of the MACs of
    :class:`MagnitudePruning`. What it removes from the copy is closed in the
    model, and training goes on.

    Only channels that have a gate are pruned. Of groups with a granularity
    whole steps are removed, and none beyond the smallest width. Groups that
    torch-pruning does not find stay open: mel bands, and what is made by none
    of its layers. It has no GRU, RNN or LSTM of several layers; it is told
    how units of these are removed, as its ``customized_pruners`` are meant
    for. Their weights have no part in its importance: units rank by the
    layers that read them.

    Arguments
    ---------
    gates : noisegate.gates.Gates
        The gates, all of them :class:`noisegate.baselines.gates.HardGate`.
    budget : float
        Share of the MACs at full width, in (0, 1].
    tighten : float
        See MagnitudePruning.
    freeze_epoch : int
        See MagnitudePruning.
    n_prunings : int
        See MagnitudePruning.

    Raises
    ------
    ImportError
        If torch-pruning is not installed.
    ValueError
        If a gate is of another kind, if torch-pruning cannot trace the model,
        if it takes other channels for coupled than the gates do, or if the
        budget is out of reach with the groups that it finds.

    Example
    -------
    >>> from noisegate.gates import Gates
    >>> net = torch.nn.Sequential(
    ...     torch.nn.Linear(8, 16), torch.nn.Linear(16, 1)
    ... )
    >>> gates = Gates(net, gate=HardGate, input_shape=[1, 100, 8])
    >>> loss = TorchPruning(gates, budget=0.5)
    >>> loss.step(progress=1.0)
    >>> gates.integer_widths()
    {'0': 8}
    """

    def __init__(
        self, gates, budget, tighten=0.8, freeze_epoch=2, n_prunings=20
    ):
        super().__init__(gates, budget, tighten, freeze_epoch, n_prunings)
        try:
            found = self._find()
            left = [name for name in gates if name not in found]
            widths = {name: gates[name].min_width for name in found}
            least = float(gates.cost.ratio(widths))
            if least > budget:
                raise ValueError(
                    f"budget {budget:.4g} is out of reach of torch-pruning: "
                    f"it prunes {found}, which leaves {least:.4g} of the MACs "
                    f"at the smallest widths; it does not prune {left}"
                )
            self._choose(budget)  # what fails on the way, fails now
        except (ImportError, ValueError):
            raise
        except Exception as error:  # whatever it runs into
            raise ValueError(
                f"torch-pruning fails on {type(gates.model).__name__}: "
                f"{type(error).__name__}: {error}"
            ) from error
        if left:
            logger.info(f"torch-pruning leaves {left} at full width")

    def _find(self):
        """Names of the groups that it prunes, after a look at each."""
        copy = _PrunedCopy(self.gates)
        found = []
        for group in copy.groups():
            name, channels = copy.channels(group)
            # All of it, and parts that tell one order from another
            half = len(set(channels)) // 2
            copy.check(group)
            copy.check(copy.part(group, [c < half for c in channels]))
            copy.check(copy.part(group, [c % 2 == 0 for c in channels]))
            if copy.importance(group) is not None:
                found.append(name)
        return found

    def _choose(self, target):
        """Channels to close now, by group."""
        cost, widths = self.gates.cost, self.gates.integer_widths()
        chosen = {}
        if cost.ratio(widths) <= target * (1 + 1e-9):
            return chosen
        for name, channels in _PrunedCopy(self.gates).prune(widths):
            step = self.gates[name].granularity
            for i in range(0, len(channels), step):
                chosen.setdefault(name, []).extend(channels[i : i + step])
                widths[name] -= step
                if cost.ratio(widths) <= target * (1 + 1e-9):
                    return chosen
        raise ValueError(
            f"torch-pruning ends at {cost.ratio(widths):.4g} of the MACs, the "
            f"target is {target:.4g}"
        )

    def _prune(self, target):
        for name, channels in self._choose(target).items():
            self._close(self.gates[name], channels)

    @staticmethod
    def _close(gate, channels):
        """Closes some of the open channels."""
        rank = gate.order().clone()
        rank[rank >= gate.integer_width()] += gate.size
        rank[channels] += gate.size
        width = gate.integer_width() - len(channels)
        gate.rank.copy_(torch.argsort(torch.argsort(rank)))
        gate.set_width(width)


class _OneNode(torch.autograd.Function):
    """A recurrent layer as one node of the graph that is traced."""

    @staticmethod
    def forward(ctx, x, size):
        return x.new_zeros(*x.shape[:-1], size)


def _one_node(layer, x, *args):
    """Stands for the forward of a recurrent layer; the values are zero."""
    directions = 1 + layer.bidirectional
    output = _OneNode.apply(x, directions * layer.hidden_size)
    batch = [x.shape[0 if layer.batch_first else 1]] * (x.dim() == 3)
    state = x.new_zeros(
        directions * layer.num_layers, *batch, layer.hidden_size
    )
    if isinstance(layer, torch.nn.LSTM):
        return output, (state, state)
    return output, state


class _RecurrentPruner:
    """How torch-pruning removes inputs and units of a recurrent layer.

    The interface is its ``BasePruningFunc``. Units are channels of which each
    direction has one.
    """

    def prune_out_channels(self, layer, idxs):
        """Removes units of all directions, layers and parts."""
        kept = set(range(layer.hidden_size)) - set(idxs)
        return cut(layer, {("", "hidden"): torch.tensor(sorted(kept))})

    def prune_in_channels(self, layer, idxs):
        """Removes features that the first layer reads."""
        kept = set(range(layer.input_size)) - set(idxs)
        return cut(layer, {("", "in"): torch.tensor(sorted(kept))})

    def get_out_channels(self, layer):
        """Number of output features."""
        return layer.hidden_size * self.get_out_channel_groups(layer)

    def get_in_channels(self, layer):
        """Number of input features."""
        return layer.input_size

    def get_out_channel_groups(self, layer):
        """Number of directions: their units are removed alike."""
        return 1 + layer.bidirectional

    def get_in_channel_groups(self, layer):
        """1, inputs are independent."""
        return 1


class _PrunedCopy:
    """A plain copy at the present widths, as torch-pruning sees it.

    Features of its layers are translated to those of the full model and to
    the channels of the gates.
    """

    def __init__(self, gates):
        with extra("baselines"):
            import torch_pruning
        self.gates = gates
        self.model, _ = compact(gates)
        keep = gates.open_channels()
        kept = kept_features(gates.groups, keep)
        # By path and role: features of the full model that are left
        self.left = {key: index.tolist() for key, index in kept.items()}
        # By path and role: group and channel of these features
        self.owner = {key: {} for key in self.left}
        for group in gates.groups:
            if group.name not in gates:
                continue
            for port in group.ports:
                if port.layer == FEATURES:
                    continue
                index = port.index
                if index is None:
                    index = torch.arange(group.size)
                self.owner[port.layer, port.role].update(
                    (feature, (group.name, channel))
                    for feature, channel in enumerate(index.tolist())
                    if channel >= 0
                )
        self.names = {layer: path for path, layer in self.model.named_modules()}
        ops = torch_pruning.ops
        makers = (ops.TORCH_CONV, ops.TORCH_LINEAR, *_RECURRENT)
        magnitudes = torch_pruning.importance.GroupMagnitudeImportance()
        self.scores = {}

        def importance(group):
            scores = magnitudes(group)
            self.scores[group[0].dep.target.module] = scores
            return scores

        self.importance = importance
        for parameter in self.model.parameters():
            parameter.requires_grad_(True)
            device = parameter.device
        recurrent = [m for m in self.names if isinstance(m, _RECURRENT)]
        for layer in recurrent:
            layer.forward = functools.partial(_one_node, layer)
        own = _RecurrentPruner()
        with (
            torch.enable_grad(),
            torch.random.fork_rng(),
            warnings.catch_warnings(),
        ):
            # Of what it does not know; what comes of it is checked
            warnings.simplefilter("ignore")
            self.pruner = torch_pruning.pruner.BasePruner(
                self.model,
                [
                    x.to(device) if torch.is_tensor(x) else x
                    for x in gates.example
                ],
                importance=importance,
                global_pruning=True,
                pruning_ratio=1.0,
                iterative_steps=_STEPS,
                ignored_layers=[
                    layer
                    for layer, path in self.names.items()
                    if isinstance(layer, makers) and not self._gated(path)
                ],
                root_module_types=list(makers),
                customized_pruners=dict.fromkeys(_RECURRENT, own),
            )
        for layer in recurrent:
            del layer.forward
        self.graph = self.pruner.DG

    def _gated(self, path):
        """Whether all that a layer makes has a gate."""
        made = self.left.get((path, "out"), [])
        return made and all(i in self.owner[path, "out"] for i in made)

    def _place(self, dependency):
        """Path and role of the features in one part of its group."""
        target = dependency.target
        if isinstance(target.module, torch.nn.Parameter):
            path = self.graph._param_to_name[target.module]
            return path, f"axis{target.pruning_dim}"
        if target.module not in self.names:
            return None  # an operation between the layers
        rule = rule_of(target.module)
        if not rule.sizes():
            return None
        path = self.names[target.module]
        if not rule.makes:
            return path, "norm"
        made = self.graph.is_out_channel_pruning_fn(dependency.handler)
        return path, "out" if made else "in"

    def groups(self):
        """Returns the groups of torch-pruning that have gates."""
        return list(
            self.graph.get_all_groups(
                ignored_layers=self.pruner.ignored_layers,
                root_module_types=self.pruner.root_module_types,
            )
        )

    def channels(self, group):
        """Returns name of our group and channel of each index of its root."""
        key, indices = self._place(group[0].dep), group[0].idxs
        left = self.left[key]
        if max(indices) >= len(left):
            raise ValueError(
                f"torch-pruning takes '{key[0]}' to have {len(indices)} "
                f"features, it has {len(left)}"
            )
        owners = [self.owner[key][left[i]] for i in indices]
        names = sorted({name for name, _ in owners})
        if len(names) > 1:
            raise ValueError(
                f"torch-pruning takes the channels of {names} for one group, "
                "the gates do not"
            )
        return names[0], [channel for _, channel in owners]

    def part(self, group, chosen):
        """Returns a part of a group: chosen has a bool for each index."""
        dependency, indices = group[0].dep, group[0].idxs
        return self.graph.get_pruning_group(
            dependency.target.module,
            dependency.handler,
            [i for i, own in zip(indices, chosen) if own],
        )

    def _features(self, group):
        """Features of the full model in a group, by path and role."""
        features = {}
        for dependency, indices in group:
            key = self._place(dependency)
            if key is None:
                continue
            left = self.left.get(key, [])
            features.setdefault(key, set()).update(
                left[i] if i < len(left) else -1 for i in indices
            )
        return features

    def check(self, group):
        """Raises ValueError if a group is not what the gates would close."""
        name, channels = self.channels(group)
        channels, found = set(channels), self._features(group)
        for key, owner in self.owner.items():
            if key[1] == "hidden":
                continue  # goes with what the layer makes
            expected = {
                feature
                for feature, (own, channel) in owner.items()
                if own == name and channel in channels
            }
            if found.pop(key, set()) != expected:
                raise ValueError(
                    f"torch-pruning does not couple the channels of '{name}' "
                    f"as the gates do: it differs in what '{key[0]}' has as "
                    f"'{key[1]}'"
                )
        if found:
            raise ValueError(
                f"torch-pruning prunes {sorted(found)} along with '{name}', "
                "which have no gate"
            )

    def prune(self, widths):
        """Prunes the copy step by step.

        Yields the name of a group and the channels that it lost, the least
        important first.
        """
        widths = dict(widths)
        for _ in range(_STEPS):
            for group in self.pruner.step(interactive=True):
                if not group[0].idxs:
                    continue
                name, channels = self.channels(group)
                gate = self.gates[name]
                scores = self.scores[group[0].dep.target.module]
                total = dict.fromkeys(sorted(set(channels)), 0.0)
                for i, channel in zip(group[0].idxs, channels):
                    total[channel] += float(scores[i])
                room = widths[name] - gate.min_width
                n = min(len(total), room) // gate.granularity
                chosen = sorted(total, key=total.get)[: n * gate.granularity]
                if not chosen:
                    continue
                if len(chosen) < len(total):
                    group = self.part(group, [c in chosen for c in channels])
                self.check(group)
                removed = self._features(group)
                for i, (dependency, indices) in enumerate(group):
                    # What is named twice, behind flattened features, would
                    # be taken twice from the size that its layer notes
                    indices = sorted(set(indices))
                    group[i] = type(group[i])(dependency, indices)
                group.prune()
                for key, features in removed.items():
                    left = self.left[key]
                    self.left[key] = [i for i in left if i not in features]
                widths[name] -= len(chosen)
                yield name, chosen
