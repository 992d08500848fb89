"""Sections of the report of a sweep: which layers were narrowed, and when.

Authors
 * The noisegate developers, 2026
"""

import html
from statistics import mean, stdev

from noisegate.evaluation.blocks import ABOVE, COLOURS, menu, plot


def _full(data):
    """Full widths: those of the dense model, else the greatest seen. Channels
    of a group may go apart in a chain, when one of each is left."""
    seen, full = {}, {}
    for cell, result in data.results:
        for name, width in result["widths"].items():
            seen[name] = max(width, seen.get(name, 1))
            if cell.method == "dense":
                full[name] = max(width, full.get(name, 1))
    return {**seen, **full}


def _history(result):
    """Widths by epoch and group."""
    history = {}
    columns = result.get("gates") or {"epoch": []}
    for i, epoch in enumerate(columns["epoch"]):
        widths = {
            key.removeprefix("width "): values[i]
            for key, values in columns.items()
            if key.startswith("width ") and values[i] is not None
        }
        if widths:
            history[epoch] = widths
    return history


def _lines(history, full, shown):
    """Traces over the epochs: MACs, widths and losses of one cell."""
    own = {"mode": "lines", "visible": shown}
    macs = history["macs_per_second"]
    found = {"MACs": [x / max(macs) for x in macs]}
    for key, values in history.items():
        if key.startswith("width "):
            name = key.removeprefix("width ")
            top = full[name]
            found[name] = [v if v is None else v / top for v in values]
        elif key in ("train loss", "valid loss"):
            found[key] = values
    for name, values in found.items():
        line = {"width": 4 if name == "MACs" else 2}
        loss = name.endswith(" loss")
        yield {
            "x": history["epoch"],
            "y": values,
            "name": html.escape(name),
            "line": line | ({"dash": "dot"} if loss else {}),
            "yaxis": "y2" if loss else "y",
            **own,
        }


def lines(data):
    """MACs, widths and losses over the epochs, for one cell at a time.

    Arguments
    ---------
    data : noisegate.evaluation.estimates.SweepResults
        The figures of the sweep.

    Yields
    ------
    block : tuple
        A block of the report.
    """
    full, traces, shown = _full(data), [], []
    for name, cell, result in data.first():
        history = result.get("gates")
        if history and len(history) > 2:  # more than MACs
            label = f"{name}, seed {cell.seed}"
            made = list(_lines(history, full, not traces))
            traces += made
            shown += [[label]] * len(made)
    if not traces:
        yield "text", "No cell has a history."
        return
    yield plot(
        "lines",
        traces,
        xaxis={"title": "epoch"},
        yaxis={"title": "share of the full one", "rangemode": "tozero"},
        yaxis2={"title": "loss", "overlaying": "y", "side": "right"}
        | {"showgrid": False, "rangemode": "tozero"},
        showlegend=True,
        legend={"x": 1.08},
        updatemenus=[menu(dict.fromkeys(x for (x,) in shown), shown)],
    )
    yield (
        "text",
        "Choose a cell (the first seed of each method and budget). Thick: the "
        "MACs of the model as it evaluates; thin: widths; dotted, on the axis "
        "to the right: losses with all their terms, where they were kept.",
    )


def epochs(data):
    """Widths by layer over the epochs, for one cell at a time.

    Arguments
    ---------
    data : noisegate.evaluation.estimates.SweepResults
        The figures of the sweep.

    Yields
    ------
    block : tuple
        A block of the report.
    """
    full, cells = _full(data), {}
    for name, cell, result in data.first():
        history = _history(result)
        if history:
            cells[f"{name}, seed {cell.seed}"] = history
    if not cells:
        yield "text", "No cell has a history of its widths."
        return

    def bars(history, epoch):
        past = [e for e in sorted(history) if e <= epoch] or [min(history)]
        widths = history[past[-1]]
        return {
            "type": "bar",
            "x": [html.escape(name) for name in widths],
            "y": [width / full[name] for name, width in widths.items()],
            "text": [f"{width:.3g}" for width in widths.values()],
            "hovertext": [
                f"{width:.4g} of {full[name]}" for name, width in widths.items()
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
    yield plot(
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
            menu(cells, [[name] for name in cells]),
            {**buttons, **ABOVE, "x": 1, "xanchor": "right"},
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
                "marker": {"color": COLOURS[group[0]]},
            }
        )
        shown.append([f"budget {group[1]:g}"])
    budgets = list(dict.fromkeys(name for names in shown for name in names))
    for trace, names in zip(traces, shown):
        trace["visible"] = budgets[0] in names
    yield plot(
        name,
        traces,
        yaxis={"title": title, "range": [0, 1.05]},
        xaxis={"type": "category", "automargin": True},
        showlegend=True,
        updatemenus=[menu(budgets, shown)],
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


_FEW = 3  # budgets in the plot of the seeds


def _seeds(data, full):
    """Widths that noise gates have learned, by layer, over the seeds."""
    groups = [g for g in data.groups if g[0] == "noise" and g[1] < 1][-_FEW:]
    traces = []
    for shade, group in enumerate(groups, 1):
        found = [r["widths"] for _, r, _ in data.runs[group].values()]
        names = [
            name
            for name, width in found[0].items()
            if width < full[name] and all(name in w for w in found)
        ]
        shares = [[w[name] / full[name] for w in found] for name in names]
        bars = [stdev(x) if len(x) > 1 else 0 for x in shares]
        traces.append(
            {
                "x": [html.escape(name) for name in names],
                "y": [mean(x) for x in shares],
                "error_y": {"array": bars},
                "mode": "lines+markers",
                "name": f"noise {group[1]:g}",
                "opacity": shade / len(groups),
                "line": {"color": COLOURS["noise"]},
            }
        )
    if traces:
        yield plot(
            "seeds",
            traces,
            yaxis={"title": "share of the full width", "range": [0, 1.05]},
            xaxis={"type": "category", "automargin": True},
            showlegend=True,
        )
        yield (
            "text",
            "What noise gates have learned: the darker the smaller the budget. "
            "Bars are one standard deviation over the seeds: where they are "
            "short, seeds agree.",
        )


def widths(data):
    """Final widths by layer, against the full ones.

    Arguments
    ---------
    data : noisegate.evaluation.estimates.SweepResults
        The figures of the sweep.

    Yields
    ------
    block : tuple
        A block of the report.
    """
    full, columns = _full(data), _means(data, "widths")
    if not columns:
        yield "text", "There is the dense model alone."
        return
    yield from _seeds(data, full)
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


def macs(data):
    """MACs by layer, full and final.

    Arguments
    ---------
    data : noisegate.evaluation.estimates.SweepResults
        The figures of the sweep.

    Yields
    ------
    block : tuple
        A block of the report.
    """
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
