"""What has to hold on a GPU, too: run there by ``-m gpu --device=cuda``."""

import copy

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.steps import Waits
from noisegate import ComplexityLoss, Gates, NoiseGate, compact
from tests.unittests import models
from tests.unittests.brains import (
    EPOCHS,
    FREEZE,
    STEPS,
    Killed,
    TinyBrain,
    brain,
    dataset,
    fit,
)

pytestmark = pytest.mark.gpu
nn = torch.nn
NAMES = [*models.MODELS]


@pytest.fixture(autouse=True)
def exact():
    """Products of float32 numbers are taken in float32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def on(device, name, seed=0):
    """Gates of a random model on a device, and features."""
    gates = models.gated(name, seed=seed)
    gates.model.to(device)
    torch.manual_seed(seed)
    feats = torch.randn(3, 37, models.BANDS, device=device)
    return gates, feats


def first(output):
    """The first tensor of what a model returns."""
    return output if torch.is_tensor(output) else output[0]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("training", [False, True])
def test_open_gates_change_nothing(name, training, device):
    """To the bit."""
    gates, feats = on(device, name)
    plain = gates.plain_copy().to(device).train(training)
    gates.model.train(training)
    outputs = []
    for model in (plain, gates.model):
        torch.manual_seed(0)
        outputs.append(first(model(feats)))
    assert torch.equal(*outputs)


@pytest.mark.parametrize("name", NAMES)
def test_the_cut_model_is_the_masked_one(name, device):
    """To the precision of its numbers; its costs are those of a count."""
    gates, feats = on(device, name)
    models.scramble(gates)
    gates.freeze(models.random_widths(gates))
    with torch.no_grad():
        masked = first(gates.model.eval()(feats))
        small, _ = compact(gates)
        small.to(device).eval()
        cut = first(small(models.open_bands(gates, feats)))
    torch.testing.assert_close(cut, masked, rtol=1e-4, atol=1e-5)


def test_the_device_does_not_matter_to_groups_and_costs(device):
    """A model that lies there already is gated in the same way."""
    found = []
    for place in ("cpu", device):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv1d(4, 8, 3), nn.BatchNorm1d(8), nn.ReLU())
        net = net.append(nn.Conv1d(8, 2, 1)).to(place)
        gates = Gates(net, example=[torch.randn(1, 4, 50, device=place)])
        half = {name: gate.size // 2 for name, gate in gates.items()}
        found.append((list(gates), gates.cost.macs(), gates.cost.macs(half)))
    assert found[0] == found[1]


def test_states_move_between_devices(device):
    """Widths, ranks and statistics of there are those of here."""
    there, feats = on(device, "crnn")
    there.model.train()
    first(there.model(feats)).sum().backward()
    models.scramble(there)
    there["conv1"].set_width(5.5)
    there["rnn"].freeze(4)
    here = models.gated("crnn", seed=1)
    state = {k: v.cpu() for k, v in there.model.state_dict().items()}
    here.model.load_state_dict(state)
    assert here.integer_widths() == there.integer_widths()
    assert here["rnn"].frozen == 4
    with torch.no_grad():
        torch.testing.assert_close(
            first(here.model.eval()(feats.cpu())),
            first(there.model.eval()(feats)).cpu(),
            rtol=1e-4,
            atol=1e-5,
        )


def test_a_resumed_run_equals_the_uninterrupted_one(device, tmp_path):
    """To the bit, if the algorithms are deterministic."""
    torch.use_deterministic_algorithms(True)
    try:
        whole = fit(brain(tmp_path / "whole", device=device))
        options = {"device": device, "ckpt_interval_steps": 2}
        trainer = brain(tmp_path / "killed", **options)
        trainer.kill = "batch", 2, 3
        with pytest.raises(Killed):
            fit(trainer)
        resumed = fit(brain(tmp_path / "killed", seed=77, **options))
    finally:
        torch.use_deterministic_algorithms(False)
    assert resumed.optimizer_step == EPOCHS * STEPS
    states = [run.modules.model.state_dict() for run in (whole, resumed)]
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_autocast(precision, device, tmp_path):
    """Widths fall to the budget, and all that is learned is finite."""
    if precision == "fp16" and device == "cpu":
        pytest.skip("a GRU has no half precision on a CPU")
    trainer = fit(brain(device=device, precision=precision))
    assert trainer.gates.frozen
    assert (
        float(trainer.gates.cost.ratio(trainer.gates.integer_widths())) <= 0.5
    )
    for key, value in trainer.modules.model.state_dict().items():
        assert value.isfinite().all(), key


def test_loud_features_do_not_overflow(device):
    """Their squares are no half-precision numbers, their deviations are."""
    dtype = torch.bfloat16 if device == "cpu" else torch.half
    net = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 2)).to(device)
    gates = Gates(net, example=[torch.randn(1, 8, device=device)])
    gates["0"].set_width(10)
    with torch.autocast(device, dtype):
        for _ in range(3):
            output = net(1e4 * torch.randn(64, 8, device=device))
    variance = net[1].tap.variance
    assert variance.isfinite().all() and (variance > 65504).any()
    assert output.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("share", [1.0, 0.6, None])
def test_no_step_waits_for_a_device(name, share, device):
    """Forward, complexity, backward and gradient step, at any width: all that
    is done between the hooks of a Brain."""
    gates, feats = on(device, name)
    plain = gates.plain_copy().to(device).train()
    loss = ComplexityLoss(gates, budget=0.9)
    model = gates.model.train()
    if share is None:
        loss.freeze()
    else:
        for gate in gates.values():
            gate.set_width(max(gate.min_width, share * gate.size))
        gates.clamp()
        loss.step(0.5)
    step = torch.optim.SGD(model.parameters(), lr=0.1)

    def found(model, *terms):
        with Waits() as counted:
            total = first(model(feats)).square().mean()
            for term in terms:
                total = total + term()
            total.backward()
            step.step()
        return counted.names

    # What a GRU or an encoder layer asks by itself is theirs
    assert found(model, loss) == found(plain)


def test_a_step_is_followed_by_one_copy(device, monkeypatch):
    """From there all that asks for widths knows them."""
    gates, _ = on(device, "crnn")
    loss = ComplexityLoss(gates, budget=0.5)
    monkeypatch.setattr(torch.Tensor, "is_cpu", False)  # as on a GPU
    gates.clamp()

    def read(self):
        raise AssertionError("read again")

    with monkeypatch.context() as patched:
        patched.setattr(NoiseGate, "width", read)
        assert all(gate.is_open(training=True) for gate in gates.values())
        loss.step(0.05)  # no gate lags behind the target
        gates.reorder()
    gates["conv1"].set_width(3)  # in place, as optimizers do
    assert not gates["conv1"].is_open(training=True)
    assert gates["conv1"].known() == 3


def test_copies_read_their_own_width(monkeypatch):
    """Whatever is known of the original."""
    monkeypatch.setattr(torch.Tensor, "is_cpu", False)
    gate = NoiseGate(8)
    assert gate.known() == 8
    for _ in range(3):
        other = copy.deepcopy(gate)
        other.set_width(5)
        assert other.known() == 5


class Net(nn.Module):
    """Convolutions, a normalization that is masked, one over each channel."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 24), nn.Linear(24, 16)
        self.norm, self.last = nn.LayerNorm(24), nn.Linear(16, 2)

    def forward(self, x):
        """Scores of frames."""
        return self.last(self.b(self.norm(self.a(x)).relu()).relu())


