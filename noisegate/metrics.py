"""Detection metrics for frame and utterance scores.

Everywhere: a score is a number that is *higher* for the target class (speech,
bona fide), a label is 1 for target and 0 for non-target, and a threshold t
accepts a trial if its score is >= t. With this,

    p_miss(t) = fraction of the targets with score < t,
    p_fa(t)   = fraction of the non-targets with score >= t.

Trials with equal scores are accepted or rejected together. All counts are
integers and all results Python floats, so values may go into checkpoint
meta-data as they are. Everything costs one sort.

Authors
 * The noisegate developers, 2026
"""

import torch


def roc_points(scores, labels):
    """The operating points (p_fa, p_miss) that thresholds can reach.

    One point per distinct score and a first one, at threshold +inf, that
    rejects everything: from (p_fa, p_miss) = (0, 1) to (1, 0). Fawcett, "An
    introduction to ROC analysis", Pattern Recognition Letters 27, 2006.

    Arguments
    ---------
    scores : torch.Tensor (trials,)
        Finite scores, higher = target. Arrays and lists are accepted.
    labels : torch.Tensor (trials,)
        1 for target, 0 for non-target; both must occur.

    Returns
    -------
    p_fa : torch.Tensor (points,)
        False alarm rate, non-decreasing, 64 bit.
    p_miss : torch.Tensor (points,)
        Miss rate, non-increasing, 64 bit.
    thresholds : torch.Tensor (points,)
        The thresholds of the points, decreasing.

    Example
    -------
    >>> p_fa, p_miss, thresholds = roc_points([3.0, 2.0, 2.0], [1, 1, 0])
    >>> p_fa.tolist(), p_miss.tolist()
    ([0.0, 0.0, 1.0], [1.0, 0.5, 0.0])
    >>> thresholds.tolist()
    [inf, 3.0, 2.0]
    """
    hits, alarms, thresholds = _accepted(*_checked(scores, labels))
    p_fa = alarms.double() / alarms[-1]
    p_miss = (hits[-1] - hits).double() / hits[-1]
    return p_fa, p_miss, thresholds


def eer(scores, labels):
    """Equal error rate, in percent.

    The ROC points are joined by straight lines (the ROC itself, not its
    convex hull), and

        EER = 100 p_fa  where  p_fa = p_miss

    on that line. It is the same for scores under any increasing map. 0: some
    threshold separates the classes; 50: as good as scores that ignore the
    class; 100: every target is below every non-target. Martin et al., "The
    DET curve in assessment of detection task performance", Eurospeech 1997.

    Arguments
    ---------
    scores : torch.Tensor (trials,)
        Finite scores, higher = target.
    labels : torch.Tensor (trials,)
        1 for target, 0 for non-target; both must occur.

    Returns
    -------
    eer : float
        Percent, 0 to 100.

    Example
    -------
    >>> eer([0.9, 0.8, 0.3, 0.7, 0.2, 0.1], [1, 1, 1, 0, 0, 0])
    33.33...
    """
    p_fa, p_miss, _ = roc_points(scores, labels)
    gap = p_fa - p_miss  # increases strictly from -1 to 1
    k = int(torch.searchsorted(gap, torch.zeros_like(gap[:1])))
    step = -gap[k - 1] / (gap[k] - gap[k - 1])
    return 100.0 * float(p_fa[k - 1] + step * (p_fa[k] - p_fa[k - 1]))


def roc_auc(scores, labels):
    """Area under the ROC curve.

        AUC = P(s1 > s0) + P(s1 = s0) / 2

    for a random target score s1 and non-target score s0 (the Mann-Whitney
    statistic), counted exactly. 1: separated; 0.5: scores ignore the class;
    0: every target is below every non-target. Fawcett 2006, as above.

    Arguments
    ---------
    scores : torch.Tensor (trials,)
        Finite scores, higher = target.
    labels : torch.Tensor (trials,)
        1 for target, 0 for non-target; both must occur.

    Returns
    -------
    auc : float
        0 to 1.

    Example
    -------
    >>> roc_auc([0.9, 0.5, 0.5, 0.1], [1, 1, 0, 0])
    0.875
    """
    hits, alarms, _ = _accepted(*_checked(scores, labels))
    doubled = torch.sum(alarms.diff() * (hits[1:] + hits[:-1]))
    return int(doubled) / (2 * int(hits[-1]) * int(alarms[-1]))


