"""Channel groups: which layers share a width."""

import pytest
import speechbrain as sb
import torch
from speechbrain.lobes.models.transformer.Transformer import (
    TransformerEncoderLayer,
)
from speechbrain.nnet.CNN import Conv1d
from speechbrain.nnet.containers import Sequential
from speechbrain.nnet.linear import Linear
from speechbrain.nnet.normalization import BatchNorm1d, LayerNorm
from speechbrain.nnet.RNN import GRU, LSTM

from noisegate.attach import Gates
from noisegate.compact import compact
from noisegate.groups import find_groups
from noisegate.layers import GatedConv1d, GatedFbank, GatedLinear
from tests.unittests import models


def described(groups):
    """Groups as text: name, size, granularity, fixed or not, ports."""
    return [
        (
            f"{g.name} {g.size}"
            + (f" x{g.granularity}" if g.granularity > 1 else "")
            + (" fixed" if g.fixed else ""),
            " ".join(f"{p.layer}:{p.role}" for p in g.ports),
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
            "rnn2 6 fixed",
            "rnn2.rnn:out rnn2.rnn:hidden norm3.norm:norm out.w:in",
        ),
        ("out 1 fixed", "out.w:out"),
    ],
}


@pytest.mark.parametrize("name", models.MODELS)
def test_groups_of_the_examples(name):
    """Names, sizes, order and every place where the channels appear."""
    groups = find_groups(models.MODELS[name](), models.front_end())
    assert described(groups) == EXPECTED[name]


def test_channels_of_flattened_features():
    """Directions of a GRU and flattened planes know their channels."""
    groups = {g.name: g for g in find_groups(models.conv2d())}
    index = groups["conv2"].find("in")[0].index
    # SpeechBrain flattens (batch, time, freq, channel): channels fastest
    assert index.tolist() == list(range(5)) * (len(index) // 5)
    groups = {g.name: g for g in find_groups(models.crnn())}
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
    first = find_groups(models.crnn())[0]
    assert first.name == "features" and first.size == 80
    assert "input" in first.fixed
    assert not first.find("out")


def test_mel_bands_under_a_2d_convolution_are_fixed():
    """A convolution over frequency needs all positions; says so."""
    net = models.conv2d()
    with pytest.raises(ValueError, match="features.*convolves over"):
        Gates(net, features=models.front_end(), layers=["features"])
    with pytest.raises(ValueError, match="may not change.*convolves over"):
        Gates(net, features=GatedFbank(n_mels=80))


@pytest.mark.parametrize("option", ["deltas", "context"])
def test_mel_bands_behind_deltas_are_fixed(option):
    """What stacks features behind the filterbank keeps them."""
    fbank = sb.lobes.features.Fbank(n_mels=80, **{option: True})
    assert "deltas" in find_groups(models.crnn(), fbank)[0].fixed


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
        return Gates(
            models.crnn(), input_shape=[1, 10, 80], layers=layers
        ).names

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
    assert Gates(net, input_shape=[1, 10, 8]).names == ["conv"]
    net = Sequential(input_shape=[None, None, 8])
    net.append(GatedConv1d, out_channels=6, kernel_size=3, layer_name="conv")
    net.append(Linear, n_neurons=5, layer_name="hidden")
    net.append(Linear, n_neurons=2, layer_name="out")
    gates = Gates(net, input_shape=[1, 10, 8], layers=["hidden"])
    assert gates.names == ["hidden"]


class Unknown(torch.nn.Module):
    """A layer with features of its own."""

    def forward(self, x):
        """Returns the reversed features."""
        return x.flip(-1)


def unknown_cases():
    """A layer that cannot be followed, and its place."""
    grouped = {"out_channels": 6, "kernel_size": 3, "groups": 2}
    return {
        "custom": (Unknown(), "odd"),
        "nested": (torch.nn.Sequential(torch.nn.ReLU(), Unknown()), "odd.1"),
        "lstm": (LSTM(hidden_size=6, input_size=6), "odd"),
        "grouped": (Conv1d(in_channels=6, **grouped), "odd.conv"),
        "pool": (torch.nn.MaxPool1d(2), "odd"),
        "softmax": (torch.nn.Softmax(-1), "odd"),
        "relative": (
            TransformerEncoderLayer(
                8, 2, d_model=6, attention_type="RelPosMHAXL"
            ),
            "odd.self_att",
        ),
    }


@pytest.mark.parametrize("case", unknown_cases())
def test_an_unknown_layer_is_an_error(case):
    """Never a silent mistake: the message names the layer."""
    layer, place = unknown_cases()[case]
    net = Sequential(
        first=Linear(n_neurons=6, input_size=8),
        odd=layer,
        out=Linear(n_neurons=1, input_size=6),
    )
    with pytest.raises(ValueError, match=f"'{place}'") as error:
        find_groups(net)
    kind = type(net.get_submodule(place)).__name__
    assert kind in str(error.value) or "groups=2" in str(error.value)


def test_features_that_fit_no_channels_are_an_error():
    """A layer whose input size cannot come from the channels before."""
    net = Sequential(
        first=Linear(n_neurons=6, input_size=8),
        out=Linear(n_neurons=1, input_size=7),
    )
    with pytest.raises(ValueError, match="out.w reads 7 features"):
        find_groups(net)
    net = Sequential(
        first=Linear(n_neurons=6, input_size=8),
        norm=BatchNorm1d(input_size=12),
        out=Linear(n_neurons=1, input_size=12),
    )
    with pytest.raises(ValueError, match="'norm.norm'"):
        find_groups(net)


def test_normalization_over_more_than_channels_fixes_them():
    """Both directions of a GRU normalized together keep their size."""
    net = Sequential(
        first=GRU(hidden_size=6, input_size=8, bidirectional=True),
        norm=LayerNorm(input_size=12),
        out=Linear(n_neurons=1, input_size=12),
    )
    group = find_groups(net)[1]
    assert "normalizes over more than channels" in group.fixed
