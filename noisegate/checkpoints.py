"""What SpeechBrain's checkpoints lack for runs that go on to the bit.

Authors
 * The noisegate developers, 2026
"""

import hashlib
import json
import os
import random
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
        self.seed = torch.initial_seed()
        # Shared with the workers: those that persist are not told otherwise
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()

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
        own = getattr(dataset, "__getitems__", None)
        self.own = own.own if isinstance(own, Batches) else own

    def __call__(self, indices):
        """Returns the items (list)."""
        self.seeds.set("items", int(self.seeds.epoch), *indices)
        if self.own is not None:
            return self.own(indices)
        return [self.dataset[index] for index in indices]


@register_checkpoint_hooks
class Checksums:
    """The hashes of the other files of a checkpoint: has to be saved last."""

    @mark_as_saver
    def save(self, path):
        """Notes the files that are there already."""
        files = set(Path(path).parent.iterdir()) - {Path(path)}
        hashes = {file.name: _hash(file) for file in files}
        Path(path).write_text(json.dumps(hashes), encoding="utf-8")

    @mark_as_loader
    def load(self, path, end_of_epoch):
        """They were compared before, by :func:`set_aside_broken`."""


def _hash(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def append_epoch(path, epoch, line):
    """Appends a line to a history, in the place of those of this epoch and
    later ones, which a run that was stopped may have written."""
    path = Path(path)
    before = path.read_text("utf-8").splitlines() if path.exists() else []
    before = [text for text in before if json.loads(text)["epoch"] < epoch]
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text("\n".join([*before, line, ""]), encoding="utf-8")
    os.replace(temporary, path)


def set_aside_broken(checkpointer):
    """Renames checkpoints that are not whole, so that the one before is used.

    SpeechBrain writes their files one by one and the description first: what
    was being written when the process ended could not be loaded. The
    checkpointer has to know all its recoverables, with "checksums".
    """
    names = [f"{name}.ckpt" for name in checkpointer.recoverables]
    for folder in Path(checkpointer.checkpoints_dir).glob("CKPT+*"):
        try:
            text = (folder / "checksums.ckpt").read_text("utf-8")
            hashes = {**json.loads(text)}
        except (FileNotFoundError, TypeError, ValueError):  # another file
            hashes = {"checksums.ckpt": None}
        broken = [
            name
            for name in dict.fromkeys((*hashes, *names))
            if not (folder / name).is_file()
            or (name in hashes and hashes[name] != _hash(folder / name))
        ]
        if broken:
            target = folder.with_name(f"incomplete_{folder.name}")
            folder.rename(target)
            logger.warning(
                f"{folder} is damaged or incomplete ({', '.join(broken)}) and "
                f"is not used; renamed to {target.name}"
            )
