"""Which features of a model share a width, and which layers read them.

A :class:`Group` is a set of N channels. Its :class:`Port` s say where these
channels appear: as outputs or inputs of a layer, inside a normalization, in
the recurrence of an RNN, in the heads of an attention layer. Groups are all
that gates, cost formulas and compaction know of a model.

:func:`find_groups` makes groups of what :mod:`noisegate.probe` observes in any
model: channels that look alike, that is appear in the same layers equally
often, share a width.

Authors
 * The noisegate developers, 2026
"""

import collections
import dataclasses
import itertools
import math
from typing import Optional

import torch

from noisegate.layers import declared_gate
from noisegate.probe import Probe
from noisegate.rules.base import (
    find_leaves,
    parents,
    rule_of,
    shared_parameters,
)
from noisegate.rules.features import FEATURES

FRAMES = 64  # of the examples that are probed
SAMPLES = 8000  # of those that are waveforms
# Modules of SpeechBrain that hold one torch layer
_WRAPPERS = (
    "speechbrain.nnet.linear",
    "speechbrain.nnet.CNN",
    "speechbrain.nnet.RNN",
    "speechbrain.nnet.embedding",
)


@dataclasses.dataclass
class Port:
    """One appearance of a group's channels.

    Arguments
    ---------
    layer : str
        Path of the layer in the model; "features" for the front-end. For
        the roles "axis0", "axis1", ...: path of a parameter or buffer.
    role : str
        "out": the layer computes the channels. "in": it reads them.
        "norm": it normalizes them or treats them one by one. "hidden": they
        are its recurrent units. "heads": the inner widths of its attention
        heads follow the group, or are the group. "axis0", ...: entries of a
        parameter or buffer along that axis.
    index : torch.Tensor
        Channel of each feature of the layer, -1 for features that are not
        of this group; None if feature i is channel i.
    """

    layer: str
    role: str
    index: Optional[torch.Tensor] = None


@dataclasses.dataclass(eq=False)
class Group:
    """Channels that share one width.

    Arguments
    ---------
    name : str
        Path of the layer that produces the channels first.
    size : int
        Number of channels.
    ports : list of Port
        Where the channels appear.
    granularity : int
        Integer widths must be multiples of this.
    min_width : int
        Smallest integer width that the layers can have.
    locked_reason : str
        Why the width may not change; None if it may.
    gate : callable
        Gate factory given by the layer itself, or None.
    wanted : bool
        Whether the layer asks for a gate (see :mod:`noisegate.layers`).
    role : str
        "features": the mel bands. "ffn": inside a feed-forward block of a
        Transformer or Conformer. "rnn": units of a recurrent layer. "heads":
        dimensions of attention heads. "residual": several layers make the
        channels, their outputs are added or multiplied. "conv", "linear",
        "attention": made by one layer of that kind.
    """

    name: str
    size: int
    ports: list = dataclasses.field(default_factory=list)
    granularity: int = 1
    min_width: int = 1
    locked_reason: Optional[str] = None
    gate: Optional[object] = None
    wanted: bool = False
    role: str = "linear"

    def add(self, layer, role, index=None):
        """Adds a port."""
        self.ports.append(Port(layer, role, index))

    def join(self, other):
        """Takes the ports of another group, whose channels are these."""
        self.ports += other.ports
        self.granularity = math.lcm(self.granularity, other.granularity)
        self.min_width = max(self.min_width, other.min_width)
        self.wanted = self.wanted or other.wanted
        self.gate = self.gate or other.gate

    def find(self, role):
        """Returns the ports of one role."""
        return [port for port in self.ports if port.role == role]


def find_groups(model, example, front_end=None):
    """Finds the channel groups of a model, in the order of its layers.

    Those that may not change say why. The example are arguments of the model,
    the front-end one whose filters are channels too. Raises what
    :class:`noisegate.probe.Probe` raises.

    Example
    -------
    >>> from speechbrain.nnet.containers import Sequential
    >>> from speechbrain.nnet.linear import Linear
    >>> net = Sequential(input_shape=[None, None, 8])
    >>> net.append(Linear, n_neurons=16, layer_name="hidden")
    >>> net.append(torch.nn.ReLU(), layer_name="act")
    >>> net.append(Linear, n_neurons=1, layer_name="out")
    >>> for group in find_groups(net, [torch.zeros(1, 9, 8)]):
    ...     print(group.name, group.size, group.locked_reason)
    features 8 the input of the model
    hidden 16 None
    out 1 the output of the model
    """
    example = not_silent(example)
    probe = Probe(model, example, with_features=front_end is not None)
    groups = _Finder(model, probe).groups()
    for group in groups:
        group.role = _role(model, group)
    if front_end is None and torch.is_tensor(example[0]):
        group = Group(FEATURES, example[0].shape[-1], role=FEATURES)
        group.locked_reason = "the input of the model"
        groups.insert(0, group)
    for group in groups if front_end is not None else ():
        if group.name == FEATURES:
            _declare(group, front_end)
            reason = rule_of(front_end).locked().get("out")
            group.locked_reason = reason or group.locked_reason
    _join_tied(model, groups)
    return groups


