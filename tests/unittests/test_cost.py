"""The cost model against counts on the cut model, and the budget."""

import pytest
import torch
from speechbrain.lobes.models.transformer.Transformer import (
    TransformerEncoderLayer,
)
from speechbrain.nnet.CNN import Conv1d, Conv2d
from speechbrain.nnet.containers import Sequential
from speechbrain.nnet.linear import Linear
from speechbrain.nnet.normalization import BatchNorm1d, LayerNorm
from speechbrain.nnet.RNN import GRU
from torch.nn.utils import parametrizations

from noisegate.compact import compact
from noisegate.cost import CostModel
from noisegate.cut import cut_copy
from noisegate.gates import Gates
from tests.unittests import models
from tests.unittests.referee import count_macs


def test_the_referee_counts_fused_layers():
    """Products are counted in the layers that have fused kernels."""
    x = torch.rand(2, 10, 8)
    linear = torch.nn.Linear(8, 3)
    assert count_macs(linear, x) == 2 * 10 * 8 * 3
    gru = torch.nn.GRU(8, 5, batch_first=True).eval()
    assert count_macs(gru, x) == 2 * 10 * 3 * 5 * (8 + 5)
    att = torch.nn.MultiheadAttention(8, 2, batch_first=True).eval()
    expected = 2 * 10 * 4 * 8 * 8 + 2 * 2 * 10 * 10 * 8
    assert count_macs(att, x, x, x) == expected


def n_parameters(model):
    """Number of parameters."""
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("gate", models.GATES)
@pytest.mark.parametrize("name", models.MODELS)
def test_costs_are_those_of_the_cut_model(name, gate):
    """MACs and parameters, at full width and at random widths."""
    gates = models.gated(name, gate)
    wav = torch.rand(1, round(16000 * models.SECONDS))
    for seed in range(4):
        gates = models.gated(name, gate)
        widths = random = models.random_widths(gates, seed)
        if seed == 0:
            widths = {k: g.size for k, g in gates.items()}
        gates.freeze(widths)
        model, features = compact(gates)
        counted = count_macs(model, features(wav))
        frames = features(wav).shape[1]
        bank = frames * 201 * widths.get("features", models.BANDS)
        assert count_macs(features, wav) == bank
        assert gates.cost.macs(widths) == counted + bank
        assert gates.cost.params(widths) == n_parameters(model)
        assert type(gates.cost.macs(widths)) is int
        if seed == 0:
            assert gates.cost.macs() == counted + bank
            assert gates.cost.ratio(widths) == 1
        else:
            assert widths is random and counted + bank < gates.cost.macs()


