"""Training with gates: schedule, optimizers, resuming, many processes."""

import functools
import math
import subprocess
import sys

import pytest
import speechbrain as sb
import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.nnet.containers import Sequential
from speechbrain.utils.train_logger import FileTrainLogger

from noisegate.baselines.gates import FixedWidths, HardGate
from noisegate.brain import GatedBrain
from noisegate.evaluation.recorded import tensorboard_logger
from tests.integration.events import scalars
from tests.unittests import models
from tests.unittests.brains import (
    BUDGET,
    EPOCHS,
    FREEZE,
    STEPS,
    Killed,
    TinyBrain,
    assert_same,
    brain,
    dataset,
    evaluate,
    fit,
    forget_keys,  # noqa: F401
    history,
    short_runs,  # noqa: F401
    state,
)

# ---- schedule ---------------------------------------------------------------


@pytest.mark.parametrize("gate", models.GATES)
def test_widths_freeze_and_meet_the_budget(gate, tmp_path):
    """Learned before freeze_epoch, integer and final from there on."""
    trainer = fit(brain(tmp_path, gate=gate))
    assert trainer.widths_are_final
    lines = history(tmp_path)
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]
    widths = [
        {k: v for k, v in line.items() if k.startswith("width ")}
        for line in lines
    ]
    assert any(w % 1 for w in widths[1].values())
    assert widths[2] == widths[3]
    assert not any(w % 1 for w in widths[3].values())
    final = trainer.gates.integer_widths()
    assert widths[3] == {f"width {k}": v for k, v in final.items()}
    ratio = trainer.gates.cost.ratio(final)
    assert 0.8 * BUDGET <= ratio <= BUDGET
    assert lines[3]["macs_ratio"] == pytest.approx(ratio, rel=1e-6)
    assert lines[3]["macs_per_second"] == (
        trainer.gates.cost.macs_per_second(final)
    )
    assert lines[3]["complexity_weight"] == 0


def test_widths_are_learned_before(tmp_path):
    """They leave the full width well before they are frozen."""
    trainer = brain(tmp_path, loss={"budget": BUDGET, "freeze_epoch": EPOCHS})
    fit(trainer)
    first = [v for k, v in history(tmp_path)[1].items() if "width " in k]
    sizes = [gate.size for gate in trainer.gates.values()]
    assert sum(first) < sum(sizes)
    assert len(first) == len(sizes)


@pytest.mark.parametrize("reorder", [True, False])
def test_channels_are_ranked_while_widths_are_learned(reorder):
    """By the use that is made of them, if asked for."""
    trainer = brain()
    trainer.gates.reorders = reorder
    ranks = []

    def on_fit_batch_end(*args):
        GatedBrain.on_fit_batch_end(trainer, *args)
        gate = trainer.gates["conv"]
        ranks.append(gate.rank.tolist())

    trainer.on_fit_batch_end = on_fit_batch_end
    fit(trainer)
    changes = [n for n in range(1, len(ranks)) if ranks[n] != ranks[n - 1]]
    assert bool(changes) == reorder
    assert max(changes, default=0) < STEPS * (FREEZE - 1)


def test_the_weight_decides_without_a_budget(tmp_path):
    """A heavier fixed weight gives a smaller model."""
    macs = []
    for weight in (0.0, 3.0):
        trainer = brain(
            loss={"weight": weight, "freeze_epoch": FREEZE},
            gate_opt_class=functools.partial(torch.optim.Adam, lr=0.03),
        )
        fit(trainer)
        widths = trainer.gates.integer_widths()
        macs.append(trainer.gates.cost.macs(widths))
    assert macs[1] < 0.9 * macs[0]


def test_a_model_without_gates_trains(tmp_path):
    """The dense twin uses the same Brain."""
    trainer = fit(brain(tmp_path, layers=[], loss={"budget": 1.0}))
    losses = {"train loss", "valid loss"}
    known = {"epoch", "macs_per_second", *losses}
    assert history(tmp_path)[-1].keys() == known
    trainer.evaluate(dataset(8), min_key="loss", progressbar=False)


