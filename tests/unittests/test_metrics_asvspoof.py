"""Metrics of anti-spoofing against plain sweeps, published values, packages.

Referees: a loop over all thresholds written from the definitions, scikit-learn,
the package expected-cost, and operating points of the official evaluation.
"""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix, log_loss

from noisegate.evaluation.bootstrap import confidence_intervals
from noisegate.evaluation.metrics import (
    act_dcf,
    affine_calibration,
    bayes_threshold,
    calibration_loss,
    cllr,
    eer,
    min_dcf,
)
from noisegate.evaluation.scores import FrameScores, UtteranceScores
from noisegate.evaluation.tdcf import (
    ASV_2019_LA_EVAL,
    AsvErrors,
    asv_errors,
    min_tdcf,
)
from noisegate.evaluation.trials import (
    Trials,
    read_scores,
    read_trials,
    write_scores,
    write_trials,
)

COSTS_5 = {"p_target": 0.95, "c_miss": 1.0, "c_fa": 10.0}  # ASVspoof 5


def trials(seed, n=200, levels=None):
    """Random scores (in `levels` steps: many ties) and labels."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.3).astype(int)
    labels[:2] = [0, 1]
    scores = rng.normal(size=n) + 1.5 * labels
    if levels is not None:
        scores = np.round(scores * levels) / levels
    return scores, labels


def rates(scores, labels):
    """(p_miss, p_fa) at every threshold, by counting."""
    for t in [*np.unique(scores), math.inf]:
        yield (
            float(np.mean(scores[labels == 1] < t)),
            float(np.mean(scores[labels == 0] >= t)),
        )


def plain_tdcf(scores, labels, asv, legacy):
    """Tandem cost as the papers write it, with the challenges' constants."""
    p_tar, p_non, p_spoof = 0.95 * 0.99, 0.95 * 0.01, 0.05
    c_fa_spoof = 10.0 * p_spoof * asv.p_fa_spoof
    values, default = [], None
    if legacy:
        c1 = p_tar * (1.0 - 1.0 * asv.p_miss) - p_non * 10.0 * asv.p_fa
        default = min(c1, c_fa_spoof)
        for p_miss, p_fa in rates(scores, labels):
            values.append(c1 * p_miss + c_fa_spoof * p_fa)
    else:
        # What the tandem does, case by case (a system of two in a row):
        # a target is lost if either rejects, a non-target passes if both
        # accept, a spoof too.
        def tandem(p_miss, p_fa):
            lost = p_miss + (1 - p_miss) * asv.p_miss
            passed = (1 - p_miss) * asv.p_fa
            fooled = p_fa * asv.p_fa_spoof
            return p_tar * lost + p_non * 10 * passed + p_spoof * 10 * fooled

        default = min(tandem(1.0, 0.0), tandem(0.0, 1.0))
        values = [tandem(*point) for point in rates(scores, labels)]
    return min(values) / default


@pytest.mark.parametrize("levels", [None, 4, 1])
@pytest.mark.parametrize("seed", range(4))
def test_tdcf_against_a_plain_sweep(seed, levels):
    scores, labels = trials(seed, levels=levels)
    for asv in (ASV_2019_LA_EVAL, AsvErrors(0.1, 0.2, 0.9)):
        for form, legacy in (("2019", True), ("2021", False)):
            ours = min_tdcf(scores, labels, asv, form)
            plain = plain_tdcf(scores, labels, asv, legacy)
            assert ours == pytest.approx(plain, abs=1e-12)


def test_tdcf_extremes():
    labels = [1, 1, 0, 0]
    good, bad = [4.0, 3.0, 2.0, 1.0], [1.0, 1.0, 1.0, 1.0]
    asv = ASV_2019_LA_EVAL
    assert min_tdcf(good, labels, asv, "2019") == 0.0
    assert 0 < min_tdcf(good, labels, asv, "2021") < 0.1
    assert min_tdcf(bad, labels, asv, "2019") == 1.0
    assert min_tdcf(bad, labels, asv, "2021") == pytest.approx(1.0)
    perfect = AsvErrors(0.0, 0.0, 1.0)
    assert min_tdcf(good, labels, perfect, "2021") == 0.0


