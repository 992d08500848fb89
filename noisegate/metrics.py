"""Detection metrics for frame and utterance scores.

Everywhere: a score is a number that is *higher* for the target class (speech,
bona fide), a label is 1 for target and 0 for non-target, and a threshold t
accepts a trial if its score is >= t. With this,

    p_miss(t) = fraction of the targets with score < t,
    p_fa(t)   = fraction of the non-targets with score >= t.

Trials with equal scores are accepted or rejected together. All counts are
integers and all results Python floats, so values may go into checkpoint
meta-data as they are. Everything costs one sort.

First the metrics of any detector, then calibration, the tandem with speaker
verification and confidence intervals, last what collects and keeps scores.

Authors
 * The noisegate developers, 2026
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize

from noisegate.files import write_atomically


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


class AsvErrors(NamedTuple):
    """Error rates of speaker verification (ASV) at its fixed threshold.

    `ASV_2019_LA_EVAL` holds those of the organizers' system on the evaluation
    set of ASVspoof 2019 LA. `asv_errors` finds them from scores.

    Arguments
    ---------
    p_miss : float
        Share of target speakers rejected.
    p_fa : float
        Share of bona fide non-target speakers accepted.
    p_fa_spoof : float
        Share of spoofs accepted: 1 - Pmiss,spoof of the 2019 papers.
    """

    p_miss: float
    p_fa: float
    p_fa_spoof: float


ASV_2019_LA_EVAL = AsvErrors(0.024581, 0.024605, 1.0 - 0.239348)


def asv_errors(target, nontarget, spoof):
    """Error rates of speaker verification at its equal error rate.

    The threshold is the one of the ROC of targets against bona fide
    non-targets at which p_miss and p_fa differ least (the highest of equals).

    Arguments
    ---------
    target : torch.Tensor (trials,)
        Finite scores of the claimed speaker, who should score high.
    nontarget : torch.Tensor (trials,)
        Scores of other speakers.
    spoof : torch.Tensor (trials,)
        Scores of spoofs.

    Returns
    -------
    errors : AsvErrors

    Example
    -------
    >>> asv_errors([9.0, 8.0, 4.0], [5.0, 2.0, 1.0], [8.5, 3.0])
    AsvErrors(p_miss=0.33..., p_fa=0.33..., p_fa_spoof=0.5)
    """
    scores = {"target": target, "nontarget": nontarget, "spoof": spoof}
    for name, values in scores.items():
        values = torch.as_tensor(values, dtype=torch.float64, device="cpu")
        if values.ndim != 1 or len(values) == 0:
            raise ValueError(
                f"{name} must be one-dimensional and not empty, got shape "
                f"{tuple(values.shape)}"
            )
        if not bool(torch.isfinite(values).all()):
            raise ValueError(f"{name} must be finite, got NaN or infinity")
        scores[name] = values
    bona_fide = torch.cat([scores["target"], scores["nontarget"]])
    labels = torch.arange(len(bona_fide)) < len(scores["target"])
    p_fa, p_miss, thresholds = roc_points(bona_fide, labels)
    best = int((p_fa - p_miss).abs().argmin())
    p_fa_spoof = (scores["spoof"] >= thresholds[best]).double().mean()
    return AsvErrors(float(p_miss[best]), float(p_fa[best]), float(p_fa_spoof))


def min_tdcf(
    scores,
    labels,
    asv,
    form="2021",
    p_spoof=0.05,
    p_nontarget=0.01,
    c_miss=1.0,
    c_fa=10.0,
    c_fa_spoof=10.0,
):
    """Tandem detection cost at the best threshold of the countermeasure.

    A countermeasure (CM) in front of a given speaker verification system, with
    p_tar = (1 - p_spoof) (1 - p_nontarget), p_non = (1 - p_spoof) p_nontarget:

        C0 = p_tar c_miss ASV.p_miss + p_non c_fa ASV.p_fa
        C1 = p_tar c_miss - C0
        C2 = p_spoof c_fa_spoof ASV.p_fa_spoof

        "2021": min over t of (C0 + C1 p_miss(t) + C2 p_fa(t))
                / (C0 + min(C1, C2))
        "2019": min over t of (C1 p_miss(t) + C2 p_fa(t)) / min(C1, C2)

    1: as good as a CM that accepts or rejects all. 0 is possible in the form
    of 2019 only; in that of 2021 the errors of the ASV remain. "2021":
    Kinnunen et al., "Tandem assessment of spoofing countermeasures and
    automatic speaker verification: fundamentals", IEEE/ACM TASLP 28, 2020;
    "2019", called legacy since: Kinnunen et al.,
    "t-DCF: a detection cost function for the tandem assessment of spoofing
    countermeasures and automatic speaker verification", Odyssey 2018. The
    defaults are those of both challenges (Todisco et al., "ASVspoof 2019",
    Interspeech 2019).

    Arguments
    ---------
    scores : torch.Tensor (trials,)
        Finite scores of the CM, higher = bona fide.
    labels : torch.Tensor (trials,)
        1 for bona fide, 0 for spoof; both must occur.
    asv : AsvErrors
        Error rates of the ASV, e.g. `ASV_2019_LA_EVAL` or from `asv_errors`.
    form : str
        "2021" or "2019".
    p_spoof : float
        Prior probability of a spoof, between 0 and 1.
    p_nontarget : float
        Prior probability of another speaker if bona fide, between 0 and 1.
    c_miss : float
        Cost of rejecting the target speaker, by either system.
    c_fa : float
        Cost of accepting another speaker.
    c_fa_spoof : float
        Cost of accepting a spoof.

    Returns
    -------
    cost : float
        0 to 1.

    Raises
    ------
    ValueError
        If the ASV is so bad that C1 or C2 is not positive.

    Example
    -------
    >>> scores, labels = [0.9, 0.8, 0.3, 0.7, 0.2, 0.1], [1, 1, 1, 0, 0, 0]
    >>> min_tdcf(scores, labels, ASV_2019_LA_EVAL, form="2019")
    0.33...
    """
    if form not in ("2019", "2021"):
        raise ValueError(f"form must be '2019' or '2021', got {form!r}")
    for name, value in (("p_spoof", p_spoof), ("p_nontarget", p_nontarget)):
        if not 0 < value < 1:
            raise ValueError(f"{name} must be between 0 and 1, got {value}")
    costs = {"c_miss": c_miss, "c_fa": c_fa, "c_fa_spoof": c_fa_spoof}
    if not all(value > 0 for value in costs.values()):
        raise ValueError(f"costs must be positive, got {costs}")
    p_tar = (1 - p_spoof) * (1 - p_nontarget)
    p_non = (1 - p_spoof) * p_nontarget
    c0 = p_tar * c_miss * asv.p_miss + p_non * c_fa * asv.p_fa
    c1 = p_tar * c_miss - c0
    c2 = p_spoof * c_fa_spoof * asv.p_fa_spoof
    if min(c1, c2) <= 0:
        raise ValueError(
            "asv: t-DCF needs positive C1 and C2, got "
            f"{c1:.4g} and {c2:.4g} from {asv}"
        )
    p_fa, p_miss, _ = roc_points(scores, labels)
    c0 = c0 if form == "2021" else 0.0
    cost = float((c1 * p_miss + c2 * p_fa).min())
    return (c0 + cost) / (c0 + min(c1, c2))


def confidence_intervals(
    metrics, scores, labels, speakers, level=95.0, n_bootstraps=1000
):
    """Bootstrap intervals of metrics, over speakers and trials.

    Speakers are drawn with replacement, then trials of each speaker drawn:
    trials of one speaker depend on each other, and an interval over trials
    alone is too narrow. An interval is between percentiles of the metric on
    the drawn sets, which are the same for all metrics and in each call. Sets
    without one of the classes are drawn anew. Needs the package
    `confidence-intervals` (Ferrer and Riera).

    Arguments
    ---------
    metrics : dict of str to callable
        Each takes scores and labels and returns a float, e.g. `eer`.
    scores : torch.Tensor (trials,)
        Finite scores, higher = target.
    labels : torch.Tensor (trials,)
        1 for target, 0 for non-target.
    speakers : list of str
        The speaker of each trial.
    level : float
        Percent of the drawn values inside, between 0 and 100.
    n_bootstraps : int
        Number of sets drawn, at least 2.

    Returns
    -------
    intervals : dict of str to tuple of float
        Lower and upper end by metric.

    Raises
    ------
    ValueError
        If half of the drawn sets hold one class only: too few speakers or
        trials have both.

    Example
    -------
    >>> rng = np.random.default_rng(0)
    >>> labels = rng.integers(2, size=200)
    >>> scores = rng.normal(size=200) + 2 * labels
    >>> speakers = [f"s{i % 20}" for i in range(200)]
    >>> intervals = confidence_intervals(
    ...     {"EER": eer}, scores, labels, speakers, n_bootstraps=100
    ... )
    >>> low, high = intervals["EER"]
    >>> low < eer(scores, labels) < high
    True
    """
    from confidence_intervals import get_bootstrap_indices, get_conf_int

    if not 0 < level < 100:
        raise ValueError(f"level must be in (0, 100) percent, got {level}")
    if n_bootstraps < 2:
        raise ValueError(f"n_bootstraps must be 2 or more, got {n_bootstraps}")
    scores, labels = _checked(scores, labels)
    if len(speakers) != len(scores):
        raise ValueError(
            f"speakers must be one per score ({len(scores)}), got "
            f"{len(speakers)}"
        )
    _, conditions = np.unique(np.asarray(speakers), return_inverse=True)
    values = {name: [] for name in metrics}
    n_drawn, n_tries = 0, 0
    # A generator: with a number, speakers would share their draws of trials
    generator = np.random.RandomState(0)
    while n_drawn < n_bootstraps:
        if n_tries >= 2 * n_bootstraps:
            raise ValueError(
                "speakers: half of the drawn sets hold one class only, because "
                f"of {conditions.max() + 1} speakers too few have both"
            )
        n_tries += 1
        drawn = get_bootstrap_indices(len(scores), conditions, generator)
        y = labels[drawn]
        if bool(y.all()) or not bool(y.any()):
            continue
        n_drawn += 1
        for name, metric in metrics.items():
            values[name].append(metric(scores[drawn], y))
    intervals = {}
    for name, found in values.items():
        low, high = get_conf_int(found, alpha=100.0 - level)
        intervals[name] = (float(low), float(high))
    return intervals


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
        self.ids, self.groups, self.speakers = [], [], []
        self.scores, self.labels = [], []  # one (frames,) tensor per id

    def append(self, ids, scores, labels, lens, groups=None, speakers=None):
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
        speakers : list of str
            Speaker of each recording, for :meth:`write`; its identifier if
            None.
        """
        if scores.ndim != 2 or scores.shape != labels.shape:
            raise ValueError(
                "scores and labels must both be (batch, time), got "
                f"{tuple(scores.shape)} and {tuple(labels.shape)}"
            )
        groups = [None] * len(ids) if groups is None else groups
        speakers = ids if speakers is None else speakers
        sizes = [len(x) for x in (ids, groups, speakers, lens, scores)]
        if len(set(sizes)) > 1:
            raise ValueError(
                "ids, groups, speakers, lens and scores must agree in batch "
                f"size, got {sizes}"
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
        self.speakers.extend(speakers)
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

    def write(self, path):
        """Writes the trials by speaker; see `write_trials`.

        Scores are rounded to 0.1, fine enough for log-odds: hundreds of
        thousands of frames make a file of some thousand lines, of nearly the
        same EER.
        """
        lengths = [len(scores) for scores in self.scores]
        speakers = np.repeat(self.speakers, lengths)
        scores, labels = torch.cat(self.scores), torch.cat(self.labels)
        scores = np.round(scores.double().numpy(), 1)
        write_trials(path, Trials.of(scores, labels.numpy(), speakers))


class UtteranceScores:
    """Collects one score per utterance and turns them into metrics.

    For `Brain` recipes, as `!name:noisegate.metrics.UtteranceScores` in the
    YAML and called at the start of a stage. The defaults are the costs of
    ASVspoof 5 (Wang et al., "ASVspoof 5: crowdsourced speech data, deepfakes,
    and adversarial attacks at scale", ASVspoof workshop 2024), where bona fide
    is the target class.

    Arguments
    ---------
    p_target : float
        For minDCF and actDCF; see `min_dcf`.
    c_miss : float
        For minDCF and actDCF.
    c_fa : float
        For minDCF and actDCF.

    Example
    -------
    >>> stats = UtteranceScores()
    >>> scores, labels = torch.tensor([2.0, 1.0, 0.0, 1.5]), [1, 1, 0, 0]
    >>> stats.append(
    ...     ["a", "b", "c", "d"],
    ...     scores,
    ...     labels,
    ...     attacks=["-", "-", "A01", "A02"],
    ...     speakers=["x", "y", "x", "y"],
    ... )
    >>> summary = stats.summarize()
    >>> summary["EER"], summary["EER A01"], summary["EER A02"]
    (50.0, 0.0, 50.0)
    """

    def __init__(self, p_target=0.95, c_miss=1.0, c_fa=10.0):
        _check_costs(p_target, c_miss, c_fa)
        self.costs = {"p_target": p_target, "c_miss": c_miss, "c_fa": c_fa}
        self.ids, self.attacks, self.speakers = [], [], []
        self.scores, self.labels = [], []

    def append(self, ids, scores, labels, attacks, speakers):
        """Adds a batch.

        Arguments
        ---------
        ids : list of str
            Identifiers of the utterances.
        scores : torch.Tensor (batch,)
            Scores, higher = bona fide.
        labels : torch.Tensor (batch,)
            1 for bona fide, 0 for spoof.
        attacks : list of str
            Attack of each utterance, "-" for bona fide.
        speakers : list of str
            Speaker of each utterance.
        """
        scores = torch.as_tensor(scores).detach().cpu().double()
        labels = torch.as_tensor(labels).detach().cpu()
        sizes = [len(x) for x in (ids, scores, labels, attacks, speakers)]
        if len(set(sizes)) > 1 or scores.ndim != 1 or labels.ndim != 1:
            raise ValueError(
                "ids, scores, labels, attacks and speakers must be "
                f"one-dimensional and equally long, got {sizes} and scores of "
                f"shape {tuple(scores.shape)}"
            )
        for i, (label, attack) in enumerate(zip(labels.tolist(), attacks)):
            _check_values(scores[i], labels[i], f" of {ids[i]!r}")
            if (label == 1) != (attack == "-"):
                raise ValueError(
                    f"attacks of {ids[i]!r} must be '-' for bona fide and only "
                    f"there, got {attack!r} with label {label}"
                )
        self.ids.extend(ids)
        self.scores.extend(scores.tolist())
        self.labels.extend((labels == 1).int().tolist())
        self.attacks.extend(attacks)
        self.speakers.extend(speakers)

    def summarize(self, calibration=None, asv=None, by_attack=True):
        """Metrics over all utterances, and over those of each attack.

        Each attack is held against all bona fide utterances.

        Arguments
        ---------
        calibration : tuple of float
            Scale and offset that make log-likelihood ratios of the scores, for
            actDCF and Cllr. None fits them to these very scores (see
            `affine_calibration`): right for validation data; for test data
            give the ones found in validation. (1, 0) takes the scores as they
            are, as the challenges do.
        asv : AsvErrors or dict of str to AsvErrors
            Adds t-DCF. A dict has the error rates by attack, and "all".
        by_attack : bool
            Whether there is a value for each attack too.

        Returns
        -------
        summary : dict
            Floats: `EER` (percent), `minDCF`, `actDCF`, `Cllr` (bits), with
            `asv` also `min t-DCF` and `min t-DCF 2019`, the scale and offset
            as `calibration_scale` and `calibration_offset`; all but these
            again as `<name> <attack>`. Nan where there is one class only,
            and for the t-DCF of an attack that never fools the ASV.
        """
        if not self.scores:
            raise ValueError("scores are empty: nothing was appended")
        if calibration is None:
            calibration = (1.0, 0.0)
            if 0 < sum(self.labels) < len(self.labels):
                calibration = affine_calibration(self.scores, self.labels)
        summary = {}
        for attack in [None, *(self._attacks() if by_attack else [])]:
            suffix = "" if attack is None else f" {attack}"
            scores, labels = self._trials(attack)
            both = 0 < sum(labels) < len(labels)
            for name, metric in self._metrics(calibration, asv, attack).items():
                value = metric(scores, labels) if both else float("nan")
                summary[name + suffix] = value
        summary["calibration_scale"] = float(calibration[0])
        summary["calibration_offset"] = float(calibration[1])
        return summary

    def intervals(self, calibration=(1.0, 0.0), asv=None, **kwargs):
        """Confidence intervals of the metrics over all utterances.

        Arguments
        ---------
        calibration : tuple of float
            As in `summarize`, but given: it is not fitted anew to each drawn
            set.
        asv : AsvErrors or dict of str to AsvErrors
            As in `summarize`.
        **kwargs : dict
            For `confidence_intervals`.

        Returns
        -------
        intervals : dict of str to tuple of float
            Lower and upper end by metric, nan where there is one class only.
        """
        metrics = self._metrics(calibration, asv, None)
        if not 0 < sum(self.labels) < len(self.labels):
            return dict.fromkeys(metrics, (float("nan"), float("nan")))
        return confidence_intervals(
            metrics, *self._trials(None), self.speakers, **kwargs
        )

    def write(self, path):
        """Writes the scores to a file; see `write_scores`."""
        write_scores(path, self.ids, self.attacks, self.labels, self.scores)

    def write_trials(self, path):
        """Writes the trials by speaker, rounded to 1e-4; see `write_trials`."""
        scores = np.round(self.scores, 4)
        write_trials(path, Trials.of(scores, self.labels, self.speakers))

    def _attacks(self):
        return sorted(set(self.attacks) - {"-"})

    def _trials(self, attack):
        """Scores and labels of one attack and of bona fide; all for None."""
        kept = [
            i
            for i, a in enumerate(self.attacks)
            if attack is None or a in ("-", attack)
        ]
        return [self.scores[i] for i in kept], [self.labels[i] for i in kept]

    def _metrics(self, calibration, asv, attack):
        """Functions of scores and labels by name."""
        scale, offset = calibration
        threshold = bayes_threshold(**self.costs)

        def llr(scores):
            return scale * torch.as_tensor(scores, dtype=torch.float64) + offset

        metrics = {
            "EER": eer,
            "minDCF": lambda x, y: min_dcf(x, y, **self.costs),
            "actDCF": lambda x, y: act_dcf(llr(x), y, threshold, **self.costs),
            "Cllr": lambda x, y: cllr(llr(x), y),
        }
        if asv is not None:
            errors = asv
            if not isinstance(asv, AsvErrors):
                key = "all" if attack is None else attack
                if key not in asv:
                    raise ValueError(
                        f"asv has no error rates of '{key}', only of "
                        f"{sorted(asv)}"
                    )
                errors = asv[key]

            def tdcf(form):
                if attack is not None and errors.p_fa_spoof == 0:
                    return lambda x, y: float("nan")
                return lambda x, y: min_tdcf(x, y, errors, form)

            metrics["min t-DCF"] = tdcf("2021")
            metrics["min t-DCF 2019"] = tdcf("2019")
        return metrics


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
    path : str
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
    with open(path, encoding="utf-8") as fin:
        for number, line in enumerate(fin, 1):
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
