"""Trade-off of cost and error over a sweep of models, and how sure it is.

A point is a trained model, or the mean over the seeds of a cell of a sweep,
with a cost (any unit, e.g. the share of the dense MACs: 1, 0.5, 0.25, ...)
and an error (e.g. EER in percent). Less is better in both. First what
describes a curve, then the bootstrap over training seeds and test conditions.

Authors
 * The noisegate developers, 2026
"""

import copy
from typing import Any, NamedTuple

import numpy as np
from scipy.integrate import trapezoid
from scipy.stats import (
    spearmanr,
    t as student,
)


def pareto(costs, errors):
    """The points that no other point beats.

    A point is beaten if another one is no worse in both and better in one.
    Of points with equal cost, those with the least error can remain; points
    that are equal in both remain together.

    Arguments
    ---------
    costs : array (points,)
        Positive.
    errors : array (points,)
        Finite.

    Returns
    -------
    front : array (front,)
        Indices of the points, by increasing cost, then by index.

    Example
    -------
    >>> pareto([1.0, 0.5, 0.25, 0.25], [3.0, 2.0, 4.0, 5.0]).tolist()
    [2, 1]
    """
    costs, errors = _points(costs, errors)
    worse = costs[:, None] >= costs
    worse &= errors[:, None] >= errors
    worse &= (costs[:, None] > costs) | (errors[:, None] > errors)
    front = np.flatnonzero(~worse.any(axis=1))
    return front[np.argsort(costs[front], kind="stable")]


def hypervolume(costs, errors, reference, lowest):
    """Share of the plane of log2 cost and error that the points dominate.

        HV = 1 - (mean of f(c) over log2 c from `lowest` to the reference) / e
        f(c) = min(e, least error of the points with cost <= c)

    for a reference point (cost, e). 1: error 0 at the lowest cost already; 0:
    no point is better than the reference. Points beyond the reference, in
    cost or in error, count nothing; points below `lowest` count as there.
    The cost is on a logarithm because budgets are halved from one to the
    next: each halving weighs alike, where on the cost itself the step from 1
    to 1/2 would be half of all. Compare values of the same reference and
    lowest cost only, and of equally many points: each point can only add, so
    that noise in many of them looks like quality. Zitzler and Thiele,
    "Multiobjective evolutionary algorithms: a comparative case study and the
    strength Pareto approach", IEEE Trans. Evolutionary Computation 3, 1999.

    Arguments
    ---------
    costs : array (points,)
        Positive.
    errors : array (points,)
        0 or more.
    reference : tuple of float
        Cost and error, e.g. 1 and the error of a chance system.
    lowest : float
        Lowest cost of the range, below that of the reference.

    Returns
    -------
    volume : float
        0 to 1.

    Example
    -------
    >>> hypervolume([1.0, 0.5], [2.0, 4.0], reference=(1.0, 8.0), lowest=0.25)
    0.25
    """
    costs, errors = _points(costs, errors)
    cost, error = reference
    if not 0 < lowest < cost:
        raise ValueError(
            "lowest must be above 0 and below the cost of the reference "
            f"({cost}), got {lowest}"
        )
    if not error > 0:
        raise ValueError(f"reference must have a positive error, got {error}")
    if errors.min() < 0:
        raise ValueError(f"errors must be 0 or more, got {errors.min()}")
    inside = (costs <= cost) & (errors <= error)
    order = np.argsort(costs[inside])
    x = np.log2(np.maximum(costs[inside][order], lowest))
    best = np.minimum.accumulate(errors[inside][order])
    span = np.log2(cost) - np.log2(lowest)
    widths = np.diff(x, append=np.log2(cost))
    return float(widths @ (error - best) / (span * error))


