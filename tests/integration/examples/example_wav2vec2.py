"""Classification of tones, with SpeechBrain's own wav2vec 2.0 encoder."""

import torch

from tests.integration.examples.helper import ExampleBrain, check, tone


class ToneBrain(ExampleBrain):
    """Minimises the cross-entropy."""

    def objective(self, predictions, batch):
        """Computes it."""
        return torch.nn.functional.cross_entropy(
            predictions, batch.label.data.flatten()
        )


def tones():
    """Three classes of tones, two of each."""
    frequencies = [(300, 350), (900, 1000), (2500, 2700)]
    return [
        {"sig": tone(f, 1600), "label": torch.tensor([label])}
        for label, both in enumerate(frequencies)
        for f in both
    ]


def test_classification(device):
    """Dense, gated and cut."""
    check("wav2vec2", ToneBrain, tones(), device, limit=0.2, budget=0.4)
