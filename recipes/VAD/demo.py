#!/usr/bin/env python3
"""The main job in a few minutes: a dense model and one that learns its size.

> python demo.py

Generates a small synthetic corpus (nothing is downloaded), trains the dense
CRNN and the gated CRNN to a budget of 25 % of its MACs, side by side on one
core each, compacts, tests and prints a table.

Authors
 * The noisegate developers, 2026
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from embedded_corpus import make_corpus
from report import NAMES, measure_latency, plot_widths

from noisegate.evaluation.files import markdown_table

HERE = Path(__file__).parent
OUTPUT = HERE / "results" / "demo"
OPTIONS = [
    "--layout=embedded",
    "--mixes_per_segment=4",
    "--number_of_epochs=6",
    "--freeze_epoch=4",
    "--noprogressbar",
]
VARIANTS = ("crnn", "crnn_gated")


def train(corpus):
    """Runs train.py once per variant, side by side; returns result folders."""
    threads = str(max(1, (os.cpu_count() or 1) // len(VARIANTS)))
    running = {}
    for variant in VARIANTS:
        folder = OUTPUT / variant
        folder.mkdir(parents=True, exist_ok=True)
        command = [
            sys.executable,
            "train.py",
            f"hparams/{variant}.yaml",
            f"--data_folder={corpus}",
            f"--output_folder={folder}",
            *OPTIONS,
        ]
        print("python", *command[1:3], *OPTIONS, flush=True)
        log = open(folder / "stdout.txt", "w", encoding="utf-8")
        running[folder] = subprocess.Popen(
            command,
            cwd=HERE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": threads},
        )
    for folder, process in running.items():
        if process.wait():
            sys.exit(f"training failed, see {folder / 'stdout.txt'}")
    return list(running)


if __name__ == "__main__":
    corpus_folder = OUTPUT / "corpus"
    if not (corpus_folder / "corpus.json").exists():
        print("Generating a synthetic corpus", flush=True)
        make_corpus(str(corpus_folder))
    print("Training, some minutes", flush=True)
    folders = train(corpus_folder)
    latency = measure_latency(
        {f.name: f / "compact" / "hyperparams.yaml" for f in folders}
    )
    rows = []
    for folder in folders:
        result = json.loads((folder / "result.json").read_text())
        widths = dict(result["widths"])
        bands = widths.pop("features")
        widths.pop("out")
        gated = folder.name.endswith("gated")
        rows.append(
            [
                f"{NAMES['crnn']}, {'gated' if gated else 'dense'}",
                str(bands),
                " ".join(f"{k} {v}" for k, v in widths.items()),
                f"{result['params']}",
                f"{result['macs_per_second'] / 1e6:.2f} M",
                f"{result['test']['EER']:.2f} %",
                f"{latency[folder.name]:.2f} ms",
            ]
        )
    plot = OUTPUT / "widths.png"
    plot_widths(OUTPUT / "crnn_gated" / "gates.jsonl", plot)
    headings = ["model", "mel bands", "widths", "parameters", "MACs/s"]
    headings += ["EER", "latency per s of audio"]
    table = markdown_table(headings, rows)
    (OUTPUT / "table.md").write_text(f"{table}\n")
    print("\nThe corpus is synthetic: figures say nothing about real speech.")
    print(table)
    print("\nResults:")
    for folder in folders:
        print(f"  {folder / 'result.json'}")
        print(f"  {folder / 'compact'} (plain SpeechBrain model)")
    print(f"  {plot}")
