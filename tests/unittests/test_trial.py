"""The trial cut: what is not exact is locked with its reason, the rest not."""

import copy
import dataclasses
import threading

import pytest
import torch

import noisegate
from noisegate.groups import find_groups
from noisegate.probe import FORWARD_ERRORS
from noisegate.trial import lock_inexact, relative_difference
from tests.unittests import models

nn = torch.nn


class Chain(nn.Module):
    """Two layers with a function between them, and two without."""

    def __init__(self, between):
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 7)
        self.last = nn.Linear(7, 3)
        self.between = between

    def forward(self, x):
        x = self.second(self.between(self.first(x)))
        return self.last(x.relu())


def counted(x):
    """Depends on the number of channels."""
    return x + x.shape[-1]


def divided(x):
    """The same; relative to the bias of the next layer it weighs little."""
    return x / x.shape[-1]


def reshaped(x):
    """Works for eight channels only."""
    return x.reshape(*x.shape[:-1], 2, 4).flatten(-2).relu()


def asserting(x):
    """Asks for eight channels."""
    assert x.shape[-1] == 8, "eight are needed"
    return x.relu()


def asserting_without_a_word(x):
    """Asks for eight channels; pytest gives an assert a message."""
    if x.shape[-1] != 8:
        raise AssertionError
    return x.relu()


def locked(between):
    """Reasons by group after a trial."""
    torch.manual_seed(0)
    model, example = Chain(between), [torch.randn(2, 9, 6)]
    groups = find_groups(model, example)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    lock_inexact(model, groups, example, example)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
    return {group.name: group.locked_reason for group in groups}


@pytest.mark.parametrize(
    "between, reason",
    [
        (counted, "not exact when cut: the output changes by"),
        (divided, "not exact when cut: the output changes by"),
        (reshaped, "not exact when cut: RuntimeError"),
        (asserting, "not exact when cut: AssertionError: eight are needed"),
        (
            asserting_without_a_word,
            "not exact when cut: AssertionError: raise AssertionError",
        ),
    ],
)
def test_what_counts_channels_is_locked(between, reason):
    """With what was seen; the other group is free."""
    reasons = locked(between)
    assert reasons["first"].startswith(reason)
    assert reasons["second"] is None


@pytest.mark.parametrize("between", [torch.relu, torch.sigmoid, torch.tanh])
def test_what_treats_channels_alike_is_free(between):
    """Also if closed channels are not zero behind it."""
    assert set(locked(between).values()) >= {None}
    assert locked(between)["first"] is None


def test_other_errors_are_raised():
    """What is no failure of a forward is not taken for one."""

    class Stop(Exception):
        """Of the user's own."""

    def stopping(x):
        if x.shape[-1] != 8:
            raise Stop
        return x.relu()

    assert not issubclass(Stop, FORWARD_ERRORS)
    with pytest.raises(Stop):
        locked(stopping)


def test_differences():
    """Relative to the greatest value; NaN never equals."""
    x = torch.tensor([1.0, -4.0])
    assert relative_difference([x, x], [x, x + 1]) == 0.25
    assert relative_difference([x / 0], [x / 0]) == 0
    assert relative_difference([x], [x * float("nan")]) != 0
    for others in ([x], [x, x[:1]]):
        with pytest.raises(ValueError):
            relative_difference([x, x], others)


@dataclasses.dataclass
class Output:
    """As models of transformers return it."""

    scores: torch.Tensor


class Returning(nn.Module):
    """Scales by the number of channels and returns what ``how`` makes."""

    def __init__(self, how):
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 4)
        self.how = how

    def forward(self, x):
        x = self.first(x).relu()
        return self.how(self.last(x * x.shape[-1] ** -0.5))


def as_complex(y):
    """Returns complex numbers."""
    return torch.complex(y[..., :2], y[..., 2:])