def test_tdcf_weight_of_the_official_asv():
    """The evaluation of 2019 LA prints 2.40595 Pmiss_cm + Pfa_cm."""
    # The best threshold misses 1 of 4 and accepts no spoof.
    scores = [0.0, 3.0, 3.0, 3.0] + [1.0] * 10
    labels = [1] * 4 + [0] * 10
    got = min_tdcf(scores, labels, ASV_2019_LA_EVAL, "2019")
    assert 4 * got == pytest.approx(2.40595, abs=2e-5)


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"form": "2020"}, "form must be '2019' or '2021', got '2020'"),
        ({"p_spoof": 0.0}, "p_spoof must be between 0 and 1"),
        ({"p_nontarget": 1.0}, "p_nontarget must be between 0 and 1"),
        ({"c_fa_spoof": 0.0}, "costs must be positive"),
        ({"asv": AsvErrors(1.0, 0.0, 0.5)}, "asv: t-DCF needs positive C1"),
        ({"asv": AsvErrors(0.0, 0.0, 0.0)}, "asv: t-DCF needs positive C1"),
    ],
)
def test_tdcf_errors(kwargs, message):
    kwargs = {"asv": ASV_2019_LA_EVAL, **kwargs}
    with pytest.raises(ValueError, match=message):
        min_tdcf([1.0, 0.0], [1, 0], **kwargs)


def test_asv_errors_by_hand():
    target, nontarget = [9.0, 8.0, 4.0, 2.0], [5.0, 3.0, 1.0, 0.0]
    # At 4: p_miss 1/4, p_fa 1/4.
    got = asv_errors(target, nontarget, [7.0, 4.0, 3.0])
    assert got == AsvErrors(0.25, 0.25, 2 / 3)
    with pytest.raises(ValueError, match="spoof must be one-dimensional"):
        asv_errors(target, nontarget, [])
    with pytest.raises(ValueError, match="nontarget must be finite"):
        asv_errors(target, [math.nan], [1.0])


@pytest.mark.parametrize("seed", range(3))
def test_asv_errors_against_a_plain_sweep(seed):
    scores, labels = trials(seed, levels=3)
    got = asv_errors(scores[labels == 1], scores[labels == 0], scores)
    points = list(rates(scores, labels))
    gap = min(abs(p_miss - p_fa) for p_miss, p_fa in points)
    assert abs(got.p_miss - got.p_fa) == pytest.approx(gap)
    assert any(np.allclose(got[:2], p) for p in points)


def test_dcf_of_asvspoof_5():
    """Normalised DCF: 1.90 p_miss + p_fa; its Bayes threshold -ln(1.90)."""
    scores, labels = trials(0)
    points = list(rates(scores, labels))
    got = min_dcf(scores, labels, **COSTS_5)
    assert got == pytest.approx(min(1.9 * m + f for m, f in points))
    threshold = bayes_threshold(**COSTS_5)
    assert threshold == pytest.approx(-math.log(1.9))
    p_miss = np.mean(scores[labels == 1] < threshold)
    p_fa = np.mean(scores[labels == 0] >= threshold)
    got = act_dcf(scores, labels, threshold, **COSTS_5)
    assert got == pytest.approx(1.9 * p_miss + p_fa)


