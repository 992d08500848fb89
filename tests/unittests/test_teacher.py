"""Trained starts and teachers."""

import copy
import functools
import logging
from pathlib import Path

import pytest
import speechbrain as sb
import torch
from speechbrain.nnet.containers import Sequential
from speechbrain.nnet.linear import Linear
from speechbrain.nnet.RNN import GRU
from speechbrain.processing.features import InputNormalization
from speechbrain.utils.checkpoints import Checkpointer

from noisegate.compact import compact, save_compact
from noisegate.gates import Gates
from noisegate.pretrained import load_yaml, start_from
from noisegate.teacher import Teacher
from tests.unittests.brains import TinyBrain, brain, fit

NET = """!new:speechbrain.nnet.containers.Sequential
input_shape: [null, null, 8]
rnn: !name:speechbrain.nnet.RNN.GRU
    hidden_size: 12
hidden: !name:speechbrain.nnet.linear.Linear
    n_neurons: 10
out: !name:speechbrain.nnet.linear.Linear
    n_neurons: 1"""


def network(seed=0):
    """A network as its YAML says."""
    torch.manual_seed(seed)
    net = Sequential(input_shape=[None, None, 8])
    net.append(GRU, hidden_size=12, layer_name="rnn")
    net.append(Linear, n_neurons=10, layer_name="hidden")
    net.append(Linear, n_neurons=1, layer_name="out")
    return net.eval()


def saved(folder, net, **others):
    """The path of a compact folder."""
    norm = "!new:speechbrain.processing.features.InputNormalization"
    originals = {"model": NET, **dict.fromkeys(others, norm)}
    save_compact(folder, {"model": net, **others}, "", originals)
    return str(folder)


def cut(net):
    """A plain copy with fewer channels."""
    gates = Gates(net, input_shape=[1, 20, 8])
    gates.freeze({"rnn": 5, "hidden": 3})
    return compact(gates)[0]


def test_a_run_starts_from_a_cut_model(tmp_path):
    """With its sizes; inner modules stay the objects that others know."""
    torch.manual_seed(1)
    net = cut(network())
    norm = InputNormalization()
    norm(torch.randn(2, 5, 8), torch.ones(2))
    folder = saved(tmp_path / "compact", net, normalize=norm)
    mine, its = network(seed=3), InputNormalization()
    inner = dict(mine.named_modules())
    start_from(folder, {"model": mine, "normalize": its})
    assert dict(mine.named_modules()) == inner
    x, lens = torch.randn(2, 7, 8), torch.ones(2)
    torch.testing.assert_close(mine(x), net(x), rtol=0, atol=0)
    assert torch.equal(its.eval()(x, lens), norm.eval()(x, lens))
    # and can be gated and cut again
    gates = Gates(mine, input_shape=[1, 20, 8])
    assert {k: gate.size for k, gate in gates.items()} == {
        "rnn": 5,
        "hidden": 3,
    }
    gates.remove()
    mine(x).square().mean().backward()
    assert all(p.grad is not None for p in mine.parameters())


@pytest.mark.parametrize("inner", [False, True])
def test_a_run_starts_from_a_checkpoint(inner, tmp_path, caplog):
    """Of a dense run, without a warning for each key."""
    net = network()
    checkpointer = Checkpointer(tmp_path, {"model": net})
    folder = checkpointer.save_checkpoint().path if inner else tmp_path
    if not inner:
        checkpointer.save_checkpoint()
    mine = network(seed=3)
    start_from(folder, {"model": mine})
    assert max(record.levelno for record in caplog.records) < logging.WARNING
    for name, value in net.state_dict().items():
        assert torch.equal(value, mine.state_dict()[name])


def test_what_is_no_start_is_named(tmp_path):
    with pytest.raises(ValueError, match="no trained model"):
        start_from(tmp_path / "none", {"model": network()})
    folder = saved(tmp_path / "compact", network())
    with pytest.raises(ValueError, match=r"has no \['encoder'\], it has"):
        start_from(folder, {"encoder": network()})
    other = Sequential(input_shape=[None, None, 8])
    other.append(Linear, n_neurons=12, layer_name="rnn")
    with pytest.raises(ValueError, match="'model.rnn' is a Linear, but a GRU"):
        start_from(folder, {"model": other})
    gated = network()
    Gates(gated, input_shape=[1, 20, 8])
    checkpointer = Checkpointer(tmp_path / "save", {"model": gated})
    checkpointer.save_checkpoint()
    with pytest.raises(ValueError, match="'model' cannot start from"):
        start_from(tmp_path / "save", {"model": network()})


