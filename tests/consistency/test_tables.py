"""Tables of READMEs are what their command makes of the kept results."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMAND = re.compile(r"^noisegate (report (?:.*\\\n)*.*)$", re.M)
READMES = sorted(ROOT.glob("recipes/*/README.md"))
REPORTS = [
    (readme.parent.name, command.replace("\\\n", " "))
    for readme in READMES
    for command in COMMAND.findall(readme.read_text(encoding="utf-8"))
]


@pytest.mark.parametrize("recipe, command", REPORTS)
def test_the_command_makes_the_tables(recipe, command, tmp_path):
    place = tmp_path / recipe
    ignored = shutil.ignore_patterns("sample", "save", "cells")
    shutil.copytree(ROOT / "recipes" / recipe, place, ignore=ignored)
    subprocess.run(
        [sys.executable, "-m", "noisegate", *shlex.split(command)],
        cwd=place,
        check=True,
        capture_output=True,
    )
    results = Path(shlex.split(command)[1])
    for name in ("README.md", results / "cells.jsonl", results / "trials.zip"):
        kept = ROOT / "recipes" / recipe / name
        assert not kept.exists() or (
            (place / name).read_bytes() == kept.read_bytes()
        )


def test_all_tables_have_a_command():
    """Those of the folders of results."""
    named = {
        (recipe, Path(shlex.split(command)[1]).name)
        for recipe, command in REPORTS
    }
    kept = {
        (path.parents[2].name, path.parent.name)
        for path in ROOT.glob("recipes/*/results/*/cells.jsonl")
        if f"<!-- {path.parent.name} -->"
        in (path.parents[2] / "README.md").read_text(encoding="utf-8")
    }
    assert kept == named


@pytest.mark.parametrize(
    "script, readme",
    [
        ("summary.py", "README.md"),
        ("speed.py --table", "README.md"),
        ("zoo.py --table", "benchmarks/README.md"),
        ("steps.py --table", "benchmarks/README.md"),
        ("vad.py --table", "benchmarks/README.md"),
        ("short_stages.py --table", "benchmarks/README.md"),
        ("kills.py --table", "benchmarks/README.md"),
        ("bad_inputs.py --table", "benchmarks/README.md"),
    ],
)
def test_the_script_makes_the_tables(script, readme, tmp_path):
    copy = shutil.copy(ROOT / readme, tmp_path)
    name, *options = script.split()
    command = [sys.executable, str(ROOT / "benchmarks" / name), *options, copy]
    subprocess.run(command, check=True, capture_output=True)
    made = Path(copy).read_text(encoding="utf-8")
    assert made == (ROOT / readme).read_text(encoding="utf-8")
