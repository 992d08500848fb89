"""Data, network and scores of the keyword recipe."""

import csv
import json
from pathlib import Path

import keywords_prepare as prepare
import numpy as np
import pytest
import soundfile
import tc_resnet8
import torch
from speechbrain.dataio.encoder import CategoricalEncoder

from noisegate.evaluation.bootstrap import Bootstrap
from noisegate.evaluation.classes import ClassScores
from noisegate.evaluation.trials import read_trials
from noisegate.gates import Gates

RECIPE = Path(__file__).parents[2] / "recipes" / "Keywords"

OTHERS = [f"word{i:02}" for i in range(25)]


@pytest.fixture
def corpus(tmp_path):
    """The tree of Speech Commands v0.02, with clips of a tenth of a second."""
    folder, lists = tmp_path / "speech_commands", {"valid": [], "test": []}
    draw = np.random.default_rng(0)
    for word in (*prepare.WORDS_12, *OTHERS):
        (folder / word).mkdir(parents=True)
        for number in range(10):
            name = f"{number:08x}_nohash_0.wav"
            soundfile.write(
                folder / word / name, 0.1 * draw.standard_normal(1600), 16000
            )
            split = {8: "valid", 9: "test"}.get(number)
            if split is not None:
                lists[split].append(f"{word}/{name}")
    (folder / "_background_noise_").mkdir()
    for name, seconds in (("hum", 3), ("tap", 2)):
        noise = 0.01 * draw.standard_normal(seconds * 16000)
        path = folder / "_background_noise_" / f"{name}.wav"
        soundfile.write(path, noise, 16000)
    for split, name in (("valid", "validation"), ("test", "testing")):
        text = "\n".join(lists[split]) + "\n"
        (folder / f"{name}_list.txt").write_text(text)
    return folder


def manifests(folder, save_folder, **options):
    """What was prepared, by split."""
    paths = [save_folder / f"{split}.json" for split in prepare.SPLITS]
    prepare.prepare_keywords(folder, save_folder, *paths, **options)
    found = [json.loads(path.read_text()) for path in paths]
    return dict(zip(prepare.SPLITS, found))


def test_all_words(corpus, tmp_path):
    """Official lists; what is in none is for training."""
    found = manifests(corpus, tmp_path, n_classes=35)
    assert {split: len(items) for split, items in found.items()} == {
        "train": 280,
        "valid": 35,
        "test": 35,
    }
    assert {item["speaker"] for item in found["test"].values()} == {"00000009"}


def test_a_manifest_of_others_is_not_replaced(corpus, tmp_path):
    """One outside of the run's folder, unless it says the same."""
    paths = [tmp_path / f"{split}.json" for split in prepare.SPLITS]
    for path in paths:
        path.write_text("[]")
    with pytest.raises(FileExistsError, match="train.json holds"):
        prepare.prepare_keywords(corpus, tmp_path / "save", *paths)
    assert [path.read_text() for path in paths] == ["[]"] * 3
    for path in paths:
        path.unlink()
    for seed in (1, 1, 2):
        arguments = corpus, tmp_path / "save", *paths
        if seed == 1:
            prepare.prepare_keywords(*arguments, seed=seed)
            continue
        with pytest.raises(FileExistsError, match="json holds"):
            prepare.prepare_keywords(*arguments, seed=seed)


def test_ten_words_others_and_silence(corpus, tmp_path):
    """A tenth of each; cuts of noise lie within their files; always the same
    choice."""
    found = manifests(corpus, tmp_path / "a", n_classes=12)
    for split, n_known in (("train", 80), ("valid", 10), ("test", 10)):
        labels = [item["label"] for item in found[split].values()]
        assert labels.count("unknown") == labels.count("silence")
        assert labels.count("unknown") == n_known // 10
        assert len(labels) == n_known + 2 * n_known // 10
    for item in found["train"].values():
        if item["label"] == "silence":
            length = soundfile.info(item["wav"]).duration
            assert item["start_s"] + item["duration_s"] <= length
    assert found == manifests(corpus, tmp_path / "b", n_classes=12)
    other = manifests(corpus, tmp_path / "c", n_classes=12, seed=1)
    assert found["train"] != other["train"]


