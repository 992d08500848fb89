"""Trains a keyword recognizer.

> python train.py train.yaml --data_folder=/path/to/data
"""

import sys

import speechbrain as sb
from data import make_datasets
from hyperpyyaml import load_hyperpyyaml


class SpeakerBrain(sb.Brain):
    """Classification of utterances."""

    def compute_forward(self, batch, stage):
        """Computes log-probabilities of the commands."""
        batch = batch.to(self.device)
        wavs, lens = batch.sig
        feats = self.modules.compute_features(wavs)
        feats = self.modules.mean_var_norm(feats, lens)
        embeddings = self.modules.embedding_model(feats)
        outputs = self.modules.classifier(embeddings)
        return outputs, lens

    def compute_objectives(self, predictions, batch, stage):
        """Computes the loss."""
        predictions, lens = predictions
        command, _ = batch.command_encoded
        loss = self.hparams.compute_cost(predictions, command, lens)
        if stage != sb.Stage.TRAIN:
            self.error_metrics.append(batch.id, predictions, command, lens)
        return loss

    def on_stage_start(self, stage, epoch=None):
        """Resets the error rate."""
        if stage != sb.Stage.TRAIN:
            self.error_metrics = self.hparams.error_stats()

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Logs, saves checkpoints."""
        if stage == sb.Stage.TRAIN:
            self.train_loss = stage_loss
            return
        stats = {
            "loss": stage_loss,
            "error": float(self.error_metrics.summarize("average")),
        }
        if stage == sb.Stage.VALID:
            self.hparams.train_logger.log_stats(
                stats_meta={"epoch": epoch},
                train_stats={"loss": self.train_loss},
                valid_stats=stats,
            )
            self.checkpointer.save_and_keep_only(meta=stats, min_keys=["error"])
        else:
            self.hparams.train_logger.log_stats(
                stats_meta={"Epoch loaded": self.hparams.epoch_counter.current},
                test_stats=stats,
            )


def dataio_prep(hparams):
    """Creates the datasets."""
    label_encoder = sb.dataio.encoder.CategoricalEncoder()

    @sb.utils.data_pipeline.takes("command")
    @sb.utils.data_pipeline.provides("command_encoded")
    def label_pipeline(command):
        return label_encoder.encode_sequence_torch([command])

    datasets = make_datasets(hparams, [label_pipeline], ["command_encoded"])
    label_encoder.load_or_create(
        path=hparams["save_folder"] + "/label_encoder.txt",
        from_didatasets=[datasets["train"]],
        output_key="command",
    )
    return datasets, label_encoder


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
    datasets, label_encoder = dataio_prep(hparams)
    brain = SpeakerBrain(
        modules=hparams["modules"],
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )
    brain.label_encoder = label_encoder
    brain.fit(
        brain.hparams.epoch_counter,
        datasets["train"],
        datasets["valid"],
        train_loader_kwargs=hparams["dataloader_opts"],
        valid_loader_kwargs=hparams["dataloader_opts"],
    )
    brain.evaluate(
        datasets["test"],
        min_key="error",
        test_loader_kwargs=hparams["dataloader_opts"],
    )
