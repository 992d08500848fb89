#!/usr/bin/env python3
"""Runs the experiments on the synthetic problems.

> python experiments.py teacher layers decay ablation

Each run is one call of train.py's ``train``, several at a time. A line of
figures is added to results/<experiment>.jsonl when a run ends; runs found
there are not repeated, so that the command can be stopped and repeated at any
time. ``python report.py`` makes tables and plots of them.

Authors
 * The noisegate developers, 2026
"""

import argparse
import json
import logging
import multiprocessing
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE / "results"
SEEDS = (1, 2, 3, 4, 5)
FULL = 64
METHODS = ("gated", "stochastic", "pruned", "dense")
# The learning rate of each method, and what else it has to choose, is the
# best of equally many tries (experiment "tuning", a seed of its own)
TRIES = {
    "gated": ("gate_lr", (0.003, 0.01, 0.03)),
    "stochastic": ("gate_lr", (0.03, 0.1, 0.3)),
    "pruned": ("freeze_epoch", (15, 30, 45)),
    "dense": ("lr_final", (0.00003, 0.0001, 0.001)),
}
LEARNING_RATES = (0.005, 0.015, 0.03)
TEACHER_WIDTHS = (2, 4, 8, 16, 24, 48)
LAYER_WIDTHS = ((24, 8), (8, 24), (32, 4), (4, 32), (16, 16))
DECAY_WIDTHS = (2, 4, 8, 12, 16, 24, 32, 48)


def two_layer_macs(first, second):
    """MACs per frame of a student with two hidden layers."""
    return FULL * first + first * second + second * FULL


def layers_problem(widths):
    """Overrides of the problem with two hidden layers."""
    return {"teacher_widths": list(widths), "hidden_sizes": [FULL, FULL]}


def layers_budget(widths):
    """Share of the MACs of two hidden layers of these widths."""
    return two_layer_macs(*widths) / two_layer_macs(FULL, FULL)


def run(hparams, overrides):
    """Runs train.py's ``train`` in a folder that is thrown away.

    Arguments
    ---------
    hparams : str
        Name of the YAML, without suffix.
    overrides : dict
        Its overrides.

    Returns
    -------
    dict
        The figures of the run.
    """
    import torch
    from train import train

    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    folder = tempfile.mkdtemp()
    try:
        return train(
            str(HERE / "hparams" / f"{hparams}.yaml"),
            {"device": "cpu", "noprogressbar": True},
            {**overrides, "output_folder": folder, "checkpointer": None},
            save_env_desc=False,
        )
    finally:
        logging.disable(logging.NOTSET)
        shutil.rmtree(folder)


def run_cell(cell):
    """Runs one cell; the widths over time are kept where they are plotted."""
    name, hparams, overrides = cell
    result = run(hparams, overrides)
    first = [cell for cell in layers_cells() if cell[2]["seed"] == SEEDS[0]]
    if cell not in first:
        del result["history"]
    return {
        "name": name,
        "hparams": hparams,
        "overrides": overrides,
        **result,
    }


def find_width(cell):
    """Finds the smallest student that is as good as the dense one.

    The rule: the smallest width whose validation loss is at most one standard
    error (or 30 dB below the variance of the targets, where that is more)
    above the loss of the dense model. Found by bisection, each probe being
    one run; the width of the teacher is not used.
    """
    name, hparams, overrides = cell
    seed, problem = overrides["seed"], dict(overrides)
    dense = run("dense", problem)
    valid = dense["valid"]
    limit = valid["loss"] + max(valid["standard_error"], 1e-3)
    low, high, best, probes = 0, FULL, dense, []
    while high - low > 1:
        width = (low + high) // 2
        if hparams == "dense":
            sizes = {"hidden_sizes": [width]}
        else:
            sizes = {"budget": width / FULL}
        result = run(hparams, {**problem, **sizes})
        probes.append([width, result["valid"]["loss"]])
        if result["valid"]["loss"] <= limit:
            high, best = width, result
        else:
            low = width
    best.pop("history")
    return {
        "name": name,
        "hparams": hparams,
        "overrides": overrides,
        "seed": seed,
        "dense": {k: dense[k] for k in ("valid", "test")},
        "probes": probes,
        **best,
    }


def teacher_problems():
    """Yields name and overrides of the problems with one hidden layer."""
    for linear in (True, False):
        for noise in (0.1, 0.0):
            for width in TEACHER_WIDTHS:
                kind = "linear" if linear else "tanh"
                yield (
                    f"{kind}_noise{noise}_r{width}",
                    {
                        "teacher_widths": [width],
                        "linear": linear,
                        "label_noise": noise,
                    },
                )


def search_cells():
    """(a): which width does the automatic rule find?"""
    for seed in SEEDS:
        for problem, overrides in teacher_problems():
            yield (
                f"{problem}_gated_{seed}",
                "gated",
                {**overrides, "seed": seed},
            )


def teacher_cells():
    """(a): the error of each method at the width of the teacher."""
    for seed in SEEDS:
        for problem, overrides in teacher_problems():
            if not overrides["label_noise"]:  # what the error refers to
                continue
            width = overrides["teacher_widths"][0]
            for method in METHODS:
                sizes = {"budget": width / FULL}
                if method == "dense":
                    sizes = {"hidden_sizes": [width]}
                yield (
                    f"{problem}_{method}_{seed}",
                    method,
                    {**overrides, **sizes, "seed": seed},
                )


