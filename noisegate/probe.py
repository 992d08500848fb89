"""Finds out which features of a model depend on which channels, by trying.

No rules about operations: the model's own forward runs, and what happens
between its layers (views, sums, concatenations, chunks, pooling, products)
is observed instead of understood.

Layers with parameters are *leaves*. In probing they do not compute: each
returns a fixed random stand-in for its output, so that no change passes
through it, and notes which of its input features differ from those of an
undisturbed pass. Then output channels of the *makers* (Linear, convolutions,
RNNs, ...) are disturbed. Layers that treat each channel for itself, and
normalizations, hand the disturbance on, channel by channel.

Which channel reached which feature is read from a binary code: pass b
disturbs all channels whose number has bit b set, another pass the rest, for
all makers at once. Who made it is known from one pass per maker. Features in
which channels of different numbers meet are looked at again, maker by maker.

Authors
 * The noisegate developers, 2026
"""

import collections
import contextlib
import itertools
import math

import torch

from noisegate.rules.base import find_leaves
from noisegate.rules.features import FEATURES

# What the forward of a model may raise if channels are disturbed or missing
FORWARD_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)

# Up to this many channels a maker that stays unclear is tried channel by
# channel; wider ones are taken to mix all channels in question
_MAX_SINGLE = 128


def tensors(value):
    """Returns all tensors in nested lists, tuples and dicts.

    Arguments
    ---------
    value : object
        What a layer takes or returns.

    Returns
    -------
    list of torch.Tensor
    """
    if torch.is_tensor(value):
        return [value]
    if isinstance(value, torch.nn.utils.rnn.PackedSequence):
        return [value.data]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in tensors(item)]
    return []


