"""Models that SpeechBrain's adapters are in (LoRA, Houlsby): their gates are
exact, and checkpoints and folders hold them whole."""

import functools

import pytest
import torch
from speechbrain.lobes.models.transformer.Conformer import ConformerEncoder
from speechbrain.nnet.adapters import AdaptedModel, HoulsbyAdapterLinear, LoRA
from speechbrain.nnet.attention import RelPosEncXL
from speechbrain.nnet.CNN import Conv1d
from speechbrain.nnet.containers import Sequential
from speechbrain.nnet.linear import Linear
from speechbrain.nnet.RNN import AttentionalRNNDecoder, LiGRU

import noisegate
from noisegate.compact import compact
from noisegate.pretrained import load_yaml
from tests.unittests import brains
from tests.unittests.brains import (
    Killed,
    assert_same,
    brain,
    forget_keys,  # noqa: F401
    state,
)
from tests.unittests.referee import count_macs

YAML = """!new:speechbrain.nnet.adapters.AdaptedModel
model_to_adapt: !new:speechbrain.nnet.containers.Sequential
    input_shape: [null, null, 8]
    conv: !name:speechbrain.nnet.CNN.Conv1d
        out_channels: 16
        kernel_size: 3
    norm: !name:speechbrain.nnet.normalization.LayerNorm
    act: !new:torch.nn.ReLU
    drop: !new:torch.nn.Dropout
        p: 0.2
    rnn: !name:speechbrain.nnet.RNN.GRU
        hidden_size: 12
        bidirectional: True
    hidden: !name:speechbrain.nnet.linear.Linear
        n_neurons: 10
    act2: !new:torch.nn.ReLU
    out: !name:speechbrain.nnet.linear.Linear
        n_neurons: 1
adapter_class: !name:speechbrain.nnet.adapters.LoRA
all_linear: True
all_conv: True
adapter_kwargs: {rank: 2}
"""


class Net(torch.nn.Module):
    """Something between two layers."""

    def __init__(self, run, d_out=12, **parts):
        super().__init__()
        self.run, self.parts = run, torch.nn.ModuleDict(parts)
        self.first = torch.nn.Linear(8, 12)
        self.last = torch.nn.Linear(d_out, 3)

    def forward(self, x):
        y = torch.relu(self.first(x))
        return self.last(torch.relu(self.run(self.parts, y)))


def convolutional():
    net = Sequential(input_shape=[None, None, 8])
    net.append(Conv1d, out_channels=16, kernel_size=3, layer_name="conv")
    net.append(torch.nn.ReLU(), layer_name="act")
    net.append(Linear, n_neurons=10, layer_name="hidden")
    net.append(torch.nn.ReLU(), layer_name="act2")
    net.append(Linear, n_neurons=1, layer_name="out")
    return net


def recurrent():
    return Net(lambda p, x: p.rnn(x)[0], rnn=LiGRU(12, (None, None, 12)))


def conformer():
    return Net(
        lambda p, x: p.encoder(x, pos_embs=p.positions(x))[0],
        positions=RelPosEncXL(12),
        encoder=ConformerEncoder(1, 12, 16, 4, kernel_size=3),
    )


def decoder(kind):
    def run(parts, x):
        return parts.decoder(x[:, :5], x, torch.ones(len(x)))[0]

    part = AttentionalRNNDecoder(
        rnn_type="gru",
        attn_type=kind,
        hidden_size=14,
        attn_dim=10,
        num_layers=1,
        enc_dim=12,
        input_size=12,
        kernel_size=7,
        channels=4,
    )
    return Net(run, 14, decoder=part)


def lora(net, **options):
    options = {"all_linear": True, "adapter_kwargs": {"rank": 4}, **options}
    return AdaptedModel(net, LoRA, **options)


NETS = {
    "convolutions": lambda: lora(convolutional(), all_conv=True),
    "Houlsby": lambda: AdaptedModel(
        convolutional(),
        HoulsbyAdapterLinear,
        all_linear=True,
        adapter_kwargs={"projection_size": 6},
    ),
    "LiGRU": lambda: lora(recurrent()),
    "Conformer": lambda: lora(conformer()),
    "one of attention": lambda: lora(
        conformer(), all_linear=False, target_layers=["*mha_layer.out_proj"]
    ),
    "decoder, content": lambda: lora(decoder("content")),
    "decoder, location": lambda: lora(decoder("location")),
    "decoder, keyvalue": lambda: lora(decoder("keyvalue")),
    "decoder, keyvalue, plain": lambda: decoder("keyvalue"),
}


@pytest.mark.parametrize("kind", NETS)
def test_masked_is_cut(kind):
    torch.manual_seed(0)
    net = NETS[kind]().eval()
    for parameter in net.parameters():  # adapters begin with zeros
        parameter.data += 0.2 * torch.randn_like(parameter)
    x = torch.randn(2, 9, 8)
    expected = net(x)
    gates = noisegate.Gates(net, input_shape=[1, 12, 8])
    assert gates
    torch.testing.assert_close(net(x), expected, rtol=0, atol=0)
    gates.freeze({name: gate.size // 2 for name, gate in gates.items()})
    masked = net(x)
    assert (masked - expected).abs().max() > 1e-3
    small, _ = compact(gates)
    torch.testing.assert_close(small(x), masked, rtol=1e-4, atol=1e-5)
    said = gates.cost.macs(gates.integer_widths())
    assert said == count_macs(small, torch.randn(1, 12, 8))


def adapted_brain(folder, kill=None):
    adapt = functools.partial(lora, all_conv=True, adapter_kwargs={"rank": 2})
    trainer = brain(folder, adapt=adapt, ckpt_interval_steps=1)
    trainer.kill = kill
    return trainer


def test_checkpoints_and_folders_hold_all(tmp_path):
    """AdaptedModel saves what is trained alone: not ranks, final widths."""
    whole = brains.fit(adapted_brain(tmp_path / "whole"))
    for kill in (("batch", 2, 2), ("batch", 4, 2)):
        folder = tmp_path / str(kill[1])
        with pytest.raises(Killed):
            brains.fit(adapted_brain(folder, kill))
        assert_same(state(whole), state(brains.fit(adapted_brain(folder))))
    options = {"min_key": "loss", "test_loader_kwargs": {"batch_size": 4}}
    expected = whole.evaluate(brains.dataset(8), **options)
    other = adapted_brain(tmp_path / "whole")
    assert other.evaluate(brains.dataset(8), **options) == expected
    model = other.modules.model
    x = torch.randn(1, 10, 8)
    noisegate.save_compact(
        tmp_path / "compact",
        {"model": model},
        "header",
        {"model": YAML},
        {"model": ([x], {})},
    )
    loaded = load_yaml(tmp_path / "compact")["model"].eval()
    torch.testing.assert_close(loaded(x), model(x), rtol=0, atol=0)
