"""Puts gates on the channel groups of a model.

The rule that makes the masked model equal to the cut one: a feature is gated
where it is *read*, not where it is made. So every layer that reads a gated
group gets a tap in front of it; normalizations take their statistics from the
open channels; recurrent units are closed in the recurrence too; the inner
widths of attention heads follow the model width. With a fully open gate a tap
hands its input on untouched, so that the model is the plain one, to the bit.

Authors
 * The noisegate developers, 2026
"""

import collections.abc
import fnmatch
import functools
import math

import torch
from speechbrain.utils.logger import get_logger
from torch.func import functional_call

from noisegate.cost import CostModel
from noisegate.gate import NoiseGate, bounded_sqrt
from noisegate.groups import (
    FRAMES,
    SAMPLES,
    find_groups,
    not_silent,
    unknown_layers,
)
from noisegate.leaves import (
    ATTENTION,
    CELLS,
    FEATURES,
    RECURRENT,
    TRANSPOSED,
    kind,
    n_read,
    normalized,
    scale_and_shift,
)
from noisegate.trial import lock_inexact

logger = get_logger(__name__)

_DB = 200  # greater than the range of what a filterbank returns
_STATISTICS_MOMENTUM = 0.05
_STATISTICS_ROWS = 4096  # about as many vectors are enough for a variance


def spread_ranks(size):
    """Ranks neighbouring channels such that the first ones lie far apart.

    The channels of the lowest ranks are spread over all of them, whatever
    their number (bit reversal, the van der Corput sequence).

    Arguments
    ---------
    size : int
        Number of channels.

    Returns
    -------
    torch.Tensor
        Rank of each channel (size,).

    Example
    -------
    >>> spread_ranks(8).tolist()
    [0, 4, 2, 6, 1, 5, 3, 7]
    """
    bits = max(1, (size - 1).bit_length())
    reversed_index = [int(f"{i:0{bits}b}"[::-1], 2) for i in range(size)]
    return torch.argsort(torch.argsort(torch.tensor(reversed_index)))


