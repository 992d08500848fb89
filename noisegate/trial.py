"""Cuts groups of a model on trial and locks those for which it is not exact.

What :mod:`noisegate.probe` sees is which features depend on which channels;
whether the model still computes the same with fewer of them is found out by
cutting copies of it. Code between the layers may count channels, reshape them
with constants or draw random numbers for them.

Authors
 * The noisegate developers, 2026
"""

import contextlib
import copy
import math
import traceback

import torch
from torch.overrides import TorchFunctionMode

from noisegate.attach import attach
from noisegate.cut import cut_copy, detached_copy
from noisegate.gate import NoiseGate
from noisegate.probe import FORWARD_ERRORS, evaluating, map_tensors, tensors
from noisegate.rules.features import FEATURES

# Cut on trial: every n-th group, from which on, to a part of its widths. At
# the smallest ones a wrong channel may be hidden, or a stream be constant;
# where all are cut, one that is wrong alone. The greatest width is no multiple
# of what divides the size. By a digit of their index groups of one size differ
_DRAWS = [(0, 1, 0, 0, 0), (0, 1, 1, 1, 0), (0, 1, 0, 0.5, 0), (0, 1, 0, 1, 1)]
_DRAWS += [(0, 2, 0, 0, 0), (1, 2, 0, 0, 0)]
_ALL = [*range(len(_DRAWS))]
# Of sums over some layers, relative to the output
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-5}
MAX_NOISE = 1e-3  # of models that draw random numbers in evaluation
_REFERENCE = (
    "A function that was put on the model (a forward, a hook) keeps a "
    "reference to it: make it a method of a module"
)


def relative_difference(expected, made):
    """Returns how much two lists of outputs (tensors or arrays) differ.

    It is the greatest difference, relative to the greatest finite value of the
    same output; NaN if an output has one. Equal infinities do not differ.
    Raises ValueError for another number of outputs, or another shape.

    Example
    -------
    >>> x = torch.tensor([1.0, 4.0])
    >>> relative_difference([x], [x + 1])
    0.25
    >>> relative_difference([x, x / 0], [x, x / 0])
    0.0
    >>> relative_difference([x, x], [x, 0 * x / 0])
    nan
    """
    if len(expected) != len(made):
        raise ValueError(f"{len(made)} outputs in place of {len(expected)}")
    differences = [torch.zeros(())]
    for x, y in zip(expected, map(torch.as_tensor, made)):
        if x.shape != y.shape:
            shapes = f"{list(y.shape)} in place of {list(x.shape)}"
            raise ValueError(f"an output of shape {shapes}")
        if x.is_complex():
            x, y = torch.view_as_real(x), torch.view_as_real(y)
        if not x.is_floating_point():
            x, y = (x != y).double(), torch.zeros(())
        if x.numel():
            scale = x.masked_fill(x.isinf(), 0).abs().max().clamp(min=1e-6)
            gap = (x - y).abs().masked_fill(x == y, 0)  # inf - inf is NaN
            differences.append((gap.max() / scale).cpu())
    # The max of Python would pass over NaN
    return float(torch.stack([x.float() for x in differences]).max())


class TrialError(Exception):
    """Masked and cut models cannot be compared."""


