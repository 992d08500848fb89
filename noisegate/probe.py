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

import math

import torch

CONVS = (torch.nn.Conv1d, torch.nn.Conv2d)
TRANSPOSED = (torch.nn.ConvTranspose1d, torch.nn.ConvTranspose2d)
RECURRENT = (torch.nn.GRU, torch.nn.LSTM, torch.nn.RNN)
FEATURES = "features"

_MAKERS = (
    torch.nn.Linear,
    *CONVS,
    *TRANSPOSED,
    *RECURRENT,
    torch.nn.Embedding,
    torch.nn.MultiheadAttention,
)
_NORMS = (torch.nn.LayerNorm, torch.nn.GroupNorm)
_EACH = (
    torch.nn.modules.batchnorm._BatchNorm,
    torch.nn.InstanceNorm1d,
    torch.nn.InstanceNorm2d,
)
# Up to this many channels a maker that stays unclear is tried channel by
# channel; wider ones are taken to mix all channels in question
_MAX_SINGLE = 128


def depthwise(layer):
    """Returns whether a layer is a convolution of each channel by itself.

    Arguments
    ---------
    layer : torch.nn.Module
        Any layer.

    Returns
    -------
    bool

    Example
    -------
    >>> depthwise(torch.nn.Conv1d(8, 8, 3, groups=8))
    True
    """
    return (
        isinstance(layer, CONVS + TRANSPOSED)
        and layer.groups > 1
        and layer.groups == layer.in_channels == layer.out_channels
    )


def kind(layer):
    """Returns what a layer does to channels.

    Arguments
    ---------
    layer : torch.nn.Module
        Any layer.

    Returns
    -------
    str or None
        "maker": combines channels to new ones. "each": treats them one by
        one. "norm": normalizes over them. None: not a leaf.
    """
    if depthwise(layer) or isinstance(layer, _EACH):
        return "each"
    if isinstance(layer, torch.nn.PReLU):
        return "each" if layer.num_parameters > 1 else None
    if isinstance(layer, _NORMS):
        return "norm"
    return "maker" if isinstance(layer, _MAKERS) else None


def find_leaves(model):
    """Returns the layers that are looked at as a whole.

    Arguments
    ---------
    model : torch.nn.Module
        The model.

    Returns
    -------
    dict of str to torch.nn.Module
        By path.
    """
    leaves = {}
    for path, layer in model.named_modules():
        inner = any(path.startswith(leaf + ".") for leaf in leaves)
        if kind(layer) is not None and not inner and path:
            leaves[path] = layer
    return leaves


def n_made(layer):
    """Returns the number of channels that a maker makes.

    Arguments
    ---------
    layer : torch.nn.Module
        A maker; the channels of an RNN are its units.

    Returns
    -------
    int
    """
    for attribute in (
        "out_features",
        "out_channels",
        "hidden_size",
        "embedding_dim",
        "embed_dim",
    ):
        if hasattr(layer, attribute):
            return getattr(layer, attribute)
    raise TypeError(f"{type(layer)} makes no channels")


def n_read(layer):
    """Returns the number of features that a layer reads or treats.

    Arguments
    ---------
    layer : torch.nn.Module
        A leaf.

    Returns
    -------
    int
    """
    if isinstance(layer, torch.nn.LayerNorm):
        return math.prod(layer.normalized_shape)
    for attribute in (
        "in_features",
        "in_channels",
        "input_size",
        "embed_dim",
        "num_features",
        "num_channels",
        "num_parameters",
    ):
        if hasattr(layer, attribute):
            return getattr(layer, attribute)
    raise TypeError(f"{type(layer)} reads no features")


def out_index(layer):
    """Returns the channel of each output feature of a maker.

    Arguments
    ---------
    layer : torch.nn.Module
        A maker.

    Returns
    -------
    torch.Tensor
        (features,): the two directions of an RNN share their units.
    """
    channels = torch.arange(n_made(layer))
    return channels.repeat(2 if getattr(layer, "bidirectional", False) else 1)


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
    return (x != y) & ~(torch.isnan(x) & torch.isnan(y))


def _feature_shape(layer, tensor):
    """Shape that broadcasts one value per feature against a tensor."""
    if isinstance(layer, torch.nn.LayerNorm):
        return list(layer.normalized_shape)
    shape = [1] * tensor.dim()
    if isinstance(layer, CONVS + TRANSPOSED):
        axis = tensor.dim() - 1 - len(layer.kernel_size)
    elif kind(layer) in ("each", "norm"):
        axis = min(1, tensor.dim() - 1)
    else:
        axis = -1
    shape[axis] = tensor.shape[axis]
    return shape


