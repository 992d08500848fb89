"""Files of scored trials.

Authors
 * The noisegate developers, 2026
"""

import math
from typing import NamedTuple

import numpy as np
import torch

from noisegate.evaluation.files import read_member, write_atomically
from noisegate.evaluation.metrics import _check_values

_KEYS = {"bonafide": 1, "spoof": 0}


def write_scores(path, ids, attacks, labels, scores):
    """Writes scores in the format of the ASVspoof 2019 evaluation.

    One line per utterance: `<utterance> <attack> <label> <score>`, label
    "bonafide" or "spoof", attack "-" for bona fide.

    Arguments
    ---------
    path : str
        Of the file, which is overwritten.
    ids : list of str
        Identifiers of the utterances.
    attacks : list of str
        Attack of each utterance.
    labels : list of int
        1 for bona fide, 0 for spoof.
    scores : list of float
        Scores, higher = bona fide. Kept to the last bit.

    Example
    -------
    >>> import os, tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "scores.txt")
    >>> write_scores(path, ["LA_E_1"], ["A07"], [0], [-1.25])
    >>> print(open(path).read())
    LA_E_1 A07 spoof -1.25
    """
    names = {value: key for key, value in _KEYS.items()}
    with open(path, "w", encoding="utf-8") as out:
        for row in zip(ids, attacks, labels, scores, strict=True):
            utterance, attack, label, score = row
            for field in (utterance, attack):
                if not field or len(str(field).split()) != 1:
                    raise ValueError(
                        "ids and attacks must be words without spaces, got "
                        f"{field!r}"
                    )
            line = f"{utterance} {attack} {names[int(label)]} {float(score)!r}"
            out.write(line + "\n")


def read_scores(path):
    """Reads a file of `write_scores`, or one of the challenge.

    Arguments
    ---------
    path : str
        Of the file.

    Returns
    -------
    ids : list of str
        Identifiers of the utterances.
    attacks : list of str
        Attack of each utterance, "-" for bona fide.
    labels : list of int
        1 for bona fide, 0 for spoof.
    scores : list of float
        Higher = bona fide.

    Raises
    ------
    ValueError
        Names file and line that cannot be read, or an utterance that occurs
        twice.
    """
    rows, seen = [], set()
    with open(path, encoding="utf-8") as fin:
        for number, line in enumerate(fin, 1):
            row = line.split()
            if not row:
                continue
            try:
                utterance, attack, label, score = row
                score = float(score)
                good = label in _KEYS and math.isfinite(score)
            except ValueError:
                good = False
            if not good:
                raise ValueError(
                    f"{path}, line {number}: expected '<utterance> <attack> "
                    "<label> <score>' with label bonafide or spoof and a "
                    f"finite score, got '{line.strip()}'"
                )
            if utterance in seen:
                raise ValueError(
                    f"{path}, line {number}: {utterance} occurs a second time"
                )
            seen.add(utterance)
            rows.append((utterance, attack, _KEYS[label], score))
    if not rows:
        raise ValueError(f"{path} is empty, expected one line per utterance")
    ids, attacks, labels, scores = (list(column) for column in zip(*rows))
    return ids, attacks, labels, scores


class Trials(NamedTuple):
    """The scored trials of a test, equal ones together, in a fixed order.

    Arguments
    ---------
    scores : array (rows,)
        Finite, higher = target.
    labels : array (rows,)
        1 for target, 0 for non-target.
    conditions : array (rows,)
        Strings: what makes trials depend on each other, as the speaker.
    counts : array (rows,)
        How many trials a row stands for.
    """

    scores: np.ndarray
    labels: np.ndarray
    conditions: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, scores, labels, conditions, counts=None):
        """Collects single trials.

        Arguments
        ---------
        scores : array (trials,)
            See above; so are `labels` and `conditions`.
        labels : array (trials,)
            See above.
        conditions : array (trials,)
            Strings; white space in them becomes "_".
        counts : array (trials,)
            Integers, 1 or more; None: all 1.

        Returns
        -------
        Trials
            Sorted by condition, label and score.

        Raises
        ------
        ValueError
            If the arrays are not of one length, or what is in them is not as
            above.

        Example
        -------
        >>> Trials.of([2.0, 0.5, 2.0], [1, 0, 1], ["a", "a", "a"]).counts
        array([1, 2])
        """
        scores, labels = np.asarray(scores, float), np.asarray(labels)
        _check_values(torch.as_tensor(scores), torch.as_tensor(labels))
        conditions = ["_".join(str(name).split()) or "_" for name in conditions]
        counts = np.ones(len(scores), int) if counts is None else counts
        counts = np.asarray(counts)
        sizes = [len(x) for x in (scores, labels, conditions, counts)]
        if len(set(sizes)) > 1 or not len(scores):
            raise ValueError(
                "scores, labels, conditions and counts must be equally long "
                f"and not empty, got {sizes}"
            )
        names, of = np.unique(conditions, return_inverse=True)
        if not np.issubdtype(counts.dtype, np.integer) or counts.min() < 1:
            raise ValueError(f"counts must be integers >= 1, got {counts}")
        rows = np.stack([of, labels, scores])
        rows, where = np.unique(rows, axis=1, return_inverse=True)
        counts = np.bincount(where, counts).astype(int)
        kinds = rows[:2].astype(int)
        return cls(rows[2], kinds[1], names[kinds[0]], counts)


def write_trials(path, trials):
    """Writes trials, by which tests of different systems can be compared.

    One line for all trials of a condition, label and score:
    `<condition> <label> <score> <count>`, label 1 for target.

    Arguments
    ---------
    path : str
        Of the file, which is overwritten.
    trials : Trials
        The trials.

    Example
    -------
    >>> import os, tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "trials.txt")
    >>> write_trials(path, Trials.of([2, 0, 2], [1, 0, 1], ["x", "x", "x"]))
    >>> print(open(path).read())
    x 0 0.0 1
    x 1 2.0 2
    """
    rows = zip(trials.conditions, trials.labels, trials.scores, trials.counts)
    lines = [f"{c} {label} {float(x)!r} {n}\n" for c, label, x, n in rows]
    write_atomically(path, "".join(lines))


def read_trials(path):
    """Reads a file of `write_trials`.

    Arguments
    ---------
    path : pathlib.Path or zipfile.Path
        Of the file.

    Returns
    -------
    Trials

    Raises
    ------
    ValueError
        Names file and line that cannot be read.
    """
    columns = [], [], [], []
    for number, line in enumerate(read_member(path).splitlines(), 1):
        try:
            condition, label, score, count = line.split()
            row = float(score), int(label), condition, int(count)
        except ValueError:
            raise ValueError(
                f"{path}, line {number}: expected '<condition> <label> "
                f"<score> <count>', got '{line.strip()}'"
            )
        for column, value in zip(columns, row):
            column.append(value)
    try:
        return Trials.of(*columns)
    except ValueError as error:
        raise ValueError(f"{path}: {error}")
