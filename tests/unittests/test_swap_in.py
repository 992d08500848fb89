"""Models of any structure: what holds for all of them."""

import copy

import pytest
import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.inference.interfaces import Pretrained

from noisegate.compact import compact, constructor, save_compact
from noisegate.gates import Gates
from tests.unittests import models
from tests.unittests.referee import count_macs

WHICH = models.SWAP_IN


def seeded(function, *args):
    """A call with a random state of its own: some models draw numbers."""
    torch.manual_seed(3)
    return function(*args)


@pytest.fixture(params=WHICH, scope="module")
def found(request):
    """A model with random parameters, an input and gates on a copy."""
    build, shape = WHICH[request.param]
    torch.manual_seed(0)
    model = models.randomise(build())
    gates = Gates(copy.deepcopy(model), input_shape=shape)
    return request.param, model, torch.randn(shape), gates


def fresh(found):
    """The gates of a fixture on a copy, open."""
    return copy.deepcopy(found[-1])


def test_open_gates_change_nothing(found):
    """The output is that of the plain model, to the bit; so are gradients."""
    _, plain, x, _ = found
    gates = fresh(found)
    for training in (False, True):
        outputs, gradients = [], []
        for net in (copy.deepcopy(plain), gates.model):
            net.train(training)
            net.zero_grad()
            output = seeded(net, x)
            output.square().sum().backward()
            outputs.append(output)
            gradients.append(
                {
                    k: p.grad
                    for k, p in net.named_parameters()
                    if "gate" not in k and p.grad is not None
                }
            )
        assert torch.equal(*outputs)
        for key, gradient in gradients[0].items():
            assert torch.equal(gradient, gradients[1][key]), key


def cuts(found):
    """Gates at the smallest and at random widths in random order."""
    for seed in range(3):
        gates = fresh(found)
        models.scramble(gates, seed)
        widths = models.random_widths(gates, seed)
        gates.freeze(gates.min_widths() if seed == 0 else widths)
        gates.model.eval()
        yield gates


def test_the_cut_model_equals_the_gated_one(found):
    """In evaluation, to rounding errors, in float32 and float64."""
    name, _, x, _ = found
    for gates in cuts(found):
        model, _ = compact(gates)
        expected = seeded(gates.model, x).detach()
        scale = float(expected.abs().max())
        # The pooling of x-vectors draws numbers for each channel
        own = 1e-4 * scale if name == "xvector" else 0
        difference = (seeded(model, x) - expected).abs().max()
        assert difference <= 1e-5 * max(1, scale) + own
        if own or name == "conformer":  # its attention is float32 always
            continue
        gates.model.double()
        model, _ = compact(gates)
        expected = gates.model(x.double())
        difference = (model(x.double()) - expected).abs().max()
        assert difference <= 1e-9 * max(1, scale)


def test_costs_are_those_of_the_cut_model(found):
    """MACs and parameters are counted exactly."""
    _, plain, x, gates = found
    one = x[:1]
    assert Gates(plain, input_shape=one.shape, layers=[]).cost.macs() == (
        count_macs(plain, one)
    )
    for gates in cuts(found):
        model, _ = compact(gates)
        widths = gates.integer_widths()
        assert gates.cost.macs(widths) == count_macs(model, x)
        n_parameters = sum(p.numel() for p in model.parameters())
        assert gates.cost.params(widths) == n_parameters


def test_a_training_step_moves_the_widths(found):
    """All gates get a gradient, of the task and of the cost."""
    _, _, x, _ = found
    gates = fresh(found)
    for gate in gates.values():
        gate.set_width(max(gate.min_width, gate.size - 1.5))
    gates.model.train()
    gates.model(x).square().sum().backward()
    for name, gate in gates.items():
        assert torch.isfinite(gate.kappa.grad).all(), name
        assert gate.kappa.grad != 0, name
    gates.reorder()


def test_the_cut_model_is_plain(found):
    """No hooks, nothing of ours in the state."""
    for gates in cuts(found):
        model, _ = compact(gates)
        for module in model.modules():
            assert not type(module).__module__.startswith("noisegate")
            assert not module._forward_pre_hooks
            assert "forward" not in vars(module)


HPARAMS = {
    "ecapa": """
n_bands: 10
model: !new:speechbrain.lobes.models.ECAPA_TDNN.ECAPA_TDNN
    input_size: !ref <n_bands>
    channels: [32, 32, 32, 32, 24]
    attention_channels: 7
    res2net_scale: 4
    se_channels: 6
    lin_neurons: 5
""",
    "crdnn": """
activation: !name:torch.nn.LeakyReLU
model: !new:speechbrain.lobes.models.CRDNN.CRDNN
    input_size: 10
    activation: !ref <activation>
    cnn_blocks: 1
    cnn_channels: [6]
    rnn_layers: 2
    rnn_neurons: 7
    rnn_bidirectional: True
    dnn_blocks: 2
    dnn_neurons: 8
""",
}


class Embedder(Pretrained):
    """The least that an inference class needs."""

    MODULES_NEEDED = ["model"]

    def forward(self, x):
        """Returns what the model returns."""
        return self.mods.model(x)


@pytest.mark.parametrize("name", HPARAMS)
def test_saving_and_loading_a_cut_class(name, tmp_path):
    """From the recipe's own YAML, cut to the recorded sizes."""
    hparams = tmp_path / "train.yaml"
    hparams.write_text(HPARAMS[name])
    torch.manual_seed(0)
    model = models.randomise(load_hyperpyyaml(HPARAMS[name])["model"])
    gates = Gates(model, input_shape=[1, 20, 10])
    models.scramble(gates)
    gates.freeze(models.random_widths(gates, 2))
    small, _ = compact(gates)
    original = constructor(str(hparams), "model")
    save_compact(
        str(tmp_path / "compact"),
        {"model": small},
        originals={"model": original},
    )
    loaded = Embedder.from_hparams(
        source=str(tmp_path / "compact"), savedir=str(tmp_path / "saved")
    )
    x = torch.randn(2, 25, 10)
    assert torch.equal(loaded(x), small(x))
    assert type(loaded.mods.model) is type(model)


def test_a_missing_key_of_the_recipe_is_an_error(tmp_path):
    """The message names it."""
    hparams = tmp_path / "train.yaml"
    hparams.write_text(HPARAMS["ecapa"])
    with pytest.raises(KeyError, match="modell"):
        constructor(str(hparams), "modell")
