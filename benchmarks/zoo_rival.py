"""What torch-pruning's dependency graph makes of the same models.

A cut counts as exact if the model computes what the uncut one does when
nothing reads the channels that were removed and no normalization counts them.

Authors
 * The noisegate developers, 2026
"""

import copy

import torch

from noisegate.attach import Masked, attach
from noisegate.cut import detached_copy, fold
from noisegate.gate import NoiseGate
from noisegate.probe import tensors
from noisegate.rules.base import rule_of

try:
    import torch_pruning
except ImportError:
    torch_pruning = None

TOLERANCE = 1e-4  # relative to the greatest output


def version():
    """Returns the version of torch-pruning, None without it.

    Returns
    -------
    str or None
    """
    return torch_pruning and torch_pruning.__version__


def _run(model, inputs):
    with torch.no_grad():
        torch.manual_seed(5)
        return [
            x
            for x in tensors(model(*copy.deepcopy(inputs)))
            if x.is_floating_point()
        ]


def _same(one, other):
    if [x.shape for x in one] != [x.shape for x in other]:
        return False
    return all(
        bool((x - y).abs().max() <= TOLERANCE * x.abs().max().clamp(min=1e-6))
        for x, y in zip(one, other)
        if x.numel()
    )


class _Graph:
    """A dependency graph on a copy of a model, as good as new at each use."""

    def __init__(self, model, inputs):
        self.model = fold_copy(model)
        for parameter in self.model.parameters():
            parameter.requires_grad_(True)
        self.graph = torch_pruning.DependencyGraph()
        self.graph.build_dependency(
            self.model, example_inputs=tuple(copy.deepcopy(inputs))
        )
        self.saved = [
            (module, self._state(module)) for module in self.model.modules()
        ]
        self.saved_graph = {
            name: copy.copy(value)
            for name, value in vars(self.graph).items()
            if isinstance(value, (dict, list))
        }

    @staticmethod
    def _state(module):
        return {
            name: copy.copy(value) if isinstance(value, (dict, list)) else value
            for name, value in vars(module).items()
        }

    def restore(self):
        """Takes back what pruning did."""
        for module, state in self.saved:
            vars(module).clear()
            vars(module).update(
                {
                    name: copy.copy(value)
                    if isinstance(value, (dict, list))
                    else value
                    for name, value in state.items()
                }
            )
        for name, value in self.saved_graph.items():
            setattr(self.graph, name, copy.copy(value))

    def prune(self, layer, function, idxs, inputs):
        """Outputs after one pruning step, or why there are none."""
        try:
            group = self.graph.get_pruning_group(layer, function, idxs)
            if not self.graph.check_pruning_group(group):
                return None, "it would remove all channels"
            group.prune()
            return _run(self.model, inputs), None
        except Exception as error:
            text = (str(error).splitlines() or [""])[0]
            return None, f"{type(error).__name__}: {text[:100]}"
        finally:
            self.restore()


def fold_copy(model):
    """Returns a copy without weight and spectral normalization.

    Arguments
    ---------
    model : torch.nn.Module
        The model.

    Returns
    -------
    torch.nn.Module
    """
    model = detached_copy(model)
    fold(model)
    return model