def area(costs, errors, limits):
    """Mean error over log2 of the cost, by the trapezoid rule.

    The errors are joined by straight lines over log2(cost); see `hypervolume`
    for why. In the unit of the errors, less is better; unlike `hypervolume`
    it counts a model that costs more and errs more.

    Arguments
    ---------
    costs : array (points,)
        Positive, each once.
    errors : array (points,)
        One (mean) error per cost.
    limits : tuple of float
        Lowest and highest cost. For a comparison those that all methods
        have: the greatest of their lowest and the least of their highest.

    Returns
    -------
    error : float

    Example
    -------
    >>> area([1.0, 0.5, 0.25], [2.0, 4.0, 8.0], limits=(0.25, 1.0))
    4.5
    """
    costs, errors = _points(costs, errors)
    if len(np.unique(costs)) < len(costs):
        raise ValueError(f"costs must occur once each, got {costs.tolist()}")
    low, high = limits
    if not costs.min() <= low < high <= costs.max():
        raise ValueError(
            f"limits must increase within the costs ({costs.min()} to "
            f"{costs.max()}), got {limits}"
        )
    order = np.argsort(costs)
    at, errors = np.log2(costs[order]), errors[order]
    ends = np.log2([low, high])
    x = np.concatenate(
        [ends[:1], at[(at > ends[0]) & (at < ends[1])], ends[1:]]
    )
    return float(trapezoid(np.interp(x, at, errors), x) / (ends[1] - ends[0]))


def monotonicity(costs, errors):
    """Whether more compute gives less error.

    Arguments
    ---------
    costs : array (models,)
        Positive. Models of one budget have the same cost: give the nominal
        one where learned costs differ a little.
    errors : array (models,)
        Finite.

    Returns
    -------
    rho : float
        Spearman's rank correlation of cost and error over the models, ties
        at their mean rank. -1: each step up in cost lowers the error; 0: the
        cost says nothing; nan if all errors are equal.
    inversions : int
        Number of adjacent budgets of which the more costly has the greater
        mean error.

    Example
    -------
    >>> rho, inversions = monotonicity([1.0, 0.5, 0.25], [2.0, 5.0, 4.0])
    >>> round(rho, 3), inversions
    (-0.5, 1)
    """
    costs, errors = _points(costs, errors)
    budgets, of = np.unique(costs, return_inverse=True)
    if len(budgets) < 2:
        raise ValueError(f"costs must differ, got {budgets[0]} only")
    means = np.bincount(of, errors) / np.bincount(of)
    rho = np.nan
    if len(np.unique(errors)) > 1:
        rho = spearmanr(costs, errors).statistic
    return float(rho), int(np.sum(np.diff(means) > 0))


def weighted_eer(scores, labels, weights):
    """`noisegate.metrics.eer` of trials that occur several times.

    The same value, to the last bit, as with each trial repeated; many sets
    of weights cost one sort.

    Arguments
    ---------
    scores : array (trials,)
        Finite scores, higher = target.
    labels : array (trials,)
        1 for target, 0 for non-target.
    weights : array (trials,) or (draws, trials)
        How often each trial occurs: integers, 0 or more. Both classes must
        occur in each draw.

    Returns
    -------
    eer : float or array (draws,)
        Percent, 0 to 100.

    Example
    -------
    >>> weighted_eer([3.0, 2.0, 1.0], [1, 0, 1], [[1, 1, 1], [9, 1, 1]])
    array([50., 10.])
    """
    scores, labels = _trials(scores, labels)
    weights = np.asarray(weights)
    draws = np.atleast_2d(weights)
    whole = np.issubdtype(draws.dtype, np.integer)
    if not whole or draws.ndim > 2 or draws.shape[1] != len(scores):
        raise ValueError(
            f"weights must be integers of shape ({len(scores)},) or (draws, "
            f"{len(scores)}), got {draws.dtype} of shape {weights.shape}"
        )
    if draws.min() < 0:
        raise ValueError(f"weights must be 0 or more, got {draws.min()}")
    if not (draws[:, labels].any(axis=1) & draws[:, ~labels].any(axis=1)).all():
        raise ValueError("weights must keep trials of both labels")
    every = np.arange(len(scores))
    eers = _eers(scores, labels, every, draws.astype(np.int64))
    return float(eers[0]) if weights.ndim == 1 else eers


