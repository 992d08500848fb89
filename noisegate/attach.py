"""Puts a gate on the layers where the channels of a group appear.

The rule that makes the masked model equal to the cut one: a feature is gated
where it is *read*, not where it is made. So every layer that reads a gated
group gets a tap in front of it; layers that combine channels inside
(normalization, recurrence, attention heads) are run by their rule, such that
closed channels do not count. With a fully open gate a tap hands its input on
untouched, so that the model is the plain one, to the bit.

Authors
 * The noisegate developers, 2026
"""

import dataclasses
import functools

import torch

from noisegate._private import recomputing
from noisegate.gate import Gate
from noisegate.rules.base import OwnForward, parents, rule_of
from noisegate.rules.features import FEATURES

_STATISTICS_MOMENTUM = 0.1
_STATISTICS_EVERY = 4  # passes
_STATISTICS_ROWS = 1024  # about as many vectors are enough for a variance


class Tap(torch.nn.Module):
    """Gates the features that a layer reads.

    ``index`` has the channel of each feature, -1 for features of other
    groups; None if feature i is channel i.
    """

    def __init__(self, gate, rule, index=None):
        super().__init__()
        self._gate = (gate,)  # registered once, elsewhere
        self.rule = rule
        self.dim = rule.axes(3)[0]
        where = None
        if index is not None and bool((index < 0).any()):
            where = (index >= 0).nonzero().flatten()
            index = index[where]
        places = None
        if index is not None:
            n_each = index.bincount(minlength=gate.size)
            if bool((n_each == n_each[0]).all()):
                places = index.argsort(stable=True).view(gate.size, -1)
        self.register_buffer("places", places, persistent=False)
        self.register_buffer("where", where, persistent=False)
        self.register_buffer("index", index, persistent=False)
        self.register_buffer("variance", torch.ones(gate.size))
        self.n_passes = 0

    @property
    def gate(self):
        """noisegate.gate.Gate : the gate."""
        return self._gate[0]

    def put_on(self, layer):
        """Taps a layer."""
        self._hook = layer.register_forward_pre_hook(
            self._replace, with_kwargs=True
        )

    def take_off(self, layer):
        """Undoes :meth:`put_on`."""
        self._hook.remove()

    def _replace(self, layer, args, kwargs):
        return self.rule.gated(self, args, kwargs)

    def forward(self, x):
        """Returns the features that the layer is about to read, gated."""
        # Checkpointed layers run again for the backward pass: in the same way
        if self.training and self.gate.frozen is None and not recomputing():
            momentum = self._momentum()
            if momentum:
                self._update_statistics(x, momentum)
        if self.training:
            self.gate.ran = True
        if self.where is None:
            return self._mix(x)
        if self.gate.is_open(self.training):
            return x
        part = x.index_select(self.dim, self.where)
        return x.index_copy(self.dim, self.where, self._mix(part))

    def _mix(self, x):
        how = self.training, self.dim, self.index, self.places
        return self.gate.mix(x, self.variance, *how)

    def _per_channel(self, values):
        """Sums values of features (features,) up to those of channels."""
        if self.index is None:
            return values
        return torch.zeros_like(self.variance).index_add(0, self.index, values)

    def get_extra_state(self):
        """Returns the number of passes, as a tensor: part of the state."""
        return torch.tensor(self.n_passes)

    def set_extra_state(self, state):
        """Sets the number of passes."""
        self.n_passes = int(state)

    def _momentum(self):
        """Weight of this pass in the statistics: not each has one. What is
        compiled does not count, it would be compiled for each number."""
        if torch.compiler.is_compiling():
            return _STATISTICS_MOMENTUM / _STATISTICS_EVERY
        n_updates, rest = divmod(self.n_passes, _STATISTICS_EVERY)
        self.n_passes += 1
        return 0 if rest else max(1 / (n_updates + 1), _STATISTICS_MOMENTUM)

    @torch.no_grad()
    def _update_statistics(self, x, momentum):
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
            n_each = len(self.index) / self.gate.size
            variance = self._per_channel(variance / n_each)
        # One bad batch must not stay
        variance = torch.where(variance.isfinite(), variance, self.variance)
        self.variance.lerp_(variance, momentum)

    @torch.no_grad()
    def energy(self):
        """Returns the sum of the squared weights that read each channel."""
        energy = self.rule.energy()
        if self.where is not None:
            energy = energy[self.where]
        return self._per_channel(energy)

    @torch.no_grad()
    def usefulness(self):
        """Returns how much the layer uses each channel (channels,).

        Norm of the channel's weights times its standard deviation:
        comparable within one tap.
        """
        return (self.energy() * self.variance).sqrt()


