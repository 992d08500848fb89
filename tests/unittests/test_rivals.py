"""Fixed widths and magnitude pruning in place of the complexity loss."""

import copy
import json

import pytest
import torch
from speechbrain.nnet.containers import Sequential
from speechbrain.nnet.linear import Linear

from noisegate.attach import Gates
from noisegate.compact import compact
from noisegate.gate import HardGate, NoiseGate
from noisegate.rivals import FixedWidths, MagnitudePruning
from tests.unittests import models


def network(gate=NoiseGate, sizes=(64, 64)):
    """Two hidden layers, with gates."""
    net = Sequential(input_shape=[None, None, 8])
    for i, size in enumerate(sizes):
        net.append(Linear, n_neurons=size, layer_name=f"hidden{i}")
        net.append(torch.nn.Tanh(), layer_name=f"act{i}")
    net.append(Linear, n_neurons=1, layer_name="out")
    return Gates(net, gate=gate, input_shape=[1, 10, 8])


@pytest.mark.parametrize("name", models.MODELS)
@pytest.mark.parametrize("share", [0.7, 0.3])
def test_uniform_widths_meet_the_budget(name, share):
    """And no channel more would."""
    gates = models.gated(name)
    least = gates.cost.ratio(gates.min_widths())
    budget = least + share * (1 - least)
    FixedWidths(gates, budget)
    assert gates.frozen
    widths = gates.integer_widths()
    assert gates.cost.ratio(widths) <= budget
    for wider, gate in gates.gates.items():
        if widths[wider] + gate.granularity <= gate.size:
            more = {**widths, wider: widths[wider] + gate.granularity}
            assert gates.cost.ratio(more) > budget


@pytest.mark.parametrize("budget", [0.7, 0.3, 0.1])
def test_uniform_widths_share_one_factor(budget):
    """Up to one channel."""
    gates = network(sizes=(200, 100))
    FixedWidths(gates, budget)
    widths = gates.integer_widths()
    assert abs(widths["hidden0"] - 2 * widths["hidden1"]) <= 3


def test_initial_weights_are_those_of_a_narrow_layer():
    """Uniform in +- 1/sqrt(number of inputs), as torch does it."""
    torch.manual_seed(0)
    gates = network(sizes=(400, 300))
    FixedWidths(gates, 0.9, {"hidden0": 100, "hidden1": 75})
    model, _ = compact(gates)
    narrow = torch.nn.Linear(100, 75)
    cut = model.hidden1.w
    for name in ("weight", "bias"):
        one, other = getattr(cut, name), getattr(narrow, name)
        assert one.shape == other.shape
        assert float(one.std()) == pytest.approx(float(other.std()), rel=0.2)
        assert float(one.abs().max()) <= 0.1
    assert float(cut.weight.std()) == pytest.approx(0.1 / 3**0.5, rel=0.03)
    # What reads the input alone is as it was
    assert float(model.hidden0.w.weight.abs().max()) <= 8**-0.5


def test_initial_weights_of_a_recurrent_layer():
    """Those of torch depend on the number of units."""
    torch.manual_seed(0)

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = torch.nn.GRU(8, 64, bidirectional=True, batch_first=True)
            self.out = torch.nn.Linear(128, 1)

        def forward(self, x):
            return self.out(self.rnn(x)[0])

    gates = Gates(Net(), input_shape=[1, 10, 8])
    FixedWidths(gates, 0.9, {"rnn": 16})
    model, _ = compact(gates)
    for name, parameter in model.rnn.named_parameters():
        assert 0.2 < float(parameter.abs().max()) <= 0.25, name
    assert 0.15 < float(model.out.weight.abs().max()) <= 32**-0.5


def test_widths_of_another_run(tmp_path):
    """They come from its result.json, gates of other names are passed over."""
    path = tmp_path / "result.json"
    widths = {"hidden0": 9, "hidden1": 13, "features": 8, "out": 1}
    path.write_text(json.dumps({"widths": widths}))
    gates = network()
    FixedWidths(gates, 0.25, str(path))
    assert gates.integer_widths() == {"hidden0": 9, "hidden1": 13}