def _join_tied(model, groups):
    """Joins groups that cut the same channels of a parameter of several
    layers; locks those that would cut it in a different way for each."""
    for places in shared_parameters(model):
        cuts = [
            _cuts(path, name, rule_of(layer), groups)
            for path, layer, name in places
        ]
        if any(cut.keys() != cuts[0].keys() for cut in cuts):
            path, _, name = places[0]
            for group in itertools.chain(*(cut.values() for cut in cuts)):
                group.locked_reason = (
                    f"cuts '{path}.{name}', which other layers share, for "
                    "some of them only"
                )
            continue
        for channels in cuts[0]:
            tied = {cut[channels] for cut in cuts}
            first, *others = sorted(tied, key=groups.index)
            for other in others:
                first.join(other)
                first.role = _role(model, first)
                groups.remove(other)
            if others:
                return _join_tied(model, groups)


def _cuts(path, name, rule, groups):
    """How a parameter of a layer is cut: {(axis, channels, of how many):
    group}."""
    found = {}
    for group in groups:
        for port in group.ports if group.locked_reason is None else ():
            if not f"{path}.{name}.".startswith(f"{port.layer}."):
                continue
            axis = path, port.role  # unlike all others
            if path == port.layer:
                if (name, port.role) == ("bias", "in"):
                    continue
                own = rule.axis_of(name, port.role)
                axis = axis if own is None else own
            index = range(group.size) if port.index is None else port.index
            found[axis, tuple(map(int, index)), group.size] = group
    return found


def unknown_layers(model, groups):
    """Returns the layers with weights that noisegate does not know: names of
    their classes by path. They stay as they are, as do their channels.

    Example
    -------
    >>> model = torch.nn.Sequential(torch.nn.Bilinear(3, 4, 5))
    >>> unknown_layers(model, [])
    {'0': 'Bilinear'}
    """
    known = {
        id(parameter)
        for rule in find_leaves(model).values()
        for parameter in rule.layer.parameters()
    }
    ports = {port.layer for group in groups for port in group.ports}
    layers = {}
    for path, parameter in model.named_parameters():
        if parameter.dim() < 2 or id(parameter) in known or path in ports:
            continue
        path = path.rpartition(".")[0]
        layers[path or "."] = type(model.get_submodule(path)).__name__
    return layers


def _role(model, group):
    """The role of a group, see :class:`Group`."""
    makers = [port.layer for port in group.find("out")]
    if not makers:
        return "heads"
    if FEATURES in makers:
        return FEATURES
    rule = rule_of(model.get_submodule(makers[0]))
    above = [rule_of(module).inside for _, module in parents(model, makers[0])]
    inside = {rule.inside, *above}
    if len(makers) == 1 and ("ffn" in inside or group.name.endswith("pos_ffn")):
        return "ffn"
    if "rnn" in inside:
        return "rnn"
    return "residual" if len(makers) > 1 else rule.family


def _declare(group, module):
    """Notes that a module asks for a gate, see :mod:`noisegate.layers`."""
    wish = declared_gate(module)
    if wish is not None:
        group.wanted, group.gate = True, wish[0]


def not_silent(inputs):
    """Returns arguments of a model (list) with noise in place of constant
    features, so that one sees what passes the model."""
    first = inputs[0]
    silent = torch.is_tensor(first) and first.is_floating_point()
    if not silent or first.max() > first.min():
        return list(inputs)
    draw = torch.Generator().manual_seed(0)
    noise = 0.5 + torch.rand(first.shape, generator=draw)
    return [noise.to(first), *inputs[1:]]


