"""The gates of a model: which groups have one, and what they cost.

Authors
 * The noisegate developers, 2026
"""

import collections.abc
import contextlib
import copy
import fnmatch
import math

import torch
from speechbrain.utils.logger import get_logger
from torch.nn.modules.module import register_module_forward_pre_hook

from noisegate.attach import Part, Spacing, Tap, attach, has_gates
from noisegate.cost import CostModel
from noisegate.cut import detached_copy
from noisegate.gate import NoiseGate
from noisegate.groups import (
    FRAMES,
    SAMPLES,
    find_groups,
    not_silent,
    unknown_layers,
)
from noisegate.probe import FORWARD_ERRORS, evaluating, tensors
from noisegate.rules.base import rule_of
from noisegate.rules.features import FEATURES
from noisegate.trial import lock_inexact

logger = get_logger(__name__)

_DB = 200  # greater than the range of what a filterbank returns


def spread_ranks(size):
    """Ranks (size,) of channels such that the first ones lie far apart.

    The channels of the lowest ranks are spread over all of them, whatever
    their number (bit reversal, the van der Corput sequence).

    Example
    -------
    >>> spread_ranks(8).tolist()
    [0, 4, 2, 6, 1, 5, 3, 7]
    """
    bits = max(1, (size - 1).bit_length())
    reversed_index = [int(f"{i:0{bits}b}"[::-1], 2) for i in range(size)]
    return torch.argsort(torch.argsort(torch.tensor(reversed_index)))


def layers_run(model, inputs):
    """The modules (set) that a pass of the model calls."""
    called = set()
    note = register_module_forward_pre_hook(lambda m, args: called.add(m))
    with note, evaluating(model), torch.random.fork_rng():
        model(*inputs)
    return called


def _shortened(model, inputs):
    """A shorter example, if the model takes it in the same way: probing is
    faster."""
    if len(inputs) > 1 or not torch.is_tensor(inputs[0]):
        return inputs
    # Axis 1 is of the frames of features, or of the samples of waveforms
    shortest = {2: SAMPLES, 3: FRAMES}.get(inputs[0].dim())
    if shortest is None or inputs[0].shape[1] <= shortest:
        return inputs
    shorter = [inputs[0][:, :shortest]]
    try:
        same = layers_run(model, shorter) == layers_run(model, inputs)
    except FORWARD_ERRORS:  # needs more, or as many as there were
        return inputs
    return shorter if same else inputs


def _check_lengths(model, silence, noise):
    """Raises ValueError if what a model returns has another length for silence
    and for noise: its cost would be that of silence."""
    shapes = []
    for inputs in (silence, noise):
        with evaluating(model), torch.random.fork_rng():
            torch.manual_seed(0)
            made = tensors(model(*copy.deepcopy(inputs)))
        shapes.append([list(x.shape) for x in made])
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"how much {type(model).__name__} returns depends on the data: "
            f"{shapes[0]} for silence, {shapes[1]} for noise. Give an example "
            "of real data, with all arguments that fix the length"
        )


def _matches(group, pattern):
    """Whether a pattern of names or roles means a group."""
    if pattern.startswith("role:"):
        return fnmatch.fnmatchcase(group.role, pattern[len("role:") :].strip())
    return fnmatch.fnmatch(group.name, pattern)


