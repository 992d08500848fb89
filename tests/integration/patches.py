"""Recipes in the form of SpeechBrain's own, and the patches that gate them."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def changed_lines(recipe):
    """What its patch removes and adds (list of str), blank lines left out."""
    patch = (recipe / "gated.patch").read_text(encoding="utf-8")
    return re.findall(r"^[+-](?![+-]{2}).*\S", patch, flags=re.M)


def patched(recipe, folder, *beside):
    """A copy of a recipe, with its patch and files that go beside it."""
    shutil.copytree(recipe, folder)
    for file in beside:
        shutil.copy(file, folder)
    subprocess.run(
        ["git", "apply", "--unsafe-paths", "gated.patch"],
        cwd=folder,
        check=True,
        env={**os.environ, "GIT_CEILING_DIRECTORIES": str(folder.parent)},
    )
    return folder


def run(*arguments, cwd, **variables):
    """Runs Python in a process of its own; returns what it prints."""
    out = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
        check=False,
        timeout=600,
    )
    assert out.returncode == 0, (out.stdout + out.stderr)[-3000:]
    return out.stdout
