"""The cut model: equal to the gated one, plain, and loadable anywhere."""

import os

import pytest
import speechbrain as sb
import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.inference.interfaces import Pretrained
from speechbrain.lobes.features import Fbank
from speechbrain.nnet.activations import Softmax
from speechbrain.processing.features import InputNormalization

from noisegate.compact import compact, constructor, save_compact
from noisegate.gates import Gates
from noisegate.layers import GatedConv1d, GatedFbank
from noisegate.loss import ComplexityLoss
from noisegate.rules import rule_of
from tests.unittests import models


def cut(name, gate="noise", seed=0, freeze=True):
    """A gated model at random widths in random order, and its cut copy."""
    gates = models.gated(name, gate, seed)
    models.scramble(gates, seed)
    widths = models.random_widths(gates, seed)
    if freeze:
        gates.freeze(widths)
    else:
        for key, width in widths.items():
            gates[key].set_width(width)
    gates.model.eval()
    return gates, *compact(gates)


@pytest.mark.parametrize("freeze", [True, False], ids=["frozen", "learning"])
@pytest.mark.parametrize("gate", models.GATES)
@pytest.mark.parametrize("name", models.MODELS)
def test_the_cut_model_equals_the_gated_one(name, gate, freeze):
    """In evaluation, to rounding errors, in float32 and float64."""
    spread = 0
    for seed in range(3):
        gates, model, _ = cut(name, gate, seed, freeze)
        x = 3 * torch.randn(2, 33, 80)
        expected = gates.model(x)
        output = model(models.open_bands(gates, x))
        assert (output - expected).abs().max() <= 1e-5
        spread = max(spread, float(expected.detach().std()))
        gates.model.double()
        model, _ = compact(gates)
        x = x.double()
        expected = gates.model(x)
        output = model(models.open_bands(gates, x))
        assert (output - expected).abs().max() <= 1e-10
        assert sum(gates.integer_widths().values()) < sum(
            gate.size for gate in gates.values()
        )
    # The output depends on the input, else this shows nothing
    assert spread > 1e-4


@pytest.mark.parametrize("name", models.MODELS)
def test_a_frozen_model_in_training_mode_is_the_cut_one(name):
    """Fine-tuning after freezing sees the model that will be cut."""
    gates, model, _ = cut(name)
    for module in [*gates.model.modules(), *model.modules()]:
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(module, torch.nn.MultiheadAttention):
            module.dropout = 0.0
    x = torch.randn(3, 33, 80)
    expected = gates.model.train()(x)
    output = model.train()(models.open_bands(gates, x))
    assert (output - expected).abs().max() <= 1e-4


@pytest.mark.parametrize("gate", models.GATES)
@pytest.mark.parametrize("name", models.MODELS)
def test_the_cut_model_is_plain(name, gate):
    """Classes of torch and SpeechBrain, no hooks, and as small as said."""
    gates, model, features = cut(name, gate)
    for module in [*model.modules(), *features.modules()]:
        place = type(module).__module__
        assert place.startswith(("torch.", "speechbrain.")), place
        assert not module._forward_pre_hooks
        assert not module._forward_hooks
        assert "forward" not in vars(module)
    assert sum(p.numel() for p in model.parameters()) == gates.cost.params(
        gates.integer_widths()
    )
    assert not any("gate" in key or "tap" in key for key in model.state_dict())


def test_gated_layers_become_plain_ones():
    """Their classes, and the attribute that holds the factory."""
    net = sb.nnet.containers.Sequential(
        tap=GatedConv1d(in_channels=20, out_channels=6, kernel_size=3),
        masked=sb.nnet.linear.Linear(n_neurons=1, input_size=6),
    )
    gates = Gates(net, front_end=GatedFbank(n_mels=20), segment_s=0.1)
    gates.freeze({"features": 7, "tap": 3})
    model, features = compact(gates)
    assert type(model.tap) is sb.nnet.CNN.Conv1d
    assert type(features) is sb.lobes.features.Fbank
    assert not hasattr(model.tap, "declared_gate")
    # Layers that are called like something of ours stay
    assert list(model) == ["tap", "masked"]
    assert model.tap.conv.weight.shape == (3, 7, 3)
    assert hasattr(net.tap, "declared_gate")