@pytest.mark.parametrize("how", [Output, as_complex])
def test_all_outputs_are_compared(how):
    with pytest.raises(ValueError, match="not exact when cut: the output"):
        noisegate.Gates(Returning(how), input_shape=[1, 9, 6])


def test_integers_alone_tell_nothing():
    model = Returning(lambda y: y.argmax(-1))
    with pytest.raises(ValueError, match="no real or complex numbers"):
        noisegate.Gates(model, input_shape=[1, 9, 6])


def test_features_in_a_dataclass_are_the_output():
    groups = find_groups(Returning(Output), [torch.rand(1, 9, 6)])
    reasons = {group.name: group.locked_reason for group in groups}
    assert reasons["last"] == "the output of the model"


class Asserting(nn.Module):
    """Takes 100 frames only."""

    def __init__(self, error):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
        self.error = error

    def forward(self, x):
        if x.shape[1] != 100:
            raise self.error(f"expected 100 frames, got {x.shape[1]}")
        return self.net(x)


@pytest.mark.parametrize("error", [AssertionError, ValueError, RuntimeError])
def test_model_of_one_length_is_probed_at_it(error):
    gates = noisegate.Gates(Asserting(error), input_shape=[1, 100, 6])
    assert list(gates) == ["net.0"]


class Positions(nn.Module):
    """Adds a buffer along the channels."""

    def __init__(self, persistent):
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
        draw = torch.Generator().manual_seed(0)
        positions = torch.randn(20, 8, generator=draw)
        self.register_buffer("positions", positions, persistent=persistent)

    def forward(self, x):
        return self.last((self.first(x) + self.positions[: x.shape[1]]).relu())


@pytest.mark.parametrize("persistent", [True, False])
def test_buffers_along_channels_are_cut_and_saved(persistent):
    model, x = Positions(persistent), torch.rand(2, 9, 6)
    fresh = copy.deepcopy(model)
    gates = noisegate.Gates(model, input_shape=[1, 9, 6])
    gates["first"].reorder(torch.rand(8))
    gates.freeze({"first": 3})
    small, _ = noisegate.compact(gates)
    lines = models.corrections(fresh, small)
    loaded = models.corrected(fresh, lines).eval()
    loaded.load_state_dict(small.state_dict())
    torch.testing.assert_close(small(x), model.eval()(x))
    assert torch.equal(loaded(x), small(x))


class Branch(nn.Module):
    """A branch that depends on the number of channels, under a scale."""

    def __init__(self, scale, shape=(1, 1, 8)):
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
        self.scale = nn.Parameter(torch.full(shape, scale))

    def forward(self, x):
        x = self.first(x).relu()
        return self.last(x + self.scale * x / x.shape[-1])


@pytest.mark.parametrize("scale", [0.0, 1e-6])
@pytest.mark.parametrize("shape", [(), (1,), (8,), (1, 1, 8)])
def test_no_branch_is_hidden(scale, shape):
    """Neither behind a layer scale nor behind ReZero."""
    with pytest.raises(ValueError, match="not exact when cut: the output"):
        noisegate.Gates(Branch(scale, shape), input_shape=[1, 9, 6])


class Long(nn.Module):
    """Does more for long inputs."""

    def __init__(self, more):
        super().__init__()
        self.first, self.big = nn.Linear(6, 8), nn.Linear(8, 8)
        self.last, self.more = nn.Linear(8, 3), more

    def forward(self, x):
        x = self.first(x).relu()
        if x.shape[1] > 100:
            x = self.more(self, x)
        return self.last(x)


def test_what_long_inputs_are_treated_with_is_tried():
    """Code: the groups are locked; layers: they are gated."""
    shape = [1, 120, 6]
    with pytest.raises(ValueError, match="not exact when cut: the output"):
        noisegate.Gates(Long(lambda m, x: x / x.shape[-1]), input_shape=shape)
    model = Long(lambda m, x: x + m.big(x))
    assert list(noisegate.Gates(model, input_shape=shape)) == ["first"]


