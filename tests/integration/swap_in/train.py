#!/usr/bin/env python3
"""Trains a keyword recognizer.

> python train.py train.yaml --data_folder=/path/to/keywords
"""

import sys

import speechbrain as sb
from hyperpyyaml import load_hyperpyyaml


class KeywordBrain(sb.Brain):
    """Classification of utterances."""

    def compute_forward(self, batch, stage):
        """Computes the cosine of each keyword, (batch, 1, keywords)."""
        batch = batch.to(self.device)
        wavs, lens = batch.sig
        feats = self.modules.compute_features(wavs)
        feats = self.modules.mean_var_norm(feats, lens)
        embeddings = self.modules.embedding_model(feats, lens)
        return self.modules.classifier(embeddings), lens

    def compute_objectives(self, predictions, batch, stage):
        """Computes the loss."""
        scores, lens = predictions
        labels = batch.label.data
        loss = self.hparams.compute_cost(scores, labels, lens)
        if stage != sb.Stage.TRAIN:
            self.error_stats.append(batch.id, scores, labels, lens)
        return loss

    def on_stage_start(self, stage, epoch=None):
        """Resets the error rate."""
        if stage != sb.Stage.TRAIN:
            self.error_stats = self.hparams.error_stats()

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Logs losses and errors, saves checkpoints."""
        if stage == sb.Stage.TRAIN:
            self.train_loss = stage_loss
            return
        stats = {
            "loss": stage_loss,
            "error": float(self.error_stats.summarize("average")),
        }
        if stage == sb.Stage.VALID:
            old_lr, new_lr = self.hparams.lr_annealing(epoch)
            sb.nnet.schedulers.update_learning_rate(self.optimizer, new_lr)
            self.hparams.train_logger.log_stats(
                stats_meta={"epoch": epoch, "lr": old_lr},
                train_stats={"loss": self.train_loss},
                valid_stats=stats,
            )
            meta = {"error": stats["error"]}
            self.checkpointer.save_and_keep_only(meta=meta, min_keys=["error"])
        else:
            self.hparams.train_logger.log_stats(
                stats_meta={"Epoch loaded": self.hparams.epoch_counter.current},
                test_stats=stats,
            )


def dataio_prep(hparams):
    """Creates the datasets "train", "valid" and "test"."""
    label_encoder = sb.dataio.encoder.CategoricalEncoder()

    @sb.utils.data_pipeline.takes("wav")
    @sb.utils.data_pipeline.provides("sig")
    def audio_pipeline(wav):
        return sb.dataio.dataio.read_audio(wav)

    @sb.utils.data_pipeline.takes("keyword")
    @sb.utils.data_pipeline.provides("label")
    def label_pipeline(keyword):
        return label_encoder.encode_sequence_torch([keyword])

    datasets = {}
    for split in ("train", "valid", "test"):
        datasets[split] = sb.dataio.dataset.DynamicItemDataset.from_json(
            json_path=hparams[f"{split}_annotation"],
            replacements={"data_root": hparams["data_folder"]},
            dynamic_items=[audio_pipeline, label_pipeline],
            output_keys=["id", "sig", "label"],
        )
    label_encoder.load_or_create(
        path=hparams["save_folder"] + "/label_encoder.txt",
        from_didatasets=[datasets["train"]],
        output_key="keyword",
    )
    return datasets


if __name__ == "__main__":
    hparams_file, run_opts, overrides = sb.parse_arguments(sys.argv[1:])
    sb.utils.distributed.ddp_init_group(run_opts)
    with open(hparams_file, encoding="utf-8") as fin:
        hparams = load_hyperpyyaml(fin, overrides)
    sb.create_experiment_directory(
        experiment_directory=hparams["output_folder"],
        hyperparams_to_save=hparams_file,
        overrides=overrides,
    )
    datasets = dataio_prep(hparams)
    brain = KeywordBrain(
        modules=hparams["modules"],
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )
    brain.fit(
        brain.hparams.epoch_counter,
        datasets["train"],
        datasets["valid"],
        train_loader_kwargs=hparams["dataloader_options"],
        valid_loader_kwargs=hparams["dataloader_options"],
    )
    brain.evaluate(
        datasets["test"],
        min_key="error",
        test_loader_kwargs=hparams["dataloader_options"],
    )