class _Doubles(TorchFunctionMode):
    """Lets a copy of a model compute in float64, whatever its code asks for.

    Raises TrialError if the copy computes with a tensor of the original: it
    is no copy then.
    """

    _DTYPES = dict.fromkeys(
        (torch.float16, torch.bfloat16, torch.float32), torch.float64
    )
    _CASTS = dict.fromkeys(
        (torch.Tensor.half, torch.Tensor.bfloat16, torch.Tensor.float),
        torch.Tensor.double,
    )

    def __init__(self, original, dtype):
        super().__init__()
        self.original = original
        self.dtype = dtype
        named = [*original.named_parameters(), *original.named_buffers()]
        self.names = {id(tensor): name for name, tensor in named}

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        for value in tensors([args, kwargs]):
            if id(value) in self.names:
                raise TrialError(
                    f"a copy of {type(self.original).__name__} computes with "
                    f"'{self.names[id(value)]}' of the original. {_REFERENCE}"
                )
        if self.dtype is torch.float64:
            function = self._CASTS.get(function, function)
            args = [self._wider(x) for x in args]
            kwargs = {key: self._wider(x) for key, x in kwargs.items()}
        return function(*args, **kwargs)

    def _wider(self, value):
        if isinstance(value, torch.dtype):
            return self._DTYPES.get(value, value)
        return value

    @contextlib.contextmanager
    def computing(self):
        """Sets the default type, too."""
        before = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)
        try:
            with self:
                yield
        finally:
            torch.set_default_dtype(before)


def lock_inexact(model, groups, inputs, more):
    """Locks the groups whose cut model does not equal the masked one.

    All groups, and every second, are cut at once, to several widths; if that
    is not exact, a half of them, down to single ones.

    The model is plain and is not changed, the groups are: ``locked_reason``
    and ``min_width``. ``inputs`` are its arguments, ``more`` others (a list),
    such as those at the length that the user has asked for. Raises ValueError
    if the model draws so many random numbers in evaluation, or puts out NaN,
    that nothing can be compared, or if it cannot be copied.
    """
    try:
        trial = _Trial(model, inputs, more)
        _lock(trial, [group for group in groups if group.locked_reason is None])
    except TrialError as error:
        raise ValueError(str(error)) from error


def _lock(trial, free):
    exact, tried = free, []
    while found := trial.failure(exact):
        # With the draw that fails, and if it does again with all
        draws = [found[1]] if [found[1]] not in tried else _ALL
        if draws in tried:
            break
        tried.append(draws)
        exact = _exact(trial, exact, draws, found)
    else:
        return
    together = []
    for group in exact:
        if found := trial.failure([*together, group]):
            group.locked_reason = f"not exact when cut with others: {found[0]}"
        else:
            together.append(group)


def _exact(trial, groups, draws, found=None):
    """Returns the groups that are exact together, or in a half of them, a
    half of that or alone; locks the others. ``found``: how they fail."""
    if not (found := found or trial.failure(groups, draws)):
        return groups
    if len(groups) > 1:
        half = len(groups) // 2
        first, second = groups[:half], groups[half:]
        return _exact(trial, first, draws) + _exact(trial, second, draws)
    (group,) = groups
    if group.min_width == 1 and group.size > 2:
        # Axes of size 1 are often taken away
        group.min_width = 2
        return _exact(trial, groups, draws)
    group.locked_reason = f"not exact when cut: {found[0]}"
    return []


def _check_copy(model, inputs):
    """Raises TrialError if a copy of a model computes something else."""
    name, twin = type(model).__name__, detached_copy(model)
    # Not what a function on the model may have kept from the last pass
    inputs = map_tensors(lambda x: 0.9 * x, inputs)

    def run(copied):
        torch.manual_seed(0)
        return tensors(copied(*copy.deepcopy(inputs)))

    with evaluating(model), evaluating(twin), torch.random.fork_rng():
        try:
            expected = run(model)
        except FORWARD_ERRORS:  # does not take such values
            return
        try:
            difference = relative_difference(expected, run(twin))
        except FORWARD_ERRORS as error:
            raise TrialError(f"a copy of {name} fails. {_REFERENCE}") from error
    if difference > MAX_NOISE:
        raise TrialError(
            f"a copy of {name} returns something else than the model "
            f"(difference {difference:.1g}, relative). {_REFERENCE}"
        )


def _swept(x):
    """Features mirrored, at levels that rise over time from below 0."""
    if not x.is_floating_point() or x.dim() < 2:
        return x.flip(-1)
    shape = [1, -1, *[1] * (x.dim() - 2)]
    return x.flip(-1) * torch.linspace(-2, 2, x.shape[1]).to(x).view(shape)


