"""A page about a sweep: curves, widths, runs.

All is read from the folder of the sweep; neither the recipe nor its data need
be there. The page is one file that loads nothing, with plots by plotly. Its
sections are generators of blocks, ``(kind, ...)``, which are written as HTML
and as Markdown.

Authors
 * The noisegate developers, 2026
"""

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

from noisegate.metrics import read_scores, roc_points
from noisegate.sweep import (
    METHODS,
    SweepFolder,
    _write,
    find_metric,
    summarize,
    write_summary,
)
from noisegate.tradeoff import hypervolume, monotonicity, pareto

_COLOURS = ("#555", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#882255")
_COLOURS = dict(zip(METHODS, (*_COLOURS, "#e69f00", "#56b4e9"), strict=True))
_PATH = re.compile(r"(?<![\w.~/])/(?!/)[^\s'\",\]}]+")  # of one machine
_ABOVE = {"x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"}
_STYLE = """body { font: 16px/1.5 sans-serif; margin: 2em auto; color: #222;
padding: 0 1em; max-width: 1100px } div.table { overflow-x: auto }
table { border-collapse: collapse; font-size: 14px; margin: 1em 0 }
th, td { padding: .25em .8em; border-bottom: 1px solid #ddd; text-align: left;
white-space: nowrap; font-variant-numeric: tabular-nums }
th { border-bottom: 2px solid #888 } pre { overflow-x: auto; padding: 1em;
background: #f5f5f5; font-size: 13px } div.plot { min-height: 520px }"""


class _Data:
    """What the sections are made of."""

    def __init__(self, sweep, metric):
        self.sweep, self.results = sweep, sweep.results()
        self.summary, self.rows = summarize(self.results, metric)
        self.metric = find_metric(self.rows, metric)
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


def _spread(values):
    """Mean and standard deviation as text."""
    values = list(values)
    if not values:
        return "-"
    spread = ""
    if len(values) > 1 and all(map(math.isfinite, values)):
        spread = f" ± {stdev(values):.2g}"
    return f"{mean(values):.4g}{spread}"


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
    traces = []
    for method in data.methods:
        points = sorted(data.points(method), key=lambda p: p[2])
        errors = [data.values(p[:2]) for p in points]
        shares = [data.values(p[:2], "macs_share") for p in points]
        spreads = [stdev(e.values()) if len(e) > 1 else 0 for e in errors]
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
    yield (
        "text",
        "Left is cheaper, down is better. A line for each method: mean over "
        "its seeds, with bars of one standard deviation; the faint points are "
        f"single seeds. {note}",
    )
    header, _, *lines = (
        line.strip("| ").split(" | ") for line in data.summary.splitlines()
    )
    yield "table", header, lines
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

    def volume(method, budgets, seed):
        groups = [(method, budget) for budget in budgets]
        costs = [data.values(g, "macs_share")[seed] for g in groups]
        errors = [data.values(g)[seed] for g in groups]
        return hypervolume(costs, errors, (1.0, worst), lowest)

    def front(points):
        best = pareto([p[2] for p in points], [p[3] for p in points])
        return [points[i][:2] for i in best]

    joint, rows = front(points), []
    for method in [m for m in data.methods if m != "dense"]:
        own = data.points(method)
        area = hypervolume(*zip(*(p[2:] for p in own)), (1.0, worst), lowest)
        runs = [
            (p[1], v) for p in own + dense for v in data.values(p[:2]).values()
        ]
        rank = ("-", "-")
        if len({budget for budget, _ in runs}) > 1:
            rho, inversions = monotonicity(*zip(*runs))
            rank = f"{rho:.2f}", str(inversions)
        budgets = ", ".join(f"{b:g}" for _, b in front(own + dense))
        on = ", ".join(f"{b:g}" for m, b in joint if m == method) or "none"
        rows.append((method, str(len(own)), budgets, on, f"{area:.4f}", *rank))
    header = ("method", "budgets", "its Pareto front", "on the front of all")
    header += ("hypervolume", "rank correlation", "inversions")
    yield "table", header, rows
    yield (
        "text",
        "A budget is on a Pareto front if no other one is at least as good in "
        "cost and error and better in one (means over seeds; the dense model "
        "counts for each method, as budget 1). Hypervolume: share of the "
        "plane of log2 cost and error that the method dominates, more is "
        "better. Its reference point is the cost of the dense model and an "
        f"error of {worst:.4g}, the greatest of all cells, and the range "
        f"begins at a cost of {lowest:g}: the same for all methods here, not "
        "comparable with other sweeps, nor between methods with different "
        "budgets. Rank correlation of budget and error: -1 if more compute "
        "always helps. An inversion is a budget with a greater mean error "
        "than the next smaller one.",
    )
    rows = []
    for method in data.methods:
        shared = [b for m, b in data.groups if m == method]
        shared = [b for b in shared if ("noise", b) in data.runs]
        if method in ("noise", "dense"):
            continue
        by_budget = []
        for b in shared:
            mine, base = data.values((method, b)), data.values(("noise", b))
            seeds = sorted(mine.keys() & base.keys())
            by_budget.append(set(seeds))
            figures = _interval([mine[s] - base[s] for s in seeds])
            rows.append((data.metric, method, f"{b:g}", *figures))
        seeds = sorted(set.intersection(*by_budget)) if by_budget else []
        volumes = [
            volume(method, shared, s) - volume("noise", shared, s)
            for s in seeds
        ]
        budgets = ", ".join(f"{b:g}" for b in shared)
        if budgets:
            rows.append(("hypervolume", method, budgets, *_interval(volumes)))
    if not rows:
        return
    header = ("figure", "method", "budget", "minus noise", "95 % interval")
    yield "table", (*header, "seeds"), rows
    yield (
        "text",
        "Differences to noise, of runs with the same seed; the hypervolume "
        "over the budgets that both have. The interval is Student's over the "
        "differences by seed, none with one seed: with 2 seeds 12.7 standard "
        "errors to each side, with 3 seeds 4.3. It is about training again, "
        "not about other test data, and not corrected for the number of rows.",
    )


def _interval(differences):
    """Mean, Student's interval and number of differences, as text."""
    n = len(differences)
    if n == 0:
        return "-", "-", "0"
    middle, interval = mean(differences), "-"
    if n > 1:
        half = student.ppf(0.975, n - 1) * stdev(differences) / n**0.5
        interval = f"{middle - half:+.4g} to {middle + half:+.4g}"
    return f"{middle:+.4g}", interval, str(n)


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


def _widths(data):
    """Final widths by layer, against the full ones."""
    full, columns, traces, shown = _full(data), {}, [], []
    for group in data.groups:
        widths = [r["widths"] for _, r, _ in data.runs[group].values()]
        means = {
            name: mean(w[name] for w in widths if name in w)
            for name in full
            if any(name in w for w in widths)
        }
        if group[0] == "dense":
            continue
        label = f"{group[0]} {group[1]:g}"
        columns[label] = means
        shown.append([f"budget {group[1]:g}"])
        trace = {
            "type": "bar",
            "x": [html.escape(name) for name in means],
            "y": [value / full[name] for name, value in means.items()],
            "hovertext": [f"{v:.4g} of {full[k]}" for k, v in means.items()],
            "name": label,
            "marker": {"color": _COLOURS[group[0]]},
        }
        traces.append(trace)
    if not columns:
        yield "text", "There is the dense model alone."
        return
    budgets = list(dict.fromkeys(name for names in shown for name in names))
    for trace, names in zip(traces, shown):
        trace["visible"] = budgets[0] in names
    yield _plot(
        "widths",
        traces,
        yaxis={"title": "share of the full width", "range": [0, 1.05]},
        xaxis={"type": "category", "automargin": True},
        showlegend=True,
        updatemenus=[_menu(budgets, shown)],
    )
    origin = "of the dense model" if data.dense else "the greatest seen"
    yield (
        "text",
        "Final widths, means over the seeds, against the full ones "
        f"({origin}). The MACs of a layer fall with the product of the widths "
        "at its input and output.",
    )
    rows = [
        [name, str(size)]
        + [f"{w[name]:.4g}" if name in w else "-" for w in columns.values()]
        for name, size in full.items()
    ]
    yield "table", ["channels of", "full", *columns], rows


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
    traces, shown = [], []
    every = [f"budget {b:g}" for b in dict.fromkeys(b for _, b in data.groups)]
    for name, cell, _ in data.first():
        path = data.sweep.place(cell.name) / "scores.txt"
        if not path.exists():
            continue
        _, _, labels, scores = read_scores(path)
        p_fa, p_miss, _ = (x.numpy() for x in roc_points(scores, labels))
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
    budgets = [b for b in every if any(b in names for names in shown)]
    if not traces:
        yield "text", "No cell has a file of scores."
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


def _clean(text):
    """A text without the paths of this machine."""
    return _PATH.sub("PATH", text)


def _quoted(argument):
    argument = _clean(argument)
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
        rows[-1] += [*more, _clean(names), _clean(commit)]
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
            failed.append([cell.name, _clean(reason.strip()), log])
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


_SECTIONS = {
    "Error against compute": _tradeoff,
    "The curves in figures": _quality,
    "Widths over the epochs": _epochs,
    "Where channels were and are": _widths,
    "By condition": _breakdown,
    "Detection error trade-off": _det,
    "Runs": _runs,
}


def _to_html(block):
    kind, *parts = block
    if kind == "table":
        head = "".join(f"<th>{html.escape(x)}</th>" for x in parts[0])
        body = "".join(
            "<tr>"
            + "".join(f"<td>{html.escape(x)}</td>" for x in row)
            + "</tr>\n"
            for row in parts[1]
        )
        table = f"<table>\n<tr>{head}</tr>\n{body}</table>"
        return f'<div class="table">{table}</div>'
    if kind == "plot":
        plot = parts[1].to_html(
            full_html=False,
            include_plotlyjs=False,
            auto_play=False,
            div_id=parts[0],
            # No button that uploads the figure
            config={"displaylogo": False, "responsive": True}
            | {"showSendToCloud": False, "plotlyServerURL": ""},
        )
        return f'<div class="plot">{plot}</div>'
    tag = {"title": "h1", "heading": "h2", "text": "p", "code": "pre"}[kind]
    return f"<{tag}>{html.escape(parts[0])}</{tag}>"


def _to_markdown(block):
    def plain(text):
        return html.escape(text, quote=False).replace("|", "\\|")

    kind, *parts = block
    if kind == "table":
        rows = [parts[0], ["---"] * len(parts[0]), *parts[1]]
        return "\n".join(
            "| " + " | ".join(plain(x) for x in row) + " |" for row in rows
        )
    if kind == "plot":
        return f"(plot: `report.html#{parts[0]}`)"
    if kind == "code":
        return f"```\n{parts[0]}\n```"
    return {"title": "# ", "heading": "## "}.get(kind, "") + plain(parts[0])


def write_report(folder, metric=None):
    """Writes ``report.html`` and ``report.md`` into the folder of a sweep.

    Also ``summary.md`` and ``cells.csv``, of all finished cells in the folder.

    Arguments
    ---------
    folder : str
        The folder of the sweep.
    metric : str
        See :func:`noisegate.sweep.summarize`; less is taken as better.

    Returns
    -------
    pathlib.Path
        The page.

    Raises
    ------
    ValueError
        If the folder holds no sweep, or no cell is finished.
    ImportError
        If plotly is missing.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise ImportError(
            "the report needs plotly: pip install 'noisegate[report]'"
        )
    sweep = SweepFolder.read(folder)
    data = _Data(sweep, metric)
    plan = sweep.plan
    title = f"{plan['recipe']}, {plan['hparams']}: trade-off of a sweep"
    overrides = _clean(" ".join(plan["overrides"])) or "none"
    intro = (
        "Models of several methods, trained by the same recipe for several "
        "budgets. A budget is the share of the multiply-accumulates (MACs) of "
        "the dense model, the one at full width, that a model may cost. The "
        f"figure is {data.metric} on the test set; less is better. The curve "
        "comes first, then how sure its differences are, then which layers "
        "were narrowed, and last all runs with their commands. "
        f"{len(data.results)} of {len(sweep.cells)} cells are finished. "
        f"Overrides of the recipe: {overrides}."
    )
    blocks = [("title", title), ("text", intro)]
    for number, (heading, section) in enumerate(_SECTIONS.items(), 1):
        blocks += [("heading", f"{number}. {heading}"), *section(data)]
    body = "\n".join(_to_html(block) for block in blocks)
    page = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n"
        f"<script>{get_plotlyjs()}</script>\n</head>\n<body>\n{body}\n"
        "</body>\n</html>\n"
    )
    write_summary(sweep, metric)
    text = "\n\n".join(_to_markdown(block) for block in blocks) + "\n"
    _write(sweep.folder / "report.md", text)
    _write(sweep.folder / "report.html", page)
    return sweep.folder / "report.html"
