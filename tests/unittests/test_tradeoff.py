"""Trade-off curves and their intervals: by hand, brute force, simulation."""

import json
import math

import numpy as np
import pytest
from scipy.stats import t as student

from benchmarks import coverage
from noisegate.evaluation.bootstrap import Bootstrap, bootstrap, weighted_eer
from noisegate.evaluation.curves import area, hypervolume, monotonicity, pareto
from noisegate.evaluation.metrics import eer
from noisegate.evaluation.trials import Trials

# Figure 9 of the paper: GFLOPs and EER in percent of the 20 gated ResNets.
FIGURE_9 = np.array([
    [5.02, 3.32], [4.46, 6.24], [3.88, 6.01], [4.78, 4.57], [4.92, 3.68],
    [4.25, 6.43], [3.48, 5.80], [4.63, 5.95], [4.89, 7.52], [4.15, 5.89],
    [3.37, 6.50], [4.58, 3.04], [4.88, 5.68], [4.12, 7.44], [3.34, 4.70],
    [4.58, 5.52], [2.05, 3.93], [1.18, 3.48], [0.91, 2.53], [1.03, 7.34],
])  # fmt: skip


def cloud(seed, n=12):
    """Random points with ties in both."""
    rng = np.random.default_rng(seed)
    costs = 2.0 ** -rng.integers(0, 5, size=n)
    return costs, rng.integers(0, 12, size=n).astype(float)


@pytest.mark.parametrize("seed", range(5))
def test_pareto_by_brute_force(seed):
    costs, errors = cloud(seed)
    points = list(zip(costs, errors))
    kept = [
        i
        for i, (c, e) in enumerate(points)
        if not any(x <= c and y <= e and (x, y) != (c, e) for x, y in points)
    ]
    front = pareto(costs, errors)
    assert sorted(front) == kept
    assert (np.diff(costs[front]) >= 0).all()
    assert (np.diff(errors[front]) <= 0).all()


def test_pareto_ties():
    # Equal in both: both; equal cost: the better; equal error: the cheaper.
    assert pareto([1.0, 1.0, 1.0], [2.0, 2.0, 3.0]).tolist() == [0, 1]
    assert pareto([1.0, 0.5], [2.0, 2.0]).tolist() == [1]


@pytest.mark.parametrize("seed", range(5))
def test_hypervolume_by_brute_force(seed):
    """The share of a grid of points that some model dominates."""
    costs, errors = cloud(seed)
    reference, lowest = (0.7, 9.0), 0.1
    middles = (np.arange(600) + 0.5) / 600
    x = math.log2(lowest) + middles * math.log2(reference[0] / lowest)
    y = middles * reference[1]
    held = np.zeros((600, 600), bool)
    for cost, error in zip(costs, errors):
        held |= (math.log2(cost) <= x)[:, None] & (error <= y)
    got = hypervolume(costs, errors, reference, lowest)
    assert got == pytest.approx(held.mean(), abs=4e-3)
    front = pareto(costs, errors)
    same = hypervolume(costs[front], errors[front], reference, lowest)
    assert got == pytest.approx(same, abs=1e-12)
    scaled = hypervolume(7 * costs, 3 * errors, (7 * 0.7, 3 * 9.0), 7 * lowest)
    assert got == pytest.approx(scaled, abs=1e-12)


def test_hypervolume_extremes():
    reference, lowest = (1.0, 50.0), 0.125
    assert hypervolume([0.125, 1.0], [0.0, 9.0], reference, lowest) == 1.0
    assert hypervolume([0.01], [0.0], reference, lowest) == 1.0
    # On the reference and beyond it: nothing
    assert hypervolume([1.0], [0.0], reference, lowest) == 0.0
    assert hypervolume([0.125], [50.0], reference, lowest) == 0.0
    assert hypervolume([2.0, 0.125], [0.0, 60.0], reference, lowest) == 0.0
    # One of three halvings at error 0
    assert hypervolume([0.5], [0.0], reference, lowest) == pytest.approx(1 / 3)