@pytest.mark.parametrize("seed", range(3))
def test_act_dcf_against_expected_cost(seed):
    ec = pytest.importorskip("expected_cost.ec")
    utils = pytest.importorskip("expected_cost.utils")
    scores, labels = trials(seed)
    priors = np.array([0.05, 0.95])
    costs = ec.CostMatrix([[0.0, 10.0], [1.0, 0.0]])  # [true, decided]
    posteriors = utils.llrs_to_logpost(scores, priors)
    decisions, _ = ec.bayes_decisions(posteriors, costs, silent=True)
    rates = confusion_matrix(labels, decisions, normalize="true")
    theirs = ec.average_cost_from_confusion_matrix(rates, priors, costs, True)
    threshold = bayes_threshold(**COSTS_5)
    ours = act_dcf(scores, labels, threshold, **COSTS_5)
    assert ours == pytest.approx(theirs)


def test_cllr_by_hand_and_by_scikit_learn():
    # log2(1 + 1/3) for the target, log2(1 + 1) for the non-target.
    got = cllr([math.log(3.0), 0.0], [1, 0])
    assert got == pytest.approx((math.log2(4 / 3) + 1) / 2)
    assert cllr([40.0, -40.0], [1, 0]) < 1e-15
    assert cllr([-1e4, 1e4], [1, 0]) == pytest.approx(1e4 / math.log(2))
    scores, labels = trials(1)
    posterior = 1 / (1 + np.exp(-scores))
    weight = np.where(labels == 1, 1 / labels.sum(), 1 / (1 - labels).sum())
    theirs = log_loss(labels, posterior, sample_weight=weight) / math.log(2)
    assert cllr(scores, labels) == pytest.approx(theirs)


@pytest.mark.parametrize("seed", range(3))
def test_calibration_against_scikit_learn(seed):
    scores, labels = trials(seed)
    scores = 0.01 * scores + 5.0  # badly scaled on purpose
    scale, offset = affine_calibration(scores, labels)
    z = (scores - scores.mean()) / scores.std()
    # Their loss is a sum with weights n / (2 n_class), ours a mean
    n = len(scores)
    sk = LogisticRegression(C=n / (n * n * 1e-4), class_weight="balanced")
    sk.set_params(tol=1e-10, max_iter=1000).fit(z[:, None], labels)
    assert scale * scores.std() == pytest.approx(sk.coef_[0, 0], rel=1e-3)
    best = cllr(scale * scores + offset, labels)
    assert best < cllr(scores, labels)
    for d_scale, d_offset in [(1.1, 0), (0.9, 0), (1, 0.1), (1, -0.1)]:
        changed = scale * d_scale * (scores - 5.0)
        changed = changed + scale * 5.0 + offset + d_offset
        assert cllr(changed, labels) > best


def test_calibration_of_separated_and_of_constant_scores():
    scale, offset = affine_calibration([0.0, 1.0], [0, 1])
    assert 1 < scale < 1e4 and cllr([offset, scale + offset], [0, 1]) < 0.01
    scale, offset = affine_calibration([3.0, 3.0, 3.0], [0, 1, 0])
    assert cllr([scale * 3.0 + offset] * 3, [0, 1, 0]) == pytest.approx(1.0)


@pytest.mark.parametrize("seed", range(3))
def test_calibration_loss_against_expected_cost(seed):
    wrappers = pytest.importorskip("expected_cost.psrcal_wrappers")
    utils = pytest.importorskip("expected_cost.utils")
    scale, offset = affine_calibration(*trials(seed + 10))
    scores, labels = trials(seed)
    # As many of each class: the package has other priors in 32 bit only
    n = min(labels.sum(), (1 - labels).sum())
    kept = np.concatenate([np.flatnonzero(labels == y)[:n] for y in (0, 1)])
    labels = labels[kept]
    scores = 3.0 * scores[kept] + 1.0  # too sure, and shifted
    losses = []
    for llr in (scores, scale * scores + offset):
        posteriors = utils.llrs_to_logpost(llr, np.array([0.5, 0.5]))
        loss = wrappers.LogLoss(posteriors, labels, norm=False)
        losses.append(float(loss) / math.log(2))
        assert cllr(llr, labels) == pytest.approx(losses[-1], abs=1e-9)
    got = calibration_loss(scores, labels, scale, offset)
    assert got == pytest.approx(losses[0] - losses[1], abs=1e-9)
    assert calibration_loss(scores, labels, 1.0, 0.0) == 0.0


