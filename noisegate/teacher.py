"""A trained model that teaches one that gets smaller.

Authors
 * The noisegate developers, 2026
"""

import copy
import functools
import types

import torch
from speechbrain.dataio.dataio import length_to_mask

from noisegate.gate import check_number
from noisegate.pretrained import start_from
from noisegate.probe import tensors


def _divergence(student, teacher, temperature):
    """Kullback-Leibler divergence of classes, along the last axis."""
    student, teacher = student / temperature, teacher / temperature
    log, target = student.log_softmax(-1), teacher.log_softmax(-1)
    return temperature**2 * (target.exp() * (target - log)).sum(-1)


def _cross_entropy(student, teacher, temperature):
    """Binary cross-entropy of scores."""
    student, teacher = student / temperature, teacher / temperature
    entropy = torch.nn.functional.binary_cross_entropy_with_logits
    made = entropy(student, teacher.sigmoid(), reduction="none")
    return temperature**2 * made


def _cosine(student, teacher, temperature):
    return 1 - torch.nn.functional.cosine_similarity(student, teacher, -1)


def _squared(student, teacher, temperature):
    return (student - teacher).square().mean(-1)


_DISTANCES = {
    "kl": _divergence,
    "bce": _cross_entropy,
    "cosine": _cosine,
    "mse": _squared,
}


class Teacher:
    """A trained model whose outputs are a second target (Hinton et al., 2015).

    It runs the Brain's own ``compute_forward`` with its modules in evaluation,
    on the batch as the student saw it: augmentation draws the same numbers. It
    is neither trained nor saved nor counted. The Brain asks it in
    :meth:`noisegate.GatedBrain.taught`.

    In the YAML it stands behind ``modules`` and before what changes them.

    Arguments
    ---------
    modules : dict of str to torch.nn.Module
        Those of the recipe, of which it takes copies.
    folder : str
        Where :func:`noisegate.start_from` finds their state; None for no
        teacher.
    weight : float
        Share of the distance in the loss, in [0, 1].
    temperature : float
        Outputs are divided by it, for "kl" and "bce".
    distance : str or callable
        "kl" for scores of classes or their logarithms, "bce" for scores of
        frames, "cosine" and "mse" for embeddings; or a function of what student
        and teacher return, whose values are averaged.
    output : int
        Which of the tensors is compared that ``compute_forward`` returns.

    Raises
    ------
    ValueError
        For a weight, temperature or distance out of range.

    Example
    -------
    >>> teacher = Teacher({}, distance="kl")
    >>> teacher.distance(
    ...     torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]])
    ... ).item()
    0.0
    """

    def __init__(
        self,
        modules,
        folder=None,
        weight=0.5,
        temperature=1.0,
        distance="kl",
        output=0,
    ):
        check_number("weight", weight, 0, 1)
        check_number("temperature", temperature, 0, above=True)
        if not (callable(distance) or distance in _DISTANCES):
            raise ValueError(
                f"distance must be callable or of {list(_DISTANCES)}, got "
                f"'{distance}'"
            )
        self.distance = distance
        if not callable(distance):
            self.distance = functools.partial(
                _DISTANCES[distance], temperature=temperature
            )
        self.weight, self.output = weight, output
        self.modules = {} if folder is None else copy.deepcopy(modules)
        start_from(folder, self.modules)
        for module in self.modules.values():
            module.eval().requires_grad_(False)
        self._modules = None  # those of the Brain, its own where it has them

    def begin(self, brain, batch):
        """Notes the batch of a step."""
        if self._modules is None:
            own = {k: m.to(brain.device) for k, m in self.modules.items()}
            self._modules = torch.nn.ModuleDict({**brain.modules, **own})
            known = vars(brain.hparams)
            own = {k: v for k, v in own.items() if k in known}
            self._hparams = types.SimpleNamespace(**{**known, **own})
        self._twin = copy.copy(brain)
        self._twin.modules, self._twin.hparams = self._modules, self._hparams
        self._batch = copy.copy(batch)

    def teach(self, loss, predictions, stage, lens=None):
        """Returns the loss with the distance between what student and teacher
        return; ``lens`` are the relative lengths, without padding."""
        self._twin.seed_step()  # it draws what the student has drawn
        with torch.no_grad():
            target = self._twin.compute_forward(self._batch, stage)
        student = tensors(predictions)[self.output].float()
        target = tensors(target)[self.output].float()
        if student.shape != target.shape:
            raise ValueError(
                f"the student returns {list(student.shape)}, its teacher "
                f"{list(target.shape)}"
            )
        distance = self.distance(student, target)
        if lens is not None:
            mask = length_to_mask(lens * distance.shape[1], distance.shape[1])
            mask = mask.to(distance)
            mask = mask.view(*mask.shape, *[1] * (distance.dim() - 2))
            distance = distance * mask * (mask.numel() / mask.sum())
        return (1 - self.weight) * loss + self.weight * distance.mean()
