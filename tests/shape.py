#!/usr/bin/env python3
"""Prints the shape of the project and fails where it breaks a limit."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROAD = "brain teacher pretrained checkpoints brain_model compact gates loss"
ROAD += " cost trial cut groups probe attach layers rules _private gate"
ROAD = ROAD.split()  # imports go to the right
CORE_LINES, FILE_LINES = 6782, 600  # the aim is 5000 for the core
RESULT_FILES, RESULT_MB, YAMLS = 25, 6, 16
IMPORT = re.compile(r"^\s*(?:from|import) noisegate\.(\w+)", re.M)
LAYER = re.compile(r"isinstance\([^()]*\bnn\.(?!Mod|Par|Seq|par|utils)")


def core_problems(room, text):
    """Imports against the direction, type tests of layers outside rules/."""
    for other in IMPORT.findall(text):
        if other not in ROAD[ROAD.index(room) :]:
            yield f"{room} imports {other}"
    if room != "rules" and LAYER.search(text):
        yield f"{room} asks for the type of a layer"


git = ["git", "-C", str(ROOT), "ls-files"]
listed = subprocess.run(git, capture_output=True, text=True, check=True)
files = [ROOT / name for name in listed.stdout.splitlines()]
files = [path for path in files if path.is_file()]
wrong, lines = [], 0
for path in (p for p in files if p.suffix == ".py"):
    text, folder = path.read_text(encoding="utf-8"), path.parent.name
    if text.count("\n") > FILE_LINES:
        wrong.append(f"{path.name} has more than {FILE_LINES} lines")
    room = "rules" if folder == "rules" else path.stem
    if folder in ("noisegate", "rules") and room in ROAD:
        lines += text.count("\n")
        wrong += core_problems(room, text)
results = [path for path in files if "results" in path.parts]
size_mb = sum(path.stat().st_size for path in results) / 1e6
for what, n, limit in (
    ("lines of the core", lines, CORE_LINES),
    ("result files", len(results), RESULT_FILES),
    ("MB of results", round(size_mb, 1), RESULT_MB),
    ("YAMLs of recipes", sum(p.parent.name == "hparams" for p in files), YAMLS),
    ("HTML files", sum(p.suffix == ".html" for p in files), 0),
):
    print(f"{what}: {n} of {limit}")
    if n > limit:
        wrong.append(f"{what}: {n} is more than {limit}")
sys.exit("\n".join(wrong) or 0)