def test_area_by_hand():
    costs, errors = [0.25, 1.0, 0.5], [8.0, 2.0, 4.0]  # in any order
    assert area(costs, errors, (0.25, 1.0)) == pytest.approx(4.5)
    assert area(costs, errors, (0.25, 0.5)) == pytest.approx(6.0)
    # From half way between two budgets, where the error is 6
    low = 2.0**-1.5
    got = area(costs, errors, (low, 1.0))
    assert got == pytest.approx((0.5 * 5 + 1 * 3) / 1.5)
    assert area(costs, [3.0] * 3, (0.3, 0.9)) == pytest.approx(3.0)


def test_monotonicity_of_the_published_figure():
    rho, inversions = monotonicity(*FIGURE_9.T)
    assert round(rho, 2) == -0.02
    # Means at equal cost; 19 different costs
    by_cost = {}
    for cost, error in FIGURE_9:
        by_cost.setdefault(cost, []).append(error)
    means = [np.mean(by_cost[cost]) for cost in sorted(by_cost)]
    assert inversions == sum(b > a for a, b in zip(means, means[1:]))


def test_monotonicity_by_hand():
    costs = [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]
    falling = monotonicity(costs, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    assert falling == (pytest.approx(-0.956, abs=1e-3), 0)
    # Means 2, 1, 5: the step from 0.5 to 1 is one for the worse
    assert monotonicity(costs, [1.0, 3.0, 1.0, 1.0, 5.0, 5.0])[1] == 1
    rho, inversions = monotonicity(costs, [1.0] * 6)
    assert math.isnan(rho) and inversions == 0


@pytest.mark.parametrize("levels", [None, 4, 1])
@pytest.mark.parametrize("seed", range(4))
def test_weighted_eer_is_eer_of_repeated_trials(seed, levels):
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=60)
    scores = rng.normal(size=60) + labels
    if levels is not None:
        scores = np.round(scores * levels) / levels
    weights = rng.integers(4, size=(50, 60))  # a quarter is left out
    got = weighted_eer(scores, labels, weights)
    for weight, value in zip(weights, got):
        repeated = np.repeat(scores, weight), np.repeat(labels, weight)
        assert value == eer(*repeated)
        assert weighted_eer(scores, labels, weight) == value
    ones = np.ones(60, dtype=np.uint8)
    assert weighted_eer(scores, labels, ones) == eer(scores, labels)


def test_weighted_eer_in_blocks():
    """More trials and draws than are handled at a time."""
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=300_000)
    scores = rng.normal(size=300_000) + labels
    weights = rng.integers(3, size=(5, 300_000))
    got = weighted_eer(scores, labels, weights)
    alone = [weighted_eer(scores, labels, weight) for weight in weights]
    assert got.tolist() == alone


def sweep(seed=0, n_speakers=20, n_seeds=3, budgets=(0.5, 1.0), std=0.2):
    """Runs of two methods at several budgets, labels and speakers."""
    rng = np.random.default_rng(seed)
    speakers = np.repeat([f"s{i:02}" for i in range(n_speakers)], 20)
    labels = np.arange(len(speakers)) % 2
    noise = rng.normal(size=len(speakers))
    noise += np.repeat(0.5 * rng.normal(size=n_speakers), 20) * labels
    runs = {}
    for method, better in (("gated", 0.5), ("small", 0.0)):
        for budget in budgets:
            d = 1.5 + better + math.log2(budget) / 2
            runs[method, budget] = {
                s: (d + std * rng.normal()) * labels
                + noise
                + 0.3 * rng.normal(size=len(noise))
                for s in range(n_seeds)
            }
    return runs, labels, speakers


def boot(statistic, runs, labels, speakers, **kwargs):
    """The interval, of systems that are given as arrays of scores."""
    trials = {
        name: {s: Trials.of(x, labels, speakers) for s, x in by_seed.items()}
        for name, by_seed in runs.items()
    }
    return bootstrap(statistic, trials, **kwargs)


def mean_eer(by_seed, labels):
    return np.mean([eer(scores, labels) for scores in by_seed.values()])


