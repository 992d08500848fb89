#!/usr/bin/env python3
"""Runs the experiments of the results table, and writes their figures.

> python run_table.py --data_folder=/path/to/speech
      --noise_folder=/path/to/noise --layout=barista_esc10 --runs=runs

Each cell is one call of train.py. Figures of finished cells are copied to
results/<layout>; a cell whose figures are there is not run again (delete them
to run it anew), one that was interrupted is resumed: the command can be
stopped and repeated at any time.

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
MODELS = ("crnn", "transformer")
SWAPPED = ("crdnn", "conformer")  # models of SpeechBrain, dense and gated
SEEDS = (1986, 1987, 1988)
BUDGETS = (0.25, 0.5, 0.125)
# Where all seeds are run, and not the first one only
SEEDED = (("crnn", 0.25), ("transformer", 0.25))
# Uniformly narrow dense models, at the MACs of the budgets; those of 0.25
# are the *_small.yaml
NARROW = {
    ("crnn", 0.25): [],
    ("crnn", 0.5): [
        "--n_mels=57",
        "--conv_channels=90",
        "--rnn_units=90",
        "--dnn_neurons=90",
    ],
    ("crnn", 0.125): [
        "--n_mels=28",
        "--conv_channels=45",
        "--rnn_units=44",
        "--dnn_neurons=45",
    ],
    ("transformer", 0.25): [],
    ("transformer", 0.5): ["--n_mels=48", "--d_ffn=61"],
    ("transformer", 0.125): ["--n_mels=16", "--d_ffn=20"],
}


def cells():
    """Yields name, YAML and overrides of all cells, the main ones first.

    Yields
    ------
    name : str
        Unique name of the cell.
    hparams : str
        Name of the YAML, without suffix.
    overrides : list of str
        Command-line overrides.
    """
    for budget in BUDGETS:
        for seed in SEEDS:
            for model in MODELS:
                if seed != SEEDS[0] and (model, budget) not in SEEDED:
                    continue
                if budget == 0.25:
                    yield f"{model}_dense_{seed}", model, [f"--seed={seed}"]
                for method in ("gated", "stochastic"):
                    yield (
                        f"{model}_{method}_{budget}_{seed}",
                        f"{model}_{method}",
                        [f"--seed={seed}", f"--budget={budget}"],
                    )
                yield (
                    f"{model}_small_{budget}_{seed}",
                    f"{model}_small",
                    [f"--seed={seed}", *NARROW[model, budget]],
                )
    for seed in SEEDS:
        for model in SWAPPED:
            yield f"{model}_dense_{seed}", model, [f"--seed={seed}"]
            yield (
                f"{model}_gated_0.25_{seed}",
                f"{model}_gated",
                [f"--seed={seed}", "--budget=0.25"],
            )


def run_cell(arguments, name, hparams, overrides, stop):
    """Runs one cell and copies its figures; returns whether it finished."""
    if stop.is_set():
        return False
    target = HERE / "results" / arguments.layout
    if (target / f"{name}.json").exists():
        return True
    runs = Path(arguments.runs).resolve() / arguments.layout
    folder = runs / name
    command = [
        sys.executable,
        "train.py",
        f"hparams/{hparams}.yaml",
        f"--data_folder={arguments.data_folder}",
        f"--noise_folder={arguments.noise_folder}",
        f"--layout={arguments.layout}",
        f"--output_folder={folder}",
        f"--feature_cache={runs / 'features'}",
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
    if hparams.endswith(("_gated", "_stochastic")):
        shutil.copy(folder / "gates.jsonl", target / f"{name}.gates.jsonl")
    shutil.copy(
        folder / "compact" / "hyperparams.yaml", target / f"{name}.yaml"
    )
    # Last, because it says that the cell is finished
    shutil.copy(folder / "result.json", target / f"{name}.json")
    print(f"{name}: done", flush=True)
    return True


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--data_folder", required=True)
    parser.add_argument("--noise_folder", required=True)
    parser.add_argument("--layout", required=True)
    parser.add_argument("--runs", default="runs", help="working folder")
    parser.add_argument("--jobs", type=int, default=2, help="at a time")
    parser.add_argument("--only", default="", help="part of the cells' names")
    args, args.overrides = parser.parse_known_args()
    stopped = threading.Event()
    todo = [cell for cell in cells() if args.only in cell[0]]
    with ThreadPoolExecutor(args.jobs) as pool:
        futures = [pool.submit(run_cell, args, *cell, stopped) for cell in todo]
        try:
            finished = sum(future.result() for future in futures)
        except KeyboardInterrupt:
            stopped.set()
            raise
    print(f"{finished} of {len(todo)} cells are finished")
    sys.exit(finished < len(todo))
