"""Preparation of the VAD recipe: layouts, splits, what is wrong with data."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import vad_data
import vad_manifests
import vad_prepare
from speechbrain.dataio.dataset import DynamicItemDataset

from tests.unittests.vad_folders import (
    RATE,
    assert_splits_are_apart,
    burst,
    make_folders,
    one_item,
    prepare,
    steady,
    write,
    write_csv,
)


def test_folders_layout(tmp_path, folders):
    manifests, paths, roots = prepare(tmp_path, *folders, mixes_per_segment=3)
    assert_splits_are_apart(manifests)
    # Files of 2.3 s: pieces of 1, 1 and 0.3 s; 3 + 1 + 1 speakers.
    assert [len(m) for m in manifests] == [3 * 2 * 3 * 3, 2 * 3 * 4, 2 * 3 * 4]
    assert all(set(i) == set(vad_data.ITEM_KEYS) for i in manifests[0].values())
    limits = {name: (low, high) for name, low, high in vad_data.SNR_RANGES}
    for manifest in manifests:
        for item in manifest.values():
            low, high = limits[item["snr_range"]]
            assert low <= item["snr_db"] < high
            assert item["duration"] == 1.0
            for start_s, stop_s in item["speech"]:
                assert 0 <= start_s < stop_s <= 1.0
    for manifest in manifests[1:]:
        ranges = [item["snr_range"] for item in manifest.values()]
        assert {ranges.count(name) for name in limits} == {len(manifest) // 4}
    # The energy labeller found the burst from 0.2 to 1.9 s.
    pieces = [item["speech"] for item in manifests[1].values()][::4][:3]
    assert np.allclose(pieces[0], [[0.2, 1.0]], atol=0.011)
    assert np.allclose(pieces[1], [[0.0, 0.9]], atol=0.011)
    assert pieces[2] == []

    good = vad_manifests.check_manifests(paths, roots)
    for manifest in good:
        loader = vad_data.ItemLoader(manifest)
        for item_id in manifest:
            wav, labels = loader(item_id)
            assert wav.shape == (RATE,)
            assert labels.shape == (101,)
            assert wav.isfinite().all()


def test_labels_do_not_depend_on_the_cut(tmp_path, folders):
    """The pieces of a file hold as much speech as the file."""
    speech, noise = folders
    names = [f"spk{s}/u{u}" for s in range(5) for u in range(2)]
    rows = [(name, 0.5, 1.5) for name in names]
    segments = write_csv(tmp_path / "s.csv", ("id", "start_s", "end_s"), rows)
    # u0 and u1 are in several folders: ids must be paths.
    manifests, _, _ = prepare(
        tmp_path, speech, noise, segments_csv=str(segments)
    )
    frames = sum(
        int(vad_data.frame_labels(item["speech"], 100).sum())
        for item in manifests[0].values()
    )
    assert frames == 6 * 100


def test_speakers_by_name_of_the_file(tmp_path):
    speech = tmp_path / "speech"
    for s in range(4):
        for u in range(3):
            write(speech / f"s{s}_{u}.wav", burst(1.0, 0.2, 0.8, seed=s + u))
    for n in range(3):
        write(tmp_path / "noise" / f"n-{n}.wav", steady(1.0, seed=n))
    manifests, _, _ = prepare(tmp_path, speech, tmp_path / "noise")
    assert_splits_are_apart(manifests)
    speakers = {i["speaker"] for m in manifests for i in m.values()}
    assert speakers == {"s0", "s1", "s2", "s3"}


def test_audio_that_is_not_read_is_counted(tmp_path, folders, caplog):
    speech, noise = folders
    (noise / "rain.mp3").write_bytes(b"")
    (noise / "rain.txt").write_text("where it comes from")
    prepare(tmp_path, speech, noise)
    assert "1 audio files of" in caplog.text and "rain.mp3: .wav" in caplog.text


def make_barista(tmp_path):
    speech, noise = tmp_path / "barista", tmp_path / "esc10"
    utterances, segments, clips = [], [], []
    for i, split in enumerate(("train", "train", "valid", "test")):
        write(speech / "flac" / f"ba_{i}.flac", burst(1.7, 0.4, 1.2, seed=i))
        utterances.append((f"ba_{i}", 1.7, f"spk{i:02d}", split))
        segments.append((f"ba_{i}", 0.4, 1.2))
    for fold in range(1, 6):
        for human in (0, 1):
            name = f"esc_{fold}_{human}"
            write(noise / "flac" / f"{name}.flac", steady(2.0, seed=fold))
            clips.append((name, "rain", fold, human))
    # A click before digital silence: too little sound to be a noise.
    write(noise / "flac" / "esc_click.flac", burst(2.0, 0.0, 0.1))
    clips.append(("esc_click", "clock", 4, 0))
    header = ("id", "duration_s", "speaker_cluster", "split")
    write_csv(speech / "utterances.csv", header, utterances)
    write_csv(speech / "segments.csv", ("id", "start_s", "end_s"), segments)
    write_csv(noise / "clips.csv", ("id", "class", "fold", "human"), clips)
    return speech, noise


def test_barista_esc10_layout(tmp_path):
    manifests, _, _ = prepare(tmp_path, *make_barista(tmp_path))
    assert_splits_are_apart(manifests)
    assert [len(m) for m in manifests] == [4, 8, 8]
    noises = {item["noise_wav"] for m in manifests for item in m.values()}
    assert not any("_1.flac" in name or "click" in name for name in noises)
    valid, test = ({i["noise_wav"] for i in m.values()} for m in manifests[1:])
    assert valid == {"{noise_root}/flac/esc_4_0.flac"}
    assert test == {"{noise_root}/flac/esc_5_0.flac"}
    assert manifests[1]["flac/ba_2_000_snr0"]["speech"] == [[0.4, 1.0]]
    assert manifests[1]["flac/ba_2_001_snr0"]["speech"] == [[0.0, 0.2]]


def test_labels_of_the_speech_with_any_noise(tmp_path):
    """They are taken, though the noise has no table; but speech is none."""
    speech, noise = make_barista(tmp_path)
    (noise / "clips.csv").unlink()
    manifests, _, _ = prepare(tmp_path, speech, noise)
    assert_splits_are_apart(manifests)
    assert manifests[1]["flac/ba_2_000_snr0"]["speech"] == [[0.4, 1.0]]
    with pytest.raises(ValueError, match="noise_folder is .* same as data_f"):
        prepare(tmp_path, speech, None, out="alone")


def test_tables_in_place_of_those_of_the_folder(tmp_path):
    """Are read in each layout that has some, and when they have changed."""
    folders, header = make_barista(tmp_path), ("id", "start_s", "end_s")
    table = tmp_path / "labels.csv"
    for begin in (0.2, 0.35):
        rows = [(f"ba_{i}", begin, 1.2) for i in range(4)]
        write_csv(table, header, rows)
        valid = prepare(tmp_path, *folders, segments_csv=str(table))[0][1]
        assert valid["flac/ba_2_000_snr0"]["speech"] == [[begin, 1.0]]
    make_libriparty(tmp_path / "party")
    with pytest.raises(ValueError, match="libriparty has no place for .*lab"):
        prepare(tmp_path, tmp_path / "party", None, segments_csv=str(table))


@pytest.mark.parametrize("version", ["0.92", "0.80"])
def test_vctk_esc50_layout(tmp_path, version):
    vctk, esc50 = tmp_path / "VCTK", tmp_path / "ESC-50"
    for s in range(4):
        for u in range(2):
            name, signal = f"p{225 + s}", burst(1.2, 0.2, 1.0, 48000, seed=s)
            if version == "0.92":
                folder = vctk / "wav48_silence_trimmed" / name
                for mic in (1, 2):
                    path = folder / f"{name}_00{u}_mic{mic}.flac"
                    write(path, signal, 48000)
            else:
                path = vctk / "wav48" / name / f"{name}_00{u}.wav"
                write(path, signal, 48000)
    rows = []
    for fold in range(1, 6):
        for category in ("rain", "crying_baby"):
            name = f"{fold}-1-{category}.wav"
            write(esc50 / "audio" / name, steady(1.0, fold, 44100), 44100)
            rows.append((name, fold, 0, category))
    (esc50 / "meta").mkdir()
    header = ("filename", "fold", "target", "category")
    write_csv(esc50 / "meta" / "esc50.csv", header, rows)

    manifests, paths, roots = prepare(tmp_path, vctk, esc50)
    assert_splits_are_apart(manifests)
    assert [len(m) for m in manifests] == [2 * 2 * 2, 2 * 2 * 4, 2 * 2 * 4]
    items = [item for m in manifests for item in m.values()]
    assert not any("mic2" in item["speech_wav"] for item in items)
    assert not any("crying" in item["noise_wav"] for item in items)
    assert all("/4-1" in i["noise_wav"] for i in manifests[1].values())
    loader = vad_data.ItemLoader(vad_manifests.check_manifests(paths, roots)[0])
    assert loader(next(iter(manifests[0])))[0].shape == (RATE,)
    few, _, _ = prepare(
        tmp_path, vctk, esc50, "few", max_utterances_per_speaker=1
    )
    assert [len(m) for m in few] == [4, 8, 8]


def make_libriparty(root, shared_speaker=False):
    for split in ("train", "dev", "eval"):
        sessions = {}
        for s in range(2):
            session = f"session_{s}"
            path = root / split / session / f"{session}_mixture.wav"
            write(path, steady(3.4, seed=s))
            speakers = [f"{split}{s}a", f"{split}{s}b"]
            if shared_speaker:
                speakers = ["same"]
            sessions[session] = {
                name: [
                    {"start": 0.3, "stop": 1.2, "utt_id": "x", "file": "y"},
                    {"start": 1.0 + i, "stop": 1.5 + i, "utt_id": "z"},
                ]
                for i, name in enumerate(speakers)
            }
            sessions[session]["noises"] = [{"start": 0.0, "stop": 1.0}]
            sessions[session]["background"] = {"start": 0.0, "stop": 3.4}
        (root / "metadata").mkdir(exist_ok=True)
        path = root / "metadata" / f"{split}.json"
        path.write_text(json.dumps(sessions), "utf-8")


@pytest.mark.parametrize("data_folder", ["LibriParty", "LibriParty/dataset"])
def test_libriparty_layout(tmp_path, data_folder):
    make_libriparty(tmp_path / "LibriParty" / "dataset")
    manifests, paths, roots = prepare(tmp_path, tmp_path / data_folder, None)
    assert_splits_are_apart(manifests)
    # 3.4 s: three pieces; there is no noise to fill the last one.
    assert [len(m) for m in manifests] == [6, 6, 6]
    items = list(manifests[0].values())[:3]
    assert [item["speech"] for item in items] == [
        [[0.3, 1.0]],
        [[0.0, 0.5]],
        [[0.0, 0.5]],
    ]
    assert {item["snr_range"] for item in items} == {"all"}
    assert {item["noise_wav"] for item in items} == {None}
    assert items[0]["speaker"] == "train0a+train0b"
    wav, _ = vad_data.ItemLoader(
        vad_manifests.check_manifests(paths, roots)[0]
    )("train_session_0_001_all")
    direct = vad_data.read_audio(
        tmp_path / "LibriParty/dataset/train/session_0/session_0_mixture.wav",
        1.0,
        2.0,
    )
    assert torch.equal(wav, torch.from_numpy(direct))


def test_a_speaker_in_two_splits_is_refused(tmp_path):
    root = tmp_path / "dataset"
    make_libriparty(root, shared_speaker=True)
    with pytest.raises(ValueError, match="speaker 'same' is in train and in"):
        prepare(tmp_path, root, None)


def test_same_arguments_same_manifests(tmp_path, folders):
    first, _, _ = prepare(tmp_path, *folders, out="a", seed=1)
    again, _, _ = prepare(tmp_path, *folders, out="b", seed=1)
    other, _, _ = prepare(tmp_path, *folders, out="c", seed=2)
    assert first == again
    assert first != other
    # The seed is for the mixtures; the splits stay.
    for a, b in zip(first, other):
        assert list(a) == list(b)


def test_prepared_manifests_are_kept_until_arguments_change(
    tmp_path, folders, caplog
):
    _, paths, _ = prepare(tmp_path, *folders)
    before = [Path(path).stat().st_mtime_ns for path in paths]
    prepare(tmp_path, *folders)
    assert before == [Path(path).stat().st_mtime_ns for path in paths]
    with caplog.at_level(logging.WARNING):
        prepare(tmp_path, *folders, seed=7)
    assert "seed was 1234, is 7" in caplog.text
    Path(paths[1]).unlink()
    prepare(tmp_path, *folders, seed=7)
    assert Path(paths[1]).is_file()
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {Path(path).name for path in [*paths, "vad_prepare.json"]}


def test_a_manifest_of_others_is_not_replaced(tmp_path, folders):
    """One outside of the run's folder, unless it says the same."""
    _, paths, _ = prepare(tmp_path, *folders)
    mine = tmp_path / "mine.json"
    mine.write_text("{}")

    def again():
        speech, noise = map(str, folders)
        places = str(tmp_path / "out"), str(mine), *paths[1:]
        vad_prepare.prepare_vad(speech, noise, *places, segment_s=1.0, seed=7)

    with pytest.raises(FileExistsError, match="mine.json holds .*skip_prep"):
        again()
    assert mine.read_text() == "{}"
    mine.unlink()
    again()
    written = mine.read_text()
    again()
    assert mine.read_text() == written


