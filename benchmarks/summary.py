#!/usr/bin/env python3
"""What the sweeps of the recipes say, in four rows.

> python benchmarks/summary.py README.md

Fills the block ``pays`` of a README from the results that the recipes keep.

Authors
 * The noisegate developers, 2026
"""

import copy
import functools
import sys
from pathlib import Path
from statistics import mean

from noisegate.evaluation.estimates import SweepResults
from noisegate.evaluation.files import fill_blocks, markdown_table
from noisegate.evaluation.results import SweepFolder
from noisegate.evaluation.table import figures

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
OTHERS = ("hard_concrete", "stg", "torch_pruning", "magnitude")
# Task, sweep, budget; of VAD the narrow models that had as many epochs in all
ROWS = (
    ("keywords, errors", "Keywords/results/gsc12", 0.125, None),
    ("keywords, errors", "Keywords/results/gsc12", 0.04, None),
    ("anti-spoofing, EER", "ASVspoof/results/neural_la", 0.0625, None),
    (
        "voice activity, EER",
        "VAD/results/so762_esc10",
        0.0625,
        "steps_smallest",
    ),
)


@functools.cache
def swept(folder):
    """Results of a sweep, whose draws take some seconds."""
    return SweepResults(SweepFolder(RECIPES / folder))


def controls(folder, model):
    """Runs by seed of one model of the sweep ``controls`` beside another."""
    results = SweepFolder(folder.with_name("controls")).results()
    return {
        cell.seed: (cell, result, row)
        for (cell, result), row in zip(results, figures(results))
        if cell.model == model
    }


def row(task, folder, budget, model):
    """Cells of the table for one task and budget."""
    data = copy.copy(swept(folder))
    noise, narrow = ("noise", budget), ("narrow", budget)
    if model is not None:
        runs = controls(RECIPES / folder, model)
        data.runs, data.draws = {**data.runs, narrow: runs}, None
    _, low, high, n = data.estimate(
        [noise, narrow], lambda errors: errors[narrow] - errors[noise]
    )

    def error(group):
        return f"{mean(data.values(group).values()):.1f}"

    others = sorted((error((m, budget)) for m in OTHERS), key=float)
    return [
        task,
        f"1/{1 / budget:.0f}",
        error(("dense", 1.0)),
        error(noise),
        f"{others[0]} to {others[-1]}",
        error(narrow),
        f"{low:+.1f} to {high:+.1f} ({n})",
    ]


def main():
    """Fills the block."""
    headings = ["task, figure in %", "MACs", "dense", "noise gates"]
    headings += ["other gates, pruning", "narrow", "narrow minus noise gates"]
    table = markdown_table(headings, [row(*task) for task in ROWS])
    fill_blocks(Path(sys.argv[1]), pays=table)


if __name__ == "__main__":
    main()