def interval(scores, labels, speakers, n_bootstraps=50, **kwargs):
    """The interval of the EER."""
    pytest.importorskip("confidence_intervals")
    return confidence_intervals(
        {"EER": eer},
        scores,
        labels,
        speakers,
        n_bootstraps=n_bootstraps,
        **kwargs,
    )["EER"]


def test_intervals_cover():
    """Nearly all intervals hold the true EER, by speaker and trial."""
    true = 100 * 0.5 * math.erfc(1.0 / math.sqrt(2))  # of N(0, 1), N(2, 1)
    inside = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        labels = rng.integers(2, size=300)
        scores = rng.normal(size=300) + 2.0 * labels
        speakers = [f"s{i % 15}" for i in range(300)]
        low, high = interval(scores, labels, speakers)
        inside += low <= true <= high
    assert inside >= 17


def test_intervals_grow_with_the_spread_of_speakers():
    """Speakers that differ widen the interval; trials alone would not."""
    rng = np.random.default_rng(0)
    labels = np.tile([0, 1], 300)
    of_trial = np.arange(600) // 60
    shift = rng.normal(size=10)[of_trial]
    scores = rng.normal(size=600) + 2.0 * labels + 2.0 * shift
    low, high = interval(scores, labels, of_trial, 100)
    assert (low, high) == interval(scores, labels, of_trial, 100)
    trial_low, trial_high = interval(scores, labels, ["a"] * 600, 100)
    assert high - low > 1.5 * (trial_high - trial_low)
    half_low, half_high = interval(scores, labels, of_trial, 100, level=50.0)
    assert low < half_low < half_high < high


def test_intervals_draw_sets_of_one_class_anew():
    """Of three speakers only one has bona fide speech."""
    labels = [1, 1, 0, 0, 0, 0]
    low, high = interval([5.0, 4.0, 3.0, 2.0, 1.0, 0.0], labels, list("aabcbc"))
    assert (low, high) == (0.0, 0.0)