def _unread(model, group, names):
    """A copy in which nothing reads what a group of torch-pruning removes.

    None if the group holds layers for which that is not defined.
    """
    copied = fold_copy(model)
    removed = {}
    for dependency, idxs in group:
        layer = dependency.target.module
        if layer in names:
            entry = removed.setdefault(names[layer], {})
            function = dependency.handler.__name__
            entry.setdefault(function, set()).update(idxs)
    for path, functions in removed.items():
        layer = copied.get_submodule(path)
        read = functions.get("prune_in_channels", set())
        rule = rule_of(layer)
        if rule.masks == ("norm",) and not hasattr(layer, "gamma"):
            closed = sorted(set().union(*functions.values()))
            n_channels = getattr(layer, "num_channels", None)
            if n_channels is None:
                if len(layer.normalized_shape) > 1:
                    return None
                n_channels = layer.normalized_shape[0]
            elif layer.num_groups > 1:
                return None
            gate = NoiseGate(n_channels, 1 / n_channels)
            rank = torch.ones(n_channels)
            rank[closed] = 2
            gate.rank.copy_(rank.argsort(stable=True).argsort())
            gate.freeze(n_channels - len(closed))
            masked = Masked(rule)
            layer.add_module("masked", masked)
            masked.add("norm", gate, None)
            masked.put_on(layer)
        elif read and rule.makes:
            if rule.family not in ("linear", "conv"):
                return None
            axis = rule.weight_axes["in"]
            with torch.no_grad():
                layer.weight.index_fill_(axis, torch.tensor(sorted(read)), 0)
    return copied


def _own(tool, model, inputs, result):
    """Its own groups, half of each removed."""
    outputs = _run(model, inputs)
    names = {module: path for path, module in tool.model.named_modules()}
    for group in list(tool.graph.get_all_groups()):
        root = group[0].dep
        layer, function = root.target.module, root.handler
        size = len(group[0].idxs)
        if size < 2:
            continue
        result["own_groups"] += 1
        idxs = list(range(size // 2, size))
        made, _ = tool.prune(layer, function, idxs, inputs)
        if made is None or [x.shape for x in made] != [
            x.shape for x in outputs
        ]:
            continue
        result["own_runs"] += 1
        try:
            chosen = tool.graph.get_pruning_group(layer, function, idxs)
            reference = _unread(tool.model, chosen, names)
            expected = reference and _run(reference, inputs)
        except Exception:
            expected = None
        if expected is not None and _same(expected, made):
            result["own_exact"] += 1


def _ours(tool, model, inputs, gates, result):
    """Our groups, half of each removed with its tools."""
    for group in gates.groups:
        if group.name not in gates:
            continue
        step = group.granularity
        width = max(gates[group.name].min_width, group.size // 2)
        width = width // step * step
        gate = NoiseGate(group.size, 1 / group.size, step)
        gate.freeze(max(step, width))
        masked = detached_copy(model)
        attach(masked, group, gate)
        expected = _run(masked, inputs)
        reason = "no layer that it can prune makes the channels"
        for port in group.find("out"):
            layer = tool.model.get_submodule(port.layer)
            if layer not in tool.graph.module2node:
                continue
            pruner = tool.graph.get_pruner_of_module(layer)
            if pruner is None:
                continue
            index = port.index
            if index is None:
                index = torch.arange(group.size)
            idxs = (index >= gate.frozen).nonzero().flatten().tolist()
            made, reason = tool.prune(
                layer, pruner.prune_out_channels, idxs, inputs
            )
            if made is not None:
                exact = _same(expected, made)
                result["ours_exact"] += exact
                reason = None if exact else "other outputs"
            break
        if reason:
            result["reasons"][group.name] = reason


def measure(model, inputs, gates):
    """Builds the graph and cuts single groups.

    Arguments
    ---------
    model : torch.nn.Module
        The plain model.
    inputs : list
        Arguments of its forward.
    gates : noisegate.gates.Gates
        Gates on a copy of the model, None if nothing can be gated.

    Returns
    -------
    dict
        Numbers of its groups, those that run when cut and those that are
        exact; of our groups those that it cuts exactly, with reasons for the
        others.
    """
    if torch_pruning is None:
        return {"failed": "not installed"}
    model = fold_copy(model)
    tool = _Graph(model, inputs)
    result = {"own_groups": 0, "own_runs": 0, "own_exact": 0}
    result.update(ours=0, ours_exact=0, reasons={})
    if gates is not None:
        result["ours"] = len(gates)
        _ours(tool, model, inputs, gates, result)
    _own(tool, model, inputs, result)
    result["restored"] = _same(_run(model, inputs), _run(tool.model, inputs))
    return result
