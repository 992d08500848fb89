"""Fixed widths and magnitude pruning in place of the complexity loss."""

import copy
import functools
import json
import sys

import pytest
import torch
from speechbrain.nnet.containers import Sequential
from speechbrain.nnet.linear import Linear

from noisegate.baselines.gates import FixedWidths, HardGate
from noisegate.baselines.pruning import (
    MagnitudePruning,
    TorchPruning,
    _PrunedCopy,
)
from noisegate.compact import compact
from noisegate.cost import count_macs
from noisegate.gate import NoiseGate
from noisegate.gates import Gates
from tests.unittests import models


def network(gate=NoiseGate, sizes=(64, 64), **options):
    """Two hidden layers, with gates."""
    net = Sequential(input_shape=[None, None, 8])
    for i, size in enumerate(sizes):
        net.append(Linear, n_neurons=size, layer_name=f"hidden{i}")
        net.append(torch.nn.Tanh(), layer_name=f"act{i}")
    net.append(Linear, n_neurons=1, layer_name="out")
    return Gates(net, gate=gate, input_shape=[1, 10, 8], **options)


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
    for wider, gate in gates.items():
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


def test_widths_below_those_that_gates_may_learn():
    """As at the end of a chain, where kappa_min is a share of a cut layer."""
    gates = network(functools.partial(NoiseGate, kappa_min=0.5))
    FixedWidths(gates, 0.25, {"hidden0": 1, "hidden1": 2})
    assert gates.integer_widths() == {"hidden0": 1, "hidden1": 2}
    x = torch.rand(2, 3, 8)
    masked = gates.model.eval()(x)
    torch.testing.assert_close(compact(gates)[0](x), masked)
    with pytest.raises(ValueError, match="got 0"):
        FixedWidths(network(), 0.25, {"hidden0": 1, "hidden1": 0})


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
        expected = gates.model(gates.front_end(wav))
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
    assert gates["hidden0"].open_channels().tolist() == [0, 2]
    assert 2 not in gates["hidden1"].open_channels().tolist()
    # What is closed stays so, whatever its weights become
    with torch.no_grad():
        gates.model.hidden1.w.weight.fill_(100.0)
    loss.freeze()
    assert gates["hidden0"].open_channels().tolist() == [0, 2]


@pytest.mark.parametrize("form", [MagnitudePruning, TorchPruning])
def test_pruning_resumes(form):
    """State in the checkpoints of model and loss is all there is."""
    if form is TorchPruning:
        pytest.importorskip("torch_pruning")
    torch.manual_seed(0)
    gates = network(HardGate)
    loss = form(gates, budget=0.2)
    prune(loss, 60)
    expected = (
        gates.integer_widths(),
        [g.rank.tolist() for g in gates.values()],
    )
    torch.manual_seed(0)
    gates = network(HardGate)
    loss = form(gates, budget=0.2)
    for i in range(25):
        loss.step((i + 1) / 60)
    states = copy.deepcopy((gates.model.state_dict(), loss.state_dict()))
    torch.manual_seed(0)
    gates = network(HardGate)
    loss = form(gates, budget=0.2)
    gates.model.load_state_dict(states[0])
    loss.load_state_dict(states[1])
    prune(loss, 60, begin=25)
    ranks = [g.rank.tolist() for g in gates.values()]
    assert (gates.integer_widths(), ranks) == expected


def test_pruning_needs_hard_gates():
    """Others have widths of their own."""
    with pytest.raises(ValueError, match="'hidden0' has a NoiseGate"):
        MagnitudePruning(network(), budget=0.5)
    with pytest.raises(ValueError, match="n_prunings must be"):
        MagnitudePruning(network(HardGate), budget=0.5, n_prunings=0)


def swapped_in(name):
    """Gates that can be closed on a model of SWAP_IN."""
    torch.manual_seed(0)
    make, shape = models.SWAP_IN[name]
    model = models.randomise(make())
    return Gates(model, gate=HardGate, example=[torch.randn(shape)])


def recurrent():
    """Gates on the CRNN, without a front-end."""
    torch.manual_seed(0)
    model = models.randomise(models.crnn())
    return Gates(model, gate=HardGate, input_shape=[1, 30, models.BANDS])


