"""The trial cut: what is not exact is locked with its reason, the rest not."""

import pytest
import torch

from noisegate.groups import find_groups
from noisegate.probe import FORWARD_ERRORS
from noisegate.trial import lock_inexact, relative_difference

nn = torch.nn


class Chain(nn.Module):
    """Two layers with a function between them, and two without."""

    def __init__(self, between):
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 7)
        self.last = nn.Linear(7, 3)
        self.between = between

    def forward(self, x):
        x = self.second(self.between(self.first(x)))
        return self.last(x.relu())


def counted(x):
    """Depends on the number of channels."""
    return x + x.shape[-1]


def reshaped(x):
    """Works for eight channels only."""
    return x.reshape(*x.shape[:-1], 2, 4).flatten(-2).relu()


def asserting(x):
    """Asks for eight channels."""
    assert x.shape[-1] == 8, "eight are needed"
    return x.relu()


def locked(between):
    """Reasons by group after a trial."""
    torch.manual_seed(0)
    model, example = Chain(between), [torch.randn(2, 9, 6)]
    groups = find_groups(model, example)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    lock_inexact(model, groups, example)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
    return {group.name: group.locked_reason for group in groups}


@pytest.mark.parametrize(
    "between, reason",
    [
        (counted, "not exact when cut: the output changes by"),
        (reshaped, "not exact when cut: RuntimeError"),
        (asserting, "not exact when cut: AssertionError: eight are needed"),
    ],
)
def test_what_counts_channels_is_locked(between, reason):
    """With what was seen; the other group is free."""
    reasons = locked(between)
    assert reasons["first"].startswith(reason)
    assert reasons["second"] is None


@pytest.mark.parametrize("between", [torch.relu, torch.sigmoid, torch.tanh])
def test_what_treats_channels_alike_is_free(between):
    """Also if closed channels are not zero behind it."""
    assert set(locked(between).values()) >= {None}
    assert locked(between)["first"] is None


def test_other_errors_are_raised():
    """What is no failure of a forward is not taken for one."""

    class Stop(Exception):
        """Of the user's own."""

    def stopping(x):
        if x.shape[-1] != 8:
            raise Stop
        return x.relu()

    assert not issubclass(Stop, FORWARD_ERRORS)
    with pytest.raises(Stop):
        locked(stopping)


def test_differences():
    """Relative to the greatest value; NaN never equals."""
    x = torch.tensor([1.0, -4.0])
    assert relative_difference([x, x], [x, x + 1]) == 0.25
    assert relative_difference([x / 0], [x / 0]) == 0
    assert relative_difference([x], [x * float("nan")]) != 0
    for others in ([x], [x, x[:1]]):
        with pytest.raises(ValueError):
            relative_difference([x, x], others)