class Estimate(NamedTuple):
    """What `bootstrap` returns: floats, or arrays as the statistic returns.

    Arguments
    ---------
    value : float
        The statistic on the data as they are.
    low : float
        Lower end of the interval.
    high : float
        Upper end.
    above : float
        Share of the draws (of both levels) with a statistic above 0, for
        differences. Of few seeds 0 or 1 is no proof: trust the interval.
    """

    value: Any
    low: Any
    high: Any
    above: Any


def bootstrap(statistic, runs, n=1000, seed=0, level=0.95):
    """Interval of a statistic of EERs, over training seeds and conditions.

    Systems are trained with several seeds and tested on the same trials.
    Each draw takes, with replacement, (1) as many conditions as there are,
    with all of their trials, the same for all systems, and (2) as many seeds
    as there are, the same for systems that have the same seeds, independent
    of each other otherwise. So differences are paired. The statistic gets the
    mean EER over the drawn seeds of each system. Both levels are crossed:
    Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 1, 2007;
    for conditions Ferrer et al., "Good practices for evaluation of machine
    learning systems", 2024.

    Percentiles of draws of few units are too narrow: the variance of a mean
    of N comes out (N - 1) / N of what it should be, and is uncertain itself.
    The interval is therefore Student's, with draws of conditions and of
    seeds alone, of variance v1 and v2, for C conditions and S seeds (the
    fewest of a system that has more than one):

        value +- t sqrt(w1 + w2)
        w1 = v1 C / (C - 1)
        w2 = v2 S / (S - 1)
        degrees of freedom = (w1 + w2)^2 / (w1^2 / (C - 1) + w2^2 / (S - 1))

    (Satterthwaite, "An approximate distribution of estimates of variance
    components", Biometrics Bulletin 2, 1946; Hesterberg, "What teachers should
    know about the bootstrap", American Statistician 69, 2015.) What is random
    from trial to trial counts in both terms, so that it is rather too wide.
    `benchmarks/coverage.py` counts how often it holds the true value: with
    10 conditions or 3 very different seeds less often than it says. An end
    may lie beyond what is possible, as an EER below 0.

    Arguments
    ---------
    statistic : callable
        Takes a dict of system to mean EER in percent; returns a float or an
        array. E.g. the EER of one system, the difference of two, or the
        difference of the `hypervolume` of two methods. Costs are taken as
        known: keep them in the function.
    runs : dict
        By system (any key, e.g. method and budget) a dict of seed to
        `noisegate.metrics.Trials`, all of the same test set, with 2
        conditions at least. A system of one seed has no spread over seeds:
        the interval is of this very model.
    n : int
        Number of draws, at least 2.
    seed : int
        Of the draws.
    level : float
        Share of intervals that should hold the true value, between 0 and 1.

    Returns
    -------
    estimate : Estimate

    Raises
    ------
    ValueError
        If runs were not tested on the same number of trials of each condition
        and class, or half of the draws hold one class only: too few
        conditions have both.

    Example
    -------
    >>> from noisegate.metrics import Trials
    >>> rng = np.random.default_rng(0)
    >>> labels, speakers = np.arange(400) % 2, np.arange(400) // 20
    >>> noise = rng.normal(size=(3, 400))
    >>> runs = {
    ...     name: {
    ...         seed: Trials.of(gap * labels + noise[seed], labels, speakers)
    ...         for seed in range(3)
    ...     }
    ...     for name, gap in [("good", 2.0), ("bad", 1.0)]
    ... }
    >>> worse = bootstrap(lambda eer: eer["bad"] - eer["good"], runs)
    >>> worse.low > 0, worse.above
    (True, 1.0)
    """
    return Bootstrap(runs, n, seed).estimate(statistic, level=level)