TRACEABLE = {
    "linear": lambda: network(HardGate, sizes=(30, 40)),
    "crnn": recurrent,
    "resnet_pooled": lambda: swapped_in("resnet_pooled"),
}


@pytest.mark.parametrize("name", TRACEABLE)
def test_torch_pruning_follows_the_schedule(name):
    """The budget is met, what is closed stays so, the cut model is equal."""
    pytest.importorskip("torch_pruning")
    torch.manual_seed(0)
    gates = TRACEABLE[name]()
    loss = TorchPruning(gates, 0.4, tighten=0.5, freeze_epoch=3)
    is_open = {n: set(range(gate.size)) for n, gate in gates.items()}
    shares = []
    for i in range(40):
        loss.step((i + 1) / 40)
        assert gates.cost.ratio(gates.widths()) <= loss.target() + 1e-6
        shares.append(float(gates.cost.ratio(gates.widths())))
        for n, gate in gates.items():
            assert gate.min_width <= gate.integer_width()
            channels = set(gate.open_channels().tolist())
            assert channels <= is_open[n]
            is_open[n] = channels
        # The next pruning sees weights that have changed
        with torch.no_grad():
            for parameter in gates.model.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
    assert 3 < len(set(shares)) <= 21
    assert shares[19] == shares[-1]
    widths = loss.freeze()
    assert gates.frozen and 0.3 < gates.cost.ratio(widths) <= 0.4
    plain, _ = compact(gates)
    x = torch.randn(2, *gates.example[0].shape[1:])
    gates.model.eval()
    with torch.no_grad():
        # Weights behind outputs of some hundreds
        assert torch.allclose(plain(x), gates.model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["linear", "resnet_pooled"])
def test_torch_pruning_decides(name):
    """Alone, on a plain copy, it keeps the same channels."""
    tool = pytest.importorskip("torch_pruning")
    gates = TRACEABLE[name]()
    gates.model.eval()
    model, _ = compact(gates)
    x = torch.randn(2, *gates.example[0].shape[1:])
    example = [x[:1]]
    pruner = tool.pruner.BasePruner(
        model,
        example,
        importance=tool.importance.GroupMagnitudeImportance(p=2),
        global_pruning=True,
        pruning_ratio=1.0,
        iterative_steps=400,
        ignored_layers=[getattr(model.out, "w", model.out)],
    )
    full = count_macs(model, example)
    while count_macs(model, example) > 0.4 * full:
        pruner.step()
    loss = TorchPruning(gates, 0.4)
    loss.step(1.0)
    loss.freeze()
    ours, theirs = compact(gates)[0].state_dict(), model.state_dict()
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        assert torch.equal(ours[key], value), key
    with torch.no_grad():
        assert torch.allclose(model(x), gates.model(x), atol=1e-5)


class Recurrent(torch.nn.Module):
    """Two layers, both directions."""

    def __init__(self, form):
        super().__init__()
        self.project = torch.nn.Linear(8, 12)
        options = {"num_layers": 2, "bidirectional": True, "batch_first": True}
        self.rnn = form(12, 10, **options)
        self.out = torch.nn.Linear(20, 1)

    def forward(self, x):
        """Returns a score for each frame."""
        return self.out(self.rnn(self.project(x))[0])


@pytest.mark.parametrize(
    "form",
    [torch.nn.GRU, torch.nn.LSTM, torch.nn.RNN],
    ids=lambda f: f.__name__,
)
def test_torch_pruning_removes_recurrent_units(form):
    """The copy that it pruned computes what the masked model does."""
    pytest.importorskip("torch_pruning")
    torch.manual_seed(0)
    gates = Gates(Recurrent(form), gate=HardGate, input_shape=[1, 30, 8])
    with torch.no_grad():  # what reads two units, in both directions
        gates.model.out.weight.copy_(torch.linspace(0.1, 0.3, 20))
        gates.model.out.weight.view(2, 10)[:, [4, 7]] *= 0.1
    loss = TorchPruning(gates, 0.3)
    pruned = _PrunedCopy(gates)
    removed = []
    for name, channels in pruned.prune(gates.integer_widths()):
        loss._close(gates[name], channels)
        removed += channels if name == "rnn" else []
        if gates.cost.ratio(gates.integer_widths()) < 0.3:
            break
    assert set(removed[:2]) == {4, 7} and len(removed) > 2
    assert gates["project"].integer_width() < 12
    x = torch.randn(2, 30, 8)
    gates.model.eval()
    with torch.no_grad():
        assert torch.allclose(pruned.model(x), gates.model(x), atol=1e-5)


