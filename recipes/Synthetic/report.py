#!/usr/bin/env python3
"""Makes the tables and plots of the experiments.

> python report.py --readme README.md

Reads results/*.jsonl; writes the plots beside them and replaces the generated
blocks of the README.

Authors
 * The noisegate developers, 2026
"""

import argparse
import math

import matplotlib
import numpy as np
from experiments import (
    ABLATION,
    ABLATION_SEEDS,
    DECAY_WIDTHS,
    FULL,
    LAYER_WIDTHS,
    LEARNING_RATES,
    METHODS,
    REMOVED,
    RESULTS,
    SEEDS,
    TEACHER_WIDTHS,
    TRIES,
    layers_budget,
    read_results,
    two_layer_macs,
)
from scipy import stats
from teachers import Teacher

from noisegate.evaluation.files import fill_blocks, markdown_table

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

NAMES = {
    "gated": "noise gates",
    "stochastic": "stochastic gates",
    "pruned": "magnitude pruning",
    "dense": "dense of this width",
    "narrow": "uniformly narrow",
    "right": "dense of the right widths",
    "full": "dense, 64 and 64",
}


def interval(values):
    """Mean and half-width of its 95 % interval (Student's t).

    Arguments
    ---------
    values : list of float
        One for each seed.

    Returns
    -------
    mean : float
    half_width : float

    Example
    -------
    >>> mean, half = interval([1.0, 2.0, 3.0])
    >>> round(mean, 2), round(half, 2)
    (2.0, 2.48)
    """
    values = np.asarray(values, float)
    error = values.std(ddof=1) / math.sqrt(len(values))
    return float(values.mean()), float(
        stats.t.ppf(0.975, len(values) - 1) * error
    )


def with_interval(values, digits=2):
    """Mean and interval as text."""
    mean, half = interval(values)
    return f"{mean:.{digits}f} ± {half:.{digits}f}"


def hidden(result):
    """Hidden widths of a student."""
    return [k for name, k in result["widths"].items() if "hidden" in name]


# ---- (a) -------------------------------------------------------------------


def search_table():
    """Widths found by the automatic rule."""
    results = read_results("search").values()
    rows, hits, total = [], 0, 0
    for linear in (True, False):
        for noise in (0.1, 0.0):
            cells = [
                r
                for r in results
                if r["overrides"]["linear"] == linear
                and r["overrides"]["label_noise"] == noise
            ]
            row = ["linear" if linear else "tanh", noise]
            near = 0
            for width in TEACHER_WIDTHS:
                found = sorted(
                    hidden(r)[0]
                    for r in cells
                    if r["overrides"]["teacher_widths"] == [width]
                )
                near += sum(abs(k - width) <= 1 for k in found)
                row.append(" ".join(map(str, found)))
            rows.append([*row, f"{near} of {len(cells)}"])
            hits, total = hits + near, total + len(cells)
    header = ["units", "label noise"]
    header += [f"r = {width}" for width in TEACHER_WIDTHS]
    text = markdown_table([*header, "within ± 1"], rows)
    share = 100 * hits / max(1, total)
    return f"{text}\n\nWithin ± 1 of r: {hits} of {total} ({share:.0f} %)."


def teacher_table():
    """Excess error at the width of the teacher, in percent of the noise."""
    results = read_results("teacher").values()
    rows = []
    for linear in (True, False):
        for method in METHODS:
            row = ["linear" if linear else "tanh", NAMES[method]]
            for width in TEACHER_WIDTHS:
                values = [
                    100 * r["test"]["loss"] / 0.1
                    for r in results
                    if r["hparams"] == method
                    and r["overrides"]["linear"] == linear
                    and r["overrides"]["label_noise"] == 0.1
                    and r["overrides"]["teacher_widths"] == [width]
                ]
                row.append(with_interval(values))
            rows.append(row)
    header = ["units", "method", *(f"r = {width}" for width in TEACHER_WIDTHS)]
    return markdown_table(header, rows)


# ---- (b) -------------------------------------------------------------------


