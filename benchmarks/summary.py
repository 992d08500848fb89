#!/usr/bin/env python3
"""What the sweeps of the recipes say, in four rows.

> python benchmarks/summary.py README.md
> python benchmarks/summary.py recipes/VAD/README.md

Fills the blocks ``pays`` and ``level`` of a README from the results that the
recipes keep.

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
# Task, sweep, its model if there are several, budget
ROWS = (
    ("keywords, errors", "Keywords/results/gsc12", "", 0.125),
    ("keywords, errors", "Keywords/results/gsc12", "", 0.04),
    ("anti-spoofing, EER", "ASVspoof/results/neural_la", "", 0.0625),
    ("voice activity, EER", "VAD/results/controls", "mixtures_24", 0.0625),
)

LEVEL = [
    ("EER", "VAD/results/controls", "mixtures_24", budget)
    for budget in (0.25, 0.125, 0.0625, 0.03125)
]


@functools.cache
def swept(folder, model):
    """Results of a sweep or of one of its models; the draws take seconds."""
    sweep = SweepFolder(RECIPES / folder)
    sweep.cells = [cell for cell in sweep.cells if cell.model == model]
    return SweepResults(sweep)


def row(task, folder, model, budget):
    """Cells of the table for one task and budget."""
    data = swept(folder, model)
    noise, narrow = ("noise", budget), ("narrow", budget)
    _, low, high, n = data.estimate(
        [noise, narrow], lambda errors: errors[narrow] - errors[noise]
    )

    def error(group):
        return f"{mean(data.values(group).values()):.1f}"

    others = [(method, budget) for method in OTHERS]
    others = sorted((error(g) for g in others if g in data.runs), key=float)
    return [
        task,
        f"1/{1 / budget:.0f}",
        error(("dense", 1.0)),
        error(noise),
        f"{others[0]} to {others[-1]}" if others else "not run",
        error(narrow),
        f"{low:+.1f} to {high:+.1f} ({n})",
    ]


def main():
    """Fills the blocks that the file has."""
    place = Path(sys.argv[1])
    headings = ["task, figure in %", "MACs", "dense", "noise gates"]
    headings += ["other gates, pruning", "narrow", "narrow minus noise gates"]
    rows = {"pays": ROWS, "level": LEVEL}
    for block in rows:
        if f"<!-- {block} -->" in place.read_text(encoding="utf-8"):
            table = [row(*task) for task in rows[block]]
            fill_blocks(place, **{block: markdown_table(headings, table)})


if __name__ == "__main__":
    main()
