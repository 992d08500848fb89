"""Rules of layers, each by itself, without a model or gates around it.

A rule is right if the layer, run with some channels closed, computes what the
cut layer computes, if its cost is what an independent counter counts, and if
the sum of the squared weights belongs to the features that it says.
"""

import copy
import re
from pathlib import Path

import pytest
import torch
from hypothesis import (
    given,
    settings,
    strategies as st,
)
from speechbrain.lobes.models import conv_tasnet, dual_path
from speechbrain.nnet.attention import RelPosEncXL, RelPosMHAXL

from noisegate.attach import Masked
from noisegate.cost import count_macs
from noisegate.gate import NoiseGate
from noisegate.rules import Cost, LayerRule, register, rule_of
from noisegate.rules.base import _RULES, find_leaves

nn = torch.nn
quick = settings(max_examples=12, deadline=None, derandomize=True)

# Name: (layer of some sizes, input of some frames)
READERS = {
    "Linear": (lambda i, o: nn.Linear(i, o), lambda i, n: (2, n, i)),
    "Conv1d": (lambda i, o: nn.Conv1d(i, o, 3), lambda i, n: (2, i, n)),
    "Conv2d": (
        lambda i, o: nn.Conv2d(i, o, (3, 2), stride=2, bias=False),
        lambda i, n: (2, i, n, 5),
    ),
    "Conv3d": (
        lambda i, o: nn.Conv3d(i, o, (2, 3, 2), padding=1),
        lambda i, n: (2, i, n, 3, 2),
    ),
    "ConvTranspose1d": (
        lambda i, o: nn.ConvTranspose1d(i, o, 3, stride=2),
        lambda i, n: (2, i, n),
    ),
    "ConvTranspose2d": (
        lambda i, o: nn.ConvTranspose2d(i, o, 3),
        lambda i, n: (2, i, n, 4),
    ),
    "GRU": (
        lambda i, o: nn.GRU(i, o, num_layers=2, bidirectional=True),
        lambda i, n: (n, 2, i),
    ),
    "LSTM": (
        lambda i, o: nn.LSTM(i, o, batch_first=True),
        lambda i, n: (2, n, i),
    ),
    "RNN": (lambda i, o: nn.RNN(i, o, bias=False), lambda i, n: (n, 2, i)),
    "GRUCell": (lambda i, o: nn.GRUCell(i, o), lambda i, n: (n, i)),
    "LSTMCell": (lambda i, o: nn.LSTMCell(i, o), lambda i, n: (n, i)),
}
# In groups: of some of them
BLOCKS = {
    "Conv1d in groups": (
        lambda n, i, o: nn.Conv1d(n * i, n * o, 3, groups=n),
        lambda n, i: (2, n * i, 5),
    ),
    "Conv2d in groups": (
        lambda n, i, o: nn.Conv2d(n * i, n * o, 2, groups=n, bias=False),
        lambda n, i: (2, n * i, 4, 3),
    ),
    "channel multiplier": (
        lambda n, i, o: nn.Conv1d(n, n * (o + 1), 3, groups=n),
        lambda n, i: (2, n, 4),
    ),
    "ConvTranspose1d in groups": (
        lambda n, i, o: nn.ConvTranspose1d(n * i, n * o, 3, groups=n),
        lambda n, i: (2, n * i, 4),
    ),
    "ConvTranspose2d in groups": (
        lambda n, i, o: nn.ConvTranspose2d(n * i, n * o, 2, 2, groups=n),
        lambda n, i: (2, n * i, 3, 3),
    ),
    "GroupNorm": (
        lambda n, i, o: nn.GroupNorm(n, n * (i + 1)),
        lambda n, i: (2, n * (i + 1), 4),
    ),
    "GroupNorm of one each": (
        lambda n, i, o: nn.GroupNorm(n, n),
        lambda n, i: (2, n, 4, 3),
    ),
}
# Those that may not narrow, or in whole groups alone
LOCKED = {
    "Conv1d in groups": (
        lambda i, o: nn.Conv1d(2 * i, 2 * o, 3, groups=2),
        lambda i, n: (2, 2 * i, n),
    ),
    "channel multiplier": (
        lambda i, o: nn.Conv1d(i + 1, 3 * (i + 1), 3, groups=i + 1),
        lambda i, n: (2, i + 1, n),
    ),
    "ConvTranspose1d in groups": (
        lambda i, o: nn.ConvTranspose1d(2 * i, 2 * o, 3, groups=2),
        lambda i, n: (2, 2 * i, n),
    ),
    "LSTM with projection": (
        lambda i, o: nn.LSTM(i, o + 1, 2, bidirectional=True, proj_size=o),
        lambda i, n: (n, 2, i),
    ),
}
NORMS = {
    "LayerNorm": (nn.LayerNorm, lambda c, n: (2, n, c), 1e-12),
    "RMSNorm": (nn.RMSNorm, lambda c, n: (2, n, c), 1e-12),
    "GroupNorm": (
        lambda c: nn.GroupNorm(1, c),
        lambda c, n: (2, c, n),
        1e-12,
    ),
    "gLN (dual path)": (
        lambda c: dual_path.GlobalLayerNorm(c, 3),
        lambda c, n: (2, c, n),
        1e-12,
    ),
    "cLN (dual path)": (
        lambda c: dual_path.CumulativeLayerNorm(c),
        lambda c, n: (2, c, n),
        1e-12,
    ),
    "gLN (Conv-TasNet)": (
        lambda c: conv_tasnet.GlobalLayerNorm(c),
        lambda c, n: (2, n, c),
        1e-12,
    ),
    "cLN (Conv-TasNet)": (
        lambda c: conv_tasnet.ChannelwiseLayerNorm(c),
        lambda c, n: (2, n, c),
        1e-12,
    ),
}


