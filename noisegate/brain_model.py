"""The modules of a Brain as one model, which runs its ``compute_forward``.

Most recipes call several modules in ``compute_forward``, and front-ends,
searchers or the modules themselves through ``self.hparams``. Groups of
channels, costs and cuts are found in what the recipe computes, whatever calls
what.

Authors
 * The noisegate developers, 2026
"""

import contextlib
import copy
import inspect
import itertools
import types

import speechbrain as sb
import torch
from speechbrain.augment.augmenter import Augmenter
from speechbrain.dataio.dataloader import LoopedLoader, make_dataloader
from speechbrain.processing.features import InputNormalization
from speechbrain.utils.logger import get_logger

from noisegate.gates import layers_run
from noisegate.probe import FORWARD_ERRORS, evaluating, tensors
from noisegate.trial import MAX_NOISE, relative_difference

logger = get_logger(__name__)

_STAGES = (sb.Stage.TRAIN, sb.Stage.VALID)


class BrainModel(torch.nn.ModuleDict):
    """All modules of a Brain, not wrapped yet, as one model, which reads the
    arguments of its ``compute_forward``.

    A deep copy holds copies of the modules, and of those in the hparams, which
    may be the same ones or contain them; it runs the Brain's own
    ``compute_forward`` with them. Data augmentation does nothing.
    """

    def __init__(self, brain):
        super().__init__(
            {k: _without_augmentation(m) for k, m in brain.modules.items()}
        )
        self.beside = {
            key: _without_augmentation(value)
            for key, value in vars(brain.hparams).items()
            if isinstance(value, torch.nn.Module)
        }

        def run(model, arguments):  # a function: copies do not copy the Brain
            twin = copy.copy(brain)
            hparams = {**vars(brain.hparams), **model.beside}
            twin.modules, twin.hparams = model, types.SimpleNamespace(**hparams)
            twin.device = next(model.parameters()).device
            return twin.compute_forward(*arguments)

        self._run = run

    def forward(self, *arguments):
        """Returns what the Brain's compute_forward returns."""
        with contextlib.ExitStack() as modes:
            for module in self.beside.values():
                modes.enter_context(evaluating(module))
            return self._run(self, arguments)

    def _apply(self, fn, recurse=True):
        # Windows, filters and statistics are attributes without a name
        for part in self.parts():
            for key, value in vars(part).items():
                if torch.is_tensor(value):
                    setattr(part, key, fn(value))
        for module in self.beside.values():
            module._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def parts(self):
        """Returns all modules (set), those of the hparams too."""
        tops = (self, *self.beside.values())
        return {part for top in tops for part in top.modules()}

    def replacements(self, cut):
        """Returns what takes the place of each module (dict) in a cut copy."""
        modules = [*self.values(), *self.beside.values()]
        pairs = zip(modules, [*cut.values(), *cut.beside.values()])
        return {x: y for x, y in pairs if not isinstance(x, Augmenter)}


def _without_augmentation(value):
    """A module; an augmenter that does nothing for one that augments."""
    if isinstance(value, Augmenter):
        value = copy.copy(value)
        value.augment_prob = -1.0
    return value


class _Called(Exception):
    """Brings the arguments of a call."""


def _arguments(brain, batch, stage):
    """What a Brain gives its compute_forward for a batch (list)."""

    def caught(*args, **kwargs):
        raise _Called(args, kwargs)

    twin = copy.copy(brain)
    twin.compute_forward = caught
    try:
        twin.evaluate_batch(batch, sb.Stage.VALID)
    except _Called as call:
        args, kwargs = call.args
        signature = inspect.signature(brain.compute_forward)
        return [
            stage if isinstance(value, sb.Stage) else value
            for value in signature.bind(*args, **kwargs).args
        ]
    raise RuntimeError(
        "evaluate_batch must call compute_forward, which it does not: "
        "noisegate cannot see how the modules are called"
    )