def test_the_sample_is_read(tmp_path):
    """Each clip lies in its file; no speaker is in two splits."""
    found = manifests(RECIPE / "sample", tmp_path)
    assert [len(items) for items in found.values()] == [1641, 279, 894]
    ends = {}
    for items in found.values():
        for item in items.values():
            end = item["start_s"] + item["duration_s"]
            ends[item["wav"]] = max(end, ends.get(item["wav"], 0))
    for path, end in ends.items():
        assert end <= soundfile.info(path).duration + 1e-4


@pytest.mark.skipif(
    not (RECIPE.parents[2] / "shared" / "data" / "gsc12").is_dir(),
    reason="the originals are not here",
)
def test_the_sample_is_in_line_with_the_originals():
    """To the sample, so that words are where the table says."""
    source = RECIPE.parents[2] / "shared" / "data" / "gsc12"
    with open(RECIPE / "sample" / "clips.csv", encoding="utf-8") as fin:
        rows = list(csv.DictReader(fin))
    for row in rows[::200]:
        start = round(float(row["start_s"]) * 16000)
        stop = start + round(float(row["duration_s"]) * 16000)
        path = RECIPE / "sample" / row["file"]
        coded, _ = soundfile.read(path, start=start, stop=stop)
        signal, _ = soundfile.read(source / "flac" / f"{row['id']}.flac")
        if row["label"] != "silence":
            size = len(signal) + len(coded)
            spectra = np.fft.rfft(signal, size), np.fft.rfft(coded, size)
            shifted = np.fft.irfft(spectra[0].conj() * spectra[1])
            assert np.argmax(shifted) in (0, 1, size - 1)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ("nothing", FileNotFoundError, "neither Speech Commands"),
        ("a list", FileNotFoundError, "neither Speech Commands"),
        ("a file", FileNotFoundError, "lacks 1 files of its lists"),
        ("the noise", FileNotFoundError, "no WAV files"),
        ("a rate", ValueError, "8000 Hz and 1 channels, expected 1 at"),
        ("an end", ValueError, "0.wav is (unreadable|truncated)"),
    ],
)
def test_what_is_wrong_is_named(change, error, message, corpus, tmp_path):
    if change == "nothing":
        corpus = tmp_path / "empty"
        corpus.mkdir()
    elif change == "a list":
        (corpus / "testing_list.txt").unlink()
    elif change == "a file":
        (corpus / "yes" / "00000009_nohash_0.wav").unlink()
    elif change == "the noise":
        for path in (corpus / "_background_noise_").iterdir():
            path.unlink()
    else:
        path = corpus / "yes" / "00000001_nohash_0.wav"
        rate, form = (8000, "WAV") if change == "a rate" else (16000, "FLAC")
        signal = 0.1 * np.random.default_rng(0).standard_normal(rate)
        soundfile.write(path, signal, rate, format=form)
        if change == "an end":  # the header is whole
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(error, match=message):
        manifests(corpus, tmp_path / "save")
    assert not (tmp_path / "save").exists()


@pytest.mark.parametrize("n_classes", [2, 34])
def test_a_number_of_classes_that_does_not_fit(n_classes, corpus, tmp_path):
    with pytest.raises(ValueError, match="n_classes must be 12 or 35"):
        manifests(corpus, tmp_path, n_classes=n_classes)
    with pytest.raises(ValueError, match="12 classes, n_classes is"):
        manifests(RECIPE / "sample", tmp_path, n_classes=n_classes)


def test_a_speaker_in_two_splits_is_an_error(tmp_path):
    rows = ["id,speaker,label,split,duration_s"]
    for i, split in enumerate(prepare.SPLITS):
        rows += [f"{i}_{k},{i % 2},w{k},{split},1.0" for k in range(12)]
    (tmp_path / "clips.csv").write_text("\n".join(rows) + "\n")
    with pytest.raises(ValueError, match="speaker 0 is in train and test"):
        manifests(tmp_path, tmp_path / "save")


def test_a_teacher_of_other_words_is_refused(tmp_path):
    """Its scores would be targets of the wrong classes."""

    def encoder(*words):
        labels = CategoricalEncoder()
        labels.add_unk = False
        labels.update_from_iterable(words)
        return labels

    prepare.check_labels(encoder("go", "no"), None)
    prepare.check_labels(encoder("go", "no"), tmp_path)  # says nothing
    encoder("go", "no").save(tmp_path / "label_encoder.ckpt")
    prepare.check_labels(encoder("go", "no"), tmp_path)
    with pytest.raises(ValueError, match="teacher_folder .*'go': 0.*'no': 0"):
        prepare.check_labels(encoder("no", "go"), tmp_path)