def layers_table():
    """Learned widths and excess errors of students with two layers."""
    results = read_results("layers")
    rows = []
    for method in ("gated", "stochastic", "pruned", "narrow", "right", "full"):
        row = [NAMES[method]]
        for right in LAYER_WIDTHS:
            cells = [
                results[f"r{right[0]}-{right[1]}_{method}_{seed}"]
                for seed in SEEDS
            ]
            widths = np.mean([hidden(r) for r in cells], axis=0)
            error = with_interval(
                [100 * r["test"]["loss"] / 0.1 for r in cells], 1
            )
            row.append(f"({widths[0]:.1f}, {widths[1]:.1f}) {error}")
        rows.append(row)
    return markdown_table(["method", *map(str, LAYER_WIDTHS)], rows)


def plot_layers():
    """Plots the widths over time, first seed."""
    results = read_results("layers")
    figure, axes = plt.subplots(
        2, len(LAYER_WIDTHS), figsize=(13, 5), sharex=True, sharey=True
    )
    for column, right in enumerate(LAYER_WIDTHS):
        for row, method in enumerate(("gated", "stochastic")):
            axis = axes[row, column]
            name = f"r{right[0]}-{right[1]}_{method}_{SEEDS[0]}"
            history = results[name]["history"]
            for i, colour in enumerate(("tab:blue", "tab:orange")):
                widths = [h[f"width hidden{i + 1}"] for h in history]
                axis.plot(
                    range(1, len(widths) + 1),
                    widths,
                    colour,
                    label=f"layer {i + 1}",
                )
                axis.axhline(right[i], color=colour, linestyle=":")
            if row == 0:
                axis.set_title(f"right: {right[0]}, {right[1]}")
            else:
                axis.set_xlabel("epoch")
        axes[0, 0].set_ylabel("width, noise gates")
        axes[1, 0].set_ylabel("width, stochastic gates")
    axes[0, 0].legend()
    figure.tight_layout()
    figure.savefig(RESULTS / "widths.png", dpi=80)
    plt.close(figure)


# ---- (c) -------------------------------------------------------------------


def curve(results, method, seed):
    """Error on clean targets at each width."""
    return np.array(
        [
            results[f"K{width}_{method}_{seed}"]["test"]["loss"]
            for width in DECAY_WIDTHS
        ]
    )


def area_between(results, method, seed, optimum):
    """Area between a curve and the optimum, in percent of the latter's."""
    share = np.array(DECAY_WIDTHS) / FULL
    excess = curve(results, method, seed) - optimum
    area = np.trapezoid(optimum, share)
    return 100 * np.trapezoid(excess, share) / area


def optimal_curve():
    """Least possible error at each width."""
    teacher = Teacher(FULL, decay=8.0)
    return np.array([teacher.optimal_error(width) for width in DECAY_WIDTHS])


def decay_table():
    """Areas between the learned curves and the optimum."""
    results, optimum = read_results("decay"), optimal_curve()
    areas = {
        method: [area_between(results, method, s, optimum) for s in SEEDS]
        for method in METHODS
    }
    rows = []
    for method in METHODS:
        difference = np.subtract(areas[method], areas["gated"])
        rows.append(
            [
                NAMES[method],
                with_interval(areas[method]),
                "" if method == "gated" else with_interval(difference),
            ]
        )
    header = ["method", "area to the optimum (%)", "minus noise gates"]
    return markdown_table(header, rows)


def plot_decay():
    """Plots error against MACs, with the optimum."""
    results, optimum = read_results("decay"), optimal_curve()
    share = np.array(DECAY_WIDTHS) / FULL
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2))
    left.plot(share, optimum, "k--", label="optimum")
    for method in METHODS:
        curves = np.array([curve(results, method, s) for s in SEEDS])
        left.plot(share, curves.mean(0), "o-", label=NAMES[method], ms=4)
        excess = np.array([interval(c) for c in (curves - optimum).T])
        right.errorbar(
            share,
            excess[:, 0],
            yerr=excess[:, 1],
            fmt="o-",
            ms=4,
            capsize=3,
            label=NAMES[method],
        )
    left.set(yscale="log", ylabel="error on clean targets")
    right.set(yscale="log", ylabel="error above the optimum")
    for axis in (left, right):
        axis.set(xscale="log", xlabel="MACs, percent of those at full width")
        axis.set_xticks(share, [f"{100 * x:.3g}" for x in share])
        axis.minorticks_off()
        axis.legend()
    figure.tight_layout()
    figure.savefig(RESULTS / "tradeoff.png", dpi=80)
    plt.close(figure)