def filled(layer):
    """The layer in float64 with parameters drawn at random."""
    layer = layer.double().eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.7)
    return layer


def first(output):
    """The first tensor of an output."""
    while not torch.is_tensor(output):
        output = output[0]
    return output


def along(rule, x, index):
    """Some features of a tensor that the layer reads or makes."""
    return x.index_select(rule.axes(x.dim())[0], index)


def some(n, draw):
    """A random part of n channels, ascending."""
    size = int(torch.randint(1, n + 1, (), generator=draw))
    return torch.randperm(n, generator=draw)[:size].sort().values


sizes = {
    "n_in": st.integers(1, 7),
    "n_out": st.integers(1, 7),
    "n_frames": st.integers(3, 9),
    "seed": st.integers(0, 999),
}


@pytest.mark.parametrize("name", READERS)
@quick
@given(**sizes)
def test_a_cut_reader_computes_what_it_did_of_zeros(
    name, n_in, n_out, n_frames, seed
):
    """Features that are zero may be cut, channels not looked at as well."""
    torch.manual_seed(seed)
    draw = torch.Generator().manual_seed(seed)
    build, shape = READERS[name]
    layer = filled(build(n_in, n_out))
    rule = rule_of(layer)
    reads, makes = some(n_in, draw), some(n_out, draw)
    x = torch.randn(shape(n_in, n_frames), dtype=torch.float64)
    closed = torch.ones(n_in, dtype=torch.bool)
    closed[reads] = False
    x = x.index_fill(rule.axes(x.dim())[0], closed.nonzero().flatten(), 0)
    gate = NoiseGate(n_out, 1 / n_out)
    gate.rank.copy_(torch.argsort(torch.argsort(ranks(n_out, makes))))
    gate.freeze(len(makes))
    expected = run_masked(rule, gate, x)
    small = copy.deepcopy(layer)
    index = {"in": reads, "out": makes, "hidden": makes}
    for role in rule.sizes():
        rule_of(small).cut(role, index[role])
    assert rule_of(small).sizes() == {
        role: len(index[role]) for role in rule.sizes()
    }
    made = first(small(along(rule, x, reads)))
    n_copies = expected.shape[rule.axes(x.dim())[0]] // n_out
    stays = torch.cat([makes + part * n_out for part in range(n_copies)])
    torch.testing.assert_close(
        made, along(rule, expected, stays), rtol=1e-9, atol=1e-9
    )


def ranks(n, kept):
    """Ranks such that the kept channels come first."""
    rank = torch.ones(n)
    rank[kept] = 0
    return rank


def run_masked(rule, gate, *args):
    """The layer's output with the channels of a gate closed inside."""
    layer = copy.deepcopy(rule.layer)
    own = rule_of(layer)
    if own.masks:
        masked = Masked(own)
        masked.add(own.masks[0], gate, None)
        masked.put_on(layer)
    with torch.no_grad():
        return first(layer(*args))


