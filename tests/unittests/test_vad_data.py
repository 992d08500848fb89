"""Data preparation, mixing, labels and cache of the VAD recipe."""

import csv
import json
import logging
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
from speechbrain.dataio.dataset import DynamicItemDataset

sys.path.insert(0, str(Path(__file__).parents[2] / "recipes" / "VAD"))

import vad_data  # noqa: E402
import vad_manifests  # noqa: E402
import vad_prepare  # noqa: E402

RATE = 16000
SPLITS = ("train", "valid", "test")


# ------------------------------------------------------------------ helpers


def write(path, signal, rate=RATE):
    path.parent.mkdir(parents=True, exist_ok=True)
    sf.write(path, signal, rate)
    return path


def burst(duration_s, start_s, stop_s, rate=RATE, level=0.1, seed=0):
    """Noise-like 'speech' between two times, digital silence around it."""
    signal = np.zeros(round(duration_s * rate))
    part = slice(round(start_s * rate), round(stop_s * rate))
    generator = np.random.default_rng(seed)
    signal[part] = level * generator.uniform(-1, 1, part.stop - part.start)
    return signal


def steady(duration_s, seed=0, rate=RATE, level=0.05):
    generator = np.random.default_rng(seed)
    return level * generator.standard_normal(round(duration_s * rate))


def write_csv(path, header, rows):
    with open(path, "w", newline="", encoding="utf-8") as fout:
        csv.writer(fout).writerows([header, *rows])
    return path


def prepare(tmp_path, speech, noise, out="out", **options):
    """Runs prepare_vad with segments of 1 s; gives manifests and roots."""
    folder = tmp_path / out
    paths = [str(folder / f"{split}.json") for split in SPLITS]
    options.setdefault("segment_s", 1.0)
    noise = None if noise is None else str(noise)
    vad_prepare.prepare_vad(str(speech), noise, str(folder), *paths, **options)
    manifests = [json.loads(Path(p).read_text("utf-8")) for p in paths]
    return manifests, paths, vad_prepare.manifest_roots(speech, noise)


def assert_splits_are_apart(manifests):
    for key in ("speaker", "speech_wav", "noise_wav"):
        seen = [{item[key] for item in m.values()} - {None} for m in manifests]
        assert not seen[0] & seen[1]
        assert not seen[0] & seen[2]
        assert not seen[1] & seen[2]
    ids = [item_id for manifest in manifests for item_id in manifest]
    assert len(ids) == len(set(ids))


def make_folders(tmp_path, n_speakers=5, n_noises=5):
    speech, noise = tmp_path / "speech", tmp_path / "noise"
    for s in range(n_speakers):
        for u in range(2):
            signal = burst(2.3, 0.2, 1.9, seed=10 * s + u)
            write(speech / f"spk{s}" / f"u{u}.wav", signal)
    for n in range(n_noises):
        write(noise / f"noise{n}.wav", steady(1.5, seed=100 + n))
    return speech, noise


@pytest.fixture
def folders(tmp_path):
    return make_folders(tmp_path)


def one_item(tmp_path, **changes):
    speech = write(tmp_path / "speech.wav", burst(1.0, 0.2, 0.8))
    noise = write(tmp_path / "noise.wav", steady(3.0))
    item = {
        "speech_wav": str(speech),
        "speech_start_s": 0.0,
        "speech_stop_s": 1.0,
        "noise_wav": str(noise),
        "noise_start_s": 0.5,
        "noise_span_s": [0.0, 3.0],
        "snr_db": 5.0,
        "snr_range": "5-15",
        "speech": [[0.2, 0.8]],
        "speech_level_db": -25.0,
        "duration": 1.0,
        "speaker": "a",
    }
    return {**item, **changes}


# ------------------------------------------------------------------ reading


def test_read_audio_gives_the_piece(tmp_path):
    ramp = np.arange(1600) / 3200
    path = write(tmp_path / "a.wav", ramp)
    piece = vad_data.read_audio(path, 0.025, 0.05)
    assert piece.dtype == np.float32
    assert np.allclose(piece, ramp[400:800], atol=1e-4)