# ---- ablation and tuning ---------------------------------------------------


def ablation_problems():
    """Name and budget of the problems of the ablation."""
    for widths in LAYER_WIDTHS:
        yield f"r{widths[0]}-{widths[1]}", layers_budget(widths)
    yield "K8", 8 / FULL


def share_of_macs(result):
    """MACs relative to the full student."""
    widths = hidden(result)
    full = 2 * FULL * FULL if len(widths) == 1 else two_layer_macs(FULL, FULL)
    return result["macs_per_frame"] / full


def ablation_table():
    """Effect of each setting on the excess error."""
    results = read_results("ablation")
    rows = []
    least, most = math.inf, 0.0
    for change in (*ABLATION, *REMOVED):
        ratios, errors = [], []
        for seed in ABLATION_SEEDS:
            logs = []
            for problem, budget in ablation_problems():
                result = results[f"{change}_{problem}_{seed}"]
                default = results[f"default_{problem}_{seed}"]
                logs.append(
                    math.log(result["test"]["loss"] / default["test"]["loss"])
                )
                used = share_of_macs(result) / budget
                least, most = min(least, used), max(most, used)
            ratios.append(np.mean(logs))
            errors.append(
                np.mean(
                    [
                        np.abs(
                            np.subtract(
                                hidden(results[f"{change}_r{a}-{b}_{seed}"]),
                                (a, b),
                            )
                        ).mean()
                        for a, b in LAYER_WIDTHS
                    ]
                )
            )
        mean, half = interval(ratios)
        low, high = math.exp(mean - half), math.exp(mean + half)
        rows.append(
            [
                change,
                f"{math.exp(mean):.2f}",
                "" if change == "default" else f"{low:.2f} to {high:.2f}",
                f"{np.mean(errors):.1f}",
            ]
        )
    header = [
        "change",
        "error, relative to the default",
        "95 %",
        "widths off by",
    ]
    text = markdown_table(header, rows)
    return (
        f"{text}\n\n{len(results)} runs; MACs of all of them between "
        f"{100 * least:.1f} and {100 * most:.1f} % of the budget."
    )


def tuning_table():
    """Best of the tries of each method."""
    results = read_results("tuning")
    rows = []
    for method, (key, values) in TRIES.items():
        scores = {}
        for lr in LEARNING_RATES:
            for value in values:
                losses = [
                    results[f"{problem}_{method}_lr{lr}_{key}{value}"]
                    for problem in ("r24", "r24-8", "K16")
                ]
                scores[lr, value] = np.mean(
                    [math.log(r["test"]["loss"]) for r in losses]
                )
        best = min(scores, key=scores.get)
        rows.append(
            [
                NAMES[method],
                f"lr in {LEARNING_RATES}, {key} in {values}",
                f"lr {best[0]}, {key} {best[1]}",
                f"{math.exp(scores[best]):.4f}",
            ]
        )
    header = ["method", "tried", "best", "error (geometric mean)"]
    return markdown_table(header, rows)


BLOCKS = {
    "search": search_table,
    "teacher": teacher_table,
    "layers": layers_table,
    "decay": decay_table,
    "ablation": ablation_table,
    "tuning": tuning_table,
}


def main():
    """Prints all tables, or writes them into a README."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--readme", help="file with generated blocks")
    arguments = parser.parse_args()
    plot_layers()
    plot_decay()
    blocks = {name: make() for name, make in BLOCKS.items()}
    if arguments.readme is None:
        print("\n\n".join(blocks.values()))
        return
    fill_blocks(arguments.readme, **blocks)


if __name__ == "__main__":
    main()