def layers_cells():
    """(b): two layers, at the MACs of the right widths."""
    for seed in SEEDS:
        for widths in LAYER_WIDTHS:
            budget = layers_budget(widths)
            problem = {**layers_problem(widths), "seed": seed}
            name = f"r{widths[0]}-{widths[1]}"
            for method in METHODS[:3]:
                yield (
                    f"{name}_{method}_{seed}",
                    method,
                    {**problem, "budget": budget},
                )
            narrow = max(
                k
                for k in range(1, FULL)
                if two_layer_macs(k, k) <= two_layer_macs(*widths)
            )
            for kind, sizes in (
                ("narrow", [narrow, narrow]),
                ("right", list(widths)),
                ("full", [FULL, FULL]),
            ):
                yield (
                    f"{name}_{kind}_{seed}",
                    "dense",
                    {**problem, "hidden_sizes": sizes},
                )


def decay_cells():
    """(c): features of decaying usefulness, over the trade-off curve."""
    for seed in SEEDS:
        for width in DECAY_WIDTHS:
            for method in METHODS:
                sizes = {"budget": width / FULL}
                if method == "dense":
                    sizes = {"hidden_sizes": [width]}
                yield (
                    f"K{width}_{method}_{seed}",
                    method,
                    {"decay": 8.0, **sizes, "seed": seed},
                )


def tuning_cells():
    """Equally many tries for each method, on a seed of their own."""
    for method, (key, values) in TRIES.items():
        for lr in LEARNING_RATES:
            for value in values:
                for problem, overrides in (
                    ("r24", {"teacher_widths": [24], "budget": 24 / FULL}),
                    (
                        "r24-8",
                        {
                            **layers_problem((24, 8)),
                            "budget": layers_budget((24, 8)),
                        },
                    ),
                    ("K16", {"decay": 8.0, "budget": 16 / FULL}),
                ):
                    overrides = {**overrides, "lr": lr, key: value, "seed": 0}
                    if method == "dense":
                        del overrides["budget"]
                        sizes = {"r24": [24], "r24-8": [24, 8], "K16": [16]}
                        overrides["hidden_sizes"] = sizes[problem]
                    yield (
                        f"{problem}_{method}_lr{lr}_{key}{value}",
                        method,
                        overrides,
                    )


# Changes of one setting at a time
ABLATION = {
    "default": {},
    **{f"ramp {v}": {"ramp": v} for v in (1.0, 2.0, 8.0, 16.0)},
    "no reordering": {"reorder": False},
    "no reordering, ramp 1 (published)": {"reorder": False, "ramp": 1.0},
    **{f"gate_lr {v}": {"gate_lr": v} for v in (0.003, 0.03)},
    **{f"freeze_epoch {v}": {"freeze_epoch": v} for v in (15, 30)},
    **{f"integral_gain {v}": {"integral_gain": v} for v in (0.01, 0.3)},
    **{f"proportional_gain {v}": {"proportional_gain": v} for v in (0.0, 10.0)},
    **{f"tighten {v}": {"tighten": v} for v in (0.25, 0.8)},
}
# Of options that did not help and were removed. Their runs are in the results,
# and can be repeated with the code of the commit noted there.
REMOVED = (
    "ramp 8 to 1",
    "truncation 0.5",
    "truncation 0.5, no reordering",
    "noise: layer",
    "noise: unit",
    "noise: none",
    "kappa_init 0.5",
)
ABLATION_SEEDS = SEEDS[:3]


def ablation_cells():
    """Each setting changed, on two layers and on decaying features."""
    for seed in ABLATION_SEEDS:
        for change, overrides in ABLATION.items():
            for widths in LAYER_WIDTHS:
                yield (
                    f"{change}_r{widths[0]}-{widths[1]}_{seed}",
                    "gated",
                    {
                        **layers_problem(widths),
                        "budget": layers_budget(widths),
                        **overrides,
                        "seed": seed,
                    },
                )
            yield (
                f"{change}_K8_{seed}",
                "gated",
                {"decay": 8.0, "budget": 8 / FULL, **overrides, "seed": seed},
            )


EXPERIMENTS = {
    "tuning": (tuning_cells, run_cell),
    "search": (search_cells, find_width),
    "teacher": (teacher_cells, run_cell),
    "layers": (layers_cells, run_cell),
    "decay": (decay_cells, run_cell),
    "ablation": (ablation_cells, run_cell),
}


def read_results(experiment):
    """Returns the figures of the finished cells by name.

    Arguments
    ---------
    experiment : str
        Name of the experiment.

    Returns
    -------
    dict of str to dict
    """
    path = RESULTS / f"{experiment}.jsonl"
    if not path.exists():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines()
    return {line["name"]: line for line in map(json.loads, lines)}


def main():
    """Runs what is not finished yet."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("experiments", nargs="+", choices=EXPERIMENTS)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude=*"],
        cwd=HERE,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    os.environ["OMP_NUM_THREADS"] = "1"
    RESULTS.mkdir(exist_ok=True)
    context = multiprocessing.get_context("spawn")
    with context.Pool(arguments.jobs) as pool:
        for experiment in arguments.experiments:
            cells, runner = EXPERIMENTS[experiment]
            done = read_results(experiment)
            todo = [cell for cell in cells() if cell[0] not in done]
            print(f"{experiment}: {len(done)} runs found, {len(todo)} to do")
            path = RESULTS / f"{experiment}.jsonl"
            for i, result in enumerate(
                pool.imap_unordered(runner, todo), start=1
            ):
                with open(path, "a", encoding="utf-8") as out:
                    out.write(json.dumps({**result, "commit": commit}) + "\n")
                print(f"{experiment} {i}/{len(todo)}", end="\r", flush=True)
            print()


if __name__ == "__main__":
    main()