@contextlib.contextmanager
def evaluating(model):
    """Puts a model into evaluation mode without gradients, for a while.

    Arguments
    ---------
    model : torch.nn.Module
        The model; each layer gets its mode back.
    """
    training = {layer: layer.training for layer in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for layer, mode in training.items():
            layer.training = mode


def _map(function, value):
    """Applies a function to all floating point tensors in a value."""
    if torch.is_tensor(value):
        return function(value) if value.is_floating_point() else value.clone()
    if isinstance(value, torch.nn.utils.rnn.PackedSequence):
        return value._replace(data=function(value.data))
    if isinstance(value, dict):
        return {key: _map(function, item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_map(function, item) for item in value))
    if isinstance(value, (list, tuple)):
        return type(value)(_map(function, item) for item in value)
    return value


def _differ(x, y):
    """Where two tensors differ; NaN equals NaN."""
    where = x != y
    if where.any():
        where &= ~(torch.isnan(x) & torch.isnan(y))
    return where


def _per_feature(rule, where):
    """Whether any position of each feature is set: (features,)."""
    shape = rule.shape(where)
    axes = [axis for axis, size in enumerate(shape) if size == 1]
    if axes:
        where = where.any(dim=axes[0], keepdim=True)
        for axis in axes[1:]:
            where = where.any(dim=axis, keepdim=True)
    return where.flatten()


class _Sets:
    """Disjoint sets of features (union-find)."""

    def __init__(self):
        self.parent = {}
        self.reasons = {}

    def find(self, item):
        """The representative of a feature's set."""
        path = []
        while (above := self.parent.setdefault(item, item)) != item:
            path.append(item)
            item = above
        for below in path:
            self.parent[below] = item
        return item

    def union(self, one, other):
        """Joins two sets."""
        self.parent[self.find(one)] = self.find(other)

    def fix(self, item, reason):
        """Notes why the set of a feature has to stay."""
        self.find(item)
        self.reasons.setdefault(item, reason)

    def components(self):
        """All sets with the first reason to stay, if there is one."""
        members, reasons = {}, {}
        for item in self.parent:
            members.setdefault(self.find(item), []).append(item)
        for item, reason in self.reasons.items():
            reasons.setdefault(self.find(item), reason)
        return [(set_, reasons.get(root)) for root, set_ in members.items()]


class Probe:
    """Probes one model.

    Arguments
    ---------
    model : torch.nn.Module
        The model.
    inputs : list
        Arguments of its forward.
    with_features : bool
        Whether the features (last axis) of the first input are channels that
        something in front of the model makes; else they have to stay.

    Raises
    ------
    ValueError
        If the forward is not deterministic for a fixed seed.

    Example
    -------
    >>> net = torch.nn.Sequential(
    ...     torch.nn.Linear(3, 2), torch.nn.ReLU(), torch.nn.Linear(2, 1)
    ... )
    >>> for members, reason in Probe(net, [torch.rand(5, 3)]).components():
    ...     print(members, reason)
    [('0', 'in', 0)] the input of the model
    [('0', 'in', 1)] the input of the model
    [('0', 'in', 2)] the input of the model
    [('0', 'out', 0), ('2', 'in', 0)] None
    [('0', 'out', 1), ('2', 'in', 1)] None
    [('2', 'out', 0)] the output of the model
    """

    def __init__(self, model, inputs, with_features=False):
        self.model = model
        self.inputs = list(inputs)
        self.rules = find_leaves(model)
        self.called = []  # paths of the leaves in the order of their calls
        self.makers = {}  # place (path, role): number of channels
        self._tensors = {}  # place: a parameter or buffer of no leaf
        self._with_features = with_features
        self._sets = _Sets()
        self._stand_ins, self._clean_inputs = {}, {}
        self._noise, self._n_disturbed = {}, 0
        self._stage, self._selected, self._sign = "record", {}, 1
        saved = {
            path: rule.layer.__dict__.get("forward")
            for path, rule in self.rules.items()
        }
        try:
            with evaluating(model), torch.random.fork_rng():
                for path, rule in self.rules.items():
                    rule.layer.forward = self._replacement(path, rule)
                self._run()
        finally:
            for path, rule in self.rules.items():
                del rule.layer.__dict__["forward"]
                if saved[path] is not None:
                    rule.layer.forward = saved[path]

    def components(self):
        """Returns the sets of features that can only be cut together.

        Returns
        -------
        list of tuple
            Features (path, role, number) with role "out" for a channel that
            the layer makes, "in" for a feature that it reads, "norm" for one
            that it treats, "axis0", "axis1", ... for the entries of a
            parameter or buffer of no such layer; and the reason why they
            have to stay or None.
        """
        return self._sets.components()

    # ---- one pass ---------------------------------------------------------

    def _forward(self):
        """One pass of the model; returns the tensors it returns."""
        self._calls = {}
        self._seen = {}
        self._n_disturbed = 0
        torch.manual_seed(1)
        inputs = _map(torch.clone, self.inputs)
        kept = {}
        for place, select in self._selected.items():
            if place == (FEATURES, "out"):
                inputs[0] = self._disturb(inputs[0], select)
            elif place in self._tensors:
                tensor, axis = self._tensors[place], int(place[1][4:])
                kept[place] = tensor.data.clone()
                shape = [1] * tensor.dim()
                shape[axis] = -1
                disturbed = self._disturb(tensor.data, select.view(shape))
                tensor.data.copy_(disturbed)
        try:
            return tensors(self.model(*inputs))
        finally:
            for place, values in kept.items():
                self._tensors[place].data.copy_(values)

    def _disturb(self, tensor, select):
        """Adds something to the selected entries (broadcast)."""
        if tensor.shape not in self._noise:
            draw = torch.Generator().manual_seed(len(self._noise))
            self._noise[tensor.shape] = 2 + 4 * torch.rand(
                tensor.shape, generator=draw
            )
        # Not the same at each call, or differences would cancel
        amount = self._noise[tensor.shape].to(tensor)
        amount = self._sign * (1 + 0.01 * self._n_disturbed) * amount
        self._n_disturbed += 1
        return torch.where(select.to(tensor.device), tensor + amount, tensor)

    def _replacement(self, path, rule):
        """The forward of a leaf while it is probed."""
        original = rule.layer.forward

        def forward(*args, **kwargs):
            call = self._calls.get(path, 0)
            self._calls[path] = call + 1
            key = path, call
            read = rule.values(args, kwargs)
            if self._stage == "record":
                draw = torch.Generator().manual_seed(len(self._stand_ins))

                def stand_in(x):
                    # Positive: a ReLU lets it pass and hides no channel
                    values = torch.rand(x.shape, generator=draw)
                    return (0.5 + values).to(x)

                output = _map(stand_in, original(*args, **kwargs))
                self._stand_ins[key] = output
                if path not in self.called:
                    self.called.append(path)
                return _map(torch.clone, output)
            if self._stage == "baseline":
                self._clean_inputs[key] = [
                    _map(torch.clone, x) for _, x in read
                ]
                return _map(torch.clone, self._stand_ins[key])
            if key not in self._stand_ins:
                raise RuntimeError("the number of calls of a layer changes")
            select = None
            for (role, new), old in zip(read, self._clean_inputs[key]):
                for x, x0 in zip(tensors(new), tensors(old)):
                    if not x.is_floating_point() or torch.equal(x, x0):
                        continue
                    where = _per_feature(rule, _differ(x, x0))
                    if where.any():
                        self._note(path, role, where)
                        select = where
            output = _map(torch.clone, self._stand_ins[key])
            if rule.makes:
                select = self._selected.get((path, "out"))
            if select is None:
                return output
            return self._disturb_output(rule, output, select)

        return forward

    def _disturb_output(self, rule, output, select):
        def disturb(x):
            shape = rule.shape(x)
            # Both directions of a recurrent layer have the same units
            n_copies = math.prod(shape) // len(select)
            return self._disturb(x, select.repeat(n_copies).view(shape))

        return rule.map_output(lambda part: _map(disturb, part), output)

    def _note(self, path, role, where):
        key = path, role
        where = where.cpu()
        seen = self._seen.get(key)
        self._seen[key] = where if seen is None else seen | where

    def _reached(self, selected):
        """What the selected channels reach, and whether the output."""
        self._selected = selected
        reached, output = {}, False
        for self._sign in (1, -1):
            made = self._forward()
            output |= len(made) != len(self._output) or any(
                x.shape != y.shape or bool(_differ(x, y).any())
                for x, y in zip(made, self._output)
            )
            for key, where in self._seen.items():
                reached[key] = where | reached.get(key, False)
        self._selected = {}
        return reached, output

    # ---- all passes -------------------------------------------------------

    def _run(self):
        self._forward()
        self._stage = "baseline"
        self._output = [x.clone() for x in self._forward()]
        self._stage = "probe"
        reached, output = self._reached({})
        if reached or output:
            place = next(iter(reached), ("its output",))[0]
            raise ValueError(
                f"the forward of {type(self.model).__name__} is not "
                "deterministic for a fixed seed of torch in evaluation mode: "
                f"what reaches '{place}' differs between two passes with the "
                "same input"
            )
        self._find_input()
        touched = self._find_makers()
        codes = self._codes(
            {
                place: torch.arange(self.makers[place])
                for place in touched
                if touched[place]
            }
        )
        unclear = collections.defaultdict(dict)
        for key, (code, several) in codes.items():
            for place, where in touched.items():
                if key not in where:
                    continue
                wrong = where[key] & (several | (code >= self.makers[place]))
                for feature in (where[key] & ~wrong).nonzero().flatten():
                    self._link(place, int(code[feature]), key, int(feature))
                if bool(wrong.any()):
                    unclear[place][key] = wrong
        for place, features in unclear.items():
            self._look_again(place, features)
        self._find_tensors()
        self._declare()

    def _find_input(self):
        """Features that come straight from the input have to stay."""
        if not self._with_features:
            original = self.inputs
            for self._sign in (1, -1):
                self.inputs = list(original)
                everywhere = torch.ones((), dtype=torch.bool)
                for i, value in enumerate(self.inputs):
                    if torch.is_tensor(value) and value.dim() > 1:
                        if value.is_floating_point():
                            value = self._disturb(value, everywhere)
                            self.inputs[i] = value
                self._forward()
                for (path, role), where in self._seen.items():
                    for feature in where.nonzero().flatten().tolist():
                        item = path, self._element(role), feature
                        self._sets.fix(item, "the input of the model")
            self.inputs = original

    def _find_makers(self):
        """What each maker reaches: {maker: {(path, role): features}}."""
        touched = {}
        if self._with_features:
            self.makers[FEATURES, "out"] = self.inputs[0].shape[-1]
        for path in self.called:
            if self.rules[path].makes:
                self.makers[path, "out"] = self.rules[path].sizes()["out"]
        for place, size in self.makers.items():
            for channel in range(size):
                self._sets.find((*place, channel))
            try:
                touched[place], output = self._reached(
                    {place: torch.ones(size, dtype=torch.bool)}
                )
                reason = "the output of the model" if output else None
            except torch.OutOfMemoryError:
                raise
            except FORWARD_ERRORS as error:
                reason = f"disturbing it breaks the forward: {error}"
                touched[place] = {}
            if size == 1:
                # A factor of other channels, or one that cannot be cut
                touched[place] = {}
                reason = reason or "a single channel"
            if reason:
                for channel in range(size):
                    self._sets.fix((*place, channel), reason)
        return touched

    def _find_tensors(self):
        """Parameters and buffers that the model itself multiplies or adds."""
        rules = [self.rules[path] for path in self.called]
        owned = {
            id(tensor)
            for rule in rules
            for tensor in (*rule.layer.parameters(), *rule.layer.buffers())
        }
        sizes = {*self.makers.values(), *(rule.n_read for rule in rules)}
        for name, tensor in itertools.chain(
            self.model.named_parameters(), self.model.named_buffers()
        ):
            if id(tensor) in owned or not tensor.is_floating_point():
                continue
            for axis, size in enumerate(tensor.shape):
                if size > 1 and size in sizes:
                    self._find_axis((name, f"axis{axis}"), tensor, size)

    def _find_axis(self, place, tensor, size):
        self._tensors[place] = tensor
        everything = torch.ones(size, dtype=torch.bool)
        reached, output = self._reached({place: everything})
        if not reached:
            return
        links = []
        codes = self._codes({place: torch.arange(size)})
        for key, where in reached.items():
            if key not in codes:
                return
            code, several = codes[key]
            if bool((where & (several | (code >= size))).any()):
                return  # it mixes channels, as a weight matrix does
            for feature in where.nonzero().flatten().tolist():
                links.append((place, int(code[feature]), key, feature))
        self.makers[place] = size
        for link in links:
            self._link(*link)
        for channel in range(size if output else 0):
            self._sets.fix((*place, channel), "the output of the model")

    def _codes(self, labels):
        """Reads labels of channels back from the features they reach.

        Returns for each (path, role) the labels (features,) and where more
        than one label was seen.
        """
        n_labels = max((int(v.max()) + 1 for v in labels.values()), default=0)
        passes = [
            [
                self._reached(
                    {
                        place: (v >> bit & 1) == side
                        for place, v in labels.items()
                    }
                )[0]
                for side in (0, 1)
            ]
            for bit in range(max(1, (n_labels - 1).bit_length()))
        ]
        found = {}
        for key in {key for pair in passes for side in pair for key in side}:
            size = next(
                len(side[key])
                for pair in passes
                for side in pair
                if key in side
            )
            none = torch.zeros(size, dtype=torch.bool)
            code, unclear = torch.zeros(size, dtype=torch.long), none
            for bit, pair in enumerate(passes):
                low, high = (side.get(key, none) for side in pair)
                code = code + (high.long() << bit)
                unclear = unclear | (low == high)
            found[key] = code, unclear
        return found

    def _look_again(self, place, features):
        """Finds the channels of one maker in features that are unclear.

        Chunks and flattened axes repeat channels at regular distances: the
        remainders modulo the distance are clear then.
        """
        size = self.makers[place]
        channels = torch.arange(size)
        for parts in (1, *(n for n in range(2, 17) if size % n == 0)):
            found = self._codes({place: channels % (size // parts)})
            in_part = [
                self._reached({place: channels // (size // parts) == part})[0]
                for part in range(parts if parts > 1 else 0)
            ]
            left = {}
            for key, where in features.items():
                codes, unclear = found.get(key, (where, where))
                for feature in (where & ~unclear).nonzero().flatten().tolist():
                    code = int(codes[feature])
                    if parts == 1:
                        self._link(place, code, key, feature)
                    for part, reached in enumerate(in_part):
                        if key in reached and reached[key][feature]:
                            channel = code + part * (size // parts)
                            self._link(place, channel, key, feature)
                if bool((where & unclear).any()):
                    left[key] = where & unclear
            features = left
            if not features:
                return
        if size <= _MAX_SINGLE:
            for channel in range(size):
                reached = self._reached({place: channels == channel})[0]
                for key, where in features.items():
                    hit = reached.get(key, torch.zeros_like(where)) & where
                    for feature in hit.nonzero().flatten().tolist():
                        self._link(place, channel, key, feature)
            return
        for key, where in features.items():
            for feature in where.nonzero().flatten().tolist():
                for channel in range(size):
                    self._link(place, channel, key, feature)

    @staticmethod
    def _element(role):
        # What enters the state of an RNN is tied to its units
        return "out" if role == "state" else role

    def _link(self, place, channel, key, feature):
        item = key[0], self._element(key[1]), feature
        self._sets.union((*place, channel), item)

    def _declare(self):
        """What holds inside of leaves, which probing does not look into."""
        for path in self.called:
            rule = self.rules[path]
            sizes = rule.sizes()
            for i in range(sizes["out"] if rule.tied() else 0):
                self._sets.union((path, "in", i), (path, "out", i))
            for role, reason in rule.locked().items():
                for i in range(sizes[role]):
                    self._sets.fix((path, role, i), f"{path} {reason}")
