#!/usr/bin/env python3
"""Trains a student of a known teacher.

> python train.py hparams/student_gated.yaml --teacher_widths=[8]
      --budget=0.125

With --gate_layers=[] the student stays as it is; with --budgets=[0.5,0.25] it
is cut again and again. Figures are in <output_folder>/result.json.

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
from speechbrain.utils.distributed import if_main_process
from teachers import Teacher, synthesize

from noisegate.evaluation.chain import run_stages
from noisegate.evaluation.files import without_paths, write_atomically
from noisegate.evaluation.recorded import RecordedBrain, tensorboard_logger


class StudentBrain(RecordedBrain):
    """Regression."""

    def compute_forward(self, batch, stage):
        """Computes the estimate (batch, time, n_features)."""
        batch = batch.to(self.device)
        return self.modules.model(batch.x.data)

    def compute_objectives(self, predictions, batch, stage):
        """Computes the squared error, in test that on clean targets."""
        target = batch.clean if stage == sb.Stage.TEST else batch.y
        error = torch.nn.functional.mse_loss(predictions, target.data)
        error = self.taught(error, predictions, stage)
        return error + self.complexity_term(stage)

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Logs errors and widths, saves the checkpoint."""
        super().on_stage_end(stage, stage_loss, epoch)
        if stage == sb.Stage.TRAIN:
            self.train_loss = stage_loss
            return
        self.stats = {"loss": stage_loss}
        if stage == sb.Stage.TEST:
            return
        old_lr, new_lr = self.hparams.lr_annealing(epoch)
        sb.nnet.schedulers.update_learning_rate(self.optimizer, new_lr)
        self.log_stats(epoch, old_lr, {"loss": self.train_loss}, self.stats)
        self.checkpointer.save_and_keep_only()  # the last epoch is tested


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


def run(hparams_file, run_opts, overrides):
    """Trains, cuts, tests and saves one student.

    Arguments
    ---------
    hparams_file : str
        Path of the YAML.
    run_opts : dict
        SpeechBrain's run options.
    overrides : str or dict
        Overrides of the YAML.
    """
    with open(hparams_file, encoding="utf-8") as fin:
        hparams = load_hyperpyyaml(fin, overrides)

    sb.create_experiment_directory(
        experiment_directory=hparams["output_folder"],
        hyperparams_to_save=hparams_file,
        overrides=overrides,
        save_env_desc=False,  # would take as long as a run
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

    brain = StudentBrain(
        modules=hparams["modules"],
        opt_class=hparams["opt_class"],
        gate_opt_class=hparams["gate_opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )
    brain.fit(
        brain.hparams.epoch_counter,
        datasets["train"],
        datasets["valid"],
        train_loader_kwargs=hparams["train_dataloader_opts"],
        valid_loader_kwargs=hparams["valid_dataloader_opts"],
    )

    # Both on the compacted model and on clean targets
    stats = {}
    for split in ("valid", "test"):
        brain.evaluate(
            datasets[split], test_loader_kwargs=hparams["test_dataloader_opts"]
        )
        stats[split] = brain.stats
    # A run may have been killed behind this
    folder = os.path.join(hparams["output_folder"], "compact")
    if not os.path.exists(folder):
        brain.save_compact(hparams_file, overrides)
    if if_main_process():
        result = {
            "hparams": os.path.basename(hparams_file),
            "overrides": [without_paths(text) for text in sys.argv[2:]],
            "seed": hparams["seed"],
            "budget": hparams["budget"],
            **brain.figures(),
            "epochs": hparams["number_of_epochs"],
            **stats,
        }
        path = os.path.join(hparams["output_folder"], "result.json")
        write_atomically(path, json.dumps(result, indent=2))


if __name__ == "__main__":
    hparams_file, run_opts, overrides = sb.parse_arguments(sys.argv[1:])
    sb.utils.distributed.ddp_init_group(run_opts)
    run_stages(run, hparams_file, run_opts, overrides)