def _batches(dataset, loader_kwargs):
    """The first item of a dataset, the second, and both in one batch."""
    if isinstance(dataset, LoopedLoader):
        dataset = dataset.loader
    if isinstance(dataset, torch.utils.data.DataLoader):
        loader_kwargs = {"collate_fn": dataset.collate_fn}
        dataset = dataset.dataset
    kept = {k: v for k, v in loader_kwargs.items() if k == "collate_fn"}
    for size, count in ((1, 2), (2, 1)):
        loader = make_dataloader(dataset, batch_size=size, **kept)
        yield from itertools.islice(loader, count)


def _seconds(batch, sample_rate):
    """Seconds of the longest signal of a batch."""
    signals = [x for x in tensors(batch) if x.is_floating_point()]
    lengths = [x.shape[1] for x in signals if x.dim() > 1]
    if not lengths:
        raise ValueError(
            "the first batch of the training data has no signals (batch, "
            "samples): costs per second of audio cannot be told"
        )
    return max(lengths) / sample_rate


@contextlib.contextmanager
def _on_cpu(model):
    """Moves all modules to the CPU, whose sums are the same each time, and
    back, with what was put on them."""
    homes = {
        module: parameter.device
        for module in (*model.values(), *model.beside.values())
        for parameter in itertools.islice(module.parameters(), 1)
    }
    model.cpu()
    try:
        yield
    finally:
        for module, device in homes.items():
            module.to(device)


def _outputs(model, inputs, seed):
    with evaluating(model), torch.random.fork_rng():
        torch.manual_seed(seed)
        return tensors(model(*copy.deepcopy(inputs)))


@contextlib.contextmanager
def _statistics(model):
    """Lets global normalizers that have no statistics yet, without which they
    fail, have those of the first pass, for a while."""
    empty = [
        part
        for part in model.parts()
        if isinstance(part, InputNormalization) and not part.count
    ]
    before = [dict(vars(part)) for part in empty]

    def collect(part, args):
        part.training = not part.count

    with contextlib.ExitStack() as hooks:
        for part, values in zip(empty, before):
            hooks.callback(vars(part).update, values)
            hooks.enter_context(part.register_forward_pre_hook(collect))
        yield


def find_gates(brain, factory, dataset, loader_kwargs=None):
    """Puts gates on all modules of a Brain: returns the gates of a BrainModel.

    Its ``compute_forward`` is run in evaluation mode for the first items of
    the data: as in training, where losses of their own may have layers of
    their own; as in validation, if the recipe makes the training data in it.
    ``factory`` makes the gates. Raises ValueError if no stage runs or if all
    draw random numbers.
    """
    model, reasons = BrainModel(brain), []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        batches = list(_batches(dataset, loader_kwargs or {}))
    seconds = _seconds(batches[0], getattr(brain.hparams, "sample_rate", 16000))
    with _on_cpu(model), _statistics(model):
        for stage in _STAGES:
            examples = [_arguments(brain, batch, stage) for batch in batches]
            try:
                outputs = [
                    _outputs(model, examples[0], seed) for seed in (0, 1)
                ]
                if relative_difference(*outputs) <= MAX_NOISE:
                    break
                reasons.append(f"{stage.name}: its result is random")
            except FORWARD_ERRORS as error:
                reasons.append(f"{stage.name}: {type(error).__name__}: {error}")
        else:
            raise ValueError(
                f"compute_forward of {type(brain).__name__} cannot be looked "
                f"at: {'; '.join(reasons)}"
            )
        called = layers_run(model, copy.deepcopy(examples[0]))
        model.beside = {  # not, say, a language model that is not called
            key: module
            for key, module in model.beside.items()
            if not called.union(model.modules()).isdisjoint(module.modules())
        }
        logger.info(
            f"Gates are found in compute_forward of stage {stage.name}, for "
            f"{seconds:.2f} s of audio"
        )
        gates = factory(
            model=model,
            example=examples[0],
            more_examples=examples[1:],
            segment_s=seconds,
        )
    logger.info(f"Groups of {type(brain).__name__}:\n{gates!r}")
    return gates
