#!/usr/bin/env python3
"""Trains a voice activity detector that learns its own size.

> python train.py hparams/crnn_gated.yaml [--data_folder=/path/to/speech
      --noise_folder=/path/to/noise]

With --gate_layers=[] the model stays dense, with --budgets=[0.5,0.25] it is cut
again and again. The test runs on the compacted
model, which is saved in <output_folder>/compact; figures are in
<output_folder>/result.json.

Authors
 * The noisegate developers, 2026
"""

import json
import os
import sys

import speechbrain as sb
import torch
from feature_cache import FeatureCache
from hyperpyyaml import load_hyperpyyaml
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.utils.distributed import if_main_process, run_on_main
from vad_data import ItemLoader, frame_labels
from vad_manifests import check_manifests

from noisegate.evaluation.chain import run_stages
from noisegate.evaluation.files import without_paths, write_atomically
from noisegate.evaluation.recorded import RecordedBrain, tensorboard_logger


class VADBrain(RecordedBrain):
    """Frame-wise binary classification."""

    def compute_forward(self, batch, stage):
        """Computes the score of each frame, (batch, time)."""
        batch = batch.to(self.device)
        gain_db = torch.zeros(len(batch.id), 1, device=self.device)
        if stage == sb.Stage.TRAIN and self.hparams.max_gain_db:
            gain_db = self.hparams.max_gain_db * (
                1 - 2 * torch.rand_like(gain_db)
            )
        if self.hparams.feature_cache is None:
            wavs, lens = batch.wav
            feats = self.modules.compute_features(wavs * 10 ** (gain_db / 20))
        else:
            feats, lens = batch.feats
            # They are log-mel features, in dB
            feats = self.open_features(feats + gain_db.unsqueeze(-1))
        epoch = self.hparams.epoch_counter.current
        feats = self.modules.mean_var_norm(feats, lens, epoch=epoch)
        return self.modules.model(feats).squeeze(-1), lens

    def compute_objectives(self, predictions, batch, stage):
        """Computes the cross-entropy, in training with the complexity."""
        scores, lens = predictions
        labels, _ = batch.labels
        loss = self.hparams.compute_cost(
            scores.float(), labels.float(), length=lens
        )
        if stage != sb.Stage.TRAIN:
            self.frame_stats.append(
                batch.id,
                scores.float(),
                labels,
                lens,
                batch.snr_range,
                batch.speaker,
            )
        loss = self.taught(loss, predictions, stage, lens)
        return loss + self.complexity_term(stage)

    def on_stage_start(self, stage, epoch=None):
        """Resets the metrics, new mixtures if they are drawn on the fly."""
        super().on_stage_start(stage, epoch)
        if stage == sb.Stage.TRAIN:
            if self.item_loader is not None:
                self.item_loader.set_epoch(epoch)
        else:
            self.frame_stats = self.hparams.frame_stats()

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Logs metrics and widths, saves checkpoints."""
        super().on_stage_end(stage, stage_loss, epoch)
        if stage == sb.Stage.TRAIN:
            self.train_loss = stage_loss
            return
        stats = self.frame_stats.summarize(self.threshold)
        stats = {"loss": float(stage_loss), **stats}
        if stage == sb.Stage.VALID:
            old_lr, new_lr = self.hparams.lr_annealing(epoch)
            sb.nnet.schedulers.update_learning_rate(self.optimizer, new_lr)
            self.log_stats(epoch, old_lr, {"loss": self.train_loss}, stats)
            # Only a model that meets the budget can be the best one
            meta = {"EER": stats["EER"]} if self.widths_are_final else {}
            self.checkpointer.save_and_keep_only(meta=meta, min_keys=["EER"])
        else:
            self.hparams.train_logger.log_stats(
                stats_meta={
                    "Epoch loaded": self.hparams.epoch_counter.current,
                    **self.gate_stats(),
                },
                test_stats=stats,
            )
            self.test_stats = stats


def dataio_prep(hparams):
    """Creates the datasets; features are computed once and kept.

    Arguments
    ---------
    hparams : dict
        The hyperparameters.

    Returns
    -------
    datasets : dict of str to DynamicItemDataset
        "train", "valid" and "test".
    item_loader : ItemLoader or None
        What mixes the training set, if that is done on the fly.
    """
    from vad_prepare import manifest_roots

    if hparams["random_mix"] and hparams["feature_cache"] is not None:
        raise ValueError(
            "random_mix draws new mixtures in each epoch, which cannot be "
            "cached: set feature_cache to null"
        )
    splits = ("train", "valid", "test")
    manifests = check_manifests(
        [hparams[f"{split}_annotation"] for split in splits],
        manifest_roots(hparams["data_folder"], hparams["noise_folder"]),
        hparams["skip_bad_files"],
    )
    hop_ms = hparams["compute_features"].compute_STFT.hop_length
    hop_ms = 1000 * hop_ms / hparams["sample_rate"]
    datasets, item_loader = {}, None
    for split, manifest in zip(splits, manifests):
        dataset = DynamicItemDataset(manifest)
        if hparams["feature_cache"] is None:
            loader = ItemLoader(
                manifest,
                hparams["sample_rate"],
                hop_ms=hop_ms,
                random_mix=hparams["random_mix"] and split == "train",
                seed=hparams["data_seed"],
            )
            item_loader = loader if split == "train" else item_loader
            dataset.add_dynamic_item(loader.pipeline())
            keys = ["id", "wav", "labels", "snr_range", "speaker"]
        else:
            keys = ["id", "feats", "labels", "snr_range", "speaker"]
            add_cached_features(dataset, hparams, hop_ms)
        dataset.set_output_keys(keys)
        datasets[split] = dataset
    return datasets, item_loader


def add_cached_features(dataset, hparams, hop_ms):
    """Adds "feats" from a cache on disk, and "labels", to a dataset."""
    cache = FeatureCache(  # one process computes, the others wait for it
        dataset.data,
        hparams["compute_features"],
        hparams["feature_cache"],
        hparams["sample_rate"],
    )

    @sb.utils.data_pipeline.takes("id", "speech")
    @sb.utils.data_pipeline.provides("feats", "labels")
    def pipeline(item_id, speech):
        feats = cache[item_id]
        yield feats
        yield frame_labels(speech, len(feats), hop_ms)

    dataset.add_dynamic_item(pipeline)


def write_results(brain, hparams, overrides, valid_stats, test_stats):
    """Saves the compacted model and the figures of the run."""
    folder = hparams["output_folder"]
    compact_folder = os.path.join(folder, "compact")
    hop = hparams["compute_features"].compute_STFT.hop_length
    if not os.path.exists(compact_folder):
        brain.save_compact(
            sys.argv[1],
            overrides,
            compact_folder,
            sample_rate=hparams["sample_rate"],
            threshold=valid_stats["threshold"],
            # For speechbrain.inference.VAD: of its three networks the first
            # returns four dimensions, the second a pair
            time_resolution=hop / hparams["sample_rate"],
            device="cpu",
            interface={
                "cnn": "!new:torch.nn.Unflatten [2, !new:tuple [[-1, 1]]]",
                "rnn": "!new:torch.nn.MaxPool1d [1, null, 0, 1, True]",
                "dnn": "!ref <model>",
            },
        )
    result = {
        "hparams": os.path.basename(sys.argv[1]),
        "overrides": [without_paths(text) for text in sys.argv[2:]],
        "seed": hparams["seed"],
        "budget": hparams["budget"],
        **brain.figures(),
        "epochs": hparams["number_of_epochs"],
        "valid": valid_stats,
        "test": test_stats,
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

    from vad_prepare import prepare_vad

    run_on_main(
        prepare_vad,
        kwargs={
            "data_folder": hparams["data_folder"],
            "noise_folder": hparams["noise_folder"],
            "save_folder": hparams["save_folder"],
            "train_annotation": hparams["train_annotation"],
            "valid_annotation": hparams["valid_annotation"],
            "test_annotation": hparams["test_annotation"],
            "layout": hparams["layout"],
            "segment_s": hparams["segment_s"],
            "mixes_per_segment": hparams["mixes_per_segment"],
            "sample_rate": hparams["sample_rate"],
            "seed": hparams["data_seed"],
            "utterances_csv": hparams["utterances_csv"],
            "segments_csv": hparams["segments_csv"],
            "channel": hparams["channel"],
            "skip_bad_files": hparams["skip_bad_files"],
            "skip_prep": hparams["skip_prep"],
        },
    )
    datasets, item_loader = dataio_prep(hparams)

    brain = VADBrain(
        modules=hparams["modules"],
        opt_class=hparams["opt_class"],
        gate_opt_class=hparams["gate_opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )
    brain.item_loader = item_loader
    brain.threshold = None

    brain.fit(
        brain.hparams.epoch_counter,
        datasets["train"],
        datasets["valid"],
        train_loader_kwargs=hparams["train_dataloader_opts"],
        valid_loader_kwargs=hparams["valid_dataloader_opts"],
    )

    # Both on the compacted model; the threshold is chosen on valid
    brain.evaluate(
        datasets["valid"],
        min_key="EER",
        test_loader_kwargs=hparams["test_dataloader_opts"],
    )
    valid_stats = brain.test_stats
    brain.threshold = valid_stats["threshold"]
    brain.evaluate(
        datasets["test"],
        min_key="EER",
        test_loader_kwargs=hparams["test_dataloader_opts"],
    )
    if if_main_process():
        brain.frame_stats.write(
            os.path.join(hparams["output_folder"], "trials.txt")
        )
        write_results(brain, hparams, overrides, valid_stats, brain.test_stats)


if __name__ == "__main__":
    hparams_file, run_opts, overrides = sb.parse_arguments(sys.argv[1:])
    sb.utils.distributed.ddp_init_group(run_opts)
    run_stages(run, hparams_file, run_opts, overrides)
