"""Small folders of speech and noise for the tests of the VAD recipe."""

import csv
import json
from pathlib import Path

import numpy as np
import soundfile as sf
import vad_prepare

RATE = 16000


SPLITS = ("train", "valid", "test")


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
