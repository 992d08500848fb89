"""What of torch is used though it is not public, because nothing public does.

tests/unittests/test_private.py fails when it changes.

Authors
 * The noisegate developers, 2026
"""

import torch
from torch.nn.utils.spectral_norm import SpectralNormLoadStateDictPreHook


def forget_spectral_norm(module):
    """Takes away what ``remove_spectral_norm`` leaves.

    torch 2.11 leaves a hook that asks for what was folded when a state is
    loaded; hooks of others cannot be listed. Other layers have no such hook.
    """
    hooks = module._load_state_dict_pre_hooks
    for key, hook in list(hooks.items()):
        hook = getattr(hook, "hook", hook)
        if isinstance(hook, SpectralNormLoadStateDictPreHook):
            del hooks[key]


def own_class(module):
    """Gives a parametrized layer a class of its own.

    Deep copies of such a layer share its class, and
    ``remove_parametrizations`` deletes the tensor's property from the class:
    the other copy would lose it.
    """
    kind = type(module)
    module.__class__ = type(kind.__name__, kind.__bases__, dict(vars(kind)))


def recomputing():
    """Returns whether a backward pass is going on in this thread: a layer
    that runs then is run again, by ``torch.utils.checkpoint``."""
    if torch.compiler.is_compiling():  # which runs it again by itself
        return False
    return torch._C._current_graph_task_id() != -1


def unwrapped(module):
    """Returns the module inside the wrappers of DDP and ``torch.compile``.

    What is compiled has the original in an attribute that is not public.
    """
    while True:
        if hasattr(module, "_orig_mod"):
            module = module._orig_mod
        elif isinstance(module, torch.nn.parallel.DistributedDataParallel):
            module = module.module
        else:
            return module


def leave_out_of_ddp(module, parameters):
    """Lets DDP neither average nor wait for the gradients of parameters: of
    those that belong to the module, which will be wrapped."""
    chosen = {id(parameter) for parameter in parameters}
    names = [n for n, p in module.named_parameters() if id(p) in chosen]
    ddp = torch.nn.parallel.DistributedDataParallel
    ddp._set_params_and_buffers_to_ignore_for_model(module, names)


def take_over(module, other, name):
    """Gives a module and those inside the state of another's.

    All attributes change but the modules inside, which stay the same objects:
    others may refer to them.

    Arguments
    ---------
    module : torch.nn.Module
        What changes.
    other : torch.nn.Module
        Of the same structure; sizes may differ. Is not used any more.
    name : str
        Name of the module in messages.

    Raises
    ------
    ValueError
        If the structure differs.
    """
    twins = dict(other.named_modules())
    for path, part in module.named_modules():
        twin = twins.pop(path, None)
        if type(twin) is not type(part):
            raise ValueError(
                f"'{name}.{path}' is a {type(part).__name__}, but a "
                f"{type(twin).__name__} where it should start from"
            )
        vars(part).update({**vars(twin), "_modules": part._modules})
    if twins:
        raise ValueError(f"'{name}' has no {list(twins)} to start from it")
