"""Features of the VAD recipe, kept on disk.

Authors
 * The noisegate developers, 2026
"""

import copy
import hashlib
import inspect
import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import speechbrain
import torch
import vad_data
from filelock import FileLock
from speechbrain.utils.logger import get_logger
from vad_data import load_item

from noisegate.evaluation.files import write_atomically

logger = get_logger(__name__)

_PLAIN = (bool, int, float, str, tuple, list, type(None))


def _code(kind):
    """A hash of the file that a class or module is in."""
    return hashlib.sha256(Path(inspect.getfile(kind)).read_bytes()).hexdigest()


def _settings(compute_features):
    """All that a front-end and the code around it hold."""
    front_end = {}
    for name, module in compute_features.named_modules():
        front_end[name] = {
            "class": type(module).__qualname__,
            "code": _code(type(module)),
            **{
                key: repr(value)
                for key, value in vars(module).items()
                if isinstance(value, _PLAIN) and key != "training"
            },
        }
        tensors = {k: x for k, x in vars(module).items() if torch.is_tensor(x)}
        tensors.update(module.named_parameters(recurse=False))
        tensors.update(module.named_buffers(recurse=False))
        for key, tensor in tensors.items():  # such as the window of an STFT
            values = tensor.detach().cpu().contiguous().numpy()
            digest = hashlib.sha256(values.tobytes()).hexdigest()
            front_end[name][key] = digest
    return {
        "front_end": front_end,
        "speechbrain": speechbrain.__version__,
        "code": _code(vad_data),
    }


def _files(data):
    """Size and time of each file that items name."""
    paths = {item["speech_wav"] for item in data.values()}
    paths |= {item["noise_wav"] for item in data.values()} - {None}
    found = {path: os.stat(path) for path in sorted(paths)}
    return {p: (f.st_size, f.st_mtime_ns) for p, f in found.items()}


class FeatureCache:
    """Features of every item of a manifest, computed once and kept on disk.

    They are stored as one float32 array (items, frames, channels) in a .npy
    file, read by a memory map, with a .json index beside it. The name of both
    holds a hash of all that the features depend on: the items (with labels),
    size and time of their files, state and code of the front-end, the code
    that mixes. What changes gets another cache. The index is written last, when
    the array is complete: an interrupted computation leaves no cache. One
    process computes at a time, others wait for it.

    Arguments
    ---------
    data : dict
        Items by id, for example ``DynamicItemDataset.data``.
    compute_features : torch.nn.Module
        Maps waveforms (1, time) to features (1, frames, channels).
    cache_folder : str
        Where the files are.
    sample_rate : int
        In Hz.

    Example
    -------
    >>> import soundfile
    >>> from speechbrain.lobes.features import Fbank
    >>> path = getfixture("tmpdir").join("tone.wav").strpath
    >>> soundfile.write(path, 0.1 * np.ones(1600), 16000)
    >>> item = dict.fromkeys(vad_data.ITEM_KEYS)
    >>> item.update(speech_wav=path, speech_start_s=0, speech_stop_s=0.1)
    >>> item.update(speech=[[0.0, 0.05]], duration=0.1)
    >>> folder = getfixture("tmpdir").join("cache").strpath
    >>> cache = FeatureCache({"a": item}, Fbank(n_mels=24), folder)
    >>> cache["a"].shape
    torch.Size([11, 24])
    """

    def __init__(self, data, compute_features, cache_folder, sample_rate=16000):
        if not data:
            raise ValueError("data has no items, expected at least one")
        settings = {"sample_rate": sample_rate, **_settings(compute_features)}
        content = json.dumps([data, _files(data), settings], sort_keys=True)
        key = hashlib.sha256(content.encode()).hexdigest()[:20]
        folder = Path(cache_folder)
        self.array_path = folder / f"features_{key}.npy"
        self.index_path = folder / f"features_{key}.json"
        self.row = {item_id: i for i, item_id in enumerate(data)}
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".features_{key}.lock"):
            self.reused = self._is_complete(list(data))
            if not self.reused:
                self._compute(data, compute_features, settings, sample_rate)
        self._open()

    def _open(self):
        self.features = np.load(self.array_path, mmap_mode="r")

    def _is_complete(self, ids):
        try:
            index = json.loads(self.index_path.read_text(encoding="utf-8"))
            array = np.load(self.array_path, mmap_mode="r")
            return index["ids"] == ids and index["shape"] == list(array.shape)
        except (OSError, ValueError, KeyError, TypeError):
            return False

    @torch.no_grad()
    def _compute(self, data, compute_features, settings, sample_rate):
        temporary = self.array_path.with_name(
            f".{self.array_path.name}.{os.getpid()}.tmp"
        )
        array = None
        # What it notes when it is called is no setting
        compute_features = copy.deepcopy(compute_features)
        try:
            for row, (item_id, item) in enumerate(data.items()):
                wav = load_item(item, sample_rate)
                features = compute_features(wav.unsqueeze(0))
                features = features[0].cpu().float().numpy()
                if array is None:
                    shape = (len(data), *features.shape)
                    self._check_space(4 * math.prod(shape))
                    array = np.lib.format.open_memmap(
                        temporary, "w+", np.float32, shape
                    )
                if features.shape != array.shape[1:]:
                    raise ValueError(
                        f"item {item_id} has features of shape "
                        f"{features.shape}, the first one {array.shape[1:]}; "
                        "a cache needs items of equal duration"
                    )
                if not np.isfinite(features).all():
                    raise ValueError(
                        f"item {item_id} ({item['speech_wav']}) has features "
                        "with NaN or Inf"
                    )
                array[row] = features
            array.flush()
            os.replace(temporary, self.array_path)
        finally:
            temporary.unlink(missing_ok=True)
        index = {
            "ids": list(data),
            "shape": list(array.shape),
            "settings": settings,
        }
        write_atomically(self.index_path, json.dumps(index))
        logger.info(
            "features of %d items (%.0f MB) stored in %s",
            len(data),
            array.nbytes / 1e6,
            self.array_path,
        )

    def _check_space(self, n_bytes):
        # A memory map on a full disk ends the process by a signal.
        free = shutil.disk_usage(self.array_path.parent).free
        if free < n_bytes:
            raise OSError(
                f"cache_folder {self.array_path.parent} has {free / 1e6:.0f} "
                f"MB free, the features need {n_bytes / 1e6:.0f} MB"
            )

    def __len__(self):
        return len(self.row)

    def __getitem__(self, item_id):
        return torch.from_numpy(np.array(self.features[self.row[item_id]]))

    def __getstate__(self):
        # A pickled memory map would become a copy in each worker.
        return {**self.__dict__, "features": None}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._open()
