"""What of torch is used that is not public is still there, and still needed.

If one of these fails with a new torch, see noisegate/_private.py: the
attribute has moved, or a work-around can go.
"""

import copy

import pytest
import torch
from torch.nn.utils import parametrizations, parametrize

from noisegate._private import (
    forget_spectral_norm,
    leave_out_of_ddp,
    own_class,
    recomputing,
    unwrapped,
)


def test_spectral_norm_leaves_a_hook():
    """It asks for what was folded, until it is forgotten."""
    layer = torch.nn.utils.spectral_norm(torch.nn.Linear(4, 3))
    torch.nn.utils.remove_spectral_norm(layer)
    assert len(layer._load_state_dict_pre_hooks) == 1
    forget_spectral_norm(layer)
    assert not layer._load_state_dict_pre_hooks
    layer.load_state_dict(torch.nn.Linear(4, 3).state_dict())


def test_copies_of_parametrized_layers_share_a_class():
    """With a class of its own, one copy does not change the other."""
    layer = parametrizations.weight_norm(torch.nn.Linear(4, 3))
    other = copy.deepcopy(layer)
    assert type(layer) is type(other)
    own_class(other)
    parametrize.remove_parametrizations(other, "weight")
    x = torch.randn(2, 4)
    torch.testing.assert_close(layer(x), other(x))
    assert not parametrize.is_parametrized(other)


@pytest.fixture
def group():
    """Processes: this one alone."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group(
        "gloo", store=store, rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


class Gated(torch.nn.Module):
    """Has a parameter that is used past its forward."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)
        self.layer.width = torch.nn.Parameter(torch.ones(1))

    def forward(self, x):
        """Does not read it."""
        return self.layer(x)


@pytest.mark.parametrize("left_out", [False, True])
def test_what_is_left_out_of_ddp_may_be_used_elsewhere(group, left_out):
    """It is not taken for unused, which cannot have a gradient."""
    net = Gated()
    if left_out:
        leave_out_of_ddp(net, [net.layer.width, torch.nn.Parameter()])
    ddp = torch.nn.parallel.DistributedDataParallel(
        net, find_unused_parameters=True
    )
    loss = ddp(torch.randn(4, 3)).sum() + net.layer.width.sum()
    if not left_out:
        with pytest.raises(RuntimeError, match="ready only once"):
            loss.backward()
        return
    loss.backward()
    assert net.layer.width.grad == 1
    assert net.layer.weight.grad is not None


def test_compiled_modules_have_the_original():
    """Whatever else is around it."""
    layer = torch.nn.Linear(4, 3)
    assert unwrapped(torch.compile(layer)) is layer
    assert unwrapped(layer) is layer


def test_recurrent_layers_follow_their_parameters():
    """A parameter that is set is the one that the layer computes with."""
    torch.manual_seed(0)
    layer, x = torch.nn.GRU(4, 3), torch.randn(5, 2, 4)
    before = layer(x)[0]
    layer.weight_hh_l0 = torch.nn.Parameter(2 * layer.weight_hh_l0.detach())
    assert not torch.equal(layer(x)[0], before)


def test_a_backward_pass_is_seen_in_its_thread():
    """Where checkpointed layers run again."""
    seen = [recomputing()]
    x = torch.ones(2, requires_grad=True)
    x.register_hook(lambda gradient: seen.append(recomputing()))
    x.sum().backward()
    seen.append(recomputing())
    assert seen == [False, True, False]
