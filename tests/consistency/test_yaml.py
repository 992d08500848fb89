"""Recipes' YAML files against their training scripts.

In the spirit of SpeechBrain's tests/utils/check_yaml.py: a key that is
neither used by another key nor by the script, nor by the Brain that the
scripts derive theirs from, is an error, or a knob that does nothing.
"""

import csv
import dataclasses
import re
from itertools import groupby
from pathlib import Path

import pytest
import yaml
from speechbrain.utils.run_opts import RunOptions

ROOT = Path(__file__).resolve().parents[2]
BRAINS = [ROOT / "noisegate" / "brain.py"]
BRAINS.append(ROOT / "noisegate" / "evaluation" / "recorded.py")
BRAINS.append(ROOT / "noisegate" / "evaluation" / "chain.py")
HPARAMS = sorted(
    {*ROOT.glob("recipes/*/hparams/*.yaml"), *ROOT.glob("recipes/*/*.yaml")}
)


def name(path):
    return str(path.relative_to(ROOT))


def nodes(node):
    """All nodes of a YAML tree."""
    yield node
    for child in node.value if not isinstance(node.value, str) else []:
        for part in child if isinstance(child, tuple) else [child]:
            yield from nodes(part)


def top_keys(text):
    """The top-level keys in order, and those that the script must use."""
    tree = yaml.compose(text)
    referenced = {
        key
        for node in nodes(tree)
        if node.tag == "!ref"
        for key in re.findall(r"<(\w+)", node.value)
    }
    keys = [key.value for key, _ in tree.value]
    needed = [
        key.value
        for key, value in tree.value
        if key.value not in referenced and not value.tag.startswith("!apply:")
    ]
    return keys, needed


def unused_keys(text, script):
    """Keys that nothing uses: no `!ref`, no script, no run option."""
    run_options = {field.name for field in dataclasses.fields(RunOptions)}
    return [
        key
        for key in top_keys(text)[1]
        if key not in run_options
        and not re.search(
            rf'\["{key}"\]|\b(hparams|modules)\.{key}\b'
            rf'|attr\(self\.hparams, "{key}"|(hparams|plan)\.get\("{key}"',
            script,
        )
    ]


def script_of(hparam_file):
    """The script in tests/recipes, or the nearest train.py above."""
    for table in ROOT.glob("tests/recipes/*.csv"):
        with open(table, newline="", encoding="utf-8") as fin:
            for row in csv.DictReader(fin):
                if row["Hparam_file"] == name(hparam_file):
                    return ROOT / row["Script_file"]
    folders = [p for p in hparam_file.parents if (p / "train.py").exists()]
    assert folders, f"no training script for {name(hparam_file)}"
    return folders[0] / "train.py"


@pytest.mark.parametrize("hparam_file", HPARAMS, ids=name)
def test_every_key_is_used(hparam_file):
    script = script_of(hparam_file)
    unused = unused_keys(
        hparam_file.read_text(encoding="utf-8"),
        "".join(p.read_text(encoding="utf-8") for p in [script, *BRAINS]),
    )
    assert not unused, f"{unused} not used in {name(script)}"


@pytest.mark.parametrize(
    "variants",
    [list(files) for _, files in groupby(HPARAMS, lambda p: p.parent)],
    ids=lambda files: name(files[0].parent),
)
def test_variants_have_the_same_key_order(variants):
    """So that their diff shows what differs and nothing else."""
    keys = [top_keys(p.read_text(encoding="utf-8"))[0] for p in variants]
    for i, mine in enumerate(keys):
        for j in range(i):
            a = [key for key in mine if key in keys[j]]
            b = [key for key in keys[j] if key in mine]
            assert a == b, f"{name(variants[i])} and {name(variants[j])}"


def test_the_check_finds_unused_keys():
    text = """
seed: 1
__set_seed: !apply:speechbrain.utils.seed_everything [!ref <seed>]
lr: 0.1
lr_final: 0.2
width: 3
stacks: {a: 1}
model: !new:torch.nn.Linear
  in_features: !ref <width> * <stacks[a]>
  out_features: 2
modules:
  model: !ref <model>
precision: fp32
forgotten: 1
optional: 1
"""
    script = """
self.hparams.lr_final
hparams["modules"]
if hasattr(self.hparams, "optional"):
"""
    assert unused_keys(text, script) == ["lr", "forgotten"]
