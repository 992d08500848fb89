"""The cost model against counts on the cut model, and the budget."""

import math

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

from noisegate.baselines.gates import HardConcreteGate
from noisegate.compact import compact
from noisegate.cost import CostModel
from noisegate.gate import NoiseGate
from noisegate.gates import Gates
from noisegate.loss import ComplexityLoss
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


def wide(n=3, size=64, **options):
    """A chain of wide layers."""
    sizes = [16, *[size] * n]
    net = Sequential(input_shape=[None, None, 16])
    for i in range(n):
        layer = Linear(n_neurons=sizes[i + 1], input_size=sizes[i])
        net.append(layer, layer_name=f"hidden{i}")
    net.append(Linear(n_neurons=1, input_size=size), layer_name="out")
    return Gates(net, input_shape=[1, 100, 16], **options)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"budget": 0.5, "weight": 1},
        {"budget": 0.5, "max_macs_per_second": 10},
        {"max_macs_per_second": 10, "weight": 0.0},
    ],
)
def test_exactly_one_target_is_needed(given):
    """budget, max_macs_per_second or weight."""
    with pytest.raises(ValueError, match="exactly one"):
        ComplexityLoss(wide(), **given)


def test_an_impossible_budget_is_an_error():
    """The message contains what can be reached, and that can be."""
    gates = wide()
    least = gates.cost.macs_per_second(gates.min_widths())
    for given in (
        {"budget": 1e-4},
        {"max_macs_per_second": least - 1},
        {"budget": 1.01},
        {"budget": 0},
    ):
        with pytest.raises(ValueError, match="out of reach") as error:
            ComplexityLoss(gates, **given)
        assert f"from {least} to {gates.cost.macs_per_second()}" in str(
            error.value
        )
    loss = ComplexityLoss(gates, max_macs_per_second=least)
    assert loss.freeze() == gates.min_widths()


def test_other_options_are_checked():
    """The schedule needs a beginning and an end."""
    for given in ({"tighten": 0}, {"tighten": 1.1}, {"freeze_epoch": 1}):
        with pytest.raises(ValueError):
            ComplexityLoss(wide(), budget=0.5, **given)


def test_a_budget_above_the_full_model_is_no_budget():
    """In absolute terms the full model may be cheaper than allowed."""
    gates = wide()
    loss = ComplexityLoss(gates, max_macs_per_second=10**12)
    assert loss.weight == 0 and float(loss().detach()) == 0
    assert set(loss.freeze().values()) == {64}


def random_real_widths(gates, draw):
    """Sets real-valued widths anywhere in the bounds."""
    for gate in gates.values():
        share = float(torch.rand((), generator=draw))
        gate.set_width(gate.min_width + share * (gate.size - gate.min_width))


@pytest.mark.parametrize("granularity", [1, 2])
def test_freezing_meets_the_budget(granularity):
    """Never above, and not far below, from any real-valued widths."""
    draw = torch.Generator().manual_seed(0)
    tight = 0
    for trial in range(50):
        n = 1 + trial % 3
        gates = wide(n, 64 * granularity, granularity=granularity)
        random_real_widths(gates, draw)
        least = float(gates.cost.ratio(gates.min_widths()))
        share = float(torch.rand((), generator=draw))
        budget = least + max(0.15, share) * (1 - least)
        loss = ComplexityLoss(gates, budget=budget)
        widths = loss.freeze()
        assert widths == gates.integer_widths() and gates.frozen
        ratio = gates.cost.ratio(widths)
        assert ratio <= budget * (1 + 1e-9)
        if min(widths.values()) >= 32 * granularity:
            assert ratio >= 0.95 * budget, (widths, budget)
            tight += 1
        for name, gate in gates.items():
            assert gate.min_width <= widths[name] <= gate.size
            assert widths[name] % granularity == 0
            more = {**widths, name: widths[name] + granularity}
            if more[name] <= gate.size:
                assert gates.cost.ratio(more) > budget
    assert tight > 10


@pytest.mark.parametrize("name", models.MODELS)
def test_freezing_meets_the_budget_of_the_examples(name):
    """With heads, minimal widths and small groups too."""
    draw = torch.Generator().manual_seed(1)
    for budget in (0.25, 0.5, 0.9):
        gates = models.gated(name)
        random_real_widths(gates, draw)
        try:
            loss = ComplexityLoss(gates, budget=budget)
        except ValueError:
            continue
        widths = loss.freeze()
        assert gates.cost.ratio(widths) <= budget * (1 + 1e-9)
        # As full as it can be
        for key, gate in gates.items():
            more = {**widths, key: widths[key] + gate.granularity}
            if more[key] <= gate.size:
                assert gates.cost.ratio(more) > budget


def test_freezing_keeps_what_meets_the_budget():
    """Integer widths that cost what is allowed are not touched."""
    gates = wide()
    expected = {"hidden0": 40, "hidden1": 17, "hidden2": 55}
    for name, width in expected.items():
        gates[name].set_width(width)
    budget = gates.cost.ratio(expected)
    assert ComplexityLoss(gates, budget=budget).freeze() == expected


def test_a_fixed_weight():
    """The published form: weight times relative MACs, rounded up at last."""
    gates = wide()
    gates["hidden1"].set_width(20.5)
    loss = ComplexityLoss(gates, weight=0.3)
    ratio = gates.cost.ratio({"hidden0": 64, "hidden1": 20.5, "hidden2": 64})
    assert float(loss().detach()) == pytest.approx(0.3 * ratio, rel=1e-6)
    loss.step(0.7)
    assert loss.weight == 0.3
    assert loss.freeze() == {"hidden0": 64, "hidden1": 21, "hidden2": 64}