def test_bootstrap_of_one_of_two_and_of_curves():
    runs, labels, speakers = sweep()

    def volume(eers, method):
        errors = [eers[method, c] for c in (0.5, 1.0)]
        return hypervolume([0.5, 1.0], errors, (2.0, 50.0), 0.5)

    def statistic(eers):
        return [
            eers["gated", 1.0],
            eers["small", 1.0] - eers["gated", 1.0],
            volume(eers, "gated") - volume(eers, "small"),
        ]

    got = boot(statistic, runs, labels, speakers, n=200)
    eers = {key: mean_eer(x, labels) for key, x in runs.items()}
    assert got.value == pytest.approx(statistic(eers))
    assert (got.low < got.value).all() and (got.value < got.high).all()
    assert got.low[1] > 0 and got.low[2] > 0  # clearly better
    assert (got.above > 0.95).all()
    # The same draws for one statistic as for many: floats, the same ones
    one = boot(lambda e: e["gated", 1.0], runs, labels, speakers, n=200)
    assert all(type(x) is float for x in one)
    assert one == pytest.approx([x[0] for x in got])
    other = boot(
        lambda e: e["gated", 1.0], runs, labels, speakers, n=200, seed=1
    )
    assert other.value == one.value and other.low != one.low
    half = boot(
        lambda e: e["gated", 1.0], runs, labels, speakers, n=200, level=0.5
    )
    assert one.low < half.low < half.high < one.high


def test_bootstrap_of_rounded_scores():
    """Trials counted together are as good as each on its own."""
    runs, labels, speakers = sweep()
    rounded = {
        name: {s: np.round(x, 1) for s, x in by_seed.items()}
        for name, by_seed in runs.items()
    }
    trials = {
        name: {s: Trials.of(x, labels, speakers) for s, x in by_seed.items()}
        for name, by_seed in rounded.items()
    }
    assert len(trials["gated", 1.0][0].scores) < len(labels)
    single = {
        name: {
            s: Trials(x, labels, np.asarray(speakers), np.ones_like(labels))
            for s, x in by_seed.items()
        }
        for name, by_seed in rounded.items()
    }

    def statistic(eers):
        return eers["gated", 1.0] - eers["small", 1.0]

    got = bootstrap(statistic, trials, n=100)
    assert got == pytest.approx(bootstrap(statistic, single, n=100), rel=1e-12)
    exact = boot(statistic, runs, labels, speakers, n=100)
    width = exact.high - exact.low
    assert got[:3] == pytest.approx(exact[:3], abs=0.2 * width)


def test_bootstrap_is_paired():
    """Conditions are drawn for all systems, and seeds where they are shared."""
    runs, labels, speakers = sweep(std=1.0)

    def difference(eers):
        return eers["a"] - eers["b"]

    mine = runs["gated", 1.0]
    twice = {"a": mine, "b": mine}
    got = boot(difference, twice, labels, speakers, n=100)
    assert got == (0.0, 0.0, 0.0, 0.0)
    # Seeds in another order are the same seeds
    twice["b"] = dict(reversed(mine.items()))
    got = boot(difference, twice, labels, speakers, n=100)
    assert got == (0.0, 0.0, 0.0, 0.0)
    # Other seeds: drawn on their own, though the scores are the same
    twice["b"] = {s + 10: scores for s, scores in mine.items()}
    got = boot(difference, twice, labels, speakers, n=100)
    assert got.value == 0.0 and got.low < -1 and got.high > 1
    # One seed each: pairs of conditions alone
    one = {"a": {0: mine[0]}, "b": {5: mine[0]}}
    got = boot(difference, one, labels, speakers, n=100)
    assert got == (0.0, 0.0, 0.0, 0.0)


def test_systems_with_few_seeds_do_not_matter_elsewhere():
    """What is about others is the same with and without them."""
    runs, labels, speakers = sweep(n_seeds=5)
    trials = {
        name: {s: Trials.of(x, labels, speakers) for s, x in by_seed.items()}
        for name, by_seed in runs.items()
    }
    key = "gated", 1.0
    few = {**trials, "few": {s: trials[key][s] for s in (0, 1)}}
    own = {key: list(trials[key])}
    one, other = (
        Bootstrap(x, n=100).estimate(lambda eers: eers[key], own)
        for x in (trials, few)
    )
    assert one == other
    # Fewer seeds: a wider interval
    less = Bootstrap(few, n=100).estimate(
        lambda eers: eers["few"], {"few": [0, 1]}
    )
    assert less.high - less.low > one.high - one.low


