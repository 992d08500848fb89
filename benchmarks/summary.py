#!/usr/bin/env python3
"""What the sweeps of the recipes say, in four rows.

> python benchmarks/summary.py README.md

Fills the block ``pays`` of a README from the results that the recipes keep.

Authors
 * The noisegate developers, 2026
"""

import functools
import sys
from pathlib import Path
from statistics import mean

from noisegate.evaluation.estimates import SweepResults
from noisegate.evaluation.files import fill_blocks, markdown_table
from noisegate.evaluation.results import SweepFolder

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
OTHERS = ("hard_concrete", "stg", "torch_pruning", "magnitude")
# Task, sweep, budget
ROWS = (
    ("keywords, errors", "Keywords/results/gsc12", 0.125),
    ("keywords, errors", "Keywords/results/gsc12", 0.04),
    ("anti-spoofing, EER", "ASVspoof/results/neural_la", 0.0625),
    ("voice activity, EER", "VAD/results/so762_esc10", 0.0625),
)


@functools.cache
def swept(folder):
    """Results of a sweep; the draws take seconds."""
    return SweepResults(SweepFolder(RECIPES / folder))


def row(task, folder, budget):
    """Cells of the table for one task and budget."""
    data = swept(folder)
    noise, narrow = ("noise", budget), ("narrow", budget)
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
