"""Cost of a model as a function of its widths.

One multiply-accumulate (MAC) is one multiplication and one addition; FLOPs
are 2 x MACs. Counted: linear and convolutional layers, recurrences, attention
(projections and inner products), the mel filterbank. Not counted: biases,
activations, normalizations, the FFT.

The formula of each layer is that of its rule (:mod:`noisegate.rules`). It
serves real-valued widths (the loss) and integer widths (the report); at
integer widths it equals what ``torch.utils.flop_counter.FlopCounterMode``
counts on the cut model.

Authors
 * The noisegate developers, 2026
"""

import collections
import contextlib
import copy
import math
from fractions import Fraction

import torch
from speechbrain.utils.logger import get_logger
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from noisegate.cut import cut_copy
from noisegate.probe import FORWARD_ERRORS, evaluating, map_tensors, tensors
from noisegate.rules.base import Cost, find_leaves, rule_of, shared_parameters
from noisegate.rules.features import FEATURES

logger = get_logger(__name__)

PRODUCTS = "products between the layers"


def count_macs(model, inputs):
    """Counts the MACs (int) of one pass of a model in evaluation, whatever
    computes them.

    Example
    -------
    >>> count_macs(torch.nn.Linear(3, 4), [torch.rand(5, 3)])
    60
    """
    return _counted(model, inputs).get_total_flops() // 2