def min_dcf(scores, labels, p_target=0.5, c_miss=1.0, c_fa=1.0):
    """Normalised detection cost at the best threshold.

        DCF(t) = (c_miss p_target p_miss(t) + c_fa (1 - p_target) p_fa(t)) / d
        d      = min(c_miss p_target, c_fa (1 - p_target))
        minDCF = min over t of DCF(t)

    The divisor d is the cost of the better of "accept all" and "reject all".
    0: separated; 1: no threshold beats deciding without looking. It measures
    how well the scores discriminate; for the loss through a badly set
    threshold compare `act_dcf`. The defaults weigh both errors alike, so that
    minDCF = min (p_miss + p_fa) whatever the share of speech in the data.
    (The 0.75 p_miss + 0.25 p_fa of NIST's speech activity evaluations is
    p_target = 0.75, then times d = 0.25.) Brümmer and du Preez, "Application-
    independent evaluation of speaker detection", Computer Speech and Language
    20, 2006.

    Arguments
    ---------
    scores : torch.Tensor (trials,)
        Finite scores, higher = target.
    labels : torch.Tensor (trials,)
        1 for target, 0 for non-target; both must occur.
    p_target : float
        Prior probability of the target class in use, between 0 and 1.
    c_miss : float
        Cost of a miss, positive.
    c_fa : float
        Cost of a false alarm, positive.

    Returns
    -------
    cost : float
        0 to 1.

    Example
    -------
    >>> min_dcf([0.9, 0.8, 0.3, 0.7, 0.2, 0.1], [1, 1, 1, 0, 0, 0])
    0.33...
    """
    p_fa, p_miss, _ = roc_points(scores, labels)
    return float(_dcf(p_fa, p_miss, p_target, c_miss, c_fa).min())


def act_dcf(scores, labels, threshold, p_target=0.5, c_miss=1.0, c_fa=1.0):
    """Normalised detection cost at a given threshold: DCF(t) of `min_dcf`.

    0: no errors; 1: as costly as deciding without looking; above 1: worse
    than that. Never below `min_dcf` of the same scores. Choose the threshold
    on other data than these.

    Arguments
    ---------
    scores : torch.Tensor (trials,)
        Finite scores, higher = target.
    labels : torch.Tensor (trials,)
        1 for target, 0 for non-target; both must occur.
    threshold : float
        Scores >= this are accepted.
    p_target : float
        Prior probability of the target class in use, between 0 and 1.
    c_miss : float
        Cost of a miss, positive.
    c_fa : float
        Cost of a false alarm, positive.

    Returns
    -------
    cost : float
        0 or more.

    Example
    -------
    >>> act_dcf([0.9, 0.8, 0.3, 0.1], [1, 1, 1, 0], threshold=0.05)
    1.0
    """
    accepted, labels = _decided(scores, labels, threshold)
    p_miss = (~accepted)[labels].double().mean()
    p_fa = accepted[~labels].double().mean()
    return float(_dcf(p_fa, p_miss, p_target, c_miss, c_fa))


def f1_threshold(scores, labels):
    """The threshold with the highest F1 (see `precision_recall_f1`).

    Always one of the scores; the highest one if several are as good.

    Arguments
    ---------
    scores : torch.Tensor (trials,)
        Finite scores, higher = target.
    labels : torch.Tensor (trials,)
        1 for target, 0 for non-target; both must occur.

    Returns
    -------
    threshold : float
        In units of the scores.

    Example
    -------
    >>> f1_threshold([0.9, 0.8, 0.3, 0.1], [1, 1, 0, 0])
    0.8
    """
    hits, alarms, thresholds = _accepted(*_checked(scores, labels))
    f1 = 2.0 * hits.double() / (hits + alarms + hits[-1])
    return float(thresholds[(f1 == f1.max()).nonzero()[0]])


