#!/usr/bin/env python3
"""Trains an anti-spoofing model that learns its own size.

> python train.py hparams/resnet34_gated.yaml --data_folder=/path/to/LA
> python train.py hparams/mini_resnet34_gated_all.yaml   # makes its own data

With --gate_layers=[] the model stays dense. The test runs on the compacted
model, which is saved in <output_folder>/compact; figures are in
<output_folder>/result.json, scores in scores.txt.

Authors
 * The noisegate developers, 2026
"""

import functools
import importlib
import json
import os
import sys

import speechbrain as sb
import torch
from asvspoof_prepare import prepare_asvspoof
from asvspoof_protocols import find_asv_scores, read_asv_scores
from hyperpyyaml import load_hyperpyyaml
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.dataio.sampler import ReproducibleWeightedRandomSampler
from speechbrain.utils.distributed import if_main_process, run_on_main

from noisegate.evaluation.audio import read_audio
from noisegate.evaluation.chain import run_stages
from noisegate.evaluation.files import without_paths, write_atomically
from noisegate.evaluation.recorded import RecordedBrain, tensorboard_logger
from noisegate.evaluation.tdcf import asv_errors
from noisegate.extras import extra


class SpoofingBrain(RecordedBrain):
    """Bona fide or spoof, one score per utterance."""

    def compute_forward(self, batch, stage):
        """Computes the score of each utterance, (batch,)."""
        batch = batch.to(self.device)
        feats, lens = batch.sig
        train = stage == sb.Stage.TRAIN
        if train and self.hparams.wav_augment is not None:
            feats, lens = self.hparams.wav_augment(feats, lens)
        if hasattr(self.modules, "compute_features"):  # else from waveforms
            feats = self.modules.compute_features(feats)
            feats = self.modules.mean_var_norm(feats, lens)
        if train and self.hparams.fea_augment is not None:
            feats, lens = self.hparams.fea_augment(feats, lens)
        return self.modules.model(feats, lens).flatten()

    def compute_objectives(self, predictions, batch, stage):
        """Computes the loss, in training with the complexity."""
        scores = predictions.float()
        labels = torch.tensor(
            [label == "bonafide" for label in batch.label],
            device=scores.device,
        ).int()
        if stage == sb.Stage.TRAIN:
            for augment in (self.hparams.wav_augment, self.hparams.fea_augment):
                if augment is not None:
                    labels = augment.replicate_labels(labels)
        else:
            self.utterance_scores.append(
                batch.id, scores, labels, batch.attack, batch.speaker
            )
        loss = self.hparams.compute_cost(scores, labels)
        loss = self.taught(loss, predictions, stage)
        return loss + self.complexity_term(stage)

    def on_stage_start(self, stage, epoch=None):
        """Resets the metrics, draws other crops."""
        super().on_stage_start(stage, epoch)
        if stage == sb.Stage.TRAIN:
            if self.crop_sampler is not None:
                self.crop_sampler.set_epoch(epoch)
        else:
            self.utterance_scores = self.hparams.utterance_scores()

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Logs metrics and widths, saves checkpoints."""
        super().on_stage_end(stage, stage_loss, epoch)
        if stage == sb.Stage.TRAIN:
            self.train_loss = stage_loss
            return
        stats = self.utterance_scores.summarize(
            self.calibration, self.asv, by_attack=False
        )
        stats = {"loss": float(stage_loss), **stats}
        if stage == sb.Stage.VALID:
            old_lr, new_lr = self.hparams.lr_annealing(epoch)
            sb.nnet.schedulers.update_learning_rate(self.optimizer, new_lr)
            self.log_stats(epoch, old_lr, {"loss": self.train_loss}, stats)
            # Only a model that meets the budget can be the best one. Cllr
            # tells epochs apart that all have an EER of 0
            meta = {"Cllr": stats["Cllr"]} if self.widths_are_final else {}
            self.checkpointer.save_and_keep_only(meta=meta, min_keys=["Cllr"])
        else:
            self.hparams.train_logger.log_stats(
                stats_meta={
                    "Epoch loaded": self.hparams.epoch_counter.current,
                    **self.gate_stats(),
                },
                test_stats=stats,
            )
            self.test_loss = float(stage_loss)


def load_utterance(path, length_s, sample_rate, segment_s, crop):
    """Loads an utterance, repeated if it is shorter than a segment.

    Arguments
    ---------
    path : str
        Of the audio file, mono.
    length_s : float
        Its length in seconds.
    sample_rate : int
        In Hz.
    segment_s : float
        Length of a segment in seconds.
    crop : bool
        Whether exactly one segment is wanted, from a random place; else the
        whole utterance, of one segment at least.

    Returns
    -------
    torch.Tensor
        (samples,)
    """
    n_samples = round(length_s * sample_rate)
    n_segment = round(segment_s * sample_rate)
    if n_samples > n_segment and crop:
        start = int(torch.randint(n_samples - n_segment + 1, (1,)))
        # Only this part of the file is decoded
        part = start / sample_rate, (start + n_segment) / sample_rate
        return torch.from_numpy(read_audio(path, *part, sample_rate))
    wav = torch.from_numpy(read_audio(path, sample_rate=sample_rate))
    if len(wav) < n_segment:
        wav = wav.repeat(-(-n_segment // len(wav)))[:n_segment]
    return wav


def dataio_prep(hparams):
    """Creates the datasets, and what balances the classes in training.

    Arguments
    ---------
    hparams : dict
        The hyperparameters.

    Returns
    -------
    datasets : dict of str to DynamicItemDataset
        "train", "valid" and "test".
    sampler : ReproducibleWeightedRandomSampler or None
        Draws training utterances such that the share of bona fide ones is
        `bonafide_share`; None if that is null.
    """
    datasets = {}
    for split in ("train", "valid", "test"):
        dataset = DynamicItemDataset.from_json(
            json_path=hparams[f"{split}_annotation"],
            replacements={"data_root": hparams["data_folder"]},
        )
        if split != "train":  # so that a batch has little padding
            dataset = dataset.filtered_sorted(sort_key="length")

        dataset.add_dynamic_item(
            functools.partial(
                load_utterance,
                sample_rate=hparams["sample_rate"],
                segment_s=hparams["segment_s"],
                crop=split == "train",
            ),
            takes=["wav", "length"],
            provides="sig",
        )
        dataset.set_output_keys(["id", "sig", "label", "attack", "speaker"])
        datasets[split] = dataset

    share = hparams["bonafide_share"]
    if share is None:
        return datasets, None
    if not 0 < share < 1:
        raise ValueError(f"bonafide_share must be in (0, 1), got {share}")
    train = datasets["train"]
    labels = [train.data[i]["label"] for i in train.data_ids]
    counts = {label: labels.count(label) for label in ("bonafide", "spoof")}
    weights = {
        "bonafide": share / counts["bonafide"],
        "spoof": (1 - share) / counts["spoof"],
    }
    sampler = ReproducibleWeightedRandomSampler(
        [weights[label] for label in labels],
        num_samples=len(labels),
        replacement=True,
        seed=hparams["seed"],
    )
    return datasets, sampler


def load_asv_errors(hparams, split):
    """Error rates of the organizers' speaker verification, by attack.

    Arguments
    ---------
    hparams : dict
        The hyperparameters.
    split : str
        "valid" or "test".

    Returns
    -------
    dict of str to AsvErrors
        By attack, and "all"; None where the data have no such scores (then
        there is no t-DCF).
    """
    paths = find_asv_scores(hparams["data_folder"], hparams["protocol_folder"])
    if split == "test" and hparams["layout"].startswith("2021"):
        split = "test_2021"
    if split not in paths:
        return None
    scores = read_asv_scores(paths[split], hparams["phase"])
    target, nontarget, spoof = (
        torch.as_tensor(scores[kind])
        for kind in ("target", "nontarget", "spoof")
    )
    errors = {"all": asv_errors(target, nontarget, spoof)}
    for attack in sorted(set(scores["attack"])):
        mine = torch.tensor([a == attack for a in scores["attack"]])
        errors[attack] = asv_errors(target, nontarget, spoof[mine])
    return errors


def write_results(brain, hparams, overrides, valid, test, intervals):
    """Saves the compacted model and the figures of the run."""
    widths, cost = brain.gates.integer_widths(), brain.gates.cost
    folder = hparams["output_folder"]
    compact_folder = os.path.join(folder, "compact")
    if not os.path.exists(compact_folder):
        brain.save_compact(
            sys.argv[1],
            overrides,
            compact_folder,
            sample_rate=hparams["sample_rate"],
            calibration_scale=valid["calibration_scale"],
            calibration_offset=valid["calibration_offset"],
        )
    result = {
        "hparams": os.path.basename(sys.argv[1]),
        "overrides": [without_paths(text) for text in sys.argv[2:]],
        "seed": hparams["seed"],
        "budget": hparams["budget"],
        **brain.figures(),
        "segment_s": hparams["segment_s"],
        "macs": cost.macs(widths),
        "macs_full": cost.macs(),
        "epochs": hparams["number_of_epochs"],
        "valid": valid,
        "test": test,
        "test_intervals_95": intervals,
    }
    write_atomically(
        os.path.join(folder, "result.json"), json.dumps(result, indent=2)
    )


def run(hparams_file, run_opts, overrides):
    """Trains, cuts, tests and saves one model.

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
    )
    if hparams["use_tensorboard"]:
        hparams["tensorboard_train_logger"] = tensorboard_logger(
            hparams["output_folder"]
        )

    if hparams["n_bootstraps"]:
        with extra("asvspoof"):  # not only behind the training
            importlib.import_module("confidence_intervals")
    if hparams["make_mini_la"]:
        from mini_la import make_mini_la

        run_on_main(
            make_mini_la,
            kwargs={
                "folder": hparams["data_folder"],
                "speech_folder": hparams["speech_folder"],
                "speakers_csv": hparams["speakers_csv"],
            },
        )
    for key in ("speech_folder", "speakers_csv"):
        if hparams[key] is not None and not hparams["make_mini_la"]:
            raise ValueError(
                f"{key} is {hparams[key]}, but no Mini-LA is made of it: "
                "make_mini_la is False"
            )
    run_on_main(
        prepare_asvspoof,
        kwargs={
            "data_folder": hparams["data_folder"],
            "save_folder": hparams["save_folder"],
            "train_annotation": hparams["train_annotation"],
            "valid_annotation": hparams["valid_annotation"],
            "test_annotation": hparams["test_annotation"],
            "layout": hparams["layout"],
            "protocol_folder": hparams["protocol_folder"],
            "phase": hparams["phase"],
            "skip_bad_files": hparams["skip_bad_files"],
            "skip_prep": hparams["skip_prep"],
        },
    )
    datasets, sampler = dataio_prep(hparams)
    train_opts = dict(hparams["train_dataloader_opts"])
    train_opts.update({"sampler": sampler} if sampler else {"shuffle": True})

    brain = SpoofingBrain(
        modules=hparams["modules"],
        opt_class=hparams["opt_class"],
        gate_opt_class=hparams["gate_opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )
    brain.crop_sampler = sampler
    brain.calibration = None
    brain.asv = None

    brain.fit(
        brain.hparams.epoch_counter,
        datasets["train"],
        datasets["valid"],
        train_loader_kwargs=train_opts,
        valid_loader_kwargs=hparams["valid_dataloader_opts"],
    )

    # Both on the compacted model; scores are calibrated on valid
    stats = {}
    for split in ("valid", "test"):
        brain.asv = load_asv_errors(hparams, split)
        brain.evaluate(
            datasets[split],
            min_key="Cllr",
            test_loader_kwargs=hparams["test_dataloader_opts"],
        )
        stats[split] = {
            "loss": brain.test_loss,
            **brain.utterance_scores.summarize(brain.calibration, brain.asv),
        }
        brain.calibration = (
            stats["valid"]["calibration_scale"],
            stats["valid"]["calibration_offset"],
        )
    if if_main_process():
        brain.utterance_scores.write(
            os.path.join(hparams["output_folder"], "scores.txt")
        )
        brain.utterance_scores.write_trials(
            os.path.join(hparams["output_folder"], "trials.txt")
        )
        test_intervals = None
        if hparams["n_bootstraps"]:
            test_intervals = brain.utterance_scores.intervals(
                brain.calibration,
                brain.asv,
                n_bootstraps=hparams["n_bootstraps"],
            )
        write_results(
            brain,
            hparams,
            overrides,
            stats["valid"],
            stats["test"],
            test_intervals,
        )


if __name__ == "__main__":
    hparams_file, run_opts, overrides = sb.parse_arguments(sys.argv[1:])
    sb.utils.distributed.ddp_init_group(run_opts)
    run_stages(run, hparams_file, run_opts, overrides)
