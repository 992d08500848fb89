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
import copy
import dataclasses
import itertools
import math

import torch
from scipy.cluster.hierarchy import DisjointSet
from speechbrain.dataio.batch import PaddedBatch

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
# channel; of wider ones all channels are taken to be mixed
_MAX_SINGLE = 128
# Channels of fewer positions are disturbed in both directions one after the
# other, the rest at random positions in this one and in that one
_POSITIONS = 16
_MAX_MEMBERS = 16  # of chunks or blocks that are tried one by one


def tensors(value):
    """Returns all tensors (list) in nested lists, dicts and dataclasses."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = [getattr(value, f.name) for f in dataclasses.fields(value)]
    if torch.is_tensor(value):
        return [value]
    if isinstance(value, torch.nn.utils.rnn.PackedSequence):
        return [value.data]
    if isinstance(value, PaddedBatch):
        value = vars(value)
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in tensors(item)]
    return []


@contextlib.contextmanager
def evaluating(model):
    """Puts a model into evaluation mode without gradients, for a while, in
    which its layers call those inside them: no kernel takes their place."""
    training = {layer: layer.training for layer in model.modules()}
    fast_path = torch.backends.mha.get_fastpath_enabled()
    model.eval()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for layer, mode in training.items():
            layer.training = mode


def map_tensors(function, value):
    """Applies a function to all floating point tensors in a value."""
    if torch.is_tensor(value):
        return function(value) if value.is_floating_point() else value.clone()
    if isinstance(value, torch.nn.utils.rnn.PackedSequence):
        return value._replace(data=function(value.data))
    if isinstance(value, PaddedBatch):
        batch = copy.copy(value)
        vars(batch).update(map_tensors(function, vars(value)))
        return batch
    if isinstance(value, dict):
        return {key: map_tensors(function, item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(function, item) for item in value))
    if isinstance(value, (list, tuple)):
        return type(value)(map_tensors(function, item) for item in value)
    return value


def _differ(x, y):
    """Where two tensors differ; NaN equals NaN."""
    where = x != y
    if where.any():
        where &= ~(torch.isnan(x) & torch.isnan(y))
    return where


def _per_feature(rule, where):
    """Whether any position of each feature is set: (features,)."""
    axes = [axis for axis, n in enumerate(rule.shape(where)) if n == 1]
    return (where.any(dim=axes) if axes else where).flatten()


def _overlap(features, others):
    """Whether features (bool, by key) have some in common."""
    return any(
        bool((x & others[k]).any()) for k, x in features.items() if k in others
    )


def _split(size, n_members, n_chunks):
    """Sets of n_members channels that lie in the same place of each of some
    chunks of all: number of the set, and position in it, of each channel."""
    channel = torch.arange(size)
    chunk, n_together = size // n_chunks, n_members // n_chunks
    position = channel // chunk * n_together + channel % n_together
    return channel % chunk // n_together, position


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
        self._sets, self._reasons = DisjointSet(), {}
        self._stand_ins, self._clean = {}, {}
        self._noise, self._n_disturbed = {}, 0
        self._stage, self._selected, self._sign = "record", {}, 1
        self._few = False  # positions of what was disturbed
        layers = [rule.layer for rule in self.rules.values()]
        own = [vars(layer).get("forward") for layer in layers]
        try:
            with evaluating(model), torch.random.fork_rng():
                for path, rule in self.rules.items():
                    rule.layer.forward = self._replacement(path, rule)
                self._run()
        finally:
            for layer, forward in zip(layers, own):
                vars(layer).pop("forward", None)
                if forward is not None:
                    layer.forward = forward

    def components(self):
        """Returns the sets of features that can only be cut together.

        A list of features and the reason why they have to stay, or None.
        Features are (path, role, number) with role "out" for a channel that
        the layer makes, "in" for a feature that it reads, "norm" for one that
        it treats, "axis0", "axis1", ... for the entries of a parameter or
        buffer of no such layer.
        """
        reasons = {}
        for item, reason in self._reasons.items():
            reasons.setdefault(self._sets[item], reason)
        return [
            (sorted(members), reasons.get(self._sets[next(iter(members))]))
            for members in self._sets.subsets()
        ]

    def _fix(self, place, numbers, reason):
        """Notes why the sets of some features have to stay."""
        for number in numbers:
            self._sets.add((*place, number))
            self._reasons.setdefault((*place, number), reason)

    def _union(self, one, other):
        """Joins the sets of two features."""
        self._sets.add(one)
        self._sets.add(other)
        self._sets.merge(one, other)

    # ---- one pass ---------------------------------------------------------

    def _forward(self):
        """One pass of the model; returns the tensors it returns."""
        self._calls = {}
        self._seen = {}
        self._n_disturbed = 0
        torch.manual_seed(1)
        inputs = map_tensors(torch.clone, self.inputs)
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
            sign = 2 * torch.randint(2, tensor.shape, generator=draw) - 1
            noise = 2 + 4 * torch.rand(tensor.shape, generator=draw)
            self._noise[tensor.shape] = sign * noise
        self._few |= tensor.numel() < _POSITIONS * select.numel()
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

                output = map_tensors(stand_in, original(*args, **kwargs))
                self._stand_ins[key] = output
                if path not in self.called:
                    self.called.append(path)
                return map_tensors(torch.clone, output)
            if self._stage == "baseline":
                self._clean[key] = [
                    map_tensors(torch.clone, x) for _, x in read
                ]
                return map_tensors(torch.clone, self._stand_ins[key])
            if key not in self._stand_ins:
                raise RuntimeError("the number of calls of a layer changes")
            select = None
            for (role, new), old in zip(read, self._clean[key]):
                for x, x0 in zip(tensors(new), tensors(old)):
                    if not x.is_floating_point() or torch.equal(x, x0):
                        continue
                    where = _per_feature(rule, _differ(x, x0))
                    if where.any():
                        seen = self._seen.get((path, role), False)
                        self._seen[path, role] = where.cpu() | seen
                        select = where
            output = map_tensors(torch.clone, self._stand_ins[key])
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

        return rule.map_output(lambda part: map_tensors(disturb, part), output)

    def _reached(self, selected):
        """What the selected channels reach, and whether the output."""
        self._selected = selected
        reached, output = {}, False
        for self._sign in (1, -1):
            self._few = False
            made = self._forward()
            output |= len(made) != len(self._output) or any(
                x.shape != y.shape or bool(_differ(x, y).any())
                for x, y in zip(made, self._output)
            )
            for key, where in self._seen.items():
                reached[key] = where | reached.get(key, False)
            if not self._few:
                break
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
                "same input. Perhaps it keeps a state from pass to pass"
            )
        self._find_input()
        touched = self._find_makers()
        reaching = [place for place in touched if touched[place]]
        codes = self._codes(
            {place: torch.arange(self.makers[place]) for place in reaching}
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
        self._look_again(unclear, touched)
        self._find_tensors()
        self._declare()

    def _find_input(self):
        """Features that come straight from the input have to stay."""
        original, everywhere = self.inputs, torch.ones((), dtype=torch.bool)
        if self._with_features:
            return
        for self._sign in (1, -1):
            self.inputs = map_tensors(
                lambda x: self._disturb(x, everywhere) if x.dim() > 1 else x,
                original,
            )
            self._forward()
            for place, where in self._seen.items():
                features = where.nonzero().flatten().tolist()
                self._fix(place, features, "the input of the model")
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
                self._sets.add((*place, channel))
            try:
                everything = {place: torch.ones(size).bool()}
                touched[place], output = self._reached(everything)
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
                self._fix(place, range(size), reason)
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
        reached, output = self._reached({place: torch.ones(size).bool()})
        if not reached:
            return
        links, codes = [], self._codes({place: torch.arange(size)})
        for key, where in reached.items():
            code, several = codes.get(key, (where, where))
            if bool((where & (several | (code >= size))).any()):
                return  # it mixes channels, as a weight matrix does
            for feature in where.nonzero().flatten().tolist():
                links.append((place, int(code[feature]), key, feature))
        self.makers[place] = size
        for link in links:
            self._link(*link)
        if output:
            self._fix(place, range(size), "the output of the model")

    def _codes(self, labels):
        """Reads labels of channels back from the features they reach.

        Returns for each (path, role) the labels (features,) and where more
        than one label was seen.
        """
        n_labels = max((int(v.max()) + 1 for v in labels.values()), default=0)
        passes, sizes = [], {}
        for bit in range(max(1, (n_labels - 1).bit_length())):
            pair = []
            for side in (0, 1):
                chosen = {p: (v >> bit & 1) == side for p, v in labels.items()}
                pair.append(self._reached(chosen)[0])
                sizes.update((key, len(x)) for key, x in pair[-1].items())
            passes.append(pair)
        found = {}
        for key, size in sizes.items():
            none = torch.zeros(size, dtype=torch.bool)
            code, unclear = torch.zeros(size, dtype=torch.long), none
            for bit, pair in enumerate(passes):
                low, high = (side.get(key, none) for side in pair)
                code = code + (high.long() << bit)
                unclear = unclear | (low == high)
            found[key] = code, unclear
        return found

    def _look_again(self, unclear, touched):
        """Finds the channels in features where several numbers were seen: by
        place of the maker and key of the features, which ones (bool).

        Makers that do not meet in such features are looked at together.
        """
        while unclear:
            together, left = {}, {}
            for place, features in unclear.items():
                meets = any(
                    _overlap(features, touched[other])
                    or _overlap(others, touched[place])
                    for other, others in together.items()
                )
                (left if meets else together)[place] = features
            self._resolve(together)
            unclear = left

    def _resolve(self, unclear):
        """Tries what models do with channels: chunks, blocks such as heads."""
        sizes = {place: self.makers[place] for place in unclear}
        self._try(unclear, {p: _split(n, 1, 1) for p, n in sizes.items()})
        # All of the channels meet where the first and the last one do
        first, last = (
            self._reached(
                {p: torch.arange(n) == end * (n - 1) for p, n in sizes.items()}
            )[0]
            for end in (0, 1)
        )
        for place, features in unclear.items():
            layers = []
            for key, where in features.items():
                nothing = torch.zeros_like(where)
                both = first.get(key, nothing) & last.get(key, nothing)
                both |= torch.tensor(len(where) == 1)
                layers += [key[0]] if bool((where & both).any()) else []
                features[key] = where & ~both
            if layers:  # They stay, as queries do; others there need not
                self._fix(place, range(sizes[place]), self.mixed(layers))
        for n_members in range(2, max(sizes.values())):
            for n_chunks in sorted({1, 2, 3, n_members}):
                splits = {
                    place: _split(size, n_members, n_chunks)
                    for place, size in sizes.items()
                    if unclear[place]
                    and size % n_members == 0 < size - n_members
                    and n_members % n_chunks == 0
                }
                self._try(unclear, splits)
        # Up to a size one by one, otherwise all of them
        whole = {p: _split(n, n, 1) for p, n in sizes.items()}
        self._try(unclear, whole, _MAX_SINGLE)

    def mixed(self, layers):
        """Returns why channels that reach these layers stay together."""
        for path in sorted(layers, key=self.called.index):
            if reason := self.rules[path].mixes():
                return f"{path} {reason}"
        return "its channels are mixed between the layers"

    def _try(self, unclear, splits, max_single=_MAX_MEMBERS):
        """Links features to channels of one label, if they see no others.

        A split are the labels of channels, and their positions among those of
        the same label; up to ``max_single`` are tried one by one.
        """
        for place, features in unclear.items():
            unclear[place] = {k: x for k, x in features.items() if x.any()}
        splits = {p: split for p, split in splits.items() if unclear[p]}
        if not splits:
            return
        found = self._codes({p: labels for p, (labels, _) in splits.items()})
        clear, fine = [], {}
        for place, (labels, positions) in splits.items():
            if 1 < int(positions.max()) + 1 <= max_single:
                fine[place] = positions
            for key, where in unclear[place].items():
                code, several = found.get(key, (where, where))
                unclear[place][key] = where & several
                for label in code[where & ~several].unique():
                    features = where & ~several & (code == label)
                    clear.append((place, labels == label, key, features))
        for place, members, key, features in clear:
            if place not in fine:
                channel, *others = members.nonzero().flatten().tolist()
                for other in others:
                    self._union((*place, channel), (*place, other))
                for feature in features.nonzero().flatten().tolist():
                    self._link(place, channel, key, feature)
        fine = {p: x for p, x in fine.items() if any(p == c[0] for c in clear)}
        n_positions = max((int(x.max()) + 1 for x in fine.values()), default=0)
        for position in range(n_positions):
            at = {place: x == position for place, x in fine.items()}
            seen, _ = self._reached(at)
            for place, members, key, features in clear:
                if place in fine and key in seen:
                    for channel in (members & at[place]).nonzero():
                        for feature in (features & seen[key]).nonzero():
                            self._link(place, int(channel), key, int(feature))

    def _link(self, place, channel, key, feature):
        """Notes that a channel of a maker reaches a feature of a layer."""
        self._union((*place, channel), (*key, feature))

    def _declare(self):
        """What holds inside of leaves, which probing does not look into."""
        for path in self.called:
            rule = self.rules[path]
            sizes = rule.sizes()
            for role in (rule.treats, "out") if rule.n_blocks > 1 else ():
                for i in range(size := sizes.get(role, 0)):
                    block = i * rule.n_blocks // size
                    first = block * rule.n_read // rule.n_blocks
                    self._union((path, rule.treats, first), (path, role, i))
            for role, reason in rule.locked().items():
                self._fix((path, role), range(sizes[role]), f"{path} {reason}")