@pytest.mark.parametrize("name", [*READERS, *LOCKED])
@quick
@given(**sizes)
def test_cost_is_what_a_counter_counts(name, n_in, n_out, n_frames, seed):
    """Integer widths; tensors give the same number."""
    build, shape = {**READERS, **LOCKED}[name]
    layer = build(n_in, n_out)
    rule, x = rule_of(layer), torch.randn(shape(n_in, n_frames))
    calls = rule.record((x,), {}, first(layer(x)))
    cost = rule.cost(rule.sizes(), calls)
    assert cost.macs == count_macs(layer, [x])
    assert cost.params == sum(p.numel() for p in layer.parameters())
    soft = {role: torch.tensor(float(n)) for role, n in rule.sizes().items()}
    for one, other in zip(cost, rule.cost(soft, calls)):
        assert float(other) == one


@pytest.mark.parametrize("name", READERS)
def test_energy_belongs_to_the_features(name):
    """Scaling what reads a feature scales its energy alone."""
    torch.manual_seed(0)
    layer = filled(READERS[name][0](4, 3))
    rule = rule_of(layer)
    before = rule.energy()
    index = torch.tensor([0, 2, 3])
    rule.cut("in", index)
    torch.testing.assert_close(rule.energy(), before[index])


@pytest.mark.parametrize("name", BLOCKS)
@quick
@given(
    st.integers(2, 5), st.integers(2, 3), st.integers(1, 3), st.integers(0, 999)
)
def test_groups_of_a_layer_are_cut_whole(name, n_groups, n_in, n_out, seed):
    """What stays computes what it did, whatever is in the others; costs and
    energies are those of what stays."""
    torch.manual_seed(seed)
    draw = torch.Generator().manual_seed(seed)
    build, shape = BLOCKS[name]
    layer = filled(build(n_groups, n_in, n_out))
    rule, kept = rule_of(layer), some(n_groups, draw)
    numbers = {
        role: torch.arange(n).view(n_groups, -1)
        for role, n in rule.sizes().items()
    }
    index = {role: n[kept].flatten() for role, n in numbers.items()}
    x = torch.randn(shape(n_groups, n_in), dtype=torch.float64)
    with torch.no_grad():
        expected = layer(x)
    assert rule.n_blocks == n_groups and not rule.masks
    for roles in (list(index), list(index)[::-1]):
        small = copy.deepcopy(layer)
        cut = rule_of(small)
        for role in roles:
            cut.cut(role, index[role])
        assert cut.sizes() == {k: len(i) for k, i in index.items()}
        made = small(x.index_select(1, index[rule.treats]))
        stays = index["out" if rule.makes else "norm"]
        torch.testing.assert_close(made, expected.index_select(1, stays))
        assert str(small) == str(build(len(kept), n_in, n_out))
        calls = rule.record((x,), {}, expected)
        cost = rule.cost(cut.sizes(), calls)
        assert cost.macs == count_macs(small, [x[:, index[rule.treats]]])
        assert cost.params == sum(p.numel() for p in small.parameters())
        if rule.makes:
            energy = rule.energy()[index["in"]]
            torch.testing.assert_close(cut.energy(), energy)


@pytest.mark.parametrize("name", NORMS)
@quick
@given(st.integers(2, 7), st.integers(2, 9), st.integers(0, 999))
def test_a_masked_norm_is_the_cut_norm(name, n_channels, n_frames, seed):
    """Statistics of the open channels alone, whatever the closed ones hold."""
    torch.manual_seed(seed)
    draw = torch.Generator().manual_seed(seed)
    build, shape, tolerance = NORMS[name]
    layer = filled(build(n_channels))
    rule, kept = rule_of(layer), some(n_channels, draw)
    gate = NoiseGate(n_channels, 1 / n_channels)
    gate.rank.copy_(torch.argsort(torch.argsort(ranks(n_channels, kept))))
    gate.freeze(len(kept))
    x = torch.randn(shape(n_channels, n_frames), dtype=torch.float64)
    expected = run_masked(rule, gate, x)
    small = copy.deepcopy(layer)
    rule_of(small).cut("norm", kept)
    made = small(along(rule, x, kept))
    torch.testing.assert_close(
        made, along(rule, expected, kept), rtol=1e-7, atol=1e-7
    )


def test_a_layer_norm_over_two_axes_is_cut_along_one():
    """Features (frequency, channel): a channel is one of each frequency."""
    layer = filled(nn.LayerNorm((3, 4)))
    rule = rule_of(layer)
    kept = torch.tensor([[4 * f, 4 * f + 2] for f in range(3)]).flatten()
    rule.cut("norm", kept)
    assert layer.normalized_shape == (3, 2)
    with pytest.raises(ValueError, match="fill no axis"):
        rule.cut("norm", torch.tensor([0, 3]))