class Gates(collections.abc.Mapping, contextlib.AbstractContextManager):
    """The gates of a model.

    Finds the channel groups of the model, puts a gate on those asked for and
    knows the cost as a function of all widths. Gates are sub-modules of the
    model's layers: checkpoints need no extra care, nor does DDP in a Brain.

    Arguments
    ---------
    model : torch.nn.Module
        The model, plain or with layers of :mod:`noisegate.layers`.
    front_end : speechbrain.lobes.features.Fbank
        The front-end; give it if its mel bands are gated or its cost counts.
    layers : list of str or dict
        Names of the groups to gate ("features" for the mel bands), with
        wildcards, or "role:ffn" and the like for groups of one role (see
        :class:`noisegate.groups.Group`). As a dict from these patterns to
        options of ``gate`` (``kappa_min``, ``granularity``, ...), or to False
        for no gate; of several patterns that match a group the last counts.
        None gates the layers of :mod:`noisegate.layers` in the model, or all
        groups if there are none; [] gates nothing.
    gate : callable
        Gate factory, called with ``size`` and ``granularity``, and with the
        options in ``layers``.
    granularity : int
        Integer widths are multiples of this (and of what the model asks for).
    reorder : bool
        Whether open channels are ranked every few steps by how much they are
        used, and mel bands such that any number of them is spread over the
        spectrum; False keeps the order of the channels (the published form,
        in which the lowest bands stay). With ``{"features": {"respace":
        True}}`` in ``layers`` fewer bands are wider ones, as a filterbank of
        that many has them, and the cut front-end is such a one.
    segment_s : float
        Seconds of audio that are processed at once; costs refer to it.
    sample_rate : int
        In Hz.
    input_shape : list of int
        Without ``front_end``: shape (1, frames, features) of ``segment_s``.
    example : list
        Without ``front_end``, if the model reads something else: arguments of
        its forward for ``segment_s`` seconds.
    more_examples : list of list
        Further arguments, such as batches of other lengths, for which the cut
        model has to be exact, too.
    untouched : list of str
        Paths of modules whose layers stay as they are.

    Raises
    ------
    ValueError
        If a pattern in ``layers`` matches no group, or only groups that may
        not change; says which groups there are. If no group can be gated;
        says why. If the options of a pattern do not fit.

    Example
    -------
    >>> from speechbrain.nnet.containers import Sequential
    >>> from speechbrain.nnet.linear import Linear
    >>> net = Sequential(input_shape=[None, None, 8])
    >>> net.append(Linear, n_neurons=16, layer_name="hidden")
    >>> net.append(Linear, n_neurons=1, layer_name="out")
    >>> gates = Gates(net, input_shape=[1, 100, 8], segment_s=1.0)
    >>> list(gates)
    ['hidden']
    >>> gates.cost.macs_per_second()
    14400
    >>> gates.freeze({"hidden": 4})
    >>> gates.cost.macs_per_second(gates.integer_widths())
    3600
    """

    def __init__(
        self,
        model,
        front_end=None,
        layers=None,
        gate=NoiseGate,
        granularity=1,
        reorder=True,
        segment_s=1.0,
        sample_rate=16000,
        input_shape=None,
        example=None,
        more_examples=(),
        untouched=(),
    ):
        if has_gates(model):
            raise ValueError(
                f"{type(model).__name__} has gates already: take them off with "
                "their remove() first"
            )
        if rule_of(model).sizes():
            raise ValueError(
                f"{type(model).__name__} is a single layer, which reads the "
                "input and makes the output: there is nothing between to gate"
            )
        self.model = model
        self.front_end = front_end
        if [front_end, input_shape, example].count(None) != 2:
            raise ValueError(
                "Gates needs one of front_end or input_shape or example, alone"
            )
        like = next(model.parameters(), torch.zeros(0))  # type and device
        if front_end is not None:
            if not rule_of(front_end).in_front:
                raise TypeError(
                    "front_end must be a speechbrain.lobes.features.Fbank, got "
                    f"{type(front_end).__name__}"
                )
            example = [torch.zeros(1, round(segment_s * sample_rate))]
        elif input_shape is not None:
            example = [like.new_zeros(input_shape)]
        with torch.no_grad():
            whole = example
            if front_end is not None:
                whole = [front_end(example[0]).to(like)]
            inputs = not_silent(_shortened(model, whole))
        noise = not_silent(whole)
        if noise[0] is not whole[0]:
            _check_lengths(model, whole, noise)
        # Of the model's input for segment_s seconds; None for other arguments
        self.input_shape = None
        if len(whole) == 1 and torch.is_tensor(whole[0]):
            if whole[0].is_floating_point():
                self.input_shape = list(whole[0].shape)
        self.example = inputs  # of the model, as short as it can be
        self.groups = find_groups(model, inputs, front_end)
        self.unknown = unknown_layers(model, self.groups)
        for path in untouched:
            self._leave_out(path)
        if layers is None or layers:
            lock_inexact(model, self.groups, inputs, [noise, *more_examples])
        self.cost = CostModel(model, self.groups, example, segment_s, front_end)
        if layers is None or layers:
            self.cost.fit_products(model, self.groups, whole)
        self.reorders, self.respaced = reorder, False
        self._gates = {}
        self._parts = []  # (group, what is on its layers)
        wished = []  # all are made before one is put on
        for group, pattern, options in self._select(layers):
            options = dict(options)
            wanted = options.pop("granularity", granularity)
            if options.pop("respace", False):
                self._check_respace(group)
                self.respaced = True
            try:
                options["granularity"] = math.lcm(group.granularity, wanted)
                made = (group.gate or gate)(size=group.size, **options)
            except (TypeError, ValueError) as error:
                where = f"layers: '{pattern}', " if pattern else ""
                raise ValueError(f"{where}'{group.name}': {error}") from error
            wished.append((group, made))
        for group, made in wished:
            self._attach(group, made)
        if FEATURES in self and rule_of(front_end).top_db < _DB:
            logger.warning(
                "The filterbank clips each mel band relative to the loudest "
                f"one (top_db {rule_of(front_end).top_db}), which may be cut: "
                "the cut model then differs where that happens. Set "
                "compute_fbanks.top_db to 300"
            )
        self._attached = True

    def __getitem__(self, name):
        """The gate of a group."""
        return self._gates[name]

    def __iter__(self):
        """Names of the gated groups, in data-flow order."""
        return iter(self._gates)

    def __len__(self):
        """Number of gates."""
        return len(self._gates)

    def _select(self, layers):
        """Groups to gate, each with its pattern and the options of its gate."""
        free = [group for group in self.groups if group.locked_reason is None]
        if layers is None:
            wanted = [group for group in self.groups if group.wanted]
            for group in wanted:
                if group.locked_reason:
                    raise ValueError(
                        f"'{group.name}' asks for a gate, but its width may "
                        f"not change: it is {group.locked_reason}"
                    )
            if not free:
                reasons = "; ".join(
                    f"{g.name}: {g.locked_reason}" for g in self.groups
                )
                unknown = "".join(
                    f"; {path}: {name} is no layer that noisegate knows"
                    for path, name in self.unknown.items()
                )
                raise ValueError(
                    "no group of channels of the model can be gated. "
                    f"Reasons: {reasons}{unknown}"
                )
            return [(group, None, {}) for group in wanted or free]
        if not isinstance(layers, (dict, list, tuple)):
            raise ValueError(
                "layers must be a list of patterns, or a mapping with their "
                f"options, got {layers!r}"
            )
        if not isinstance(layers, dict):
            layers = dict.fromkeys(layers, {})
        selected = {}
        for pattern, options in layers.items():
            options = {} if options is None else options
            good = options is False or isinstance(options, dict)
            if not (good and isinstance(pattern, str)):
                raise ValueError(
                    f"layers: {pattern!r} must be a text, with options of "
                    f"gates like {{kappa_min: 0.1}}, or False; got {options}"
                )
            hits = [group for group in self.groups if _matches(group, pattern)]
            open_hits = [group for group in hits if group.locked_reason is None]
            if not open_hits:
                reason = "".join(
                    f"; {group.name} is {group.locked_reason}" for group in hits
                )
                raise ValueError(
                    f"layers: '{pattern}' names no group that can be gated"
                    f"{reason}. Groups: {[group.name for group in free]}, "
                    f"roles: {sorted({group.role for group in free})}"
                )
            for group in open_hits:
                selected[group.name] = pattern, options
        return [
            (group, *selected[group.name])
            for group in free
            if selected.get(group.name, (None, False))[1] is not False
        ]

    def _check_respace(self, group):
        if group.name != FEATURES or not self.front_end.compute_fbanks.freeze:
            raise ValueError(
                f"'{group.name}': respace is for the mel bands of a "
                "filterbank whose filters are not trained"
            )

    def _leave_out(self, path):
        """Locks the groups that layers of a module read or make."""
        if path not in dict(self.model.named_modules()):
            raise ValueError(
                f"untouched: the model has no module '{path}'; it has "
                f"{[name for name, _ in self.model.named_children()]}"
            )
        for group in self.groups:
            layers = (f"{port.layer}." for port in group.ports)
            if any(layer.startswith(f"{path}.") for layer in layers):
                group.locked_reason = f"part of '{path}', which is untouched"

    def _attach(self, group, gate):
        if group.name == FEATURES and self.respaced:
            bank = self.front_end.compute_fbanks
            part = Part(bank, "spacing", Spacing(gate, rule_of(self.front_end)))
            part.put()
            self._parts.append((group.name, part))
        elif group.name == FEATURES and self.reorders:
            gate.rank.copy_(spread_ranks(gate.size))
        steps = math.ceil(group.min_width / gate.granularity)
        gate.min_width = max(gate.min_width, steps * gate.granularity)
        self._gates[group.name] = gate
        for part in attach(self.model, group, gate):
            self._parts.append((group.name, part))

    def remove(self):
        """Takes the gates off: the model is what it was before, to the bit.

        Weights keep what they have learned.
        """
        if self._attached:
            for _, part in reversed(self._parts):
                part.take()
        self._attached = False

    def __exit__(self, *error):
        """Takes the gates off, at the end of a ``with`` block."""
        self.remove()

    def plain_copy(self):
        """Returns a deep copy of the model without gates."""
        attached = self._attached
        self.remove()
        try:
            model = detached_copy(self.model)
        finally:
            if attached:
                for _, part in self._parts:
                    part.put()
            self._attached = attached
        return model

    def __repr__(self):
        """The table of the groups."""
        return _table(self)

    def taps(self):
        """Yields names of groups and taps, one for each layer that reads."""
        for name, part in self._parts:
            if isinstance(part.module, Tap):
                yield name, part.module

    def parameters(self):
        """Returns the parameters of the gates (list)."""
        return [p for gate in self.values() for p in gate.parameters()]

    def widths(self):
        """Returns the differentiable widths by group (dict)."""
        return {name: gate.width() for name, gate in self.items()}

    def integer_widths(self):
        """Returns the widths that evaluation and the cut keep (dict of int)."""
        return {name: gate.integer_width() for name, gate in self.items()}

    def min_widths(self):
        """Returns the smallest integer widths by group (dict)."""
        return {name: gate.min_width for name, gate in self.items()}

    def open_channels(self):
        """Returns the channels that evaluation keeps by group (dict)."""
        return {name: gate.open_channels() for name, gate in self.items()}

    @property
    def frozen(self):
        """bool : whether all widths are final."""
        return all(gate.frozen is not None for gate in self.values())

    def freeze(self, widths):
        """Fixes all widths, given as a dict of int by group."""
        for name, gate in self.items():
            gate.freeze(widths[name])

    @torch.no_grad()
    def clamp(self):
        """Brings gate parameters back into their bounds, after a step.

        Then reads all widths in one copy from the device, for all that asks
        for them until the next step.
        """
        for gate in self.values():
            gate.clamp()
        if self:
            widths = torch.stack(list(self.widths().values()))
            for gate, width in zip(self.values(), widths.tolist()):
                gate.known(width)

    def watch(self):
        """Begins to note which gates are used, see :meth:`idle`."""
        for gate in self.values():
            gate.ran = gate.asked = gate.reached = False

    def idle(self):
        """Returns the names (list) of gates whose layers have not run in
        training since :meth:`watch`."""
        return [name for name, gate in self.items() if not gate.ran]

    def unreached(self):
        """Returns the names (list) of gates that layers in training have used
        since the last call, but that no gradient has reached."""
        names = [k for k, gate in self.items() if gate.asked > gate.reached]
        for gate in self.values():
            gate.asked = gate.reached = False
        return names

    def reorder(self):
        """Ranks the channels of each group by how much they are used.

        Mel bands are left out: the order of :func:`spread_ranks` keeps the
        spectrum covered.
        """
        if not self.reorders:
            return
        useful = {}
        for name, tap in self.taps():
            useful[name] = useful.get(name, 0) + tap.usefulness()
        for name, total in useful.items():
            if name != FEATURES:
                self[name].reorder(total)


