"""Data that would be lost silently: each is used, or named before training."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import vad_data
import vad_manifests
from asvspoof_prepare import prepare_asvspoof
from keywords_prepare import prepare_keywords
from speechbrain.dataio.dataset import DynamicItemDataset
from vad_prepare import prepare_vad

from noisegate.evaluation.audio import read_audio

RATE = 16000
SPLITS = ("train", "valid", "test")


def sound(seconds=2.0, seed=0):
    """Bursts of noise between 0.3 and 0.9, 1.2 and 1.8 s."""
    t = np.arange(round(seconds * RATE)) / RATE
    on = ((t > 0.3) & (t < 0.9)) | ((t > 1.2) & (t < 1.8))
    noise = np.random.default_rng(seed).standard_normal(len(t))
    return 0.1 * noise * on + 1e-4 * noise[::-1]


def write(path, signal, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    # soundfile cannot write to names that are no UTF-8
    with open(path, "wb") as out:
        sf.write(out, signal, RATE, format=path.suffix[1:].upper(), **options)
    return path


def vad_files(folder):
    """Six speakers, six noises."""
    for s in range(6):
        for u in range(2):
            write(folder / f"speech/spk{s}/u{s}_{u}.wav", sound(seed=9 * s + u))
    for n in range(6):
        noise = np.random.default_rng(n).standard_normal(2 * RATE)
        write(folder / f"noise/n{n}.wav", 0.05 * noise)
    return folder


def vad(folder, **options):
    """Prepares; the items of all splits."""
    paths = [str(folder / "out" / f"{split}.json") for split in SPLITS]
    roots = folder / "speech", folder / "noise"
    prepare_vad(
        *map(str, roots), str(folder / "out"), *paths, segment_s=1.0, **options
    )
    names = dict(zip(("speech_root", "noise_root"), map(str, roots)))
    found = {}
    for manifest in vad_manifests.check_manifests(paths, names):
        found.update(manifest)
    return found


def test_vad_follows_links(tmp_path):
    vad_files(tmp_path)
    (tmp_path / "disk").mkdir()
    for s in (0, 3):
        speaker = tmp_path / "speech" / f"spk{s}"
        speaker.rename(tmp_path / "disk" / f"spk{s}")
        speaker.symlink_to(tmp_path / "disk" / f"spk{s}")
    (tmp_path / "speech" / "loop").symlink_to(tmp_path / "speech")
    items = vad(tmp_path)
    speakers = {item["speaker"] for item in items.values()}
    assert speakers == {f"spk{s}" for s in range(6)}


@pytest.mark.parametrize("share", [-1.0, -0.95])
def test_vad_names_channels_that_cancel(tmp_path, share):
    vad_files(tmp_path)
    left = sound()
    path = tmp_path / "speech/spk2/u2_0.wav"
    write(path, np.stack([left, share * left], 1))
    with pytest.raises(ValueError, match="u2_0.wav has channels that cancel"):
        vad(tmp_path)
    items = vad(tmp_path, channel=0)
    mine = [i for i in items.values() if "u2_0" in i["speech_wav"]]
    assert {i["channel"] for i in mine} == {0} and mine[0]["speech"]
    piece = read_audio(path, channel=0)
    assert np.allclose(piece, left, atol=1e-4)
    # Other files have one channel
    with pytest.raises(ValueError, match="has 1 channels, channel is 1"):
        vad(tmp_path, channel=1)


def test_vad_averages_channels_that_do_not(tmp_path):
    vad_files(tmp_path)
    both = np.stack([sound(seed=1), sound(seed=2)], 1)
    write(tmp_path / "speech/spk2/u2_0.wav", both)
    assert vad(tmp_path)


def labelled(folder, segments):
    """A corpus with segments.csv: id, start_s, end_s."""
    vad_files(folder)
    path = folder / "segments.csv"
    with open(path, "w", newline="", encoding="utf-8-sig") as out:
        rows = csv.writer(out)  # CR LF, and a byte order mark
        rows.writerow(["id", "start_s", "end_s"])
        rows.writerows(segments)
    return str(path)


def segments(unit=1.0, end=0.0, without=()):
    return [
        (f"u{s}_{u}", start * unit, stop * unit + end)
        for s in range(6)
        for u in range(2)
        for start, stop in ((0.3, 0.9), (1.2, 1.8))
        if s not in without
    ]


@pytest.mark.parametrize(
    "rows, says",
    [
        (segments(1000), r"u0_0.wav lasts 2.000 s, its labels have speech"),
        (segments(end=1.0), r"lasts 2.000 s, its labels .* to 2.8"),
        (segments(without=range(6)), "train: no speech"),
        (
            [(f"u{s}_{u}", 0.0, 2.0) for s in range(6) for u in range(2)],
            "train: nothing but speech",
        ),
    ],
)
def test_vad_names_labels_that_cannot_be(tmp_path, rows, says):
    path = labelled(tmp_path, rows)
    with pytest.raises(ValueError, match=says):
        vad(tmp_path, segments_csv=path)
    assert not list((tmp_path / "out").glob("*.json"))


def test_vad_says_which_files_have_no_speech(tmp_path, caplog):
    path = labelled(tmp_path, segments()[2:])
    assert vad(tmp_path, segments_csv=path)
    assert "1 of 12 speech files have no speech: spk0/u0_0.wav" in caplog.text


def test_vad_sees_labels_that_were_corrected(tmp_path):
    path = labelled(tmp_path, segments())
    before = vad(tmp_path, segments_csv=path)
    assert vad(tmp_path, segments_csv=path) == before
    text = Path(path).read_text("utf-8-sig").replace("0.3,0.9", "0.3,0.7")
    (tmp_path / "speech" / "labels.csv").write_text(text, encoding="utf-8")
    path = str(tmp_path / "speech" / "labels.csv")
    first = vad(tmp_path, segments_csv=path)
    assert first != before
    text = text.replace("0.3,0.7", "0.3,0.6")
    Path(path).write_text(text, encoding="utf-8")
    assert vad(tmp_path, segments_csv=path) != first


def test_vad_measures_powers_without_an_offset(tmp_path):
    signal = sound()
    for function in (vad_data.active_rms,):
        assert function(signal + 0.3, RATE) == pytest.approx(
            function(signal, RATE), rel=1e-3
        )
    quiet = np.zeros(RATE) + 0.2
    assert vad_data.active_frames(quiet, RATE).sum() == 0
    assert vad_data.speech_rms(
        signal + 0.3, [[0.3, 0.9]], RATE
    ) == pytest.approx(
        vad_data.speech_rms(signal, [[0.3, 0.9]], RATE), rel=1e-3
    )


# ---- all recipes: names of files, damaged files ------------------------------


def asvspoof_files(folder):
    protocols = folder / "ASVspoof2019_LA_cm_protocols"
    protocols.mkdir(parents=True)
    for split, name in (
        ("train", "train.trn"),
        ("dev", "dev.trl"),
        ("eval", "eval.trl"),
    ):
        lines = []
        for i in range(4):
            key = f"LA_{split[0].upper()}_{i}"
            path = folder / f"ASVspoof2019_LA_{split}" / f"flac/{key}.flac"
            write(path, sound(seed=i))
            kind = "A01 spoof" if i % 2 else "- bonafide"
            lines.append(f"LA_{split} {key} - {kind}")
        path = protocols / f"ASVspoof2019.LA.cm.{name}.txt"
        text = "\r\n".join([*lines, ""])
        path.write_bytes(text.encode("utf-8-sig"))
    return folder


def asvspoof(folder):
    paths = [str(folder.parent / "out" / f"{split}.json") for split in SPLITS]
    prepare_asvspoof(str(folder), str(folder.parent / "out"), *paths)
    roots = {"data_root": str(folder)}
    found = {}
    for path in paths:
        found.update(DynamicItemDataset.from_json(path, roots).data)
    return found


def keywords_files(folder):
    rows = []
    for i in range(12):
        split = SPLITS[i % 3]
        write(folder / "flac" / f"w{i}.flac", sound(1.0, seed=i))
        rows.append([f"w{i}", f"{split}{i}", f"word{i // 3 % 2}", split, 1.0])
    path = folder / "clips.csv"
    with open(path, "w", newline="", encoding="utf-8-sig") as out:
        names = ["id", "speaker", "label", "split", "duration_s"]
        csv.writer(out).writerows([names, *rows])
    return folder


def keywords(folder):
    out = folder.parent / "out"
    paths = [str(out / f"{split}.json") for split in SPLITS]
    prepare_keywords(str(folder), out, *paths, n_classes=2)
    found = {}
    for path in paths:
        found.update(DynamicItemDataset.from_json(path).data)
    return found


def vad_in(folder):
    return vad_files(folder)


ALL = {
    "VAD": (vad_in, vad, "speech/spk2/u2_0.wav"),
    "ASVspoof": (
        asvspoof_files,
        asvspoof,
        "ASVspoof2019_LA_train/flac/LA_T_0.flac",
    ),
    "Keywords": (keywords_files, keywords, "flac/w3.flac"),
}


@pytest.mark.parametrize("recipe", ALL)
@pytest.mark.parametrize(
    "name", ["a{b}c", "{speech_root}", os.fsdecode(b"caf\xe9"), "with space"]
)
def test_any_name_of_a_folder_will_do(recipe, name, tmp_path):
    make, prepare, _ = ALL[recipe]
    items = prepare(make(tmp_path / name))
    wavs = {i.get("wav") or i["speech_wav"] for i in items.values()}
    assert len(wavs) == 12
    assert all(os.path.isfile(wav) for wav in wavs)


def cut(path):
    path.write_bytes(path.read_bytes()[:-9000])


def empty(path):
    path.write_bytes(b"")


def no_audio(path):
    path.write_text("this is a text\n" * 99, encoding="utf-8")


def no_samples(path):
    write(path, np.zeros(0))


@pytest.mark.parametrize("recipe", ALL)
@pytest.mark.parametrize("harm", [cut, empty, no_audio, no_samples])
def test_a_damaged_file_is_named(recipe, harm, tmp_path):
    make, prepare, name = ALL[recipe]
    folder = make(tmp_path / "data")
    if recipe == "Keywords" and harm is cut:
        pytest.skip("its FLAC files are decoded when they are used")
    harm(folder / name)
    with pytest.raises(ValueError, match=Path(name).name):
        prepare(folder)
    assert not list(tmp_path.rglob("train.json"))


@pytest.mark.parametrize("n_channels", [1, 2])
def test_vad_names_a_file_that_ends_too_early(n_channels, tmp_path):
    """Its header is whole, its samples are not."""
    folder = vad_files(tmp_path)
    signal = np.stack([sound()] * n_channels, 1)
    path = write(folder / "speech/spk2/u2_9.flac", signal)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match="u2_9.flac is (unreadable|truncated)"):
        vad(folder)


@pytest.mark.parametrize("size", [0, 100, 16000, 2**31 - 2, 2**32 - 1])
def test_a_header_that_says_another_length(size, tmp_path):
    """Is an error, but for the one that means that it is not known."""
    folder = vad_files(tmp_path)
    path = folder / "speech/spk2/u2_0.wav"
    content = bytearray(path.read_bytes())
    place = content.index(b"data") + 4
    content[place : place + 4] = size.to_bytes(4, "little")
    path.write_bytes(content)
    if size == 2**32 - 1:
        assert vad(folder)
        assert len(read_audio(path)) == 2 * RATE
        return
    with pytest.raises(ValueError, match="u2_0.wav is damaged"):
        vad(folder)


@pytest.mark.parametrize(
    "change, says",
    [
        (("w3,", "w0,"), "id 'w0' twice"),
        ((",1.0\r\n", ",9.0\r\n"), "lasts 1.000 s, clips of it go to 9.000"),
        ((",1.0\r\n", ",nan\r\n"), "line 2: 'w0' begins at .* lasts nan"),
        ((",1.0\r\n", ",one\r\n"), "clips.csv, line 2: could not convert"),
        (("speaker", "who"), "has the columns .*'who'.*, expected"),
        ((",train,", ",training,"), "split is 'training'"),
    ],
)
def test_keywords_names_a_bad_table(change, says, tmp_path):
    folder = keywords_files(tmp_path / "data")
    path = folder / "clips.csv"
    text = path.read_bytes().decode("utf-8-sig").replace(*change, 1)
    path.write_bytes(text.encode())
    with pytest.raises(ValueError, match=says):
        keywords(folder)


def test_keywords_names_stereo(tmp_path):
    folder = keywords_files(tmp_path / "data")
    write(folder / "flac/w3.flac", np.stack([sound(1.0)] * 2, 1))
    with pytest.raises(ValueError, match="w3.flac has 16000 Hz and 2 channels"):
        keywords(folder)
    assert json.dumps(sorted(os.listdir(tmp_path))) == '["data"]'
