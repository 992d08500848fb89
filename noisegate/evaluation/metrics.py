"""Detection metrics for frame and utterance scores.

Everywhere: a score is a number that is *higher* for the target class (speech,
bona fide), a label is 1 for target and 0 for non-target, and a threshold t
accepts a trial if its score is >= t. With this,

    p_miss(t) = fraction of the targets with score < t,
    p_fa(t)   = fraction of the non-targets with score >= t.

Trials with equal scores are accepted or rejected together. All counts are
integers and all results Python floats, so values may go into checkpoint
meta-data as they are. Everything costs one sort.

First the metrics of any detector, then calibration.

Authors
 * The noisegate developers, 2026
"""

import math

import numpy as np
import torch
from scipy.optimize import minimize


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


def bayes_threshold(p_target=0.5, c_miss=1.0, c_fa=1.0):
    """The threshold that costs least for scores that are log-likelihood ratios.

        t = ln(c_fa (1 - p_target) / (c_miss p_target))

    With it `act_dcf` measures the loss through bad calibration too. The
    challenge ASVspoof 5 uses p_target = 0.95, c_miss = 1, c_fa = 10. Brümmer
    and du Preez 2006, as above.

    Arguments
    ---------
    p_target : float
        Prior probability of the target class in use, between 0 and 1.
    c_miss : float
        Cost of a miss, positive.
    c_fa : float
        Cost of a false alarm, positive.

    Returns
    -------
    threshold : float
        In nats.

    Example
    -------
    >>> bayes_threshold(p_target=0.95, c_miss=1.0, c_fa=10.0)
    -0.64...
    """
    _check_costs(p_target, c_miss, c_fa)
    return math.log(c_fa * (1 - p_target) / (c_miss * p_target))


def cllr(scores, labels):
    """Cost of log-likelihood ratios, in bits.

        Cllr = (mean over targets of log2(1 + exp(-score))
                + mean over non-targets of log2(1 + exp(score))) / 2

    Scores are taken as natural log-likelihood ratios. 0: certain and right;
    1: as good as the score 0 for all; above 1: misleading. It averages the
    actual cost over all priors and costs. Brümmer and du Preez 2006, as above.

    Arguments
    ---------
    scores : torch.Tensor (trials,)
        Natural log-likelihood ratios, finite.
    labels : torch.Tensor (trials,)
        1 for target, 0 for non-target; both must occur.

    Returns
    -------
    cost : float
        Bits, 0 or more.

    Example
    -------
    >>> cllr([0.0, 0.0, 0.0], [1, 1, 0])
    1.0
    """
    scores, labels = _checked(scores, labels)
    softplus = torch.nn.functional.softplus
    misses = softplus(-scores[labels]).mean()
    alarms = softplus(scores[~labels]).mean()
    return float(misses + alarms) / (2 * math.log(2))


def affine_calibration(scores, labels):
    """The map to log-likelihood ratios that minimizes Cllr.

        llr = scale score + offset

    Logistic regression in which both classes weigh alike. A ridge of 1e-4
    on the scale of standardized scores keeps it finite where the classes are
    separated. Brümmer and du Preez 2006, as above.

    Arguments
    ---------
    scores : torch.Tensor (trials,)
        Finite scores, best of data that is not used for testing.
    labels : torch.Tensor (trials,)
        1 for target, 0 for non-target; both must occur.

    Returns
    -------
    scale : float
        Negative if high scores speak against the target.
    offset : float
        In nats.

    Example
    -------
    >>> scale, offset = affine_calibration([1, 2, 2, 3], [0, 1, 0, 1])
    >>> round(offset / scale, 3)
    -2.0
    """
    scores, labels = _checked(scores, labels)
    mean, std = scores.mean(), scores.std(correction=0).clamp(min=1e-12)
    z, sign = ((scores - mean) / std).numpy(), 2.0 * labels.numpy() - 1.0
    weight = np.where(labels, 0.5 / labels.sum(), 0.5 / (~labels).sum())

    def loss(x):
        margin = sign * (x[0] * z + x[1])
        # d softplus(-m) / dm = -1 / (1 + exp(m)), without overflow
        slope = -sign * weight * 0.5 * (1.0 - np.tanh(margin / 2))
        value = weight @ np.logaddexp(0.0, -margin) + 0.5e-4 * x[0] ** 2
        return value, np.array([slope @ z + 1e-4 * x[0], slope.sum()])

    a, b = minimize(loss, [0.0, 0.0], jac=True, method="BFGS").x
    scale = float(a / std)
    return scale, float(b - scale * mean)


def calibration_loss(scores, labels, scale, offset):
    """The part of Cllr that an affine calibration removes, in bits.

        loss = Cllr(scores) - Cllr(scale score + offset)

    Cllr is the cross-entropy at equal priors over that of scores which say
    nothing (1 bit). 0: nothing to gain; as great as Cllr itself: all of it is
    bad calibration; negative: what was fitted does not hold on these data.
    Ferrer and Ramos, "Evaluating posterior probabilities: decision theory,
    proper scoring rules, and calibration", TMLR, 2025.

    Arguments
    ---------
    scores : torch.Tensor (trials,)
        Finite, taken as natural log-likelihood ratios.
    labels : torch.Tensor (trials,)
        1 for target, 0 for non-target; both must occur.
    scale : float
        Of `affine_calibration` on validation data.
    offset : float
        As the scale, in nats.

    Returns
    -------
    loss : float
        Bits, at most Cllr.

    Example
    -------
    >>> scores, labels = [1.0, -1.0, -1.0, -3.0], [1, 1, 0, 0]
    >>> scale, offset = affine_calibration(scores, labels)
    >>> round(calibration_loss(scores, labels, scale, offset), 2)
    0.22
    """
    scores, _ = _checked(scores, labels)
    return cllr(scores, labels) - cllr(scale * scores + offset, labels)


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
