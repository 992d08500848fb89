"""Cuts groups of a model on trial and locks those for which it is not exact.

What :mod:`noisegate.probe` sees is which features depend on which channels;
whether the model still computes the same with fewer of them is found out by
cutting copies of it. Code between the layers may count channels, reshape them
with constants or draw random numbers for them.

Authors
 * The noisegate developers, 2026
"""

import copy
import math

import torch

from noisegate.attach import attach
from noisegate.cut import cut, detached_copy, kept_features
from noisegate.gate import NoiseGate
from noisegate.probe import FORWARD_ERRORS, tensors
from noisegate.rules.features import FEATURES

_TOLERANCE = 2e-5  # of float32 sums over some layers, relative to the output
MAX_NOISE = 1e-3  # of models that draw random numbers in evaluation


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
        if x.numel():
            scale = x.masked_fill(x.isinf(), 0).abs().max().clamp(min=1e-6)
            gap = (x - y).abs().masked_fill(x == y, 0)  # inf - inf is NaN
            differences.append((gap.max() / scale).cpu())
    # The max of Python would pass over NaN
    return float(torch.stack([x.float() for x in differences]).max())


def lock_inexact(model, groups, inputs):
    """Locks the groups whose cut model does not equal the masked one.

    All groups, and every second of them, are cut at once to random widths, all
    to their smallest ones too; if that is not exact, one after the other.

    The model is plain and is not changed, the groups are: ``locked_reason``
    and ``min_width``. Raises ValueError if the model draws so many random
    numbers in evaluation, or puts out NaN, that nothing can be compared.
    """
    trial = _Trial(model, inputs)
    _lock(trial, [group for group in groups if group.locked_reason is None])


def _lock(trial, free):
    if trial.failure(free) is None:
        return
    exact = []
    for group in free:
        failure = trial.failure([group])
        if failure is not None and group.min_width == 1 < group.size:
            # Axes of size 1 are often taken away
            group.min_width = 2
            failure = trial.failure([group])
        if failure is None:
            exact.append(group)
        else:
            group.locked_reason = f"not exact when cut: {failure}"
    if trial.failure(exact) is None:
        return
    together = []
    for group in exact:
        failure = trial.failure([*together, group])
        if failure is None:
            together.append(group)
        else:
            group.locked_reason = f"not exact when cut with others: {failure}"


class _Trial:
    """Compares masked and cut copies of a model with random parameters."""

    def __init__(self, model, inputs):
        self.inputs = inputs
        self.device = next(model.parameters()).device
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.model = detached_copy(model).eval()
            self._randomise()
            outputs = [self._run(self.model, inputs, seed) for seed in (0, 1)]
        # A model may draw random numbers in evaluation too
        self.noise = relative_difference(*outputs)
        if math.isnan(self.noise):
            raise ValueError(
                f"{type(model).__name__} puts out NaN for parameters drawn at "
                "random: it cannot be told whether cutting is exact"
            )
        if self.noise > MAX_NOISE:
            raise ValueError(
                f"the output of {type(model).__name__} in evaluation mode "
                f"changes by {self.noise:.1g} (relative) from one pass to the "
                "next: with so much randomness it cannot be told whether "
                "cutting is exact"
            )

    @torch.no_grad()
    def _randomise(self):
        """Makes channels differ: initial values hide wrong cuts."""
        for parameter in self.model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
            elif not parameter.any():
                parameter.normal_(std=0.1)
        for module in self.model.modules():
            if getattr(module, "running_var", None) is not None:
                module.running_mean.normal_(std=0.3)
                module.running_var.uniform_(0.5, 1.5)

    @staticmethod
    @torch.no_grad()
    def _run(model, inputs, seed=0):
        torch.manual_seed(seed)
        outputs = tensors(model(*copy.deepcopy(inputs)))
        compared = [x for x in outputs if x.is_floating_point()]
        compared += [x for x in outputs if x.is_complex()]
        if not compared:
            raise ValueError(
                f"{type(model).__name__} returns no real or complex numbers: "
                "it cannot be told whether cutting is exact. Gate the model "
                "that makes its scores"
            )
        return compared

    def failure(self, groups):
        """Returns why cutting some groups is not exact, or None if it is."""
        # At the smallest widths a wrong channel may be hidden, or a stream be
        # constant; where all are cut, one that is wrong alone
        draws = [groups, groups, groups[::2], groups[1::2]]
        for seed, cut_groups in enumerate([groups, *filter(None, draws)]):
            try:
                with torch.random.fork_rng():
                    torch.manual_seed(seed)
                    difference, noise = self._cut_and_compare(
                        cut_groups, smallest=seed == 0
                    )
            except torch.OutOfMemoryError:
                raise
            except FORWARD_ERRORS as error:
                first = (str(error).splitlines() or [""])[0]
                return f"{type(error).__name__}: {first}"
            if not difference <= _TOLERANCE + 4 * noise:
                return f"the output changes by {difference:.1g} (relative)"
        return None

    def _cut_and_compare(self, groups, smallest):
        masked = detached_copy(self.model)
        keep = {}
        for group in groups:
            step = group.granularity
            gate = NoiseGate(group.size, 1 / group.size, step)
            gate.rank.copy_(torch.randperm(group.size))
            least = -(-max(group.min_width, step) // step)
            most = least if smallest else max(least, group.size // step - 1)
            width = int(torch.randint(least, most + 1, ())) * step
            gate.min_width = min(gate.min_width, width)
            gate.freeze(width)
            gate.to(self.device).refresh()
            attach(masked, group, gate)
            keep[group.name] = gate.open_channels()
        small = cut(detached_copy(self.model), kept_features(groups, keep))
        inputs = list(self.inputs)
        if FEATURES in keep:
            inputs[0] = inputs[0].index_select(-1, keep[FEATURES])
        expected = self._run(masked, self.inputs)
        noise = self.noise
        if noise:
            # Random numbers weigh more where the output, a score perhaps, is
            # small by chance
            others = (
                self._run(masked, self.inputs, seed) for seed in (1, 2, 3)
            )
            noise = max(
                noise, *(relative_difference(expected, x) for x in others)
            )
        return relative_difference(expected, self._run(small, inputs)), noise