def test_gates_do_not_break_a_compiled_graph(device):
    """One graph in training whatever the widths, one for final ones."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    gates = Gates(Net(), input_shape=[1, 9, 8])
    model = gates.model.to(device).train()
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    x = torch.randn(4, 9, 8, device=device)
    for share in (1.0, 0.9, 0.6, 1.0, 0.5, 0.3):
        for gate in gates.values():
            gate.set_width(max(gate.min_width, share * gate.size))
        gates.clamp()
        gates.watch()
        compiled(x).sum().backward()
        assert not gates.idle() and not gates.unreached()
    assert counter.frame_count <= 2
    gates.freeze({name: gate.size // 2 for name, gate in gates.items()})
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-6)
    assert counter.frame_count <= 3


def test_a_compiled_model_computes_what_it_is(device):
    """Open gates change nothing, half-open ones draw noise, evaluation keeps
    what the cut model has."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    gates = Gates(Net(), input_shape=[1, 9, 8])
    model = gates.model.to(device).train()
    plain = gates.plain_copy().to(device)
    compiled = torch.compile(model, backend="aot_eager")
    x = torch.randn(4, 9, 8, device=device)
    torch.testing.assert_close(compiled(x), plain(x), rtol=1e-5, atol=1e-6)
    for gate in gates.values():
        gate.set_width(0.7 * gate.size)
    assert not torch.equal(compiled(x), compiled(x))
    compiled.eval()
    small, _ = compact(gates)
    torch.testing.assert_close(
        compiled(x), small.to(device).eval()(x), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("backend", ["MATH", "FLASH_ATTENTION"])
def test_attention(backend, device):
    """Masked like cut by each of torch's implementations."""
    flash = backend == "FLASH_ATTENTION"
    dtype = torch.bfloat16 if flash else torch.float64
    if flash and device == "cpu":
        pytest.skip("for GPUs")
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(64, 4, 96, 0.0, batch_first=True)
    net = nn.Sequential(nn.Linear(8, 64), layer, nn.Linear(64, 2)).to(device)
    gates = Gates(net, input_shape=[1, 20, 8])
    models.scramble(gates)
    gates.freeze(models.random_widths(gates, seed=1))
    small = compact(gates)[0].to(device)
    x = torch.randn(2, 33, 8, device=device, dtype=dtype)
    with sdpa_kernel(getattr(SDPBackend, backend)):
        outputs = [m.to(dtype).train()(x) for m in (net, small)]
    tolerance = 0.1 if flash else 1e-9  # of bfloat16, of float64
    torch.testing.assert_close(*outputs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_recurrent_layers(kind, device):
    """Of cuDNN: masked like cut, with gradients for all open weights."""
    torch.manual_seed(0)
    net = models.Chain(
        nn.Linear(6, 8),
        kind(8, 12, num_layers=2, bidirectional=True, batch_first=True),
        nn.Linear(24, 2),
    ).to(device)
    gates = Gates(net, input_shape=[1, 20, 6])
    gates.freeze(models.random_widths(gates, seed=3))
    small = compact(gates)[0].to(device).train()
    x = torch.randn(2, 30, 6, device=device)
    masked, cut = net.train()(x), small(x)
    torch.testing.assert_close(masked, cut, rtol=1e-4, atol=1e-5)
    masked.sum().backward()
    cut.sum().backward()
    sums = [
        sum(
            float(p.grad.square().sum())
            for p in m.parameters()
            if p.grad is not None
        )
        for m in (net, small)
    ]
    assert sums[0] == pytest.approx(sums[1], rel=1e-3)


def test_two_streams(device):
    """Evaluation beside other work on the same device."""
    gates, feats = on(device, "crnn")
    models.scramble(gates)
    gates.freeze(models.random_widths(gates))
    model = gates.model.eval()
    with torch.no_grad():
        expected = first(model(feats))
        if device == "cpu":
            found = [first(model(feats)) for _ in range(2)]
        else:
            streams = [torch.cuda.Stream() for _ in range(2)]
            torch.cuda.synchronize()
            found = []
            for stream in streams:
                with torch.cuda.stream(stream):
                    found.append(first(model(feats)))
            torch.cuda.synchronize()
    for output in found:
        assert torch.equal(output, expected)


def test_a_brain_trains_and_evaluates(device, tmp_path):
    """To the budget, with the cut model in the end."""
    trainer = fit(brain(tmp_path, device=device))
    assert isinstance(trainer, TinyBrain) and trainer.freeze_epoch == FREEZE
    loss = trainer.evaluate(
        dataset(8), min_key="loss", test_loader_kwargs={"batch_size": 4}
    )
    assert loss == loss
    ratio = trainer.gates.cost.ratio(trainer.gates.integer_widths())
    assert float(ratio) <= 0.5


def test_a_model_is_gated_where_it_lies(device):
    """With a front-end on the CPU; all that is added goes to the model."""
    torch.manual_seed(0)
    model = models.crnn().to(device)
    gates = Gates(model, front_end=models.front_end(), segment_s=0.2)
    tensors = [*model.parameters(), *model.buffers()]
    assert {tensor.device for tensor in tensors} == {tensors[0].device}
    gates["conv1"].set_width(5.5)
    first(model.train()(torch.randn(2, 20, 80, device=device))).sum().backward()
    assert gates["conv1"].kappa.grad.isfinite().all()
