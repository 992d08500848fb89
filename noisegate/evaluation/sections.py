"""The sections of the report of a sweep.

Each is a generator of blocks, ``(kind, ...)``, which
:mod:`noisegate.evaluation.report` writes as HTML and as Markdown.

Authors
 * The noisegate developers, 2026
"""

import csv
import html
import json
import math
import re
import shlex
from statistics import mean, stdev

import numpy as np
from scipy.stats import (
    norm,
    t as student,
)

from noisegate.evaluation.bootstrap import Bootstrap
from noisegate.evaluation.curves import area, hypervolume, monotonicity, pareto
from noisegate.evaluation.files import without_paths
from noisegate.evaluation.latency import latency_note
from noisegate.evaluation.metrics import roc_points
from noisegate.evaluation.scores import read_trials
from noisegate.evaluation.sweep import METHODS, find_metric, summarize

_COLOURS = ("#555", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#882255")
_COLOURS = dict(zip(METHODS, (*_COLOURS, "#e69f00", "#56b4e9"), strict=True))
_ABOVE = {"x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"}


class Data:
    """What the sections are made of.

    Arguments
    ---------
    sweep : noisegate.evaluation.sweep.SweepFolder
        The sweep.
    metric : str
        See :func:`noisegate.evaluation.sweep.summarize`.
    published : str
        Path of a CSV with published figures, or None; see
        :func:`noisegate.evaluation.report.write_report`.
    """

    def __init__(self, sweep, metric=None, published=None):
        self.sweep, self.results = sweep, sweep.results()
        *self.summary, self.rows = summarize(self.results, metric)
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
        if self.metric != "EER":
            return None, None
        trials = {}
        for group, runs in self.runs.items():
            paths = {
                seed: self.sweep.place(runs[seed][0].name) / "trials.txt"
                for seed in sorted(runs)
            }
            if not all(path.exists() for path in paths.values()):
                return None, None
            trials[group] = paths
        try:
            trials = {
                group: {seed: read_trials(path) for seed, path in paths.items()}
                for group, paths in trials.items()
            }
            return Bootstrap(trials), None
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


def _spread(values):
    """Mean and standard deviation as text."""
    values = list(values)
    if not values:
        return "-"
    spread = ""
    if len(values) > 1 and all(map(math.isfinite, values)):
        spread = f" ± {stdev(values):.2g}"
    return f"{mean(values):.3g}{spread}"


def _plot(name, traces, frames=(), **layout):
    """A block with a figure."""
    import plotly.graph_objects as go

    figure = go.Figure(data=traces, frames=frames)
    figure.update_layout(template="plotly_white", font_size=14, height=520)
    figure.update_layout(margin={"t": 90, "r": 20, "b": 60}, **layout)
    return "plot", name, figure


def _menu(labels, names):
    """A drop-down that shows the traces whose names hold its label."""
    buttons = [
        {
            "label": html.escape(label),
            "method": "restyle",
            "args": [{"visible": [label in of for of in names]}],
        }
        for label in labels
    ]
    return {"buttons": buttons, "showactive": True, **_ABOVE}


def _tradeoff(data):
    """Error against MACs."""
    traces, intervals = [], {}
    if data.draws is not None:
        intervals = {
            g: data.estimate([g], lambda eers, g=g: eers[g])
            for g in data.groups
        }
    for method in data.methods:
        points = sorted(data.points(method), key=lambda p: p[2])
        errors = [data.values(p[:2]) for p in points]
        shares = [data.values(p[:2], "macs_share") for p in points]
        spreads = [stdev(e.values()) if len(e) > 1 else 0 for e in errors]
        if intervals:
            halves = [p[3] - intervals[p[:2]][1] for p in points]
            spreads = [x if math.isfinite(x) else 0 for x in halves]
        look = {"marker": {"color": _COLOURS[method], "size": 9}}
        look["legendgroup"] = method
        line = {
            "x": [p[2] for p in points],
            "y": [p[3] for p in points],
            "error_y": {"array": spreads, "width": 0},
            "mode": "lines+markers",
            "name": method,
        }
        single = {
            "x": [x for by_seed in shares for x in by_seed.values()],
            "y": [y for by_seed in errors for y in by_seed.values()],
            "text": [f"seed {s}" for by_seed in errors for s in by_seed],
            "mode": "markers",
            "opacity": 0.35,
            "name": f"{method}, one seed",
            "showlegend": False,
        }
        traces += [{**line, **look}, {**single, **look}]
    if data.published:
        names, shares, errors = zip(*data.published)
        look = {"symbol": "x", "color": "#999", "size": 9}
        traces.append(
            {"x": shares, "y": errors, "text": names, "marker": look}
            | {"mode": "markers", "name": "published, on other data"}
        )
    least = min(x for trace in traces for x in trace["x"])
    note = "There is no run of the dense model (budget 1)."
    if data.dense:
        note = "The dashed line is the level of the dense model."
        dense = data.points("dense")[0][3]
        line = {"dash": "dash", "color": _COLOURS["dense"]}
        ends = {"x": [min(least, 0.9) / 1.1, 1.1], "y": [dense, dense]}
        level = {"mode": "lines", "name": "dense, level", "line": line, **ends}
        traces.append({**level, "hoverinfo": "skip"})
    halvings = range(math.ceil(max(0.0, -math.log2(least))) + 1)
    names = [f"1/{2**k}" if k else "1" for k in halvings]
    scales = [
        {"label": f"{x} scale", "method": "relayout", "args": ["yaxis.type", x]}
        for x in ("linear", "log")
    ]
    yield _plot(
        "tradeoff",
        traces,
        xaxis={"type": "log", "title": "share of the dense MACs"}
        | {"tickvals": [2.0**-k for k in halvings], "ticktext": names},
        yaxis={"title": html.escape(f"{data.metric} (test)")}
        | {"rangemode": "tozero"},
        updatemenus=[
            {"type": "buttons", "direction": "right", "buttons": scales}
            | _ABOVE
        ],
    )
    bars = "one standard deviation"
    if intervals:
        bars = "the 95 % interval over seeds and speakers"
    yield (
        "text",
        "Left is cheaper, down is better. A line for each method: mean over "
        f"its seeds, with bars of {bars}, none with one seed; the faint points "
        f"are single seeds. {note}",
    )
    if data.note:
        yield "text", data.note
    if data.published:
        yield (
            "text",
            "The crosses are published figures, of other data and other "
            "models: their cost is relative to that of the first one, "
            f"{data.published[0][0]}.",
        )
    headings, rows = data.summary
    if intervals and not data.left_out:
        headings = [*headings[:4], "95 % interval", *headings[4:]]
        rows = [
            [*row[:4], _estimate(*intervals[group][:3])[1], *row[4:]]
            for row, group in zip(rows, data.groups)
        ]
    yield "table", headings, rows
    if note := latency_note(data.sweep.folder):
        yield "text", note
    if data.left_out:
        names = ", ".join(data.left_out)
        yield "text", f"Without a finite figure, in no plot: {names}."


def _quality(data):
    """Figures of each curve, and differences to noise."""
    points = [p for method in data.methods for p in data.points(method)]
    dense = [p for p in points if p[0] == "dense"]
    every = [v for group in data.groups for v in data.values(group).values()]
    worst, lowest = max(every), min(p[1] for p in points)
    if lowest == 1 or min(every) < 0 or worst == 0:
        yield "text", "Needs a budget below 1 and errors that are not below 0."
        return

    def volume(method, budgets):
        groups = [(method, budget) for budget in budgets]
        costs = [mean(data.values(g, "macs_share").values()) for g in groups]

        def of(errors):
            kept = [min(max(errors[g], 0.0), worst) for g in groups]
            return hypervolume(costs, kept, (1.0, worst), lowest)

        return of

    def front(points):
        best = pareto([p[2] for p in points], [p[3] for p in points])
        return [points[i][:2] for i in best]

    methods = [m for m in data.methods if m != "dense"]
    curves = {
        m: sorted(data.points(m) + dense, key=lambda p: p[2]) for m in methods
    }
    limits = (
        max(curve[0][2] for curve in curves.values()),
        min(curve[-1][2] for curve in curves.values()),
    )

    def mean_error(curve):
        costs = [p[2] for p in curve]
        return lambda errors: area(
            costs, [errors[p[:2]] for p in curve], limits
        )

    joint, rows = front(points), []
    for method in methods:
        own = data.points(method)
        runs = [
            (p[1], v) for p in own + dense for v in data.values(p[:2]).values()
        ]
        rank = ("-", "-")
        if len({budget for budget, _ in runs}) > 1:
            rho, inversions = monotonicity(*zip(*runs))
            rank = f"{rho:.2f}", str(inversions)
        budgets = ", ".join(f"{b:g}" for _, b in front(own + dense))
        on = ", ".join(f"{b:g}" for m, b in joint if m == method) or "none"
        curve, mine = curves[method], [p[:2] for p in own]
        whole = volume(method, [b for _, b in mine])
        figures = _estimate(*data.estimate(mine, whole)[:3])
        different = len({p[2] for p in curve}) == len(curve)
        if different and limits[0] < limits[1]:
            groups = [p[:2] for p in curve]
            found = data.estimate(groups, mean_error(curve))
            figures += _estimate(*found[:3])
        else:
            figures += ("-", "-")
        rows.append((method, str(len(own)), budgets, on, *figures, *rank))
    header = ("method", "budgets", "its Pareto front", "on the front of all")
    header += ("hypervolume", "95 % interval", "mean error", "95 % interval")
    header += ("rank correlation", "inversions")
    yield "table", header, rows
    yield (
        "text",
        "A budget is on a Pareto front if no other one is at least as good in "
        "cost and error and better in one (means over seeds; the dense model "
        "counts for each method, as budget 1). Hypervolume: share of the "
        "plane of log2 cost and error that the method dominates, more is "
        "better. Its reference point is the cost of the dense model and an "
        f"error of {worst:.3g}, the greatest of all cells, and the range "
        f"begins at a cost of {lowest:g}: the same for all methods here, not "
        "comparable with other sweeps, nor between methods with different "
        "budgets. Mean error: over log2 of the cost, with straight lines "
        f"between the budgets, from {limits[0]:.3g} to {limits[1]:.3g} of the "
        "dense MACs, where all methods have one. Rank correlation of budget "
        "and error: -1 if more compute always helps. An inversion is a budget "
        "with a greater mean error than the next smaller one.",
    )
    rows, above = [], {}
    for method, budget, found in data.differences():
        above.setdefault(method, {})[budget] = found

    def compare(figure, method, budgets, value, low, high, n):
        """A row; value is above 0 where the figure of the method is."""
        better = "not told apart" if math.isfinite(low) else "-"
        if low > 0 or high < 0:
            more = figure == "hypervolume"
            better = method if (low > 0) == more else "noise"
        texts = _estimate(value, low, high, form="+.3g")
        budgets = ", ".join(f"{b:g}" for b in budgets)
        rows.append((figure, method, budgets, *texts, better, str(n)))

    for method in methods:
        if method not in above:
            continue
        for b, found in above[method].items():
            compare(data.metric, method, [b], *found)
        shared = list(above[method])
        mine, base = volume(method, shared), volume("noise", shared)
        found = data.estimate(
            [(m, b) for m in (method, "noise") for b in shared],
            lambda errors, mine=mine, base=base: mine(errors) - base(errors),
        )
        compare("hypervolume", method, shared, *found)
    if not rows:
        return
    yield _forest(data, above)
    header = ("figure", "method", "budget", "minus noise", "95 % interval")
    yield "table", (*header, "better", "seeds"), rows
    how = (
        "The interval is Student's over the differences by seed: with 2 seeds "
        "12.7 standard errors to each side, with 3 seeds 4.3. It is about "
        "training again, not about other test data"
    )
    if data.draws is not None:
        how = (
            "The interval is Student's, from a bootstrap over seeds and the "
            f"{len(data.draws.conditions)} speakers of the test set, drawn "
            "alike for both (noisegate.evaluation.bootstrap): about training "
            "again and testing with other speakers"
        )
    yield (
        "text",
        "Differences to noise of runs with the same seeds, as many as the last "
        "column says; the hypervolume over the budgets that both have. "
        f"{how}. There is none with one seed, and it is not corrected for the "
        "number of rows.",
    )


def _forest(data, above):
    """A plot of differences to noise: method by method in each budget."""
    budgets = sorted({b for found in above.values() for b in found})
    traces = []
    for i, (method, found) in enumerate(above.items()):
        place = 0.4 - 0.8 * (i + 0.5) / len(above)
        known = [(b, *x) for b, x in found.items() if math.isfinite(x[0])]
        halves = [high - x for _, x, _, high, _ in known]
        traces.append(
            {
                "x": [x for _, x, *_ in known],
                "y": [budgets.index(b) + place for b, *_ in known],
                "error_x": {"array": [0 if h != h else h for h in halves]},
                "mode": "markers",
                "name": method,
                "marker": {"color": _COLOURS[method], "size": 9},
            }
        )
    limits = [-0.5, len(budgets) - 0.5]
    zero = {"x": [0, 0], "y": limits, "mode": "lines", "name": "noise"}
    line = {"dash": "dash", "color": _COLOURS["noise"]}
    traces.append({**zero, "line": line, "hoverinfo": "skip"})
    names = [f"budget {b:g}" for b in budgets]
    return _plot(
        "differences",
        traces,
        xaxis={"title": html.escape(f"{data.metric} minus that of noise")},
        yaxis={"tickvals": list(range(len(budgets))), "ticktext": names}
        | {"zeroline": False, "range": limits},
    )


def _estimate(value, low, high, form=".3g"):
    """A value and its interval as text."""
    if not math.isfinite(value):
        return "-", "-"
    interval = "-"
    if math.isfinite(low):
        interval = f"{low:{form}} to {high:{form}}"
    return f"{value:{form}}", interval


def _full(data):
    """Full widths: those of the dense model, else the greatest seen."""
    full = {}
    for cell, result in data.results:
        for name, width in result["widths"].items():
            if cell.method == "dense" or not data.dense:
                full[name] = max(width, full.get(name, 1))
    return full


def _history(place, result):
    """Widths by epoch and group."""
    lines = [
        json.dumps({"epoch": epoch, **figures})
        for epoch, figures in enumerate(result.get("history") or [], 1)
    ]
    if (place / "gates.jsonl").exists():
        lines = (place / "gates.jsonl").read_text(encoding="utf-8").splitlines()
    history = {}
    for line in lines:
        try:
            figures = json.loads(line)
        except json.JSONDecodeError:
            continue  # the run was interrupted here
        widths = {
            key.removeprefix("width "): value
            for key, value in figures.items()
            if key.startswith("width ")
        }
        if widths:
            history[figures["epoch"]] = widths  # the last, if repeated
    return history


def _epochs(data):
    """Widths by layer over the epochs, for one cell at a time."""
    full, cells = _full(data), {}
    for name, cell, result in data.first():
        history = _history(data.sweep.place(cell.name), result)
        if history:
            cells[f"{name}, seed {cell.seed}"] = history
    if not cells:
        yield "text", "No cell has a history of its widths."
        return

    def bars(history, epoch):
        past = [e for e in sorted(history) if e <= epoch] or [min(history)]
        widths = history[past[-1]]
        top = {name: full.get(name, max(widths.values())) for name in widths}
        return {
            "type": "bar",
            "x": [html.escape(name) for name in widths],
            "y": [width / top[name] for name, width in widths.items()],
            "text": [f"{width:.3g}" for width in widths.values()],
            "hovertext": [
                f"{width:.4g} of {top[name]}" for name, width in widths.items()
            ],
            "marker": {"color": "#0072b2"},
        }

    epochs = sorted({e for history in cells.values() for e in history})
    frames = [
        {"name": str(e), "data": [bars(h, e) for h in cells.values()]}
        for e in epochs
    ]
    now = {"mode": "immediate", "frame": {"duration": 0, "redraw": True}}
    now["transition"] = {"duration": 0}
    play = {**now, "frame": {"duration": 300, "redraw": True}}
    steps = [
        {"label": str(e), "method": "animate", "args": [[str(e)], now]}
        for e in epochs
    ]
    button = {"label": "play", "method": "animate", "args": [None, play]}
    buttons = {"type": "buttons", "buttons": [button], "showactive": False}
    traces = [
        {**bars(history, epochs[-1]), "visible": i == 0}
        for i, history in enumerate(cells.values())
    ]
    yield _plot(
        "epochs",
        traces,
        frames,
        yaxis={"title": "share of the full width", "range": [0, 1.08]},
        xaxis={"type": "category", "automargin": True},
        showlegend=False,
        sliders=[
            {"steps": steps, "active": len(steps) - 1, "pad": {"t": 70}}
            | {"currentvalue": {"prefix": "epoch "}}
        ],
        updatemenus=[
            _menu(cells, [[name] for name in cells]),
            {**buttons, **_ABOVE, "x": 1, "xanchor": "right"},
        ],
    )
    yield (
        "text",
        "Choose a cell (the first seed of each method and budget), then move "
        "the slider or press play. The numbers are channels, as they are in "
        "validation; a cell with fewer epochs stays at its last one.",
    )


def _bars(name, columns, full, title):
    """Values by layer of each method, one budget at a time, and a table."""
    traces, shown = [], []
    for group, means in columns.items():
        traces.append(
            {
                "type": "bar",
                "x": [html.escape(layer) for layer in means],
                "y": [v / max(full[k], 1) for k, v in means.items()],
                "hovertext": [
                    f"{v:,.4g} of {full[k]:,}" for k, v in means.items()
                ],
                "name": f"{group[0]} {group[1]:g}",
                "marker": {"color": _COLOURS[group[0]]},
            }
        )
        shown.append([f"budget {group[1]:g}"])
    budgets = list(dict.fromkeys(name for names in shown for name in names))
    for trace, names in zip(traces, shown):
        trace["visible"] = budgets[0] in names
    yield _plot(
        name,
        traces,
        yaxis={"title": title, "range": [0, 1.05]},
        xaxis={"type": "category", "automargin": True},
        showlegend=True,
        updatemenus=[_menu(budgets, shown)],
    )


def _means(data, key, part=lambda value: value):
    """Means over seeds by layer, for each group but the dense one."""
    columns = {}
    for group in data.groups:
        found = [r.get(key, {}) for _, r, _ in data.runs[group].values()]
        if group[0] != "dense" and any(found):
            columns[group] = {
                name: mean(part(x[name]) for x in found if name in x)
                for x in found
                for name in x
            }
    return columns


def _widths(data):
    """Final widths by layer, against the full ones."""
    full, columns = _full(data), _means(data, "widths")
    if not columns:
        yield "text", "There is the dense model alone."
        return
    yield from _bars("widths", columns, full, "share of the full width")
    origin = "of the dense model" if data.dense else "the greatest seen"
    yield (
        "text",
        "Final widths, means over the seeds, against the full ones "
        f"({origin}).",
    )
    rows = [
        [name, str(size)]
        + [f"{w[name]:.4g}" if name in w else "-" for w in columns.values()]
        for name, size in full.items()
    ]
    labels = [f"{method} {budget:g}" for method, budget in columns]
    yield "table", ["channels of", "full", *labels], rows


def _macs(data):
    """MACs by layer, full and final."""
    columns = _means(data, "macs_by_layer", lambda pair: pair[1])
    if not columns:
        yield "text", "The results have no MACs by layer."
        return
    full = {}
    for cell, result in data.results:
        for layer, (macs, _) in result.get("macs_by_layer", {}).items():
            if cell.method == "dense" or not data.dense:
                full[layer] = max(macs, full.get(layer, 1))
    columns = {
        group: {layer: macs for layer, macs in w.items() if layer in full}
        for group, w in columns.items()
    }
    total = sum(full.values())
    yield from _bars("macs", columns, full, "share of the layer's MACs")
    yield (
        "text",
        "What is left of the MACs of each layer, means over the seeds. The "
        "MACs of a layer fall with the product of the widths at its input and "
        "output. In the table millions per second of audio, at full width "
        "with the share of all.",
    )
    rows = [
        [layer, f"{macs / 1e6:.3g} ({100 * macs / total:.1f} %)"]
        + [
            f"{w[layer] / 1e6:.3g}" if layer in w else "-"
            for w in columns.values()
        ]
        for layer, macs in full.items()
    ]
    labels = [f"{method} {budget:g}" for method, budget in columns]
    yield "table", ["MACs of", "full", *labels], rows


def _breakdown(data):
    """Tables of figures by condition, as attack or SNR."""
    names = {}
    for key in dict.fromkeys(key for row in data.rows for key in row):
        figure, _, condition = key.removeprefix("test ").partition(" ")
        if key.startswith("test ") and condition:
            names.setdefault(figure, []).append(condition)
    names = {
        figure: names[figure] for figure in names if len(names[figure]) > 1
    }
    if not names:
        yield "text", "The results have no figures by condition."
    for figure, conditions in names.items():
        # "<5", "5-15", "15-25", as numbers have it and not the alphabet
        conditions.sort(key=lambda c: [int(x) for x in re.findall(r"\d+", c)])
        rows = []
        for group in data.groups:
            values = [
                data.values(group, f"test {figure} {condition}").values()
                for condition in conditions
            ]
            rows.append([f"{group[1]:g}", group[0], *map(_spread, values)])
        yield "text", f"{figure} (test), mean ± standard deviation over seeds:"
        yield "table", ["budget", "method", *conditions], rows


def _det(data):
    """Detection error trade-off curves."""
    traces, shown, broken = [], [], []
    every = [f"budget {b:g}" for b in dict.fromkeys(b for _, b in data.groups)]
    for name, cell, _ in data.first():
        path = data.sweep.place(cell.name) / "trials.txt"
        if not path.exists():
            continue
        try:
            trials = read_trials(path)
            scores, labels = (np.repeat(x, trials.counts) for x in trials[:2])
            p_fa, p_miss, _ = (x.numpy() for x in roc_points(scores, labels))
        except ValueError as error:
            broken.append(f"{cell.name}: {without_paths(str(error))}")
            continue
        inside = (p_fa > 0) & (p_fa < 1) & (p_miss > 0) & (p_miss < 1)
        corner = np.stack([p_fa, p_miss], axis=1)[inside]
        # At most one point in each hundredth of a standard deviation
        axes = norm.ppf(corner)
        _, kept = np.unique(axes.round(2), axis=0, return_index=True)
        axes, corner = axes[np.sort(kept)], corner[np.sort(kept)]
        traces.append(
            {
                "x": axes[:, 0].tolist(),
                "y": axes[:, 1].tolist(),
                "text": [
                    f"{100 * a:.2f} %, {100 * b:.2f} %" for a, b in corner
                ],
                "hoverinfo": "name+text",
                "mode": "lines",
                "name": f"{name}, seed {cell.seed}",
                "line": {"color": _COLOURS[cell.method]},
            }
        )
        dense = cell.method == "dense"
        shown.append(every if dense else [f"budget {cell.budget:g}"])
    if broken:
        yield "text", f"Without a curve: {'; '.join(broken)}."
    budgets = [b for b in every if any(b in names for names in shown)]
    if not traces:
        yield "text", "No cell has a file of trials."
        return
    budgets = [b for b in budgets if b != "budget 1"] or budgets
    for trace, names in zip(traces, shown):
        trace["visible"] = budgets[0] in names
    percent = [0.1, 0.5, 1, 2, 5, 10, 20, 40, 60, 80, 95, 99]
    axis = {"tickvals": norm.ppf(np.divide(percent, 100)).tolist()}
    axis |= {"ticktext": [f"{p:g}" for p in percent], "zeroline": False}
    yield _plot(
        "det",
        traces,
        xaxis={"title": "false alarms, %", **axis},
        yaxis={"title": "misses, %", **axis},
        showlegend=True,
        updatemenus=[_menu(budgets, shown)],
    )
    yield (
        "text",
        "Towards the lower left is better. The first seed of each method; the "
        "axes are the quantiles of the normal distribution.",
    )


def _quoted(argument):
    argument = without_paths(argument)
    if "$SWEEP" in argument:
        return f'"{argument}"' if " " in argument else argument
    return shlex.quote(argument)


def _runs(data):
    """All cells."""
    rows, commands, failed, open_cells = [], [], [], []
    figures = dict.fromkeys(key for row in data.rows for key in row)
    figures = [
        k for k in figures if k.startswith("test ") and k.count(" ") == 1
    ]
    for (cell, result), row in zip(data.results, data.rows):
        versions = dict(result.get("versions") or {})
        commit = versions.pop("commit", "-")
        more = [f"{row[key]:.4g}" if key in row else "-" for key in figures]
        names = ", ".join(f"{k} {v}" for k, v in versions.items()) or "-"
        rows.append([cell.name, str(cell.seed), f"{row['macs_share']:.4f}"])
        rows[-1] += [f"{row['params']:.0f}", f"{row['steps']:.0f}"]
        rows[-1] += [*more, without_paths(names), without_paths(commit)]
    for cell in data.sweep.cells:
        arguments = data.sweep.arguments(cell, "$SWEEP")
        command = " ".join(_quoted(argument) for argument in arguments)
        commands.append(f"python train.py {command}")
        mark = data.sweep.place(cell.name) / "failed.txt"
        if data.sweep.finished(cell.name):
            continue
        if mark.exists():
            reason = mark.read_text(encoding="utf-8").partition(", see")[0]
            log = f"cells/{cell.name}/stdout.txt"
            failed.append([cell.name, without_paths(reason.strip()), log])
        else:
            open_cells.append(cell.name)
    header = ["cell", "seed", "of dense MACs", "parameters", "steps"]
    yield "table", header + figures + ["versions", "commit"], rows
    if failed:
        yield "text", "Failed:"
        yield "table", ["cell", "what", "log"], failed
    if open_cells:
        yield "text", f"Not finished: {', '.join(open_cells)}."
    yield (
        "text",
        "The command of each cell, in the folder of the recipe, with SWEEP "
        "for the folder of this report; PATH stands for paths of the machine.",
    )
    yield "code", "\n".join(commands)


SECTIONS = {
    "Error against compute": _tradeoff,
    "The curves in figures": _quality,
    "Widths over the epochs": _epochs,
    "Where channels were and are": _widths,
    "Where the MACs were and are": _macs,
    "By condition": _breakdown,
    "Detection error trade-off": _det,
    "Runs": _runs,
}
