"""Which layers get gates, and how gates are taken off again."""

import pytest
import speechbrain as sb
import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.lobes.models.transformer.Transformer import (
    TransformerEncoderLayer,
)
from speechbrain.nnet.containers import Sequential
from speechbrain.nnet.linear import Linear
from speechbrain.nnet.RNN import GRU

from noisegate.compact import compact
from noisegate.gates import Gates
from tests.unittests import models


def small_transformer(**options):
    """A projection, one encoder layer and an output, with gates."""
    net = Sequential(input_shape=[None, None, 8])
    net.append(Linear, n_neurons=16, layer_name="project")
    encoder = TransformerEncoderLayer(d_ffn=24, nhead=2, d_model=16)
    net.append(encoder, layer_name="encoder")
    net.append(GRU, hidden_size=12, layer_name="rnn")
    net.append(Linear, n_neurons=1, layer_name="out")
    return Gates(net, input_shape=[1, 9, 8], **options)


def test_groups_have_kinds():
    """By what makes their channels."""
    kinds = {group.name: group.role for group in small_transformer().groups}
    assert kinds == {
        "features": "features",
        "project": "residual",
        "encoder.pos_ffn": "ffn",
        "rnn": "rnn",
        "out": "linear",
    }


def test_layers_are_selected_by_kind():
    """Feed-forward blocks alone, say."""
    assert list(small_transformer(layers=["role:ffn"])) == ["encoder.pos_ffn"]
    names = list(small_transformer(layers=["role:r*"]))
    assert names == ["project", "rnn"]


def test_patterns_have_options_of_their_own():
    """In YAML a dict; what is not said is as for all, the last match counts."""
    layers = load_hyperpyyaml("""
layers:
    "*": {kappa_min: 0.5}
    "role:ffn": {kappa_min: 0.25, granularity: 8}
    rnn: {granularity: 3}
    project: False
""")["layers"]
    gates = small_transformer(layers=layers, granularity=2)
    assert gates.min_widths() == {"encoder.pos_ffn": 8, "rnn": 3}
    steps = {name: gate.granularity for name, gate in gates.items()}
    assert steps == {"encoder.pos_ffn": 8, "rnn": 3}
    gates = small_transformer(layers={"project": None}, granularity=4)
    assert gates["project"].granularity == 4


@pytest.mark.parametrize(
    "layers, message",
    [
        ({"*": {}, "conv*": {}}, "'conv\\*' names no group"),
        (["role:conv"], "roles: .*'ffn'"),
        ({"rnn": {"granularity": 5}}, "'rnn', 'rnn': granularity must divide"),
        ({"r*": {"kappa": 0.1}}, "'r\\*', 'rnn': .*kappa"),
        (
            {"rnn": {"kappa_min": 2}},
            "'rnn', 'rnn': kappa_min must be a number in",
        ),
        ({"rnn": 0.1}, "'rnn' must be a text, with options of gates"),
        ([3], "3 must be a text"),
        ({"out": {}}, "out is the output of the model"),
    ],
)
def test_wrong_selections_name_the_pattern(layers, message):
    """And what is wrong with it."""
    with pytest.raises(ValueError, match=message):
        small_transformer(layers=layers)


@pytest.mark.parametrize("top_db, warned", [(80.0, True), (300.0, False)])
def test_clipping_of_gated_bands_is_a_warning(top_db, warned, caplog):
    """Because the loudest band may be cut."""
    net = Sequential(input_shape=[None, None, 20])
    net.append(Linear, n_neurons=4, layer_name="hidden")
    net.append(Linear, n_neurons=1, layer_name="out")
    features = sb.lobes.features.Fbank(n_mels=20)
    features.compute_fbanks.top_db = top_db
    with Gates(net, front_end=features, layers=["hidden"]):
        assert "top_db" not in caplog.text
    Gates(net, front_end=features)
    assert ("top_db 80.0" in caplog.text) == warned


def state_of(model):
    """Parameters, buffers and own attributes of all layers."""
    return (
        {key: value.clone() for key, value in model.state_dict().items()},
        {path: sorted(vars(m)) for path, m in model.named_modules()},
    )


@pytest.mark.parametrize("name", models.MODELS)
def test_gates_can_be_taken_off(name):
    """Outputs, state, attributes are those of the untouched model."""
    torch.manual_seed(0)
    model = models.MODELS[name]().eval()
    x = torch.randn(2, 21, 80)
    before, expected = state_of(model), model(x)
    for _ in range(2):
        with Gates(model, input_shape=[1, 21, 80]) as gates:
            gates.freeze(gates.min_widths())
            assert not torch.equal(model(x), expected)
            with pytest.raises(ValueError, match="has gates already"):
                Gates(model, input_shape=[1, 21, 80])
        after = state_of(model)
        assert before[1] == after[1]
        assert list(before[0]) == list(after[0])
        for key, value in before[0].items():
            assert torch.equal(value, after[0][key])
        assert torch.equal(model(x), expected)
    gates.remove()  # once more does nothing


def test_a_forward_of_the_user_comes_back():
    """It runs while the gate is open, and is there again afterwards."""
    net = Sequential(
        first=Linear(n_neurons=4, input_size=3),
        norm=torch.nn.LayerNorm(4, elementwise_affine=False),
        last=Linear(n_neurons=1, input_size=4),
    )
    calls = []

    def own(x):
        calls.append(x)
        return torch.nn.functional.layer_norm(x, x.shape[-1:])

    net.norm.forward = own
    x = torch.randn(2, 9, 3)
    with Gates(net, input_shape=[1, 9, 3]):
        assert net.norm.forward is not own
        calls.clear()
        net(x)
        assert len(calls) == 1
    assert net.norm.forward is own


def test_cutting_leaves_the_gates_on():
    """Compaction takes them off and puts them back, with what they learned."""
    gates = models.gated("crnn")
    gates.model.train()(torch.randn(4, 21, 80))
    before = state_of(gates.model)
    compact(gates)
    after = state_of(gates.model)
    assert before[1] == after[1] and list(before[0]) == list(after[0])
    for key, value in before[0].items():
        assert torch.equal(value, after[0][key])
    taps = [tap for _, tap in gates.taps()]
    assert all(int(tap.n_passes) == 1 for tap in taps)


def test_the_table_of_groups():
    """repr: a line for each group, with what depends on it, and totals."""
    lines = repr(models.gated("crnn")).splitlines()
    assert lines[0].split()[:3] == ["group", "role", "channels"]
    rows = {line.split()[0]: line for line in lines[1:] if line}
    assert rows["rnn"].endswith("read by hidden.w")
    assert rows["out"].endswith("no gate: the output of the model")
    assert "gated: 5 of 6 groups" in lines[-2]


def test_another_front_end_is_an_error():
    """Says what came."""
    with pytest.raises(TypeError, match="Fbank, got Linear"):
        Gates(models.crnn(), front_end=torch.nn.Linear(3, 2))


def test_options_that_do_not_fit_leave_the_model_alone():
    """All gates are made before one is put on."""
    model = models.crnn()
    before = state_of(model)
    options = {"conv1": {}, "hidden": {"granularity": 5}}
    with pytest.raises(ValueError, match="granularity must divide"):
        Gates(model, input_shape=[1, 21, 80], layers=options)
    assert before[1] == state_of(model)[1]
