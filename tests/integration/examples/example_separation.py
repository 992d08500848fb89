"""Separation of two tones, with ConvTasNet and with SepFormer."""

import pytest
import torch
from speechbrain.nnet.losses import get_si_snr_with_pitwrapper

from tests.integration.examples.helper import ExampleBrain, check, tone


class SeparationBrain(ExampleBrain):
    """Minimises the negative SI-SNR in dB."""

    def objective(self, predictions, batch):
        """Computes it for the better order of the sources."""
        sources = batch.sources.data
        return get_si_snr_with_pitwrapper(sources, predictions).mean()


def mixtures(n_samples=640):
    """A low and a high tone each."""
    items = []
    for i in range(4):
        low = tone(300 + 40 * i, n_samples, phase=i)
        high = tone(1500 + 150 * i, n_samples, phase=2 * i)
        sources = torch.stack([low, high], dim=-1)
        items.append({"sig": sources.sum(-1), "sources": sources})
    return items


@pytest.mark.parametrize("name", ["conv_tasnet", "sepformer"])
def test_separation(name, device):
    """Dense, gated and cut."""
    check(name, SeparationBrain, mixtures(), device, limit=-10, budget=0.4)
