"""What a model of the zoo is entered with, and built by.

Authors
 * The noisegate developers, 2026
"""

import torch

ZOO = {}


def entry(name):
    """Enters the function that builds a model."""

    def enter(function):
        ZOO[name] = function
        return function

    return enter


def build(name):
    """Builds a model with random parameters and statistics.

    Equal or zero initial values would hide wrong cuts.

    Arguments
    ---------
    name : str
        Key of :data:`ZOO`.

    Returns
    -------
    model : torch.nn.Module
        In evaluation mode.
    inputs : list
        Arguments of its forward.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, *inputs = ZOO[name]()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))
                elif parameter.numel() > 1 and parameter.std() < 1e-4:
                    parameter.normal_(std=0.1)
            for module in model.modules():
                if getattr(module, "running_var", None) is not None:
                    module.running_mean.normal_(std=0.3)
                    module.running_var.uniform_(0.5, 1.5)
    return model.eval(), inputs


class Joined(torch.nn.Module):
    """Modules and the function of them that a recipe computes.

    Arguments
    ---------
    compute : callable
        Called with this object and the arguments of the forward.
    **modules : dict
        The modules by name.
    """

    def __init__(self, compute, **modules):
        super().__init__()
        self.compute = compute
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, *inputs):
        """Returns what the function returns."""
        return self.compute(self, *inputs)
