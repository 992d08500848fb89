"""Trains a recognizer of letters by CTC.

> python train.py train.yaml --data_folder=/path/to/data
"""

import sys

import speechbrain as sb
from data import make_datasets
from hyperpyyaml import load_hyperpyyaml


class ASRBrain(sb.Brain):
    """Letters of words."""

    def compute_forward(self, batch, stage):
        """Computes log-probabilities of the letters."""
        batch = batch.to(self.device)
        wavs, wav_lens = batch.sig
        if stage == sb.Stage.TRAIN and hasattr(self.hparams, "wav_augment"):
            wavs, wav_lens = self.hparams.wav_augment(wavs, wav_lens)
        feats = self.hparams.compute_features(wavs)
        feats = self.modules.normalize(feats, wav_lens)
        out = self.modules.model(feats)
        out = self.modules.output(out)
        return self.hparams.log_softmax(out), wav_lens

    def compute_objectives(self, predictions, batch, stage):
        """Computes the CTC loss."""
        pout, pout_lens = predictions
        letters, letter_lens = batch.letters
        if stage == sb.Stage.TRAIN and hasattr(self.hparams, "wav_augment"):
            letters = self.hparams.wav_augment.replicate_labels(letters)
            letter_lens = self.hparams.wav_augment.replicate_labels(letter_lens)
        loss = self.hparams.compute_cost(pout, letters, pout_lens, letter_lens)
        if stage != sb.Stage.TRAIN:
            sequence = sb.decoders.ctc_greedy_decode(
                pout, pout_lens, blank_id=self.hparams.blank_index
            )
            self.per_metrics.append(
                ids=batch.id,
                predict=sequence,
                target=letters,
                target_len=letter_lens,
                ind2lab=self.label_encoder.decode_ndim,
            )
        return loss

    def on_stage_start(self, stage, epoch=None):
        """Resets the error rate."""
        if stage != sb.Stage.TRAIN:
            self.per_metrics = self.hparams.per_stats()

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Logs, saves checkpoints."""
        if stage == sb.Stage.TRAIN:
            self.train_loss = stage_loss
            return
        stats = {
            "loss": stage_loss,
            "PER": self.per_metrics.summarize("error_rate"),
        }
        if stage == sb.Stage.VALID:
            self.hparams.train_logger.log_stats(
                stats_meta={"epoch": epoch},
                train_stats={"loss": self.train_loss},
                valid_stats=stats,
            )
            self.checkpointer.save_and_keep_only(meta=stats, min_keys=["PER"])
        else:
            self.hparams.train_logger.log_stats(
                stats_meta={"Epoch loaded": self.hparams.epoch_counter.current},
                test_stats=stats,
            )


def dataio_prep(hparams):
    """Creates the datasets."""
    label_encoder = sb.dataio.encoder.CTCTextEncoder()

    @sb.utils.data_pipeline.takes("command")
    @sb.utils.data_pipeline.provides("letter_list", "letters")
    def text_pipeline(command):
        yield list(command)
        yield label_encoder.encode_sequence_torch(list(command))

    datasets = make_datasets(hparams, [text_pipeline], ["letters"])
    label_encoder.load_or_create(
        path=hparams["save_folder"] + "/label_encoder.txt",
        from_didatasets=[datasets["train"]],
        output_key="letter_list",
        special_labels={"blank_label": hparams["blank_index"]},
        sequence_input=True,
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
    brain = ASRBrain(
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
        min_key="PER",
        test_loader_kwargs=hparams["dataloader_opts"],
    )
