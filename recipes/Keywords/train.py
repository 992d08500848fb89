#!/usr/bin/env python3
"""Trains a recognizer of keywords that learns its own size.

> python train.py hparams/tc_resnet8_gated.yaml [--data_folder=/path/to/data]

One call trains the dense network, then cuts it to one budget after the other
(key ``budgets``); with --budgets=null to one budget at once, with
--gate_layers=[] besides to none. Tests run on compacted models, which are saved
in <output_folder>/<budget>/compact; figures are in chain.md there, and in the
result.json of each budget.

Authors
 * The noisegate developers, 2026
"""

import json
import os
import sys
from functools import partial

import speechbrain as sb
import torch
from hyperpyyaml import load_hyperpyyaml
from keywords_prepare import check_labels, prepare_keywords
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.dataio.encoder import CategoricalEncoder
from speechbrain.utils.distributed import if_main_process, run_on_main

from noisegate.evaluation.audio import read_audio
from noisegate.evaluation.chain import run_stages
from noisegate.evaluation.classes import ClassScores
from noisegate.evaluation.files import without_paths, write_atomically
from noisegate.evaluation.recorded import RecordedBrain, tensorboard_logger


class KeywordBrain(RecordedBrain):
    """Classification of clips of one length."""

    def compute_forward(self, batch, stage):
        """Computes the scores of the classes, (batch, n_classes)."""
        batch = batch.to(self.device)
        if self.hparams.keep_features:
            feats = self.open_features(batch.feats.data)
        else:
            feats = self.modules.compute_features(batch.wav.data)
        lens = torch.ones(len(feats), device=self.device)
        epoch = self.hparams.epoch_counter.current
        feats = self.modules.mean_var_norm(feats, lens, epoch=epoch)
        if stage == sb.Stage.TRAIN:
            feats = self.hparams.augment(feats)
        return self.modules.model(feats).flatten(1)

    def compute_objectives(self, predictions, batch, stage):
        """Computes the cross-entropy, in training with teacher and
        complexity."""
        labels = batch.label_index.to(self.device)
        loss = torch.nn.functional.cross_entropy(predictions, labels)
        if stage != sb.Stage.TRAIN:
            self.scores.append(batch.id, predictions, labels, batch.speaker)
            return loss
        loss = self.taught(loss, predictions, stage)
        return loss + self.complexity_term(stage)

    def on_stage_start(self, stage, epoch=None):
        """Resets the metrics."""
        super().on_stage_start(stage, epoch)
        self.scores = ClassScores()

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Logs metrics and widths, saves checkpoints."""
        super().on_stage_end(stage, stage_loss, epoch)
        if stage == sb.Stage.TRAIN:
            self.train_loss = stage_loss
            return
        stats = {"loss": float(stage_loss), **self.scores.summarize()}
        if stage == sb.Stage.VALID:
            old_lr, new_lr = self.hparams.lr_annealing(epoch)
            sb.nnet.schedulers.update_learning_rate(self.optimizer, new_lr)
            self.log_stats(epoch, old_lr, {"loss": self.train_loss}, stats)
            # Only a model that meets the budget can be the best one
            meta = {}
            if self.widths_are_final:
                meta = {"error_rate": stats["error_rate"]}
            self.checkpointer.save_and_keep_only(
                meta=meta, min_keys=["error_rate"]
            )
        else:
            self.test_stats = stats


def dataio_prep(hparams, kept):
    """Creates the datasets.

    Arguments
    ---------
    hparams : dict
        The hyperparameters.
    kept : dict
        Features that have been computed, for all stages of a chain.

    Returns
    -------
    datasets : dict of str to DynamicItemDataset
        "train", "valid" and "test".
    labels : CategoricalEncoder
        Of the classes.
    """
    front_end = hparams["compute_features"]
    n_samples = round(hparams["segment_s"] * hparams["sample_rate"])

    @sb.utils.data_pipeline.takes("wav", "start_s", "duration_s")
    @sb.utils.data_pipeline.provides("wav")
    def read(wav, start_s, duration_s):
        """One clip, padded or cut to the length of all."""
        stop_s = None if duration_s is None else start_s + duration_s
        signal = read_audio(wav, start_s, stop_s, hparams["sample_rate"])
        signal = torch.from_numpy(signal[:n_samples])
        return torch.nn.functional.pad(signal, (0, n_samples - len(signal)))

    @sb.utils.data_pipeline.takes("id", "wav", "start_s", "duration_s")
    @sb.utils.data_pipeline.provides("feats")
    def features(item_id, wav, start_s, duration_s):
        """Its features, computed once."""
        bands = front_end.compute_fbanks.n_mels
        settings = hparams["sample_rate"], hparams["n_fft"], bands, n_samples
        key = (item_id, wav, start_s, *settings)
        if key not in kept:
            with torch.no_grad():
                signal = read(wav, start_s, duration_s)
                kept[key] = front_end(signal[None])[0]
        return kept[key]

    labels = CategoricalEncoder()
    labels.add_unk = False

    @sb.utils.data_pipeline.takes("label")
    @sb.utils.data_pipeline.provides("label_index")
    def index(label):
        return labels.encode_label(label)

    datasets = {}
    for split in ("train", "valid", "test"):
        dataset = DynamicItemDataset.from_json(hparams[f"{split}_annotation"])
        audio = "feats" if hparams["keep_features"] else "wav"
        dataset.add_dynamic_item(features if audio == "feats" else read)
        dataset.add_dynamic_item(index)
        dataset.set_output_keys(["id", audio, "label_index", "speaker"])
        datasets[split] = dataset
    names = {item["label"] for item in datasets["train"].data.values()}
    labels.load_or_create(
        os.path.join(hparams["save_folder"], "label_encoder.txt"),
        from_iterables=[sorted(names)],
    )
    return datasets, labels


def run(hparams_file, run_opts, overrides, kept):
    """Trains, cuts, tests and saves one network.

    Arguments
    ---------
    hparams_file : str
        Path of the YAML.
    run_opts : dict
        SpeechBrain's run options.
    overrides : str or dict
        Overrides of the YAML.
    kept : dict
        See :func:`dataio_prep`.
    """
    with open(hparams_file, encoding="utf-8") as fin:
        hparams = load_hyperpyyaml(fin, overrides)
    folder = hparams["output_folder"]
    sb.create_experiment_directory(
        experiment_directory=folder,
        hyperparams_to_save=hparams_file,
        overrides=overrides,
        save_env_desc=False,
    )
    if hparams["use_tensorboard"]:
        hparams["tensorboard_train_logger"] = tensorboard_logger(folder)
    run_on_main(
        prepare_keywords,
        kwargs={
            "data_folder": hparams["data_folder"],
            "save_folder": hparams["save_folder"],
            "train_annotation": hparams["train_annotation"],
            "valid_annotation": hparams["valid_annotation"],
            "test_annotation": hparams["test_annotation"],
            "n_classes": hparams["n_classes"],
            "sample_rate": hparams["sample_rate"],
            "seed": hparams["data_seed"],
            "skip_prep": hparams["skip_prep"],
        },
    )
    datasets, labels = dataio_prep(hparams, kept)
    check_labels(labels, hparams["teacher_folder"])

    brain = KeywordBrain(
        modules=hparams["modules"],
        opt_class=hparams["opt_class"],
        gate_opt_class=hparams["gate_opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )
    brain.label_encoder = labels
    brain.fit(
        brain.hparams.epoch_counter,
        datasets["train"],
        datasets["valid"],
        train_loader_kwargs=hparams["train_dataloader_opts"],
        valid_loader_kwargs=hparams["valid_dataloader_opts"],
    )

    # Both on the compacted model
    stats = {}
    for split in ("valid", "test"):
        brain.evaluate(
            datasets[split],
            min_key="error_rate",
            test_loader_kwargs=hparams["test_dataloader_opts"],
        )
        stats[split] = brain.test_stats
    hparams["train_logger"].log_stats(
        stats_meta={
            "Epoch loaded": hparams["epoch_counter"].current,
            **brain.gate_stats(),
        },
        test_stats=stats["test"],
    )
    if not if_main_process():
        return
    compact = os.path.join(folder, "compact")
    if not os.path.exists(compact):  # a run may have been killed behind this
        brain.save_compact(
            hparams_file,
            overrides,
            compact,
            sample_rate=hparams["sample_rate"],
            # For speechbrain.inference.classifiers.EncoderClassifier
            interface={
                "embedding_model": "!ref <model>",
                "classifier": "!new:torch.nn.Identity",
            },
        )
    brain.scores.write(os.path.join(folder, "decisions.csv"), labels)
    brain.scores.write_trials(os.path.join(folder, "trials.txt"))
    result = {
        "hparams": os.path.basename(hparams_file),
        "overrides": [without_paths(text) for text in sys.argv[2:]],
        "seed": hparams["seed"],
        "budget": hparams["budget"],
        **brain.figures(),
        "epochs": hparams["number_of_epochs"],
        **stats,
        "test_intervals_95": brain.scores.intervals(),
    }
    path = os.path.join(folder, "result.json")
    write_atomically(path, json.dumps(result, indent=2))


if __name__ == "__main__":
    hparams_file, run_opts, overrides = sb.parse_arguments(sys.argv[1:])
    sb.utils.distributed.ddp_init_group(run_opts)
    run_stages(partial(run, kept={}), hparams_file, run_opts, overrides)
