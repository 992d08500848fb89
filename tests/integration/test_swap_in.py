"""The tutorial docs/swap_in.md: what it says is what happens."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.dataio.dataio import read_audio

from tests.integration.patches import ROOT, changed_lines, patched, run

BEFORE = Path(__file__).parent / "swap_in"
TUTORIAL = (ROOT / "docs" / "swap_in.md").read_text(encoding="utf-8")
KEYWORDS = ("rise", "fall", "pulse")


@pytest.fixture(scope="module")
def after(tmp_path_factory):
    """The folder of the recipe as it becomes."""
    return patched(BEFORE, tmp_path_factory.mktemp("gated") / "recipe")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Rising and falling tones and pulses of noise, with manifests."""
    folder = tmp_path_factory.mktemp("keywords")
    draw = np.random.default_rng(0)
    time = np.arange(8000) / 16000
    for split, count in (("train", 36), ("valid", 6), ("test", 6)):
        manifest = {}
        for i in range(count):
            keyword = KEYWORDS[i % 3]
            signal = 0.01 * draw.standard_normal(8000)
            low, high = draw.uniform(250, 350), draw.uniform(2500, 3500)
            if keyword == "fall":
                low, high = high, low
            if keyword == "pulse":
                signal *= 1 + 20 * (np.sin(2 * np.pi * 6 * time) > 0)
            else:
                phase = low * time + (high - low) * time**2
                signal += 0.3 * np.sin(2 * np.pi * phase)
            name = f"{split}_{i}"
            sf.write(folder / f"{name}.wav", signal.clip(-1, 1), 16000)
            manifest[name] = {
                "wav": f"{{data_root}}/{name}.wav",
                "keyword": keyword,
            }
        (folder / f"{split}.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="module")
def trained(corpus, after, tmp_path_factory):
    """Output folders of both recipes after training."""
    folders = {}
    for variant, recipe in (("before", BEFORE), ("after", after)):
        folders[variant] = tmp_path_factory.mktemp(variant)
        run(
            "train.py",
            "train.yaml",
            f"--data_folder={corpus}",
            f"--output_folder={folders[variant]}",
            "--noprogressbar",
            cwd=recipe,
            PYTHONPATH=str(ROOT),
        )
    return folders


def errors(folder):
    """Error rates of the test set in the log."""
    log = (folder / "train_log.txt").read_text()
    return [float(x) for x in re.findall(r"test error: (\S+)", log)]


def test_fewer_than_twenty_lines_change():
    """Counted as git does: removed ones and added ones."""
    assert len(changed_lines(BEFORE)) < 20


def test_the_code_of_the_tutorial_is_that_of_the_files():
    """All changes are shown, and nothing else."""
    shown = re.findall(r"```diff\n(.*?)```", TUTORIAL, flags=re.DOTALL)
    shown = "".join(shown).splitlines()
    patch = (BEFORE / "gated.patch").read_text(encoding="utf-8")
    for line in changed_lines(BEFORE):
        assert line in shown, line
    files = [(BEFORE / f).read_text() for f in ("train.py", "train.yaml")]
    known = "\n".join([patch, *files]).splitlines()
    known = {line.lstrip("+- ") for line in known}
    for line in shown:
        assert line.lstrip("+- ") in known, line


def test_inspect_prints_what_the_tutorial_shows(after):
    """Before any training, and without data."""
    out = run(
        "-m",
        "noisegate.cli",
        "inspect",
        "train.yaml",
        "--data_folder=none",
        cwd=after,
        PYTHONPATH=str(ROOT),
    )
    shown = TUTORIAL.partition("```\ngroup ")[2].partition("```")[0]
    assert out.split() == ("group " + shown).split()


def test_both_recipes_learn_their_data(trained):
    """The one that was cut, too; and it is within its budget."""
    assert errors(trained["before"]) == [0.0]
    assert errors(trained["after"]) == [0.0]
    lines = (trained["after"] / "gates.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["macs_ratio"] > 0.5
    assert 0.24 < json.loads(lines[-1])["macs_ratio"] <= 0.25


def test_the_cut_model_loads_in_a_new_process(trained, corpus, after):
    """With the code of the tutorial; it returns what the gated one does."""
    code = re.search(
        r"```python\n(from speechbrain.*?)```", TUTORIAL, flags=re.DOTALL
    ).group(1)
    folder, wav = trained["after"], corpus / "test_1.wav"
    code = code.replace("results/keywords/1986", str(folder))
    code = code.replace("yes.wav", str(wav))
    code += "\nprint(scores.flatten().tolist())"
    scores = json.loads(run("-c", code, cwd=ROOT).splitlines()[-1])

    overrides = {"data_folder": str(corpus), "output_folder": str(folder)}
    hparams = load_hyperpyyaml((after / "train.yaml").open(), overrides)
    hparams["checkpointer"].recover_if_possible(min_key="error")
    modules = torch.nn.ModuleDict(hparams["modules"]).eval()
    assert hparams["gates"].frozen
    with torch.no_grad():
        feats = modules["compute_features"](read_audio(str(wav))[None])
        feats = modules["mean_var_norm"](feats, torch.ones(1))
        gated = modules["classifier"](modules["embedding_model"](feats))
    assert scores == pytest.approx(gated.flatten().tolist(), abs=1e-5)
    label = (folder / "save" / "label_encoder.txt").read_text()
    expected = int(re.search(r"'fall' => (\d)", label).group(1))
    assert max(scores) == scores[expected]


def test_shrinking_a_model_that_is_trained_already(
    trained, corpus, after, tmp_path
):
    """What docs/shrink.md changes: it starts where the first recipe ended."""
    page = (ROOT / "docs" / "shrink.md").read_text(encoding="utf-8")
    yaml, script = re.findall(r"```diff\n(.*?)```", page, flags=re.DOTALL)
    recipe = tmp_path / "recipe"
    shutil.copytree(after, recipe)
    text = (recipe / "train.yaml").read_text(encoding="utf-8")
    lines = re.sub(r"^\+", "", yaml, flags=re.M)
    text = text.replace("\ngates:", f"\n{lines}\ngates:", 1)
    (recipe / "train.yaml").write_text(text, encoding="utf-8")
    new, old = (line[1:] for line in script.splitlines())
    text = (recipe / "train.py").read_text(encoding="utf-8")
    assert text.count(old) == 1
    (recipe / "train.py").write_text(text.replace(old, f"{new}\n{old}"))
    folder = tmp_path / "small"
    run(
        "train.py",
        "train.yaml",
        f"--data_folder={corpus}",
        f"--output_folder={folder}",
        f"--pretrained={trained['before'] / 'save'}",
        "--number_of_epochs=6",
        "--complexity_loss={freeze_epoch: 4}",
        "--noprogressbar",
        cwd=recipe,
        PYTHONPATH=str(ROOT),
    )
    assert errors(folder) == [0.0]
    log = (folder / "train_log.txt").read_text()
    first = float(re.search(r"epoch: 1, .*valid error: (\S+)", log)[1])
    assert first < 0.2  # it knew the words before
    lines = (folder / "gates.jsonl").read_text().splitlines()
    assert 0.2 < json.loads(lines[-1])["macs_ratio"] <= 0.25