LAYERS = {
    "linear": lambda: Linear(n_neurons=6, input_size=8),
    "linear_without_bias": lambda: Linear(
        n_neurons=6, input_size=8, bias=False
    ),
    "conv1d": lambda: Conv1d(
        in_channels=8, out_channels=6, kernel_size=5, stride=2
    ),
    "conv1d_dilated": lambda: Conv1d(
        in_channels=8,
        out_channels=6,
        kernel_size=3,
        dilation=2,
        padding="valid",
        bias=False,
    ),
    "conv2d": lambda: Conv2d(
        out_channels=6,
        kernel_size=(3, 5),
        input_shape=(None, None, 8),
        stride=(2, 1),
    ),
    "gru": lambda: GRU(hidden_size=6, input_size=8),
    "gru_without_bias": lambda: GRU(
        hidden_size=6, input_size=8, num_layers=3, bias=False
    ),
    "gru_bidirectional": lambda: GRU(
        hidden_size=6, input_size=8, num_layers=2, bidirectional=True
    ),
    "encoder": lambda: TransformerEncoderLayer(d_ffn=12, nhead=2, d_model=8),
    "encoder_1dcnn": lambda: TransformerEncoderLayer(
        d_ffn=12, nhead=2, d_model=8, ffn_type="1dcnn"
    ),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_each_layer_type(kind):
    """One layer between two others, batch and strides and biases."""
    for seed in range(3):
        torch.manual_seed(seed)
        net = Sequential(
            first=Linear(n_neurons=8, input_size=7), layer=LAYERS[kind]()
        )
        size = net(torch.zeros(1, 21, 7)).flatten(2).shape[-1]
        net.append(
            Linear(n_neurons=1, input_size=size, combine_dims=True),
            layer_name="out",
        )
        gates = Gates(net, input_shape=[3, 21, 7])
        widths = models.random_widths(gates, seed)
        gates.freeze(widths)
        model, _ = compact(gates)
        x = torch.zeros(3, 21, 7)
        assert gates.cost.macs(widths) == count_macs(model, x)
        assert gates.cost.params(widths) == n_parameters(model)


def test_macs_by_hand():
    """A linear chain, per second and by layer."""
    net = Sequential(
        a=Linear(n_neurons=5, input_size=8),
        norm=BatchNorm1d(input_size=5),
        b=Linear(n_neurons=2, input_size=5),
    )
    gates = Gates(net, input_shape=[1, 50, 8], segment_s=0.5)
    cost = gates.cost
    assert cost.macs() == 50 * (8 * 5 + 5 * 2)
    assert cost.macs_per_second() == 2 * cost.macs()
    assert cost.macs_per_second({"a": 3}) == 100 * (8 * 3 + 3 * 2)
    assert cost.macs_by_layer({"a": 3}) == {"a.w": 2400, "b.w": 600}
    assert cost.params({"a": 3}) == (24 + 3) + 6 + (6 + 2)
    assert cost.activations({"a": 3}) == 50 * (3 + 3 + 2)
    assert cost.ratio({"a": 3}) == 3 / 5


def test_a_layer_that_runs_twice_counts_twice():
    """Shared layers cost each time they run."""
    shared = Linear(n_neurons=8, input_size=8)
    net = Sequential(a=shared, out=Linear(n_neurons=1, input_size=8))
    once = Gates(net, input_shape=[1, 10, 8], layers=[]).cost.macs()
    forward = shared.forward
    shared.forward = lambda x: forward(forward(x))
    twice = Gates(net, input_shape=[1, 10, 8], layers=[]).cost.macs()
    assert twice - once == 10 * 8 * 8


@pytest.mark.parametrize("name", ["crnn_batch", "conv2d"])
def test_agreement_with_fvcore(name):
    """Linear and convolutional layers, which fvcore counts too."""
    fvcore = pytest.importorskip("fvcore.nn")
    gates = models.gated(name)
    widths = models.random_widths(gates, 2)
    gates.freeze(widths)
    model, features = compact(gates)
    wav = torch.rand(1, round(16000 * models.SECONDS))
    counted = fvcore.FlopCountAnalysis(model, features(wav))
    counted.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    by_module = counted.by_module()
    compared = 0
    for path, macs in gates.cost.macs_by_layer(widths).items():
        if path.endswith((".w", ".conv")):
            assert by_module[path] == round(macs * models.SECONDS), path
            compared += 1
    assert compared >= 3


@pytest.mark.parametrize("which", ["macs", "params", "activations"])
@pytest.mark.parametrize("name", models.MODELS)
def test_the_gradient_of_the_cost(name, which):
    """Autograd agrees with finite differences in each width."""
    gates = models.gated(name)
    cost = getattr(gates.cost, which)
    point = {
        k: torch.tensor(0.6 * g.size, dtype=torch.float64, requires_grad=True)
        for k, g in gates.items()
    }
    cost(point).backward()
    for key, width in point.items():
        with torch.no_grad():
            plus = cost({**point, key: width + 0.01})
            minus = cost({**point, key: width - 0.01})
        slope = float(plus - minus) / 0.02
        assert float(width.grad) == pytest.approx(slope, rel=1e-6), key
        assert slope > 0


def test_costs_agree_between_integers_and_tensors():
    """One formula serves the loss and the report."""
    gates = models.gated("transformer")
    widths = models.random_widths(gates, 5)
    real = {k: torch.tensor(float(v)).double() for k, v in widths.items()}
    assert float(gates.cost.macs(real)) == gates.cost.macs(widths)


def test_the_cost_pass_leaves_the_model_as_it_was():
    """No statistics, no mode, no hooks."""
    torch.manual_seed(0)
    model = models.crnn_batch().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    Gates(model, input_shape=[1, 20, 80], layers=[])
    assert model.training
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert not any(m._forward_hooks for m in model.modules())


# ---- the loss ---------------------------------------------------------------


def test_normalizations_of_fixed_groups_count_their_parameters():
    """A norm over both directions of a GRU has twice the channels."""
    net = Sequential(
        rnn=GRU(hidden_size=6, input_size=8, bidirectional=True),
        norm=LayerNorm(input_size=12),
        out=Linear(n_neurons=1, input_size=12),
    )
    gates = Gates(net, input_shape=[1, 10, 8], layers=[])
    assert gates.cost.params() == n_parameters(net)
    assert gates.cost.activations() == 10 * (12 + 12 + 1)


class Products(torch.nn.Module):
    """Attention by hand: two weighted sums over the frames."""

    def __init__(self):
        super().__init__()
        self.score = torch.nn.Linear(6, 1)
        self.one, self.two = torch.nn.Linear(6, 8), torch.nn.Linear(6, 16)
        self.out = torch.nn.Linear(24, 2)

    def forward(self, x):
        """Maps (1, 20 frames, 6) to (1, 20 frames, 2)."""
        score = self.score(x)
        weights = (score - score.mT).softmax(-1)
        sums = [weights @ self.one(x), weights @ self.two(x).relu()]
        return self.out(torch.cat(sums, dim=-1))


@pytest.mark.parametrize("seed", range(4))
def test_products_between_the_layers(seed):
    """Their MACs follow the widths, and have gradients."""
    torch.manual_seed(0)
    x = torch.rand(1, 20, 6)
    gates = Gates(Products(), example=[x])
    assert list(gates) == ["one", "two"]
    full = gates.cost.macs()
    assert full == count_macs(gates.model.eval(), x)
    widths = models.random_widths(gates, seed)
    gates.freeze(widths)
    assert gates.cost.macs(widths) == count_macs(compact(gates)[0], x)
    assert type(gates.cost.macs(widths)) is int
    width = torch.tensor(8.0, requires_grad=True)
    total = gates.cost.macs({"one": width})
    assert float(total) == full
    total.backward()
    # A channel is made, summed over the frames for each frame, and read
    assert float(width.grad) == 20 * (6 + 20 + 2)


class Pooled(torch.nn.Module):
    """Multiplies channels by their own kind: quadratic in the width."""

    def __init__(self):
        super().__init__()
        self.one, self.two = torch.nn.Linear(6, 8), torch.nn.Linear(8, 2)

    def forward(self, x):
        """Maps (1, 20 frames, 6) to (1, 20 frames, 2)."""
        hidden = self.one(x)
        energies = (hidden.mT @ hidden).diagonal(dim1=1, dim2=2)
        return self.two(hidden + energies[:, None] / 20)


def test_products_of_channels_with_their_own_kind_are_counted(caplog):
    """The cost is that of the cut model at every width."""
    net, x = Pooled(), [torch.rand(1, 20, 6)]
    gates = Gates(net, example=x)
    assert list(gates) == ["one"] and not caplog.text
    for width in range(1, gates["one"].size + 1):
        keep = {"one": torch.arange(width)}
        small = cut_copy(gates.plain_copy(), gates.groups, keep)
        assert gates.cost.macs({"one": width}) == count_macs(small, *x)


class Unlike(Products):
    """What it multiplies jumps with the width."""

    def forward(self, x):
        """Maps (1, 20 frames, 6) to (1, 20 frames, 2)."""
        if self.one.out_features > 3:
            self.one(x).mT @ self.one(x)
        return super().forward(x)


def test_products_that_are_not_explained_are_said(caplog):
    """No straight line: the cost cannot be exact."""
    torch.manual_seed(0)
    with caplog.at_level("WARNING"):
        Gates(Unlike(), example=[torch.rand(1, 20, 6)])
    assert "in a way that the cost model does not know" in caplog.text


class Experts(torch.nn.Module):
    """Each frame goes through the layers that a router chooses for it."""

    def __init__(self):
        super().__init__()
        self.one = torch.nn.Linear(6, 8)
        self.router = torch.nn.Linear(8, 2)
        self.experts = torch.nn.ModuleList(
            torch.nn.Sequential(
                torch.nn.Linear(8, 12), torch.nn.ReLU(), torch.nn.Linear(12, 3)
            )
            for _ in range(2)
        )

    def forward(self, x):
        """Maps (batch, frames, 6) to (batch, frames, 3)."""
        x = self.one(x)
        chosen = self.router(x).argmax(-1)
        y = x.new_zeros(*x.shape[:2], 3)
        for i, expert in enumerate(self.experts):
            y[chosen == i] = expert(x[chosen == i])
        return y


def test_costs_that_the_data_choose_are_said(caplog):
    """Experts of one size cost the same whichever is chosen; cut to different
    ones they do not, and a cut router may choose others."""
    torch.manual_seed(0)
    with caplog.at_level("WARNING"):
        gates = Gates(Experts(), example=[torch.randn(1, 40, 6)])
    assert {"one", "experts.0.0", "experts.1.0"} <= {*gates}
    assert "where the data say" in caplog.text


class Causal(torch.nn.Conv1d):
    """Pads on both sides and takes away what is too much."""

    def __init__(self, n_in, n_out):
        super().__init__(n_in, n_out, 3, padding=2)

    def forward(self, x):
        return super().forward(x)[..., :-2]


def test_layers_that_compute_more_than_they_return():
    """Their positions are those that are computed."""
    net = torch.nn.Sequential(Causal(6, 8), torch.nn.ReLU(), Causal(8, 5))
    gates = Gates(net, example=[torch.rand(1, 6, 20)])
    gates.freeze({"0": 3})
    small, _ = compact(gates)
    x = torch.rand(1, 6, 20)
    assert gates.cost.macs() == count_macs(gates.plain_copy(), x)
    assert gates.cost.macs({"0": 3}) == count_macs(small, x)


class Twice(torch.nn.Linear):
    """Computes more than its formula knows."""

    def forward(self, x):
        return super().forward(x) @ x.new_ones(self.out_features, 5)


def test_a_formula_that_does_not_hold_is_said(caplog):
    """With the name of the layer."""
    net = torch.nn.Sequential(torch.nn.Linear(6, 8), Twice(8, 7))
    CostModel(net, [], [torch.rand(1, 9, 6)], 1.0)
    assert "'1' (Twice)" in caplog.text


class Scaled(torch.nn.Linear):
    """Has parameters that its parent has not."""

    def __init__(self, n_in, n_out):
        super().__init__(n_in, n_out)
        self.scale = torch.nn.Parameter(torch.rand(n_out))

    def forward(self, x):
        return super().forward(x) * self.scale


class Attending(torch.nn.Module):
    """Keys and values have widths of their own."""

    def __init__(self, attention):
        super().__init__()
        self.read = torch.nn.Linear(6, 8)
        self.keys = torch.nn.Linear(6, 5)
        self.values = torch.nn.Linear(6, 3)
        self.attention = attention
        self.inner = torch.nn.Linear(8, 7)
        self.out = torch.nn.Linear(7, 2)

    def forward(self, x):
        read = self.read(x), self.keys(x), self.values(x)
        y, _ = self.attention(*read, need_weights=False)
        return self.out(self.inner(y).relu())


@pytest.mark.parametrize(
    "make",
    [
        lambda: Scaled(8, 8),
        lambda: parametrizations.orthogonal(torch.nn.Linear(8, 8)),
        lambda: parametrizations.weight_norm(torch.nn.Linear(8, 8)),
        lambda: torch.nn.utils.weight_norm(torch.nn.Linear(8, 8)),
        lambda: torch.nn.utils.spectral_norm(torch.nn.Linear(8, 8)),
        lambda: torch.nn.MultiheadAttention(
            8, 2, kdim=5, vdim=3, batch_first=True
        ),
    ],
    ids="subclass orthogonal weight_norm older spectral attention".split(),
)
def test_parameters_are_those_of_the_cut_model(make):
    """What computes or scales weights is folded before anything is counted."""
    middle = make()
    if isinstance(middle, torch.nn.MultiheadAttention):
        net = Attending(middle)
    else:
        net = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU())
        net.extend([middle, torch.nn.Linear(8, 7), torch.nn.Linear(7, 2)])
    gates = Gates(net.eval(), input_shape=[1, 20, 6])
    for draw in (0, 1):
        widths = models.random_widths(gates, draw)
        gates.freeze(widths)
        small, _ = compact(gates)
        assert gates.cost.params(widths) == n_parameters(small)
        said = gates.cost.macs(widths)
        assert said == count_macs(small, torch.rand(1, 20, 6))


