#!/usr/bin/env python3
"""Kills runs of the recipes anywhere: do they end as if nothing had happened?

> python benchmarks/kills.py [--kills=200] [--pairs=40] [--damages=200]
> python benchmarks/kills.py --table benchmarks/README.md

Each case is a command. It is run once to its end; then again and again in new
folders, where the whole process group gets SIGKILL once or twice: at a random
moment, or when Python opens, renames or removes its n-th file for writing.
Then, in every third run, a file of a checkpoint is damaged: cut, zeroed, put in
the place of another, deleted. Started again until it ends, it must have left
the same result, scores, history of widths, log and weights. "Two at once" are
two processes that start in one folder at the same moment: one has to do the
run, the other to say why it does not. "A damaged checkpoint" is a run that was
killed once, where a file of a checkpoint, or two, are damaged. Corpora are made
here of noise and tones; a run takes seconds. Results are written after each run
to benchmarks/results/kills.json; what is in it is not repeated.

Authors
 * The noisegate developers, 2026
"""

import argparse
import csv
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import soundfile

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from noisegate.evaluation.files import (
    fill_blocks,
    markdown_table,
    write_atomically,
)

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results" / "kills.json"
PAIRS = "two at once"
DAMAGED = "a damaged checkpoint"
HOWS = ("cut", "zeroed", "swapped", "deleted")
RATE = 16000
MARK = "KILLS_RUN"  # of the processes of a run
TWO = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
SMALL = ["--number_of_epochs=3", "--freeze_epoch=2", "--noprogressbar"]
SMALL += ["--ckpt_interval_steps=2"]
VAD = ["--conv_channels=8", "--rnn_units=8", "--dnn_neurons=8", "--n_mels=24"]
VAD += ["--segment_s=1.0", "--batch_size=4", "--budget=0.5", *SMALL]
VAD += ["--mixes_per_segment=8", "--lr=0.001", "--lr_final=0.0001"]
VAD += ["--data_folder={data}/speech", "--noise_folder={data}/noise"]
CASES = {  # recipe, launcher, arguments
    "VAD": ("VAD", [], ["hparams/crnn_gated.yaml", *VAD]),
    "VAD, mixed on the fly, 2 workers": (
        "VAD",
        [],
        ["hparams/crnn_gated.yaml", *VAD, "--feature_cache=null"]
        + ["--random_mix=True", "--num_workers=2"],
    ),
    "VAD, 2 processes": (
        "VAD",
        TWO,
        ["hparams/crnn_gated.yaml", *VAD, "--distributed_backend=gloo"]
        + ["--device=cpu"],
    ),
    "ASVspoof, random crops, 2 workers": (
        "ASVspoof",
        [],
        ["hparams/mini_transformer_gated.yaml", "--data_folder={data}/la"]
        + ["--make_mini_la=False", "--n_bootstraps=0", "--segment_s=0.7"]
        + ["--batch_size=4", "--num_workers=2", *SMALL],
    ),
    "Keywords, chain": (
        "Keywords",
        [],
        ["hparams/tc_resnet8_gated.yaml", "--data_folder={data}/words"]
        + ["--n_classes=3", "--budgets=[0.5,0.25]", "--batch_size=8"]
        + ["--stage={{number_of_epochs: 3, freeze_epoch: 2}}", *SMALL],
    ),
    "Synthetic, sweep": (
        "Synthetic",
        ["-m", "noisegate", "sweep"],
        ["hparams/student_gated.yaml", "--folder={out}", "--budgets=0.5"]
        + ["--retry"]  # where a cell was killed, not the sweep
        + ["--methods=noise,narrow", "--", "--number_of_epochs=3"]
        + ["--freeze_epoch=2", "--ckpt_interval_steps=2"],
    ),
}
# Is put before the program: ends the group at the n-th change of a file
HOOK = """
import os, signal, sys
left = [int(os.environ["KILL_AT"])]
def hook(event, args):
    changes = event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir")
    if event == "open" and isinstance(args[1], str):
        changes = bool(set(args[1]) & set("wax+"))
    if changes:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
"""


def tone(draw, seconds, pitch, parts):
    """Harmonics between times, and a little noise."""
    t = np.arange(round(seconds * RATE)) / RATE
    wave = sum(np.sin(2 * np.pi * k * pitch * t) / k for k in range(1, 9))
    on = sum((t >= a) & (t < b) for a, b in parts)
    return 0.1 * wave * on + 1e-3 * draw.standard_normal(len(t))


