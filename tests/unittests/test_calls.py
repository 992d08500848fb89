"""Gates act wherever a layer of the model is called, however it is called."""

import copy
import threading

import pytest
import speechbrain as sb
import torch
from speechbrain.utils.checkpoints import average_checkpoints
from torch.utils.checkpoint import checkpoint

from noisegate import ComplexityLoss, Gates, NoiseGate, compact, save_compact
from noisegate.baselines.gates import HardConcreteGate
from noisegate.brain import GatedBrain
from tests.unittests.brains import TinyBrain, brain, dataset, fit

nn = torch.nn


class Net(nn.Module):
    """An encoder with residual blocks that may be checkpointed, a decoder."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 2)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 16))
            for _ in range(2)
        )
        self.reentrant = None

    def encode(self, x):
        """What searchers call."""
        x = self.first(x)
        for block in self.blocks:
            if self.reentrant is None:
                x = x + block(x)
            else:
                x = x + checkpoint(block, x, use_reentrant=self.reentrant)
        return x.relu()

    def decode(self, x):
        """Scores of features."""
        return self.last(x)

    def forward(self, x):
        return self.decode(self.encode(x))


def gated(gate=NoiseGate, width=0.6):
    """Gates, all at the same relative width, and an input."""
    torch.manual_seed(0)
    gates = Gates(Net(), input_shape=[1, 9, 6], gate=gate)
    for one in gates.values():
        one.set_width(width * one.size)
    return gates, torch.randn(3, 9, 6)


def test_methods_of_the_model_are_gated():
    """Before any forward; behind a training step without its noise."""
    gates, x = gated()
    net = gates.model.train()
    net(x)
    net.eval()
    small, _ = compact(gates)
    kept = gates["first"].open_channels()
    torch.testing.assert_close(
        net.encode(x)[..., kept], small.encode(x), rtol=1e-4, atol=1e-5
    )
    assert torch.equal(net.decode(net.encode(x)), net(x))
    with torch.no_grad():
        gates["first"].kappa.data.fill_(0.3)  # as averages of weights do
    again, _ = compact(gates)
    torch.testing.assert_close(net(x), again(x), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(small(x), again(x))


def test_gates_are_put_on_in_the_mode_of_the_layer():
    """A model that is in evaluation draws nothing."""
    gates = Gates(Net().eval(), input_shape=[1, 9, 6])
    gates["first"].set_width(8.5)
    x = torch.randn(3, 9, 6)
    assert torch.equal(gates.model(x), gates.model(x))


def test_parts_in_evaluation_draw_nothing():
    """The mode of the layer counts, as for dropout."""
    gates, x = gated()
    net = gates.model.train()
    assert not torch.equal(net.decode(x := net.encode(x)), net.decode(x))
    net.last.eval()
    assert torch.equal(net.decode(x), net.decode(x))


@pytest.mark.parametrize("gate", [NoiseGate, HardConcreteGate])
def test_two_passes_in_a_step(gate):
    """Each may be followed by a backward pass of its own."""
    gates, x = gated(gate)
    net = gates.model.train()
    first, other = net(x), net(x)
    first.square().sum().backward()
    before = [p.grad.clone() for p in gates.parameters()]
    other.square().sum().backward()
    for parameter, gradient in zip(gates.parameters(), before):
        assert not torch.equal(parameter.grad, gradient)


@pytest.mark.parametrize("gate", [NoiseGate, HardConcreteGate])
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_layers(gate, reentrant):
    """The gradients, and the statistics, are those without checkpoints."""
    results = []
    for how in (None, reentrant):
        gates, x = gated(gate)
        gates.model.train().reentrant = how
        torch.manual_seed(1)
        for _ in range(2):
            gates.model(x).square().mean().backward()
        assert gates.unreached() == gates.idle() == []
        results.append([p.grad for p in gates.model.parameters()])
        results[-1] += [tap.variance for _, tap in gates.taps()]
        results[-1] += [tap.n_passes for _, tap in gates.taps()]
    for expected, made in zip(*results):
        torch.testing.assert_close(made, expected)


def test_threads_do_not_disturb_each_other():
    """A model in evaluation has no state of a pass."""
    gates, x = gated()
    net = gates.model.eval()
    with torch.no_grad():
        expected, results = net(x), []

        def work():
            with torch.no_grad():
                results.extend(net(x) for _ in range(20))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(results) == 80
    assert all(torch.equal(result, expected) for result in results)


def test_copies_of_a_gated_model_are_gated_alike():
    """Also those made in the middle of a training step."""
    gates, x = gated()
    net = gates.model.train()
    output = net(x)
    twin = copy.deepcopy(net).eval()
    output.sum().backward()
    assert torch.equal(twin(x), net.eval()(x))


class FrozenBrain(TinyBrain):
    """The first layers give no gradient."""

    def compute_forward(self, batch, stage):
        """Returns the score of each frame."""
        layers = list(self.modules.model.values())
        with torch.no_grad():
            x = batch.to(self.device).feats[0]
            for layer in layers[:5]:
                x = layer(x)
                x = x[0] if isinstance(x, tuple) else x
        for layer in layers[5:]:
            x = layer(x)
        return x


def test_a_gate_without_gradient_is_a_warning(caplog):
    """With the names, once."""
    fit(brain(brain_class=FrozenBrain))
    texts = [r.message for r in caplog.records if "No gradient" in r.message]
    assert len(texts) == 1 and "['conv']" in texts[0]


class PartBrain(TinyBrain):
    """Leaves the GRU out."""

    def compute_forward(self, batch, stage):
        """Returns the score of each frame."""
        x = batch.to(self.device).feats[0]
        for name, layer in self.modules.model.items():
            if name != "rnn":
                x = layer(
                    torch.cat([x, x[..., :8]], -1) if name == "hidden" else x
                )
        return x


def test_a_gate_whose_layers_do_not_run_is_an_error():
    """At the end of the first epoch, with its name."""
    with pytest.raises(RuntimeError, match="that read .* did not run"):
        fit(brain(brain_class=PartBrain))


def test_data_parallel_is_refused(monkeypatch):
    """Before the first epoch, with what to use."""
    gates, _ = gated()
    hparams = {
        "gates": gates,
        "complexity_loss": ComplexityLoss(gates, weight=1.0),
    }
    options = {"device": "cpu", "data_parallel_backend": True}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="data_parallel_backend.*torchrun"):
        TinyBrain({"model": gates.model}, None, hparams, options)


def test_fused_transformers_are_gated():
    """torch's layers call none of those inside them if no one looks."""
    layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2)
    net = nn.Sequential(nn.Linear(6, 16), encoder, nn.Linear(16, 2))
    gates = Gates(net, input_shape=[1, 9, 6])
    assert list(gates) == ["0", "1.layers.0.linear1", "1.layers.1.linear1"]
    gates.freeze({name: gate.size // 2 for name, gate in gates.items()})
    small, _ = compact(gates)
    x = torch.rand(2, 9, 6)
    with torch.no_grad():
        torch.testing.assert_close(small(x), net.eval()(x))


class Translator(nn.Module):
    """torch's encoder and decoder, which know the number of features."""

    def __init__(self):
        super().__init__()
        self.front = nn.Linear(6, 16)
        self.embedding = nn.Embedding(9, 16)
        self.transformer = nn.Transformer(16, 2, 1, 1, 24, batch_first=True)
        self.out = nn.Linear(16, 9)

    def forward(self, x, tokens):
        """Scores of tokens."""
        y = self.embedding(tokens)
        return self.out(self.transformer(self.front(x), y))


def test_torch_encoder_and_decoder_narrow_together(tmp_path):
    """Their features, too, and the saved folder gives back what was cut."""
    example = [torch.rand(1, 9, 6), torch.tensor([[1, 2, 3]])]
    gates = Gates(Translator(), example=example)
    assert gates.cost.ratio(gates.min_widths()) < 0.1
    gates.freeze({name: gate.size // 2 for name, gate in gates.items()})
    small, _ = compact(gates)
    assert small.transformer.d_model == small.out.in_features == 8
    x, tokens = torch.rand(2, 7, 6), torch.tensor([[4, 5], [6, 7]])
    expected = gates.model.eval()(x, tokens)
    torch.testing.assert_close(small(x, tokens), expected)
    made = {"model": f"!new:{__name__}.Translator"}
    save_compact(str(tmp_path / "small"), {"model": small}, originals=made)


class OwnOptimizersBrain(TinyBrain):
    """Two optimizers, as recipes with a pretrained encoder have them."""

    def init_optimizers(self):
        """Makes them; the gates' is added if the last line is there."""
        net = self.modules.model
        self.conv_optimizer = torch.optim.SGD(net.conv.parameters(), 0.1)
        rest = [p for k, p in net.named_parameters() if "conv" not in k]
        self.optimizer = torch.optim.Adam(rest, 0.01)
        self.optimizers_dict = {
            "conv": self.conv_optimizer,
            "rest": self.optimizer,
        }
        if self.opt_class is None:
            super().init_optimizers()


def test_own_optimizers():
    """They are kept, without the gates; without super() it is an error."""
    with pytest.raises(RuntimeError, match="must call super..\\.init_optimi"):
        fit(brain(brain_class=OwnOptimizersBrain))
    trainer = brain(brain_class=OwnOptimizersBrain)
    trainer.opt_class = None
    fit(trainer)
    assert list(trainer.optimizers_dict) == ["conv", "rest", "gates"]
    assert trainer.gates.frozen
    assert trainer.gates.cost.ratio(trainer.gates.integer_widths()) <= 0.5


class AveragingBrain(TinyBrain):
    """Evaluates the mean of the best checkpoints, as SpeechBrain's recipes."""

    into = "modules"

    def on_evaluate_start(self, max_key=None, min_key=None):
        """Loads it into the modules or into hparams."""
        super().on_evaluate_start(max_key=max_key, min_key=min_key)
        found = self.checkpointer.find_checkpoints(min_key="loss")
        mean = average_checkpoints(found, recoverable_name="model")
        if self.into == "modules":
            self.modules.model.load_state_dict(mean, strict=True)
        else:
            self.gates.model.load_state_dict(mean, strict=True)

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Keeps several checkpoints."""
        GatedBrain.on_stage_end(self, stage, stage_loss, epoch)
        if stage == sb.Stage.VALID and self.widths_are_final:
            self.checkpointer.save_checkpoint(meta={"loss": stage_loss})


def test_averaged_checkpoints_are_evaluated(tmp_path):
    """Cut behind the average, for each test set, wherever it is loaded."""
    trainer = fit(brain(tmp_path, brain_class=AveragingBrain, epochs=5))
    options = {"min_key": "loss", "test_loader_kwargs": {"batch_size": 4}}
    losses = []
    for into in ("modules", "hparams", "modules"):
        trainer.into = into
        losses.append(trainer.evaluate(dataset(8), **options))
    assert losses[0] == losses[1] == losses[2]
    averaged = trainer.modules.model.state_dict()
    single = TinyBrain.on_evaluate_start
    single(trainer, min_key="loss")
    small, _ = compact(trainer.gates)
    best = small.state_dict()
    assert any(not torch.equal(best[key], averaged[key]) for key in best)


class ForgetfulBrain(TinyBrain):
    """Does not call super() where the model is cut."""

    def on_stage_start(self, stage, epoch=None):
        """In training only."""
        if stage == sb.Stage.TRAIN:
            super().on_stage_start(stage, epoch)


def test_an_evaluation_of_the_uncut_model_is_an_error(tmp_path):
    """Not a wrong figure."""
    trainer = fit(brain(tmp_path, brain_class=ForgetfulBrain))
    with pytest.raises(RuntimeError, match="must call super"):
        trainer.evaluate(dataset(8), min_key="loss")


class Expert(nn.Module):
    """One of two layers, as the data say."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)
        self.loud, self.quiet = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        """Returns scores."""
        layer = self.loud if x.abs().max() > 9 else self.quiet
        return self.last(layer(self.first(x)))


def test_layers_that_the_example_does_not_reach_are_named(caplog):
    """Their parameters count all the same."""
    model = Expert()
    n_parameters = sum(p.numel() for p in model.parameters())
    gates = Gates(model, input_shape=[1, 9, 4])
    assert "does not reach ['loud']" in caplog.text
    assert gates.cost.params() == n_parameters


def test_an_expanded_parameter_is_counted():
    """A state that is learned, of one example."""

    class Learned(nn.Module):
        """A GRU with a state to begin with."""

        def __init__(self):
            super().__init__()
            self.gru = nn.GRU(4, 6, batch_first=True)
            self.state = nn.Parameter(torch.randn(1, 1, 6))
            self.last = nn.Linear(6, 2)

        def forward(self, x):
            """Returns scores of the last state."""
            _, h = self.gru(x, self.state.expand(-1, len(x), -1))
            return self.last(h[-1])

    gates = Gates(Learned(), input_shape=[1, 9, 4])
    assert gates.cost.macs() == 9 * 3 * 6 * (4 + 6) + 6 * 2
    assert all(p.requires_grad for p in gates.model.parameters())


def test_padded_frames_of_torchs_encoder():
    """Are not packed where gates read them, nor in the cut model."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
    model = nn.Sequential(nn.Linear(4, 8), nn.TransformerEncoder(layer, 2))
    encoder = model[1]

    class Masked(nn.Module):
        """Reads as many frames as there are."""

        def __init__(self):
            super().__init__()
            self.first, self.encoder = model
            self.last = nn.Linear(8, 3)

        def forward(self, x, padded):
            """Returns scores."""
            x = self.encoder(self.first(x), src_key_padding_mask=padded)
            return self.last(x)

    x, padded = torch.randn(2, 9, 4), torch.zeros(2, 9, dtype=torch.bool)
    padded[1, 6:] = True
    with Gates(Masked(), example=[x, padded]) as gates:
        gates.freeze(gates.min_widths())
        small, _ = compact(gates)
        with torch.no_grad():
            expected = gates.model.eval()(x, padded)
            made = small(x, padded)
        assert not encoder.use_nested_tensor
        torch.testing.assert_close(made, expected)
    assert encoder.use_nested_tensor


def test_a_layer_whose_size_is_a_tensor():
    """Costs are plain numbers all the same, as for SpeechBrain's QuasiRNN."""
    hidden = nn.Linear(4, 6)
    hidden.out_features = torch.tensor(6)
    gates = Gates(nn.Sequential(hidden, nn.Linear(6, 2)), input_shape=[1, 9, 4])
    assert type(gates.cost.macs()) is int
    assert sum(gates.cost.macs_by_layer().values()) == 9 * (4 * 6 + 6 * 2)