def test_skip_prep_does_nothing(tmp_path):
    vad_prepare.prepare_vad(
        "absent", None, str(tmp_path / "x"), "a", "b", "c", skip_prep=True
    )
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "timit"}, "layout is 'timit', expected one of"),
        ({"segment_s": 0.0}, "segment_s is 0.0"),
        ({"segment_s": 1.005}, "multiple of 10 ms"),
        ({"sample_rate": 11025}, "multiple of 100 Hz"),
        ({"mixes_per_segment": 0}, "mixes_per_segment is 0"),
    ],
)
def test_bad_arguments(tmp_path, folders, options, message):
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path, *folders, **options)


def test_bad_folders(tmp_path, folders):
    speech, noise = folders
    (tmp_path / "nothing").mkdir()
    with pytest.raises(FileNotFoundError, match="data_folder .*absent"):
        prepare(tmp_path, tmp_path / "absent", noise)
    with pytest.raises(FileNotFoundError, match="has no audio file"):
        prepare(tmp_path, speech, tmp_path / "nothing")
    with pytest.raises(ValueError, match="same as data_folder"):
        prepare(tmp_path, speech, speech)
    shutil.rmtree(speech / "spk0")
    shutil.rmtree(speech / "spk1")
    shutil.rmtree(speech / "spk2")
    with pytest.raises(ValueError, match="at least three different"):
        prepare(tmp_path, speech, noise)


