"""How sure a figure is: bootstrap over speakers, trials and training seeds.

Authors
 * The noisegate developers, 2026
"""

import copy
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import t as student

from noisegate.evaluation.metrics import _checked
from noisegate.extras import extra


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
    >>> from noisegate.evaluation.metrics import eer
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
    with extra("asvspoof"):
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


def weighted_eer(scores, labels, weights):
    """`noisegate.evaluation.metrics.eer` of trials that occur several times.

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
        `noisegate.evaluation.trials.Trials`, all of the same test set, with 2
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
    >>> from noisegate.evaluation.trials import Trials
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
    error_rates : bool
        Whether the figure is an error rate in place of the EER: trials are
        decisions, of label 1 if wrong, see
        :meth:`noisegate.evaluation.classes.ClassScores.write_trials`.
    """

    def __init__(self, runs, n=1000, seed=0, error_rates=False):
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
                if error_rates:  # what is wrong differs from run to run
                    mine = mine.sum(axis=0, keepdims=True)
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
        errors_of = _error_rates_of if error_rates else _eers_of
        self.eers = {
            name: {s: errors_of(trials, drawn) for s, trials in by_seed.items()}
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


def _error_rates_of(trials, drawn):
    """Share of wrong decisions in percent, likewise."""
    _, of = np.unique(trials.conditions, return_inverse=True)
    wrong = np.bincount(of, trials.counts * (trials.labels == 1))
    return 100 * (drawn @ wrong) / (drawn @ np.bincount(of, trials.counts))


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