def test_bootstrap_over_seeds_alone():
    """Seeds alone: the width of the textbook's t interval."""
    runs, labels, speakers = sweep(n_seeds=5, std=0.5)
    mine = runs["gated", 1.0]
    eers = np.array([eer(x, labels) for x in mine.values()])
    # All trials of all conditions alike: seeds are the only spread
    copies = {s: np.tile(x, 10) for s, x in mine.items()}
    same = np.repeat(np.arange(10), len(labels))
    got = boot(
        lambda e: [e["x"], e["x"] - eers.mean()],
        {"x": copies},
        np.tile(labels, 10),
        same,
        n=4000,
    )
    half = student.ppf(0.975, 4) * eers.std(ddof=1) / math.sqrt(5)
    # Monte-Carlo error 0.011; without the 5 / 4 of the variance 0.894
    assert (got.high - got.low) / 2 / half == pytest.approx([1, 1], abs=0.04)
    assert got.value == pytest.approx([eers.mean(), 0.0])
    assert got.above[0] == 1.0 and 0.4 < got.above[1] < 0.6


@pytest.mark.parametrize("single", [False, True])
def test_bootstrap_against_confidence_intervals(single):
    """One seed: Student's interval from the draws of the package."""
    package = pytest.importorskip("confidence_intervals")
    runs, labels, speakers = sweep(seed=3, n_speakers=3 if single else 16)
    scores = runs["small", 1.0][0]
    if single:  # each trial a condition: it draws conditions, then trials
        speakers = np.arange(len(labels))
    names, of = np.unique(speakers, return_inverse=True)
    trials = [np.flatnonzero(of == c) for c in range(len(names))]

    def of_conditions(drawn):
        chosen = np.concatenate([trials[c] for c in drawn])
        return eer(scores[chosen], labels[chosen])

    if single:
        theirs = package.Bootstrap(300, lambda y, x: eer(x, y))
        values = theirs.run(scores, labels, conditions=speakers)
    else:
        theirs = package.Bootstrap(2000, of_conditions)
        values = theirs.run(np.arange(len(names)), None)
    got = boot(lambda e: e["x"], {"x": {0: scores}}, labels, speakers, n=2000)
    n = len(names)
    half = student.ppf(0.975, n - 1) * values.std() * math.sqrt(n / (n - 1))
    value = eer(scores, labels)
    # Monte-Carlo error of a standard deviation of 300 and of 2000 draws
    tolerance = 4 * half * math.sqrt(1 / (2 * len(values)) + 1 / 4000)
    assert got.value == value
    assert got.low == pytest.approx(value - half, abs=tolerance)
    assert got.high == pytest.approx(value + half, abs=tolerance)
    low, high = np.percentile(values, [2.5, 97.5])
    assert high - low < 2 * half


@pytest.mark.parametrize("n_seeds, seed_std", [(1, 0.0), (3, 0.3)])
def test_intervals_cover(n_seeds, seed_std):
    """In simulation; benchmarks/coverage.py has more, and exact figures."""
    scenario = ("EER", 20, n_seeds, seed_std)
    found = coverage.coverage(scenario, 150, 150, ["trials", "speakers, seeds"])
    assert found["trials"]["coverage"] < 90
    assert 90 <= found["speakers, seeds"]["coverage"] <= 99.5


def test_the_table_is_that_of_the_results():
    rows = json.loads(coverage.RESULTS.read_text(encoding="utf-8"))["rows"]
    assert [tuple(row["scenario"]) for row in rows] == coverage.SCENARIOS
    assert coverage.table(rows) in coverage.README.read_text(encoding="utf-8")


def test_simulation_has_the_true_eer():
    """The closed form, against many seeds and speakers."""
    rng = np.random.default_rng(1)
    got = []
    for _ in range(300):
        separation = np.full(5, coverage.SEPARATION)
        scores, labels, _ = coverage.simulate(rng, 20, separation, 0.6)
        ones = np.ones(len(labels), int)
        got.extend(weighted_eer(x, labels, ones) for x in scores)
    # Standard error of the mean: 0.2. Without the seeds it would be 10.6.
    assert np.mean(got) == pytest.approx(coverage.true_eer(0.6), abs=0.6)
    assert coverage.true_eer(0.6) == pytest.approx(11.56, abs=0.01)
    assert coverage.true_eer(0.0) == pytest.approx(10.56, abs=0.01)