class Language(torch.nn.Module):
    """A language model whose output layer has the embedding's weights."""

    def __init__(self, between):
        super().__init__()
        self.embedding, self.between = torch.nn.Embedding(30, 8), between
        self.out = torch.nn.Linear(8, 30)
        self.out.weight = self.embedding.weight

    def forward(self, x):
        return self.out(self.between(self.embedding(x)).relu())


def test_shared_weights_are_counted_and_cut_once():
    """Of a stream that both have; they stay one parameter."""
    net = Language(torch.nn.Identity())
    gates = Gates(net, example=[x := torch.randint(0, 30, (1, 9))])
    gates["embedding"].reorder(torch.rand(8))
    gates.freeze({"embedding": 3})
    small, _ = compact(gates)
    assert small.out.weight is small.embedding.weight
    assert gates.cost.params() == 30 * 8 + 30
    assert gates.cost.params({"embedding": 3}) == n_parameters(small) == 120
    torch.testing.assert_close(small(x), net.eval()(x))


def test_streams_that_share_a_matrix_have_one_width():
    """Whatever is between them."""
    between = [torch.nn.Linear(8, 7), torch.nn.ReLU(), torch.nn.Linear(7, 8)]
    net = Language(torch.nn.Sequential(*between))
    gates = Gates(net, example=[x := torch.randint(0, 30, (1, 9))])
    assert list(gates) == ["embedding", "between.0"]
    for gate in gates.values():
        gate.reorder(torch.rand(gate.size))
    gates.freeze(widths := {"embedding": 3, "between.0": 4})
    small, _ = compact(gates)
    assert small.out.weight is small.embedding.weight
    assert gates.cost.params(widths) == n_parameters(small)
    torch.testing.assert_close(small(x), net.eval()(x))


@pytest.mark.parametrize("biases", [False, True])
def test_a_chain_of_layers_with_one_matrix_has_one_width(biases):
    net = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(5)))
    net[2].weight = net[3].weight = net[1].weight
    if biases:
        net[2].bias = net[3].bias = net[1].bias
    gates = Gates(net, example=[x := torch.rand(1, 9, 8)])
    assert list(gates) == ["0"] and gates.groups[1].role == "residual"
    gates["0"].reorder(torch.rand(8))
    gates.freeze({"0": 3})
    small, _ = compact(gates)
    assert small[1].weight is small[2].weight is small[3].weight
    assert (small[2].bias is small[1].bias) is biases
    assert gates.cost.params({"0": 3}) == n_parameters(small)
    torch.testing.assert_close(small(x), net.eval()(x))


def test_a_matrix_that_layers_would_cut_in_two_ways_stays():
    """One of them reads the input of the model."""
    net = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(3)))
    net[1].weight = net[0].weight
    with pytest.raises(ValueError, match="which other layers share"):
        Gates(net, example=[torch.rand(1, 9, 8)])
