#!/usr/bin/env python3
"""Writes the results table and plots from the result files of run_table.py.

> python report.py results/mini_la [--latency] [--readme README.md]

Into the folder go det.png (detection error trade-off) and tradeoff.png (EER
against MACs). With --latency all compacted models are timed anew, in turn, in
this one process; the figures are kept in latency.json.

Authors
 * The noisegate developers, 2026
"""

import argparse
import csv
import functools
import json
import re
import statistics
from collections import defaultdict
from pathlib import Path

import matplotlib
import torch
from hyperpyyaml import load_hyperpyyaml

from noisegate.evaluation.files import (
    fill_blocks,
    markdown_table,
    write_atomically,
)
from noisegate.evaluation.latency import time_in_turn
from noisegate.evaluation.metrics import roc_points
from noisegate.evaluation.scores import read_scores

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

HERE = Path(__file__).parent
METHODS = {
    "dense": "dense",
    "gated": "noise gates, all stacks",
    "stack0": "noise gates, stack 0",
    "stack1": "noise gates, stack 1",
    "stack2": "noise gates, stack 2",
    "stack3": "noise gates, stack 3",
    "stochastic": "stochastic gates, all stacks",
    "small": "small dense",
}
# Models of SpeechBrain, in a table of their own
MODELS = {
    f"{key}-{kind}": f"{name}, {text}"
    for key, name in (
        ("ecapa", "ECAPA-TDNN"),
        ("xvector", "x-vector"),
        ("sb_resnet", "ResNet of SpeechBrain"),
        ("transformer", "Transformer"),
    )
    for kind, text in (("dense", "dense"), ("gated", "noise gates"))
}
DET_TICKS = (0.1, 0.5, 1, 2, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90)


def load_results(folder, methods=METHODS):
    """Loads the result files of a folder.

    Arguments
    ---------
    folder : pathlib.Path
        With files ``<method>[_<budget>]_<seed>.json``.
    methods : dict of str to str
        Those to load, with what they are called in tables.

    Returns
    -------
    dict of tuple to list of dict
        Results by (method, budget), one per seed.
    """
    rows = defaultdict(list)
    pattern = rf"({'|'.join(methods)})_(?:([\d.]+)_)?\d+"
    for path in sorted(folder.glob("*.json")):
        match = re.fullmatch(pattern, path.stem)
        if match:
            method, budget = match.groups()
            result = json.loads(path.read_text(encoding="utf-8"))
            rows[method, float(budget or 1)].append(
                {**result, "name": path.stem}
            )
    return rows


def _score(wav, front, model):
    feats, lens = wav, torch.ones(1)
    if front:  # else from waveforms
        feats = front[1](front[0](wav), lens)
    return model(feats, lens)


def measure_latency(yamls, segment_s, rounds=15):
    """Times compacted models, front-end included, in turn.

    Arguments
    ---------
    yamls : dict of str to pathlib.Path
        Paths of their hyperparams.yaml by name. Time does not depend on the
        values of the weights, so these are not loaded.
    segment_s : float
        Seconds of audio processed at once.
    rounds : int
        Times that each model is run.

    Returns
    -------
    dict of str to float
        Median milliseconds per second of audio.
    """
    runs = {}
    for name, path in yamls.items():
        with open(path, encoding="utf-8") as fin:
            loaded = load_hyperpyyaml(fin)
        *front, model = (m.eval() for m in loaded["modules"].values())
        wav = 0.1 * torch.randn(1, round(segment_s * loaded["sample_rate"]))
        runs[name] = functools.partial(_score, wav, front, model)
    return {
        name: 1000 * seconds / segment_s
        for name, seconds in time_in_turn(runs, rounds).items()
    }


def _spread(values, digits=2):
    mean = f"{statistics.mean(values):.{digits}f}"
    if len(values) < 2:
        return mean
    return f"{mean} ± {statistics.stdev(values):.{digits}f}"


def results_table(rows, latency):
    """Returns the table of all runs as Markdown.

    EER and Cllr are mean and standard deviation over the seeds; the interval
    is that of the first seed.

    Arguments
    ---------
    rows : dict of tuple to list of dict
        From :func:`load_results`.
    latency : dict of str to float
        Milliseconds per second of audio by run; may be empty.

    Returns
    -------
    str
    """
    names = {**METHODS, **MODELS}
    order = list(names)
    headings = ["model", "budget", "n", "MACs (M)", "of dense", "parameters"]
    headings += ["latency (ms/s)", "EER (%)", "95 % interval", "Cllr", "minDCF"]
    dense = rows.get(("dense", 1.0))
    cells = []
    for method, budget in sorted(
        rows, key=lambda k: (order.index(k[0]), -k[1])
    ):
        runs = rows[method, budget]
        macs = statistics.mean(run["macs"] for run in runs)
        full = runs[0]["macs_full"]
        if method == "small" and dense:
            full = dense[0]["macs"]
        times = [latency[run["name"]] for run in runs if run["name"] in latency]
        interval = (runs[0]["test_intervals_95"] or {}).get("EER")
        cells.append(
            [
                names[method],
                "–" if method.endswith("dense") else f"{budget:g}",
                str(len(runs)),
                f"{macs / 1e6:.2f}",
                f"{macs / full:.3f}",
                f"{statistics.mean(run['params'] for run in runs):.0f}",
                f"{statistics.mean(times):.2f}" if times else "–",
                _spread([run["test"]["EER"] for run in runs]),
                f"{interval[0]:.1f}–{interval[1]:.1f}" if interval else "–",
                _spread([run["test"]["Cllr"] for run in runs]),
                _spread([run["test"]["minDCF"] for run in runs]),
            ]
        )
    return markdown_table(headings, cells)


