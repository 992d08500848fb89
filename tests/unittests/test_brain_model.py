"""Several modules of a Brain, gated together."""

import functools

import pytest
import speechbrain as sb
import torch
from speechbrain.augment.augmenter import Augmenter
from speechbrain.augment.time_domain import DropChunk
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.processing.features import InputNormalization
from speechbrain.utils.epoch_loop import EpochCounter

import noisegate
from noisegate.baselines.gates import FixedWidths, HardGate
from noisegate.brain_model import find_gates
from noisegate.cost import count_macs
from tests.unittests.models import random_widths, scramble

FRAME = 16


class Search(torch.nn.Module):
    """Holds the decoder, as the searchers of SpeechBrain do."""

    def __init__(self, decoder):
        super().__init__()
        self.decoder = decoder

    def forward(self, x):
        """Returns the best token of each frame."""
        return self.decoder(x).argmax(-1)


class Several(noisegate.GatedBrain):
    """A normalizer, an encoder (called through the hparams) and a decoder."""

    def compute_forward(self, batch, stage):
        """Returns scores of each frame, and what was searched for."""
        wavs, lens = batch.to(self.device).sig
        if stage == sb.Stage.TRAIN:
            wavs = self.perturbed(wavs)
            if hasattr(self.hparams, "wav_augment"):
                wavs, lens = self.hparams.wav_augment(wavs, lens)
        feats = wavs.unfold(1, FRAME, FRAME)
        feats = self.modules.norm(feats, lens)
        x = self.hparams.enc(feats)
        found = None
        if stage == sb.Stage.TEST:
            found = self.hparams.search(x)
        return self.modules.dec(x), found

    def perturbed(self, wavs):
        """Augmentation of its own."""
        return wavs

    def compute_objectives(self, predictions, batch, stage):
        """Returns the power of the scores and the complexity."""
        self.predictions = predictions
        return predictions[0].square().mean() + self.complexity_term(stage)


class Random(Several):
    """Draws numbers in training."""

    def perturbed(self, wavs):
        return wavs + torch.randn_like(wavs)


class OwnFitBatch(Several):
    """Forgets what fit_batch has to call."""

    def fit_batch(self, batch):
        """Trains one batch."""
        outputs = self.compute_forward(batch, sb.Stage.TRAIN)
        loss = self.compute_objectives(outputs, batch, sb.Stage.TRAIN)
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def make(kind=Several, budget=0.5, **options):
    """A Brain of two layers in three modules."""
    torch.manual_seed(0)
    linear = functools.partial(torch.nn.Linear, 12)
    enc = torch.nn.Sequential(torch.nn.Linear(FRAME, 12), torch.nn.ReLU())
    dec = torch.nn.Sequential(linear(12), torch.nn.ReLU(), linear(5))
    modules = {"norm": InputNormalization(), "enc": enc, "dec": dec}
    hparams = {
        "enc": enc,
        "search": Search(dec),
        "sample_rate": 1000,
        "gates": functools.partial(noisegate.Gates, **options),
        "complexity_loss": functools.partial(
            noisegate.ComplexityLoss, budget=budget, freeze_epoch=2
        ),
    }
    opt_class = functools.partial(torch.optim.SGD, lr=0.1)
    return kind(modules, opt_class, hparams)


def data(*lengths):
    """Signals of some lengths."""
    items = {str(n): {"sig": torch.randn(n)} for n in lengths or (160, 240)}
    return DynamicItemDataset(items, output_keys=["id", "sig"])


def test_groups_span_modules_and_cuts_are_exact():
    """Costs are those of all modules, for the first item."""
    brain = make()
    gates = find_gates(brain, brain.gates, data())
    assert list(gates) == ["enc.0", "dec.0"]
    assert gates.cost.seconds == 0.16
    assert brain.modules.norm.count == 0  # as it was
    brain.modules.norm(torch.randn(3, 50, FRAME))
    scramble(gates)
    gates.freeze(random_widths(gates, 1))
    model, _ = noisegate.compact(gates)
    assert gates.cost.macs(gates.integer_widths()) == count_macs(
        model, gates.example
    )
    gates.model.eval()
    expected, made = (m(*gates.example)[0] for m in (gates.model, model))
    torch.testing.assert_close(made, expected)
    assert model["enc"][0].out_features == gates["enc.0"].integer_width() < 12
    # What the hparams have is of the copy
    assert model.beside["enc"] is model["enc"]
    assert model.beside["search"].decoder is model["dec"]


class Apart(torch.nn.Module):
    """Another model, that cannot be copied."""

    def __deepcopy__(self, memo):
        raise TypeError("has no copy")


