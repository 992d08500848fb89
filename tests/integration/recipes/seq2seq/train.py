"""Trains a recognizer of letters with an attentional decoder.

> python train.py train.yaml --data_folder=/path/to/data
"""

import sys

import speechbrain as sb
import torch
from data import make_datasets
from hyperpyyaml import load_hyperpyyaml


class ASR(sb.Brain):
    """Letters of words."""

    def compute_forward(self, batch, stage):
        """Computes log-probabilities of the tokens, or searches for them."""
        batch = batch.to(self.device)
        wavs, wav_lens = batch.sig
        tokens_bos, _ = batch.tokens_bos
        feats = self.hparams.compute_features(wavs)
        feats = self.modules.normalize(feats, wav_lens)
        x = self.modules.enc(feats.detach())
        e_in = self.modules.emb(tokens_bos)
        h, _ = self.modules.dec(e_in, x, wav_lens)
        p_seq = self.hparams.log_softmax(self.modules.seq_lin(h))
        if stage == sb.Stage.TRAIN:
            p_ctc = None
            current_epoch = self.hparams.epoch_counter.current
            if current_epoch <= self.hparams.number_of_ctc_epochs:
                p_ctc = self.hparams.log_softmax(self.modules.ctc_lin(x))
            return p_ctc, p_seq, wav_lens
        hyps, _, _, _ = self.hparams.search(x, wav_lens)
        return hyps, p_seq, wav_lens

    def compute_objectives(self, predictions, batch, stage):
        """Computes the loss (CTC and NLL)."""
        first, p_seq, wav_lens = predictions
        tokens_eos, tokens_eos_lens = batch.tokens_eos
        tokens, tokens_lens = batch.tokens
        loss = self.hparams.seq_cost(p_seq, tokens_eos, length=tokens_eos_lens)
        if stage != sb.Stage.TRAIN:
            words = [[self.tokenizer.decode_ids(hyp)] for hyp in first]
            self.wer_metric.append(
                batch.id, words, [[w] for w in batch.command]
            )
        elif first is not None:
            loss_ctc = self.hparams.ctc_cost(
                first, tokens, wav_lens, tokens_lens
            )
            loss = (1 - self.hparams.ctc_weight) * loss
            loss += self.hparams.ctc_weight * loss_ctc
        return loss

    def on_stage_start(self, stage, epoch=None):
        """Resets the error rate."""
        if stage != sb.Stage.TRAIN:
            self.wer_metric = self.hparams.wer_stats()

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Logs, saves checkpoints."""
        if stage == sb.Stage.TRAIN:
            self.train_loss = stage_loss
            return
        stats = {
            "loss": stage_loss,
            "WER": self.wer_metric.summarize("error_rate"),
        }
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
    tokenizer = hparams["tokenizer"]

    @sb.utils.data_pipeline.takes("command")
    @sb.utils.data_pipeline.provides("tokens_bos", "tokens_eos", "tokens")
    def text_pipeline(command):
        tokens = tokenizer.encode_as_ids(command)
        yield torch.LongTensor([hparams["bos_index"], *tokens])
        yield torch.LongTensor([*tokens, hparams["eos_index"]])
        yield torch.LongTensor(tokens)

    return make_datasets(
        hparams,
        [text_pipeline],
        ["command", "tokens_bos", "tokens_eos", "tokens"],
    )


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
    brain = ASR(
        modules=hparams["modules"],
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )
    brain.tokenizer = hparams["tokenizer"]
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