def test_bad_csv_files(tmp_path):
    speech, noise = make_barista(tmp_path)
    rows = [("ba_0", 0.5, 0.2)]
    header = ("id", "start_s", "end_s")
    write_csv(speech / "segments.csv", header, rows)
    with pytest.raises(ValueError, match="ba_0 has speech from 0.5 to 0.2"):
        prepare(tmp_path, speech, noise)
    write_csv(speech / "segments.csv", ("id", "begin"), [])
    with pytest.raises(ValueError, match="expected .*start_s"):
        prepare(tmp_path, speech, noise)
    (speech / "flac" / "ba_1.flac").unlink()
    with pytest.raises(FileNotFoundError, match=r"without an audio.*'ba_1'"):
        prepare(tmp_path, speech, noise)


def test_prepare_names_bad_files_or_skips_them(tmp_path, caplog):
    speech, noise = make_folders(tmp_path, 12, 12)
    (speech / "spk3" / "u0.wav").write_bytes(b"broken")
    write(noise / "noise2.wav", np.zeros(0))
    with pytest.raises(ValueError, match="2 of 36 audio files") as error:
        prepare(tmp_path, speech, noise)
    assert "spk3/u0.wav is unreadable" in str(error.value)
    assert "noise2.wav is empty" in str(error.value)
    assert not (tmp_path / "out").exists()
    with caplog.at_level(logging.WARNING):
        manifests, _, _ = prepare(tmp_path, speech, noise, skip_bad_files=True)
    assert "left out" in caplog.text
    used = {item["speech_wav"] for m in manifests for item in m.values()}
    assert "{speech_root}/spk3/u1.wav" in used
    assert "{speech_root}/spk3/u0.wav" not in used


