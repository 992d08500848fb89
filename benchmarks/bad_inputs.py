#!/usr/bin/env python3
"""Gives whole programs bad inputs: are they refused, and by name?

> python benchmarks/bad_inputs.py [--inputs=300]
> python benchmarks/bad_inputs.py --table benchmarks/README.md

An input is a field and what is wrong with it, both drawn at random. Fields are
all keys of a recipe's YAML that a command line can set, all files of its data,
and the arguments and folders of the commands. Wrong are, by the kind of the
field: text for a number, NaN, a number below zero, zero for what is counted,
half a one, an unknown choice, a folder that does not exist, an empty file, half
of one, noise in one, a folder in its place, samples that are not finite, a
table without a column or with text for a number. A program has to end with
status 2 and one line that names the field, without a traceback; an audio file
may also be left out, if it is named. Whatever else it does is a fault. Results
are written to benchmarks/results/bad_inputs.json; what is in it is not repeated
unless it was a fault.

Authors
 * The noisegate developers, 2026
"""

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from itertools import zip_longest
from pathlib import Path

import numpy as np
import soundfile
from kills import CASES, RATE, ROOT, SMALL, make_data, write_rows
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq, TaggedScalar

from noisegate.evaluation.files import fill_blocks, markdown_table

RESULTS = Path(__file__).parent / "results" / "bad_inputs.json"
TRAIN = {
    "VAD": CASES["VAD"][2],
    "Keywords": ["hparams/tc_resnet8_gated.yaml", "--data_folder={data}/words"]
    + ["--n_classes=3", "--budgets=null", "--batch_size=8", *SMALL],
    "ASVspoof": [
        text
        for text in CASES["ASVspoof, random crops, 2 workers"][2]
        if "num_workers" not in text
    ],
    "Synthetic": ["hparams/student_gated.yaml", *SMALL, "--n_train=16"],
}
YAML_OF_SWEEP = ROOT / "recipes" / "Synthetic" / "hparams/student_gated.yaml"
DATA = {"VAD": ("speech", "noise"), "Keywords": ("words",), "ASVspoof": ("la",)}
OTHERS = ("file", "empty", "bytes", "sound", "short")
GOOD = ("refused", "left out, by name")
PLAIN_TAGS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")
# Keys for which zero makes no sense
COUNTS = re.compile(
    r"(size|epochs?|channels|units|neurons|mels|fft|rate|segment_s|budget|min"
    r"|tighten|d_model|d_ffn|nhead|frames|features|classes|segment)$|^n_t|ramp"
)
SHARES = ("budget", "kappa_min", "tighten")
CHOICES = ("layout", "norm_type", "conv_padding", "phase")
NOT_SET = ("seed", "data_seed", "train_log")  # any value will do
NOT_SET += ("speech_folder", "speakers_csv")  # of Mini-LA, not made here
LONG_S = 240


def settings(recipe):
    """Pairs of a key of a recipe's YAML and a value that cannot be meant."""
    path = ROOT / "recipes" / recipe / TRAIN[recipe][0]
    for key, default in YAML().load(path.read_text("utf-8")).items():
        made = isinstance(default, (TaggedScalar, CommentedMap, CommentedSeq))
        tag = default.tag.value if made else None
        if key in NOT_SET or tag not in (None, "!ref", *PLAIN_TAGS):
            continue
        if isinstance(default, TaggedScalar):
            if key in ("output_folder", "save_folder"):
                yield key, "{file}"
            continue
        bad = []
        if isinstance(default, bool):
            bad = ["maybe", "3", "[true]"]
        elif isinstance(default, (int, float)):
            bad = ["abc", "25%", ".nan", ".inf", "-1", "[1]"]
            bad += ["0"] * bool(COUNTS.search(key))
            bad += ["1.5"] * (key in SHARES)
            bad += ["2.5"] * isinstance(default, int)
        elif key in CHOICES:
            bad = ["nonsense", "3"]
        elif isinstance(default, str):
            bad = ["/nowhere/x", "{file}", "{empty}", "3"]
        elif default is None:
            folder = re.search("folder|csv|pretrained", key)
            bad = ["/nowhere/x", "{file}"] if folder else ["-1", "abc"]
        elif isinstance(default, CommentedSeq):
            bad = ["abc", "[nothing]", "[0]", "[-1]", "3"]
        elif key == "gate_layers":
            bad = ["abc", "3", "{nothing: {}}", "[nothing]"]
            bad += ['{"*": 3}', '{"*": {kappa_min: 3}}']
        elif key in ("dense", "stage"):  # are read in a chain
            bad = ["{nonsense: 3} --budgets=[0.5]", "3 --budgets=[0.5]"]
        for value in bad:
            yield key, value


