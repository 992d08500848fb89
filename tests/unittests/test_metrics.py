"""Detection metrics: hand-computed values and scikit-learn as referee."""

import math

import numpy as np
import pytest
import torch
from scipy.interpolate import interp1d
from scipy.optimize import brentq
from sklearn import metrics as sk

from noisegate.evaluation.metrics import (
    act_dcf,
    eer,
    f1_threshold,
    min_dcf,
    precision_recall_f1,
    roc_auc,
    roc_points,
)
from noisegate.evaluation.scores import FrameScores

CURVE_METRICS = [roc_points, eer, roc_auc, min_dcf, f1_threshold]


def trials(seed, n=400, levels=None, share=0.4):
    """Random scores (in `levels` steps: many ties) and labels."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < share).astype(int)
    labels[:2] = [0, 1]
    scores = rng.normal(size=n) + 1.2 * labels
    if levels is not None:
        scores = np.round(scores * levels) / levels
    return scores, labels


def sk_eer(scores, labels):
    """EER by root finding on scikit-learn's interpolated ROC."""
    fpr, tpr, _ = sk.roc_curve(labels, scores)
    roc = interp1d(fpr, tpr)
    # Where a vertical step of the ROC crosses, bisection finds the step.
    return 100 * brentq(lambda x: 1 - x - roc(x), 0, 1, xtol=1e-14)


# accept >= 5: 1 of 4 targets; >= 4: also a non-target; >= 3: one of each ...
SCORES = [5.0, 4.0, 3.0, 3.0, 2.0, 1.0, 0.0]
LABELS = [1, 0, 1, 0, 1, 1, 0]


def test_roc_points_by_hand():
    p_fa, p_miss, thresholds = roc_points(SCORES, LABELS)
    third = torch.tensor([0, 0, 1, 2, 2, 2, 3]) / 3
    quarter = torch.tensor([4, 3, 3, 2, 1, 0, 0]) / 4
    torch.testing.assert_close(p_fa, third.double(), rtol=0, atol=1e-7)
    torch.testing.assert_close(p_miss, quarter.double(), rtol=0, atol=1e-7)
    assert thresholds.tolist() == [math.inf, 5, 4, 3, 2, 1, 0]


def test_values_by_hand():
    # The ROC crosses p_fa = p_miss between (1/3, 3/4) and (2/3, 1/2), at
    # 5/7 of the way: 1/3 + 5/7 * 1/3 = 4/7. A tie makes this step oblique.
    assert eer(SCORES, LABELS) == pytest.approx(400 / 7, abs=1e-12)
    # Pairs won: 3 + (1 + 1/2) + 1 + 1 of 12.
    assert roc_auc(SCORES, LABELS) == 6.5 / 12
    # p_miss + p_fa is smallest at threshold 1: 0 + 2/3.
    assert min_dcf(SCORES, LABELS) == pytest.approx(2 / 3)
    # F1 at 1: 2 * 4 / (6 + 4).
    assert f1_threshold(SCORES, LABELS) == 1.0
    assert precision_recall_f1(SCORES, LABELS, 1.0) == (4 / 6, 1.0, 0.8)
    assert act_dcf(SCORES, LABELS, 3.0) == pytest.approx(1 / 2 + 2 / 3)


def test_f1_threshold_of_equals_is_the_highest():
    # F1 is 2 / 3 both if the first and if all are accepted.
    assert f1_threshold([4.0, 3.0, 2.0, 1.0], [1, 0, 0, 1]) == 4.0


def test_f1_threshold_is_exact():
    # Of 6000 targets, 2902 of the 3001 scores 2 and 5381 of the 10690 >= 1:
    # F1 is higher at 1, by less than 32 bit resolve.
    runs = [(2902, 99), (5381 - 2902, 7689 - 2479), (6000 - 5381, 9000)]
    labels = [y for ones, zeros in runs for y in [1] * ones + [0] * zeros]
    sizes = torch.tensor([sum(run) for run in runs])
    scores = torch.tensor([2.0, 1.0, 0.0]).repeat_interleave(sizes)
    assert f1_threshold(scores, labels) == 1.0


def test_dcf_weights_by_hand():
    # p_target 0.1, c_miss 3, c_fa 1: (0.3 p_miss + 0.9 p_fa) / 0.3.
    got = act_dcf(SCORES, LABELS, 4.0, p_target=0.1, c_miss=3.0, c_fa=1.0)
    assert got == pytest.approx(3 / 4 + 3 * 1 / 3)
    # The best is to accept only the score 5: 3/4 + 0.
    got = min_dcf(SCORES, LABELS, p_target=0.1, c_miss=3.0, c_fa=1.0)
    assert got == pytest.approx(3 / 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extremes(dtype):
    labels = torch.tensor([0, 0, 1, 1])
    good = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=dtype)
    assert (eer(good, labels), roc_auc(good, labels)) == (0.0, 1.0)
    assert min_dcf(good, labels) == 0.0
    assert (eer(-good, labels), roc_auc(-good, labels)) == (100.0, 0.0)
    assert min_dcf(-good, labels) == 1.0
    same = torch.ones(4, dtype=dtype)
    assert (eer(same, labels), roc_auc(same, labels)) == (50.0, 0.5)
    assert min_dcf(same, labels) == 1.0
    # The threshold found accepts the score it was found from, in its dtype.
    assert (good >= f1_threshold(good, labels)).tolist() == [0, 0, 1, 1]


