"""Folders of sweeps with hand-made figures, for the tests of reports."""

import json

import numpy as np

from noisegate.evaluation.metrics import eer
from noisegate.evaluation.trials import Trials, write_trials

BAD = "</script><script>alert('|')</script>"  # a name that breaks pages
# EER by method and budget, of seeds 1 and 2
EERS = {
    ("dense", 1.0): [2.0, 4.0],
    ("noise", 0.5): [4.0, 4.0],
    ("narrow", 0.5): [5.0, 7.0],
    ("noise", 0.25): [6.0, 8.0],
    ("narrow", 0.25): [10.0, 16.0],
}


def write_identity(place, method, budget, seed):
    """Writes which cell a folder is of."""
    cell = {"method": method, "budget": budget, "seed": seed}
    (place / "cell.json").write_text(json.dumps(cell))


def write_cell(folder, method, budget, seed, eer):
    """Writes what a run leaves."""
    place = folder / "cells" / f"{method}_{budget:g}_{seed}"
    place.mkdir(parents=True)
    widths = {"conv": round(64 * budget) + seed - 1, BAD: 10, "out": 1}
    if method == "dense":
        widths["conv"] = 64
    result = {
        "seed": seed,
        "widths": widths,
        "params": round(1000 * budget),
        "macs_per_second": 4096 * budget,
        "macs_per_second_full": 4096,
        "steps": 192,
        "test": {"EER": eer, "EER 15-25": 3 * eer, "EER <5": 2 * eer}
        | {"EER 5-15": eer, "x": None},
        "versions": {"noisegate": "0.1.0", "commit": "abc1234"},
    }
    (place / "result.json").write_text(json.dumps(result))
    write_identity(place, method, budget, seed)
    lines = [
        {"epoch": epoch, "macs_per_second": 4096, "width conv": width}
        for epoch, width in [(1, 64.0), (2, 40.5), (2, 48.5), (3, 16.0)]
    ]
    if method == "noise":
        text = "\n".join(json.dumps(line) for line in lines)
        (place / "gates.jsonl").write_text(text[:-9] + "\n" + text)


def add_trials(folder, n_speakers=30):
    """Adds scored trials to each cell, and their EER to its result."""
    labels = np.arange(40 * n_speakers) % 2
    speakers = [f"spk{i // 40}" for i in range(len(labels))]
    gaps = {"dense": 4.0, "noise": 3.0, "narrow": 1.0}
    for place in sorted((folder / "cells").iterdir()):
        method, budget, seed = place.name.split("_")
        rng = np.random.default_rng(int(seed))
        scores = rng.normal(size=len(labels))
        scores += labels * (gaps[method] + float(budget))
        trials = Trials.of(scores, labels, speakers)
        write_trials(place / "trials.txt", trials)
        result = json.loads((place / "result.json").read_text())
        result["test"]["EER"] = eer(scores, labels)
        half = 2048 * float(budget)
        result["macs_by_layer"] = {"a": [3072, half], "b<": [1024, half]}
        (place / "result.json").write_text(json.dumps(result))


def write_sweep(folder, eers=EERS, n_seeds=2):
    """Writes the folder of a sweep."""
    folder.mkdir(exist_ok=True)
    overrides = ["--data_folder=/corpora/la", "--widths=[16]", f"--note={BAD}"]
    plan = {"recipe": "Toy", "hparams": "a<b>.yaml", "overrides": overrides}
    (folder / "sweep.json").write_text(json.dumps(plan))
    for (method, budget), figures in eers.items():
        for seed, figure in enumerate(figures[:n_seeds], 1):
            write_cell(folder, method, budget, seed, figure)
    return folder