def test_interval_errors():
    scores, labels = trials(0, n=20)
    with pytest.raises(ValueError, match="speakers must be one per score"):
        interval(scores, labels, ["a"])
    with pytest.raises(ValueError, match="level"):
        interval(scores, labels, ["a"] * 20, level=0)
    with pytest.raises(ValueError, match="n_bootstraps"):
        interval(scores, labels, ["a"] * 20, n_bootstraps=1)
    labels = [1] + [0] * 99  # in 42 % of the drawn sets
    speakers = [i // 10 for i in range(100)]
    with pytest.raises(ValueError, match="of 10 speakers too few"):
        interval(list(range(100)), labels, speakers, 200)


def collected(seed=0, n=200):
    """UtteranceScores of random trials in batches, and the trials."""
    scores, labels = trials(seed, n)
    rng = np.random.default_rng(seed)
    attacks = rng.choice(["A07", "A08", "A19"], size=n)
    attacks = np.where(labels == 1, "-", attacks).tolist()
    speakers = [f"LA_{i % 10:04d}" for i in range(n)]
    stats = UtteranceScores()
    for i in range(0, n, 30):
        part = slice(i, i + 30)
        stats.append(
            [f"LA_E_{j}" for j in range(n)][part],
            torch.tensor(scores[part], requires_grad=True),
            torch.tensor(labels[part]),
            attacks[part],
            speakers[part],
        )
    return stats, scores, labels, np.array(attacks)


def test_summary_overall_and_by_attack():
    stats, scores, labels, attacks = collected()
    asv = {"all": ASV_2019_LA_EVAL, "A07": AsvErrors(0.1, 0.1, 0.5)}
    asv["A08"] = asv["A19"] = AsvErrors(0.1, 0.1, 0.9)
    summary = stats.summarize(calibration=(2.0, -1.0), asv=asv)
    names = ["EER", "minDCF", "actDCF", "Cllr", "min t-DCF", "min t-DCF 2019"]
    assert set(summary) == {
        *("calibration_scale", "calibration_offset"),
        *(n + x for n in names for x in ("", " A07", " A08", " A19")),
    }
    assert all(type(value) is float for value in summary.values())
    mine = (attacks == "-") | (attacks == "A07")
    for suffix, keep, errors in (
        ("", mine | True, asv["all"]),
        (" A07", mine, asv["A07"]),
    ):
        x, y = scores[keep], labels[keep]
        assert summary["EER" + suffix] == eer(x, y)
        assert summary["minDCF" + suffix] == min_dcf(x, y, **COSTS_5)
        assert summary["Cllr" + suffix] == cllr(2 * x - 1, y)
        threshold = bayes_threshold(**COSTS_5)
        got = summary["actDCF" + suffix]
        assert got == act_dcf(2 * x - 1, y, threshold, **COSTS_5)
        assert summary["min t-DCF" + suffix] == min_tdcf(x, y, errors)
        got = summary["min t-DCF 2019" + suffix]
        assert got == min_tdcf(x, y, errors, "2019")


def test_an_attack_that_never_fools_the_asv_has_no_tdcf():
    stats, *_ = collected()
    asv = {"all": ASV_2019_LA_EVAL, "A07": ASV_2019_LA_EVAL}
    asv["A08"] = AsvErrors(0.1, 0.1, 0.0)
    with pytest.raises(ValueError, match="asv has no error rates of 'A19'"):
        stats.summarize(asv=asv)
    asv["A19"] = ASV_2019_LA_EVAL
    summary = stats.summarize(asv=asv)
    assert math.isnan(summary["min t-DCF A08"])
    assert 0 < summary["min t-DCF A07"] <= 1


def test_summary_fits_the_calibration():
    stats, scores, labels, _ = collected()
    summary = stats.summarize()
    got = summary["calibration_scale"], summary["calibration_offset"]
    assert got == affine_calibration(scores, labels)
    assert summary["Cllr"] < stats.summarize(calibration=(1.0, 0.0))["Cllr"]


def test_intervals_hold_the_summary():
    pytest.importorskip("confidence_intervals")
    stats, *_ = collected()
    summary = stats.summarize(calibration=(1.0, 0.0), asv=ASV_2019_LA_EVAL)
    intervals = stats.intervals(asv=ASV_2019_LA_EVAL, n_bootstraps=40)
    assert list(intervals)[:2] == ["EER", "minDCF"] and len(intervals) == 6
    for name, (low, high) in intervals.items():
        assert low < summary[name] < high


def test_one_class_only():
    stats = UtteranceScores()
    with pytest.raises(ValueError, match="scores are empty"):
        stats.summarize()
    stats.append(["a"], torch.zeros(1), torch.ones(1), ["-"], ["x"])
    assert math.isnan(stats.summarize()["EER"])
    assert all(map(math.isnan, stats.intervals()["EER"]))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"scores": [0.0]}, "equally long"),
        ({"scores": [[0.0], [1.0]]}, "one-dimensional"),
        ({"scores": [0.0, math.nan]}, "scores of 'b' must be finite"),
        ({"labels": [1, 2]}, "labels of 'b' must be 0 or 1"),
        ({"attacks": ["-", "-"]}, "attacks of 'b' must be '-'"),
        ({"attacks": ["A01", "A01"]}, "attacks of 'a' must be '-'"),
    ],
)
def test_append_errors(change, message):
    batch = {"scores": [0.0, 1.0], "labels": [1, 0], "attacks": ["-", "A01"]}
    batch = {**batch, **change}
    stats = UtteranceScores()
    with pytest.raises(ValueError, match=message):
        stats.append(ids=["a", "b"], speakers=["x", "y"], **batch)
    assert stats.scores == []