def _counted(model, inputs):
    """torch's counter after one pass of a model."""
    # Kernels that compute a whole layer are not counted
    fused = any(rule_of(module).fused for module in model.modules())
    onednn = torch.backends.mkldnn.enabled and not fused
    with (
        contextlib.ExitStack() as after,
        evaluating(model),
        torch.backends.mkldnn.flags(enabled=onednn),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        for parameter in model.parameters():
            if parameter.requires_grad:  # the counter would follow gradients
                parameter.requires_grad_(False)
                after.callback(parameter.requires_grad_, True)
        model(*inputs)
    return counter


def _correct(path, rule, recorded, counted):
    """Corrects what was recorded of a layer by the MACs that were counted.

    A subclass may compute more positions than it returns, as causal
    convolutions do, or fewer times what its parent does.
    """
    said = rule.cost(rule.sizes(), recorded).macs
    if said == counted:
        return
    once = rule.cost(rule.sizes(), {**recorded, "positions": 1}).macs
    if set(recorded) == {"positions"} and once and counted % once == 0:
        recorded["positions"] = counted // once
        return
    logger.warning(
        f"'{path}' ({type(rule.layer).__name__}) makes {counted} "
        f"multiplications where its formula says {said}: the difference is "
        "taken to be the same at all widths"
    )


def _parameter_cost(widths, calls):
    """Cost of parameters of the model itself or a subclass; fewer than 0 of
    those that another layer has, too."""
    return Cost(0, math.prod(widths.values()) * calls["others"], 0)


def _count_cut(model, groups, widths, inputs, device=None):
    """The MACs of a model that is cut to some widths, on a device."""
    keep = {name: torch.arange(width) for name, width in widths.items()}
    small = cut_copy(model, groups, keep)
    inputs = copy.deepcopy(inputs)
    if FEATURES in keep:
        kept = keep[FEATURES].to(inputs[0].device)
        inputs[0] = inputs[0].index_select(-1, kept)
    if device is not None:
        small = small.to(device)
        inputs = map_tensors(lambda x: x.to(device), inputs)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return count_macs(small, inputs)


def _countable_on_meta(model, groups, inputs):
    """Whether nothing has to be computed in order to count."""
    try:
        on_meta = _count_cut(model, groups, {}, inputs, "meta")
    except FORWARD_ERRORS:  # it looks at values
        return False
    return on_meta == _count_cut(model, groups, {}, inputs)


class CostModel:
    """MACs, parameters and activations as functions of the widths.

    Widths are given as dict of str to (int or torch.Tensor) by group; those
    left out have their full size. Results are exact for integers and
    differentiable for tensors.

    Arguments
    ---------
    model : torch.nn.Module
        The model at full width.
    groups : list of noisegate.groups.Group
        Its channel groups.
    example : list of torch.Tensor
        Example arguments, a waveform (1, samples) if there is a front-end.
    seconds : float
        Duration of the example: costs are quoted per second of audio.
    front_end : speechbrain.lobes.features.Fbank
        The front-end, optional.
    """

    def __init__(self, model, groups, example, seconds, front_end=None):
        self.seconds = seconds
        self.sizes = {group.name: group.size for group in groups}
        self._ports = {}  # (path, role): [(group, features per channel)]
        for group in groups:
            for port in group.ports:
                read = group.size
                if port.index is not None:
                    read = int((port.index >= 0).sum())
                place = self._ports.setdefault((port.layer, port.role), [])
                place.append((group.name, read // group.size))
        self._layers = []  # (path, function, widths by role, recorded)
        # MACs of products between the layers: at full width, and how many
        # fewer each missing channel of a group makes them
        self._products, self._per_missing = 0, {}
        # As it is cut: normalizations of weights are folded
        model = cut_copy(model, groups, {})
        rules, calls, counted = self._run(model, example, front_end)
        missed = [path for path in rules if path not in calls]
        if missed:
            logger.warning(
                f"The example does not reach {missed}: their multiplications "
                "are not counted. Give an example that does, if they run"
            )
        never = collections.defaultdict(int)
        for path in [*calls, *missed]:
            rule, recorded = rules[path], calls.get(path, never)
            self._add(path, rule.cost, rule.sizes(), recorded)
            named = rule.layer.named_parameters(remove_duplicate=False)
            params = sum(parameter.numel() for _, parameter in named)
            params -= rule.cost(rule.sizes(), recorded).params
            if params and path != FEATURES:  # those of a subclass alone
                self._add(path, _parameter_cost, {"": params}, {"others": 1})
        owned = {
            id(parameter)
            for rule in rules.values()
            for parameter in rule.layer.parameters()
        }
        for path, parameter in model.named_parameters():
            if id(parameter) not in owned:
                self._add_parameter(path, parameter)
        self._count_shared_once(model, rules, calls)
        self._products = counted - self._model_macs()
        self._full_macs = self.macs()  # asked for at every step

    def _width(self, path, role, full):
        """Features of no group, e.g. of the input, and those of groups."""
        parts = self._ports.get((path, role), [])
        varying = sum(self.sizes[name] * n for name, n in parts)
        return full - varying, parts

    def _add(self, path, function, sizes, recorded):
        widths = {
            # SpeechBrain's QuasiRNN makes layers with tensors for sizes
            role: self._width(path, role, int(full))
            for role, full in sizes.items()
        }
        self._layers.append((path, function, widths, recorded))

    def _add_parameter(self, path, parameter):
        # One axis is of channels, or none
        roles = [f"axis{axis}" for axis in range(parameter.dim())]
        role = next((r for r in roles if (path, r) in self._ports), "")
        size = parameter.shape[roles.index(role)] if role else 1
        others = {"others": parameter.numel() // size}
        self._add(path, _parameter_cost, {role: size}, others)

    def _count_shared_once(self, model, rules, calls):
        """Parameters of several layers are in the cost of each."""
        for places in shared_parameters(model):
            owners = [
                (leaf, path, name)
                for path, _, name in places
                for leaf in rules
                if f"{path}.".startswith(f"{leaf}.")
            ]
            n_entries = getattr(*places[0][1:]).numel()
            for leaf, path, name in owners[1:]:
                rule = rules[leaf]
                sizes = {
                    role: size
                    for role, size in rule.sizes().items()
                    if leaf == path and rule.axis_of(name, role) is not None
                }
                others = {"others": -n_entries // math.prod(sizes.values())}
                self._add(path, _parameter_cost, sizes, others)

    @staticmethod
    def _run(model, example, front_end):
        """One evaluation pass that records what the costs depend on."""
        rules, calls = find_leaves(model), {}

        def watch(path, rule):
            def hook(layer, args, kwargs, output):
                recorded = rule.record(args, kwargs, tensors(output)[0])
                # A layer may be used more than once
                for key, value in calls.get(path, {}).items():
                    recorded[key] += value
                calls[path] = recorded

            return rule.layer.register_forward_hook(hook, with_kwargs=True)

        with contextlib.ExitStack() as hooks, torch.random.fork_rng():
            for path, rule in rules.items():
                hooks.enter_context(watch(path, rule))
            torch.manual_seed(0)
            if front_end is not None:
                device = next(model.parameters(), example[0]).device
                with torch.no_grad():
                    example = [front_end(example[0]).to(device)]
                frames = example[0].numel() // example[0].shape[-1]
                rules[FEATURES] = rule_of(front_end)
                calls[FEATURES] = {"positions": frames}
            counter = _counted(model, example)
        by_module = counter.get_flop_counts()
        for path in calls.keys() - {FEATURES}:
            name = f"{type(model).__name__}.{path}"
            if name in by_module:
                macs = sum(by_module[name].values()) // 2
                _correct(path, rules[path], calls[path], macs)
        return rules, calls, counter.get_total_flops() // 2

    def _by_layer(self, widths=None):
        """Yields the path and the cost of each layer."""
        widths = {**self.sizes, **(widths or {})}
        for path, function, roles, recorded in self._layers:
            resolved = {
                role: fixed + sum(widths[name] * n for name, n in parts)
                for role, (fixed, parts) in roles.items()
            }
            yield path, function(resolved, recorded)
        if self._products or self._per_missing:
            macs = self._products
            for name, (slope, bend) in self._per_missing.items():
                missing = self.sizes[name] - widths[name]
                macs = macs - missing * (slope + bend * missing)
            yield PRODUCTS, Cost(macs, 0, 0)

    def _model_macs(self, widths=None):
        """MACs without those of the front-end."""
        costs = self._by_layer(widths)
        return sum(cost.macs for path, cost in costs if path != FEATURES)

    def fit_products(self, model, groups, inputs):
        """Finds out how products between the layers depend on the widths.

        Such as sums over nodes or frames that are weighted by attention which
        no layer computes. Copies of the model, plain and at full width, are
        cut and counted. Channels that meet in a product are rarely gated: its
        MACs are linear in a width, or quadratic where channels meet their own
        kind, and no two widths multiply. If that does not explain what is
        counted, a warning is logged.
        """
        groups = [group for group in groups if group.locked_reason is None]

        def share(*factors):  # uneven ones where the data choose a branch
            return {
                group.name: step * max(least, int(factor * group.size) // step)
                for group, factor in zip(groups, factors * len(groups))
                for step in [group.granularity]
                for least in [-(-group.min_width // step)]
            }

        device = None

        def unexplained(widths):
            counted = _count_cut(model, groups, widths, inputs, device)
            return self._model_macs(widths) - counted

        def dependent(names):
            """Those of some groups that change the products."""
            if not unexplained({name: half[name] for name in names}):
                return []
            if len(names) == 1:
                return names
            middle = len(names) // 2
            return dependent(names[:middle]) + dependent(names[middle:])

        half, other, check = share(0.5), share(0.35, 0.65), share(0.75, 0.4)
        if not groups or not unexplained(other):
            return
        if _countable_on_meta(model, groups, inputs):
            device = "meta"
        for name in dependent(list(half)):
            points = [
                (missing, Fraction(unexplained({name: width})) / missing)
                for width in (half[name], other[name])
                for missing in [self.sizes[name] - width]
            ]
            (m, slope), (n, other_slope) = points
            bend = (other_slope - slope) / (n - m) if n != m else Fraction(0)
            self._per_missing[name] = tuple(
                int(x) if x.denominator == 1 else float(x)
                for x in (slope - bend * m, bend)
            )
        if difference := unexplained(check) or unexplained(other):
            logger.warning(
                f"{type(model).__name__} multiplies features between its "
                f"layers, or where the data say, in a way that the cost model "
                f"does not know: of a cut model it says {difference} MACs too "
                f"many (the whole model has {self._model_macs()})"
            )

    def macs(self, widths=None):
        """Returns the MACs of the example."""
        return sum(cost.macs for _, cost in self._by_layer(widths))

    def params(self, widths=None):
        """Returns the number of parameters of the model."""
        return sum(cost.params for _, cost in self._by_layer(widths))

    def activations(self, widths=None):
        """Returns how many values all layers put out for the example."""
        return sum(cost.elements for _, cost in self._by_layer(widths))

    def ratio(self, widths):
        """Returns the MACs relative to the full widths, in (0, 1]."""
        return self.macs(widths) / self._full_macs

    def macs_per_second(self, widths=None):
        """Returns the MACs per second of audio (int, rounded)."""
        return round(float(self.macs(widths)) / self.seconds)

    def macs_by_layer(self, widths=None):
        """Returns the MACs per second of audio (int) of each layer (dict)."""
        return {
            path: round(cost.macs / self.seconds)
            for path, cost in self._by_layer(widths)
            if cost.macs
        }
