"""A Brain that keeps figures of its run, for tables and for TensorBoard.

Authors
 * The noisegate developers, 2026
"""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import speechbrain as sb
import torch
from speechbrain.utils.checkpoints import (
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from speechbrain.utils.distributed import if_main_process
from speechbrain.utils.logger import get_logger
from speechbrain.utils.train_logger import TensorboardLogger

from noisegate import __version__
from noisegate.brain import GatedBrain
from noisegate.evaluation.files import write_atomically
from noisegate.extras import extra

logger = get_logger(__name__)


def _commit():
    """The commit of the repository that the started program is in."""
    try:
        git = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=os.path.dirname(os.path.abspath(sys.argv[0])),
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:  # no git, or no such folder
        return "unknown"
    return git.stdout.strip() or "unknown"


def _forget_epochs(path, epoch):
    """Takes what a run that was stopped has logged of an epoch, and behind
    it, out of a train log of SpeechBrain."""
    if not os.path.exists(path):
        return
    with open(path, encoding="utf-8") as fin:
        lines = fin.readlines()
    for number, line in enumerate(lines):
        found = re.match(r"epoch: (\d+)\b", line)
        if not found or int(found[1]) >= epoch:
            write_atomically(path, "".join(lines[:number]))
            return


@register_checkpoint_hooks
class Stopwatch:
    """Seconds of training, with those before a run was stopped."""

    def __init__(self):
        self.seconds, self.began = 0.0, None

    def start(self):
        """Begins an epoch, or goes on with one."""
        self.began = time.perf_counter()

    def stop(self):
        """Ends it."""
        self.seconds, self.began = self._now(), None

    def _now(self):
        running = 0 if self.began is None else time.perf_counter() - self.began
        return self.seconds + running

    @mark_as_saver
    def save(self, path):
        """Saves the seconds up to now."""
        Path(path).write_text(str(self._now()), encoding="utf-8")

    @mark_as_loader
    def load(self, path, end_of_epoch):
        """Loads them; those of the best epoch, behind the last, are fewer."""
        saved = float(Path(path).read_text(encoding="utf-8"))
        self.seconds = max(self.seconds, saved)


def tensorboard_logger(output_folder):
    """Returns the logger that :meth:`RecordedBrain.log_stats` looks for: for
    the key ``tensorboard_train_logger``.

    Arguments
    ---------
    output_folder : str
        It logs to <output_folder>/tensorboard.

    Returns
    -------
    speechbrain.utils.train_logger.TensorboardLogger

    Raises
    ------
    ImportError
        If the package tensorboard is not installed.
    """
    with extra("tensorboard"):
        return TensorboardLogger(os.path.join(output_folder, "tensorboard"))


class RecordedBrain(GatedBrain):
    """Says what to write of the run, and logs to TensorBoard.

    Optional in hparams: ``train_logger`` and ``tensorboard_train_logger`` (of
    :func:`tensorboard_logger`), which ``log_stats`` writes to.

    Arguments
    ---------
    *args : tuple
        Passed to ``GatedBrain``.
    **kwargs : dict
        Passed to ``GatedBrain``.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._steps = self._board = None
        self.stopwatch = Stopwatch()
        self._commit = _commit()  # now: the repository may move on meanwhile

    def make_dataloader(self, dataset, stage, *args, **loader_kwargs):
        """See ``sb.Brain.make_dataloader``; in training without a last batch
        of one item, from which batch normalization cannot estimate."""
        given = {k: v for k, v in loader_kwargs.items() if v is not None}
        size = given.get("batch_size", 1)
        free = "batch_sampler" not in given and not given.get("drop_last")
        free &= not isinstance(dataset, torch.utils.data.IterableDataset)
        if stage == sb.Stage.TRAIN and free and size > 1:
            processes = int(os.environ.get("WORLD_SIZE", 1))
            n_items = -(-len(given.get("sampler", dataset)) // processes)
            if n_items > 1 and n_items % size == 1:
                loader_kwargs["drop_last"] = True
                logger.warning(
                    f"The last of {n_items} items would be a batch of its own "
                    f"(batch_size is {size}): it is left out of each epoch"
                )
        return super().make_dataloader(dataset, stage, *args, **loader_kwargs)

    def on_fit_start(self):
        """See ``sb.Brain.on_fit_start``."""
        if self.checkpointer is not None:
            self.checkpointer.add_recoverable("stopwatch", self.stopwatch)
        super().on_fit_start()

    def on_stage_start(self, stage, epoch=None):
        """See ``sb.Brain.on_stage_start``."""
        super().on_stage_start(stage, epoch)
        if stage == sb.Stage.TRAIN:
            self.stopwatch.start()

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """See ``sb.Brain.on_stage_end``."""
        if stage == sb.Stage.TRAIN:
            self.stopwatch.stop()
        super().on_stage_end(stage, stage_loss, epoch)

    def on_evaluate_start(self, max_key=None, min_key=None):
        """See ``sb.Brain.on_evaluate_start``; keeps the number of steps."""
        if self._steps is None:
            self._steps = self.optimizer_step  # is loaded with the best epoch
        super().on_evaluate_start(max_key=max_key, min_key=min_key)

    def figures(self, widths=None):
        """Returns what to write of the final model into ``result.json``.

        A dict with "widths" by group (those of the gates if None are given);
        "params"; "macs_per_second", "macs_per_second_full" (at full width) and
        "macs_by_layer" (full and final, per second of audio);
        "activations_per_second" (number of values); "complexity_weight" (the
        last one); "steps" (optimizer steps of the whole training, which may
        have gone on after the epoch that was best); "train_seconds" (wall
        clock, all epochs, without validation); "device", "threads", and
        "versions" with the commit of the program that was started.
        """
        cost = self.gates.cost
        widths = self.gates.integer_widths() if widths is None else widths
        full, final = cost.macs_by_layer(), cost.macs_by_layer(widths)
        return {
            "widths": {**cost.sizes, **widths},
            "params": cost.params(widths),
            "macs_per_second": cost.macs_per_second(widths),
            "macs_per_second_full": cost.macs_per_second(),
            "macs_by_layer": {
                layer: [macs, final.get(layer, 0)]
                for layer, macs in full.items()
            },
            "activations_per_second": cost.activations(widths) / cost.seconds,
            "complexity_weight": self.complexity_loss.weight,
            "steps": self._steps or self.optimizer_step,
            "train_seconds": self.stopwatch.seconds,
            "device": str(self.device),
            "threads": torch.get_num_threads(),
            "versions": {
                "noisegate": __version__,
                "commit": self._commit,
                "torch": torch.__version__,
                "speechbrain": sb.__version__,
            },
        }

    def log_stats(self, epoch, lr, train_stats, valid_stats):
        """Logs an epoch with its widths: train log and, if any, TensorBoard.

        TensorBoard shows epochs as steps, also in a run that was resumed
        (SpeechBrain's logger counts its calls, which start anew then).
        """
        meta = {"lr": lr, **self.gate_stats()}
        if if_main_process():
            _forget_epochs(self.hparams.train_logger.save_file, epoch)
        self.hparams.train_logger.log_stats(
            {"epoch": epoch, **meta}, train_stats, valid_stats
        )
        board = getattr(self.hparams, "tensorboard_train_logger", None)
        if board is None or board.writer is None:  # in the main process only
            return
        if self._board is None and len(os.listdir(board.save_dir)) > 1:
            # Takes back what a run that was stopped has logged of these epochs
            board.writer.close()
            make = type(board.writer)
            board.writer = make(board.save_dir, purge_step=epoch)
        self._board = board
        # With a slash TensorBoard shows the widths side by side
        values = {k.replace("width ", "width/", 1): v for k, v in meta.items()}
        values.update((f"{k}/train", v) for k, v in train_stats.items())
        values.update((f"{k}/valid", v) for k, v in valid_stats.items())
        for tag, value in values.items():
            board.writer.add_scalar(tag, value, epoch)
        board.writer.flush()
