"""The sections of the report of a sweep.

Each is a generator of blocks, ``(kind, ...)``, which
:mod:`noisegate.evaluation.report` writes as HTML and as Markdown.

Authors
 * The noisegate developers, 2026
"""

import html
import math
import re
import shlex
from statistics import mean, stdev

import numpy as np
from scipy.stats import norm

from noisegate.evaluation.blocks import ABOVE, COLOURS, menu, plot
from noisegate.evaluation.curves import area, hypervolume, monotonicity, pareto
from noisegate.evaluation.files import without_paths
from noisegate.evaluation.latency import latency_note
from noisegate.evaluation.metrics import roc_points
from noisegate.evaluation.section_widths import epochs, lines, macs, widths
from noisegate.evaluation.table import spread
from noisegate.evaluation.trials import read_trials

_ASIDE = 0.04  # octaves between methods of the same cost


def _tradeoff(data):
    """Error against MACs."""
    traces, intervals = [], {}
    if data.draws is not None:
        intervals = {
            g: data.estimate([g], lambda eers, g=g: eers[g])
            for g in data.groups
        }
    beside = [method for method in data.methods if method != "dense"]
    for method in data.methods:
        place = beside.index(method) if method in beside else len(beside) / 2
        aside = 2 ** (_ASIDE * (place - len(beside) / 2))
        points = sorted(data.points(method), key=lambda p: p[2])
        errors = [data.values(p[:2]) for p in points]
        shares = [data.values(p[:2], "macs_share") for p in points]
        spreads = [stdev(e.values()) if len(e) > 1 else 0 for e in errors]
        if intervals:
            halves = [p[3] - intervals[p[:2]][1] for p in points]
            spreads = [x if math.isfinite(x) else 0 for x in halves]
        look = {"marker": {"color": COLOURS[method], "size": 9}}
        look["legendgroup"] = method
        line = {
            "x": [p[2] * aside for p in points],
            "y": [p[3] for p in points],
            "text": [f"{p[2]:.3g} of the MACs" for p in points],
            "error_y": {"array": spreads, "width": 0},
            "mode": "lines+markers",
            "name": method,
        }
        single = {
            "x": [x * aside for by_seed in shares for x in by_seed.values()],
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
    least = min(p[2] for method in data.methods for p in data.points(method))
    least = min([least, *(share for _, share, _ in data.published or ())])
    note = "There is no run of the dense model (budget 1)."
    if data.dense:
        note = "The dashed line is the level of the dense model."
        dense = data.points("dense")[0][3]
        line = {"dash": "dash", "color": COLOURS["dense"]}
        ends = {"x": [min(least, 0.9) / 1.1, 1.1], "y": [dense, dense]}
        level = {"mode": "lines", "name": "dense, level", "line": line, **ends}
        traces.append({**level, "hoverinfo": "skip"})
    halvings = range(math.ceil(max(0.0, -math.log2(least))) + 1)
    names = [f"1/{2**k}" if k else "1" for k in halvings]
    scales = [
        {"label": f"{x} scale", "method": "relayout", "args": ["yaxis.type", x]}
        for x in ("linear", "log")
    ]
    yield plot(
        "tradeoff",
        traces,
        xaxis={"type": "log", "title": "share of the dense MACs"}
        | {"tickvals": [2.0**-k for k in halvings], "ticktext": names},
        yaxis={"title": html.escape(f"{data.metric} (test)")}
        | {"rangemode": "tozero"},
        updatemenus=[
            {"type": "buttons", "direction": "right", "buttons": scales} | ABOVE
        ],
    )
    bars = "one standard deviation"
    if intervals:
        bars = "the 95 % interval over seeds and speakers"
    yield (
        "text",
        "Left is cheaper, down is better. A line for each method: mean over "
        f"its seeds, with bars of {bars}, none with one seed; the faint points "
        "are single seeds. So that they can be told apart, methods are drawn a "
        f"little beside each other. {note}",
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
                "marker": {"color": COLOURS[method], "size": 9},
            }
        )
    limits = [-0.5, len(budgets) - 0.5]
    zero = {"x": [0, 0], "y": limits, "mode": "lines", "name": "noise"}
    line = {"dash": "dash", "color": COLOURS["noise"]}
    traces.append({**zero, "line": line, "hoverinfo": "skip"})
    names = [f"budget {b:g}" for b in budgets]
    return plot(
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
            rows.append([f"{group[1]:g}", group[0], *map(spread, values)])
        yield "text", f"{figure} (test), mean ± standard deviation over seeds:"
        yield "table", ["budget", "method", *conditions], rows


def _det(data):
    """Detection error trade-off curves."""
    traces, shown, broken = [], [], []
    every = [f"budget {b:g}" for b in dict.fromkeys(b for _, b in data.groups)]
    for name, cell, _ in data.first():
        path = data.sweep.trials(cell.name)
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
                "line": {"color": COLOURS[cell.method]},
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
    yield plot(
        "det",
        traces,
        xaxis={"title": "false alarms, %", **axis},
        yaxis={"title": "misses, %", **axis},
        showlegend=True,
        updatemenus=[menu(budgets, shown)],
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


def conclusion(data):
    """Returns a line: the smallest budget of noise gates, and what is better
    or worse than they are.

    Arguments
    ---------
    data : noisegate.evaluation.estimates.SweepResults
        The figures of the sweep.

    Returns
    -------
    str
    """
    parts, told = [], {}
    own = min(data.points("noise"), key=lambda p: p[2], default=None)
    if own is not None:
        _, budget, _, error = own
        parts = [f"{data.metric} of noise gates at {budget:g}: {error:.3g}"]
        parts += [f"dense: {p[3]:.3g}" for p in data.points("dense")]
    for method, budget, (_, low, high, _) in data.differences():
        verdict = "worse at" if low > 0 else "not told apart at"
        verdict = "better at" if high < 0 else verdict
        found = told.setdefault(method, {})
        found.setdefault(verdict, []).append(f"{budget:g}")
    lines = [
        f"{method} is " + ", ".join(f"{k} {', '.join(v)}" for k, v in d.items())
        for method, d in told.items()
    ]
    text = "; ".join(parts) or "There is no run of noise gates"
    return f"{text}. Against them, {'; '.join(lines)}" if lines else text


SECTIONS = {
    "Error against compute": _tradeoff,
    "The curves in figures": _quality,
    "The training": lines,
    "Widths over the epochs": epochs,
    "Where channels were and are": widths,
    "Where the MACs were and are": macs,
    "By condition": _breakdown,
    "Detection error trade-off": _det,
    "Runs": _runs,
}