def noise(path):
    path.write_bytes(random.Random(1).randbytes(path.stat().st_size))


def half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def gone(path):
    path.unlink()


def a_folder(path):
    path.unlink()
    path.mkdir()


def no_samples(path):
    soundfile.write(path, np.zeros(0), RATE)


def not_finite(path):
    signal, rate = soundfile.read(path)
    signal[len(signal) // 2] = np.nan
    soundfile.write(path, signal, rate, format="WAV", subtype="FLOAT")


def no_column(path):
    split = "," if path.suffix == ".csv" else " "
    rows = [line.split(split) for line in _lines(path)]
    _write(path, [split.join(row[:1] + row[2:]) for row in rows])


def unknown_files(path):
    _write(path, [re.sub(r"w\d+|\d{7}", "w99", x) for x in _lines(path)])


def text_for_numbers(path):
    """In the last column."""
    split = "," if path.suffix == ".csv" else " "
    head, *rows = (line.rpartition(split) for line in _lines(path))
    _write(path, ["".join(head), *(a + b + "abc" for a, b, _ in rows)])


def _lines(path):
    return path.read_text("utf-8").splitlines()


def _write(path, lines):
    path.write_text("\n".join([*lines, ""]), "utf-8")


OF_FILES = (gone, a_folder, noise, half, empty)
OF_AUDIO = (*OF_FILES, no_samples, not_finite)
OF_TABLES = (*OF_FILES, no_column, unknown_files, text_for_numbers)


def of_files(recipe, data):
    """Pairs of a file of a recipe's data and what to do to it."""
    for name in DATA.get(recipe, ()):
        for path in sorted((data / name).rglob("*.*")):
            if path.is_file():
                audio = path.suffix in (".wav", ".flac")
                listed = recipe != "VAD"  # whose files nobody misses
                for damage in OF_AUDIO if audio else OF_TABLES:
                    if damage not in (gone, a_folder) or listed:
                        yield path.relative_to(data).as_posix(), damage


def of_commands():
    """Pairs of an argument and a command in which it is wrong."""
    sweep = "sweep {yaml} --folder={out}"
    for field, value in (
        ("budgets", "0"),
        ("budgets", "2"),
        ("budgets", "nan"),
        ("budgets", "abc"),
        ("methods", "nonsense"),
        ("seeds", "0"),
        ("jobs", "-1"),
        ("variants", "{file}"),
        ("variants", "/nowhere/x"),
    ):
        yield field, f"{sweep} --{field}={value}"
    yield "nonsense", sweep + " -- --nonsense=3"
    for command in ("inspect", "sweep --folder={out}"):
        for bad in ("/nowhere/x", "{file}", "{empty}", "{bytes}"):
            yield bad, f"{command} {bad}"
    for command in ("report", "latency", "export"):
        for bad in ("/nowhere/x", "{file}", "{empty}"):
            yield bad, f"{command} {bad}"
    yield "rounds", "latency {empty} --rounds=0"
    for command in ("vad", "spot"):
        bad = ("/nowhere/x", "{file}", "{empty}", "{bytes}", "{short}")
        for name in bad:
            yield name, f"{command} {name}"
        for name in ("/nowhere/x", "{file}", "{bytes}"):
            yield name, f"{command} {{sound}} --model={name}"
        for value in ("nan", "abc"):
            yield "threshold", f"{command} {{sound}} --threshold={value}"
    for field in ("min_speech_ms", "min_silence_ms"):
        for value in ("nan", "-1", "abc"):
            yield field, f"vad {{sound}} --{field}={value}"
    yield "format", "vad {sound} --format=nonsense"
    yield "model", "spoof {sound}"
    yield "nonsense", "nonsense"


def inputs(data):
    """All bad inputs: what they are, and what runs with them."""
    for recipe in TRAIN:
        for key, value in settings(recipe):
            yield "settings", recipe, key, value
        for name, damage in of_files(recipe, data):
            yield "data", recipe, name, damage.__name__
    for field, command in of_commands():
        yield "commands", command, field, ""


def tried(kind, program, field, wrong, data, folder):
    """Runs a program; returns what came out of it."""
    out, place = folder / "out", folder / "data"
    for path in (out, place):
        shutil.rmtree(path, ignore_errors=True)
    names = {name: str(folder / name) for name in OTHERS}
    names.update(data=data, out=out, yaml=YAML_OF_SWEEP)
    if kind == "commands":
        arguments = ["-m", "noisegate", *program.format(**names).split()]
        where, field = folder, field.format(**names)
    else:
        if kind == "data":
            shutil.copytree(data, place)
            names["data"] = place
            globals()[wrong](place / field)
            field = Path(field).stem
        arguments = ["train.py"]
        arguments += [text.format(**names) for text in TRAIN[program]]
        arguments.append(f"--output_folder={out}")
        if kind == "settings":
            for name in OTHERS:
                wrong = wrong.replace(f"{{{name}}}", names[name])
            changed = re.split(" (?=--)", f"--{field}={wrong}")
            keys = tuple(text.partition("=")[0] + "=" for text in changed)
            arguments = [x for x in arguments if not x.startswith(keys)]
            arguments += changed
        where = ROOT / "recipes" / program
    try:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=where,
            capture_output=True,
            text=True,
            timeout=LONG_S,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    except subprocess.TimeoutExpired:
        return "did not end", ""
    last = (done.stderr.strip().splitlines() or [""])[-1]
    _, traceback, lines = done.stderr.rpartition("Traceback (most recent call")
    if traceback:
        raised = [x for x in lines.splitlines()[1:] if x[:1] not in ("", " ")]
        return "traceback", (raised or [""])[0]
    if done.returncode == 2:
        value = wrong.startswith("/") or field in CHOICES
        called = (field, wrong) if value else (field,)
        by_name = any(name.removeprefix("gate_") in last for name in called)
        return "refused" if by_name else "refused, not by name", last
    if done.returncode:
        return f"status {done.returncode}", last
    said = [x for x in done.stderr.splitlines() if field in x and "WARN" in x]
    if said and kind == "data":
        return "left out, by name", said[0]
    return "accepted", last


def campaign(n_inputs):
    """Tries what was a fault, then what is missing."""
    results = []
    if RESULTS.exists():
        results = json.loads(RESULTS.read_text(encoding="utf-8"))
    faults = [row["input"] for row in results if row["outcome"] not in GOOD]
    results = [row for row in results if row["outcome"] in GOOD]
    done = {tuple(row["input"]) for row in results}
    folder = Path(tempfile.mkdtemp(prefix="bad_inputs"))
    print("in", folder, flush=True)
    data = folder / "good"
    make_data(data)
    (folder / "file").write_text("nothing", "utf-8")
    (folder / "bytes").write_bytes(random.Random(2).randbytes(5000))
    (folder / "empty").mkdir()
    soundfile.write(folder / "sound", np.zeros(RATE), RATE, format="WAV")
    (folder / "short").write_bytes((folder / "sound").read_bytes()[:20])
    draw, groups = random.Random(1), {}
    for one in inputs(data):
        group = "" if one[0] == "commands" else one[1]
        groups.setdefault((one[0], group), []).append(one)
    orders = [draw.sample(group, len(group)) for group in groups.values()]
    orders = [one for turn in zip_longest(*orders) for one in turn if one]
    print(len(orders), "inputs", flush=True)
    for one in [*map(tuple, faults), *orders]:
        if one in done or len(results) >= n_inputs:
            continue
        done.add(one)
        outcome, said = tried(*one, data, folder)
        said = said.replace(str(folder), "").replace(str(ROOT), "")
        row = {"input": one, "outcome": outcome}
        results.append(row)
        print(len(results), row, said[:300], flush=True)
        if outcome not in GOOD:
            row["said"] = said[:300]
        write_rows(RESULTS, results)


def table():
    """The table of the README."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    counts = Counter((row["input"][0], row["outcome"]) for row in results)
    kinds = list(dict.fromkeys(kind for kind, _ in counts))
    outcomes = list(dict.fromkeys([*GOOD, *(out for _, out in counts)]))
    rows = [[kind, *(counts[kind, out] for out in outcomes)] for kind in kinds]
    return markdown_table(["input", *outcomes], rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--inputs", type=int, default=300, help="in all")
    parser.add_argument("--table", help="put the table into this file")
    options = parser.parse_args()
    if options.table:
        fill_blocks(options.table, bad_inputs=table())
    else:
        campaign(options.inputs)