def test_all_widths_of_the_network_can_be_learned():
    model = tc_resnet8.TCResNet8(n_mels=40, n_classes=12)
    gates = Gates(model, input_shape=[1, 101, 40])
    assert len(gates) == 7
    assert sum(gates.integer_widths().values()) == 16 + 2 * (24 + 32 + 48)


def test_jitter_moves_and_disturbs():
    """By whole frames, the same for all of a batch."""
    torch.manual_seed(0)
    x = torch.arange(20.0).view(1, 20, 1).repeat(2, 1, 1)
    y = tc_resnet8.FeatureJitter(noise=0.0, shift=3)(x)
    assert any(torch.equal(y, x.roll(k, 1)) for k in range(-3, 4))
    y = tc_resnet8.FeatureJitter(noise=0.5, shift=0)(torch.zeros(9, 99, 4))
    assert float(y.std()) == pytest.approx(0.5, rel=0.05)


def decided(n_errors, n_clips=10, n_speakers=20):
    """Scores in which each speaker has so many errors."""
    scores = ClassScores()
    for speaker in range(n_speakers):
        made = torch.eye(2)[torch.ones(n_clips, dtype=torch.long)]
        labels = torch.ones(n_clips, dtype=torch.long)
        labels[: n_errors(speaker)] = 0
        ids = [f"{speaker}_{i}" for i in range(n_clips)]
        scores.append(ids, made, labels, [str(speaker)] * n_clips)
    return scores


def test_error_rate_and_its_interval():
    """Speakers who differ make it wide; without any spread it is a point."""
    even = decided(lambda speaker: 2)
    assert even.summarize() == {"error_rate": 20.0}
    assert even.intervals() == {"error_rate": [20.0, 20.0]}
    uneven = decided(lambda speaker: 4 * (speaker % 2))
    assert uneven.summarize() == {"error_rate": 20.0}
    low, high = uneven.intervals()["error_rate"]
    # Of 20 draws from {0, 40} with equal probability
    assert low == pytest.approx(20 - 1.96 * 20 / 20**0.5, abs=2)
    assert high == pytest.approx(20 + 1.96 * 20 / 20**0.5, abs=2)


def test_decisions_are_written(tmp_path):
    encoder = CategoricalEncoder()
    encoder.update_from_iterable(["no", "yes"])
    decided(lambda speaker: 1, 2, 1).write(tmp_path / "out.csv", encoder)
    assert (tmp_path / "out.csv").read_text().splitlines() == [
        "id,speaker,label,decision",
        "0_0,0,no,yes",
        "0_1,0,yes,yes",
    ]


def test_intervals_over_seeds_and_speakers(tmp_path):
    """Paired by speaker: of equal systems the difference is none; errors that
    differ by the same number for each speaker differ for sure."""
    runs = {}
    for name, n_errors in (
        ("a", lambda speaker: 4 * (speaker % 2)),
        ("b", lambda speaker: 4 * (speaker % 2)),
        ("c", lambda speaker: 4 * (speaker % 2) + 1),
    ):
        path = tmp_path / f"{name}.txt"
        decided(n_errors).write_trials(path)
        runs[name] = {1: read_trials(path)}
    draws = Bootstrap(runs, error_rates=True)
    alone = draws.estimate(lambda error: error["a"], {"a": [1]})
    assert alone.value == 20.0 and alone.low < 15 and alone.high > 25
    same = draws.estimate(
        lambda error: error["a"] - error["b"], {"a": [1], "b": [1]}
    )
    assert same[:3] == (0.0, 0.0, 0.0)
    more = draws.estimate(
        lambda error: error["c"] - error["a"], {"a": [1], "c": [1]}
    )
    assert more.value == pytest.approx(10) and more.low > 9


def test_scores_that_are_none_are_refused():
    scores, labels = ClassScores(), torch.zeros(1, dtype=torch.long)
    with pytest.raises(ValueError, match="'a' are not finite"):
        scores.append(["a"], torch.tensor([[0.0, float("nan")]]), labels, ["s"])
    with pytest.raises(ValueError, match="equally long"):
        scores.append(["a", "b"], torch.zeros(1, 2), labels, ["s"])
    assert not scores.ids
