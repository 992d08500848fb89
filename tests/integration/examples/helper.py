"""What the examples share: generated data, glue between modules, training.

Each example trains a small model on a handful of generated signals until it
knows them: dense, gated to a budget, and cut.
"""

from pathlib import Path

import speechbrain as sb
import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.dataio.dataset import DynamicItemDataset

from noisegate.brain import GatedBrain

SAMPLE_RATE = 8000
REPEATS = 5  # of the data in an epoch


class ExampleBrain(GatedBrain):
    """Keeps the loss of the last stage; an example adds what it computes."""

    def compute_forward(self, batch, stage):
        """Computes what the model returns."""
        batch = batch.to(self.device)
        return self.modules.model(batch.sig.data)

    def objective(self, predictions, batch):
        """Returns the loss of the task."""
        raise NotImplementedError

    def compute_objectives(self, predictions, batch, stage):
        """Computes the loss, in training with the complexity."""
        loss = self.objective(predictions, batch)
        return loss + self.complexity_term(stage)

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Keeps the loss."""
        super().on_stage_end(stage, stage_loss, epoch)
        self.last_loss = stage_loss


def tone(frequency, n_samples, phase=0.0):
    """A tone that fades in and out, (n_samples,)."""
    time = torch.arange(n_samples) / SAMPLE_RATE
    wave = torch.sin(2 * torch.pi * frequency * time + phase)
    return 0.3 * wave * torch.hann_window(n_samples)


def dataset(items, repeats=REPEATS):
    """A dataset of dicts of tensors, each several times."""
    data = {
        f"{i}_{j}": item for j in range(repeats) for i, item in enumerate(items)
    }
    return DynamicItemDataset(data, output_keys=["id", *items[0]])


def overfit(name, brain_class, items, device, **overrides):
    """Trains, and evaluates the cut model.

    Arguments
    ---------
    name : str
        Of the YAML.
    brain_class : type
        Brain of the example.
    items : list of dict of str to torch.Tensor
        The data; "sig" is what the model reads.
    device : str
        Where to.
    **overrides : dict
        Of the YAML.

    Returns
    -------
    brain : ExampleBrain
        After evaluation; ``last_loss`` is that of the cut model.
    difference : float
        Between the outputs of gated and cut model, relative to the greatest.
    """
    path = Path(__file__).parent / f"{name}.yaml"
    with open(path, encoding="utf-8") as fin:
        hparams = load_hyperpyyaml(fin, overrides)
    brain = brain_class(
        modules=hparams["modules"],
        opt_class=hparams["opt_class"],
        gate_opt_class=hparams["gate_opt_class"],
        hparams=hparams,
        run_opts={"device": device, "noprogressbar": True},
    )
    options = {"batch_size": len(items)}
    train, test = dataset(items), dataset(items, 1)
    brain.fit(hparams["epoch_counter"], train, train_loader_kwargs=options)
    batch = sb.dataio.batch.PaddedBatch([test[i] for i in range(len(test))])
    outputs = [output_of(brain, batch)]
    brain.evaluate(test, test_loader_kwargs=options)
    outputs.append(output_of(brain, batch))
    scale = outputs[0].abs().max()
    return brain, float((outputs[0] - outputs[1]).abs().max() / scale)


def output_of(brain, batch):
    """Output of the present model in evaluation."""
    brain.modules.eval()
    with torch.no_grad():
        return brain.compute_forward(batch, sb.Stage.TEST)


def check(name, brain_class, items, device, limit, budget):
    """The example learns its data dense, and gated to a budget, and cut.

    Arguments
    ---------
    name : str
        Of the YAML.
    brain_class : type
        Brain of the example.
    items : list of dict of str to torch.Tensor
        The data.
    device : str
        Where to.
    limit : float
        What the loss has to fall below.
    budget : float
        Share of the MACs.
    """
    dense, difference = overfit(
        name, brain_class, items, device, gate_layers=[], budget=1.0
    )
    assert dense.last_loss < limit
    assert difference == 0
    gated, difference = overfit(name, brain_class, items, device, budget=budget)
    assert gated.last_loss < limit
    assert difference < 1e-5
    n_small, n_dense = (
        sum(p.numel() for p in brain.modules.model.parameters())
        for brain in (gated, dense)
    )
    assert n_small < n_dense
    assert 0.9 * budget < gated.gate_stats()["macs_ratio"] <= budget


class Separator(torch.nn.Module):
    """Encoder, mask network and decoder, as a separation recipe joins them.

    Arguments
    ---------
    encoder : torch.nn.Module
        Makes features of a mixture.
    masknet : torch.nn.Module
        Makes a mask for each source.
    decoder : torch.nn.Module
        Makes a signal of features.
    """

    def __init__(self, encoder, masknet, decoder):
        super().__init__()
        self.encoder, self.masknet = encoder, masknet
        self.decoder = decoder

    def forward(self, mixture):
        """Returns the sources (batch, time, sources)."""
        features = self.encoder(mixture)
        masks = self.masknet(features)
        sources = [self.decoder(features * mask) for mask in masks]
        return torch.stack(sources, dim=-1)


class Wav2Vec2Classifier(torch.nn.Module):
    """Extractor and encoder of wav2vec 2.0, and a classifier of the mean.

    Arguments
    ---------
    extractor : torch.nn.Module
        Makes features of waveforms.
    encoder : torch.nn.Module
        Encodes them.
    classifier : torch.nn.Module
        Reads the mean over time.
    """

    def __init__(self, extractor, encoder, classifier):
        super().__init__()
        self.extractor, self.encoder = extractor, encoder
        self.classifier = classifier

    def forward(self, wavs):
        """Returns scores (batch, classes)."""
        latents = self.extractor(wavs)
        embeddings = self.encoder(latents)["embeddings"]
        return self.classifier(embeddings.mean(1))
