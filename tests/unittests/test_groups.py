"""Channel groups: which layers share a width."""

import random

import pytest
import speechbrain as sb
import torch
from speechbrain.nnet.CNN import Conv1d
from speechbrain.nnet.containers import Sequential
from speechbrain.nnet.linear import Linear
from speechbrain.nnet.normalization import LayerNorm
from speechbrain.nnet.RNN import GRU, LSTM, RNN

from noisegate.compact import compact
from noisegate.gates import Gates
from noisegate.groups import find_groups
from noisegate.layers import GatedConv1d, GatedFbank, GatedLinear
from tests.unittests import models

BANDS = [torch.zeros(1, 64, 80)]
EIGHT = [torch.zeros(1, 64, 8)]


def described(groups):
    """Groups as text: name, size, granularity, fixed or not, set of ports."""
    return [
        (
            f"{g.name} {g.size}"
            + (f" x{g.granularity}" if g.granularity > 1 else "")
            + (" fixed" if g.locked_reason else ""),
            {f"{p.layer}:{p.role}" for p in g.ports},
        )
        for g in groups
    ]


def encoder(name, first, last):
    """Ports of the model width in an encoder layer."""
    return (
        f"{name}.self_att.att:in {name}.self_att.att:heads "
        f"{name}.self_att.att:out {name}.norm1.norm:norm "
        f"{name}.norm2.norm:norm {name}.pos_ffn.{first}:in "
        f"{name}.pos_ffn.{last}:out"
    )


def crnn_groups():
    """What the CRNNs consist of."""
    return [
        ("features 80", "features:out conv1.conv:in"),
        ("conv1 12", "conv1.conv:out conv1_norm.norm:norm conv2.conv:in"),
        ("conv2 12", "conv2.conv:out conv2_norm.norm:norm rnn.rnn:in"),
        ("rnn 10", "rnn.rnn:out rnn.rnn:hidden hidden.w:in"),
        ("hidden 14", "hidden.w:out out.w:in"),
        ("out 1 fixed", "out.w:out"),
    ]


def transformer_groups(first, last):
    """What the Transformers consist of."""
    model_width = [
        "project.w:out",
        encoder("layer1", first, last),
        encoder("layer2", first, last),
        "norm.norm:norm out.w:in",
    ]
    inner = [
        (
            f"layer{n}.pos_ffn 20",
            f"layer{n}.pos_ffn.{first}:out layer{n}.pos_ffn.{last}:in",
        )
        for n in (1, 2)
    ]
    return [
        ("features 80", "features:out project.w:in"),
        ("project 16 x4", " ".join(model_width)),
        *inner,
        ("out 1 fixed", "out.w:out"),
    ]


EXPECTED = {
    "crnn": crnn_groups(),
    "crnn_batch": crnn_groups(),
    "conv2d": [
        ("features 80 fixed", "features:out"),
        ("conv1 6", "conv1.conv:out conv1_norm.norm:norm conv2.conv:in"),
        ("conv2 5", "conv2.conv:out conv2_norm.norm:norm rnn.rnn:in"),
        ("rnn 9", "rnn.rnn:out rnn.rnn:hidden out.w:in"),
        ("out 1 fixed", "out.w:out"),
    ],
    "transformer": transformer_groups("ffn.0", "ffn.3"),
    "transformer_post": transformer_groups("ffn.0", "ffn.3"),
    "transformer_cnn": transformer_groups("0.conv", "2.conv"),
    "transformer_cnn_post": transformer_groups("0.conv", "2.conv"),
    "norms": [
        ("features 80", "features:out norm0.norm:norm project.w:in"),
        ("project 11", "project.w:out norm1.norm:norm rnn1.rnn:in"),
        (
            "rnn1 7",
            "rnn1.rnn:out rnn1.rnn:hidden norm2.norm:norm rnn2.rnn:in",
        ),
        (
            "rnn2 6",
            "rnn2.rnn:out rnn2.rnn:hidden norm3.norm:norm out.w:in",
        ),
        ("out 1 fixed", "out.w:out"),
    ],
}