def _table(gates):
    """A line for each group, below them the totals, see :class:`Gates`."""
    cost, total = gates.cost, gates.cost.macs()
    header = ("group", "role", "channels", "smallest", "step", "MACs/s")
    open_rows, locked_rows = [], []
    for group in gates.groups:
        gate = gates.get(group.name)
        # What is left without the group says what depends on it
        macs = total - cost.macs({group.name: 0})
        share = f"{100 * macs / total:.1f} %" if total else "-"
        depends = round(macs / cost.seconds), share
        if not group.ports:  # the input, whose width is not looked at
            depends = "-", "-"
        if gate is None:
            reason = group.locked_reason or "not asked for"
            limits, note = ("-", "-"), f"no gate: {reason}"
        else:
            limits = gate.min_width, gate.granularity
            readers = dict.fromkeys(port.layer for port in group.find("in"))
            note = "read by " + ", ".join(list(readers)[:2])
            if len(readers) > 2:
                note += f" and {len(readers) - 2} more"
        size = cost.sizes[group.name]
        row = (group.name, group.role, size, *limits, *depends, note)
        (locked_rows if gate is None else open_rows).append(row)
    rows = [(*header, "share", ""), *open_rows, *locked_rows]
    widths = [max(len(str(x)) for x in column) for column in zip(*rows)]
    sides = [str.ljust] * 2 + [str.rjust] * 5 + [str.ljust]
    lines = []
    for row in rows:
        cells = [side(str(x), n) for side, x, n in zip(sides, row, widths)]
        lines.append("  ".join(cells).rstrip())
    least, full = gates.min_widths(), cost.macs_per_second()
    smallest = cost.macs_per_second(least)
    lines += [
        "",
        f"gated: {len(gates)} of {len(gates.groups)} groups; MACs/s {full}, "
        f"at the smallest widths {smallest} "
        f"({100 * smallest / max(1, full):.1f} %)",
        f"parameters {cost.params()}, at the smallest widths "
        f"{cost.params(least)}",
    ]
    if gates.unknown:
        layers = (f"{path} ({name})" for path, name in gates.unknown.items())
        lines.append(f"layers that are not known: {', '.join(layers)}")
    return "\n".join(lines)
