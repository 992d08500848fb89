#!/usr/bin/env python3
"""Says which word is in an audio file.

> python recognize.py /path/to/compact word.wav [--start_s=0.0]

Needs the folder of a cut model and SpeechBrain alone, not noisegate.

Authors
 * The noisegate developers, 2026
"""

import argparse

import torch
import torchaudio.functional
from speechbrain.dataio.dataio import read_audio, read_audio_info
from speechbrain.inference.interfaces import Pretrained


class Recognizer(Pretrained):
    """Classifies clips."""

    HPARAMS_NEEDED = ["modules", "label_encoder", "sample_rate"]

    def scores(self, wavs):
        """Returns the probabilities of the classes.

        Arguments
        ---------
        wavs : torch.Tensor (batch, samples)
            Clips of the length that the model was trained for.

        Returns
        -------
        torch.Tensor (batch, n_classes)
        """
        feats = self.mods.compute_features(wavs)
        feats = self.mods.mean_var_norm(feats, torch.ones(len(wavs)))
        return self.mods.model(feats).flatten(1).softmax(-1)


def main():
    """Prints the three most probable words."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", help="of a cut model")
    parser.add_argument("file", help="audio, of which a second is read")
    parser.add_argument("--start_s", type=float, default=0.0)
    args = parser.parse_args()
    recognizer = Recognizer.from_hparams(args.folder, savedir=args.folder)
    rate = read_audio_info(args.file).sample_rate
    start = round(args.start_s * rate)
    place = {"file": args.file, "start": start, "stop": start + rate}
    signal = read_audio(place)
    if signal.dim() > 1:
        signal = signal.mean(-1)
    sample_rate = recognizer.hparams.sample_rate
    signal = torchaudio.functional.resample(signal, rate, sample_rate)
    signal = torch.nn.functional.pad(signal, (0, sample_rate - len(signal)))
    scores = recognizer.scores(signal[None])[0]
    best = scores.topk(3)
    words = recognizer.hparams.label_encoder.decode_ndim(best.indices)
    for word, score in zip(words, best.values.tolist()):
        print(f"{word:10} {score:.3f}")


if __name__ == "__main__":
    main()