@pytest.mark.parametrize("width", [2, 4, 6])
def test_heads_of_attention_narrow(width):
    """MultiheadAttention with the model, RelPosMHAXL by themselves."""
    torch.manual_seed(width)
    plain = filled(nn.MultiheadAttention(8, 2, batch_first=True))
    gate = NoiseGate(8, 1 / 8, granularity=2)
    gate.freeze(width)
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    x[..., width:] = 0
    expected = run_masked(rule_of(plain), gate, x, x, x)[..., :width]
    rule, kept = rule_of(plain), torch.arange(width)
    for role in ("in", "heads", "out"):
        rule.cut(role, kept)
    x = x[..., :width]
    torch.testing.assert_close(first(plain(x, x, x)), expected)


def test_dimensions_of_relative_heads():
    """The scale stays that of the model width."""
    torch.manual_seed(0)
    layer = filled(RelPosMHAXL(8, 2)).float()
    positions = RelPosEncXL(8)
    x = torch.randn(2, 5, 8)
    encoding = positions(x)
    gate = NoiseGate(4, 1 / 4)
    gate.rank.copy_(torch.tensor([0, 3, 1, 2]))
    gate.freeze(2)
    expected = run_masked(rule_of(layer), gate, x, x, x, encoding)
    rule = rule_of(layer)
    calls = rule.record((x, x, x, encoding), {}, x)
    rule.cut("heads", torch.tensor([0, 2]))
    made = first(layer(x, x, x, encoding))
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-5)
    counted = count_macs(layer, [x, x, x, encoding])
    assert rule.cost(rule.sizes(), calls).macs == counted


def test_locked_layers_say_why():
    """What cannot be cut exactly is named."""
    reasons = {
        nn.LSTM(4, 8, proj_size=2): "projects its state",
    }
    for layer, reason in reasons.items():
        assert set(rule_of(layer).locked().values()) == {reason}
    assert rule_of(nn.Conv1d(8, 8, 3, groups=8)).locked() == {}


def test_leaves_are_layers_and_not_what_is_inside():
    """The output layer of attention is part of it; one PReLU is no layer."""
    model = nn.Sequential(
        nn.MultiheadAttention(4, 2), nn.PReLU(), nn.PReLU(4), nn.ReLU()
    )
    assert list(find_leaves(model)) == ["0", "2"]


def test_the_layer_of_the_docs():
    """docs/own_layer.md: fewer than 40 lines, and gates that are exact."""
    page = Path(__file__).parents[2] / "docs" / "own_layer.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.S)
    assert len(blocks) == 2 and all(b.count("\n") < 40 for b in blocks)
    names = {}
    exec("".join(blocks), names)
    dense, norm = names["Dense"], names["ScaleNorm"]
    try:
        from noisegate import Gates, compact

        model = nn.Sequential(dense(6, 8), norm(8), nn.ReLU(), dense(8, 3))
        gates = Gates(model, input_shape=[1, 9, 6])
        assert list(gates) == ["0"] and not gates.unknown
        gates.freeze({"0": 5})
        small, _ = compact(gates)
        x = torch.randn(2, 9, 6)
        torch.testing.assert_close(small(x), model.eval()(x))
        counted = count_macs(small, [torch.randn(1, 9, 6)])
        assert gates.cost.macs({"0": 5}) == counted
    finally:
        del _RULES[dense], _RULES[norm]


def test_a_wrong_rule_locks_its_group():
    """The trial cut finds out."""

    class Plain(nn.Linear):
        """A layer of another class."""

    class Wrong(LayerRule):
        def sizes(self):
            return {
                "in": self.layer.in_features,
                "out": self.layer.out_features,
            }

        def cut(self, role, index):
            super().cut(role, torch.arange(len(index)))  # whichever

        def cost(self, widths, calls):
            return Cost(0, 0, 0)

    register(Plain)(Wrong)
    try:
        from noisegate import Gates

        model = nn.Sequential(Plain(6, 8), nn.ReLU(), Plain(8, 3))
        with pytest.raises(ValueError, match="not exact when cut"):
            Gates(model, input_shape=[1, 9, 6])
    finally:
        del _RULES[Plain]


def test_only_rules_are_registered():
    """The error says what came."""
    with pytest.raises(TypeError, match="LayerRule"):
        register(nn.Linear)(nn.ReLU)
    assert rule_of(nn.Linear(2, 2)).sizes() == {"in": 2, "out": 2}
