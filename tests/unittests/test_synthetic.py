"""Teachers, rivals and experiments of the synthetic recipe."""

import importlib.util
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

RECIPE = Path(__file__).parents[2] / "recipes" / "Synthetic"
sys.path.insert(0, str(RECIPE))

import experiments  # noqa: E402
from students import student  # noqa: E402
from teachers import Teacher, synthesize  # noqa: E402


def load(name):
    """Loads a module of the recipe whose name others use too."""
    path = RECIPE / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"synthetic_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


report = load("report")


@pytest.mark.parametrize("linear", [True, False])
@pytest.mark.parametrize("widths", [[4], [4, 12], [12, 4]])
def test_clean_targets_have_unit_variance(widths, linear):
    teacher = Teacher(16, widths, linear=linear, seed=3)
    y = teacher(torch.randn(50000, 16))
    assert float(y.var()) == pytest.approx(1.0, rel=0.02)


@pytest.mark.parametrize("width", [1, 5, 16])
def test_linear_teacher_has_the_rank_of_its_width(width):
    teacher = Teacher(16, [width], linear=True, seed=0)
    y = teacher(torch.randn(200, 16).double().float())
    assert int(torch.linalg.matrix_rank(y, rtol=1e-4)) == width


@pytest.mark.parametrize("width", [0, 1, 3, 8, 15, 16])
def test_optimal_error_is_that_of_the_truncated_svd(width):
    """Eckart and Young, against numpy's SVD of the whole map."""
    teacher = Teacher(16, decay=4.0, seed=1)
    matrix = (teacher.weights[1] @ teacher.weights[0]).double().numpy()
    left, values, right = np.linalg.svd(matrix)
    best = (left[:, :width] * values[:width]) @ right[:width]
    error = np.square(matrix - best).sum() / np.square(matrix).sum()
    assert teacher.optimal_error(width) == pytest.approx(error, abs=1e-6)


def test_usefulness_decays_as_asked():
    teacher = Teacher(16, decay=4.0, seed=1)
    errors = [teacher.optimal_error(k) for k in range(17)]
    useful = -np.diff(errors)
    assert useful[4] / useful[0] == pytest.approx(math.exp(-1), rel=1e-4)


def test_no_tanh_unit_can_be_spared():
    """Best linear readout without one unit loses that unit's share."""
    width = 8
    teacher = Teacher(16, [width], seed=2)
    x = torch.randn(20000, 16)
    hidden = (x @ teacher.weights[0].T).tanh()
    y = teacher(x)
    rest = hidden[:, 1:]
    readout = torch.linalg.lstsq(rest, y).solution
    lost = float((y - rest @ readout).square().mean())
    assert lost > 0.9 / width


def test_optimum_of_other_teachers_is_refused():
    with pytest.raises(ValueError, match="linear"):
        Teacher(16, [4]).optimal_error(2)


@pytest.mark.parametrize("widths", [[], [0], [17]])
def test_impossible_widths_are_refused(widths):
    with pytest.raises(ValueError, match="teacher_widths"):
        Teacher(16, widths)


def test_data_depend_on_the_seed_alone():
    teacher = Teacher(16, [4])
    first, again, other = (
        synthesize(teacher, 2, 50, 0.1, seed=s) for s in (0, 0, 1)
    )
    assert torch.equal(first["1"]["y"], again["1"]["y"])
    assert not torch.equal(first["1"]["y"], other["1"]["y"])


def test_label_noise_has_the_variance_asked_for():
    data = synthesize(Teacher(16, [4]), 10, 1000, 0.25, seed=0).values()
    noise = torch.stack([d["y"] - d["clean"] for d in data])
    assert float(noise.var()) == pytest.approx(0.25, rel=0.02)


def test_student_of_the_right_widths_can_be_the_teacher():
    teacher = Teacher(16, [4, 6], seed=5)
    net = student(16, [4, 6])
    for name, weight in zip(("hidden1", "hidden2", "out"), teacher.weights):
        net[name].w.weight.data = weight
        net[name].w.bias.data.zero_()
    x = torch.randn(2, 10, 16)
    assert torch.allclose(net(x), teacher(x), atol=1e-5)


