"""The complexity term of the loss, and the budget that it keeps."""

import math

import pytest
import torch
from speechbrain.nnet.CNN import Conv1d
from speechbrain.nnet.containers import Sequential
from speechbrain.nnet.linear import Linear
from speechbrain.nnet.RNN import GRU

from noisegate.baselines.gates import HardConcreteGate
from noisegate.gate import NoiseGate
from noisegate.gates import Gates
from noisegate.loss import ComplexityLoss
from tests.unittests import models


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


def test_freezing_keeps_the_proportions():
    """A recurrent layer of 7.2 channels is not cut to 6 for what fills up
    the cheap layer behind it."""
    net = Sequential(input_shape=[None, None, 28])
    for name in ("conv1", "conv2"):
        net.append(Conv1d, out_channels=48, kernel_size=5, layer_name=name)
        net.append(torch.nn.ReLU(), layer_name=f"{name}_act")
    options = {"hidden_size": 48, "num_layers": 2, "bidirectional": True}
    net.append(GRU, **options, layer_name="rnn")
    net.append(Linear, n_neurons=48, layer_name="dnn")
    net.append(torch.nn.ReLU(), layer_name="dnn_act")
    net.append(Linear, n_neurons=1, layer_name="out")
    gates = Gates(net, input_shape=[1, 401, 28])
    learned = {"conv1": 6.45, "conv2": 9.28, "rnn": 7.16, "dnn": 19.0}
    for name, width in learned.items():
        gates[name].set_width(width)
    widths = ComplexityLoss(gates, budget=1 / 32).freeze()
    ratios = [widths[name] / width for name, width in learned.items()]
    assert max(ratios) < 1.2 * min(ratios)


def test_a_coarse_step_does_not_decide_for_all():
    """A stream of 33 channels in steps of 16, as of attention heads, stays 32
    wide: with 16 all others would be thrice as wide as learned."""
    fine = {"kappa_min": 0.02}
    coarse = {"hidden0": {**fine, "granularity": 16}}
    gates = wide(layers={**coarse, "hidden1": fine, "hidden2": fine})
    learned = {"hidden0": 33.0, "hidden1": 3.6, "hidden2": 3.6}
    for name, width in learned.items():
        gates[name].set_width(width)
    budget = 600 / (16 * 64 + 2 * 64 * 64 + 64)
    widths = ComplexityLoss(gates, budget=budget).freeze()
    assert widths["hidden0"] == 32
    assert gates.cost.ratio(widths) <= budget


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
    others = wide()
    for name, gate in gates.items():
        others[name].load_state_dict(gate.state_dict())
    other = ComplexityLoss(others, budget=0.25)
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
