"""The figures of a sweep by method and budget, and how sure they are.

Authors
 * The noisegate developers, 2026
"""

import csv
import math
from statistics import mean, stdev

from scipy.stats import t as student

from noisegate.evaluation.bootstrap import Bootstrap
from noisegate.evaluation.files import without_paths
from noisegate.evaluation.methods import METHODS
from noisegate.evaluation.table import figures, find_metric, summarize
from noisegate.evaluation.trials import read_trials


class SweepResults:
    """What the sections are made of.

    Arguments
    ---------
    sweep : noisegate.evaluation.results.SweepFolder
        The sweep.
    metric : str
        See :func:`noisegate.evaluation.table.summarize`.
    published : str
        Path of a CSV with published figures, or None; see
        :func:`noisegate.evaluation.report.write_report`.
    columns : list of str
        Further figures of the test for the table.
    """

    def __init__(self, sweep, metric=None, published=None, columns=()):
        self.sweep, self.results = sweep, sweep.results()
        self.rows = figures(self.results)
        self.summary = summarize(self.rows, metric, columns)
        self.metric = find_metric(self.rows, metric)
        self.published = [] if published is None else _published(published)
        if self.published and self.metric != "EER":
            raise ValueError(
                f"published figures are EERs, the curves show {self.metric}"
            )
        self.runs, self.left_out = {}, []
        for (cell, result), row in zip(self.results, self.rows):
            if math.isfinite(row[f"test {self.metric}"]):
                runs = self.runs.setdefault((cell.method, cell.budget), {})
                runs[cell.seed] = cell, result, row
            else:
                self.left_out.append(cell.name)
        if not self.runs:
            raise ValueError(f"no cell has a finite figure '{self.metric}'")
        order = list(METHODS)
        self.groups = sorted(
            self.runs, key=lambda g: (-g[1], order.index(g[0]))
        )
        self.methods = sorted({m for m, _ in self.groups}, key=order.index)
        self.dense = ("dense", 1.0) in self.runs
        self.draws, self.note = self._draw()

    def _draw(self):
        """Draws of speakers, if there are trials; else why there are none."""
        if self.metric not in ("EER", "error_rate"):
            return None, None
        trials, missing = {}, []
        for group, runs in self.runs.items():
            names = {seed: runs[seed][0].name for seed in sorted(runs)}
            paths = {s: self.sweep.trials(name) for s, name in names.items()}
            missing += [names[s] for s in paths if not paths[s].exists()]
            trials[group] = paths
        if missing:
            reason = f"no scores of {missing[0]}, the first of {len(missing)}"
            return None, f"Intervals are over seeds alone: {reason}."
        try:
            trials = {
                group: {seed: read_trials(path) for seed, path in paths.items()}
                for group, paths in trials.items()
            }
            by_decisions = self.metric == "error_rate"
            return Bootstrap(trials, error_rates=by_decisions), None
        except ValueError as error:
            reason = without_paths(str(error))
            return None, f"Intervals are over seeds alone: {reason}."

    def estimate(self, groups, function):
        """Value and 95 % interval of a quantity.

        Over seeds and speakers if there are draws, else Student's over the
        seeds; no interval with one seed.

        Arguments
        ---------
        groups : list of tuple
            Method and budget of what the quantity is about.
        function : callable
            Of a dict of these to error.

        Returns
        -------
        value : float
            Of means over the seeds that all have, nan if there is none.
            The dense model takes part with all its seeds if need be.
        low : float
            End of the interval, nan with one seed.
        high : float
            The other end.
        n_seeds : int
            Number of seeds.
        """
        errors = {g: self.values(g) for g in groups}  # by seed, in order
        others = [g for g in groups if g[0] != "dense"] or groups
        first, *rest = (errors[g] for g in others)
        common = [s for s in first if all(s in by_seed for by_seed in rest)]
        n = len(common)
        if n == 0:
            return math.nan, math.nan, math.nan, 0
        seeds = {
            g: [s for s in common if s in errors[g]] or list(errors[g])
            for g in groups
        }
        means = {g: mean(errors[g][s] for s in seeds[g]) for g in groups}
        value, half = float(function(means)), math.nan
        if n > 1 and self.draws is not None:
            found = self.draws.estimate(function, seeds)
            half = (found.high - found.low) / 2
        elif n > 1:
            alone = [
                function({g: errors[g].get(s, means[g]) for g in groups})
                for s in common
            ]
            half = student.ppf(0.975, n - 1) * stdev(alone) / n**0.5
        return value, value - half, value + half, n

    def differences(self):
        """Yields how much a method's error is above that of noise gates.

        Yields
        ------
        method : str
            Neither noise nor dense.
        budget : float
            One that both have.
        difference : tuple
            See :meth:`estimate`.
        """
        for method, budget in self.groups:
            one, other = (method, budget), ("noise", budget)
            if method in ("noise", "dense") or other not in self.runs:
                continue

            def minus(errors, one=one, other=other):
                return errors[one] - errors[other]

            yield method, budget, self.estimate([one, other], minus)

    def values(self, group, key=None):
        """A figure of a method and budget, by seed."""
        key = key or f"test {self.metric}"
        runs = self.runs[group]
        return {s: runs[s][2][key] for s in sorted(runs) if key in runs[s][2]}

    def points(self, method):
        """Method, budget, share of the MACs and error, means over seeds."""
        return [
            (
                *group,
                mean(self.values(group, "macs_share").values()),
                mean(self.values(group).values()),
            )
            for group in self.groups
            if group[0] == method
        ]

    def first(self):
        """Name, cell and result of the first seed of each group."""
        for method, budget in self.groups:
            runs = self.runs[method, budget]
            cell, result, _ = runs[min(runs)]
            yield f"{method} {budget:g}", cell, result


def _published(path):
    """Name, share of the MACs of the first model and EER of each model."""
    with open(path, encoding="utf-8") as fin:
        rows = list(csv.DictReader(fin))
    columns = list(rows[0]) if rows else []
    costs = [name for name in columns if name.endswith("flops")]
    if not costs or not {"model", "eer_percent"} <= set(columns):
        raise ValueError(
            f"{path} must have columns model, *flops and eer_percent, got "
            f"{columns}"
        )
    found = []
    for row in rows:
        try:
            cost, eer = float(row[costs[0]]), float(row["eer_percent"])
        except ValueError:
            continue  # "not reported"
        more = {*columns} - {"model", costs[0], "eer_percent"}
        more = [f"{key} {row[key]}" for key in columns if key in more]
        found.append((", ".join([row["model"], *more]), cost, eer))
    if not found:
        raise ValueError(f"{path} has no model with cost and eer_percent")
    full = found[0][1]
    return [(name, cost / full, eer) for name, cost, eer in found]