def test_nothing_and_everything_accepted():
    scores, labels = trials(0)
    share = labels.mean()
    assert precision_recall_f1(scores, labels, 1e9) == (0.0, 0.0, 0.0)
    precision, recall, _ = precision_recall_f1(scores, labels, -1e9)
    assert (precision, recall) == (pytest.approx(share), 1.0)
    assert act_dcf(scores, labels, 1e9) == 1.0
    assert act_dcf(scores, labels, -1e9) == 1.0


@pytest.mark.parametrize("levels", [None, 10, 1])
@pytest.mark.parametrize("seed", range(5))
def test_against_scikit_learn(seed, levels):
    scores, labels = trials(seed, levels=levels)
    assert roc_auc(scores, labels) == pytest.approx(
        sk.roc_auc_score(labels, scores), abs=1e-12
    )
    assert eer(scores, labels) == pytest.approx(
        sk_eer(scores, labels), abs=1e-8
    )
    fpr, tpr, _ = sk.roc_curve(labels, scores, drop_intermediate=False)
    cost = np.min(1 - tpr + fpr)
    assert min_dcf(scores, labels) == pytest.approx(cost, abs=1e-12)

    threshold = f1_threshold(scores, labels)
    ours = precision_recall_f1(scores, labels, threshold)
    accepted = scores >= threshold
    theirs = sk.precision_recall_fscore_support(
        labels, accepted, average="binary"
    )
    assert ours == pytest.approx(theirs[:3], abs=1e-12)
    best = max(sk.f1_score(labels, scores >= t) for t in np.unique(scores))
    assert ours[2] == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_invariances(seed):
    scores, labels = trials(seed, levels=5)
    order = np.random.default_rng(seed).permutation(len(scores))
    for metric in (eer, roc_auc, min_dcf):
        value = metric(scores, labels)
        assert metric(scores[order], labels[order]) == value
        assert metric(np.exp(scores), labels) == value
        twice = np.tile(scores, 2), np.tile(labels, 2)
        assert metric(*twice) == pytest.approx(value, abs=1e-12)
    assert eer(-scores, 1 - labels) == pytest.approx(eer(scores, labels))
    for threshold in scores[:20]:
        actual = act_dcf(scores, labels, threshold)
        assert actual >= min_dcf(scores, labels) - 1e-12


def test_results_are_python_floats():
    scores, labels = (torch.as_tensor(x) for x in trials(0))
    for metric in (eer, roc_auc, min_dcf, f1_threshold):
        assert type(metric(scores, labels)) is float
    assert type(act_dcf(scores, labels, 0.0)) is float
    values = precision_recall_f1(scores, labels, 0.0)
    assert [type(value) for value in values] == [float] * 3


@pytest.mark.parametrize("metric", CURVE_METRICS)
@pytest.mark.parametrize(
    "scores, labels, message",
    [
        ([], [], "scores are empty"),
        ([0.0, math.nan], [0, 1], "scores must be finite"),
        ([0.0, math.inf], [0, 1], "scores must be finite"),
        ([0.0, 1.0], [1, 1], "labels must hold both classes, got only 1"),
        ([0.0, 1.0], [0, 0], "labels must hold both classes, got only 0"),
        ([0.0, 1.0], [0, 2], "labels must be 0 or 1"),
        ([0.0, 1.0], [0.5, 1], "labels must be 0 or 1"),
        ([0.0, 1.0], [0, 1, 1], "scores and labels must be one-dimen"),
        ([[0.0], [1.0]], [[0], [1]], "scores and labels must be one-dimen"),
    ],
)
def test_errors(metric, scores, labels, message):
    with pytest.raises(ValueError, match=message):
        metric(scores, labels)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"p_target": 0.0}, "p_target"),
        ({"p_target": 1.0}, "p_target"),
        ({"c_miss": 0.0}, "c_miss"),
        ({"c_fa": -1.0}, "c_fa"),
    ],
)
def test_cost_errors(wrong, message):
    with pytest.raises(ValueError, match=message):
        min_dcf(SCORES, LABELS, **wrong)
    with pytest.raises(ValueError, match=message):
        FrameScores(**wrong)