@pytest.mark.parametrize("function", [pareto, monotonicity])
@pytest.mark.parametrize(
    "costs, errors, message",
    [
        ([], [], "costs and errors must be one-dimensional"),
        ([1.0, 2.0], [1.0], "costs and errors must be one-dimensional"),
        ([0.0, 1.0], [1.0, 1.0], "costs must be positive"),
        ([math.inf, 1.0], [1.0, 1.0], "costs must be positive and finite"),
        ([2.0, 1.0], [math.nan, 1.0], "errors must be finite"),
    ],
)
def test_errors_of_points(function, costs, errors, message):
    with pytest.raises(ValueError, match=message):
        function(costs, errors)


def test_errors_of_curves():
    with pytest.raises(ValueError, match="lowest"):
        hypervolume([1.0], [1.0], (1.0, 5.0), 1.0)
    with pytest.raises(ValueError, match="reference"):
        hypervolume([1.0], [1.0], (1.0, 0.0), 0.5)
    with pytest.raises(ValueError, match="errors must be 0 or more, got -1"):
        hypervolume([1.0], [-1.0], (1.0, 5.0), 0.5)
    with pytest.raises(ValueError, match="costs must occur once"):
        area([1.0, 1.0, 0.5], [1.0, 2.0, 3.0], (0.5, 1.0))
    for limits in ((0.25, 1.0), (0.5, 2.0), (1.0, 0.5)):
        with pytest.raises(ValueError, match="limits"):
            area([1.0, 0.5], [1.0, 2.0], limits)
    with pytest.raises(ValueError, match="costs must differ, got 1.0 only"):
        monotonicity([1.0, 1.0], [1.0, 2.0])


@pytest.mark.parametrize(
    "scores, labels, weights, message",
    [
        ([0.0, 1.0], [0, 1], [0.5, 1.0], "weights must be integers"),
        ([0.0, 1.0], [0, 1], [1, 1, 1], "weights must be integers"),
        ([0.0, 1.0], [0, 1], [-1, 1], "weights must be 0 or more, got -1"),
        ([0.0, 1.0], [0, 1], [[1, 1], [0, 1]], "weights must keep trials"),
        ([0.0, 1.0], [1, 1], [1, 1], "labels must be 0 and 1"),
        ([0.0, 1.0], [0, 2], [1, 1], "labels must be 0 and 1"),
        ([0.0, math.nan], [0, 1], [1, 1], "scores must be finite"),
        ([0.0], [0, 1], [1, 1], "scores must be one-dimensional"),
    ],
)
def test_errors_of_weighted_eer(scores, labels, weights, message):
    with pytest.raises(ValueError, match=message):
        weighted_eer(scores, labels, weights)


def test_errors_of_bootstrap():
    runs, labels, speakers = sweep(n_speakers=4)

    def run(runs=runs, labels=labels, speakers=speakers, **kwargs):
        boot(lambda e: 0.0, runs, labels, speakers, **kwargs)

    with pytest.raises(ValueError, match="n must be 2 or more, got 1"):
        run(n=1)
    with pytest.raises(ValueError, match="level must be between 0 and 1"):
        run(level=95)
    for empty in ({}, {"a": {}}):
        with pytest.raises(ValueError, match="runs must hold systems"):
            run(empty)
    with pytest.raises(ValueError, match="conditions must be 2 or more"):
        run(speakers=["s"] * len(labels))
    mine = Trials.of([0.0, 1.0, 2.0], [0, 1, 1], ["a", "a", "b"])
    for labels_of, speakers_of in [([0, 0, 1], "aab"), ([0, 1, 1], "aac")]:
        other = Trials.of([0.0, 1.0, 2.0], labels_of, list(speakers_of))
        with pytest.raises(ValueError, match="same trials, 'x', seed 8 has"):
            bootstrap(lambda e: 0.0, {"x": {7: mine, 8: other}})
    # Targets in one condition of four only: many draws miss it
    labels = (speakers == "s00").astype(int)
    labels[speakers == "s01"] = 1
    speakers = np.where(labels == 1, "a", speakers)
    with pytest.raises(ValueError, match="half of the draws hold one class"):
        run(labels=labels, speakers=np.where(labels == 1, "a", "b"))
