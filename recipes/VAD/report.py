#!/usr/bin/env python3
"""Writes the results table and plots from the result files of run_table.py.

> python report.py results/barista_esc10 [--latency] [--readme README.md]

With --latency all compacted models are timed anew, in turn, in this one
process; the figures are kept in latency.json beside the results.

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
from vad_data import SNR_RANGES

from noisegate.evaluation.files import (
    fill_blocks,
    markdown_table,
    write_atomically,
)
from noisegate.evaluation.latency import time_in_turn

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

HERE = Path(__file__).parent
RANGES = [name for name, _, _ in SNR_RANGES]
METHODS = {
    "dense": "dense",
    "gated": "noise gates",
    "stochastic": "stochastic gates",
    "small": "small dense",
}
NAMES = {
    "crnn": "CRNN",
    "transformer": "Transformer",
    "crdnn": "CRDNN (LibriParty)",
    "conformer": "Conformer",
}


def load_results(folder):
    """Loads the result files of a folder.

    Arguments
    ---------
    folder : pathlib.Path
        With files ``<model>_<method>[_<budget>]_<seed>.json``.

    Returns
    -------
    dict of tuple to list of dict
        Results by (model, method, budget), one per seed.
    """
    rows = defaultdict(list)
    names, methods = "|".join(NAMES), "|".join(METHODS)
    pattern = rf"({names})_({methods})_?([\d.]*)_\d+"
    for path in sorted(folder.glob("*.json")):
        match = re.fullmatch(pattern, path.stem)
        if match:
            model, method, budget = match.groups()
            result = json.loads(path.read_text(encoding="utf-8"))
            rows[model, method, float(budget or 1)].append(
                {**result, "name": path.stem}
            )
    return rows


def _score(wav, features, norm, model):
    return model(norm(features(wav), torch.ones(1)))


def measure_latency(yamls, segment_s=4.0, rounds=15):
    """Times compacted models, front-end included, in turn.

    Arguments
    ---------
    yamls : dict of str to str
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
        features, norm, model = (m.eval() for m in loaded["modules"].values())
        wav = 0.1 * torch.randn(1, round(segment_s * loaded["sample_rate"]))
        runs[name] = functools.partial(_score, wav, features, norm, model)
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
    order = list(METHODS)
    headings = ["model", "budget", "n", "MACs/s (M)", "of dense"]
    headings += ["parameters", "latency (ms/s)", "EER (%)"]
    headings += [f"{name} dB" for name in RANGES]
    cells = []
    keys = sorted(rows, key=lambda k: (k[0], -k[2], order.index(k[1])))
    for model, method, budget in keys:
        runs = rows[model, method, budget]
        share = [r["macs_per_second"] for r in runs]
        if method in ("dense", "small"):
            full = rows.get((model, "dense", 1.0), runs)
            full = full[0]["macs_per_second"]
        else:
            full = runs[0]["macs_per_second_full"]
        times = [latency[r["name"]] for r in runs if r["name"] in latency]
        cells.append(
            [
                f"{NAMES[model]}, {METHODS[method]}",
                "–" if method == "dense" else f"{budget:g}",
                str(len(runs)),
                f"{statistics.mean(share) / 1e6:.2f}",
                f"{statistics.mean(share) / full:.3f}",
                f"{statistics.mean(r['params'] for r in runs):.0f}",
                f"{statistics.mean(times):.2f}" if times else "–",
                _spread([r["test"]["EER"] for r in runs]),
                *(
                    _spread([r["test"][f"EER {name}"] for r in runs], 1)
                    for name in RANGES
                ),
            ]
        )
    return markdown_table(headings, cells)


def published_table():
    """Returns the published figures (results/published.csv) as Markdown."""
    path = HERE / "results" / "published.csv"
    with open(path, encoding="utf-8") as fin:
        rows = list(csv.DictReader(fin))
    headings = ["model", "kappa_min", "mel bands", "parameters", "MFLOPs"]
    headings += ["EER (%)", *(f"{name} dB" for name in RANGES)]
    keys = ["model", "min_kappa", "mel_bands", "params", "mflops"]
    keys += ["eer_percent", "lt_5db", "5_15db", "15_25db", "ge_25db"]
    return markdown_table(
        headings, [[row[key] for key in keys] for row in rows]
    )


def plot_tradeoff(rows, path):
    """Plots EER against MACs.

    Arguments
    ---------
    rows : dict of tuple to list of dict
        From :func:`load_results`.
    path : pathlib.Path
        Of the PNG file.
    """
    models = sorted({model for model, _, _ in rows})
    figure, axes = plt.subplots(
        1, len(models), figsize=(5 * len(models), 4), squeeze=False
    )
    for axis, model in zip(axes[0], models):
        for method, label in METHODS.items():
            runs = [
                run
                for key in sorted(rows)
                if key[:2] == (model, method)
                for run in rows[key]
            ]
            if runs:
                axis.plot(
                    [run["macs_per_second"] / 1e6 for run in runs],
                    [run["test"]["EER"] for run in runs],
                    "o" if method != "dense" else "k*",
                    label=label,
                )
        axis.set(
            title=NAMES[model],
            xlabel="MACs per second of audio (millions)",
            ylabel="EER on test (%)",
            xscale="log",
        )
        axis.legend()
        axis.grid(True, which="both", alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def plot_widths(history, path):
    """Plots the relative widths over the epochs of a run.

    Arguments
    ---------
    history : pathlib.Path
        The file gates.jsonl of the run.
    path : pathlib.Path
        Of the PNG file.
    """
    lines = history.read_text(encoding="utf-8").splitlines()
    epochs = {(line := json.loads(text))["epoch"]: line for text in lines}
    epochs = [epochs[epoch] for epoch in sorted(epochs)]
    figure, axis = plt.subplots(figsize=(6, 4))
    numbers = [line["epoch"] for line in epochs]
    for key in epochs[-1]:
        if key.startswith("width "):
            axis.plot(numbers, [line[key] for line in epochs], label=key[6:])
    axis.set(xlabel="epoch", ylabel="width (channels)")
    share = axis.twinx()
    share.plot(
        numbers, [line["macs_ratio"] for line in epochs], "k--", label="MACs"
    )
    share.set(ylabel="share of the MACs (dashed)", ylim=(0, 1.05))
    axis.legend(loc="upper right", fontsize="small")
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
    latency_file = args.folder / "latency.json"
    if args.latency:
        names = [run["name"] for runs in found.values() for run in runs]
        measured = measure_latency(
            {name: args.folder / f"{name}.yaml" for name in names}
        )
        write_atomically(latency_file, json.dumps(measured, indent=2))
    timed = {}
    if latency_file.exists():
        timed = json.loads(latency_file.read_text(encoding="utf-8"))
    table = results_table(found, timed)
    print(table)
    plot_tradeoff(found, args.folder / "tradeoff.png")
    if args.readme:
        fill_blocks(args.readme, results=table, published=published_table())
