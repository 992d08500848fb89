"""Gates on a model: nothing changes while they are open, then only theirs."""

import io
import math

import pytest
import speechbrain as sb
import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.lobes.models.transformer.Transformer import (
    TransformerEncoderLayer,
)
from speechbrain.nnet.CNN import Conv1d, Conv2d
from speechbrain.nnet.containers import Sequential
from speechbrain.nnet.linear import Linear
from speechbrain.nnet.normalization import LayerNorm
from speechbrain.nnet.RNN import GRU

from noisegate import layers
from noisegate.baselines.gates import HardConcreteGate
from noisegate.gate import NoiseGate
from noisegate.gates import Gates, Tap, spread_ranks
from tests.unittests import models


def seeded(function, *args):
    """A call with the random state that all calls of a test share."""
    torch.manual_seed(7)
    return function(*args)


def without_dropout(model):
    """Two training passes then differ by the gates only."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(module, torch.nn.MultiheadAttention):
            module.dropout = 0.0
    return model


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", models.MODELS)
def test_open_gates_change_nothing(name, training):
    """The output is that of the plain model, to the bit; so are gradients."""
    torch.manual_seed(0)
    plain = models.randomise(models.MODELS[name]())
    gates = models.gated(name)
    plain, model = without_dropout(plain), without_dropout(gates.model)
    x = torch.randn(3, 21, 80)
    outputs, gradients = [], []
    for net in (plain, model):
        net.train(training)
        output = seeded(net, x)
        output.square().sum().backward()
        outputs.append(output)
        gradients.append(
            {k: p.grad for k, p in net.named_parameters() if "gate_" not in k}
        )
    assert torch.equal(*outputs)
    assert gradients[0].keys() == gradients[1].keys()
    for key, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][key]), key


ENCODER_OPTIONS = {"d_ffn": 12, "nhead": 2, "d_model": 8}
TWINS = {
    "linear": (
        (Linear, layers.GatedLinear),
        {"n_neurons": 6, "input_size": 8},
    ),
    "conv1d": (
        (Conv1d, layers.GatedConv1d),
        {"out_channels": 6, "kernel_size": 3, "in_channels": 8},
    ),
    "gru": ((GRU, layers.GatedGRU), {"hidden_size": 6, "input_size": 8}),
    "encoder": (
        (TransformerEncoderLayer, layers.GatedTransformerEncoderLayer),
        ENCODER_OPTIONS,
    ),
    "conv2d": (
        (Conv2d, layers.GatedConv2d),
        {
            "out_channels": 4,
            "kernel_size": (3, 3),
            "input_shape": (None, None, 8),
        },
    ),
}


@pytest.mark.parametrize("name", TWINS)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_gated_layers_equal_their_twins(name, training):
    """Each gated layer is the plain layer, attached or not."""
    classes, options = TWINS[name]
    x = torch.randn(2, 9, 8)
    outputs, gradients = [], []
    for kind in classes:
        layer = seeded(lambda kind=kind: kind(**options))
        net = Sequential(layer=layer)
        n_out = net(x).flatten(2).shape[-1]
        torch.manual_seed(8)
        last = Linear(n_neurons=1, input_size=n_out, combine_dims=True)
        net.append(last, layer_name="out")
        without_dropout(net)
        if kind.__module__.startswith("noisegate"):
            gates = Gates(net, input_shape=[1, 9, 8])
            expected = "layer.pos_ffn" if name == "encoder" else "layer"
            assert list(gates) == [expected]
        net.train(training)
        y = layer(x)
        y = y[0] if isinstance(y, tuple) else y
        y = net.out(y)
        y.sum().backward()
        outputs.append(y)
        gradients.append(next(layer.parameters()).grad)
    assert torch.equal(*outputs)
    assert torch.equal(*gradients)


def test_gated_fbank_equals_its_twin():
    """The gated filterbank is the plain one."""
    wav = torch.randn(2, 1600)
    plain = sb.lobes.features.Fbank(n_mels=20)(wav)
    assert torch.equal(plain, layers.GatedFbank(n_mels=20)(wav))


YAML = """
features: !new:noisegate.layers.GatedFbank
    n_mels: 24
    gate: !name:noisegate.NoiseGate
        kappa_min: 0.25
model: !new:speechbrain.nnet.containers.Sequential
    input_shape: [null, null, 24]
    conv: !name:noisegate.layers.GatedConv1d
        out_channels: 8
        kernel_size: 3
        gate: !name:noisegate.baselines.gates.HardConcreteGate
    norm: !name:speechbrain.nnet.normalization.BatchNorm1d
    act: !new:torch.nn.ReLU
    rnn: !name:noisegate.layers.GatedGRU
        hidden_size: 6
        bidirectional: True
    hidden: !name:noisegate.layers.GatedLinear
        n_neurons: 8
        gate: !name:noisegate.NoiseGate
            ramp: 2
    encoder: !new:noisegate.layers.GatedTransformerEncoderLayer
        d_ffn: 12
        nhead: 2
        d_model: 8
    out: !name:speechbrain.nnet.linear.Linear
        n_neurons: 1