@pytest.mark.parametrize("name", models.MODELS)
def test_groups_of_the_examples(name):
    """Names, sizes, order and every place where the channels appear."""
    groups = find_groups(models.MODELS[name](), BANDS, models.front_end())
    expected = [(group, set(ports.split())) for group, ports in EXPECTED[name]]
    assert described(groups) == expected


def test_channels_of_flattened_features():
    """Directions of a GRU and flattened planes know their channels."""
    example = [torch.zeros(1, 9, 80)]
    groups = {g.name: g for g in find_groups(models.conv2d(), example)}
    index = groups["conv2"].find("in")[0].index
    # SpeechBrain flattens (batch, time, freq, channel): channels fastest
    assert index.tolist() == list(range(5)) * (len(index) // 5)
    groups = {g.name: g for g in find_groups(models.crnn(), BANDS)}
    index = groups["rnn"].find("in")[0].index
    assert index.tolist() == [*range(10), *range(10)]


def test_a_convolution_that_adds_an_axis_keeps_two_channels():
    """SpeechBrain would take away an axis of one channel again."""
    gates = Gates(models.conv2d(), input_shape=[1, 9, 80])
    assert gates.min_widths() == {"conv1": 2, "conv2": 1, "rnn": 1}
    gates.freeze(gates.min_widths())
    x = torch.randn(1, 9, 80)
    model, _ = compact(gates)
    torch.testing.assert_close(gates.model.eval()(x), model(x))


def test_without_a_front_end_the_input_is_fixed():
    """The width of given features cannot change."""
    first = find_groups(models.crnn(), BANDS)[0]
    assert first.name == "features" and first.size == 80
    assert "input" in first.locked_reason
    assert not first.ports


def test_mel_bands_under_a_2d_convolution_are_fixed():
    """A convolution over frequency needs all positions; says so."""
    net = models.conv2d()
    with pytest.raises(ValueError, match="features.*convolves over"):
        Gates(net, front_end=models.front_end(), layers=["features"])
    with pytest.raises(ValueError, match="may not change.*convolves over"):
        Gates(net, front_end=GatedFbank(n_mels=80))


@pytest.mark.parametrize("option", ["deltas", "context"])
def test_mel_bands_behind_deltas_are_fixed(option):
    """What stacks features behind the filterbank keeps them."""
    fbank = sb.lobes.features.Fbank(n_mels=80, **{option: True})
    assert "deltas" in find_groups(models.crnn(), BANDS, fbank)[0].locked_reason


def test_the_output_cannot_be_gated():
    """The last layer keeps its size, also if it asks for a gate."""
    net = Sequential(input_shape=[None, None, 8])
    net.append(Linear, n_neurons=6, layer_name="hidden")
    net.append(GatedLinear, n_neurons=2, layer_name="out")
    with pytest.raises(ValueError, match="'out'.*output of the model"):
        Gates(net, input_shape=[1, 10, 8])
    with pytest.raises(ValueError, match="out is the output of the model"):
        Gates(net, input_shape=[1, 10, 8], layers=["out"])


def test_a_wrong_layer_name_is_an_error():
    """Says which groups there are."""
    with pytest.raises(ValueError) as error:
        Gates(
            models.crnn(),
            input_shape=[1, 10, 80],
            layers=["conv1", "missing*"],
        )
    message = str(error.value)
    assert "'missing*'" in message
    for name in ("conv1", "conv2", "rnn", "hidden"):
        assert f"'{name}'" in message


def test_names_and_wildcards():
    """Each group once, in data-flow order."""

    def names(layers):
        return list(
            Gates(models.crnn(), input_shape=[1, 10, 80], layers=layers)
        )

    assert names(None) == ["conv1", "conv2", "rnn", "hidden"]
    assert names([]) == []
    assert names(["conv*"]) == ["conv1", "conv2"]
    assert names(["hidden", "conv1", "conv?"]) == ["conv1", "conv2", "hidden"]
    assert names(["*"]) == ["conv1", "conv2", "rnn", "hidden"]


def test_layers_that_ask_for_gates():
    """Only these get one; names given explicitly win."""
    net = Sequential(input_shape=[None, None, 8])
    net.append(GatedConv1d, out_channels=6, kernel_size=3, layer_name="conv")
    net.append(Linear, n_neurons=5, layer_name="hidden")
    net.append(Linear, n_neurons=2, layer_name="out")
    assert list(Gates(net, input_shape=[1, 10, 8])) == ["conv"]
    net = Sequential(input_shape=[None, None, 8])
    net.append(GatedConv1d, out_channels=6, kernel_size=3, layer_name="conv")
    net.append(Linear, n_neurons=5, layer_name="hidden")
    net.append(Linear, n_neurons=2, layer_name="out")
    gates = Gates(net, input_shape=[1, 10, 8], layers=["hidden"])
    assert list(gates) == ["hidden"]


def test_one_layer_reads_several_groups():
    """Features of a concatenation belong to the groups they come from."""

    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.left = torch.nn.Linear(8, 3)
            self.right = torch.nn.Linear(8, 2)
            self.out = torch.nn.Linear(13, 1)

        def forward(self, x):
            left, right = self.left(x), self.right(x)
            return self.out(torch.cat([left, x, right], -1))

    groups = {g.name: g for g in find_groups(Two(), EIGHT)}
    minus = [-1] * 8
    index = groups["left"].find("in")[0].index
    assert index.tolist() == [0, 1, 2, *minus, -1, -1]
    index = groups["right"].find("in")[0].index
    assert index.tolist() == [-1, -1, -1, *minus, 0, 1]


def test_a_residual_sum_joins_what_is_added():
    """All convolutions of a stack share a width, each inner one has its own."""
    groups = {g.name: g for g in find_groups(*resnet_call("resnet"))}
    made = {
        name: {p.layer for p in g.find("out")} for name, g in groups.items()
    }
    assert made == {
        "features": set(),
        "conv": {"conv", "stack1.0.conv2", "stack1.1.conv2"},
        "stack1.0.conv1": {"stack1.0.conv1"},
        "stack1.1.conv1": {"stack1.1.conv1"},
        "stack2.0.conv1": {"stack2.0.conv1"},
        "stack2.0.conv2": {
            "stack2.0.conv2",
            "stack2.0.down.0",
            "stack2.1.conv2",
        },
        "stack2.1.conv1": {"stack2.1.conv1"},
        "out": {"out"},
    }
    # Mean and deviation of each channel at each frequency are read
    index = groups["stack2.0.conv2"].find("in")[-1].index
    n_freq = len(index) // (2 * 7)
    assert index.tolist() == [c for c in range(7) for _ in range(n_freq)] * 2


def resnet_call(name):
    """Arguments that find the groups of a model."""
    build, shape = models.SWAP_IN[name]
    return build(), [torch.randn(shape)]


def test_chunks_of_one_layer_share_a_width():
    """The parts of a Res2Net layer are cut alike."""
    groups = {g.name: g for g in find_groups(*resnet_call("ecapa"))}
    chunks = groups["blocks.1.tdnn1.conv"]
    assert chunks.size == 8
    index = chunks.find("out")[0].index
    assert index.tolist() == list(range(8)) * 4


class Reversed(torch.nn.Module):
    """A layer that moves features."""

    def forward(self, x):
        """Returns the reversed features."""
        return x.flip(-1)


class Interleaved(torch.nn.Module):
    """A layer that shuffles two groups of features, as in ShuffleNets."""

    def forward(self, x):
        """Returns the features of both in turns."""
        return x.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)


