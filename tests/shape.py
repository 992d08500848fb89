#!/usr/bin/env python3
"""Prints the shape of the project and fails where it breaks a limit."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROAD = "brain compact gates loss cost trial cut groups probe attach layers"
ROAD = [*ROAD.split(), "rules", "_private", "gate"]  # imports go to the right
# The aim is 4400 lines
CORE_LINES, FILE_LINES = 4990, 600
RESULT_FILES, RESULT_MB, YAMLS = 25, 6, 16
# Files that are still longer than they should be
LONG = "vad_data vad_prepare mini_la asvspoof_prepare metrics "
LONG += "scores zoo zoo_models models test_brain test_vad_data test_gates"


def imports(path):
    """Rooms of noisegate that a file imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        own = [name for name in names if name.startswith("noisegate.")]
        yield from (name.split(".")[1] for name in own)


def main():
    """Checks all, and says what is wrong."""
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split("\n")
    files = [ROOT / name for name in listed if (ROOT / name).is_file()]
    wrong, lines = [], 0
    for path in (p for p in files if p.suffix == ".py"):
        n, folder = len(path.read_text().splitlines()), path.parent.name
        if n > FILE_LINES and path.stem not in LONG.split():
            wrong.append(f"{path.name} has {n} lines")
        room = "rules" if folder == "rules" else path.stem
        if folder not in ("noisegate", "rules") or room not in ROAD:
            continue
        lines += n
        for other in imports(path):
            if other not in ROAD[ROAD.index(room) :]:
                wrong.append(f"{room} imports {other}")
    results = [p for p in files if "results" in p.parts]
    size = sum(p.stat().st_size for p in results) / 1e6
    yamls = [p for p in files if p.parent.name == "hparams"]
    for what, n, limit in (
        ("lines of the core", lines, CORE_LINES),
        ("result files", len(results), RESULT_FILES),
        ("MB of results", round(size, 1), RESULT_MB),
        ("YAMLs of recipes", len(yamls), YAMLS),
        ("HTML files", sum(p.suffix == ".html" for p in files), 0),
    ):
        print(f"{what}: {n} of {limit}")
        if n > limit:
            wrong.append(f"{what}: {n} is more than {limit}")
    sys.exit("\n".join(wrong) or 0)


if __name__ == "__main__":
    main()