gates: !new:noisegate.Gates
    model: !ref <model>
    front_end: !ref <features>
    granularity: 2
"""


def test_gated_layers_in_yaml():
    """!new: and !name:, each with the gate it asks for."""
    loaded = load_hyperpyyaml(io.StringIO(YAML))
    gates = loaded["gates"]
    assert list(gates) == [
        "features",
        "conv",
        "rnn",
        "hidden",
        "encoder.pos_ffn",
    ]
    kinds = [type(gate) for gate in gates.values()]
    assert kinds == [NoiseGate, HardConcreteGate, *[NoiseGate] * 3]
    assert gates["features"].min_width == 6
    assert gates["hidden"].ramp == 2
    assert {gate.granularity for gate in gates.values()} == {2}
    loaded["model"].train()
    loaded["model"](loaded["features"](torch.randn(2, 1600))).sum().backward()


def test_conv2d_in_yaml():
    """The two-dimensional layer too."""
    model = load_hyperpyyaml(
        """
model: !new:speechbrain.nnet.containers.Sequential
    input_shape: [null, null, 24]
    conv: !name:noisegate.layers.GatedConv2d
        out_channels: 4
        kernel_size: [3, 3]
    rnn: !name:speechbrain.nnet.RNN.GRU
        hidden_size: 5
    out: !name:speechbrain.nnet.linear.Linear
        n_neurons: 1
