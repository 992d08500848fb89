"""The feature cache of the VAD recipe: what changes is computed anew."""

import importlib
import os
import pickle
import sys

import numpy as np
import pytest
import soundfile as sf
import torch
from feature_cache import FeatureCache
from speechbrain.lobes.features import Fbank
from vad_data import ITEM_KEYS, load_item

RATE = 16000


class Energy(torch.nn.Module):
    """Log energy of frames of 10 ms in two halves."""

    def __init__(self, floor=1e-6):
        super().__init__()
        self.floor = floor

    def forward(self, wavs):
        energy = wavs.reshape(1, -1, 2, 80).square().mean(-1)
        return energy.add(self.floor).log()


@pytest.fixture
def data(tmp_path):
    """Two items of one second."""
    items = {}
    for name, seed in (("a", 1), ("b", 2)):
        noise = np.random.default_rng(seed).normal(size=RATE)
        path = tmp_path / f"{name}.wav"
        sf.write(path, 0.1 * noise, RATE)
        item = dict.fromkeys(ITEM_KEYS)
        item.update(speech_wav=str(path), speech_start_s=0.0, duration=1.0)
        item.update(speech_stop_s=1.0, speech=[[0.2, 0.8]])
        items[name] = item
    return items


def test_what_is_cached_equals_direct_computation(tmp_path, data):
    front_end, folder = Energy(), tmp_path / "cache"
    cache = FeatureCache(data, front_end, folder)
    assert len(cache) == 2 and not cache.reused
    for name, item in data.items():
        assert torch.equal(cache[name], front_end(load_item(item)[None])[0])
    # Having been called is no setting
    assert FeatureCache(data, front_end, folder).reused
    # An array without its index is an interrupted computation
    cache.index_path.unlink()
    assert not FeatureCache(data, Energy(), folder).reused
    assert not list(folder.glob("*.tmp"))


def change_audio(data, front_end):
    path = data["a"]["speech_wav"]
    signal, _ = sf.read(path)
    time = os.stat(path).st_mtime_ns
    sf.write(path, 0.5 * signal, RATE)
    os.utime(path, ns=(time + 10**9, time + 10**9))


def change_labels(data, front_end):
    data["a"]["speech"] = [[0.3, 0.8]]


def change_attribute(data, front_end):
    front_end.compute_fbanks.top_db = 300.0


def change_buffer(data, front_end):
    front_end.compute_deltas.kernel += 1.0


def change_window(data, front_end):
    window = torch.hann_window(len(front_end.compute_STFT.window))
    front_end.compute_STFT.window = window


CHANGES = [change_audio, change_labels, change_attribute, change_buffer]
CHANGES += [change_window]


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_is_computed_anew(tmp_path, data, change):
    front_end = Fbank(n_mels=24)
    FeatureCache(data, front_end, tmp_path / "cache")
    assert FeatureCache(data, front_end, tmp_path / "cache").reused
    change(data, front_end)
    cache = FeatureCache(data, front_end, tmp_path / "cache")
    assert not cache.reused
    expected = front_end(load_item(data["a"])[None])[0]
    assert torch.equal(cache["a"], expected)


@pytest.mark.parametrize(
    "options",
    [{"f_min": 100}, {"f_max": 4000}, {"hop_length": 5}, {"deltas": True}],
)
def test_each_setting_of_a_front_end_counts(tmp_path, data, options):
    FeatureCache(data, Fbank(n_mels=24), tmp_path / "cache")
    other = FeatureCache(data, Fbank(n_mels=24, **options), tmp_path / "cache")
    assert not other.reused


def test_the_code_of_a_front_end_counts(tmp_path, data, monkeypatch):
    """Of a class of the user's own, as any other."""
    code = """import torch
class Level(torch.nn.Module):
    def forward(self, wav):
        return {} * wav.unfold(1, 160, 160).square().mean(-1, keepdim=True)
"""
    monkeypatch.syspath_prepend(tmp_path)
    made = []
    for factor in (1, 1, 2):
        (tmp_path / "own_level.py").write_text(code.format(factor))
        monkeypatch.delitem(sys.modules, "own_level", raising=False)
        importlib.invalidate_caches()
        front_end = importlib.import_module("own_level").Level()
        made.append(FeatureCache(data, front_end, tmp_path / "cache"))
    assert [cache.reused for cache in made] == [False, True, False]


def test_a_bad_file_is_named_and_nothing_is_left(tmp_path, data):
    folder = tmp_path / "cache"
    longer = {**data["b"], "duration": 2.0}
    with pytest.raises(ValueError, match="items of equal duration"):
        FeatureCache({"a": data["a"], "b": longer}, Energy(), folder)
    absent = {**data["b"], "speech_wav": str(tmp_path / "absent.wav")}
    with pytest.raises(FileNotFoundError, match="absent.wav"):
        FeatureCache({"a": data["a"], "b": absent}, Energy(), folder)
    assert not list(folder.glob("features*"))


def test_workers_get_the_map_not_a_copy(tmp_path, data):
    cache = FeatureCache(data, Energy(), tmp_path / "cache")
    stored = pickle.dumps(cache)
    assert len(stored) < 2000
    assert torch.equal(pickle.loads(stored)["a"], cache["a"])
