"""Teachers and students of the synthetic recipe."""

import math

import numpy as np
import pytest
import torch
from students import student
from teachers import Teacher, synthesize


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