@pytest.mark.parametrize("damage", ["cut", "empty", "lacking", "other", "gone"])
@pytest.mark.parametrize("kind", ["compact", "checkpoint"])
def test_weights_that_are_not_whole(tmp_path, kind, damage):
    """SpeechBrain's Pretrainer would leave what a file lacks as drawn."""
    if kind == "compact":
        folder = saved(tmp_path / "compact", network())
    else:
        checkpointer = Checkpointer(tmp_path, {"model": network()})
        folder = checkpointer.save_checkpoint().path
    path = Path(folder, "model.ckpt")
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    elif damage == "lacking":
        state = torch.load(path)
        state.popitem()
        torch.save(state, path)
    elif damage == "gone":
        path.unlink()
    else:
        path.write_text("" if damage == "empty" else "version https://git-lfs")
    message = r"'model' cannot start from .*model\.ckpt"
    if (kind, damage) == ("checkpoint", "gone"):
        message = r"has no \['model'\]"
    with pytest.raises(ValueError, match=message):
        start_from(folder, {"model": network()})


def test_the_folder_of_a_run_has_no_weights(tmp_path):
    """Its YAML would make modules as they are drawn; its cut model is beside
    it, its checkpoints are in another folder."""
    text = "modules: {model: !new:torch.nn.Linear [8, 2]}"
    (tmp_path / "hyperparams.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="has no pretrainer, so no weights"):
        start_from(tmp_path, {"model": torch.nn.Linear(8, 2)})


def test_modules_of_a_folder(tmp_path):
    """Those that the YAML makes, with their weights."""
    net = cut(network())
    folder = saved(tmp_path / "compact", net)
    found = load_yaml(folder)["modules"]
    assert list(found) == ["model"]
    x = torch.randn(2, 7, 8)
    torch.testing.assert_close(found["model"].eval()(x), net(x))


class Taught(TinyBrain):
    """Draws noise on what it reads, and dropout behind it."""

    factor = 1.0

    def compute_forward(self, batch, stage):
        """Returns scores of frames and lengths."""
        feats, lens = batch.feats
        if stage == sb.Stage.TRAIN:
            feats = feats + torch.randn_like(feats)
        self.seen = feats
        return self.factor * self.modules.model(feats), lens

    def compute_objectives(self, predictions, batch, stage):
        """Returns the losses."""
        scores, lens = predictions
        loss = super().compute_objectives(scores, batch, sb.Stage.VALID)
        self.plain = loss
        loss = self.taught(loss, predictions, stage, lens)
        return loss + self.complexity_term(stage)


def teacher_of(trainer, **options):
    """A teacher whose modules are a copy of those of a Brain."""
    teacher = Teacher({}, **options)
    model = copy.deepcopy(trainer.modules["model"]).eval().requires_grad_(False)
    teacher.modules = {"model": model}
    trainer.teacher = teacher
    return teacher


@pytest.mark.parametrize("distance", ["bce", "mse", "cosine"])
def test_teacher_sees_what_the_student_sees(distance):
    """The same random numbers: the same model says the same."""
    still = functools.partial(torch.optim.SGD, lr=0.0)
    trainer = brain(brain_class=Taught, dropout=0.0, layers=[], opt_class=still)
    teacher = teacher_of(trainer, distance=distance, weight=0.25)
    if distance == "bce":  # not 0 between equals
        teacher.distance = lambda x, y: (x - y).abs()
    losses = []
    before = trainer.on_fit_batch_end

    def note(batch, outputs, loss, should_step):
        losses.append(float(loss.detach() - 0.75 * trainer.plain.detach()))
        assert torch.equal(trainer.seen, teacher._twin.seen)
        before(batch, outputs, loss, should_step)

    trainer.on_fit_batch_end = note
    fit(trainer)
    assert losses and max(map(abs, losses)) < 1e-6


def test_a_teacher_without_weight_changes_nothing():
    """To the bit: its forward draws no number of the student's."""
    states = []
    for with_teacher in (False, True):
        trainer = brain(brain_class=Taught)
        if with_teacher:
            teacher_of(trainer, weight=0.0, distance="mse")
        states.append(fit(trainer).modules.model.state_dict())
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def test_a_teacher_is_not_trained_nor_saved(tmp_path):
    trainer = brain(tmp_path, brain_class=Taught)
    teacher = teacher_of(trainer, distance="mse")
    before = copy.deepcopy(teacher.modules["model"].state_dict())
    macs = trainer.gates.cost.macs()
    fit(trainer)
    for name, value in teacher.modules["model"].state_dict().items():
        assert torch.equal(value, before[name])
    assert trainer.gates.cost.macs() == macs
    files = {p.name for p in tmp_path.glob("save/*/*.ckpt")}
    assert not [name for name in files if "teach" in name]


def test_a_loss_that_leaves_the_teacher_out_is_an_error():
    trainer = brain(brain_class=TinyBrain)
    teacher_of(trainer)
    with pytest.raises(RuntimeError, match="self.taught"):
        fit(trainer)


def test_padding_does_not_count():
    trainer = brain(brain_class=Taught, dropout=0.0)
    teacher = teacher_of(trainer, distance="mse", weight=1.0)
    batch = sb.dataio.batch.PaddedBatch(
        [{"feats": torch.ones(4, 8)}, {"feats": torch.ones(10, 8)}]
    )
    teacher.begin(trainer, batch)
    target, lens = teacher._twin.compute_forward(batch, sb.Stage.VALID)
    made = target.clone()
    made[0, 4:] += 100.0
    teacher._twin.factor = 1.0
    loss = teacher.teach(torch.tensor(5.0), (made, lens), sb.Stage.VALID, lens)
    assert float(loss) == 0.0
    made[0, :2] += 1.0
    loss = teacher.teach(torch.tensor(5.0), (made, lens), sb.Stage.VALID, lens)
    assert float(loss) == pytest.approx(2 / 14)


def test_a_teacher_is_a_copy_in_another_state(tmp_path):
    """Of what the recipe has before it starts from something else."""
    dense, smaller = network(seed=1), cut(network(seed=2))
    mine = {"model": network()}
    folder = saved(tmp_path / "dense", dense)
    teacher = Teacher(mine, folder)
    start_from(saved(tmp_path / "smaller", smaller), mine)
    x = torch.randn(2, 7, 8)
    torch.testing.assert_close(teacher.modules["model"](x), dense(x))
    torch.testing.assert_close(mine["model"].eval()(x), smaller(x))
    assert not any(
        p.requires_grad for p in teacher.modules["model"].parameters()
    )
    assert not Teacher(mine).modules


def test_divergence_is_torchs():
    torch.manual_seed(0)
    student, target = torch.randn(5, 7), torch.randn(5, 7)
    made = Teacher({}, distance="kl", temperature=2.0).distance(student, target)
    expected = 4 * torch.nn.functional.kl_div(
        (student / 2).log_softmax(-1),
        (target / 2).softmax(-1),
        reduction="batchmean",
    )
    torch.testing.assert_close(made.mean(), expected)
    # Logarithms of probabilities are as good as scores
    logs = student.log_softmax(-1), target.log_softmax(-1)
    again = Teacher({}, distance="kl", temperature=2.0).distance(*logs)
    torch.testing.assert_close(again, made)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"weight": 1.5}, "weight"),
        ({"temperature": 0.0}, "temperature"),
        ({"distance": "l2"}, "distance"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Teacher({}, **options)


def test_outputs_of_another_shape_are_named():
    trainer = brain(brain_class=Taught)
    teacher = teacher_of(trainer, distance="mse")
    batch = sb.dataio.batch.PaddedBatch([{"feats": torch.ones(10, 8)}])
    teacher.begin(trainer, batch)
    with pytest.raises(ValueError, match=r"student returns \[1, 9, 1\]"):
        teacher.teach(0.0, torch.ones(1, 9, 1), sb.Stage.VALID)
