"""A real number of mel bands, spaced as a filterbank of that many has them."""

import copy

import pytest
import torch
from speechbrain.lobes.features import Fbank

from noisegate.brain import GatedBrain
from noisegate.compact import compact
from noisegate.gates import Gates
from noisegate.loss import ComplexityLoss
from noisegate.rules.base import rule_of

RATE, BANDS = 16000, 20
OPTIONS = {"features": {"respace": True, "kappa_min": 0.1}}


def front_end(bands=BANDS, **options):
    made = Fbank(n_mels=bands, **options)
    made.compute_fbanks.top_db = 300.0
    return made


def net():
    torch.manual_seed(1)
    return torch.nn.Sequential(
        torch.nn.Linear(BANDS, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1)
    )


def gated(model=None, bank=None, layers=OPTIONS):
    return Gates(
        model or net(), bank or front_end(), layers=layers, segment_s=0.2
    )


def noise(seconds=0.2):
    return torch.randn(2, round(seconds * RATE), generator=torch.manual_seed(2))


@pytest.mark.parametrize("bands", range(2, BANDS + 1))
def test_any_integer_number_is_a_plain_filterbank(bands):
    gates = gated()
    gates.freeze({"features": bands})
    made = gates.front_end(noise())
    plain = front_end(bands)(noise())
    # The same filters; how sums over bins are ordered is the processor's
    torch.testing.assert_close(made[..., :bands], plain, rtol=0, atol=1e-4)
    # The next one comes in from the end of the spectrum, others lie above
    if bands + 1 < BANDS:
        assert made[..., bands + 1 :].amax() < plain.mean() - 30


@pytest.mark.parametrize("bands", [2, 7, 13, BANDS])
def test_the_cut_model_is_the_gated_one(bands):
    gates = gated()
    gates.freeze({"features": bands})
    gates.model.eval()
    expected = gates.model(gates.front_end.eval()(noise()))
    model, bank = compact(gates)
    assert model[0].in_features == bands
    made = bank(noise())
    assert torch.equal(made, front_end(bands)(noise()))
    torch.testing.assert_close(model(made), expected)
    assert bank.compute_fbanks.freeze and bank.compute_fbanks.n_mels == bands


def test_between_two_numbers_it_lies_between():
    rule = rule_of(front_end())
    for low in (5, 12):
        ends = [rule.spaced(low + i)[0][:low] for i in (0, 1)]
        middle = rule.spaced(torch.tensor(low + 0.5))[0][:low]
        assert (middle < ends[0]).all() and (middle > ends[1]).all()
    exact, real = rule.spaced(9), rule.spaced(torch.tensor(9.0))
    for one, other in zip(exact, real):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_the_number_has_a_gradient_through_the_filters():
    gates = gated()
    gates["features"].set_width(12.5)
    features = gates.front_end(noise())
    # Of bands that are fully open: no noise
    features[..., :10].square().mean().backward()
    kappa = gates["features"].kappa
    assert kappa.grad.isfinite().all() and kappa.grad.abs().sum() > 0


def test_open_and_removed_it_is_what_it_was():
    bank = front_end()
    expected = bank(noise())
    gates = gated(bank=bank)
    assert torch.equal(bank(noise()), expected)
    gates["features"].set_width(7.5)
    assert not torch.equal(bank(noise()), expected)
    copied = copy.deepcopy(bank)  # no graph is kept
    gates.remove()
    assert torch.equal(bank(noise()), expected)
    assert not bank.compute_fbanks._forward_pre_hooks
    assert copied.compute_fbanks.f_central.grad_fn is None


class Detector(GatedBrain):
    """Whether a frame is loud in the upper half of the spectrum."""

    def compute_forward(self, batch, stage):
        feats = self.modules.front_end(batch[0])
        if self.hparams.cached:
            feats = self.open_features(feats)
        return self.modules.model(feats / 20)

    def compute_objectives(self, predictions, batch, stage):
        loss = (predictions.mean((1, 2)) - batch[1]).square().mean()
        return loss + self.complexity_term(stage)


def detector(cached=False):
    model, bank = net(), front_end()
    gates = gated(model, bank)
    loss = ComplexityLoss(gates, budget=0.5, freeze_epoch=2)
    return Detector(
        {"front_end": bank, "model": model},
        lambda parameters: torch.optim.Adam(parameters, lr=0.01),
        {"gates": gates, "complexity_loss": loss, "cached": cached},
        {"device": "cpu", "noprogressbar": True},
    )


def data(n=8):
    draw = torch.manual_seed(3)
    wavs = torch.randn(n, RATE // 5, generator=draw)
    labels = torch.randint(2, (n,), generator=draw).float()
    pairs = torch.utils.data.TensorDataset(wavs, labels)
    return torch.utils.data.DataLoader(pairs, batch_size=4)


def test_the_number_of_bands_is_learned_and_met():
    trainer = detector()
    trainer.fit(range(1, 4), data(), data())
    assert trainer.gates.frozen
    assert trainer.gate_stats()["macs_ratio"] <= 0.5
    trainer.evaluate(data(), progressbar=False)
    bands = trainer.gates.integer_widths()["features"]
    assert trainer.modules.front_end.compute_fbanks.n_mels == bands < BANDS
    assert not hasattr(trainer.modules.front_end.compute_fbanks, "spacing")


def test_features_that_were_computed_once_are_refused():
    with pytest.raises(ValueError, match="computed once do not follow"):
        detector(cached=True).fit(range(1, 4), data(), data())


@pytest.mark.parametrize(
    "layers, bank",
    [
        ({"0": {"respace": True}}, front_end()),
        ({"features": {"respace": True}}, front_end(requires_grad=True)),
    ],
)
def test_what_cannot_be_spaced_is_refused(layers, bank):
    with pytest.raises(ValueError, match="respace is for the mel bands"):
        gated(bank=bank, layers=layers)
