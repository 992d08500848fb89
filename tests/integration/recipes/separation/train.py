"""Trains a network that separates two talkers.

> python train.py train.yaml --data_folder=/path/to/data
"""

import sys

import speechbrain as sb
import torch
from data import make_datasets
from hyperpyyaml import load_hyperpyyaml


class Separation(sb.Brain):
    """Waveforms of each talker."""

    def compute_forward(self, mix, targets, stage, noise=None):
        """Separates the mixture into signals (batch, samples, talkers)."""
        mix, mix_lens = mix
        mix, mix_lens = mix.to(self.device), mix_lens.to(self.device)
        targets = torch.cat(
            [targets[i][0].unsqueeze(-1) for i in range(self.hparams.num_spks)],
            dim=-1,
        ).to(self.device)
        mix_w = self.hparams.Encoder(mix)
        est_mask = self.hparams.MaskNet(mix_w)
        mix_w = torch.stack([mix_w] * self.hparams.num_spks)
        sep_h = mix_w * est_mask
        est_source = torch.cat(
            [
                self.hparams.Decoder(sep_h[i]).unsqueeze(-1)
                for i in range(self.hparams.num_spks)
            ],
            dim=-1,
        )
        missing = mix.size(1) - est_source.size(1)
        est_source = torch.nn.functional.pad(est_source, (0, 0, 0, missing))
        return est_source, targets

    def compute_objectives(self, predictions, targets):
        """Computes minus the SI-SNR."""
        return self.hparams.loss(targets, predictions)

    def fit_batch(self, batch):
        """Trains one batch."""
        mixture = batch.mix_sig
        targets = [batch.sig, batch.s2_sig]
        predictions, targets = self.compute_forward(
            mixture, targets, sb.Stage.TRAIN
        )
        loss = self.compute_objectives(predictions, targets).mean()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        return loss.detach().cpu()

    def evaluate_batch(self, batch, stage):
        """Computations needed for validation and test batches."""
        mixture = batch.mix_sig
        targets = [batch.sig, batch.s2_sig]
        with torch.no_grad():
            predictions, targets = self.compute_forward(mixture, targets, stage)
            loss = self.compute_objectives(predictions, targets)
        return loss.mean().detach()

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Logs, saves checkpoints."""
        if stage == sb.Stage.TRAIN:
            self.train_loss = stage_loss
            return
        stats = {"si-snr": stage_loss}
        if stage == sb.Stage.VALID:
            self.hparams.train_logger.log_stats(
                stats_meta={"epoch": epoch},
                train_stats={"loss": self.train_loss},
                valid_stats=stats,
            )
            self.checkpointer.save_and_keep_only(
                meta=stats, min_keys=["si-snr"]
            )
        else:
            self.hparams.train_logger.log_stats(
                stats_meta={"Epoch loaded": self.hparams.epoch_counter.current},
                test_stats=stats,
            )


def dataio_prep(hparams):
    """Creates the datasets."""

    @sb.utils.data_pipeline.takes("sig", "wav2")
    @sb.utils.data_pipeline.provides("s2_sig", "mix_sig")
    def mixing_pipeline(sig, wav2):
        s2_sig = sb.dataio.dataio.read_audio(wav2)
        yield s2_sig
        yield sig + s2_sig

    return make_datasets(hparams, [mixing_pipeline], ["s2_sig", "mix_sig"])


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
    brain = Separation(
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
        min_key="si-snr",
        test_loader_kwargs=hparams["dataloader_opts"],
    )
