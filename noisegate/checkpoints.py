"""What SpeechBrain's checkpoints lack for runs that go on to the bit.

Authors
 * The noisegate developers, 2026
"""

import os
import zipfile
from pathlib import Path

import torch
from speechbrain.utils.checkpoints import (
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from speechbrain.utils.logger import get_logger

logger = get_logger(__name__)


@register_checkpoint_hooks
class RandomState:
    """The state of torch's random generators, for checkpoints.

    SpeechBrain's checkpoints do not hold it, but dropout and gate noise
    depend on it: with it a resumed run equals the uninterrupted one.
    """

    def __init__(self):
        self.pending = None

    @mark_as_saver
    def save(self, path):
        """Saves the present state."""
        state = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            state["cuda"] = torch.cuda.get_rng_state()
        torch.save(state, path)

    @mark_as_loader
    def load(self, path, end_of_epoch):
        """Reads a state, which :meth:`restore` brings into force."""
        self.pending = torch.load(path, map_location="cpu")

    def restore(self):
        """Brings a loaded state into force, once.

        Ranks other than 0 get a state of their own, derived from the saved
        one, because each has to draw its own noise.
        """
        if self.pending is None:
            return
        torch.set_rng_state(self.pending["cpu"])
        if "cuda" in self.pending and torch.cuda.is_available():
            torch.cuda.set_rng_state(self.pending["cuda"])
        rank = int(os.environ.get("RANK", 0))
        if rank > 0:
            seed = int(torch.randint(2**31, (1,))) + rank
            torch.manual_seed(seed)
        self.pending = None


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