def test_score_file_round_trip(tmp_path):
    stats, scores, labels, attacks = collected()
    path = tmp_path / "scores.txt"
    stats.write(path)
    first = path.read_text().splitlines()[0].split()
    assert first[0] == "LA_E_0" and first[2] in ("bonafide", "spoof")
    ids, got_attacks, got_labels, got = read_scores(path)
    assert ids == stats.ids and got_attacks == attacks.tolist()
    assert got_labels == labels.tolist() and got == scores.tolist()


@pytest.mark.parametrize(
    "line, message",
    [
        ("LA_E_2 A07 spoof", "line 2: expected '<utterance>"),
        ("LA_E_2 A07 fake 1.0", "line 2: expected"),
        ("LA_E_2 A07 spoof nan", "line 2: expected"),
        ("LA_E_2 A07 spoof x", "line 2: expected"),
        ("LA_E_1 - bonafide 1.0", "line 2: LA_E_1 occurs a second"),
    ],
)
def test_score_file_errors(tmp_path, line, message):
    path = tmp_path / "scores.txt"
    path.write_text(f"LA_E_1 - bonafide 1.0\n{line}\n")
    with pytest.raises(ValueError, match=message):
        read_scores(path)
    path.write_text("\n")
    with pytest.raises(ValueError, match="is empty"):
        read_scores(path)
    with pytest.raises(ValueError, match="words without spaces"):
        write_scores(path, ["a b"], ["-"], [1], [0.0])


def test_trials_file(tmp_path):
    """Trials are the same when read again, whatever order they came in."""
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=200)
    scores = np.round(rng.normal(size=200) + labels, 1)
    speakers = rng.choice(["b", "a", "c10", "c9"], 200)
    path = tmp_path / "trials.txt"
    trials = Trials.of(scores, labels, speakers)
    write_trials(path, trials)
    order = rng.permutation(200)
    again = Trials.of(scores[order], labels[order], speakers[order])
    for read in (read_trials(path), again):
        assert all((x == y).all() for x, y in zip(read, trials))
    assert trials.counts.sum() == 200 > len(trials.counts)
    expanded = (np.repeat(x, trials.counts) for x in trials[:2])
    assert eer(*expanded) == eer(scores, labels)


@pytest.mark.parametrize(
    "text, message",
    [
        ("a 1 0.5\n", "line 1: expected '<condition>"),
        ("a 1 0.5 1\na 0 x 1\n", "line 2: expected"),
        ("a 1 0.5 1\na 0 0.5 0\n", "counts must be integers >= 1"),
        ("", "not empty"),
        ("a 2 0.5 1\n", "labels must be 0 or 1"),
        ("a 1 nan 1\na 0 0 1\n", "scores must be finite"),
    ],
)
def test_errors_of_trials_files(tmp_path, text, message):
    path = tmp_path / "trials.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"trials.txt.*{message}"):
        read_trials(path)


def test_conditions_of_trials():
    with pytest.raises(ValueError, match="equally long and not empty"):
        Trials.of([0.0, 1.0], [0, 1], ["a"])
    spaced = Trials.of([0.0, 1.0], [0, 1], ["a b", ""])
    assert spaced.conditions.tolist() == ["_", "a_b"]


def test_trials_of_frames(tmp_path):
    """Of padded recordings: by speaker, rounded, without the padding."""
    stats = FrameScores()
    scores = torch.tensor([[0.94, 0.22, 5.0], [0.86, 0.64, -3.0]])
    labels = torch.tensor([[1, 0, 1], [1, 0, 0]])
    lens = torch.tensor([0.667, 1.0])
    stats.append(["x", "y"], scores, labels, lens, None, ["s1", "s1"])
    stats.write(tmp_path / "trials.txt")
    got = read_trials(tmp_path / "trials.txt")
    assert got.scores.tolist() == [-3.0, 0.2, 0.6, 0.9]
    assert got.counts.tolist() == [1, 1, 1, 2]
    assert set(got.conditions) == {"s1"}