def test_what_is_not_called_is_left_alone():
    """It is neither copied nor replaced."""
    brain = make()
    brain.hparams.language_model = Apart()
    gates = find_gates(brain, brain.gates, data())
    assert set(gates.model.beside) == {"enc", "search"}


def test_modules_that_stay_as_they_are():
    """With the reason; one that is not there is an error."""
    brain = make(untouched=["enc"])
    gates = find_gates(brain, brain.gates, data())
    assert list(gates) == ["dec.0"]
    reasons = {g.name: g.locked_reason for g in gates.groups}
    assert reasons["enc.0"] == "part of 'enc', which is untouched"
    brain = make(untouched=["encoder"])
    with pytest.raises(ValueError, match="no module 'encoder'.*'enc', 'dec'"):
        find_gates(brain, brain.gates, data())


def test_augmentation_is_switched_off():
    """Of SpeechBrain's kind, which stays as it is in the recipe."""
    brain = make()
    augmenter = Augmenter(augmentations=[DropChunk()], concat_original=True)
    brain.hparams.wav_augment = augmenter
    gates = find_gates(brain, brain.gates, data())
    assert gates.cost.macs() == 10 * (FRAME * 12 + 12 * 12 + 12 * 5)
    assert augmenter.augment_prob == 1.0


def test_the_stage_that_is_looked_at(caplog):
    """That of validation if training draws numbers; none if both do."""
    caplog.set_level("INFO")
    for kind, stage in ((Several, "TRAIN"), (Random, "VALID")):
        brain = make(kind)
        find_gates(brain, brain.gates, data())
        assert f"stage {stage}" in caplog.messages[-2]
        assert "gated: 2 of 3 groups" in caplog.messages[-1]
    brain = make()
    other = DynamicItemDataset(
        {"a": {"x": torch.randn(160)}}, output_keys=["x"]
    )
    with pytest.raises(ValueError, match="TRAIN: Attribute.*; VALID: Attr"):
        find_gates(brain, brain.gates, other)


def test_the_cut_modules_take_their_places_everywhere():
    """In the modules, in the hparams, in what holds one of them."""
    brain = make()
    full = brain.modules["enc"]
    brain.fit(range(1, 3), data(), data())
    brain.evaluate(data())
    enc, dec = brain.modules["enc"], brain.modules["dec"]
    assert enc is brain.hparams.enc is not full
    assert brain.hparams.search.decoder is dec
    scores, found = brain.predictions
    assert torch.equal(scores.argmax(-1), found)
    ratio = brain.gates.cost.ratio(brain.gates.integer_widths())
    assert ratio <= 0.5
    # And are put back where another checkpoint is loaded
    brain.on_evaluate_start()
    assert brain.modules["enc"] is brain.hparams.enc is full


def test_fixed_widths_of_several_modules():
    """All are cut before the first step, also what the hparams hold."""
    brain = make(gate=HardGate)
    brain.complexity_loss = functools.partial(FixedWidths, budget=0.5)
    enc, search = brain.hparams.enc, brain.hparams.search
    brain.fit(EpochCounter(2), data(), progressbar=False)
    cut = brain.hparams.enc
    assert cut is brain.modules.enc is not enc
    assert brain.hparams.search is not search
    assert brain.hparams.search.decoder is brain.modules.dec
    assert cut[0].out_features < enc[0].out_features
    brain.evaluate(data(), progressbar=False)
    assert brain.hparams.enc is brain.modules.enc is cut


def test_a_fit_batch_that_does_not_train_the_gates():
    """Is an error at the end of the first epoch."""
    brain = make(OwnFitBatch)
    with pytest.raises(RuntimeError, match="a fit_batch must call"):
        brain.fit(range(1, 3), data(), data())


def test_factories_and_objects_do_not_mix():
    """A clear error when the Brain is made."""
    brain = make()
    gates = find_gates(brain, brain.gates, data())
    hparams = {**vars(brain.hparams), "gates": gates}
    with pytest.raises(ValueError, match="must both be objects .* or both"):
        Several(brain.modules, None, hparams)


def test_data_without_signals():
    """Says that costs per second cannot be told."""
    brain = make()
    items = {"a": {"label": torch.tensor(1)}}
    dataset = DynamicItemDataset(items, output_keys=["id", "label"])
    with pytest.raises(ValueError, match="has no signals"):
        find_gates(brain, brain.gates, dataset)


def test_modules_go_back_to_where_they_were(monkeypatch):
    """With their gates: they are looked at on the CPU."""
    brain, moved = make(), []
    for name, module in brain.modules.items():
        monkeypatch.setattr(
            module, "to", functools.partial(lambda *x: moved.append(x), name)
        )
    find_gates(brain, brain.gates, data())
    assert set(moved) == {(k, torch.device("cpu")) for k in ("enc", "dec")}
    assert brain.device == "cpu"
