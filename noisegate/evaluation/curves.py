"""Curves of cost and error over a sweep of models.

A point is a trained model, or the mean over the seeds of a cell of a sweep,
with a cost (any unit, e.g. the share of the dense MACs: 1, 0.5, 0.25, ...)
and an error (e.g. EER in percent). Less is better in both.

Authors
 * The noisegate developers, 2026
"""

import numpy as np
from scipy.integrate import trapezoid
from scipy.stats import spearmanr


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