class _Finder:
    """Makes groups of the connected features of a probed model."""

    def __init__(self, model, probe):
        self.model, self.probe = model, probe
        # Ports are listed in the order of calls
        self.order = {path: i for i, path in enumerate(probe.called, 1)}
        self.order[FEATURES] = 0

    def groups(self):
        """Returns the groups, those that may not change among them."""
        alike = collections.defaultdict(list)
        for members, reason in self.probe.components():
            places = collections.defaultdict(list)
            for path, role, number in sorted(members):
                places[path, role].append(number)
            if not any(role == "out" for _, role in places):
                continue  # comes from the input or is constant
            counts = tuple(sorted((k, len(v)) for k, v in places.items()))
            alike[counts, reason].append(places)
        found = [
            (sorted(channels, key=self._first), reason)
            for (_, reason), channels in alike.items()
        ]
        n_before = 0
        while n_before != len(found):  # a joined group may join others
            n_before, found = len(found), self._in_lockstep(found)
        found.sort(key=lambda item: self._first(item[0][0]))
        groups, names = [], collections.Counter()
        for channels, reason in found:
            group = self._group(channels, reason)
            names[group.name] += 1
            if names[group.name] > 1:
                group.name += f":{names[group.name]}"
            groups.append(group)
        for path in self.probe.called:
            for role, size, reason in self.probe.rules[path].inner_groups():
                group = Group(f"{path}.{role}", size)
                group.add(path, role)
                if reason:
                    group.locked_reason = f"{path} {reason}"
                groups.append(group)
        return groups

    def _first(self, places):
        """What a channel is sorted by: the first place where it is made."""
        return min(
            (self.order[path], min(numbers))
            for (path, role), numbers in places.items()
            if role == "out"
        )

    def _in_lockstep(self, found):
        """Joins groups of equal size that have to be cut alike.

        Such are the chunks of what one layer makes, and the layers of an RNN
        that stacks their states.
        """
        joined = []
        for channels, reason in found:
            makers = self._makers(channels[0])
            for others, locked in joined:
                alike = len(others) == len(channels) > 1
                free = locked is None and reason is None
                if free and alike and makers & self._makers(others[0]):
                    for mine, more in zip(others, channels):
                        for place, numbers in more.items():
                            mine[place] = sorted(mine[place] + numbers)
                    break
            else:
                joined.append((channels, reason))
        return joined

    def _makers(self, places):
        """Layers that make a channel, or what stacks their states."""
        made = {path for path, role in places if role == "out"}
        return made | {
            above
            for path in made
            for above, module in parents(self.model, path)
            if rule_of(module).stacks
        }

    def _group(self, channels, reason):
        """One group of equal channels [{(path, role): numbers}]."""
        path = self.probe.called[self._first(channels[0])[0] - 1]
        if self._first(channels[0])[0] == 0:
            path = FEATURES
        group = Group(self._name(path), len(channels), locked_reason=reason)
        n_made = len(channels[0][path, "out"])
        if len(channels) == 1 and n_made > 1:
            # All in one: shown with what makes them
            group.size = n_made
            layers = self.probe.rules.keys() & {path for path, _ in channels[0]}
            group.locked_reason = reason or self.probe.mixed(layers)
            group.add(path, "out")
            return group
        last = len(self.order)  # parameters of no layer
        places = sorted(
            channels[0],
            key=lambda p: (self.order.get(p[0], last), p[1] == "out", p),
        )
        for place in places:
            self._add(group, place, [item[place] for item in channels])
        if group.locked_reason is None and group.size <= group.granularity:
            group.locked_reason = "a single channel"
            if group.size > 1:
                group.locked_reason = f"a single block of {group.size}"
        if group.locked_reason is None and not group.find("in"):
            group.locked_reason = "no layer reads it"
        self._complete(group, path)
        return group

    def _add(self, group, place, numbers):
        """Adds the ports of a place: numbers are those of each channel."""
        path, role = place
        rule = self.probe.rules.get(path)
        n_features = self.probe.makers.get(place)
        index = torch.full((n_features or rule.n_read,), -1)
        for channel, own in enumerate(numbers):
            index[own] = channel
        channels = torch.arange(group.size)
        ports = [(role, index)] if rule is None else rule.ports(role, index)
        for role, index in ports:
            identity = torch.equal(index, channels)
            group.add(path, role, None if identity else index)
            reason = rule and rule.refuses(role, bool((index >= 0).all()))
            if reason:
                group.locked_reason = f"{path} {reason}"
            elif rule is not None and role == "in":
                n_each = len(index) // group.size  # features of a channel
                step = math.lcm(rule.granularity, n_each) // n_each
                group.granularity = math.lcm(group.granularity, step)

    def _name(self, path):
        """The path without what SpeechBrain's layers wrap around it."""
        around = parents(self.model, path)
        for above, module in around:
            named = f"{above}.{rule_of(module).named_part}".lstrip(".")
            if f"{path}.".startswith(f"{named}."):
                return named
        above, module = around[-1]
        names = [kind.__module__ for kind in type(module).__mro__]
        wraps = any(name.startswith(_WRAPPERS) for name in names)
        return above if wraps else path

    def _complete(self, group, path):
        """What modules around the first maker say about its group."""
        for above, module in parents(self.model, path)[1:]:
            if getattr(module, "unsqueeze", False):
                # SpeechBrain takes away an output axis of size 1 then
                group.min_width = min(2, group.size)
            if group.name in (above, f"{above}.pos_ffn"):
                _declare(group, module)
