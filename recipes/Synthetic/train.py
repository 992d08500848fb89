#!/usr/bin/env python3
"""Trains a student of a known teacher.

> python train.py hparams/gated.yaml --teacher_widths=[8] --budget=0.125

The rivals are hparams/stochastic.yaml, hparams/pruned.yaml and
hparams/dense.yaml. Figures are in <output_folder>/result.json.

Authors
 * The noisegate developers, 2026
"""

import json
import os
import sys

import speechbrain as sb
import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.utils.checkpoints import (
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from speechbrain.utils.distributed import if_main_process
from speechbrain.utils.logger import get_logger
from teachers import Teacher, synthesize

from noisegate.evaluation.files import write_atomically
from noisegate.evaluation.recorded import RecordedBrain, tensorboard_logger

logger = get_logger(__name__)


@register_checkpoint_hooks
class History(list):
    """Figures of each epoch, in checkpoints too."""

    @mark_as_saver
    def save(self, path):
        """Writes them."""
        with open(path, "w", encoding="utf-8") as out:
            json.dump(self, out)

    @mark_as_loader
    def load(self, path, end_of_epoch):
        """Reads them."""
        with open(path, encoding="utf-8") as fin:
            self[:] = json.load(fin)


class StudentBrain(RecordedBrain):
    """Regression; the error of validation and test is kept by frame."""

    def compute_forward(self, batch, stage):
        """Computes the estimate (batch, time, n_features)."""
        batch = batch.to(self.device)
        return self.modules.model(batch.x.data)

    def compute_objectives(self, predictions, batch, stage):
        """Computes the squared error, in test that on clean targets."""
        target = batch.clean if stage == sb.Stage.TEST else batch.y
        error = (predictions - target.data).square().mean(-1)
        if stage != sb.Stage.TRAIN:
            self.errors.append(error.detach().flatten().double().cpu())
        return error.mean() + self.complexity_term(stage)

    def on_stage_start(self, stage, epoch=None):
        """Resets the errors."""
        super().on_stage_start(stage, epoch)
        self.errors = []

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Logs errors and widths, saves the checkpoint."""
        super().on_stage_end(stage, stage_loss, epoch)
        if stage == sb.Stage.TRAIN:
            self.train_loss = stage_loss
            return
        errors = torch.cat(self.errors)
        self.stats = {
            "loss": float(errors.mean()),
            "standard_error": float(errors.std() / len(errors) ** 0.5),
        }
        if stage == sb.Stage.TEST:
            return
        old_lr, new_lr = self.hparams.lr_annealing(epoch)
        sb.nnet.schedulers.update_learning_rate(self.optimizer, new_lr)
        self.history.append({**self.stats, **self.gate_stats()})
        self.log_stats(epoch, old_lr, {"loss": self.train_loss}, self.stats)
        self.save()

    def on_fit_start(self):
        """Goes on with the figures of a run that is resumed."""
        if self.checkpointer is not None:
            self.checkpointer.add_recoverable("history", self.history)
        super().on_fit_start()
        if self.history:
            keys = ("loss", "standard_error")
            self.stats = {key: self.history[-1][key] for key in keys}

    def save(self):
        """Keeps the latest state: the last epoch is what is tested."""
        if self.checkpointer is not None:
            self.checkpointer.save_and_keep_only()

    def widths(self):
        """dict of str to int : hidden sizes of the final student."""
        return {**self.gates.cost.sizes, **self.gates.integer_widths()}


class PrunedBrain(StudentBrain):
    """The rival: cut by weight magnitude before ``freeze_epoch``.

    Channels are removed in small steps, those of the smallest weights in all
    layers first (Li et al., 2017), until the budget is met; then the rest is
    retrained. Checkpoints are of the whole model: a run that is resumed
    starts before the cut.
    """

    def on_stage_start(self, stage, epoch=None):
        """Cuts the model at the beginning of ``freeze_epoch``."""
        super().on_stage_start(stage, epoch)
        if stage == sb.Stage.TRAIN and epoch == self.freeze_epoch:
            self._prune()
            lr = self.optimizer.param_groups[0]["lr"]
            self.init_optimizers()
            sb.nnet.schedulers.update_learning_rate(self.optimizer, lr)

    def _prune(self):
        import torch_pruning

        model = self.modules.model
        shape = (1, self.hparams.n_frames, self.hparams.n_features)
        size = sum(self.hparams.hidden_sizes)
        pruner = torch_pruning.pruner.MagnitudePruner(
            model,
            torch.zeros(shape, device=self.device),
            importance=torch_pruning.importance.MagnitudeImportance(p=2),
            global_pruning=True,
            pruning_ratio=1.0,
            max_pruning_ratio=1.0 - 0.5 / size,  # one unit at least
            iterative_steps=size,
            ignored_layers=[model.out.w],
        )
        while self.gates.cost.ratio(self.widths()) > self.hparams.budget:
            pruner.step()

    def save(self):
        """Keeps the latest state before the cut."""
        if self.hparams.epoch_counter.current < self.freeze_epoch:
            super().save()

    def widths(self):
        """dict of str to int : hidden sizes of the final student."""
        return {
            name: self.modules.model[name].w.out_features
            if name in self.modules.model
            else size
            for name, size in self.gates.cost.sizes.items()
        }

    def on_evaluate_start(self, max_key=None, min_key=None):
        """Tests the model at hand."""


def dataio_prep(hparams, teacher):
    """Creates the datasets.

    Arguments
    ---------
    hparams : dict
        The hyperparameters.
    teacher : Teacher
        The teacher.

    Returns
    -------
    dict of str to DynamicItemDataset
        "train", "valid" and "test".
    """

    sizes = {
        "train": hparams["n_train"],
        "valid": hparams["n_valid"],
        "test": hparams["n_test"],
    }
    datasets = {}
    for i, (split, size) in enumerate(sizes.items()):
        data = synthesize(
            teacher,
            size,
            hparams["n_frames"],
            hparams["label_noise"],
            seed=3 * hparams["seed"] + i,
        )
        datasets[split] = DynamicItemDataset(
            data, output_keys=["id", "x", "y", "clean"]
        )
    return datasets


def train(hparams_file, run_opts, overrides, save_env_desc=True):
    """Runs one experiment.

    Arguments
    ---------
    hparams_file : str
        Path of the YAML.
    run_opts : dict
        SpeechBrain's run options.
    overrides : str or dict
        Overrides of the YAML.
    save_env_desc : bool
        Whether to list the installed packages, which takes as long as a run.

    Returns
    -------
    dict
        Its figures; also in <output_folder>/result.json.
    """
    with open(hparams_file, encoding="utf-8") as fin:
        hparams = load_hyperpyyaml(fin, overrides)
    result_file = os.path.join(hparams["output_folder"], "result.json")
    if os.path.exists(result_file):
        logger.warning(f"{result_file} exists: this run is finished")
        with open(result_file, encoding="utf-8") as fin:
            return json.load(fin)
    sb.create_experiment_directory(
        experiment_directory=hparams["output_folder"],
        hyperparams_to_save=hparams_file,
        overrides=overrides,
        save_env_desc=save_env_desc,
    )
    if hparams["use_tensorboard"]:
        hparams["tensorboard_train_logger"] = tensorboard_logger(
            hparams["output_folder"]
        )
    teacher = Teacher(
        hparams["n_features"],
        hparams["teacher_widths"],
        linear=hparams["linear"],
        decay=hparams["decay"],
        seed=hparams["seed"],
    )
    datasets = dataio_prep(hparams, teacher)
    pruned = not hparams["gates"] and hparams["budget"] < 1
    brain = (PrunedBrain if pruned else StudentBrain)(
        modules=hparams["modules"],
        opt_class=hparams["opt_class"],
        gate_opt_class=hparams["gate_opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )
    brain.history = History()
    brain.fit(
        brain.hparams.epoch_counter,
        datasets["train"],
        datasets["valid"],
        train_loader_kwargs=hparams["train_dataloader_opts"],
        valid_loader_kwargs=hparams["valid_dataloader_opts"],
    )
    valid_stats = brain.stats
    brain.evaluate(
        datasets["test"], test_loader_kwargs=hparams["test_dataloader_opts"]
    )
    # The rival is cut in place; a run may have been killed behind this
    folder = os.path.join(hparams["output_folder"], "compact")
    if not pruned and not os.path.exists(folder):
        brain.save_compact(hparams_file, overrides)
    widths, cost = brain.widths(), brain.gates.cost
    result = {
        "seed": hparams["seed"],
        "budget": hparams["complexity_loss"].budget,
        **brain.figures(widths),
        "macs_per_frame": cost.macs(widths) / hparams["n_frames"],
        "valid": valid_stats,
        "test": brain.stats,
        "history": brain.history,
    }
    if if_main_process():
        write_atomically(result_file, json.dumps(result, indent=2))
    return result


if __name__ == "__main__":
    hparams_file, run_opts, overrides = sb.parse_arguments(sys.argv[1:])
    sb.utils.distributed.ddp_init_group(run_opts)
    train(hparams_file, run_opts, overrides)
