"""What of torch is used though it is not public, because nothing public does.

tests/unittests/test_private.py fails when it changes.

Authors
 * The noisegate developers, 2026
"""

from torch.nn.utils.spectral_norm import SpectralNormLoadStateDictPreHook


def forget_spectral_norm(module):
    """Takes away what ``remove_spectral_norm`` leaves.

    torch 2.11 leaves a hook that asks for what was folded when a state is
    loaded; hooks of others cannot be listed.

    Arguments
    ---------
    module : torch.nn.Module
        A layer whose spectral normalization was removed, or any other.
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

    Arguments
    ---------
    module : torch.nn.Module
        A parametrized layer.
    """
    kind = type(module)
    module.__class__ = type(kind.__name__, kind.__bases__, dict(vars(kind)))