def make_data(folder):
    """Small corpora in the layouts of the recipes."""
    draw = np.random.default_rng(1)

    def write(name, signal):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, signal, RATE)

    for s in range(8):
        for u in range(2):
            signal = tone(draw, 2.0, 90 + 15 * s, [(0.3, 0.9), (1.2, 1.8)])
            write(f"speech/spk{s}/spk{s}_{u}.wav", signal)
    for n in range(6):
        write(f"noise/noise{n}.wav", 0.05 * draw.standard_normal(3 * RATE))
    protocols = folder / "la" / "ASVspoof2019_LA_cm_protocols"
    protocols.mkdir(parents=True)
    for split, name, n_clips in (
        ("train", "train.trn", 16),
        ("dev", "dev.trl", 8),
        ("eval", "eval.trl", 8),
    ):
        lines = []
        for i in range(n_clips):
            spoof, key = i % 2, f"LA_{split[0].upper()}_{i:07d}"
            signal = tone(draw, 1.5, 200 if spoof else 110, [(0.2, 1.3)])
            write(f"la/ASVspoof2019_LA_{split}/flac/{key}.flac", signal)
            attack, label = ("A01", "spoof") if spoof else ("-", "bonafide")
            lines.append(f"LA_{split}_{i // 2 % 2} {key} - {attack} {label}\n")
        path = protocols / f"ASVspoof2019.LA.cm.{name}.txt"
        path.write_text("".join(lines), encoding="utf-8")
    rows = []
    for i in range(72):
        label, split = i % 3, ("train", "train", "valid", "test")[i // 3 % 4]
        signal = tone(draw, 1.0, 100 + 60 * label, [(0.2, 0.8)])
        write(f"words/flac/w{i}.flac", signal)
        row = {"id": f"w{i}", "speaker": f"{split}{i % 4}", "split": split}
        rows.append({**row, "label": f"word{label}", "duration_s": 1.0})
    path = folder / "words" / "clips.csv"
    with open(path, "w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def start(case, data, out, **variables):
    """Starts a case in a process group of its own."""
    recipe, launcher, arguments = CASES[case]
    arguments = [text.format(data=data, out=out) for text in arguments]
    if "sweep" not in launcher:
        arguments = ["train.py", *arguments, f"--output_folder={out}"]
    log = open(out.with_suffix(".txt"), "a", encoding="utf-8")
    return subprocess.Popen(
        [sys.executable, *launcher, *arguments],
        cwd=ROOT / "recipes" / recipe,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", MARK: str(out), **variables},
    )


def kill_all(out):
    """Kills all processes of a run; torchrun's are in groups of their own."""
    mark = f"{MARK}={out}\0".encode()
    while True:
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if mark in path.read_bytes():
                    found.append(int(path.parent.name))
                    os.kill(found[-1], signal.SIGKILL)
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
        if not found:
            return
        time.sleep(0.05)


def plain(value):
    """A result without what differs from run to run: times, commits."""
    if isinstance(value, dict):
        gone = ("train_seconds", "cpu_seconds", "versions", "overrides")
        return {k: plain(v) for k, v in value.items() if k not in gone}
    return [plain(v) for v in value] if isinstance(value, list) else value


def left_by(folder):
    """What a run leaves: hash of each file that matters, by name."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        content = None
        if "/save/" in f"/{name}" or path.is_dir() or "old" in path.suffix:
            continue
        if path.name == "result.json":
            content = json.dumps(plain(json.loads(path.read_text("utf-8"))))
        elif path.name in ("gates.jsonl", "trials.txt", "train_log.txt"):
            content = path.read_text("utf-8")
            if path.name == "train_log.txt":  # evaluation may be repeated
                content = "".join(
                    line
                    for line in content.splitlines(keepends=True)
                    if line.startswith("epoch: ")
                )
        elif path.suffix == ".ckpt":
            content = path.read_bytes().hex()
        elif path.name.startswith((".compact", ".result")):
            content = "left behind"
        if content is not None:
            found[name] = hashlib.sha256(content.encode()).hexdigest()[:16]
    return found


def finish(case, data, out):
    """Runs a case to its end; the seconds that took, or None if it failed."""
    began = time.monotonic()
    process = start(case, data, out)
    if process.wait() != 0:
        return None
    return time.monotonic() - began


def killed(case, data, folder, number, seconds, expected):
    """One run with kills; what came out of it."""
    draw = random.Random(f"{case}/{number}")
    out = folder / f"{re.sub(r'[^A-Za-z]+', '_', case)}{number}"
    places = []
    for _ in range(draw.choice((1, 1, 2))):
        variables, wait = {}, None
        if draw.random() < 0.5:
            at = draw.randrange(1, 120)
            places.append(f"file {at}")
            hook = folder / "hook"
            paths = [str(hook), str(ROOT), os.environ.get("PYTHONPATH", "")]
            variables = {"KILL_AT": str(at)}
            variables["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        else:
            wait = draw.uniform(0.1, 1.0) * seconds
            places.append(f"{wait:.1f} s")
        process = start(case, data, out, **variables)
        try:
            process.wait(wait)
        except subprocess.TimeoutExpired:
            pass
        kill_all(out)
        process.wait()
    if draw.random() < 1 / 3 and (damage := damaged(out, draw)):
        places.append(damage)
    row = {"case": case, "number": number, "kills": places}
    return {**row, **compared(case, data, out, expected)}


def compared(case, data, out, expected):
    """Runs a case to its end and compares what it has left with what it
    should have; a folder in which all is the same is deleted."""
    ended = finish(case, data, out)
    found = left_by(out) if out.exists() else {}
    names = {**expected, **found}
    differ = [n for n in names if expected.get(n) != found.get(n)]
    if ended is not None and not differ:
        shutil.rmtree(out)
    return {"ended": ended is not None, "differ": differ}


def damaged(out, draw):
    """Damages a file of a checkpoint; says which and how, or None."""
    files = [p for p in sorted(out.rglob("save/CKPT*/*")) if p.stat().st_size]
    if not files:
        return None
    path, other = draw.choice(files), draw.choice(files)
    content = path.read_bytes()
    how = draw.choice(HOWS)
    if how == "deleted":
        path.unlink()
    else:
        changed = {
            "cut": content[: draw.randrange(len(content))],
            "zeroed": bytes(len(content)),
            "swapped": other.read_bytes(),
        }
        path.write_bytes(changed[how])
    return f"{path.name} {how}"


def two_at_once(case, data, folder, number, expected):
    """Two processes in one folder; what came out of it."""
    out = folder / f"pair{number}"
    processes = [start(case, data, out) for _ in range(2)]
    codes = sorted(process.wait() for process in processes)
    text = out.with_suffix(".txt").read_text("utf-8")
    found = left_by(out)
    good = codes == [0, 2] and "is used by another process" in text
    if good and found == expected:
        shutil.rmtree(out)
    return {
        "case": PAIRS,
        "number": number,
        "kills": [],
        "ended": good,
        "differ": [n for n in expected if expected[n] != found.get(n)],
    }


def stopped(case, data, folder):
    """A run that was killed when it had several checkpoints."""
    out = folder / "stopped"
    process = start(case, data, out)
    while len(list(out.glob("save/CKPT*/checksums.ckpt"))) < 2:
        if process.poll() is not None:
            sys.exit(f"{case} ended too early, see {out}.txt")
        time.sleep(0.01)
    kill_all(out)
    process.wait()
    return out


def gone_on(case, data, folder, number, whole, expected):
    """Goes on with damaged checkpoints; what came out of it."""
    out, draw = folder / f"damaged{number}", random.Random(f"damaged/{number}")
    shutil.copytree(whole, out)
    damages = [damaged(out, draw) for _ in range(draw.choice((1, 1, 2)))]
    row = {"case": DAMAGED, "number": number, "kills": damages}
    return {**row, **compared(case, data, out, expected)}


def write_rows(path, rows):
    """Writes a list as JSON, an item a line."""
    lines = ",\n".join(map(json.dumps, rows))
    write_atomically(path, f"[\n{lines}\n]\n")


def campaign(n_kills, n_pairs, n_damages):
    """Runs what is missing, case by case in turn."""
    results = []
    if RESULTS.exists():
        results = json.loads(RESULTS.read_text(encoding="utf-8"))
    done = Counter(row["case"] for row in results)
    folder = Path(tempfile.mkdtemp(prefix="kills"))
    print("in", folder, flush=True)
    make_data(folder / "data")
    (folder / "hook").mkdir()
    hook = folder / "hook" / "sitecustomize.py"
    hook.write_text(HOOK, encoding="utf-8")
    whole = {}
    for case in CASES:
        out = folder / f"whole_{len(whole)}"
        seconds = finish(case, folder / "data", out)
        if seconds is None:
            sys.exit(f"{case} fails without kills, see {out}.txt")
        whole[case] = seconds, left_by(out)
        print(f"{case}: {seconds:.1f} s", flush=True)
    half_done = stopped("VAD", folder / "data", folder)
    while True:
        case = min(CASES, key=lambda name: done[name])
        if sum(done[name] for name in CASES) >= n_kills:
            case = PAIRS if done[PAIRS] < n_pairs else DAMAGED
        if case == DAMAGED and done[DAMAGED] >= n_damages:
            return
        place = folder / "data", folder, done[case]
        if case == DAMAGED:
            row = gone_on("VAD", *place, half_done, whole["VAD"][1])
        elif case == PAIRS:
            row = two_at_once("VAD", *place, whole["VAD"][1])
        else:
            row = killed(case, *place, *whole[case])
        done[case] += 1
        results.append(row)
        write_rows(RESULTS, results)
        print(len(results), row, flush=True)


def table():
    """The table of the README."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    rows = []
    for case in (*CASES, PAIRS, DAMAGED):
        mine = [row for row in results if row["case"] == case]
        places = [place for row in mine for place in row["kills"]]
        files = sum(place.startswith("file") for place in places)
        damages = sum(place.endswith(HOWS) for place in places)
        moments = len(places) - files - damages
        same = sum(row["ended"] and not row["differ"] for row in mine)
        rows.append([case, len(mine), moments, files, damages, same])
    headings = ["case", "runs", "kills at a moment", "kills at a file"]
    headings.append("damaged checkpoints")
    return markdown_table([*headings, "ended the same"], rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=200, help="runs in all")
    parser.add_argument("--pairs", type=int, default=40, help="two at once")
    parser.add_argument("--damages", type=int, default=0, help="in addition")
    parser.add_argument("--table", help="put the table into this file")
    options = parser.parse_args()
    if options.table:
        fill_blocks(options.table, kills=table())
    else:
        campaign(options.kills, options.pairs, options.damages)