@pytest.mark.parametrize(
    "widths, message",
    [
        ({"hidden0": 4}, r"none is given for \['hidden1'\]"),
        ({"hidden0": 60, "hidden1": 60}, "more than the budget of 0.25"),
        ({"hidden0": 4, "hidden1": 65}, "got 65"),
    ],
)
def test_wrong_widths(widths, message):
    """Too few, too expensive, too large."""
    with pytest.raises(ValueError, match=message):
        FixedWidths(network(), 0.25, widths)


def prune(loss, steps, begin=0):
    """The progress of some training steps; the cost after each."""
    shares = []
    for i in range(begin, steps):
        loss.step((i + 1) / steps)
        shares.append(float(loss.gates.cost.ratio(loss.gates.widths())))
    return shares


@pytest.mark.parametrize("name", models.MODELS)
def test_pruning_follows_its_schedule(name):
    """Costs fall by and by, the budget is met and the cut model is equal."""
    torch.manual_seed(0)
    gates = models.gated(name, HardGate)
    least = gates.cost.ratio(gates.min_widths())
    budget = least + 0.4 * (1 - least)
    loss = MagnitudePruning(gates, budget, tighten=0.5, freeze_epoch=3)
    shares = prune(loss, 200)
    assert shares == sorted(shares, reverse=True)
    assert 3 < len(set(shares)) <= 21
    assert shares[-1] <= budget
    assert shares[99] == shares[-1]
    # Pruned every fifth step: all at once would be at step 4
    for i in range(4, 100, 5):
        target = budget + (1 - budget) * (1 - (i + 1) / 100) ** 3
        assert target - 0.1 < shares[i] <= target + 1e-6
    widths = loss.freeze()
    assert gates.cost.ratio(widths) == pytest.approx(shares[-1], rel=1e-6)
    assert gates.cost.ratio(widths) <= budget
    assert gates.frozen
    plain, features = compact(gates)
    wav = torch.randn(1, round(16000 * models.SECONDS))
    gates.model.eval()
    with torch.no_grad():
        expected = gates.model(gates.features(wav))
        assert torch.allclose(plain(features(wav)), expected, atol=1e-5)


def test_the_smallest_weights_go_first():
    """By the norm of what reads the channel, relative to the group."""
    gates = network(HardGate, sizes=(4, 4))
    with torch.no_grad():
        gates.model.hidden1.w.weight.copy_(
            torch.tensor([1.0, 0.1, 3.0, 0.2]).expand(4, 4)
        )
        gates.model.out.w.weight.copy_(torch.tensor([50.0, 70.0, 4.0, 60.0]))
    loss = MagnitudePruning(gates, budget=0.5)
    loss.step(1.0)
    assert gates.gates["hidden0"].open_channels().tolist() == [0, 2]
    assert 2 not in gates.gates["hidden1"].open_channels().tolist()
    # What is closed stays so, whatever its weights become
    with torch.no_grad():
        gates.model.hidden1.w.weight.fill_(100.0)
    loss.freeze()
    assert gates.gates["hidden0"].open_channels().tolist() == [0, 2]


def test_pruning_resumes():
    """State in the checkpoints of model and loss is all there is."""
    torch.manual_seed(0)
    gates = network(HardGate)
    loss = MagnitudePruning(gates, budget=0.2)
    prune(loss, 60)
    expected = (
        gates.integer_widths(),
        [g.rank.tolist() for g in gates.gates.values()],
    )
    torch.manual_seed(0)
    gates = network(HardGate)
    loss = MagnitudePruning(gates, budget=0.2)
    for i in range(25):
        loss.step((i + 1) / 60)
    states = copy.deepcopy((gates.model.state_dict(), loss.state_dict()))
    torch.manual_seed(0)
    gates = network(HardGate)
    loss = MagnitudePruning(gates, budget=0.2)
    gates.model.load_state_dict(states[0])
    loss.load_state_dict(states[1])
    prune(loss, 60, begin=25)
    ranks = [g.rank.tolist() for g in gates.gates.values()]
    assert (gates.integer_widths(), ranks) == expected


def test_pruning_needs_hard_gates():
    """Others have widths of their own."""
    with pytest.raises(ValueError, match="'hidden0' has a NoiseGate"):
        MagnitudePruning(network(), budget=0.5)
    with pytest.raises(ValueError, match="n_prunings must be"):
        MagnitudePruning(network(HardGate), budget=0.5, n_prunings=0)