def test_tensorboard_shows_epochs_as_steps(tmp_path):
    """Also in a new process and after a gap; nan is kept."""
    pytest.importorskip("tensorboard")
    trainer = brain()
    trainer.hparams.train_logger = FileTrainLogger(tmp_path / "log.txt")
    trainer.log_stats(6, 0.1, {"loss": 1.5}, {"EER": 2.0})
    for epochs in ([7, 8], [9]):
        trainer.hparams.tensorboard_train_logger = tensorboard_logger(tmp_path)
        for epoch in epochs:
            stats = {"EER": float(epoch), "EER low": math.nan}
            trainer.log_stats(epoch, 0.1, {"loss": 1.5}, stats)
    figures = scalars(tmp_path)
    assert all(list(steps) == [7, 8, 9] for steps in figures.values())
    assert figures["EER/valid"] == {7: 7.0, 8: 8.0, 9: 9.0}
    assert figures["loss/train"][9] == 1.5
    assert math.isnan(figures["EER low/valid"][9])
    names = {tag.partition("/")[2] for tag in figures if "width" in tag}
    assert names == set(trainer.gates)
    log = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.split(",")[0] for line in log] == [
        f"epoch: {epoch}" for epoch in (6, 7, 8, 9)
    ]


def test_a_forgotten_complexity_term_is_an_error():
    """Nothing would bound the widths."""

    class Forgetful(TinyBrain):
        def compute_objectives(self, predictions, batch, stage):
            return predictions.square().mean()

    with pytest.raises(RuntimeError, match="complexity_term"):
        fit(brain(brain_class=Forgetful))


def test_a_forgotten_super_call_is_an_error():
    """Nothing would freeze the widths."""

    class Forgetful(TinyBrain):
        def on_stage_start(self, stage, epoch=None):
            pass

    with pytest.raises(RuntimeError, match="on_stage_start"):
        fit(brain(brain_class=Forgetful))


def test_optimizers_frozen_without_the_gates_are_an_error():
    """As recipes that warm up override it: widths would never move."""

    class WarmingUp(TinyBrain):
        def freeze_optimizers(self, optimizers):
            return {"opt_class": optimizers["opt_class"]}

    with pytest.raises(RuntimeError, match="freeze_optimizers must keep 'gat"):
        fit(brain(brain_class=WarmingUp))


def test_freezing_after_the_end_is_an_error():
    """Found before training."""
    loss = {"budget": BUDGET, "freeze_epoch": 5}
    with pytest.raises(ValueError, match="number_of_epochs = 4.*got 5"):
        fit(brain(loss=loss))


def test_missing_hparams_are_an_error():
    """Says which key is missing."""
    with pytest.raises(ValueError, match="'gates'"):
        GatedBrain({"model": torch.nn.Linear(2, 2)}, None, {})


def test_debug_mode():
    """A few batches and epochs, still with final widths."""
    loss = {"budget": BUDGET, "freeze_epoch": 30}
    trainer = fit(brain(loss=loss, epochs=40, debug=True))
    assert trainer.widths_are_final
    assert trainer.optimizer_step == 4


def test_bfloat16(tmp_path):
    """Mixed precision trains, freezes and stays finite."""
    trainer = fit(brain(tmp_path, precision="bf16"))
    assert trainer.widths_are_final
    assert all(torch.isfinite(v).all() for v in state(trainer).values())


def test_gradient_accumulation():
    """Widths and dual variable move with the optimizer only."""
    trainer = brain(grad_accumulation_factor=2)
    moved = []
    step = trainer.complexity_loss.step
    trainer.complexity_loss.step = lambda p: moved.append(p) or step(p)
    fit(trainer)
    assert len(moved) == (FREEZE - 1) * STEPS // 2
    assert trainer.optimizer_step == EPOCHS * STEPS // 2
    assert moved == sorted(moved) and 0 < moved[0] and moved[-1] <= 1


@pytest.mark.parametrize("factor", [0, 1.5, STEPS + 1])
def test_accumulation_that_makes_no_step_is_an_error(factor):
    """SpeechBrain would train nothing, and say so nowhere."""
    with pytest.raises(ValueError, match=rf"accumulation.*\[1, {STEPS}\]"):
        fit(brain(grad_accumulation_factor=factor))


def test_step_limit_of_the_command_line():
    """It arrives as a text."""
    _, options, _ = sb.parse_arguments(["x.yaml", "--optimizer_step_limit=3"])
    limit = options["optimizer_step_limit"]
    loss = {"budget": BUDGET, "freeze_epoch": 2}
    with pytest.raises(ValueError, match="number_of_epochs = 1.*, got 2"):
        fit(brain(optimizer_step_limit=limit, loss=loss))
    trainer = fit(brain(optimizer_step_limit=STEPS + 1, loss=loss))
    assert trainer.optimizer_step == STEPS + 1 and trainer.widths_are_final
    with pytest.raises(ValueError, match="number_of_epochs = 1.*, got 2"):
        fit(brain(optimizer_step_limit=STEPS, loss=loss))


