"""What SpeechBrain's checkpoints lack for runs that go on to the bit.

Authors
 * The noisegate developers, 2026
"""

import hashlib
import os
import random
import zipfile
from pathlib import Path

import numpy as np
import torch
from speechbrain.utils.checkpoints import (
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from speechbrain.utils.logger import get_logger

logger = get_logger(__name__)


@register_checkpoint_hooks
class Seeds:
    """Seeds torch, numpy and Python as a function of the run and a place in it.

    What is drawn in a step (noise, dropout, augmentation, crops) depends on
    nothing that was drawn before, so that a run that was stopped goes on to
    the bit; checkpoints hold the seed of the run. Each process draws its own.
    """

    def __init__(self):
        self.seed, self.epoch = torch.initial_seed(), None

    @mark_as_saver
    def save(self, path):
        """Saves the seed of the run."""
        Path(path).write_text(str(self.seed), encoding="utf-8")

    @mark_as_loader
    def load(self, path, end_of_epoch):
        """Loads it."""
        self.seed = int(Path(path).read_text(encoding="utf-8"))

    def at(self, *place):
        """Returns the seed (int) of a place, e.g. an epoch and a step."""
        rank = os.environ.get("RANK", "0")
        text = "/".join(map(str, (self.seed, rank, *place)))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")

    def set(self, *place):
        """Seeds all that draws by default."""
        seed = self.at(*place)
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)


class Batches:
    """Seeds anew for each batch that a dataset gives, also in workers.

    A DataLoader calls it if it is the ``__getitems__`` of the dataset.
    """

    def __init__(self, dataset, seeds):
        self.dataset, self.seeds = dataset, seeds

    def __call__(self, indices):
        """Returns the items (list)."""
        self.seeds.set("items", self.seeds.epoch, *indices)
        return [self.dataset[index] for index in indices]


def set_aside_incomplete(checkpointer):
    """Renames checkpoints that were being written when the process ended.

    SpeechBrain writes their files one by one and the description first, so
    that a run killed meanwhile could not be resumed. The checkpointer has to
    know all its recoverables.
    """
    names = [f"{name}.ckpt" for name in checkpointer.recoverables]
    names.append("CKPT.yaml")
    for folder in Path(checkpointer.checkpoints_dir).glob("CKPT+*"):
        broken = [name for name in names if not _is_whole(folder / name)]
        if broken:
            target = folder.with_name(f"incomplete_{folder.name}")
            folder.rename(target)
            logger.warning(
                f"{folder} is incomplete ({', '.join(broken)}) and is not "
                f"used; renamed to {target.name}"
            )


def _is_whole(path):
    if not path.is_file() or not path.stat().st_size:
        return False
    with open(path, "rb") as fin:
        zipped = fin.read(2) == b"PK"  # as torch saves
    return not zipped or zipfile.is_zipfile(path)