def test_read_audio_averages_channels(tmp_path):
    stereo = np.stack([np.full(160, 0.5), np.full(160, -0.1)], axis=1)
    path = write(tmp_path / "a.wav", stereo)
    assert np.allclose(vad_data.read_audio(path), 0.2, atol=1e-4)


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_read_audio_resamples(tmp_path, rate):
    def tone(rate):
        return 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)

    path = write(tmp_path / "a.wav", tone(rate), rate)
    signal = vad_data.read_audio(path, sample_rate=RATE)
    assert len(signal) == RATE
    assert np.abs(signal - tone(RATE))[500:-500].max() < 0.01


def test_bad_files_are_named(tmp_path):
    empty = write(tmp_path / "empty.wav", np.zeros(0))
    garbage = tmp_path / "garbage.wav"
    garbage.write_bytes(b"this is no audio" * 100)
    zero_bytes = tmp_path / "zero.flac"
    zero_bytes.touch()
    bad = np.zeros(1600)
    bad[7] = np.nan
    nan = tmp_path / "nan.wav"
    sf.write(nan, bad, RATE, subtype="FLOAT")
    bad[7] = np.inf
    inf = tmp_path / "inf.wav"
    sf.write(inf, bad, RATE, subtype="FLOAT")
    cut = write(tmp_path / "cut.flac", steady(2.0))
    cut.write_bytes(cut.read_bytes()[:20000])
    short = write(tmp_path / "short.wav", np.zeros(1600))
    cases = [
        (empty, "empty"),
        (garbage, "unreadable"),
        (zero_bytes, "unreadable"),
        (nan, "NaN or Inf"),
        (inf, "NaN or Inf"),
        (cut, "unreadable|truncated"),
        (short, "lasts 0.100 s, asked for 0.000 to 1.000"),
    ]
    for path, reason in cases:
        stop_s = 1.0 if path == short else None
        with pytest.raises(ValueError, match=reason) as error:
            vad_data.read_audio(path, stop_s=stop_s)
        assert str(path) in str(error.value)
    with pytest.raises(FileNotFoundError, match="absent.wav does not exist"):
        vad_data.read_audio(tmp_path / "absent.wav")


# ------------------------------------------------------------------- mixing


