"""The cost of spoofing detection in front of speaker verification (t-DCF).

Scores and labels are those of :mod:`noisegate.evaluation.metrics`.

Authors
 * The noisegate developers, 2026
"""

from typing import NamedTuple

import torch

from noisegate.evaluation.metrics import roc_points


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