def precision_recall_f1(scores, labels, threshold):
    """Precision, recall and their harmonic mean at a threshold.

        precision = hits / accepted
        recall    = hits / targets
        F1        = 2 hits / (accepted + targets)

    where hits are the accepted targets. All are 1 without errors. If nothing
    is accepted all are 0 (precision by convention); if everything is,
    precision is the share of targets and recall 1. Unlike the other metrics,
    precision and F1 change with the share of targets in the data. van
    Rijsbergen, "Information Retrieval", 2nd ed., 1979.

    Arguments
    ---------
    scores : torch.Tensor (trials,)
        Finite scores, higher = target.
    labels : torch.Tensor (trials,)
        1 for target, 0 for non-target; both must occur.
    threshold : float
        Scores >= this are accepted.

    Returns
    -------
    precision : float
        0 to 1.
    recall : float
        0 to 1.
    f1 : float
        0 to 1.

    Example
    -------
    >>> precision_recall_f1([0.9, 0.8, 0.3, 0.1], [1, 0, 1, 0], 0.5)
    (0.5, 0.5, 0.5)
    """
    accepted, labels = _decided(scores, labels, threshold)
    n_hits = int((accepted & labels).sum())
    n_accepted, n_targets = int(accepted.sum()), int(labels.sum())
    return (
        n_hits / max(n_accepted, 1),
        n_hits / n_targets,
        2 * n_hits / (n_accepted + n_targets),
    )


class FrameScores:
    """Collects frame scores of a data set and pools them into metrics.

    For `Brain` recipes, as `!name:noisegate.metrics.FrameScores` in the YAML
    and called at the start of a stage. All frames of all recordings are
    pooled: long recordings count for more. Padding never counts: of T frames,
    the first round(lens * T) are kept. What is kept is on the CPU.

    Arguments
    ---------
    p_target : float
        For minDCF; see `min_dcf`.
    c_miss : float
        For minDCF.
    c_fa : float
        For minDCF.

    Example
    -------
    >>> stats = FrameScores()
    >>> scores = torch.tensor([[0.9, 0.2, 0.1], [0.8, 0.6, 0.0]])
    >>> labels = torch.tensor([[1, 0, 0], [1, 1, 1]])
    >>> lens = torch.tensor([1.0, 0.667])  # the last frame is padding
    >>> stats.append(["a", "b"], scores, labels, lens, ["<5", "<5"])
    >>> summary = stats.summarize()
    >>> summary["EER"], summary["EER <5"], summary["threshold"]
    (0.0, 0.0, 0.6...)
    """

    def __init__(self, p_target=0.5, c_miss=1.0, c_fa=1.0):
        _check_costs(p_target, c_miss, c_fa)
        self.costs = {"p_target": p_target, "c_miss": c_miss, "c_fa": c_fa}
        self.ids, self.groups = [], []
        self.scores, self.labels = [], []  # one (frames,) tensor per id

    def append(self, ids, scores, labels, lens, groups=None):
        """Adds a batch.

        Arguments
        ---------
        ids : list
            Identifiers of the recordings.
        scores : torch.Tensor (batch, time)
            Frame scores, higher = target.
        labels : torch.Tensor (batch, time)
            1 for target, 0 for non-target; padding may hold anything.
        lens : torch.Tensor (batch,)
            Relative lengths, 0 to 1.
        groups : list of str
            A group per recording, e.g. its range of SNR; or None.
        """
        if scores.ndim != 2 or scores.shape != labels.shape:
            raise ValueError(
                "scores and labels must both be (batch, time), got "
                f"{tuple(scores.shape)} and {tuple(labels.shape)}"
            )
        groups = [None] * len(ids) if groups is None else groups
        if not len(ids) == len(groups) == len(lens) == len(scores):
            raise ValueError(
                "ids, groups, lens and scores must agree in batch size, got "
                f"{len(ids)}, {len(groups)}, {len(lens)} and {len(scores)}"
            )
        lens = lens.detach().cpu().double()
        if not bool(((lens >= 0) & (lens <= 1)).all()):
            raise ValueError(f"lens must be within 0..1, got {lens.tolist()}")
        frames = torch.round(lens * scores.shape[1]).long().tolist()
        scores, labels = scores.detach().cpu(), labels.detach().cpu()
        kept = []
        for i, n in enumerate(frames):  # all is checked before any is kept
            _check_values(scores[i, :n], labels[i, :n], f" of {ids[i]!r}")
            kept.append((scores[i, :n].clone(), labels[i, :n] == 1))
        self.ids.extend(ids)
        self.groups.extend(groups)
        self.scores.extend(score for score, _ in kept)
        self.labels.extend(label for _, label in kept)

    def summarize(self, threshold=None):
        """Metrics over all frames appended so far.

        Arguments
        ---------
        threshold : float
            Threshold of F1, precision and recall. None takes the one that
            maximises F1 on these very frames: right for validation data; for
            test data give the one found in validation.

        Returns
        -------
        summary : dict
            Floats: `EER` (percent), `minDCF`, `AUC`, `F1`, `precision`,
            `recall` (0 to 1), `threshold`, and `EER <group>` (percent) for
            each group, nan where a group holds one class only.
        """
        if not self.scores:
            raise ValueError("scores are empty: nothing was appended")
        scores, labels = torch.cat(self.scores), torch.cat(self.labels)
        if threshold is None:
            threshold = f1_threshold(scores, labels)
        precision, recall, f1 = precision_recall_f1(scores, labels, threshold)
        summary = {
            "EER": eer(scores, labels),
            "minDCF": min_dcf(scores, labels, **self.costs),
            "AUC": roc_auc(scores, labels),
            "F1": f1,
            "precision": precision,
            "recall": recall,
            "threshold": float(threshold),
        }
        for group in sorted({g for g in self.groups if g is not None}):
            mine = [i for i, g in enumerate(self.groups) if g == group]
            scores = torch.cat([self.scores[i] for i in mine])
            labels = torch.cat([self.labels[i] for i in mine])
            both = bool(labels.any()) and not bool(labels.all())
            summary[f"EER {group}"] = (
                eer(scores, labels) if both else float("nan")
            )
        return summary


