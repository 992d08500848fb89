"""Trains a voice activity detector.

> python train.py train.yaml --data_folder=/path/to/data
"""

import sys

import speechbrain as sb
import torch
from data import make_datasets
from hyperpyyaml import load_hyperpyyaml


class VADBrain(sb.Brain):
    """Speech or not, every 10 ms."""

    def compute_forward(self, batch, stage):
        """Computes a logit for each frame (batch, time)."""
        batch = batch.to(self.device)
        wavs, lens = batch.sig
        if stage == sb.Stage.TRAIN:  # augmentation of its own
            wavs = wavs + 0.001 * torch.randn_like(wavs) * self.loudness
        feats = self.hparams.compute_features(wavs)
        feats = self.modules.mean_var_norm(feats, lens)
        feats = feats.detach()
        outputs = self.modules.cnn(feats)
        outputs = outputs.reshape(*outputs.shape[:2], -1)
        outputs, _ = self.modules.rnn(outputs)
        return self.modules.dnn(outputs), lens

    def compute_objectives(self, predictions, batch, stage):
        """Computes the binary cross entropy."""
        predictions, lens = predictions
        targets, _ = batch.target
        predictions = predictions[:, : targets.shape[-1], 0]
        return self.hparams.compute_cost(predictions, targets, lens)

    def on_stage_start(self, stage, epoch=None):
        """Sets how loud the noise is."""
        self.loudness = 1.0

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Logs, saves checkpoints."""
        if stage == sb.Stage.TRAIN:
            self.train_loss = stage_loss
            return
        stats = {"loss": stage_loss}
        if stage == sb.Stage.VALID:
            self.hparams.train_logger.log_stats(
                stats_meta={"epoch": epoch},
                train_stats={"loss": self.train_loss},
                valid_stats=stats,
            )
            self.checkpointer.save_and_keep_only(meta=stats, min_keys=["loss"])
        else:
            self.hparams.train_logger.log_stats(
                stats_meta={"Epoch loaded": self.hparams.epoch_counter.current},
                test_stats=stats,
            )


def dataio_prep(hparams):
    """Creates the datasets."""

    @sb.utils.data_pipeline.takes("speech", "duration")
    @sb.utils.data_pipeline.provides("target")
    def target_pipeline(speech, duration):
        target = torch.zeros(int(duration * 100))
        for start, end in speech:
            target[int(start * 100) : int(end * 100)] = 1
        return target

    return make_datasets(hparams, [target_pipeline], ["target"])


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
    brain = VADBrain(
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
        train_loader_kwargs=hparams["dataloader_opts"],
        valid_loader_kwargs=hparams["dataloader_opts"],
    )
    brain.evaluate(
        datasets["test"],
        min_key="loss",
        test_loader_kwargs=hparams["dataloader_opts"],
    )