@pytest.mark.parametrize("norm", [0, -1.0])
def test_no_limit_of_gradients(norm):
    """As SpeechBrain's help says; there gradients would be turned around."""
    trained = [state(fit(brain(max_grad_norm=n))) for n in (norm, 1e9)]
    for key, value in trained[0].items():
        assert torch.equal(value, trained[1][key])


# ---- optimizers -------------------------------------------------------------


@pytest.mark.parametrize("spare", [False, True])
def test_gates_have_an_optimizer_of_their_own(spare):
    """Own rate, and none of the weight decay of the others."""
    trainer = brain(
        opt_class=functools.partial(torch.optim.AdamW, weight_decay=0.5),
        gate_opt_class=functools.partial(torch.optim.SGD, lr=0.0),
        remove_vector_weight_decay=spare,
        loss={"weight": 1.0, "freeze_epoch": FREEZE},
    )
    trainer.gates.reorders = False
    trainer.on_fit_start()
    gates = {id(p) for p in trainer.gates.parameters()}
    of_weights = [
        id(p)
        for group in trainer.optimizer.param_groups
        for p in group["params"]
    ]
    every = {id(p) for p in trainer.modules.parameters()}
    assert len(of_weights) == len(set(of_weights))
    assert set(of_weights) == every - gates
    groups = trainer.gate_optimizer.param_groups
    assert [group["lr"] for group in groups] == [0.0]
    assert {id(p) for p in groups[0]["params"]} == gates
    assert len(trainer.optimizer.param_groups) == (2 if spare else 1)
    # With a rate of zero nothing else moves the widths
    before = [p.clone() for p in trainer.gates.parameters()]
    fit(trainer)
    expected = [1.0] * len(before)
    assert [float(p.detach()) for p in before] == expected


def test_the_default_rate_of_gates():
    """Adam with 0.01, whatever the weights have."""
    trainer = brain(opt_class=functools.partial(torch.optim.SGD, lr=7.0))
    trainer.on_fit_start()
    assert type(trainer.gate_optimizer) is torch.optim.Adam
    assert trainer.gate_optimizer.param_groups[0]["lr"] == 0.01


def test_gradients_of_gates_are_clipped():
    """No step is longer than max_grad_norm times the rate."""
    trainer = brain(
        gate_opt_class=functools.partial(torch.optim.SGD, lr=1.0),
        max_grad_norm=0.01,
        loss={"weight": 100.0, "freeze_epoch": FREEZE},
    )
    steps = []
    optimizers_step = trainer.optimizers_step

    def watched():
        before = torch.cat(trainer.gates.parameters()).detach().clone()
        optimizers_step()
        after = torch.cat(trainer.gates.parameters()).detach()
        if not trainer.gates.frozen:
            steps.append(float((after - before).norm()))

    trainer.optimizers_step = watched
    fit(trainer)
    assert max(steps) == pytest.approx(0.01, rel=1e-3)


def test_final_widths_get_no_more_steps():
    """Their optimizer rests from freeze_epoch on."""
    trainer = brain()
    counts = []

    def on_stage_end(stage, loss, epoch=None):
        if stage == sb.Stage.TRAIN:
            states = trainer.gate_optimizer.state.values()
            counts.append({float(s["step"]) for s in states})

    trainer.on_stage_end = on_stage_end
    fit(trainer)
    assert counts == [{STEPS}, {2 * STEPS}, {2 * STEPS}, {2 * STEPS}]


# ---- resuming ---------------------------------------------------------------


# ---- evaluation -------------------------------------------------------------


def test_evaluation_runs_on_the_compacted_model(tmp_path):
    """Plain and small, in the same and in a new process, same loss."""
    trainer = fit(brain(tmp_path))
    gated = trainer.modules.model
    loss = evaluate(trainer)
    best = min(
        checkpoint.meta["loss"]
        for checkpoint in trainer.checkpointer.list_checkpoints()
        if "loss" in checkpoint.meta
    )
    assert loss == pytest.approx(best, abs=1e-6)
    later = brain(tmp_path, seed=5)
    assert evaluate(later) == pytest.approx(loss, abs=1e-6)
    for model in (trainer.modules.model, later.modules.model):
        assert model is not gated
        assert not any(
            type(m).__module__.startswith("noisegate") for m in model.modules()
        )
        assert not model.training
        params = sum(p.numel() for p in model.parameters())
        widths = trainer.gates.integer_widths()
        assert params == trainer.gates.cost.params(widths)
    # A second evaluation, as of another test set, cuts the same model
    assert evaluate(trainer) == loss