class Seen(nn.Module):
    """Returns what a hook has kept."""

    def __init__(self):
        super().__init__()
        self.seen = {}

    def forward(self, x):
        return self.seen["y"].relu()


def with_hook(model):
    """Keeps features in a dictionary of the original."""
    model.between = Seen()
    seen = model.between.seen
    model.first.register_forward_hook(lambda m, x, y: seen.update(y=y))
    return model


def with_forward(model):
    """Wraps the forward of a layer."""
    forward = model.first.forward
    model.first.forward = lambda x: 2 * forward(x)
    return model


@pytest.mark.parametrize("put", [with_hook, with_forward])
def test_a_copy_that_is_none_is_an_error(put):
    model = put(Chain(torch.relu))
    with pytest.raises(ValueError, match="keeps a reference to it"):
        noisegate.Gates(model, input_shape=[1, 9, 6])


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_models_of_other_types(kind):
    """The example is of the model's type."""
    model = Chain(torch.relu).to(kind)
    gates = noisegate.Gates(model, input_shape=[1, 9, 6])
    assert list(gates) == ["first", "second"]


@pytest.mark.parametrize("layers", [None, []])
def test_what_cannot_be_copied_is_named(layers):
    """Before training, also where nothing is gated."""
    model = Chain(torch.relu)
    model.lock = threading.Lock()
    with pytest.raises(ValueError, match="Chain cannot be copied .*lock"):
        noisegate.Gates(model, input_shape=[1, 9, 6], layers=layers)


def test_code_of_one_type_is_tried_in_it():
    """Neither has the trial to be in float64."""

    def single(x):
        values = bytearray(x.numpy().tobytes())
        return torch.frombuffer(values, dtype=torch.float32).view(x.shape)

    assert set(locked(single).values()) >= {None}


class Stateful(nn.Module):
    """Goes on with the state of the last pass."""

    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(4, 6, batch_first=True)
        self.last = nn.Linear(6, 2)
        self.state = None

    def forward(self, x):
        """Returns scores."""
        state = self.state if self.state is not None else x.new_zeros(1, 1, 6)
        x, self.state = self.gru(x, state[:, : len(x)].expand(-1, len(x), -1))
        return self.last(x)


def test_a_state_from_pass_to_pass_is_told_from_randomness():
    """Nothing is random, so nothing is said of it."""
    with pytest.raises(ValueError, match="keeps a state") as error:
        noisegate.Gates(Stateful(), input_shape=[1, 9, 4])
    assert "random" not in str(error.value)