@pytest.mark.parametrize("name", models.MODELS)
def test_the_gated_model_stays_as_it_was(name):
    """Cutting copies: state, output and mode of the original stay."""
    gates = models.gated(name)
    models.scramble(gates)
    for gate in gates.values():
        gate.set_width((gate.size + gate.min_width) / 2 + 0.5)
    x = torch.randn(2, 21, 80)
    before = {k: v.clone() for k, v in gates.model.state_dict().items()}
    expected = gates.model.eval()(x)
    gates.model.train()
    model, features = compact(gates)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0)
    assert gates.model.training and not model.training
    for key, value in gates.model.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert torch.equal(gates.model.eval()(x), expected)
    assert gates.front_end.compute_fbanks.n_mels == 80
    torch.manual_seed(0)
    assert not torch.equal(gates.model.train()(x), gates.model(x))


@pytest.mark.parametrize("gate", models.GATES)
def test_cutting_right_after_a_training_pass(gate):
    """Nothing of the last graph is in the way."""
    gates = models.gated("crnn", gate)
    for width_of in gates.values():
        width_of.set_width(width_of.size - 1.5)
    gates.model.train()(torch.randn(2, 21, 80)).sum().backward()
    model, _ = compact(gates)
    x = torch.randn(2, 21, 80)
    expected = gates.model.eval()(x)
    output = model(models.open_bands(gates, x))
    assert (output - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("kappa_min", [0.0625, 1 / 80])
@pytest.mark.parametrize("width", ["min", "max"])
@pytest.mark.parametrize("name", models.MODELS)
def test_extreme_widths(name, width, kappa_min):
    """The smallest and the full widths cut like all others."""
    model = models.randomise(models.MODELS[name]())

    def gate(size, granularity):
        return models.NoiseGate(size, kappa_min, granularity)

    gates = Gates(model, front_end=models.front_end(), gate=gate, segment_s=0.1)
    gates.freeze(
        {
            key: gate.min_width if width == "min" else gate.size
            for key, gate in gates.items()
        }
    )
    model, _ = compact(gates)
    x = torch.randn(2, 21, 80)
    expected = gates.model.eval()(x)
    output = model(models.open_bands(gates, x))
    assert (output - expected).abs().max() <= 1e-5


def test_the_cut_front_end_makes_the_open_bands():
    """Log-mel values of the selected filters, at the level of the signal."""
    gates, _, features = cut("crnn")
    gates.front_end.compute_fbanks.top_db = 300
    _, features = compact(gates)
    assert features.compute_fbanks.top_db == 300
    keep = gates["features"].open_channels()
    assert 0 < len(keep) < 80
    wav = 0.1 * torch.randn(2, 8000)
    full = gates.front_end(wav)
    part = features(wav)
    assert part.shape == (*full.shape[:2], len(keep))
    assert (part - full[..., keep]).abs().max() <= 1e-4
    assert not any(p.requires_grad for p in features.parameters())


@pytest.mark.parametrize(
    "options",
    [
        {"n_mels": 30, "f_min": 100, "f_max": 3500, "sample_rate": 8000},
        {"n_mels": 30, "n_fft": 512, "win_length": 32, "hop_length": 16},
        {"n_mels": 30, "filter_shape": "gaussian"},
        {"n_mels": 30, "filter_shape": "rectangular"},
        {"n_mels": 30, "requires_grad": True},
        {"n_mels": 30, "param_change_factor": 0.5, "requires_grad": True},
        {"n_mels": 30, "param_change_factor": 0.5},
    ],
    ids=lambda options: "-".join(list(options)[1:3]),
)
def test_front_ends_of_other_settings(options):
    """Every option of the filterbank survives the cut."""
    features = sb.lobes.features.Fbank(**options)
    features.compute_fbanks.top_db = 300
    net = sb.nnet.containers.Sequential(
        hidden=sb.nnet.linear.Linear(n_neurons=4, input_size=30),
        out=sb.nnet.linear.Linear(n_neurons=1, input_size=4),
    )
    rate = options.get("sample_rate", 16000)
    gates = Gates(net, front_end=features, sample_rate=rate, segment_s=0.2)
    gates["features"].reorder(torch.rand(30))
    gates.freeze({"features": 11, "hidden": 4})
    _, small = compact(gates)
    keep = gates["features"].open_channels()
    wav = 0.1 * torch.randn(2, rate // 2)
    full = features(wav)[..., keep]
    assert (small(wav) - full).abs().max() <= 1e-4


def save(folder, name="crnn", **values):
    """Saves a cut model with its front-end; returns all."""
    gates, model, features = cut(name)
    features.compute_fbanks.top_db = 300.0
    modules = {"compute_features": features, "model": model}
    original = {"model": f"!apply:tests.unittests.models.{name}"}
    save_compact(folder, modules, "Two\nlines.", original, **values)
    return gates, model, features


class Detector(Pretrained):
    """The least that an inference class needs."""

    MODULES_NEEDED = ["compute_features", "model"]

    def forward(self, wav):
        """Returns the scores of frames."""
        return self.mods.model(self.mods.compute_features(wav))


def load_modules(folder):
    """Builds what the YAML describes and loads its weights."""
    with open(os.path.join(folder, "hyperparams.yaml")) as fin:
        loaded = load_hyperpyyaml(fin)
    for name in loaded["modules"]:
        path = os.path.join(folder, name + ".ckpt")
        state = torch.load(path, weights_only=True)
        loaded[name].load_state_dict(state)
        loaded[name].eval()
    return loaded


@pytest.mark.parametrize("name", models.MODELS)
def test_saved_models_load_and_agree(name, tmp_path):
    """The YAML and weights of tensors only give the same output."""
    folder = str(tmp_path / "a" / "compact")
    _, model, features = save(folder, name, sample_rate=16000, note="a: b")
    loaded = load_modules(folder)
    assert loaded["sample_rate"] == 16000 and loaded["note"] == "a: b"
    wav = 0.1 * torch.randn(2, 4000)
    feats = loaded["compute_features"](wav)
    assert torch.equal(feats, features(wav))
    assert loaded["compute_features"].compute_fbanks.top_db == 300
    assert torch.equal(loaded["model"](feats), model(feats))
    with open(os.path.join(folder, "hyperparams.yaml")) as fin:
        text = fin.read()
    assert "noisegate" not in text and text.startswith("# Two\n# lines.\n")
    assert sorted(os.listdir(folder)) == [
        "compute_features.ckpt",
        "hyperparams.yaml",
        "model.ckpt",
    ]
    assert os.listdir(tmp_path / "a") == ["compact"]


def test_loading_through_the_interface(tmp_path):
    """Pretrained.from_hparams, where noisegate is installed."""
    _, model, features = save(str(tmp_path / "compact"))
    detector = Detector.from_hparams(
        source=str(tmp_path / "compact"), savedir=str(tmp_path / "saved")
    )
    wav = 0.1 * torch.randn(2, 4000)
    assert torch.equal(detector(wav), model(features(wav)))


def test_a_normalizer_is_saved_too(tmp_path):
    """The recipe's normalization of features belongs to the model."""
    _, model, features = cut("crnn")
    norm = sb.processing.features.InputNormalization(norm_type="sentence")
    modules = {
        "compute_features": features,
        "mean_var_norm": norm,
        "model": model,
    }
    originals = {
        "model": "!apply:tests.unittests.models.crnn",
        "mean_var_norm": f"{NORMALIZER}\n    norm_type: sentence",
    }
    save_compact(str(tmp_path / "compact"), modules, "", originals)
    loaded = load_hyperpyyaml(
        (tmp_path / "compact" / "hyperparams.yaml").open()
    )
    feats = torch.randn(2, 20, 7)
    lengths = torch.ones(2)
    assert torch.equal(
        loaded["mean_var_norm"](feats, lengths), norm(feats, lengths)
    )


def test_results_are_never_overwritten(tmp_path):
    """An existing folder is an error and stays as it was."""
    folder = tmp_path / "compact"
    folder.mkdir()
    (folder / "mine.txt").write_text("kept")
    with pytest.raises(FileExistsError, match="not overwritten"):
        save(str(folder))
    assert os.listdir(folder) == ["mine.txt"]
    assert os.listdir(tmp_path) == ["compact"]


def test_a_failed_save_leaves_nothing_behind(tmp_path, monkeypatch):
    """Neither the folder nor parts of it."""

    def fail(*args):
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="no space"):
        save(str(tmp_path / "compact"))
    assert os.listdir(tmp_path) == []


def test_weights_of_other_widths_do_not_load(tmp_path):
    """The error names the tensor that does not fit."""
    save(str(tmp_path / "compact"))
    loaded = load_modules(str(tmp_path / "compact"))
    other = cut("crnn", seed=1)[1]
    with pytest.raises(RuntimeError, match="conv1.conv.weight"):
        loaded["model"].load_state_dict(other.state_dict())
    # Nor does a full checkpoint, in either direction
    full = models.crnn()
    with pytest.raises(RuntimeError, match="size mismatch.*rnn.rnn.weight"):
        full.load_state_dict(other.state_dict())
    # And a wrong file in the folder is noticed by SpeechBrain
    path = tmp_path / "compact" / "model.ckpt"
    torch.save(other.state_dict(), path)
    with pytest.raises(RuntimeError, match="conv1.conv.weight"):
        Detector.from_hparams(
            source=str(tmp_path / "compact"), savedir=str(tmp_path / "saved")
        )


def test_the_cut_model_can_be_trained():
    """All parameters get gradients, and the width stays."""
    gates = models.gated("transformer")
    loss = ComplexityLoss(gates, budget=0.4)
    loss.freeze()
    model, _ = compact(gates)
    x = models.open_bands(gates, torch.randn(2, 21, 80))
    model.train()(x).square().sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key


def test_settings_that_cannot_be_written_are_an_error(tmp_path):
    """Softmax(apply_log=True) would be loaded as Softmax()."""
    softmax = {"softmax": Softmax(apply_log=True)}
    original = "!new:speechbrain.nnet.activations.Softmax"
    with pytest.raises(ValueError, match="act is .*cannot be set"):
        save_compact(tmp_path / "a", softmax, "", {"softmax": original})
    original += "\n    apply_log: True"
    save_compact(tmp_path / "b", softmax, "", {"softmax": original})
    text = (tmp_path / "b" / "hyperparams.yaml").read_text()
    x = torch.randn(2, 5, 4)
    loaded = load_hyperpyyaml(text)["softmax"]
    assert torch.equal(loaded(x), softmax["softmax"](x))


def test_how_a_module_was_built_has_to_be_known(tmp_path):
    """The function or class of the recipe must be at hand."""
    net = {"model": torch.nn.Linear(3, 2)}
    with pytest.raises(ValueError, match="originals must say how 'model'"):
        save_compact(tmp_path / "a", net)
    made = {"model": "!apply:nowhere.student"}
    with pytest.raises(ValueError, match="'model' cannot be built.*nowhere"):
        save_compact(tmp_path / "a", net, "", made)


def test_the_file_of_a_function_is_saved_too(tmp_path, monkeypatch):
    """A recipe's own one, beside it."""
    code = "from torch.nn import Linear\nmake = lambda: Linear(3, 2)\n"
    (tmp_path / "own_students.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    net = {"model": torch.nn.Linear(3, 2)}
    made = {"model": "!apply:own_students.make"}
    save_compact(tmp_path / "compact", net, "", made)
    assert (tmp_path / "compact" / "own_students.py").read_text() == code


def test_layers_that_ask_for_gates_are_written_as_plain_ones(tmp_path):
    """Their gates are no arguments of the plain ones."""
    hparams = tmp_path / "train.yaml"
    hparams.write_text(
        """
features: !new:noisegate.GatedFbank
    n_mels: 9
modules:
    model: !new:speechbrain.nnet.containers.Sequential
        input_shape: [null, null, 9]
        hidden: !name:noisegate.GatedLinear
            n_neurons: 7
            gate: !name:noisegate.NoiseGate
                ramp: 1
        out: !name:speechbrain.nnet.linear.Linear
            n_neurons: 1
"""
    )
    text = constructor(str(hparams), "model")
    assert "noisegate" not in text and "ramp" not in text
    assert "hidden: !name:speechbrain.nnet.linear.Linear" in text
    text = constructor(str(hparams), "features")
    assert text.startswith("!new:speechbrain.lobes.features.Fbank")


@pytest.mark.parametrize(
    "normalized",
    [
        torch.nn.utils.spectral_norm,
        torch.nn.utils.weight_norm,
        torch.nn.utils.parametrizations.spectral_norm,
        torch.nn.utils.parametrizations.weight_norm,
    ],
)
def test_weights_of_folded_layers_load(normalized):
    """Into a fresh model that was cut to the same sizes."""

    def build():
        hidden = normalized(torch.nn.Linear(5, 8))
        return torch.nn.Sequential(hidden, torch.nn.Linear(8, 2)).eval()

    gates = Gates(build(), example=[torch.randn(3, 5)])
    gates.freeze({"0": 3})
    small, _ = compact(gates)
    loaded = models.corrected(build(), models.corrections(build(), small))
    loaded.load_state_dict(small.state_dict())
    x = torch.randn(4, 5)
    assert torch.equal(loaded(x), small(x))


def trained_normalizer(**options):
    """Statistics of two batches."""
    normalizer = InputNormalization(**options)
    for seed in range(2):
        torch.manual_seed(seed)
        normalizer(2 + torch.randn(3, 9, 4), torch.ones(3))
    return normalizer.eval()


NORMALIZER = "!new:speechbrain.processing.features.InputNormalization"


class Normalized(Pretrained):
    """Features, normalized."""

    MODULES_NEEDED = ["mean_var_norm"]


@pytest.mark.parametrize("std_norm", [True, False])
def test_statistics_and_later_settings_of_normalizers_are_saved(
    std_norm, tmp_path
):
    """Global ones; attributes that a recipe sets behind the constructor."""
    normalizer = trained_normalizer(norm_type="global")
    normalizer.std_norm = std_norm
    originals = {"mean_var_norm": f"{NORMALIZER}\n    norm_type: global"}
    folder = str(tmp_path / "compact")
    save_compact(folder, {"mean_var_norm": normalizer}, "", originals)
    loaded = Normalized.from_hparams(source=folder, savedir=folder)
    x, lens = torch.randn(2, 9, 4), torch.ones(2)
    got = loaded.mods.mean_var_norm(x, lens)
    assert torch.equal(got, normalizer(x, lens))
    assert loaded.mods.mean_var_norm.std_norm is std_norm


def test_a_setting_that_cannot_be_written_is_an_error(tmp_path):
    """With its name; nothing is left behind."""
    normalizer = trained_normalizer(norm_type="global")
    normalizer.kind = torch.nn.Linear
    originals = {"norm": f"{NORMALIZER}\n    norm_type: global"}
    with pytest.raises(ValueError, match="'norm': its kind is .*Linear"):
        save_compact(tmp_path / "a" / "b", {"norm": normalizer}, "", originals)
    assert not list(tmp_path.glob("**/*.yaml"))


@pytest.mark.parametrize("bands", [None, 5])
def test_later_settings_of_filterbanks_are_kept(bands, tmp_path):
    """Whether mel bands are cut or not."""
    front_end = Fbank(n_mels=8)
    front_end.compute_fbanks.log_mel = False
    if bands:
        front_end = rule_of(front_end).cut("out", torch.arange(bands))
    save_compact(tmp_path / "compact", {"compute_features": front_end})
    loaded = load_modules(str(tmp_path / "compact"))["compute_features"]
    wav = torch.rand(1, 1600)
    assert torch.equal(loaded(wav), front_end(wav))
    assert float(front_end(wav).min()) >= 0  # no decibels


def test_a_cut_model_is_gated_again(tmp_path):
    """In part, and after its folder was loaded; it saves as ever."""
    gates, model, features = save(tmp_path / "first")
    loaded = load_modules(str(tmp_path / "first"))["model"]
    shape = [1, 21, gates.integer_widths()["features"]]
    again = Gates(loaded, input_shape=shape, layers=["conv2"])
    (name,) = again
    width = again[name].min_width
    assert width < again[name].size == gates.integer_widths()[name]
    again.freeze({name: width})
    small, _ = compact(again)
    x = torch.randn(2, *shape[1:])
    torch.testing.assert_close(small(x), again.model.eval()(x))
    original = {"model": "!apply:tests.unittests.models.crnn"}
    save_compact(tmp_path / "second", {"model": small}, "", original)
    twice = load_modules(str(tmp_path / "second"))["model"]
    assert torch.equal(twice(x), small(x))


def test_batch_norms_of_several_gpus_are_saved_as_plain_ones(tmp_path):
    """SpeechBrain puts SyncBatchNorm in their place for DDP."""
    model = torch.nn.Sequential(
        torch.nn.Conv1d(4, 8, 3),
        torch.nn.BatchNorm1d(8),
        torch.nn.Conv1d(8, 2, 1),
    )
    gates = Gates(model, example=[torch.randn(1, 4, 20)])
    gates.freeze({"0": 3})
    torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    small, _ = compact(gates)
    made = "!new:torch.nn.Sequential"
    for line in ("Conv1d [4, 8, 3]", "BatchNorm1d [8]", "Conv1d [8, 2, 1]"):
        made += f"\n    - !new:torch.nn.{line}"
    folder = str(tmp_path / "compact")
    save_compact(folder, {"model": small}, "", {"model": made})
    loaded = load_modules(folder)["model"]
    assert type(loaded[1]) is torch.nn.BatchNorm1d
    x = torch.randn(2, 4, 30)
    assert torch.equal(loaded(x), small(x))