class Halves(torch.nn.Module):
    """A layer that counts features."""

    def forward(self, x):
        """Returns all features behind the third twice."""
        return torch.cat([x[..., :3], 2 * x[..., 3:]], -1)


class Root(torch.nn.Module):
    """A layer whose output is NaN for fewer features."""

    def __init__(self, n_features):
        super().__init__()
        self.n_features = n_features

    def forward(self, x):
        """Returns the features of so many."""
        return x * x.new_tensor(x.shape[-1] + 1.0 - self.n_features).sqrt()


class Drawn(torch.nn.Module):
    """A layer that is not deterministic."""

    def forward(self, x):
        """Returns something else each time."""
        return x + random.random()


class NoisyScore(torch.nn.Module):
    """One score, of features with a little noise, also in evaluation."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(8, 12)
        self.out = torch.nn.Linear(12, 1)

    def forward(self, x):
        """Returns (batch, 1)."""
        pooled = self.first(x).relu().mean(1)
        return self.out(pooled + 3e-5 * torch.randn_like(pooled))


def chain(layer):
    """A layer without parameters, or of six features, between two others."""
    return Sequential(
        first=Linear(n_neurons=6, input_size=8),
        odd=layer,
        out=Linear(n_neurons=1, input_size=6),
    )


def test_features_may_be_moved():
    """Channels are followed wherever they go."""
    group = find_groups(chain(Reversed()), EIGHT)[1]
    assert group.find("in")[0].index.tolist() == [5, 4, 3, 2, 1, 0]
    assert list(Gates(chain(Reversed()), input_shape=[1, 9, 8])) == ["first"]


def test_groups_of_a_convolution_are_channels():
    """Each of three groups, whatever is between two such layers."""
    options = {"in_channels": 6, "out_channels": 6, "kernel_size": 3}
    grouped = torch.nn.Sequential(
        Conv1d(**options, groups=3), Reversed(), Conv1d(**options, groups=3)
    )
    gates = Gates(chain(grouped), input_shape=[1, 9, 8])
    assert {name: gate.size for name, gate in gates.items()} == {"first": 3}
    index = gates.groups[1].find("in")[1].index.tolist()
    assert index == [2, 2, 1, 1, 0, 0]


@pytest.mark.parametrize(
    "groups, nhead, step", [(4, 3, 1), (4, 4, 2), (8, 4, 4), (12, 2, 1)]
)
def test_attention_reads_groups_of_channels(groups, nhead, step):
    """Of 24 features whole groups stay, as many as heads can share."""
    model = models.ConvPositions(groups, nhead)
    gate = Gates(model, input_shape=[1, 9, 12])["project"]
    assert (gate.size, gate.granularity) == (groups, step)


FIXED = {
    "softmax": (torch.nn.Softmax(-1), "mixed"),
    "constant": (Halves(), "not exact when cut"),
    "NaN": (Root(6), "changes by nan"),
    "moved between groups": (
        torch.nn.Sequential(
            Conv1d(in_channels=6, out_channels=6, kernel_size=3, groups=2),
            Interleaved(),
            Conv1d(in_channels=6, out_channels=6, kernel_size=3, groups=2),
        ),
        "mixed",
    ),
}


@pytest.mark.parametrize("case", FIXED)
def test_what_cannot_be_cut_exactly_stays(case):
    """With the reason, and an error if nothing is left to be gated."""
    layer, reason = FIXED[case]
    gates = Gates(chain(layer), input_shape=[1, 9, 8], layers=[])
    with pytest.raises(ValueError, match=f"(?s)no group.*first: .*{reason}"):
        Gates(chain(layer), input_shape=[1, 9, 8])
    assert list(gates) == []


def test_noise_of_the_model_is_not_inexactness():
    """Whatever the weights: scores of some are near 0."""
    for seed in range(12):
        torch.manual_seed(seed)
        gates = Gates(NoisyScore(), input_shape=[1, 9, 8])
        assert list(gates) == ["first"], seed


def test_a_model_that_puts_out_nan_is_an_error():
    """Nothing could be compared: NaN does not pass for agreement."""
    with pytest.raises(ValueError, match="Sequential puts out NaN"):
        Gates(chain(Root(9)), input_shape=[1, 9, 8])


def test_one_inexact_group_does_not_fix_the_others():
    """The rest is gated."""
    net = Sequential(
        begin=Linear(n_neurons=5, input_size=8),
        first=Linear(n_neurons=6, input_size=5),
        odd=Halves(),
        out=Linear(n_neurons=1, input_size=6),
    )
    gates = Gates(net, input_shape=[1, 9, 8])
    assert list(gates) == ["begin"]
    fixed = {group.name: group.locked_reason for group in gates.groups}
    assert "changes by" in fixed["first"]


def test_a_random_forward_is_an_error():
    """The message names the layer that reads something else each time."""
    with pytest.raises(ValueError, match="not deterministic.*'out.w'"):
        find_groups(chain(Drawn()), EIGHT)


@pytest.mark.parametrize("build", [GRU, LSTM, RNN])
def test_normalization_over_both_directions(build):
    """Both directions of an RNN share their units, also in a LayerNorm."""
    net = Sequential(
        first=build(hidden_size=6, input_size=8, bidirectional=True),
        norm=LayerNorm(input_size=12),
        out=Linear(n_neurons=1, input_size=12),
    )
    group = find_groups(net, EIGHT)[1]
    assert group.size == 6 and group.locked_reason is None
    index = group.find("norm")[0].index
    assert index.tolist() == [*range(6), *range(6)]


def test_probing_leaves_the_model_as_it_was():
    """No forward, hook, mode, statistic or random state is changed."""
    model = models.crnn_batch().train()
    model.conv1.eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    Gates(model, input_shape=[1, 20, 80], layers=["conv2"])
    assert torch.equal(state, torch.get_rng_state())
    assert model.training and model.rnn.training and not model.conv1.training
    assert "forward" not in vars(model.conv1.conv)
    after = model.state_dict()
    for key, value in before.items():
        assert torch.equal(value, after[key]), key


class Transposing(torch.nn.LayerNorm):
    """Reads (batch, channels, time), unlike its parent."""

    def forward(self, x):
        return super().forward(x.mT).mT


def test_a_layer_with_a_forward_of_its_own_is_named():
    """What its channels are cannot be seen: the reason says what helps."""
    net = torch.nn.Sequential(
        torch.nn.Conv1d(9, 6, 1), Transposing(6), torch.nn.Conv1d(6, 2, 1)
    )
    with pytest.raises(ValueError, match="1 is a Transposing, whose forward"):
        Gates(net, example=[torch.rand(1, 9, 20)])


class Weighted(torch.nn.Module):
    """Values under weights that all channels of other layers decide on."""

    def __init__(self, weigh):
        super().__init__()
        self.weigh = weigh
        self.stem = torch.nn.Linear(5, 16)
        for name in ("query", "key", "value"):
            setattr(self, name, torch.nn.Linear(16, 16))
        self.out = torch.nn.Linear(16, 3)

    def forward(self, x):
        """Returns scores."""
        x = self.stem(x).relu()
        q, k, v = self.query(x), self.key(x), self.value(x)
        return self.out(x + self.weigh(q, k, v))


@pytest.mark.parametrize(
    "weigh, mixed",
    [
        (lambda q, k, v: (q @ k.mT).softmax(-1) @ v, ["query", "key"]),
        (lambda q, k, v: v * (q * k).sum(-1, True), ["query", "key"]),
        (lambda q, k, v: v / (q + k).norm(dim=-1, keepdim=True), ["query"]),
        (lambda q, k, v: v @ (k.mT @ q).softmax(-2), ["key", "value"]),
    ],
    ids=["attention", "pooling", "norm", "over channels"],
)
def test_channels_that_meet_lock_their_makers_alone(weigh, mixed):
    """Not the values that they weigh, nor the stream that those go to."""
    gates = Gates(Weighted(weigh), input_shape=[1, 12, 5])
    reasons = {group.name: group.locked_reason for group in gates.groups}
    assert reasons["stem"] is None
    for name in mixed:
        assert "mixed between the layers" in reasons[name]
    models.scramble(gates)
    gates.freeze({"stem": 7})
    model, x = gates.model.double().eval(), torch.randn(2, 9, 5).double()
    small, _ = compact(gates)
    assert small.value.in_features == 7
    torch.testing.assert_close(small(x), model(x))