class Trims(nn.Module):
    """Leaves quiet frames out."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x):
        """Returns the scores of loud frames."""
        loud = x.abs().amax((0, 2)) > 0.1
        loud[0] = True
        return self.last(self.first(x[:, loud]).relu())


def test_a_length_that_depends_on_the_data_asks_for_an_example():
    """With one the cost is that of the example."""
    with pytest.raises(ValueError, match="depends on the data.*Give an examp"):
        noisegate.Gates(Trims(), input_shape=[1, 9, 4])
    gates = noisegate.Gates(Trims(), example=[torch.rand(1, 9, 4) + 0.2])
    assert gates.cost.macs() == 9 * (4 * 6 + 6 * 2)


def test_a_single_layer_has_nothing_to_gate():
    """It says that."""
    with pytest.raises(ValueError, match="LSTM is a single layer"):
        noisegate.Gates(nn.LSTM(4, 6), input_shape=[1, 9, 4])


def test_a_scripted_block_stays_and_the_rest_is_cut():
    """torch.jit copies its parameters in a way of its own."""
    block = torch.nn.Sequential(torch.nn.Linear(8, 12), torch.nn.Linear(12, 8))
    net = torch.nn.Sequential(
        torch.nn.Linear(6, 8), torch.jit.script(block), torch.nn.Linear(8, 9)
    )
    net.append(torch.nn.Linear(9, 2))
    gates = noisegate.Gates(net, example=[x := torch.rand(1, 5, 6)])
    assert list(gates) == ["2"] and "1.0" in gates.unknown
    gates.freeze({"2": 4})
    small, _ = noisegate.compact(gates)
    assert all(p.is_leaf for p in small.parameters())
    torch.testing.assert_close(small(x), net.eval()(x))


class Jump(torch.nn.Module):
    """Computes something else for fewer channels than a limit."""

    def __init__(self, limit, at):
        super().__init__()
        sizes = [20, 32, 32, 32, 5]
        pairs = zip(sizes, sizes[1:])
        self.layers = torch.nn.ModuleList(torch.nn.Linear(*p) for p in pairs)
        self.limit, self.at = limit, at

    def forward(self, x):
        for i, layer in enumerate(self.layers[:-1]):
            x = layer(x).relu()
            if i == self.at and x.shape[-1] < self.limit:
                x = 1.1 * x
        return self.layers[-1](x)


@pytest.mark.parametrize("limit", [3, 5, 8, 16, 28])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_what_counts_channels_is_found_at_any_limit(limit, at):
    """Also at one channel behind a ReLU, which may be silent."""
    torch.manual_seed(limit)
    gates = noisegate.Gates(Jump(limit, at), input_shape=[1, 30, 20])
    assert f"layers.{at}" not in gates and len(gates) == 2


class Shared(torch.nn.Module):
    """Each two heads of the queries have one of keys and values; their number
    is a constant."""

    def __init__(self):
        super().__init__()
        self.q, self.k = torch.nn.Linear(6, 32), torch.nn.Linear(6, 16)
        self.v, self.out = torch.nn.Linear(6, 16), torch.nn.Linear(32, 2)

    def forward(self, x):
        heads = [
            layer(x).unflatten(-1, (n, 8)).transpose(1, 2)
            for layer, n in ((self.q, 4), (self.k, 2), (self.v, 2))
        ]
        attend = torch.nn.functional.scaled_dot_product_attention
        y = attend(*heads, enable_gqa=True)
        return self.out(y.transpose(1, 2).flatten(-2))


def test_a_gate_that_could_not_move_is_none():
    """Of two heads one cannot go: the group stays, with the reason."""
    with pytest.raises(ValueError, match="q: not exact when cut"):
        noisegate.Gates(Shared(), input_shape=[1, 9, 6])
    layer = torch.nn.TransformerEncoderLayer(4, 4, 8, batch_first=True)
    net = torch.nn.Sequential(
        torch.nn.Linear(6, 4), layer, torch.nn.Linear(4, 2)
    )
    gates = noisegate.Gates(net, input_shape=[1, 9, 6])
    reasons = {group.name: group.locked_reason for group in gates.groups}
    assert (
        list(gates) == ["1.linear1"] and reasons["0"] == "a single block of 4"
    )


class Adding(nn.Module):
    """Adds layers in pairs, and nothing reads the sums."""

    def __init__(self, n_layers, size):
        super().__init__()
        layers = (nn.Linear(4, size) for _ in range(n_layers))
        self.layers = nn.ModuleList(layers)
        self.last = nn.Linear(n_layers * size, 2)

    def forward(self, x):
        made = [layer(x).relu() for layer in self.layers]
        for other in made[1:]:
            made[0] + other
        return self.last(torch.cat(made, -1))


@pytest.mark.parametrize("size", [3, 4, 6, 9])
@pytest.mark.parametrize("n_layers", [2, 3, 4, 5])
def test_what_must_have_one_width_is_found(n_layers, size):
    """Two groups of one size are cut to different widths at least once."""
    groups = find_groups(Adding(n_layers, size), [torch.randn(1, 5, 4)])
    lock_inexact(Adding(n_layers, size), groups, [torch.randn(1, 5, 4)], [])
    free = [g for g in groups if g.size == size and not g.locked_reason]
    assert len(free) <= 1 and len(groups) > n_layers