def attacks_table(rows):
    """Returns the EER by attack as Markdown, means over the seeds.

    Arguments
    ---------
    rows : dict of tuple to list of dict
        From :func:`load_results`.

    Returns
    -------
    str
    """
    order = list(METHODS)
    keys = sorted(rows, key=lambda k: (order.index(k[0]), -k[1]))
    first = rows[keys[0]][0]["test"]
    attacks = [key[4:] for key in first if key.startswith("EER ")]
    cells = []
    for method, budget in keys:
        runs = rows[method, budget]
        values = [
            f"{statistics.mean(run['test'][f'EER {a}'] for run in runs):.1f}"
            for a in attacks
        ]
        budget = "–" if method == "dense" else f"{budget:g}"
        cells.append([METHODS[method], budget, *values])
    return markdown_table(["EER (%)", "budget", *attacks], cells)


def published_table():
    """Returns the published figures (results/published.csv) as Markdown."""
    path = HERE / "results" / "published.csv"
    with open(path, encoding="utf-8") as fin:
        rows = list(csv.DictReader(fin))
    keys = list(rows[0])
    headings = ["model", "gated stack", "kappa_min", "parameters (M)"]
    headings += ["GFLOP", "EER (%)"]
    return markdown_table(
        headings, [[row[key] for key in keys] for row in rows]
    )


def plot_det(rows, folder, path):
    """Plots the detection error trade-off of the first seed of each method.

    Arguments
    ---------
    rows : dict of tuple to list of dict
        From :func:`load_results`.
    folder : pathlib.Path
        With the score files ``<name>.scores.txt``.
    path : pathlib.Path
        Of the PNG file.
    """
    figure, axis = plt.subplots(figsize=(5, 5))
    order = list(METHODS)
    for method, budget in sorted(
        rows, key=lambda k: (order.index(k[0]), -k[1])
    ):
        file = folder / f"{rows[method, budget][0]['name']}.scores.txt"
        if method.startswith("stack") or not file.exists():
            continue
        *_, labels, scores = read_scores(file)
        p_fa, p_miss, _ = roc_points(scores, labels)
        inside = (p_fa > 0) & (p_miss > 0) & (p_fa < 1) & (p_miss < 1)
        label = METHODS[method] + (f", {budget:g}" if budget < 1 else "")
        axis.plot(
            torch.special.ndtri(p_fa[inside]),
            torch.special.ndtri(p_miss[inside]),
            label=label,
            linewidth=1,
        )
    ticks = torch.special.ndtri(torch.tensor(DET_TICKS) / 100)
    for one in (axis.xaxis, axis.yaxis):
        one.set_ticks(ticks.tolist(), [f"{tick:g}" for tick in DET_TICKS])
    axis.set(
        xlabel="spoofs accepted (%)",
        ylabel="bona fide speech rejected (%)",
        xlim=(ticks[1], ticks[-1]),
        ylim=(ticks[1], ticks[-1]),
    )
    axis.grid(True, alpha=0.3)
    axis.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def plot_tradeoff(rows, path):
    """Plots EER against MACs.

    Arguments
    ---------
    rows : dict of tuple to list of dict
        From :func:`load_results`.
    path : pathlib.Path
        Of the PNG file.
    """
    figure, axis = plt.subplots(figsize=(6, 4))
    for method, label in METHODS.items():
        runs = [
            run for key in sorted(rows) if key[0] == method for run in rows[key]
        ]
        if runs:
            axis.plot(
                [run["macs"] / 1e6 for run in runs],
                [run["test"]["EER"] for run in runs],
                "k*" if method == "dense" else "o",
                label=label,
            )
    axis.set(
        xlabel="MACs of a segment (millions)",
        ylabel="EER on test (%)",
        xscale="log",
    )
    axis.legend(fontsize="small")
    axis.grid(True, which="both", alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--latency", action="store_true")
    parser.add_argument("--readme", type=Path)
    args = parser.parse_args()
    found = load_results(args.folder)
    if not found:
        parser.error(f"{args.folder} holds no result of run_table.py")
    models = load_results(args.folder, MODELS)
    latency_file = args.folder / "latency.json"
    if args.latency:
        runs_found = [run for runs in (found | models).values() for run in runs]
        measured = measure_latency(
            {r["name"]: args.folder / f"{r['name']}.yaml" for r in runs_found},
            runs_found[0]["segment_s"],
        )
        write_atomically(latency_file, json.dumps(measured, indent=2))
    timed = {}
    if latency_file.exists():
        timed = json.loads(latency_file.read_text(encoding="utf-8"))
    table, by_attack = results_table(found, timed), attacks_table(found)
    print(table, by_attack, sep="\n\n")
    plot_tradeoff(found, args.folder / "tradeoff.png")
    plot_det(found, args.folder, args.folder / "det.png")
    if args.readme:
        blocks = {"results": table, "attacks": by_attack}
        if models:
            blocks["models"] = results_table(models, timed)
        fill_blocks(args.readme, **blocks, published=published_table())