class Tap(torch.nn.Module):
    """Gates the features that a layer reads.

    Arguments
    ---------
    gate : noisegate.gate.Gate
        The gate of the features' group.
    layer : torch.nn.Module
        The layer that reads them.
    index : torch.Tensor
        Channel of each feature, None for the identity, -1 for features of
        other groups.
    """

    def __init__(self, gate, layer, index=None):
        super().__init__()
        self._gate = (gate,)  # registered once, elsewhere
        kernel = getattr(layer, "kernel_size", ())
        self.dim = -1 - len(kernel)
        where = None
        if index is not None and bool((index < 0).any()):
            where = (index >= 0).nonzero().flatten()
            index = index[where]
        self.register_buffer("where", where, persistent=False)
        self.register_buffer("index", index, persistent=False)
        self.register_buffer("variance", torch.ones(gate.size))
        self.register_buffer("n_updates", torch.tensor(0))

    @property
    def gate(self):
        """noisegate.gate.Gate : the gate."""
        return self._gate[0]

    def hook(self, layer, args):
        """Forward pre-hook: replaces the first argument."""
        x = args[0]
        if isinstance(x, torch.nn.utils.rnn.PackedSequence):
            mixed = x._replace(data=self(x.data))
        else:
            mixed = self(x)
        return (mixed, *args[1:])

    def attention_hook(self, layer, args, kwargs):
        """Forward pre-hook of attention: one noise for equal q, k and v."""
        names = [n for n in ("query", "key", "value") if n in kwargs]
        n_given = 3 - len(names)
        mixed = []
        for x in [*args[:n_given], *(kwargs[name] for name in names)]:
            # Transposed views of one tensor are told by where they begin
            place = x.data_ptr(), x.shape
            same = [y for seen, y in mixed if seen == place]
            y = same[0] if same else self(x)
            if self.gate.mask is None:
                y = x  # gradients add up in the order of the plain model
            mixed.append((place, y))
        mixed = [y for _, y in mixed]
        kwargs = {**kwargs, **dict(zip(names, mixed[n_given:]))}
        return (*mixed[:n_given], *args[n_given:]), kwargs

    def forward(self, x):
        """Gates the features.

        Arguments
        ---------
        x : torch.Tensor
            Input of the layer.

        Returns
        -------
        torch.Tensor
            The same with the gate applied.
        """
        if self.training and self.gate.frozen is None:
            self._update_statistics(x)
        if self.gate.mask is None:
            return x
        if self.where is None:
            return self._mix(x)
        part = x.index_select(self.dim, self.where)
        return x.index_copy(self.dim, self.where, self._mix(part))

    def _mix(self, x):
        return self.gate.mix(x, self.variance.sqrt(), self.dim, self.index)

    @torch.no_grad()
    def _update_statistics(self, x):
        rows = x.detach().movedim(self.dim, -1)
        for axis, size in enumerate(rows.shape[:-1]):
            # Of small layers statistics would cost as much as the layer
            n_rows = rows.numel() // rows.shape[-1]
            step = min(n_rows // _STATISTICS_ROWS, size // 8)
            if step > 1:
                chosen = [slice(None)] * axis + [slice(None, None, step)]
                rows = rows[tuple(chosen)]
        if self.where is not None:
            rows = rows.index_select(-1, self.where)
        rows = rows.float().flatten(0, -2)
        # A tenth of the time of torch.var
        variance = (rows - rows.mean(0)).square().mean(0)
        if self.index is not None:
            per_channel = len(self.index) / self.gate.size
            variance = torch.zeros_like(self.variance).index_add(
                0, self.index, variance / per_channel
            )
        self.n_updates += 1
        momentum = (1 / self.n_updates).clamp(min=_STATISTICS_MOMENTUM)
        self.variance.lerp_(variance, momentum)

    @torch.no_grad()
    def usefulness(self, layer):
        """Returns how much the layer uses each channel.

        Norm of the channel's weights times its standard deviation.

        Arguments
        ---------
        layer : torch.nn.Module
            The layer behind the tap.

        Returns
        -------
        torch.Tensor
            (channels,), comparable within one tap.
        """
        return (self.weight_energy(layer) * self.variance).sqrt()

    @torch.no_grad()
    def weight_energy(self, layer):
        """Returns the sum of the squared weights that read each channel.

        Arguments
        ---------
        layer : torch.nn.Module
            The layer behind the tap.

        Returns
        -------
        torch.Tensor
            (channels,)
        """
        if isinstance(layer, RECURRENT):
            weights = [layer.weight_ih_l0]
            if layer.bidirectional:
                weights.append(layer.weight_ih_l0_reverse)
            weight = torch.cat(weights)
        elif isinstance(layer, CELLS):
            weight = layer.weight_ih
        elif isinstance(layer, ATTENTION):
            weight = layer.in_proj_weight
        else:
            weight = layer.weight
        dim = 0 if isinstance(layer, TRANSPOSED) else 1
        energy = weight.square().movedim(dim, 0).flatten(1).sum(1)
        if self.where is not None:
            energy = energy[self.where]
        if self.index is not None:
            energy = torch.zeros_like(self.variance).index_add(
                0, self.index, energy
            )
        return energy


class _Plain(torch.nn.Module):
    """A layer's own forward, without the hooks, which have run already."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, *args, **kwargs):
        """Returns what the layer returns."""
        return type(self.layer).forward(self.layer, *args, **kwargs)


class _MaskedLayer(torch.nn.Module):
    """Replaces the forward of a layer by one that knows its gates."""

    def __init__(self, layer):
        super().__init__()
        self._gates = []  # (gate, channel of each feature)
        self._plain = (_Plain(layer),)
        layer.forward = functools.partial(_call, self, layer)

    def add(self, gate, index):
        """Adds a group of channels that the layer treats."""
        self._gates.append((gate, index))

    @property
    def open(self):
        """bool : whether all gates are fully open."""
        return all(gate.mask is None for gate, _ in self._gates)

    def weights(self, size, like):
        """How much each of the layer's features counts: (size,)."""
        total = torch.ones(size, dtype=like.dtype, device=like.device)
        for gate, index in self._gates:
            weights = gate.channel_weights()
            if weights is None:
                continue
            weights = weights.to(total)
            if index is not None:
                index = index.to(total.device)
                weights = torch.where(index < 0, 1.0, weights[index])
            total = total * weights
        return total

    def with_parameters(self, parameters, args, kwargs):
        """Runs the layer's own forward with some parameters replaced."""
        parameters = {f"layer.{k}": v for k, v in parameters.items()}
        return functional_call(self._plain[0], parameters, args, kwargs)


def _call(mask, layer, *args, **kwargs):
    """The forward of a layer with a :class:`_MaskedLayer`."""
    if mask.open:
        return type(layer).forward(layer, *args, **kwargs)
    return mask.run(layer, *args, **kwargs)


class MaskedNorm(_MaskedLayer):
    """A normalization whose statistics count channels as the gates say.

    Arguments
    ---------
    layer : torch.nn.Module
        LayerNorm, GroupNorm of one group or one of SpeechBrain's own.
    """

    def run(self, layer, x):
        """Returns the normalized features."""
        x32 = x.float() if x.dtype in (torch.bfloat16, torch.half) else x
        channels, dims = normalized(layer, x.dim())
        shape = [
            x.shape[dim] if dim in channels else 1 for dim in range(-x.dim(), 0)
        ]
        weights = self.weights(n_read(layer), x32).view(shape)
        n_positions = math.prod(x.shape[dim] for dim in dims) / weights.numel()
        # Stochastic gates may all be closed at once
        weights = weights / (weights.sum().clamp(min=1e-6) * n_positions)
        centred = x32 - (x32 * weights).sum(dims, keepdim=True)
        variance = (centred.square() * weights).sum(dims, keepdim=True)
        y = centred * torch.rsqrt(variance + getattr(layer, "eps", 1e-8))
        scale, shift = scale_and_shift(layer)
        if scale is not None:
            y = y * scale.view(shape)
        if shift is not None:
            y = y + shift.view(shape)
        return y.to(x.dtype)


class MaskedRecurrence(_MaskedLayer):
    """GRU, LSTM, RNN or a cell of one in which no unit reads a closed unit.

    Units at the edge fade without noise inside the recurrence (the fused
    kernels leave no room for it) and with noise in the layer that reads the
    output.

    Arguments
    ---------
    layer : torch.nn.Module
        The layer.
    """

    def run(self, layer, *args, **kwargs):
        """Returns output and state of the layer."""
        factor = self.weights(layer.hidden_size, next(layer.parameters()))
        factor = bounded_sqrt(factor)
        directions = 2 if getattr(layer, "bidirectional", False) else 1
        parameters = {}
        for name, parameter in layer.named_parameters():
            if name.startswith("weight_hh"):
                parameters[name] = parameter * factor
            elif name.startswith("weight_ih_l") and "_l0" not in name:
                parameters[name] = parameter * factor.repeat(directions)
        return self.with_parameters(parameters, args, kwargs)


class MaskedHeads(_MaskedLayer):
    """Self-attention whose heads narrow with the model width.

    Arguments
    ---------
    layer : torch.nn.MultiheadAttention
        The layer.
    """

    def run(self, layer, *args, **kwargs):
        """Returns output and weights of the attention."""
        weights = self._gates[0][0].tied_weights(layer.head_dim)
        rows = bounded_sqrt(weights).repeat(3 * layer.num_heads)
        rows = rows.to(layer.in_proj_weight.dtype)
        parameters = {"in_proj_weight": layer.in_proj_weight * rows[:, None]}
        if layer.in_proj_bias is not None:
            parameters["in_proj_bias"] = layer.in_proj_bias * rows
        return self.with_parameters(parameters, args, kwargs)


def _shortened(model, inputs):
    """A shorter example, if the model takes it: probing is faster."""
    if len(inputs) > 1 or not torch.is_tensor(inputs[0]):
        return inputs
    # Axis 1 is of the frames of features, or of the samples of waveforms
    shortest = {2: SAMPLES, 3: FRAMES}.get(inputs[0].dim())
    if shortest is None or inputs[0].shape[1] <= shortest:
        return inputs
    shorter = [inputs[0][:, :shortest]]
    training = {module: module.training for module in model.modules()}
    try:
        with torch.random.fork_rng():
            model.eval()(*shorter)
    except RuntimeError:  # needs more, or as many as there were
        return inputs
    finally:
        for module, mode in training.items():
            module.training = mode
    return shorter


def attach(model, group, gate):
    """Puts a gate where the channels of a group appear.

    Arguments
    ---------
    model : torch.nn.Module
        The model.
    group : noisegate.groups.Group
        One of its groups.
    gate : noisegate.gate.Gate
        The gate; who calls the model has to call its ``refresh`` before.

    Returns
    -------
    list of tuple
        Each tap and the layer behind it.
    """
    taps = []
    for port in group.ports:
        if port.layer == FEATURES or port.role.startswith("axis"):
            continue
        layer = model.get_submodule(port.layer)
        if not any(module is gate for module in model.modules()):
            name = "gate_" + port.role
            layer.add_module(_free_name(layer, name), gate)
        if port.role == "in":
            tap = Tap(gate, layer, port.index)
            layer.add_module(_free_name(layer, "tap"), tap)
            taps.append((tap, layer))
            if isinstance(layer, ATTENTION):
                layer.register_forward_pre_hook(
                    tap.attention_hook, with_kwargs=True
                )
            else:
                layer.register_forward_pre_hook(tap.hook)
        elif port.role == "hidden":
            _masked(layer, MaskedRecurrence).add(gate, port.index)
        elif port.role == "heads":
            follows = isinstance(layer, torch.nn.MultiheadAttention)
            form = MaskedHeads if follows else MaskedDimensions
            _masked(layer, form).add(gate, port.index)
        elif kind(layer) == "norm":
            _masked(layer, MaskedNorm).add(gate, port.index)
    return taps


def _free_name(layer, name):
    """A name that no child of the layer has."""
    taken = dict(layer.named_children())
    if name not in taken:
        return name
    return next(
        f"{name}_{i}" for i in range(2, 99) if f"{name}_{i}" not in taken
    )


def _masked(layer, form):
    """The masked forward of a layer, made at the first call."""
    if not isinstance(getattr(layer, "masked", None), form):
        layer.add_module("masked", form(layer))
    return layer.masked


class MaskedDimensions(_MaskedLayer):
    """Attention whose heads have closed dimensions.

    Arguments
    ---------
    layer : speechbrain.nnet.attention.RelPosMHAXL
        The layer.
    """

    def run(self, layer, *args, **kwargs):
        """Returns output and weights of the attention."""
        weight = layer.in_proj_weight
        factor = bounded_sqrt(self.weights(layer.head_dim, weight))
        # Queries, keys and values of a head lie side by side
        rows = factor.repeat(3 * layer.num_heads)
        biases = factor.repeat(layer.num_heads).view(-1, layer.num_heads)
        parameters = {
            "in_proj_weight": weight * rows[:, None],
            "pos_bias_u": layer.pos_bias_u * biases,
            "pos_bias_v": layer.pos_bias_v * biases,
        }
        return self.with_parameters(parameters, args, kwargs)


def _matches(group, pattern):
    """Whether a pattern of names or roles means a group."""
    if pattern.startswith("role:"):
        return fnmatch.fnmatchcase(group.role, pattern[len("role:") :].strip())
    return fnmatch.fnmatch(group.name, pattern)


class Gates(collections.abc.Mapping):
    """The gates of a model.

    Finds the channel groups of the model, puts a gate on those asked for and
    knows the cost as a function of all widths. Gates are sub-modules of the
    model's layers: checkpoints and DDP need no extra care.

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
        in which the lowest bands stay).
    segment_s : float
        Seconds of audio that are processed at once; costs refer to it.
    sample_rate : int
        In Hz.
    input_shape : list of int
        Without ``front_end``: shape (1, frames, features) of ``segment_s``.
    example : list
        Without ``front_end``, if the model reads something else: arguments of
        its forward for ``segment_s`` seconds.

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
    ):
        self.model = model
        self.front_end = front_end
        if front_end is not None:
            example = [torch.zeros(1, round(segment_s * sample_rate))]
        elif input_shape is not None:
            example = [torch.zeros(input_shape)]
        elif example is None:
            raise ValueError(
                "Gates needs one of front_end or input_shape or example"
            )
        with torch.no_grad():
            whole = example if front_end is None else [front_end(example[0])]
            inputs = not_silent(_shortened(model, whole))
        # Of the model's input for segment_s seconds; None for other arguments
        self.input_shape = None
        if len(whole) == 1 and torch.is_tensor(whole[0]):
            if whole[0].is_floating_point():
                self.input_shape = list(whole[0].shape)
        self.example = inputs  # of the model, as short as it can be
        self.groups = find_groups(model, front_end, inputs)
        self.unknown = unknown_layers(model, self.groups)
        if layers is None or layers:
            lock_inexact(model, self.groups, inputs, attach)
        self.cost = CostModel(model, self.groups, example, segment_s, front_end)
        if layers is None or layers:
            self.cost.fit_products(model, self.groups, whole)
        self.reorders = reorder
        self._gates = {}
        self._taps = []
        for group, pattern, options in self._select(layers):
            options = dict(options)
            wanted = options.pop("granularity", granularity)
            try:
                options["granularity"] = math.lcm(group.granularity, wanted)
                made = (group.gate or gate)(size=group.size, **options)
            except (TypeError, ValueError) as error:
                where = f"layers: '{pattern}', " if pattern else ""
                raise ValueError(f"{where}'{group.name}': {error}") from error
            self._attach(group, made)
        if FEATURES in self._gates and front_end.compute_fbanks.top_db < _DB:
            logger.warning(
                "The filterbank clips each mel band relative to the loudest "
                f"one (top_db {front_end.compute_fbanks.top_db}), which may be "
                "cut: the cut model then differs where that happens. Set "
                "compute_fbanks.top_db to 300"
            )
        if self._gates:
            model.register_forward_pre_hook(self._refresh)

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
        if not isinstance(layers, dict):
            layers = dict.fromkeys(layers, {})
        selected = {}
        for pattern, options in layers.items():
            options = {} if options is None else options
            if options is not False and not isinstance(options, dict):
                raise ValueError(
                    f"layers: '{pattern}' needs options of its gates, such as "
                    f"{{kappa_min: 0.1}}, or False; got {options}"
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

    def _attach(self, group, gate):
        if group.name == FEATURES and self.reorders:
            gate.rank.copy_(spread_ranks(gate.size))
        steps = math.ceil(group.min_width / gate.granularity)
        gate.min_width = max(gate.min_width, steps * gate.granularity)
        self._gates[group.name] = gate
        for tap, layer in attach(self.model, group, gate):
            self._taps.append((group.name, tap, layer))

    def _refresh(self, model, args):
        for gate in self.values():
            gate.refresh()

    def parameters(self):
        """Returns the parameters of the gates.

        Returns
        -------
        list of torch.nn.Parameter
        """
        return [p for gate in self.values() for p in gate.parameters()]

    def widths(self):
        """Returns the differentiable widths.

        Returns
        -------
        dict of str to torch.Tensor
        """
        return {name: gate.width() for name, gate in self.items()}

    def integer_widths(self):
        """Returns the widths that evaluation and compaction keep.

        Returns
        -------
        dict of str to int
        """
        return {name: gate.integer_width() for name, gate in self.items()}

    def min_widths(self):
        """Returns the smallest integer widths.

        Returns
        -------
        dict of str to int
        """
        return {name: gate.min_width for name, gate in self.items()}

    @property
    def frozen(self):
        """bool : whether all widths are final."""
        return all(g.frozen is not None for g in self.values())

    def freeze(self, widths):
        """Fixes all widths.

        Arguments
        ---------
        widths : dict of str to int
            A width for each gate.
        """
        for name, gate in self.items():
            gate.freeze(widths[name])

    def clamp(self):
        """Brings gate parameters back into their bounds, after a step."""
        for gate in self.values():
            gate.clamp()

    def weight_energies(self):
        """Returns the sums of the squared weights that read each channel.

        Returns
        -------
        dict of str to torch.Tensor
            (channels,) for each gate.
        """
        energies = {}
        for name, tap, layer in self._taps:
            energies[name] = energies.get(name, 0) + tap.weight_energy(layer)
        return energies

    def reorder(self):
        """Ranks the channels of each group by how much they are used.

        Mel bands are left out: the order of :func:`spread_ranks` keeps the
        spectrum covered.
        """
        if not self.reorders:
            return
        for name, gate in self.items():
            useful = [
                tap.usefulness(layer)
                for group, tap, layer in self._taps
                if group == name
            ]
            if name != FEATURES and useful:
                gate.reorder(sum(useful))
