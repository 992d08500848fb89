#!/usr/bin/env python3
"""How often 95 % intervals of an EER hold the true EER, in simulation.

> python benchmarks/coverage.py [--sets 1000] [--draws 200]

Each data set has speakers of 10 to 20 trials and one or more training seeds
(see `simulate`); its true EER is known in closed form. Counted is how often
the interval holds it, with trials drawn independently, with speakers drawn
(seeds as they are), with speakers and then trials of each drawn
(`confidence_intervals` of `noisegate.evaluation.bootstrap`), and with its
`bootstrap` over speakers and seeds. Writes benchmarks/results/coverage.json and
the table of benchmarks/README.md.

Authors
 * The noisegate developers, 2026
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from scipy.stats import norm

from noisegate.evaluation.bootstrap import bootstrap, weighted_eer
from noisegate.evaluation.curves import hypervolume
from noisegate.evaluation.files import (
    fill_blocks,
    markdown_table,
    write_atomically,
)
from noisegate.evaluation.trials import Trials

RESULTS = Path(__file__).parent / "results" / "coverage.json"
README = Path(__file__).parent / "README.md"
SEPARATION = 2.5  # mean of the targets, in standard deviations: EER 10.6 %
SPEAKER = 0.3  # share of the variance that is the speaker's
COMMON = 0.5  # share of speaker and trial effects that all seeds have
BUDGETS = [0.125, 0.25, 0.5, 1.0]  # of the hypervolume
# quantity, speakers, seeds, standard deviation of the separation over seeds
SCENARIOS = [
    ("EER", 10, 1, 0.0),
    ("EER", 20, 1, 0.0),
    ("EER", 60, 1, 0.0),
    ("EER", 10, 3, 0.3),
    ("EER", 20, 3, 0.3),
    ("EER", 60, 3, 0.3),
    ("EER", 20, 5, 0.3),
    ("EER", 60, 5, 0.3),
    ("EER", 20, 3, 1.0),
    ("EER difference", 10, 3, 0.3),
    ("EER difference", 20, 3, 0.3),
    ("EER difference", 60, 3, 0.3),
    ("EER difference", 20, 5, 0.3),
    ("HV difference", 20, 3, 0.3),
]
METHODS = ["trials", "speakers", "speakers, trials", "speakers, seeds"]


def simulate(rng, n_speakers, separation, seed_std):
    """Scores of a test by several trained models.

    The separation of a model is Gaussian over training seeds. Each speaker
    shifts the scores of their targets, and by another Gaussian number those
    of their non-targets: with the same shift for both, misses and false
    alarms would make up for each other. All is partly common to all models,
    as speakers and trials are hard for all. Targets and non-targets have the
    same variance, 1, so that a model of separation d has the EER Phi(-d / 2).

    Arguments
    ---------
    rng : np.random.Generator
    n_speakers : int
    separation : array (runs,)
        Mean of the separation, one per model.
    seed_std : float
        Standard deviation of the separation over seeds.

    Returns
    -------
    scores : array (runs, trials)
    labels : array (trials,)
    speakers : array (trials,)
    """
    speakers = np.repeat(
        np.arange(n_speakers), rng.integers(10, 21, size=n_speakers)
    )
    labels = rng.integers(2, size=len(speakers))

    n_runs = len(separation)

    def effect(*shape):
        own = np.sqrt(1 - COMMON) * rng.normal(size=(n_runs, *shape))
        return np.sqrt(COMMON) * rng.normal(size=shape) + own

    shift = effect(2, n_speakers)[:, labels, speakers]
    separation = separation + seed_std * rng.normal(size=n_runs)
    scores = separation[:, None] * labels + np.sqrt(SPEAKER) * shift
    scores += np.sqrt(1 - SPEAKER) * effect(len(labels))
    return scores, labels, speakers


def true_eer(seed_std):
    """Mean EER in percent over all seeds, speakers and trials.

    The mean of Phi(-d / 2) over Gaussian d.

    Arguments
    ---------
    seed_std : float
        As in `simulate`.

    Returns
    -------
    eer : float
    """
    spread = np.sqrt(1 + seed_std**2 / 4)
    return 100 * float(norm.cdf(-SEPARATION / 2 / spread))


def weights_of(method, rng, speakers, n):
    """How often each trial is in each draw, for the methods of fixed seeds.

    Arguments
    ---------
    method : str
        Of `METHODS`, but for the last.
    rng : np.random.Generator
    speakers : array (trials,)
        Sorted, from 0.
    n : int
        Number of draws.

    Returns
    -------
    weights : array (draws, trials)
    """
    n_trials, sizes = len(speakers), np.bincount(speakers)
    if method == "trials":
        return rng.multinomial(n_trials, np.full(n_trials, 1 / n_trials), n)
    n_speakers = len(sizes)
    drawn = rng.multinomial(n_speakers, np.full(n_speakers, 1 / n_speakers), n)
    drawn = drawn[:, speakers]
    if method == "speakers":
        return drawn
    first = (np.cumsum(sizes) - sizes)[speakers]
    pick = first + (rng.random((n, n_trials)) * sizes[speakers]).astype(int)
    flat = (pick + n_trials * np.arange(n)[:, None]).ravel()
    return drawn * np.bincount(flat, minlength=drawn.size).reshape(drawn.shape)


def statistic(eers):
    """The quantity of a scenario: one system, two, or two with all budgets.

    Arguments
    ---------
    eers : dict of tuple to float
        Mean EER by method, 0 or 1, and budget.

    Returns
    -------
    value : float
        EER in percent, its difference, or 100 times the difference of the
        hypervolume up to an EER of 50 % at twice the dense cost.
    """
    if len(eers) <= 2:
        return eers[0, 1.0] - eers.get((1, 1.0), 0.0)
    first, second = (
        hypervolume(
            BUDGETS, [eers[m, c] for c in BUDGETS], (2.0, 50.0), BUDGETS[0]
        )
        for m in (0, 1)
    )
    return 100 * (first - second)


def intervals(rng, scenario, n, methods=METHODS):
    """The 95 % intervals of one data set.

    Arguments
    ---------
    rng : np.random.Generator
    scenario : tuple
        Of `SCENARIOS`. Two methods are alike: the true difference is 0.
    n : int
        Number of draws.
    methods : list of str

    Returns
    -------
    intervals : dict of str to tuple of float
        Lower and upper end by method.
    """
    quantity, n_speakers, n_seeds, seed_std = scenario
    budgets = BUDGETS if quantity == "HV difference" else [1.0]
    systems = [(m, c) for m in range(1 + ("diff" in quantity)) for c in budgets]
    mean = SEPARATION + 0.3 * np.log2([c for _, c in systems])
    scores, labels, speakers = simulate(
        rng, n_speakers, np.repeat(mean, n_seeds), seed_std
    )
    scores = scores.reshape(len(systems), n_seeds, -1)
    found = {}
    for method in methods:
        if method == "speakers, seeds":
            runs = {
                system: {
                    i: Trials.of(x, labels, speakers)
                    for i, x in enumerate(seeds)
                }
                for system, seeds in zip(systems, scores)
            }
            seed = int(rng.integers(2**31))
            estimate = bootstrap(statistic, runs, n=n, seed=seed)
            found[method] = estimate.low, estimate.high
            continue
        weights = weights_of(method, rng, speakers, n)
        eers = [
            np.mean([weighted_eer(x, labels, weights) for x in seeds], axis=0)
            for seeds in scores
        ]
        values = [statistic(dict(zip(systems, row))) for row in zip(*eers)]
        found[method] = tuple(np.percentile(values, [2.5, 97.5]))
    return found


def coverage(scenario, n_sets, n, methods=METHODS):
    """Share of data sets whose interval holds the true value.

    Arguments
    ---------
    scenario : tuple
        Of `SCENARIOS`.
    n_sets : int
        Number of data sets.
    n : int
        Number of draws for each.
    methods : list of str

    Returns
    -------
    found : dict of str to dict
        By method `coverage` (percent) and `width` (mean).
    """
    rng = np.random.default_rng(0)
    true = 0.0 if "diff" in scenario[0] else true_eer(scenario[3])
    ends = [intervals(rng, scenario, n, methods) for _ in range(n_sets)]
    found = {}
    for method in methods:
        low, high = np.array([x[method] for x in ends]).T
        found[method] = {
            "coverage": round(
                100 * float(np.mean((low <= true) & (true <= high))), 1
            ),
            "width": round(float(np.mean(high - low)), 2),
        }
    return found


def table(rows):
    """The Markdown table of the results.

    Arguments
    ---------
    rows : list of dict
        As in the file of results.

    Returns
    -------
    table : str
    """
    headings = ["quantity", "speakers", "seeds", "std over seeds", *METHODS]
    lines = []
    for row in rows:
        cells = list(row["scenario"])
        for method in METHODS:
            got = row["methods"][method]
            cells.append(f"{got['coverage']:.1f} ({got['width']:.1f})")
        lines.append(cells)
    return markdown_table(headings, lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=200)
    args = parser.parse_args()
    start = time.process_time()
    rows = []
    for scenario in SCENARIOS:
        found = coverage(scenario, args.sets, args.draws)
        rows.append({"scenario": scenario, "methods": found})
        print(table(rows[-1:]).splitlines()[-1], flush=True)
    seconds = round(time.process_time() - start)
    result = {
        "sets": args.sets,
        "draws": args.draws,
        "processor_seconds": seconds,
        "rows": rows,
    }
    write_atomically(RESULTS, json.dumps(result, indent=1) + "\n")
    fill_blocks(README, coverage=table(rows))
    print(f"{seconds} s of processor time")


if __name__ == "__main__":
    main()