def test_the_term_pulls_all_widths_down():
    """Positive gradient for each gate, zero once frozen."""
    gates = wide()
    loss = ComplexityLoss(gates, budget=0.5)
    loss().backward()
    assert all(p.grad > 0 for p in gates.parameters())
    for parameter in gates.parameters():
        parameter.grad = None
    loss.freeze()
    loss().backward()
    assert all(p.grad == 0 for p in gates.parameters())


def test_the_target_tightens_geometrically():
    """From 1 to the budget in the first part of the learning time."""
    loss = ComplexityLoss(wide(), budget=0.25, tighten=0.5)
    targets = []
    for progress in (0.0, 0.25, 0.5, 0.8, 1.0):
        loss.step(progress)
        targets.append(loss.target())
    assert targets == pytest.approx([1, 0.5, 0.25, 0.25, 0.25])


def test_the_weight_follows_the_target():
    """It rises above the target, falls below, and stays bounded."""
    gates = wide()
    loss = ComplexityLoss(gates, budget=0.25, proportional_gain=0.0)
    weights = []
    for _ in range(20):
        for gate in gates.values():
            gate.set_width(gate.size)  # as a task may that needs all
        loss.step(1.0)
        weights.append(loss.weight)
    assert all(b > a for a, b in zip(weights, weights[1:]))
    for gate in gates.values():
        gate.set_width(8)
    weights = []
    for _ in range(20):
        loss.step(1.0)
        weights.append(loss.weight)
    assert all(b < a for a, b in zip(weights, weights[1:]))
    for _ in range(1000):
        loss.step(1.0)
    assert 0 < loss.weight < 1e-4 and math.isfinite(loss.weight)


def test_the_damping_reacts_at_once():
    """A missed target counts before the integral has moved."""
    calm = ComplexityLoss(wide(), budget=0.25, proportional_gain=0.0)
    quick = ComplexityLoss(wide(), budget=0.25, proportional_gain=2.0)
    calm.step(1.0)
    quick.step(1.0)
    assert quick.weight == pytest.approx(calm.weight * math.exp(2), rel=1e-5)


@pytest.mark.parametrize("gate", [NoiseGate, HardConcreteGate])
def test_gates_that_lag_are_narrowed_by_one_factor(gate):
    """What costs a tenth too much, all together and in time; the rest is left
    to the gates."""
    gates = wide(gate=gate)
    loss = ComplexityLoss(gates, budget=0.1, tighten=0.8)
    before = {"hidden0": 64.0, "hidden1": 32.0, "hidden2": 48.0}
    for name, width in before.items():
        gates[name].set_width(width)
    for step in range(50):
        loss.step((step + 1) / 50)
        with torch.no_grad():
            ratio = float(gates.cost.ratio(gates.widths()))
        assert ratio < 1.11 * loss.target() or step < 3
    assert 0.1 < ratio < 0.111
    widths = {name: float(width) for name, width in gates.widths().items()}
    factors = [widths[name] / width for name, width in before.items()]
    assert max(factors) == pytest.approx(min(factors), rel=1e-3)
    state = [p.clone() for p in gates.parameters()]
    loss.step(1.0)  # within the tenth
    assert all(map(torch.equal, state, gates.parameters()))


def test_the_least_widths_are_not_narrowed():
    gates = wide()
    least = gates.min_widths()
    loss = ComplexityLoss(gates, budget=gates.cost.ratio(least) * 1.01)
    for step in range(50):
        loss.step((step + 1) / 50)
    for name, width in gates.widths().items():
        assert float(width.detach()) >= least[name]


def test_widths_reach_the_budget_by_gradient_descent():
    """With no task at all the widths settle at the budget or below it."""
    gates = wide(gate=NoiseGate)
    loss = ComplexityLoss(gates, budget=0.4)
    optimizer = torch.optim.Adam(gates.parameters(), lr=0.01)
    for step in range(150):
        optimizer.zero_grad()
        # A pull upwards that the weight has to balance
        (loss() - 0.05 * sum(gates.parameters()).sum()).backward()
        optimizer.step()
        gates.clamp()
        loss.step((step + 1) / 150)
    ratio = float(gates.cost.ratio(gates.widths()).detach())
    assert ratio == pytest.approx(0.4, rel=0.2)


def test_the_state_of_the_loss_is_kept():
    """Schedule and dual variable go on after loading."""
    gates = wide()
    loss = ComplexityLoss(gates, budget=0.25)
    for progress in (0.1, 0.2, 0.3):
        loss.step(progress)
    other = ComplexityLoss(wide(), budget=0.25)
    other.load_state_dict(loss.state_dict())
    assert other.weight == loss.weight and other.target() == loss.target()
    loss.step(0.4)
    other.step(0.4)
    assert other.weight == loss.weight


def test_no_gates_no_term():
    """The dense twin of a model trains with a complexity of zero."""
    gates = wide(layers=[])
    loss = ComplexityLoss(gates, budget=1.0)
    assert float(loss()) == 0 and loss.weight == 0
    loss.step(0.5)
    assert loss.freeze() == {} and gates.frozen


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


def test_shared_weights_of_two_streams_stay():
    """One matrix cannot be cut in two ways."""
    net = Language(torch.nn.Linear(8, 8))
    with pytest.raises(ValueError, match="which other layers share"):
        Gates(net, example=[torch.randint(0, 30, (1, 9))])
    net.between = torch.nn.Sequential(
        torch.nn.Linear(8, 7), torch.nn.Linear(7, 8)
    )
    gates = Gates(net, example=[torch.randint(0, 30, (1, 9))])
    assert list(gates) == ["between.0"]
    gates.freeze({"between.0": 4})
    assert gates.cost.params({"between.0": 4}) == n_parameters(
        compact(gates)[0]
    )