class Masked(torch.nn.Module):
    """Runs a layer such that closed channels do not count in it, and tells
    :meth:`noisegate.rules.LayerRule.masked` how much each of them counts."""

    def __init__(self, rule):
        super().__init__()
        self.rule = rule
        self._gates = []  # (role, gate, buffer: channel of each feature)
        self._own = (OwnForward(rule.layer),)

    def add(self, role, gate, index):
        """Adds a group of channels that the layer has in a role."""
        name = f"index_{len(self._gates)}"
        self.register_buffer(name, index, persistent=False)
        self._gates.append((role, gate, name))

    def put_on(self, layer):
        """Replaces the forward of the layer."""
        self._before = vars(layer).get("forward")
        layer.forward = functools.partial(_run, self)

    def take_off(self, layer):
        """Puts the forward of the layer back."""
        del layer.forward
        if self._before is not None:
            layer.forward = self._before

    def forward(self, role, size, like):
        """Returns how much each feature of a role counts (size,)."""
        total = torch.ones(size, dtype=like.dtype, device=like.device)
        for own, gate, name in self._gates:
            if own != role or gate.is_open(self.training):
                continue
            weights = gate.channel_weights(self.training).to(total)
            index = getattr(self, name)
            if index is not None:
                weights = torch.where(index < 0, 1.0, weights[index])
            total = total * weights
        return total

    def tied(self, role, size):
        """The same for features whose width follows that of the gate."""
        gate = next(gate for own, gate, _ in self._gates if own == role)
        return gate.tied_weights(size, self.training)

    def run(self, parameters, args, kwargs):
        """Runs the layer's own forward with some parameters replaced."""
        return self._own[0].run(parameters, args, kwargs)


class Spacing(torch.nn.Module):
    """Spaces mel filters for the width of their gate, in each pass."""

    def __init__(self, gate, rule):
        super().__init__()
        self._gate, self._rule = (gate,), rule

    def put_on(self, bank):
        """Comes before the forward of a filterbank, and behind it."""
        self._hooks = (
            bank.register_forward_pre_hook(self._space),
            bank.register_forward_hook(self._restore, always_call=True),
        )

    def take_off(self, bank):
        """Undoes :meth:`put_on`."""
        for hook in self._hooks:
            hook.remove()

    def _space(self, bank, args):
        (gate,) = self._gate
        self._before = bank.f_central, bank.band
        if gate.is_open(self.training):
            return
        width = gate.integer_width()
        if not gate.is_hard(self.training):
            width = gate.width().to(bank.all_freqs_mat.device)
        bank.f_central, bank.band = self._rule.spaced(width)

    def _restore(self, bank, args, output):
        bank.f_central, bank.band = self._before


class Padded(torch.nn.Module):
    """Keeps torch's encoder from packing frames, which no gate can read."""

    def put_on(self, encoder):
        """Padded frames stay as they are."""
        self.before = encoder.use_nested_tensor
        encoder.use_nested_tensor = False

    def take_off(self, encoder):
        """Undoes :meth:`put_on`."""
        encoder.use_nested_tensor = self.before


def _run(masked, *args, **kwargs):
    """The forward of a layer with a :class:`Masked`."""
    if all(gate.is_open(masked.training) for _, gate, _ in masked._gates):
        return masked._own[0].own(*args, **kwargs)
    return masked.rule.masked(masked, args, kwargs)


@dataclasses.dataclass
class Part:
    """A gate, tap or mask that is put on a layer, as its child ``name``."""

    layer: torch.nn.Module
    name: str
    module: torch.nn.Module

    def put(self):
        """Puts it on the layer."""
        self.layer.add_module(self.name, self.module)
        self.module.train(self.layer.training)
        if not isinstance(self.module, Gate):
            self.module.put_on(self.layer)

    def take(self):
        """Takes it off: the layer is what it was, to the bit."""
        if not isinstance(self.module, Gate):
            self.module.take_off(self.layer)
        delattr(self.layer, self.name)


def has_gates(model):
    """Returns whether gates are on a model."""
    return any(isinstance(m, (Gate, Tap, Masked)) for m in model.modules())


def attach(model, group, gate):
    """Puts a gate where the channels of a group appear.

    Returns what was put on, a list of :class:`Part` in order.
    """
    parts = []

    def put(layer, name, module):
        taken = [name, *(f"{name}_{i}" for i in range(2, 99))]
        free = next(n for n in taken if not hasattr(layer, n))
        module.to(next(model.parameters(), gate.rank).device)
        parts.append(Part(layer, free, module))
        parts[-1].put()
        return module

    for port in group.ports:
        if port.layer == FEATURES or port.role.startswith("axis"):
            continue
        layer = model.get_submodule(port.layer)
        rule = rule_of(layer)
        if not parts:
            put(layer, "gate_" + port.role, gate)
        for _, module in parents(model, port.layer):
            if getattr(module, "use_nested_tensor", False):
                put(module, "padded", Padded())
        if port.role == "in":
            put(layer, "tap", Tap(gate, rule, port.index))
        elif port.role in rule.masks:
            masked = [m for m in layer.children() if isinstance(m, Masked)]
            if not masked:
                masked = [put(layer, "masked", Masked(rule))]
            masked[0].add(port.role, gate, port.index)
    return parts