class _Trial:
    """Compares masked and cut copies of a model with random parameters."""

    def __init__(self, model, inputs, more):
        self.device = next(model.parameters()).device
        _check_copy(model, inputs)
        try:
            self._prepare(model, inputs, torch.float64)
        except FORWARD_ERRORS:  # code that computes in one type only
            self._prepare(model, inputs, torch.float32)
        self.plain = inputs
        with torch.random.fork_rng():
            self.inputs = self._variants(inputs, more)

    def _prepare(self, model, inputs, dtype):
        self.doubles = _Doubles(model, dtype)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.model = detached_copy(model).eval()
            if dtype is torch.float64:
                self.model.double()
            self._randomise()
            first, other = (self._run(self.model, inputs, i) for i in (0, 1))
            # A model may draw random numbers in evaluation too
            self.noise = relative_difference(first, other)
            again = self._run(self.model, inputs) if self.noise else first
        if relative_difference(first, again) > MAX_NOISE:
            raise TrialError(
                f"{type(model).__name__} returns something else when it is "
                "called again with the same input and seed: it keeps a state "
                "from one pass to the next. Let forward begin anew each time"
            )
        if math.isnan(self.noise):
            raise TrialError(
                f"{type(model).__name__} puts out NaN for parameters drawn at "
                "random: it cannot be told whether cutting is exact"
            )
        if self.noise > MAX_NOISE:
            raise TrialError(
                f"the output of {type(model).__name__} in evaluation mode "
                f"changes by {self.noise:.1g} (relative) from one pass to the "
                "next: with so much randomness it cannot be told whether "
                "cutting is exact"
            )

    def _variants(self, inputs, more):
        """The inputs, and those of the model's own kind that it takes: two at
        once, some of the length, and others."""
        variants = []
        batches = [x.shape[0] if x.dim() else 0 for x in tensors(inputs)]
        if set(batches) == {1} and all(map(torch.is_tensor, inputs)):
            for change in (_swept, lambda x: x.flip(-1)):
                others = [change(x) for x in inputs]
                pair = [torch.cat(both) for both in zip(inputs, others)]
                if self._takes(pair, finite=change is _swept):
                    variants.append(pair)
                    break
            if len(inputs) == 1 and inputs[0].dim() > 1:
                n_frames = inputs[0].shape[1]
                more = [[others[0][:, : n_frames - n_frames // 3]], *more]
        shape = tensors(inputs)[0].shape
        more = [x for x in more if tensors(x)[0].shape != shape]
        variants += [x for x in more if self._takes(x)]
        return [*variants[:2], inputs, *variants[2:]]

    def _takes(self, inputs, finite=False):
        """Whether the model computes something of these inputs."""
        try:
            made = self._run(self.model, inputs)
        except FORWARD_ERRORS:  # its own limits
            return False
        return not finite or all(bool(x.isfinite().all()) for x in made)

    @torch.no_grad()
    def _randomise(self):
        """Makes channels differ and no branch weak: initial values, such as
        scales of 1e-6, zeros, nearly uniform attention, hide wrong cuts."""
        for parameter in self.model.parameters():
            if parameter.numel() == max(parameter.shape, default=1):
                parameter.add_(0.3 * torch.randn_like(parameter).abs())
            elif parameter.numel():
                least = (parameter.shape[0] / parameter.numel()) ** 0.5
                std = parameter.std()
                if std == 0:
                    parameter.add_(least * torch.randn_like(parameter))
                elif std < least:
                    parameter.mul_(least / std)
        for module in self.model.modules():
            if getattr(module, "running_var", None) is not None:
                module.running_mean.normal_(std=0.3)
                module.running_var.uniform_(0.5, 1.5)

    def _run(self, model, inputs, seed=0):
        torch.manual_seed(seed)
        inputs = map_tensors(
            lambda x: x.to(self.doubles.dtype), copy.deepcopy(inputs)
        )
        with evaluating(model), self.doubles.computing():
            outputs = tensors(model(*inputs))
        scores = [x for x in outputs if x.is_floating_point() or x.is_complex()]
        if not scores:
            raise TrialError(
                f"{type(model).__name__} returns no real or complex numbers: "
                "it cannot be told whether cutting is exact. Gate the model "
                "that makes its scores"
            )
        # Integers, such as codes, may have ties in float32
        return outputs if self.doubles.dtype is torch.float64 else scores

    def failure(self, groups, draws=_ALL):
        """Returns why cutting is not exact and in which draw, or None."""
        for draw in draws:
            first, step, *widths = _DRAWS[draw]
            if not (some := groups[first::step]):
                continue
            inputs = self.inputs[draw % len(self.inputs)]
            try:
                # No difference at all: what is left may be silent
                for i in range(1 if len(draws) == 1 else 2):
                    inputs = self.plain if step > 1 or i else inputs
                    with torch.random.fork_rng():
                        torch.manual_seed(draw + 10 * i)
                        difference, limit = self._cut_and_compare(
                            some, inputs, widths
                        )
                    if difference:
                        break
            except torch.OutOfMemoryError:
                raise
            except FORWARD_ERRORS as error:
                last = traceback.extract_tb(error.__traceback__, limit=-1)[0]
                line = (str(error).splitlines() or [last.line])[0]
                return f"{type(error).__name__}: {line}", draw
            if not difference <= limit:
                reason = f"the output changes by {difference:.1g} (relative)"
                return reason, draw
        return None

    def _cut_and_compare(self, groups, inputs, widths):
        gates = {g.name: self._gate(i, g, widths) for i, g in enumerate(groups)}
        keep = {name: gate.open_channels() for name, gate in gates.items()}
        small = cut_copy(self.model, groups, keep)
        fewer = list(inputs)
        if FEATURES in keep:
            fewer[0] = fewer[0].index_select(-1, keep[FEATURES])
        made = self._run(small, fewer)  # first: it is small, and may raise
        (expected,) = self._masked(groups, gates, inputs, [0])
        difference = relative_difference(expected, made)
        limit, noise = _TOLERANCE[self.doubles.dtype], self.noise
        if noise and not difference <= limit + 4 * noise:
            # Random numbers weigh more where the output, a score perhaps, is
            # small by chance
            others = self._masked(groups, gates, inputs, range(1, 9))
            others = [relative_difference(expected, x) for x in others]
            noise = max(noise, *others)
        return difference, limit + 4 * noise

    def _gate(self, index, group, widths):
        """A gate, frozen; those with as many widths share their order."""
        step, (low, high, digit) = group.granularity, widths
        gate = NoiseGate(group.size, 1 / group.size, step).to(self.device)
        gate.rank.copy_(torch.randperm(group.size))
        least, most = -(-max(group.min_width, step) // step), group.size // step
        # A stream of one channel can be added to any other
        least, most = (max(least, 2), most) if low < high else (least, most - 1)
        more = max(0, most - least)
        low, high = int(low * more), math.ceil(high * more)
        shared = torch.Generator().manual_seed(torch.initial_seed())
        widths = low + torch.randperm(1 + high - low, generator=shared)
        place = index // len(widths) ** digit % len(widths)
        width = min(group.size, (least + int(widths[place])) * step)
        gate.min_width = min(gate.min_width, width)
        gate.freeze(width)
        return gate

    def _masked(self, groups, gates, inputs, seeds):
        """What the model puts out with gates, for each seed."""
        parts = []
        try:
            for group in groups:
                parts += attach(self.model, group, gates[group.name])
            return [self._run(self.model, inputs, seed) for seed in seeds]
        finally:
            for part in reversed(parts):
                part.take()