def test_lists_keep_their_64_bits():
    close = [1.0, 1.0 + 1e-12]  # equal in 32 bit
    assert roc_auc(close, [0, 1]) == roc_auc(np.array(close), [0, 1]) == 1.0


def test_threshold_nan():
    with pytest.raises(ValueError, match="threshold"):
        precision_recall_f1(SCORES, LABELS, math.nan)


def test_padding_never_counts(device):
    """The summary is that of the un-padded frames, whatever padding holds."""
    torch.manual_seed(0)
    lengths = [50, 33, 7, 49]
    scores = torch.randn(4, 50, device=device)
    labels = torch.randint(2, (4, 50), device=device)
    lens = torch.tensor(lengths, device=device) / 50
    padded_scores, padded_labels = scores.clone(), labels.clone()
    for i, n in enumerate(lengths):
        padded_scores[i, n:] = math.nan
        padded_labels[i, n:] = -100
    stats = FrameScores()
    stats.append(list("abcd"), padded_scores, padded_labels, lens)
    summary = stats.summarize()

    flat = torch.cat([scores[i, :n] for i, n in enumerate(lengths)])
    flat_labels = torch.cat([labels[i, :n] for i, n in enumerate(lengths)])
    assert [len(s) for s in stats.scores] == lengths
    assert summary["EER"] == eer(flat, flat_labels)
    assert summary["AUC"] == roc_auc(flat, flat_labels)
    assert summary["threshold"] == f1_threshold(flat, flat_labels)
    assert all(s.device.type == "cpu" for s in stats.scores)


@pytest.mark.parametrize("frames", [10, 101, 999])
def test_every_length_is_kept_exactly(frames):
    """Relative lengths in 32 bit give back each number of frames."""
    lengths = torch.arange(1, frames + 1)
    scores = torch.zeros(frames, frames)
    stats = FrameScores()
    stats.append(range(frames), scores, scores.long(), lengths / frames)
    assert [len(s) for s in stats.scores] == lengths.tolist()


def test_batching_does_not_matter():
    scores, labels = (torch.as_tensor(x).view(8, 50) for x in trials(1))
    lens = torch.ones(8)
    one = FrameScores()
    one.append(list("abcdefgh"), scores, labels, lens)
    many = FrameScores()
    for i in range(8):
        part = slice(i, i + 1)
        many.append([i], scores[part], labels[part], lens[part])
    summary = many.summarize()
    assert one.summarize() == summary
    scores.zero_()  # what was appended is a copy
    assert one.summarize() == summary


def test_summary_values_groups_and_threshold():
    scores, labels = (torch.as_tensor(x).view(4, 100) for x in trials(2))
    labels[3] = 0
    stats = FrameScores(p_target=0.75)
    groups = ["<5", "<5", ">=5", "noise"]
    stats.append(list("abcd"), scores, labels, torch.ones(4), groups)
    summary = stats.summarize(threshold=0.25)
    assert set(summary) == {
        *("EER", "minDCF", "AUC", "F1", "precision", "recall", "threshold"),
        *("EER <5", "EER >=5", "EER noise"),
    }
    assert all(type(value) is float for value in summary.values())
    flat = scores.flatten(), labels.flatten()
    assert summary["minDCF"] == min_dcf(*flat, p_target=0.75)
    assert summary["threshold"] == 0.25
    got = summary["precision"], summary["recall"], summary["F1"]
    assert got == precision_recall_f1(*flat, 0.25)
    low = eer(scores[:2].flatten(), labels[:2].flatten())
    assert summary["EER <5"] == low
    assert summary["EER >=5"] == eer(scores[2], labels[2])
    assert math.isnan(summary["EER noise"])


def test_frame_scores_errors():
    stats = FrameScores()
    with pytest.raises(ValueError, match="scores are empty"):
        stats.summarize()
    scores, labels = torch.zeros(2, 3), torch.zeros(2, 3)
    lens = torch.ones(2)
    with pytest.raises(ValueError, match="scores and labels must both be"):
        stats.append(["a", "b"], scores.unsqueeze(2), labels, lens)
    with pytest.raises(ValueError, match="batch size"):
        stats.append(["a"], scores, labels, lens)
    with pytest.raises(ValueError, match="batch size"):
        stats.append(["a", "b"], scores, labels, lens, ["<5"])
    for bad in (1.5, -0.1, math.nan):
        with pytest.raises(ValueError, match="lens"):
            stats.append(["a", "b"], scores, labels, torch.tensor([1.0, bad]))
    scores[1, 1] = math.nan
    with pytest.raises(ValueError, match="scores of 'b' must be finite"):
        stats.append(["a", "b"], scores, labels, lens)
    assert stats.scores == []  # a refused batch leaves nothing behind
    stats.append(["a"], scores[:1], labels[:1], lens[:1])
    with pytest.raises(ValueError, match="labels must hold both classes"):
        stats.summarize()
