"""YAMLs that run code of their own are not loaded unasked."""

from pathlib import Path

import pytest

from noisegate.cli import main
from noisegate.evaluation.trust import strangers

ROOT = Path(__file__).parents[2]

COMPACT = """
# not run: !apply:os.system [x]
note: "!apply:os.system"
fbank: !new:speechbrain.lobes.features.Fbank
    n_mels: 40
act: !name:torch.nn.ReLU
size: !new:tuple [[3, 4]]
model: !new:torch.nn.Linear [3, 2]
__0: !new:torch.nn.Parameter [!apply:torch.zeros [[2, 3]]]
__2: !apply:setattr [!ref <model>, weight, !ref <__0>]
__1: !apply:torch.nn.Module.register_buffer [!ref <model>, x, null]
modules:
    model: !ref <model>
"""


def test_folders_of_cut_models_are_no_strangers():
    assert strangers(COMPACT) == []


@pytest.mark.parametrize(
    "line",
    [
        "!apply:os.system [touch x]",
        "!new:subprocess.Popen [ls]",
        "!name:os.system",
        "!new:tc_resnet8.TCResNet8",
        "!apply:torch.hub.load [x, y]",
        "!apply:torch.load [x]",
        # A function of a module that is known, called by a container
        "!name:speechbrain.utils.superpowers.run_shell",
        "!apply:speechbrain.utils.superpowers.run_shell [ls]",
        "!new:torch.nn.no_such_class",
        "!include:other.yaml",
        "!applyref:os.system [x]",
        "!module:os",
    ],
)
def test_others_are_named(line):
    text = f"{COMPACT}\nx: {line}\n"
    assert strangers(text) == [line.split(" ")[0]]


def test_latency_runs_nothing_unasked(tmp_path, capsys):
    folder = tmp_path / "cells" / "noise_0.5_1" / "compact"
    folder.mkdir(parents=True)
    proof = tmp_path / "proof"
    text = f"x: !apply:pathlib.Path.touch [!apply:pathlib.Path [{proof}]]\n"
    (folder / "hyperparams.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit) as end:
        main(["latency", str(tmp_path)])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert "!apply:pathlib.Path.touch" in said and "--trust" in said
    assert not proof.exists()


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("recipes/*/hparams/*.yaml")), ids=lambda p: p.stem
)
def test_recipes_are_programs(path):
    """They seed, and are not taken for data."""
    assert "!apply:speechbrain.utils.seed_everything" in strangers(
        path.read_text("utf-8")
    )