@pytest.mark.parametrize("experiment", experiments.EXPERIMENTS)
def test_cells_are_unique_and_their_files_exist(experiment):
    cells = list(experiments.EXPERIMENTS[experiment][0]())
    assert len({name for name, _, _ in cells}) == len(cells)
    for _, hparams, overrides in cells:
        assert (RECIPE / "hparams" / f"{hparams}.yaml").exists()
        assert "seed" in overrides


SMALL = {
    "n_features": 8,
    "hidden_sizes": [8, 8],
    "teacher_widths": [4, 2],
    "n_train": 8,
    "n_valid": 2,
    "n_test": 2,
    "kappa_min": 0.125,
    "number_of_epochs": 4,
    "freeze_epoch": 3,
    "seed": 1,
}


@pytest.fixture
def own_train(monkeypatch):
    """``import train`` finds the recipe's, whatever other tests imported."""
    monkeypatch.delitem(sys.modules, "train", raising=False)
    monkeypatch.syspath_prepend(str(RECIPE))
    yield
    sys.modules.pop("train", None)


@pytest.mark.usefixtures("own_train")
@pytest.mark.parametrize("method", ["gated", "stochastic", "pruned"])
def test_every_method_meets_the_budget(method):
    result = experiments.run(method, {**SMALL, "budget": 0.5})
    first, second = (result["widths"][f"hidden{i}"] for i in (1, 2))
    macs = 8 * first + first * second + second * 8
    assert result["macs_per_frame"] == macs <= 0.5 * (3 * 64)
    assert result["params"] == macs + first + second + 8
    assert math.isfinite(result["test"]["loss"])
    assert result["steps"] == 4 * 2


@pytest.mark.usefixtures("own_train")
def test_all_methods_take_equally_many_steps():
    steps = {
        experiments.run("dense", {**SMALL, "hidden_sizes": [4, 2]})["steps"],
        *(
            experiments.run(method, {**SMALL, "budget": 0.5})["steps"]
            for method in ("gated", "pruned")
        ),
    }
    assert len(steps) == 1


def test_rule_does_not_see_the_width_of_the_teacher(monkeypatch):
    """Bisection over widths of which 5 and more are good enough."""

    def run(hparams, overrides):
        width = 64
        if "budget" in overrides:
            width = round(overrides["budget"] * 64)
        loss = 0.1 if width >= 5 else 0.2
        return {
            "widths": {"hidden1": width},
            "valid": {"loss": loss, "standard_error": 1e-4},
            "test": {"loss": loss},
            "history": [],
        }

    monkeypatch.setattr(experiments, "run", run)
    found = experiments.find_width(("name", "gated", {"seed": 1}))
    assert found["widths"] == {"hidden1": 5}
    assert len(found["probes"]) == 6


def test_finished_runs_are_read_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(experiments, "RESULTS", tmp_path)
    assert experiments.read_results("layers") == {}
    lines = [{"name": "a", "x": 1}, {"name": "b", "x": 2}]
    (tmp_path / "layers.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines)
    )
    assert experiments.read_results("layers")["b"]["x"] == 2


def test_interval_is_students():
    mean, half = report.interval([1.0, 2.0, 3.0, 4.0, 5.0])
    # t(0.975, 4) = 2.776
    assert mean == 3.0
    assert half == pytest.approx(2.776 * math.sqrt(2.5 / 5), rel=1e-3)


def test_area_is_in_percent_of_the_optimums():
    """A curve 10 percent above the optimum everywhere has an area of 10."""
    optimum = report.optimal_curve()
    results = {
        f"K{width}_gated_1": {"test": {"loss": 1.1 * error}}
        for width, error in zip(experiments.DECAY_WIDTHS, optimum)
    }
    area = report.area_between(results, "gated", 1, optimum)
    assert area == pytest.approx(10.0)


@pytest.mark.parametrize("block", report.BLOCKS)
def test_tables_of_the_readme_are_generated(block):
    """Nothing in them was typed."""
    readme = (RECIPE / "README.md").read_text(encoding="utf-8")
    table = report.BLOCKS[block]()
    assert f"<!-- {block} -->\n\n{table}\n\n<!-- /{block} -->" in readme