"""
    )["model"]
    assert list(Gates(model, input_shape=[1, 9, 24])) == ["conv"]


def test_building_leaves_the_gates_untouched():
    """The zero batches of the construction reach no statistics."""
    gates = load_hyperpyyaml(io.StringIO(YAML))["gates"]
    for _, tap in gates.taps():
        assert tap.n_passes == 0
        assert (tap.variance == 1).all()
    for name, gate in gates.items():
        if isinstance(gate, NoiseGate):
            assert gate.kappa == 1, name
        assert gate.frozen is None


def test_granularity_of_heads():
    """The model width stays a multiple of heads and of what is asked for."""
    gates = models.gated("transformer", granularity=2)
    sizes = {name: gate.granularity for name, gate in gates.items()}
    assert sizes["layer1.pos_ffn"] == 2 and sizes["project"] == 4
    with pytest.raises(ValueError, match="granularity must divide"):
        models.gated("transformer", granularity=3)


@pytest.mark.parametrize("gate", models.GATES)
@pytest.mark.parametrize("name", models.MODELS)
def test_each_tap_acts_once_per_pass(name, gate):
    """Features are mixed once, and with all that a step needs finite."""
    gates = models.gated(name, gate)
    for width_of in gates.values():
        width_of.set_width((width_of.size + width_of.min_width) / 2 + 0.3)
    calls = []
    for _, tap in gates.taps():
        forward = tap.forward
        tap.forward = lambda x, f=forward, t=tap: calls.append(t) or f(x)
    gates.model.train()
    output = gates.model(torch.randn(4, 21, 80))
    taps = list(gates.taps())
    assert len(calls) == len(taps) == len(set(map(id, calls)))
    for _, tap in taps:
        assert tap.n_passes == 1
    (output.square().mean() + sum(gates.widths().values())).backward()
    for key, parameter in gates.model.named_parameters():
        assert torch.isfinite(parameter.grad).all(), key


def test_a_stochastic_gate_closed_altogether_gives_no_nan():
    """At small widths all gates of a normalization may be 0 at once."""
    gates = models.gated("crnn", "stochastic")
    for gate in gates.values():
        with torch.no_grad():
            gate.location.fill_(-30)
    gates.model.train()
    for _ in range(3):
        output = gates.model(torch.randn(2, 21, 80))
        output.sum().backward()
        weights = [gate.channel_weights(True) for gate in gates.values()]
        assert not torch.cat(weights).any()
        assert torch.isfinite(output).all()
    for key, parameter in gates.model.named_parameters():
        if parameter.grad is not None:
            assert torch.isfinite(parameter.grad).all(), key


@pytest.mark.parametrize("name", models.MODELS)
def test_noise_reaches_the_output_in_training_only(name):
    """Two passes differ in training, not in evaluation."""
    gates = models.gated(name)
    for gate in gates.values():
        gate.set_width(max(gate.min_width, gate.size - 1.5))
    without_dropout(gates.model)
    x = torch.randn(3, 21, 80)
    gates.model.eval()
    assert torch.equal(gates.model(x), gates.model(x))
    gates.model.train()
    assert not torch.equal(gates.model(x), gates.model(x))


def test_one_noise_for_queries_keys_and_values():
    """Self-attention reads one gated input."""
    net = Sequential(
        first=Linear(n_neurons=8, input_size=8),
        encoder=TransformerEncoderLayer(**ENCODER_OPTIONS),
        out=Linear(n_neurons=1, input_size=8),
    )
    gates = Gates(net, input_shape=[1, 9, 8], layers=["first"])
    gates["first"].set_width(4.5)
    seen = []
    att = net.encoder.self_att.att
    att.register_forward_pre_hook(lambda module, args: seen.append(args[:3]))
    net.train()(torch.randn(2, 9, 8))
    (query, key, value) = seen[0]
    assert torch.equal(query, key) and torch.equal(query, value)


def test_closed_features_do_not_matter():
    """What a closed channel carries never reaches the output."""
    gates = models.gated("crnn")
    x = torch.randn(2, 21, 80)
    gates.freeze(models.random_widths(gates, 3))
    for training in (False, True):
        gates.model.train(training)
        closed = torch.ones(80, dtype=torch.bool)
        closed[gates["features"].open_channels()] = False
        other = x.clone()
        other[..., closed] = 1e3 * torch.randn(2, 21, int(closed.sum()))
        assert torch.equal(gates.model(x), gates.model(other))
        other[..., ~closed] += 1
        assert not torch.equal(gates.model(x), gates.model(other))


@pytest.mark.parametrize("gate", models.GATES)
def test_packed_sequences(gate):
    """A packed GRU input gives the output of the padded one."""
    net = Sequential(
        first=Linear(n_neurons=10, input_size=8),
        rnn=GRU(hidden_size=6, input_size=10, bidirectional=True),
        out=Linear(n_neurons=1, input_size=12),
    )
    gates = Gates(net, input_shape=[1, 9, 8], gate=models.GATES[gate])
    gates.freeze({"first": 5, "rnn": 4})
    x = net.first(torch.randn(3, 12, 8))
    lengths = torch.tensor([1.0, 0.5, 0.75])
    packed, _ = net.rnn(x, lengths=lengths)
    for row, length in zip(range(3), (12, 6, 9)):
        alone, _ = net.rnn(x[row : row + 1, :length])
        torch.testing.assert_close(packed[row, :length], alone[0])


def test_packed_sequences_train():
    """Noise and statistics work on packed data."""
    net = Sequential(
        first=Linear(n_neurons=10, input_size=8),
        rnn=GRU(hidden_size=6, input_size=10),
        out=Linear(n_neurons=1, input_size=6),
    )
    gates = Gates(net, input_shape=[1, 9, 8])
    gates["first"].set_width(6.5)
    net.train()
    lengths = torch.tensor([1.0, 0.5, 0.75])
    output, _ = net.rnn(net.first(torch.randn(3, 12, 8)), lengths=lengths)
    output.square().sum().backward()
    assert torch.isfinite(gates["first"].kappa.grad).all()
    assert net.rnn.rnn.tap.n_passes == 1


def test_statistics_follow_the_data():
    """A tap knows the standard deviation of what its layer reads."""
    torch.manual_seed(0)
    net = Sequential(
        norm=LayerNorm(input_size=6),
        conv=Conv1d(in_channels=6, out_channels=4, kernel_size=3),
        out=Linear(n_neurons=1, input_size=4),
    )
    gates = Gates(net, input_shape=[1, 9, 6], layers=["conv"])
    group, tap = next(gates.taps())
    assert group == "conv"
    net.train()
    for _ in range(60):
        x = torch.randn(50, 20, 6)
        net(x)
    features = net.conv(net.norm(x)).detach()
    expected = features.flatten(0, 1).var(0)
    torch.testing.assert_close(tap.variance, expected, rtol=0.1, atol=0)
    before = tap.variance.clone()
    net.eval()(x)
    gates.freeze({"conv": 2})
    net.train()(x)
    assert torch.equal(before, tap.variance)


def test_noise_has_the_deviation_of_the_features():
    """What a layer reads at the edge varies as it did, at any scale."""
    torch.manual_seed(0)
    net = Sequential(
        first=Linear(n_neurons=4, input_size=4, bias=False),
        out=Linear(n_neurons=1, input_size=4),
    )
    with torch.no_grad():
        net.first.w.weight.copy_(5 * torch.eye(4))
    gates = Gates(net, input_shape=[1, 9, 4])
    gates["first"].set_width(2.5)
    seen = []
    net.out.w.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    net.train()
    for _ in range(60):
        net(torch.randn(40, 20, 4))
    deviation = torch.cat(seen[20:]).detach().flatten(0, 1).std(0)
    torch.testing.assert_close(
        deviation[:3], torch.full((3,), 5.0), rtol=0.05, atol=0
    )


def test_usefulness_decides_the_order():
    """Channels that the next layer ignores are the first to close."""
    torch.manual_seed(0)
    net = Sequential(
        first=Linear(n_neurons=5, input_size=8),
        rnn=GRU(hidden_size=3, input_size=5, bidirectional=True),
        out=Linear(n_neurons=1, input_size=6),
    )
    gates = Gates(net, input_shape=[1, 9, 8])
    with torch.no_grad():
        for weight in (
            net.rnn.rnn.weight_ih_l0,
            net.rnn.rnn.weight_ih_l0_reverse,
        ):
            weight.mul_(torch.tensor([0.1, 0.4, 0.2, 0.5, 0.3]))
        # Unit 1 matters by its second direction only
        net.out.w.weight.copy_(torch.tensor([[0.3, 0.1, 0.2, 0.3, 9, 0.2]]))
    gates.reorder()
    assert gates["first"].rank.tolist() == [4, 1, 3, 0, 2]
    assert gates["rnn"].rank.tolist() == [1, 0, 2]
    gates["first"].reorder(torch.arange(5.0, 0, -1))
    gates.reorders = False
    gates.reorder()
    assert gates["first"].rank.tolist() == [0, 1, 2, 3, 4]


def test_reordering_open_gates_changes_nothing():
    """Order is only about what closes next."""
    gates = models.gated("crnn")
    x = torch.randn(2, 21, 80)
    before = gates.model(x)
    models.scramble(gates)
    assert torch.equal(before, gates.model(x))


def test_gates_are_part_of_the_model():
    """One state dict holds weights, widths, order and statistics, once."""
    gates = models.gated("transformer")
    state = gates.model.state_dict()
    assert sum(key.endswith(".kappa") for key in state) == len(gates)
    models.scramble(gates)
    gates.freeze(models.random_widths(gates))
    other = models.gated("transformer", seed=1)
    other.model.load_state_dict(gates.model.state_dict())
    assert other.integer_widths() == gates.integer_widths()
    x = torch.randn(2, 21, 80)
    assert torch.equal(gates.model.eval()(x), other.model.eval()(x))


def test_parameters_of_the_gates():
    """One parameter for each noise gate, all in the model."""
    gates = models.gated("crnn")
    parameters = gates.parameters()
    assert len(parameters) == len(gates) == 5
    of_model = {id(p) for p in gates.model.parameters()}
    assert all(id(p) in of_model for p in parameters)


def test_features_or_a_shape_is_needed():
    """Costs need an example; says what is missing, and takes no second."""
    both = {"input_shape": [1, 9, 8], "example": [torch.rand(1, 30, 8)]}
    for given in ({}, both):
        with pytest.raises(ValueError, match="front_end or input_shape"):
            Gates(models.crnn(), **given)


def test_autocast():
    """Half-precision passes keep their type and are finite."""
    gates = models.gated("transformer")
    for gate in gates.values():
        gate.set_width(gate.size - 2.5)
    gates.model.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = gates.model(torch.randn(2, 21, 80))
    assert output.dtype == torch.bfloat16
    output.float().square().mean().backward()
    assert math.isfinite(sum(float(p.grad.sum()) for p in gates.parameters()))


def test_taps_are_where_features_are_read():
    """No tap at the layer that makes them, one at each that reads them."""
    gates = models.gated("crnn")
    tapped = {
        path.rsplit(".", 1)[0]: module.gate
        for path, module in gates.model.named_modules()
        if isinstance(module, Tap)
    }
    assert tapped == {
        "conv1.conv": gates["features"],
        "conv2.conv": gates["conv1"],
        "rnn.rnn": gates["conv2"],
        "hidden.w": gates["rnn"],
        "out.w": gates["hidden"],
    }


@pytest.mark.parametrize("size", [1, 2, 23, 64, 80])
def test_spread_ranks_cover_all_channels(size):
    """Any number of first channels leaves no gap over twice the even one."""
    ranks = spread_ranks(size)
    assert sorted(ranks.tolist()) == list(range(size))
    for width in range(2, size):
        kept = (ranks < width).nonzero().flatten()
        assert int(kept.diff().max()) <= 2 * math.ceil(size / width)


def test_order_of_mel_bands():
    """Bands are spread and stay so; the published form keeps the lowest."""
    for reorder in (True, False):
        gates = models.gated("crnn", reorder=reorder)
        gates.reorder()
        gate = gates["features"]
        gate.freeze(20)
        lowest = torch.equal(gate.open_channels(), torch.arange(20))
        assert lowest is not reorder