def test_torch_pruning_of_flattened_features():
    """Of which several are one channel."""
    pytest.importorskip("torch_pruning")
    gates = swapped_in("sb_resnet")
    pruned = _PrunedCopy(gates)
    for name, channels in pruned.prune(gates.integer_widths()):
        TorchPruning._close(gates[name], channels)
        if gates.cost.ratio(gates.integer_widths()) < 0.3:
            break
    assert gates["layer4.0.conv3"].integer_width() < 5
    x = torch.randn(2, 20, 16)
    gates.model.eval()
    with torch.no_grad():
        assert torch.allclose(pruned.model(x), gates.model(x), atol=1e-5)


def test_torch_pruning_keeps_the_smallest_widths():
    """And multiples, although its ranking would go on in one group."""
    pytest.importorskip("torch_pruning")
    options = {"kappa_min": 0.5, "granularity": 8}
    layers = {"hidden0": options, "hidden1": {}}
    gates = network(HardGate, sizes=(32, 32), layers=layers)
    with torch.no_grad():
        gates.model.hidden0.w.weight[8:].mul_(0.1)
        gates.model.hidden1.w.weight[:, 8:].mul_(0.1)
    least = gates.cost.ratio(gates.min_widths())
    loss = TorchPruning(gates, float(least))
    seen = set()
    for i in range(50):
        loss.step((i + 1) / 50)
        seen.add(gates["hidden0"].integer_width())
    assert seen <= {32, 24, 16}
    assert loss.freeze() == gates.min_widths()
    assert set(range(8)) < set(gates["hidden0"].open_channels().tolist())


def test_torch_pruning_leaves_what_has_no_gate():
    """As layers that it is told to ignore."""
    pytest.importorskip("torch_pruning")
    gates = network(HardGate, sizes=(32, 32), layers=["hidden1"])
    loss = TorchPruning(gates, 0.5)
    loss.step(1.0)
    assert loss.freeze().keys() == {"hidden1"}


def test_torch_pruning_leaves_mel_bands():
    """A budget that needs them is out of reach."""
    pytest.importorskip("torch_pruning")
    gates = models.gated("crnn", HardGate)
    with pytest.raises(ValueError, match=r"does not prune \['features'\]"):
        TorchPruning(gates, 0.4)
    loss = TorchPruning(gates, 0.8)
    loss.step(1.0)
    assert loss.freeze()["features"] == models.BANDS


@pytest.mark.parametrize(
    "name, message",
    [
        ("transformer", "'project' .* 'layer1.self_att.att' has as 'in'"),
        ("crdnn", "'steps.0.cnn1.norm_2.norm' has as 'norm'"),
        ("resnet", "'stack2.0.conv2' .* 'out' has as 'in'"),
        ("ecapa", "does not couple the channels of 'blocks.1.res2net"),
        ("conv_tasnet", "'mask.mask_conv1x1.conv' to have 48 features"),
        ("ligru", "fails on Chain: IndexError"),
    ],
)
def test_models_that_torch_pruning_takes_for_others(name, message):
    """It is said where, before training."""
    pytest.importorskip("torch_pruning")
    if name in models.MODELS:
        gates = models.gated(name, HardGate)
    else:
        gates = swapped_in(name)
    with pytest.raises(ValueError, match=message):
        TorchPruning(gates, 0.9)


def test_torch_pruning_is_missing(monkeypatch):
    """It is optional."""
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(ImportError, match=r"\[baselines\]"):
        TorchPruning(network(HardGate), 0.5)
