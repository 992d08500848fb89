"""Recipes of several modules, as SpeechBrain has them: gated all together.

Each folder of ``recipes`` holds a recipe in the form of SpeechBrain's own and
``gated.patch``, which gates it. Speech of the sample of recipe VAD; keywords
of Speech Commands where they are, otherwise words of tones.
"""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import soundfile as sf
from hyperpyyaml import load_hyperpyyaml

from tests.integration.patches import ROOT, changed_lines, patched, run

RECIPES = Path(__file__).parent / "recipes"
SPEECH = ROOT / "recipes" / "VAD" / "sample" / "speech"
KEYWORDS = ROOT.parent / "shared" / "data" / "gsc12"
SPLITS = {"train": 16, "valid": 4, "test": 4}
WORDS = ("yes", "no", "go")
# What inference needs and the entry "modules" of the recipe does not have
BESIDE = {
    "ctc": {"compute_features", "label_encoder"},
    "keyword": {"label_encoder"},
    "separation": set(),
    "seq2seq": {"compute_features", "tokenizer"},
    "vad": {"compute_features"},
}
NAMES = sorted(path.parent.name for path in RECIPES.glob("*/gated.patch"))


def read_table(path):
    """Rows of a CSV file."""
    with open(path, newline="", encoding="utf-8") as table:
        return list(csv.DictReader(table))


def write_split(folder, split, items):
    """Writes a manifest and its waveforms of one second."""
    for name, item in items.items():
        sf.write(folder / f"{name}.wav", item.pop("signal"), 16000)
        item.update(wav=f"{{data_root}}/{name}.wav", duration=1.0)
    for item, other in zip(items.values(), [*items.values()][::-1]):
        item["wav2"] = other["wav"]
    (folder / f"{split}.json").write_text(json.dumps(items))


def speech(split, count):
    """Seconds of speech, each from 0.3 s before its beginning."""
    starts = {r["id"]: r for r in read_table(SPEECH / "segments.csv")[::-1]}
    rows = read_table(SPEECH / "utterances.csv")
    names = [r["id"] for r in rows if r["split"] == split]
    for name in [name for name in names if name in starts][:count]:
        begin, end = (float(starts[name][k]) for k in ("start_s", "end_s"))
        first = max(0, round((begin - 0.3) * 16000))
        signal, _ = sf.read(SPEECH / "ogg" / f"{name}.ogg")
        signal = np.resize(signal[first:], 16000)
        borders = [begin - first / 16000, min(1.0, end - first / 16000)]
        yield name, {"signal": signal, "speech": [borders]}


def words(split, count):
    """Seconds of one word: real ones, or letters that are tones."""
    draw, time = np.random.default_rng(0), np.arange(3200) / 16000
    clips = KEYWORDS / "clips.csv"
    rows = read_table(clips) if clips.is_file() else []
    for i in range(count):
        word = WORDS[i % 3]
        mine = [r for r in rows if (r["split"], r["label"]) == (split, word)]
        if mine:
            flac = KEYWORDS / "flac" / f"{mine[i // 3]['id']}.flac"
            signal = np.resize(sf.read(flac)[0], 16000)
        else:
            pitches = [200 + 150 * (ord(c) - ord("a")) for c in word]
            tones = [np.sin(2 * np.pi * pitch * time) for pitch in pitches]
            signal = np.zeros(16000)
            signal[: 3200 * len(word)] = 0.3 * np.concatenate(tones)
        signal = signal + 0.001 * draw.standard_normal(16000)
        yield f"{split}_{i}", {"signal": signal, "command": word}


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """Folders of the data sets of words and of speech."""
    folders = {}
    for name, make in (("words", words), ("speech", speech)):
        folders[name] = tmp_path_factory.mktemp(name)
        for split, count in SPLITS.items():
            write_split(folders[name], split, dict(make(split, count)))
    text = folders["words"] / "words.txt"
    text.write_text("\n".join(WORDS * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(folders["words"] / "letters"),
        vocab_size=11,
        model_type="char",
        bos_id=1,
        eos_id=2,
        unk_id=3,
        pad_id=0,
        minloglevel=2,
    )
    return folders


@pytest.mark.parametrize("name", NAMES)
def test_at_most_twenty_lines_change(name):
    """Counted as git does: removed ones and added ones."""
    assert 0 < len(changed_lines(RECIPES / name)) <= 20


# Loads a folder with SpeechBrain alone
LOAD = """
import sys
from hyperpyyaml import load_hyperpyyaml
sys.modules["noisegate"] = None
(folder,) = sys.argv[1:]
with open(folder + "/hyperparams.yaml") as fin:
    loaded = load_hyperpyyaml(fin)
loaded["pretrainer"].set_collect_in(folder)
loaded["pretrainer"].load_collected()
modules = loaded["modules"].values()
print(sum(p.numel() for m in modules for p in m.parameters()))
print(*loaded["pretrainer"].loadables)
"""


@pytest.mark.parametrize("name", NAMES)
def test_recipe(name, corpora, tmp_path):
    """It trains, is cut to its budget and loads with SpeechBrain alone."""
    folder = patched(RECIPES / name, tmp_path / name, RECIPES / "data.py")
    kind = "speech" if name in ("vad", "separation") else "words"
    run(
        "train.py",
        "train.yaml",
        f"--data_folder={corpora[kind]}",
        "--output_folder=out",
        "--noprogressbar",
        cwd=folder,
        PYTHONPATH=str(ROOT),
    )
    lines = (folder / "out" / "gates.jsonl").read_text().splitlines()
    assert 0 < json.loads(lines[-1])["macs_ratio"] <= 0.5
    # That outputs are the same has been seen to when it was saved
    n_parameters, saved = run(
        "-c", LOAD, folder / "out" / "compact", cwd=tmp_path
    ).splitlines()[-2:]
    with open(folder / "train.yaml", encoding="utf-8") as fin:
        full = load_hyperpyyaml(
            fin, {"data_folder": str(corpora[kind]), "output_folder": "out"}
        )
    modules = full["modules"].values()
    parameters = (p for module in modules for p in module.parameters())
    assert 0 < int(n_parameters) < sum(p.numel() for p in parameters)
    assert set(saved.split()) >= BESIDE[name]