def test_check_manifests_finds_what_changed(tmp_path, caplog):
    speech, noise = make_folders(tmp_path, 20)
    _, paths, roots = prepare(tmp_path, speech, noise)
    assert len(vad_manifests.check_manifests(paths, roots)) == 3
    files = sorted(speech.rglob("*.wav"))[:12]
    files[0].write_bytes(b"broken")
    write(files[1], np.zeros(RATE // 10))
    for path in files[2:]:
        path.unlink()
    with pytest.raises(ValueError, match="12 of 45 audio files") as error:
        vad_manifests.check_manifests(paths, roots)
    message = str(error.value)
    assert message.count("audio file ") == 10
    assert "and 2 more" in message
    with caplog.at_level(logging.WARNING):
        good = vad_manifests.check_manifests(paths, roots, skip_bad_files=True)
    assert "items left out" in caplog.text
    used = {item["speech_wav"] for m in good for item in m.values()}
    assert used == {str(path) for path in speech.rglob("*.wav")} - {
        str(files[0]),
        str(files[1]),
    }
    assert len(DynamicItemDataset(good[0])) == len(good[0])


def test_check_manifests_too_short_file(tmp_path):
    path = tmp_path / "m.json"
    item = one_item(tmp_path, speech_stop_s=1.5, duration=2.0)
    path.write_text(json.dumps({"a": item}), "utf-8")
    with pytest.raises(ValueError, match="lasts 1.000 s, the manifest needs"):
        vad_manifests.check_manifests([path], {})


def test_check_manifests_ids(tmp_path):
    item = json.dumps(one_item(tmp_path))
    twice, once = tmp_path / "twice.json", tmp_path / "once.json"
    twice.write_text(f'{{"a": {item}, "a": {item}}}', "utf-8")
    once.write_text(f'{{"a": {item}}}', "utf-8")
    with pytest.raises(ValueError, match="id 'a' occurs twice"):
        vad_manifests.check_manifests([twice], {})
    with pytest.raises(ValueError, match="id 'a' is also in"):
        vad_manifests.check_manifests([once, once], {})
    once.write_text('{"a": {"speech_wav": "x"}}', "utf-8")
    with pytest.raises(ValueError, match="item 'a' has no"):
        vad_manifests.check_manifests([once], {})
    with pytest.raises(FileNotFoundError, match="absent.json"):
        vad_manifests.check_manifests([tmp_path / "absent.json"], {})
