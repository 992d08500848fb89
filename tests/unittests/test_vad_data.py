"""Data preparation, mixing, labels and cache of the VAD recipe."""

import csv
import logging
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
import vad_data
import vad_manifests
from speechbrain.dataio.dataset import DynamicItemDataset

from tests.unittests.vad_folders import (
    RATE,
    assert_splits_are_apart,
    burst,
    one_item,
    prepare,
    steady,
    write,
)


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


SAMPLE = Path(vad_data.__file__).resolve().parent / "sample"


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
