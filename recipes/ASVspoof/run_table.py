#!/usr/bin/env python3
"""Runs the experiments of the results table, and keeps their figures.

> python run_table.py results/mini_la --data_folder=/path/to/mini_la
      --speech_folder=/path/to/speech --runs=runs
> python run_table.py results/2019_la --full --data_folder=/path/to/LA

Each cell is one call of train.py. Figures of finished cells are copied to the
folder named first; a cell whose figures are there is not run again (delete
them to run it anew), one that was interrupted is resumed: the command can be
stopped and repeated at any time. What is not known here goes to train.py.

Authors
 * The noisegate developers, 2026
"""

import argparse
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
SEEDS = (1986, 1987, 1988)
BUDGETS = (0.25, 0.5, 0.125)
# Shares of the MACs with one stack at half of its channels
STACK_BUDGETS = {0: 0.85, 1: 0.82, 2: 0.72, 3: 0.87}
# The channels of stack 0 are made by the first convolution already
STACK_LAYERS = {s: f"stack{s}.*" for s in (1, 2, 3)} | {0: "conv,stack0.*"}
# SpeechBrain's models, on Mini-LA only: dense and gated
FAMILIES = ("ecapa", "xvector", "sb_resnet", "transformer")
# Factors for the channels of the dense model that meet the budgets
NARROW = {0.25: 0.5, 0.5: 0.7, 0.125: 0.35}


def cells(full):
    """Yields name, YAML and overrides of all cells, the main ones first.

    Arguments
    ---------
    full : bool
        Whether the model has all its channels; else it is the quarter of
        Mini-LA.

    Yields
    ------
    name : str
        Unique name of the cell, <method>[_<budget>]_<seed>.
    hparams : str
        Name of the YAML, without suffix.
    overrides : list of str
        Command-line overrides.
    """
    model, gated = "mini_resnet34", "mini_resnet34_gated_all"
    if full:
        model, gated = "resnet34", "resnet34_gated"
    yamls = {"gated": gated, "stochastic": f"{model}_stochastic"}
    for budget in BUDGETS:
        for seed in SEEDS if budget == 0.25 else SEEDS[:1]:
            if budget == 0.25:
                yield f"dense_{seed}", model, [f"--seed={seed}"]
            options = [f"--seed={seed}", f"--budget={budget}"]
            for method, hparams in yamls.items():
                yield f"{method}_{budget}_{seed}", hparams, options
            width = NARROW[budget] * (1 if full else 0.25)
            options = [f"--seed={seed}", f"--width={width}"]
            yield f"small_{budget}_{seed}", f"{model}_small", options
    for stack, budget in STACK_BUDGETS.items():
        options = [f"--seed={SEEDS[0]}", f"--budget={budget}"]
        options.append(f"--gate_layers=[{STACK_LAYERS[stack]}]")
        yield f"stack{stack}_{budget}_{SEEDS[0]}", gated, options
    for seed in SEEDS if not full else ():
        for family in FAMILIES:
            options = [f"--seed={seed}"]
            yield f"{family}-dense_{seed}", f"mini_{family}", options
            name = f"{family}-gated_0.25_{seed}"
            yield name, f"mini_{family}_gated", options


def run_cell(arguments, name, hparams, overrides, stop):
    """Runs one cell and copies its figures; returns whether it finished."""
    if stop.is_set():
        return False
    target = arguments.folder
    if (target / f"{name}.json").exists():
        return True
    folder = Path(arguments.runs).resolve() / target.name / name
    command = [
        sys.executable,
        "train.py",
        f"hparams/{hparams}.yaml",
        f"--output_folder={folder}",
        "--noprogressbar",
        *overrides,
        *arguments.overrides,
    ]
    folder.mkdir(parents=True, exist_ok=True)
    threads = str(max(1, (os.cpu_count() or 1) // arguments.jobs))
    with open(folder / "stdout.txt", "ab") as log:
        code = subprocess.run(
            command,
            cwd=HERE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={"OMP_NUM_THREADS": threads, **os.environ},
            check=False,
        ).returncode
    if code:
        print(f"{name}: failed, see {folder / 'stdout.txt'}", flush=True)
        return False
    target.mkdir(parents=True, exist_ok=True)
    if any(kind in name for kind in ("gated", "stochastic", "stack")):
        shutil.copy(folder / "gates.jsonl", target / f"{name}.gates.jsonl")
    shutil.copy(
        folder / "compact" / "hyperparams.yaml", target / f"{name}.yaml"
    )
    shutil.copy(folder / "scores.txt", target / f"{name}.scores.txt")
    # Last, because it says that the cell is finished
    shutil.copy(folder / "result.json", target / f"{name}.json")
    print(f"{name}: done", flush=True)
    return True


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path, help="where figures are kept")
    parser.add_argument("--full", action="store_true", help="all channels")
    parser.add_argument("--runs", default="runs", help="working folder")
    parser.add_argument("--jobs", type=int, default=2, help="at a time")
    parser.add_argument("--only", default="", help="part of the cells' names")
    args, args.overrides = parser.parse_known_args()
    args.folder = args.folder.resolve()
    stopped = threading.Event()
    todo = [cell for cell in cells(args.full) if args.only in cell[0]]
    with ThreadPoolExecutor(args.jobs) as pool:
        # The first cell alone, because it may have to make the data
        futures = [pool.submit(run_cell, args, *todo[0], stopped)]
        futures[0].result()
        futures += [
            pool.submit(run_cell, args, *cell, stopped) for cell in todo[1:]
        ]
        try:
            finished = sum(future.result() for future in futures)
        except KeyboardInterrupt:
            stopped.set()
            raise
    print(f"{finished} of {len(todo)} cells are finished")
    sys.exit(finished < len(todo))
