"""Decisions between classes, and their error rate.

Authors
 * The noisegate developers, 2026
"""

import collections
import csv
import io

import numpy as np
from scipy import stats

from noisegate.evaluation.files import write_atomically
from noisegate.evaluation.trials import Trials, write_trials

_N_DRAWS = 2000


class ClassScores:
    """Collects decisions between classes.

    Example
    -------
    >>> import torch
    >>> scores = ClassScores()
    >>> made = torch.tensor([[2.0, 1.0], [0.0, 3.0], [1.0, 0.0], [4.0, 0.0]])
    >>> labels = torch.tensor([0, 1, 1, 0])
    >>> scores.append(["a", "b", "c", "d"], made, labels, ["x", "x", "y", "z"])
    >>> scores.summarize()
    {'error_rate': 25.0}
    """

    def __init__(self):
        self.ids, self.speakers = [], []
        self.decisions, self.labels = [], []

    def append(self, ids, scores, labels, speakers):
        """Adds a batch.

        Arguments
        ---------
        ids : list of str
            Identifiers of the clips.
        scores : torch.Tensor (batch, n_classes)
            The greatest one is the decision.
        labels : torch.Tensor (batch,)
            Indices of the right classes.
        speakers : list of str
            Speaker of each clip.

        Raises
        ------
        ValueError
            If sizes differ or a score is not finite.
        """
        sizes = [len(x) for x in (ids, scores, labels, speakers)]
        if len(set(sizes)) > 1:
            raise ValueError(
                "ids, scores, labels and speakers must be equally long, got "
                f"{sizes}"
            )
        for name, finite in zip(ids, scores.isfinite().all(-1).tolist()):
            if not finite:
                raise ValueError(f"the scores of '{name}' are not finite")
        self.ids += ids
        self.speakers += speakers
        self.decisions += scores.argmax(-1).tolist()
        self.labels += labels.tolist()

    def _by_speaker(self):
        """Numbers of errors and of clips of each speaker."""
        errors, clips = collections.Counter(), collections.Counter()
        rows = zip(self.speakers, self.decisions, self.labels)
        for speaker, decision, label in rows:
            errors[speaker] += decision != label
            clips[speaker] += 1
        return np.array([(errors[name], clips[name]) for name in clips]).T

    def summarize(self):
        """Returns the share of wrong decisions (dict): "error_rate", in
        percent."""
        errors, clips = self._by_speaker()
        return {"error_rate": float(100 * errors.sum() / clips.sum())}

    def intervals(self):
        """Returns the 95 % interval of the error rate (dict of list of two
        floats): percentiles over speakers that are drawn with replacement."""
        made = stats.bootstrap(
            self._by_speaker(),
            lambda errors, clips, axis: (
                100 * errors.sum(axis) / clips.sum(axis)
            ),
            paired=True,
            vectorized=True,
            n_resamples=_N_DRAWS,
            method="percentile",
            random_state=np.random.RandomState(0),
        )
        return {"error_rate": [float(x) for x in made.confidence_interval]}

    def write_trials(self, path):
        """Writes how many decisions of each speaker are wrong (label 1) and
        right (0), all of score 0; see `noisegate.evaluation.scores`."""
        pairs = zip(self.decisions, self.labels)
        wrong = [int(decision != label) for decision, label in pairs]
        trials = Trials.of(np.zeros(len(wrong)), wrong, self.speakers)
        write_trials(path, trials)

    def write(self, path, encoder):
        """Writes a CSV of all decisions.

        Arguments
        ---------
        path : str
            The file.
        encoder : speechbrain.dataio.encoder.CategoricalEncoder
            Has the names of the classes.
        """
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["id", "speaker", "label", "decision"])
        names = encoder.ind2lab
        for name, speaker, label, decision in zip(
            self.ids, self.speakers, self.labels, self.decisions
        ):
            writer.writerow([name, speaker, names[label], names[decision]])
        write_atomically(path, out.getvalue())