@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 20.0])
def test_mixture_has_the_ratio(snr_db):
    segments = [[0.3, 0.7]]
    speech = burst(1.0, 0.3, 0.7, level=0.05)
    # Half of the noise is digital silence: it must not count.
    noise = np.concatenate([steady(0.5), np.zeros(RATE // 2)])
    mixture = vad_data.mix_at_snr(speech, noise, segments, snr_db)
    assert mixture.dtype == torch.float32
    assert mixture.shape == (RATE,)
    added = mixture.double().numpy() - speech
    part = slice(round(0.3 * RATE), round(0.7 * RATE))
    level = np.sqrt(np.mean(speech[part] ** 2))
    noise_level = np.sqrt(np.mean(added[: RATE // 2] ** 2))
    assert 20 * np.log10(level / noise_level) == pytest.approx(snr_db, abs=0.01)
    assert np.abs(added[RATE // 2 :]).max() < 1e-6


def test_mixture_does_not_clip():
    speech = burst(1.0, 0.0, 1.0, level=0.9)
    mixture = vad_data.mix_at_snr(speech, steady(1.0), [[0.0, 1.0]], -5.0)
    assert float(mixture.abs().max()) == pytest.approx(vad_data.MAX_PEAK)


def test_noise_in_a_pause_is_as_loud_as_elsewhere():
    mixture = vad_data.mix_at_snr(
        np.zeros(RATE), steady(0.3), [], 10.0, speech_level_db=-30.0
    )
    level_db = 20 * np.log10(float(mixture.square().mean().sqrt()))
    assert level_db == pytest.approx(-40.0, abs=0.01)


def test_silent_and_empty_noise_are_refused():
    speech = burst(1.0, 0.0, 1.0)
    with pytest.raises(ValueError, match="noise is silent"):
        vad_data.mix_at_snr(speech, np.zeros(100), [[0.0, 1.0]], 0.0)
    with pytest.raises(ValueError, match="noise is empty"):
        vad_data.mix_at_snr(speech, np.zeros(0), [[0.0, 1.0]], 0.0)


def test_labels():
    labels = vad_data.frame_labels([[0.07, 0.1], [0.295, 0.3]], 31)
    assert labels.nonzero().flatten().tolist() == [7, 8, 9]
    # 0.1 + 0.2 is a little more than 0.3.
    assert vad_data.frame_labels([[0.1 + 0.2, 0.4]], 41)[30] == 1
    assert vad_data.frame_labels([], 4).tolist() == [0, 0, 0, 0]
    # A segment of n hops has n frames, wherever it begins on the grid.
    for start in range(50):
        segment = [start / 100, (start + 13) / 100]
        assert int(vad_data.frame_labels([segment], 101).sum()) == 13


def test_item_is_filled_and_noise_goes_round(tmp_path):
    item = one_item(tmp_path, duration=2.0, noise_start_s=2.5)
    wav = vad_data.load_item(item).numpy()
    assert wav.shape == (2 * RATE,)
    speech = vad_data.read_audio(item["speech_wav"])
    noise = vad_data.read_audio(item["noise_wav"])
    # 0.5 s to the end of the noise, then from its beginning.
    added = wav.copy()
    added[:RATE] -= speech
    expected = np.roll(noise, RATE // 2)[: 2 * RATE]
    gain = added @ expected / (expected @ expected)
    assert np.allclose(added, gain * expected, atol=1e-4)


# -------------------------------------------------------------- preparation


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


# ---------------------------------------------------------- check_manifests


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


# --------------------------------------------------------------- random_mix


def make_items(tmp_path, n_items, n_noises=3):
    item = one_item(tmp_path)
    data = {}
    for n in range(n_noises):
        write(tmp_path / f"noise{n}.wav", steady(2.0, seed=n))
    for i in range(n_items):
        path = write(tmp_path / f"{i}.wav", burst(1.0, 0.2, 0.8, seed=i))
        noise = str(tmp_path / f"noise{i % n_noises}.wav")
        data[f"item{i}"] = {
            **item,
            "speech_wav": str(path),
            "noise_wav": noise,
            "noise_span_s": [0.0, 2.0],
        }
    return data


def test_random_mix_depends_on_seed_epoch_and_item_only(tmp_path):
    data = make_items(tmp_path, 4)

    def mixtures(seed, epoch):
        loader = vad_data.ItemLoader(data, random_mix=True, seed=seed)
        loader.set_epoch(epoch)
        return [loader(item_id)[0] for item_id in data]

    first = mixtures(1, 3)
    assert all(map(torch.equal, first, mixtures(1, 3)))
    assert not any(map(torch.equal, first, mixtures(1, 4)))
    assert not any(map(torch.equal, first, mixtures(2, 3)))
    loader = vad_data.ItemLoader(data, random_mix=True)
    drawn = [loader.draw("item0")]
    for epoch in range(60):
        loader.set_epoch(epoch)
        drawn.append(loader.draw("item0"))
    assert len({item["noise_wav"] for item in drawn}) == 3
    assert {item["snr_range"] for item in drawn} == {
        name for name, _, _ in vad_data.SNR_RANGES
    }
    assert all(item["speech"] == [[0.2, 0.8]] for item in drawn)


def test_random_mix_survives_a_lost_file(tmp_path, caplog):
    data = make_items(tmp_path, 120)
    loader = vad_data.ItemLoader(data, random_mix=True)
    (tmp_path / "5.wav").unlink()
    with caplog.at_level(logging.WARNING):
        wav, labels = loader("item5")
    assert "5.wav does not exist" in caplog.text
    other, other_labels = loader("item6")
    assert torch.equal(wav, other)
    assert torch.equal(labels, other_labels)
    # A second bad item of 120 is more than 1 %.
    (tmp_path / "7.wav").write_bytes(b"broken")
    with pytest.raises(RuntimeError, match="2 of 120 items failed.*7.wav"):
        loader("item7")
    # Without random_mix the error comes at once.
    with pytest.raises(FileNotFoundError, match="5.wav"):
        vad_data.ItemLoader(data)("item5")


def test_loader_in_a_pipeline_with_workers(tmp_path):
    data = make_items(tmp_path, 4)
    loader = vad_data.ItemLoader(data, random_mix=True)
    dataset = DynamicItemDataset(data)
    dataset.add_dynamic_item(loader.pipeline())
    dataset.set_output_keys(["id", "wav", "labels"])
    batches = torch.utils.data.DataLoader(
        dataset, batch_size=4, num_workers=1, persistent_workers=True
    )
    for epoch in (1, 2):
        loader.set_epoch(epoch)
        (batch,) = batches
        assert batch["id"] == list(data)
        for i, item_id in enumerate(data):
            wav, labels = loader(item_id)
            assert torch.equal(batch["wav"][i], wav)
            assert torch.equal(batch["labels"][i], labels)


def test_random_mix_needs_noise(tmp_path):
    item = one_item(tmp_path, noise_wav=None)
    with pytest.raises(ValueError, match="no item of the manifest has noise"):
        vad_data.ItemLoader({"a": item}, random_mix=True)


# -------------------------------------------------------------------- sample

SAMPLE = Path(vad_data.__file__).parent / "sample"


def sample_rows(name):
    """Rows of a CSV of the sample."""
    with open(SAMPLE / name, encoding="utf-8", newline="") as fin:
        return list(csv.DictReader(fin))


def test_labels_of_the_sample_are_where_the_sound_is():
    """Of one utterance in eight; Opus has shifted nothing."""
    segments = sample_rows("speech/segments.csv")
    gaps = []
    for row in sample_rows("speech/utterances.csv")[::8]:
        signal = vad_data.read_audio(SAMPLE / "speech/ogg" / f"{row['id']}.ogg")
        assert len(signal) / RATE == pytest.approx(
            float(row["duration_s"]), abs=0.006
        )
        own = [
            [float(x["start_s"]), float(x["end_s"])]
            for x in segments
            if x["id"] == row["id"]
        ]
        n_frames = len(signal) // 160
        labels = vad_data.frame_labels(own, n_frames).numpy() > 0
        power = np.square(signal[: n_frames * 160]).reshape(-1, 160).mean(1)
        gaps.append(10 * np.log10(power[labels].mean() / power[~labels].mean()))
    assert len(gaps) > 40 and min(gaps) > 10


def test_the_sample_in_the_preparation(tmp_path):
    """Speakers and noises are apart; all splits have enough."""
    manifests, paths, roots = prepare(
        tmp_path, SAMPLE / "speech", SAMPLE / "noise", segment_s=4.0
    )
    assert_splits_are_apart(manifests)
    vad_manifests.check_manifests(paths, roots)
    assert [len(m) > 20 for m in manifests] == [True] * 3
    speech_s = sum(b - a for i in manifests[0].values() for a, b in i["speech"])
    assert 0.25 < speech_s / (4 * len(manifests[0])) < 0.75


def test_the_sample_is_attributed():
    """Author, licence and address of each noise; the licence of the speech."""
    rows = sample_rows("noise/clips.csv")
    assert {row["source_licence"] for row in rows} == {"CC0", "CC-BY"}
    for row in rows:
        assert row["source_author"] and "freesound" in row["source_url"]
    assert "Apache License" in (SAMPLE / "speech" / "LICENSE").read_text()
    size = sum(path.stat().st_size for path in SAMPLE.rglob("*"))
    assert size < 10e6


def test_excerpts_of_sparse_noise_are_not_silent(tmp_path, folders):
    """Half a minute of digital silence with 0.8 s of sound."""
    speech, noise = folders
    for path in noise.iterdir():
        path.unlink()
    for n in range(3):
        signal = burst(30.0, 10.0, 10.6, 44100, seed=n)
        signal += burst(30.0, 29.0, 29.1, 44100, seed=n)
        signal += burst(30.0, 0.0, 0.1, 44100, seed=n)
        write(noise / f"{n}.wav", signal, 44100)
    _, paths, roots = prepare(tmp_path, speech, noise, mixes_per_segment=4)
    for manifest in vad_manifests.check_manifests(paths, roots):
        loader = vad_data.ItemLoader(manifest, random_mix=True)
        for item_id, item in manifest.items():
            # Silent noise is an error, as is a failed draw below.
            assert vad_data.load_item(item).isfinite().all()
            assert loader.load(item_id)[0].isfinite().all()