def _per_feature(layer, where):
    """Whether any position of each feature is set: (features,)."""
    shape = _feature_shape(layer, where)
    shape = [1] * (where.dim() - len(shape)) + shape
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
        self.leaves = find_leaves(model)
        self.called = []  # paths of the leaves in the order of their calls
        self.makers = {}  # path: number of channels
        self._with_features = with_features
        self._sets = _Sets()
        self._stand_ins, self._clean_inputs = {}, {}
        self._stage, self._selected, self._sign = "record", {}, 1
        training = {layer: layer.training for layer in model.modules()}
        saved = {
            path: layer.__dict__.get("forward")
            for path, layer in self.leaves.items()
        }
        model.eval()
        try:
            with torch.no_grad(), torch.random.fork_rng():
                for path, layer in self.leaves.items():
                    layer.forward = self._replacement(path, layer)
                self._run()
        finally:
            for path, layer in self.leaves.items():
                del layer.__dict__["forward"]
                if saved[path] is not None:
                    layer.forward = saved[path]
            for layer, mode in training.items():
                layer.training = mode

    def components(self):
        """Returns the sets of features that can only be cut together.

        Returns
        -------
        list of tuple
            Features (path, role, number) with role "out" for a channel that
            the layer makes, "in" for a feature that it reads and "norm" for
            one that it treats; and the reason why they have to stay or None.
        """
        return self._sets.components()

    # ---- one pass ---------------------------------------------------------

    def _forward(self):
        """One pass of the model; returns the tensors it returns."""
        self._calls = {}
        self._seen = {}
        torch.manual_seed(1)
        inputs = _map(torch.clone, self.inputs)
        if FEATURES in self._selected:
            select = self._selected[FEATURES]
            inputs[0] = self._disturb(inputs[0], select, 0)
        return tensors(self.model(*inputs))

    def _disturb(self, tensor, select, call):
        """Adds something to the selected entries (broadcast)."""
        draw = torch.Generator().manual_seed(call)
        amount = 2 + 4 * torch.rand(tensor.shape, generator=draw)
        amount = self._sign * amount.to(tensor)
        return torch.where(select.to(tensor.device), tensor + amount, tensor)

    def _replacement(self, path, layer):
        """The forward of a leaf while it is probed."""
        original = layer.forward
        role = "in" if kind(layer) == "maker" else "norm"

        def forward(*args, **kwargs):
            call = self._calls.get(path, 0)
            self._calls[path] = call + 1
            key = path, call
            read = self._read(layer, args, kwargs)
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
                self._clean_inputs[key] = [_map(torch.clone, x) for x in read]
                return _map(torch.clone, self._stand_ins[key])
            if key not in self._stand_ins:
                raise RuntimeError("the number of calls of a layer changes")
            select = None
            for slot, (new, old) in enumerate(
                zip(read, self._clean_inputs[key])
            ):
                state = slot > 0 and isinstance(layer, RECURRENT)
                for x, x0 in zip(tensors(new), tensors(old)):
                    if not x.is_floating_point():
                        continue
                    where = _per_feature(layer, _differ(x, x0))
                    if where.any():
                        self._note(path, "state" if state else role, where)
                        select = where
            output = _map(torch.clone, self._stand_ins[key])
            if role == "in":
                select = self._selected.get(path)
            if select is None:
                return output
            return self._disturb_output(layer, output, select, call)

        return forward

    def _disturb_output(self, layer, output, select, call):
        def disturb(x):
            chosen = select
            if isinstance(layer, RECURRENT):
                chosen = select.repeat(x.shape[-1] // len(select))
            shape = _feature_shape(layer, x)
            return self._disturb(x, chosen.view(shape), call)

        if isinstance(layer, torch.nn.MultiheadAttention):
            return (disturb(output[0]), *output[1:])
        return _map(disturb, output)

    @staticmethod
    def _read(layer, args, kwargs):
        """The values that a leaf reads features from."""
        if isinstance(layer, torch.nn.Embedding):
            return []
        values = [*args, *kwargs.values()]
        if isinstance(layer, torch.nn.MultiheadAttention):
            return values[:3]
        if isinstance(layer, RECURRENT):
            return values[:2]
        return values[:1]

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
        for key, (codes, unclear) in self._decode(touched).items():
            for path, where in touched.items():
                if key not in where:
                    continue
                wrong = unclear | (codes >= self.makers[path])
                for feature in (where[key] & ~wrong).nonzero().flatten():
                    channel = int(codes[feature])
                    self._link(path, channel, key, int(feature))
                if bool((where[key] & wrong).any()):
                    self._unclear.setdefault(path, {})[key] = where[key] & wrong
        for path, features in self._unclear.items():
            self._look_again(path, features)
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
                            value = self._disturb(value, everywhere, i)
                            self.inputs[i] = value
                self._forward()
                for (path, role), where in self._seen.items():
                    for feature in where.nonzero().flatten().tolist():
                        item = path, self._element(role), feature
                        self._sets.fix(item, "the input of the model")
            self.inputs = original

    def _find_makers(self):
        """What each maker reaches: {maker: {(path, role): features}}."""
        self._unclear = {}
        touched = {}
        if self._with_features:
            self.makers[FEATURES] = self.inputs[0].shape[-1]
        for path in self.called:
            if kind(self.leaves[path]) == "maker":
                self.makers[path] = n_made(self.leaves[path])
        for path, size in list(self.makers.items()):
            for channel in range(size):
                self._sets.find((path, "out", channel))
            select = torch.ones(size, dtype=torch.bool)
            try:
                touched[path], output = self._reached({path: select})
                reason = "the output of the model" if output else None
            except Exception as error:
                reason = f"disturbing it breaks the forward: {error}"
                touched[path] = {}
            if reason:
                for channel in range(size):
                    self._sets.fix((path, "out", channel), reason)
        return touched

    def _decode(self, touched):
        """Channel of each feature, by passes that disturb all makers."""
        makers = {path: self.makers[path] for path in touched if touched[path]}
        return self._codes(
            {path: torch.arange(size) for path, size in makers.items()}
        )

    def _codes(self, labels):
        """Reads labels of channels back from the features they reach.

        Returns for each (path, role) the labels (features,) and where more
        than one label was seen.
        """
        n_labels = max((int(v.max()) + 1 for v in labels.values()), default=0)
        passes = [
            [
                self._reached(
                    {path: (v >> bit & 1) == side for path, v in labels.items()}
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

    def _look_again(self, path, features):
        """Finds the channels of one maker in features that are unclear.

        Chunks and flattened axes repeat channels at regular distances: the
        remainders modulo the distance are clear then.
        """
        size = self.makers[path]
        channels = torch.arange(size)
        for parts in (1, *(n for n in range(2, 17) if size % n == 0)):
            found = self._codes({path: channels % (size // parts)})
            in_part = [
                self._reached({path: channels // (size // parts) == part})[0]
                for part in range(parts if parts > 1 else 0)
            ]
            left = {}
            for key, where in features.items():
                codes, unclear = found[key]
                for feature in (where & ~unclear).nonzero().flatten().tolist():
                    code = int(codes[feature])
                    if parts == 1:
                        self._link(path, code, key, feature)
                    for part, reached in enumerate(in_part):
                        if key in reached and reached[key][feature]:
                            channel = code + part * (size // parts)
                            self._link(path, channel, key, feature)
                if bool((where & unclear).any()):
                    left[key] = where & unclear
            features = left
            if not features:
                return
        if size <= _MAX_SINGLE:
            for channel in range(size):
                reached = self._reached({path: channels == channel})[0]
                for key, where in features.items():
                    hit = reached.get(key, torch.zeros_like(where)) & where
                    for feature in hit.nonzero().flatten().tolist():
                        self._link(path, channel, key, feature)
            return
        for key, where in features.items():
            for feature in where.nonzero().flatten().tolist():
                for channel in range(size):
                    self._link(path, channel, key, feature)

    @staticmethod
    def _element(role):
        # What enters the state of an RNN is tied to its units
        return "out" if role == "state" else role

    def _link(self, path, channel, key, feature):
        item = key[0], self._element(key[1]), feature
        self._sets.union((path, "out", channel), item)

    def _declare(self):
        """What holds inside of leaves, which probing does not look into."""
        sets = self._sets
        for path in self.called:
            layer = self.leaves[path]
            if isinstance(layer, torch.nn.MultiheadAttention):
                for i in range(layer.embed_dim):  # one attribute for both
                    sets.union((path, "in", i), (path, "out", i))
            if getattr(layer, "groups", 1) > 1 and not depthwise(layer):
                for i in range(layer.in_channels):
                    sets.fix((path, "in", i), f"{path} convolves in groups")
                for i in range(layer.out_channels):
                    sets.fix((path, "out", i), f"{path} convolves in groups")
            if getattr(layer, "proj_size", 0):
                for i in range(layer.hidden_size):
                    sets.fix((path, "out", i), f"{path} projects its state")
            if isinstance(layer, torch.nn.GroupNorm) and layer.num_groups > 1:
                for i in range(layer.num_channels):
                    sets.fix((path, "norm", i), f"{path} normalizes in groups")
