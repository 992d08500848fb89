"""The networks: published sizes, uneven channels, padding, gradients."""

import os
import subprocess
import sys

import pytest
import torch
from aasist import AASIST
from lfcc import LFCC
from resnet34 import ResNet34, masked_statistics
from speechbrain.lobes.features import Fbank

from noisegate.compact import save_compact
from tests.unittests.referee import count_macs


def trained(model):
    """Number of trained parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def tiny(**kwargs):
    """A ResNet34 that takes no time."""
    torch.manual_seed(0)
    return ResNet34(channels=(4, 6, 8, 10), embedding_size=7, **kwargs)


def test_resnet34_has_the_published_size():
    """5.4 M parameters and 5.64 GFLOP, both within 5 percent."""
    model = ResNet34().eval()
    assert trained(model) == pytest.approx(5.4e6, rel=0.05)
    features = Fbank(n_mels=96, n_fft=1024)
    feats = features(torch.randn(1, 4 * 16000))
    assert feats.shape == (1, 401, 96)
    macs = count_macs(model, feats)
    assert 2 * macs == pytest.approx(5.64e9, rel=0.05)
    # What the docstring says
    assert (trained(model), macs) == (5389153, 2765481600)


def test_a_quarter_of_the_channels():
    model = ResNet34(width=0.25).eval()
    assert model.channels == [8, 16, 32, 64]
    assert trained(model) == pytest.approx(5.4e6 / 16, rel=0.05)
    macs = count_macs(model, torch.randn(1, 201, 96))
    assert macs == pytest.approx(2.77e9 / 16 / 2, rel=0.05)


def test_uneven_channels_are_told_and_rebuild_the_model():
    """As after compaction: the constructor takes what the model tells."""
    inner = [[1, 4, 2], [6, 3, 5, 1], [8, 7, 1, 2, 3, 4], [1, 2, 10]]
    model = tiny(inner_channels=inner, stem_stride=1, cosine=True).eval()
    assert model.channels == [4, 6, 8, 10]
    assert model.inner_channels == inner
    again = ResNet34(
        channels=model.channels,
        inner_channels=model.inner_channels,
        width=model.width,
        stem_stride=model.stem_stride,
        embedding_size=model.embedding_size,
        dropout=model.dropout,
        cosine=model.cosine,
    ).eval()
    again.load_state_dict(model.state_dict())
    feats = torch.randn(2, 40, 20)
    assert torch.equal(model(feats), again(feats))
    narrow = ResNet34(width=0.5).inner_channels
    assert ResNet34(width=1, inner_channels=narrow).inner_channels == narrow


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"channels": [32, 64]}, "channels must be 4 numbers"),
        ({"inner_channels": [[1]] * 4}, "inner_channels must be lists"),
        ({"width": 0.0}, "width must be positive"),
    ],
)
def test_resnet_errors(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ResNet34(**kwargs)


@pytest.mark.parametrize("cosine", [False, True])
def test_every_parameter_of_the_resnet_learns(cosine):
    model = tiny(cosine=cosine)
    model(torch.randn(4, 64, 32)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


def test_cosine_is_one():
    model = tiny(cosine=True).eval()
    scores = model(torch.randn(8, 50, 20))
    assert scores.shape == (8, 1) and scores.abs().max() <= 1
    with torch.no_grad():
        model.out.weight *= 3
        model.embedding.weight.zero_()
        model.embedding.bias.copy_(model.out.weight[0])
    assert torch.allclose(model(torch.randn(1, 50, 20)), torch.ones(1, 1))


def test_statistics_ignore_padding():
    torch.manual_seed(0)
    x = torch.randn(3, 5, 20)
    lens = torch.tensor([20, 13, 1])
    padded = x.clone()
    for i, n in enumerate(lens):
        padded[i, :, n:] = 1e6
    mean, std = masked_statistics(padded, lens / 20)
    for i, n in enumerate(lens):
        alone = x[i, :, :n]
        assert torch.allclose(mean[i], alone.mean(1), atol=1e-6)
        expected = (alone.var(1, unbiased=False) + 1e-6).sqrt()
        assert torch.allclose(std[i], expected, atol=1e-6)
    for mine, other in zip(masked_statistics(x), masked_statistics(x, lens**0)):
        assert torch.allclose(mine, other, atol=1e-6)


def test_padding_moves_scores_a_little_only():
    model = tiny().eval()
    feats = torch.randn(1, 400, 20)
    padded = torch.cat([feats, torch.zeros(1, 400, 20)], dim=1)
    alone, beside = model(feats), model(padded, torch.tensor([0.5]))
    far = model(padded)
    assert (alone - beside).abs() < 0.3 * (alone - far).abs()


def test_aasist_l_has_the_published_size():
    """85,306 trained parameters with two outputs of 5 x 32 inputs."""
    model = AASIST()
    assert trained(model) + 5 * 32 + 1 == 85306
    assert trained(AASIST(cosine=True)) == trained(model) - 1
    # The larger variant of the paper: 297 k
    large = AASIST(
        channels=(32, 32, 64, 64, 64, 64),
        graph_sizes=(64, 32),
        pool_shares=(0.5, 0.7, 0.5),
    )
    assert trained(large) == pytest.approx(297e3, rel=0.005)


def test_aasist_takes_any_length_and_learns():
    torch.manual_seed(0)
    model = AASIST()
    for seconds in (0.2, 1.0):
        wavs = torch.randn(2, round(16000 * seconds))
        assert model(wavs).shape == (2, 1)
    model(torch.randn(4, 16000)).square().sum().backward()
    for name, parameter in model.named_parameters():
        if name == "front.weight":
            assert parameter.grad is None
        # A bias in front of a softmax or a batch normalization is undone
        elif not name.endswith("bias"):
            assert parameter.grad.abs().sum() > 0, name


def test_aasist_scores_do_not_depend_on_the_batch():
    torch.manual_seed(0)
    model = AASIST(cosine=True).eval()
    wavs = torch.randn(3, 12000)
    together = model(wavs)
    alone = torch.cat([model(wav[None]) for wav in wavs])
    assert torch.allclose(together, alone, atol=1e-5)
    assert together.abs().max() <= 1


def test_aasist_filters_pass_their_bands():
    """Each filter peaks where it should, in rising order."""
    filters = AASIST().front.weight[:, 0]
    response = torch.fft.rfft(filters, 4096).abs()
    peaks = response.argmax(1) * 16000 / 4096
    assert bool((peaks.diff() >= 0).all())
    assert 0 <= peaks[0] < 60 and 7500 < peaks[-1] <= 8000
    with pytest.raises(ValueError, match="equally many"):
        AASIST(channels=[32, 32], inner_channels=[32])


def test_lfcc():
    features = LFCC(n_filters=30, n_lfcc=20)
    torch.manual_seed(0)
    wavs = 0.1 * torch.randn(2, 8000)
    feats = features(wavs)
    assert feats.shape == (2, 51, features.n_features) == (2, 51, 60)
    assert LFCC(deltas=False)(wavs).shape == (2, 51, 20)
    # A gain moves the first coefficient, and nothing that is a difference
    louder = features(10 * wavs)
    assert (louder - feats)[..., 0].min() > 1
    assert torch.allclose(louder[..., 20:], feats[..., 20:], atol=1e-2)
    with pytest.raises(ValueError, match="n_lfcc must be at most"):
        LFCC(n_filters=10, n_lfcc=20)


def test_lfcc_against_its_definition():
    """Linear triangles on the power spectrum, logarithm, orthonormal DCT."""
    from scipy.fft import dct

    torch.manual_seed(0)
    wav = 0.1 * torch.randn(1, 4000)
    feats = LFCC(deltas=False)(wav)[0]
    window = torch.hann_window(320)
    spectrum = torch.stft(
        wav[0], 512, 160, 320, window, pad_mode="reflect", return_complex=True
    )
    power = spectrum.abs().square().double()
    hz = torch.linspace(0, 8000, 257)
    edges = torch.linspace(0, 8000, 22)
    step = edges[1] - edges[0]
    bank = (1 - (hz[:, None] - edges[None, 1:-1]).abs() / step).clamp(min=0)
    logs = torch.log(power.T @ bank.double() + 1e-6)
    expected = torch.from_numpy(dct(logs.numpy(), norm="ortho"))
    assert torch.allclose(feats.double(), expected, atol=1e-2)


def test_a_folder_of_an_own_network_loads_without_noisegate(tmp_path):
    """It carries the file of the network; another process, another folder."""
    torch.manual_seed(0)
    model = ResNet34(channels=[4, 6, 8, 8]).eval()
    folder = tmp_path / "compact"
    made = {"model": "!new:resnet34.ResNet34\n    channels: [4, 6, 8, 8]"}
    save_compact(str(folder), {"model": model}, "", made)
    assert (folder / "resnet34.py").is_file()
    x = torch.randn(2, 50, 24)
    torch.save((x, model(x).detach()), tmp_path / "expected.pt")
    code = """if True:
        import sys
        sys.modules["noisegate"] = None  # as if it were not installed
        import torch
        from speechbrain.inference.interfaces import Pretrained

        class Loaded(Pretrained):
            MODULES_NEEDED = ["model"]

        sys.path.append("compact")
        loaded = Loaded.from_hparams("compact", savedir="compact")
        x, expected = torch.load("expected.pt")
        assert torch.equal(loaded.mods.model(x), expected)
    """
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
