"""The table of a sweep: a row for each model, budget and method.

Authors
 * The noisegate developers, 2026
"""

import dataclasses
import math
import statistics

from noisegate.evaluation.methods import METHODS

_FLOAT_BYTES = 4
# Columns of figures that not all cells have: key, its ratio, unit
_MORE = {
    "activations (MB per s of audio)": (
        "activations_per_second",
        None,
        1e6 / _FLOAT_BYTES,
    ),
    "torch, ms/s (of dense)": ("torch_ms_per_s", "torch_ratio", 1),
    "onnxruntime, ms/s (of dense)": ("onnx_ms_per_s", "onnx_ratio", 1),
}
_FEW = 3  # widths that a table has room for
_METRICS = ("EER", "error_rate", "error", "loss")  # the first that is there


def find_metric(rows, metric=None):
    """Returns the figure that a sweep is judged by.

    Arguments
    ---------
    rows : list of dict
        See :func:`figures`.
    metric : str
        The figure asked for, if any.

    Returns
    -------
    str
        It, or the first of EER, error rate, error and loss that all have.

    Raises
    ------
    ValueError
        If a cell does not have it.
    """
    wanted = [metric] if metric else _METRICS
    for name in wanted:
        if all(f"test {name}" in row for row in rows):
            return name
    raise ValueError(f"not all results have a figure 'test' of {wanted}")


def _optional(result):
    """Figures that not all cells have."""
    found = {**result, **result.get("latency", {})}
    keys = [key for key, ratio, _ in _MORE.values()]
    keys += [ratio for _, ratio, _ in _MORE.values() if ratio]
    return {key: found[key] for key in keys if found.get(key) is not None}


def _mean_of(group, key, ratio, unit):
    """Mean over seeds as text, if all have it, with that of the ratio."""
    if not all(key in row for row in group):
        return "-"
    text = f"{statistics.mean(row[key] for row in group) / unit:.3g}"
    if ratio and all(ratio in row for row in group):
        text += f" ({statistics.mean(row[ratio] for row in group):.2f})"
    return text


def _narrowed(rows):
    """Names of widths that differ, in order."""
    names = dict.fromkeys(name for row in rows for name in row["widths"])
    return [
        name
        for name in names
        if len({row["widths"].get(name) for row in rows}) > 1
    ]


def _widths(group, names):
    """Mean widths over seeds as text."""
    means = (
        statistics.mean(row["widths"].get(name, 0) for row in group)
        for name in names
    )
    return ", ".join(f"{mean:.3g}" for mean in means)


def figures(results):
    """Returns the figures of cells that are numbers.

    Arguments
    ---------
    results : list of (Cell, dict)
        See :meth:`noisegate.evaluation.results.SweepFolder.results`.

    Returns
    -------
    list of dict
        One for each cell, in order.

    Raises
    ------
    ValueError
        If there are none.
    """
    rows = []
    for cell, result in results:
        full = result["macs_per_second_full"]
        row = {
            **dataclasses.asdict(cell),
            "macs_share": result["macs_per_second"] / full,
            "widths": result["widths"],
        }
        for key in ("macs_per_second", "params", "steps"):
            row[key] = result[key]
        # Absent from old results, or not measured
        row.update(_optional(result))
        for key, value in result["test"].items():
            if isinstance(value, (int, float)):
                row[f"test {key}"] = value
        for key, ends in (result.get("test_intervals_95") or {}).items():
            row[f"interval {key}"] = "{:.1f} to {:.1f}".format(*ends)
        rows.append(row)
    if not rows:
        raise ValueError("no cell is finished")
    return rows


def summarize(rows, metric=None, columns=()):
    """Returns a table of a sweep.

    Arguments
    ---------
    rows : list of dict
        See :func:`figures`.
    metric : str
        Key of "test" in the results; EER, error or loss if None, the first
        that there is.
    columns : list of str
        Further keys of "test" to show.

    Returns
    -------
    headings : list of str
        Those of the table.
    table : list of list of str
        For each model, budget and method the number of seeds, mean and
        standard deviation of the metric, MACs per second of audio and relative
        to the dense model, parameters, training steps, and where known
        activations and latencies (see docs/sweep.md); the widths if they are
        few.

    Raises
    ------
    ValueError
        If a cell lacks one of the figures.
    """
    shown = [find_metric(rows, metric)]
    shown += [find_metric(rows, column) for column in columns]
    more = {
        name: keys
        for name, keys in _MORE.items()
        if any(keys[0] in row for row in rows)
    }
    several = any(row["model"] for row in rows)
    headings = ["model"] * several + ["method", "budget", "n"]
    headings += [f"{shown[0]} (test)", "MACs/s (M)", "of dense", "parameters"]
    narrowed = _narrowed(rows)
    few = 0 < len(narrowed) <= _FEW
    headings += ["steps", *[", ".join(narrowed)] * few, *more, *shown[1:]]
    interval = f"interval {shown[0]}"  # of one run, over its conditions
    with_intervals = any(interval in row for row in rows)
    if with_intervals:
        headings.append("95 % interval of the first seed")
    groups = {}
    for row in rows:
        key = row["model"], -row["budget"], row["method"]
        groups.setdefault(key, []).append(row)
    order, table = list(METHODS), []
    for key in sorted(groups, key=lambda k: (*k[:2], order.index(k[2]))):
        group = groups[key]

        def mean(column, group=group):
            return statistics.mean(row[column] for row in group)

        tests = [
            spread([row[f"test {name}"] for row in group]) for name in shown
        ]
        table.append(
            [
                *key[:1] * several,
                key[2],
                f"{-key[1]:g}",
                f"{len(group)}",
                tests[0],
                f"{mean('macs_per_second') / 1e6:.3g}",
                f"{mean('macs_share'):.3f}",
                f"{mean('params'):.0f}",
                f"{mean('steps'):.0f}",
                *[_widths(group, narrowed)] * few,
                *(_mean_of(group, *keys) for keys in more.values()),
                *tests[1:],
                *[group[0].get(interval, "-")] * with_intervals,
            ]
        )
    return headings, table


def spread(values):
    """Returns mean and standard deviation as text.

    Arguments
    ---------
    values : iterable of float
        The values.

    Returns
    -------
    str
        "-" if there are none.

    Example
    -------
    >>> spread([1.0, 2.0, 3.0])
    '2 ± 1'
    """
    values = list(values)
    if not values:
        return "-"
    text = f"{statistics.mean(values):.3g}"
    # statistics.stdev fails where a figure is not finite
    if len(values) > 1 and all(map(math.isfinite, values)):
        text += f" ± {statistics.stdev(values):.2g}"
    return text