class Bootstrap:
    """Draws for several statistics of the same runs; see :func:`bootstrap`.

    Arguments
    ---------
    runs : dict
        By system and seed, see :func:`bootstrap`.
    n : int
        Number of draws, at least 2.
    seed : int
        Of the draws.
    """

    def __init__(self, runs, n=1000, seed=0):
        if n < 2:
            raise ValueError(f"n must be 2 or more, got {n}")
        if not runs or not all(runs.values()):
            raise ValueError(
                "runs must hold systems with one run at least each"
            )
        held = None  # trials of each class by condition
        for name, by_seed in runs.items():
            for s, trials in by_seed.items():
                names, of = np.unique(trials.conditions, return_inverse=True)
                mine = np.stack(
                    [
                        np.bincount(of, trials.counts * (trials.labels == y))
                        for y in (0, 1)
                    ]
                ).astype(int)
                if held is None:
                    self.conditions, held = list(names), mine
                if list(names) != self.conditions or (mine != held).any():
                    raise ValueError(
                        f"runs must be tested on the same trials, {name!r}, "
                        f"seed {s!r} has others than the first"
                    )
        if len(self.conditions) < 2:
            raise ValueError(
                "conditions must be 2 or more different ones, got "
                f"{self.conditions}"
            )
        self.n, self._rng = n, np.random.default_rng(seed)
        drawn = _draw_conditions(held, n, self._rng)
        # The first row: the data as they are
        drawn = np.concatenate([np.ones_like(drawn[:1]), drawn])
        self.eers = {
            name: {s: _eers_of(trials, drawn) for s, trials in by_seed.items()}
            for name, by_seed in runs.items()
        }

    def estimate(self, statistic, seeds=None, level=0.95):
        """Returns the interval of a statistic.

        Arguments
        ---------
        statistic : callable
            See :func:`bootstrap`.
        seeds : dict
            By system that the statistic is about the seeds that count; None:
            all of all. Systems with few seeds widen the interval, so leave
            out what does not matter.
        level : float
            See :func:`bootstrap`.

        Returns
        -------
        estimate : Estimate
        """
        if not 0 < level < 1:
            raise ValueError(f"level must be between 0 and 1, got {level}")
        seeds = self.eers if seeds is None else seeds
        rng = copy.deepcopy(self._rng)  # the same draws for each statistic
        shares = {}  # by set of seeds: of each seed in each draw
        for chosen in seeds.values():
            n_seeds = len(chosen)
            if frozenset(chosen) not in shares:
                counts = rng.multinomial(
                    n_seeds, [1 / n_seeds] * n_seeds, self.n
                )
                share = dict(zip(chosen, counts.T / n_seeds))
                shares[frozenset(chosen)] = share
        # Mean EER by draw: data as they are, both levels, each level alone
        means = [{}, {}, {}, {}]
        for name, chosen in seeds.items():
            eers, share = self.eers[name], shares[frozenset(chosen)]
            one = np.ones(self.n) / len(chosen)
            means[0][name] = sum(eers[s][:1] * one[0] for s in share)
            means[1][name] = sum(eers[s][1:] * share[s] for s in share)
            means[2][name] = sum(eers[s][1:] * one for s in share)
            means[3][name] = sum(eers[s][0] * share[s] for s in share)
        value, both, *alone = (_evaluate(statistic, mean) for mean in means)
        fewest = min((len(x) for x in seeds.values() if len(x) > 1), default=2)
        half = _half_width(alone, [len(self.conditions), fewest], level)
        above = (both > 0).mean(axis=0)
        parts = value[0], value[0] - half, value[0] + half, above
        if value[0].ndim == 0:
            parts = (float(x) for x in parts)
        return Estimate(*parts)


def _eers_of(trials, drawn):
    """EER of trials by draw, where conditions occur drawn[:, c] times."""
    _, of = np.unique(trials.conditions, return_inverse=True)
    return _eers(trials.scores, trials.labels == 1, of, drawn, trials.counts)


def _draw_conditions(held, n, rng):
    """How often each condition is in each draw (n, conditions)."""
    n_conditions = held.shape[1]
    p = np.full(n_conditions, 1 / n_conditions)
    drawn = rng.multinomial(n_conditions, p, 2 * n)
    drawn = drawn[(drawn @ held.T > 0).all(axis=1)][:n]
    if len(drawn) < n:
        raise ValueError(
            "conditions: half of the draws hold one class only, because of "
            f"{n_conditions} conditions too few have both"
        )
    return drawn