def fixed(folder, **options):
    """A Brain whose widths are fixed from the beginning."""
    options = {"gate": HardGate, "loss_class": FixedWidths, **options}
    return brain(folder, dropout=0.0, **options)


def test_only_testing(tmp_path):
    """The run option test_only, in another process, also without data."""
    trainer = fit(brain(tmp_path))
    options = {"min_key": "loss", "test_loader_kwargs": {"batch_size": 4}}
    expected = trainer.evaluate(dataset(8), **options)
    other = brain(tmp_path, seed=5, test_only=True)
    other.fit(other.counter, None)
    assert other.evaluate(dataset(8), **options) == expected
    assert other.gates.integer_widths() == trainer.gates.integer_widths()


def test_fixed_widths_train_the_cut_model(tmp_path):
    """As the masked one is trained; evaluated and saved as it is."""
    masked = fixed(tmp_path / "masked")
    masked.complexity_loss.fixed = False
    loss = evaluate(fit(masked))
    cut = fit(fixed(tmp_path / "cut"))
    trained = cut.modules.model
    params = sum(p.numel() for p in trained.parameters())
    assert params == cut.gates.cost.params(cut.gates.integer_widths())
    assert evaluate(cut) == pytest.approx(loss, abs=1e-4)
    assert cut.modules.model is trained
    states = trained.state_dict(), masked.modules.model.state_dict()
    torch.testing.assert_close(*states, rtol=1e-3, atol=1e-4)
    figures = masked.figures(), cut.figures()
    assert all(figure.pop("train_seconds") > 0 for figure in figures)
    assert figures[1] == {**figures[0], "steps": EPOCHS * STEPS}
    # Where a recipe may load an average of checkpoints
    cut.on_evaluate_start(min_key="loss")
    assert cut.modules.model is trained
    later = fixed(tmp_path / "cut", seed=5)
    assert evaluate(later) == evaluate(cut)


def test_a_run_with_fixed_widths_goes_on(tmp_path):
    """Killed within an epoch, to the bit."""
    whole = fit(fixed(tmp_path / "whole", ckpt_interval_steps=1))
    killed = fixed(tmp_path / "killed", ckpt_interval_steps=1)
    killed.kill = "batch", 2, 2
    with pytest.raises(Killed):
        fit(killed)
    again = fit(fixed(tmp_path / "killed", seed=5, ckpt_interval_steps=1))
    states = (trainer.modules.model.state_dict() for trainer in (whole, again))
    assert_same(*states)


class EarlyBest(TinyBrain):
    """The first epoch with final widths is taken for the best one."""

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Gives the number of the epoch for the loss."""
        loss = epoch if stage == sb.Stage.VALID else stage_loss
        super().on_stage_end(stage, loss, epoch)


def test_commit_is_that_of_the_start(tmp_path, monkeypatch):
    """The code that runs was read then; the repository may move on."""

    def git(*arguments):
        command = ["git", "-c", "user.name=x", "-c", "user.email=x@y"]
        subprocess.run(
            [*command, "-C", str(tmp_path), *arguments],
            check=True,
            capture_output=True,
        )

    git("init")
    git("commit", "--allow-empty", "-m", "first")
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "train.py")])
    trainer = brain(tmp_path / "run")
    before = trainer.figures({})["versions"]["commit"]
    git("commit", "--allow-empty", "-m", "second")
    later = brain(tmp_path / "later")
    assert trainer.figures({})["versions"]["commit"] == before
    assert later.figures({})["versions"]["commit"] not in (before, "unknown")


def test_figures_of_the_run(tmp_path):
    """Steps are those of the whole run; MACs by layer are all MACs."""
    trainer = fit(brain(tmp_path, brain_class=EarlyBest))
    evaluate(trainer)
    assert trainer.optimizer_step == FREEZE * STEPS
    figures = trainer.figures()
    assert figures["steps"] == EPOCHS * STEPS
    layers = figures["macs_by_layer"].values()
    full, final = (sum(macs) for macs in zip(*layers))
    assert full == pytest.approx(figures["macs_per_second_full"], abs=5)
    assert final == pytest.approx(figures["macs_per_second"], abs=5)
    assert final < full
    # A finished run that is started again counts the same
    later = fit(brain(tmp_path, brain_class=EarlyBest))
    evaluate(later)
    for key in ("steps", "train_seconds"):
        assert later.figures()[key] == figures[key]


def test_a_compiled_model_is_compacted(tmp_path):
    """The plain model takes the place of torch.compile's wrapper."""
    trainer = fit(brain(tmp_path))
    plain = evaluate(trainer)
    later = brain(tmp_path)
    later.modules["model"] = torch.compile(later.modules.model, backend="eager")
    assert evaluate(later) == plain
    assert type(later.modules.model) is Sequential


