"""CTC recognition of words of tones, with a CRDNN and with a Conformer."""

import pytest
import torch
from speechbrain.lobes.features import Fbank
from speechbrain.nnet.losses import ctc_loss

from tests.integration.examples.helper import (
    SAMPLE_RATE,
    ExampleBrain,
    check,
    tone,
)

WORDS = [[1, 2, 3], [3, 1, 2], [2, 3, 1], [3, 2, 1]]
FREQUENCIES = {1: 400, 2: 1000, 3: 2500}


class CTCBrain(ExampleBrain):
    """Minimises the CTC loss; 0 is the blank."""

    def objective(self, predictions, batch):
        """Computes it."""
        log_probabilities = predictions.log_softmax(-1)
        letters, letter_lens = batch.letters
        lens = torch.ones(len(letters), device=letters.device)
        return ctc_loss(log_probabilities, letters, lens, letter_lens, 0)


def words():
    """Features of three letters, 60 ms each."""
    fbank = Fbank(sample_rate=SAMPLE_RATE, n_mels=20, n_fft=256)
    items = []
    for word in WORDS:
        letters = [tone(FREQUENCIES[letter], 480) for letter in word]
        feats = fbank(torch.cat(letters)[None])[0]
        feats = (feats - feats.mean()) / feats.std()
        items.append({"sig": feats, "letters": torch.tensor(word)})
    return items


@pytest.mark.parametrize("name", ["ctc_crdnn", "ctc_conformer"])
def test_recognition(name, device):
    """Dense, gated and cut."""
    check(name, CTCBrain, words(), device, limit=0.3, budget=0.25)