def _check_values(scores, labels, where=""):
    """Raises ValueError unless scores are finite and labels 0 or 1."""
    if not bool(torch.isfinite(scores).all()):
        raise ValueError(f"scores{where} must be finite, got NaN or infinity")
    if not bool(((labels == 0) | (labels == 1)).all()):
        raise ValueError(f"labels{where} must be 0 or 1")


def _checked(scores, labels):
    """Scores as 64-bit and labels as bool on the CPU, or ValueError."""
    # Lists of floats would pass through 32 bit, which makes ties.
    scores = torch.as_tensor(scores, dtype=torch.float64, device="cpu")
    labels = torch.as_tensor(labels, device="cpu")
    scores = scores.detach()
    if scores.ndim != 1 or scores.shape != labels.shape:
        raise ValueError(
            "scores and labels must be one-dimensional and equally long, got "
            f"shapes {tuple(scores.shape)} and {tuple(labels.shape)}"
        )
    if len(scores) == 0:
        raise ValueError("scores are empty")
    _check_values(scores, labels)
    labels = labels == 1
    if bool(labels.all()) or not bool(labels.any()):
        only = int(labels[0])
        raise ValueError(f"labels must hold both classes, got only {only}")
    return scores, labels


def _accepted(scores, labels):
    """Accepted targets and non-targets at +inf and each distinct score."""
    scores, order = torch.sort(scores, descending=True)
    labels = labels[order]
    last = torch.ones_like(labels)  # last of a run of equal scores
    last[:-1] = scores[1:] != scores[:-1]
    hits = torch.cumsum(labels, 0)[last]
    alarms = torch.cumsum(~labels, 0)[last]
    zero = hits.new_zeros(1)
    thresholds = torch.cat([scores.new_full((1,), float("inf")), scores[last]])
    return torch.cat([zero, hits]), torch.cat([zero, alarms]), thresholds


def _decided(scores, labels, threshold):
    """Which trials a threshold accepts, and the labels as bool."""
    scores, labels = _checked(scores, labels)
    if threshold != threshold:
        raise ValueError("threshold must be a number, got NaN")
    return scores >= threshold, labels


def _check_costs(p_target, c_miss, c_fa):
    """Raises ValueError where the detection cost is not defined."""
    if not 0 < p_target < 1:
        raise ValueError(f"p_target must be between 0 and 1, got {p_target}")
    if not (c_miss > 0 and c_fa > 0):
        raise ValueError(
            f"c_miss and c_fa must be positive, got {c_miss} and {c_fa}"
        )


def _dcf(p_fa, p_miss, p_target, c_miss, c_fa):
    """Normalised detection cost of error rates."""
    _check_costs(p_target, c_miss, c_fa)
    miss, false_alarm = c_miss * p_target, c_fa * (1 - p_target)
    return (miss * p_miss + false_alarm * p_fa) / min(miss, false_alarm)