def test_the_gated_model_must_be_in_modules(tmp_path):
    """Otherwise the evaluation would run on something else."""
    fit(brain(tmp_path))
    later = brain(tmp_path)
    later.modules["model"] = torch.nn.Identity()
    with pytest.raises(RuntimeError, match="no entry of modules"):
        evaluate(later)


HPARAMS = """
number_of_epochs: 3
conv: 12
model: !new:speechbrain.nnet.containers.Sequential
    input_shape: [null, null, 8]
    conv: !name:speechbrain.nnet.CNN.Conv1d
        out_channels: !ref <conv>
        kernel_size: 3
    out: !name:speechbrain.nnet.linear.Linear
        n_neurons: 1
head: !new:speechbrain.nnet.activations.Softmax
    apply_log: True
modules:
    net: !ref <model>
    head: !ref <head>
gates: !new:noisegate.Gates
    model: !ref <model>
    input_shape: [1, 10, 8]
complexity_loss: !new:noisegate.ComplexityLoss
    gates: !ref <gates>
    budget: 0.5
    freeze_epoch: 2
"""


class NetBrain(TinyBrain):
    """Calls its model by another name than the YAML."""

    def compute_forward(self, batch, stage):
        """Returns the score of each frame."""
        return self.modules.net(batch.feats[0])


def net_brain(tmp_path, overrides):
    """A Brain from a YAML file, trained too shortly for its budget."""
    path = tmp_path / "train.yaml"
    path.write_text(HPARAMS)
    hparams = load_hyperpyyaml(HPARAMS, overrides)
    hparams["output_folder"] = str(tmp_path)
    tiny = NetBrain(
        modules=hparams["modules"],
        opt_class=functools.partial(torch.optim.Adam, lr=0.01),
        hparams=hparams,
        run_opts={"device": "cpu", "noprogressbar": True},
    )
    data = dataset()
    tiny.fit(range(1, 4), data, data)
    return tiny, data, str(path)


def test_all_modules_are_saved(tmp_path):
    """By their names in ``modules``, with the overrides of the run."""
    tiny, data, path = net_brain(tmp_path, {"conv": 16})
    with pytest.raises(RuntimeError, match="evaluate"):
        tiny.save_compact(path)
    tiny.evaluate(data)
    tiny.save_compact(path, {"conv": 16}, threshold=0.5)
    text = (tmp_path / "compact" / "hyperparams.yaml").read_text()
    assert "noisegate." not in text and "apply_log: true" in text
    saved = load_hyperpyyaml(text)
    assert saved["widths"] == {"conv": 8} and saved["threshold"] == 0.5
    shape = saved["input_shape"]["net"]
    assert shape == tiny.gates.input_shape and saved["segment_s"] == 1
    net = saved["modules"]["net"].eval()
    net.load_state_dict(torch.load(tmp_path / "compact" / "net.ckpt"))
    x = torch.randn(2, 10, 8)
    assert torch.equal(net(x), tiny.modules.net(x))


def test_widths_that_come_down_late_are_a_warning(
    tmp_path, caplog, monkeypatch
):
    """It says how far they had come, were they not narrowed before."""
    monkeypatch.setattr("noisegate.loss._LAG", 9.0)
    net_brain(tmp_path, {})
    assert "not come down to the budget of 0.5 but to 0.8" in caplog.text


def test_evaluation_needs_final_widths(tmp_path):
    """A checkpoint from before freezing does not meet the budget."""
    trainer = brain(tmp_path)
    trainer.kill = ("start of", "TRAIN", 2)
    with pytest.raises(Killed):
        fit(trainer)
    with pytest.raises(RuntimeError, match="widths are not final"):
        evaluate(trainer)
    with pytest.raises(RuntimeError, match="widths are not final"):
        evaluate(brain(tmp_path))


def test_the_best_checkpoint_has_final_widths(tmp_path):
    """Those from before have no criterion and are never chosen."""
    trainer = fit(brain(tmp_path))
    found = trainer.checkpointer.find_checkpoint(min_key="loss")
    assert found.meta["loss"] > 0
    fresh = brain(tmp_path, seed=3)
    fresh.checkpointer.load_checkpoint(found)
    assert fresh.gates.frozen


# ---- many processes ---------------------------------------------------------