def _evaluate(statistic, means):
    """The statistic of each draw, (draws, ...)."""
    rows = zip(*means.values())
    return np.array([statistic(dict(zip(means, row))) for row in rows], float)


def _half_width(draws, sizes, level):
    """Half the interval of `bootstrap`, of draws of one level each."""
    tail = (1 - level) / 2
    w = np.stack([x.var(axis=0) * n / (n - 1) for x, n in zip(draws, sizes)])
    squares = sum(x**2 / (n - 1) for x, n in zip(w, sizes))
    total = w.sum(axis=0)
    df = np.where(squares > 0, total**2 / np.where(squares > 0, squares, 1), 1)
    return student.isf(tail, df) * np.sqrt(total)


def _eers(scores, labels, of, counts, times=1):
    """EER where trial i occurs times[i] counts[:, of[i]] times, by row."""
    order = np.argsort(-scores, kind="stable")
    scores, labels, of = scores[order], labels[order], of[order]
    times = np.broadcast_to(times, len(of))[order]
    last = np.append(scores[1:] != scores[:-1], True)  # of equal scores
    # Trials of each class up to each point of the ROC, in unweighted trials
    targets = np.append(0, np.cumsum(labels)[last])
    others = np.append(0, np.cumsum(~labels)[last])
    found = []
    rows = max(1, 10**6 // len(scores))  # at a time, for the memory
    for start in range(0, len(counts), rows):
        part = counts[start : start + rows]
        hits, alarms = (
            np.cumsum(
                np.insert(part[:, of[y]] * times[y], 0, 0, axis=1), axis=1
            )
            for y in (labels, ~labels)
        )
        found.append(_crossing(hits, alarms, targets, others))
    return np.concatenate(found)


def _crossing(hits, alarms, targets, others):
    """EER from accepted targets and non-targets; `targets` points to them."""
    row = np.arange(len(hits))

    def rates(k):
        p_fa = alarms[row, others[k]] / alarms[:, -1]
        p_miss = (hits[:, -1] - hits[row, targets[k]]) / hits[:, -1]
        return p_fa, p_fa - p_miss

    # p_fa - p_miss grows along the ROC: bisection to where it crosses 0
    low, high = row * 0, row * 0 + len(targets) - 1
    while (high - low).max() > 1:
        middle = (low + high) // 2
        before = rates(middle)[1] < 0
        low, high = (
            np.where(before, middle, low),
            np.where(before, high, middle),
        )
    (p_fa, gap), (next_fa, next_gap) = rates(low), rates(high)
    step = -gap / (next_gap - gap)
    return 100.0 * (p_fa + step * (next_fa - p_fa))


def _points(costs, errors):
    """Costs and errors as arrays of floats, or ValueError."""
    costs, errors = np.asarray(costs, float), np.asarray(errors, float)
    if costs.ndim != 1 or costs.shape != errors.shape or not len(costs):
        raise ValueError(
            "costs and errors must be one-dimensional, equally long and not "
            f"empty, got shapes {costs.shape} and {errors.shape}"
        )
    if not (np.isfinite(costs).all() and (costs > 0).all()):
        raise ValueError(
            f"costs must be positive and finite, got {costs.tolist()}"
        )
    if not np.isfinite(errors).all():
        raise ValueError(f"errors must be finite, got {errors.tolist()}")
    return costs, errors


def _trials(scores, labels, where=""):
    """Scores as floats and labels as bool, or ValueError."""
    scores, labels = np.asarray(scores, float), np.asarray(labels)
    if scores.ndim != 1 or scores.shape != labels.shape or not len(scores):
        raise ValueError(
            f"scores{where} must be one-dimensional, not empty and as many as "
            f"labels, got shapes {scores.shape} and {labels.shape}"
        )
    if not np.isfinite(scores).all():
        raise ValueError(f"scores{where} must be finite, got NaN or infinity")
    if set(np.unique(labels).tolist()) != {0, 1}:
        raise ValueError(
            "labels must be 0 and 1 and hold both, got "
            f"{np.unique(labels).tolist()[:5]}"
        )
    return scores, labels == 1
