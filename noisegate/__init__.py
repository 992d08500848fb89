"""Learn the layer sizes of SpeechBrain models while they train.

The names below are what users need. They are loaded when they are first
used, so that ``noisegate --help`` does not wait for torch.
"""

import importlib
import sys
import types
from pathlib import Path

__version__ = (Path(__file__).parent / "version.txt").read_text().strip()

_PUBLIC = {
    "Gates": "gates",
    "NoiseGate": "gate",
    "ComplexityLoss": "loss",
    "GatedBrain": "brain",
    "Teacher": "teacher",
    "start_from": "pretrained",
    "compact": "compact",
    "save_compact": "compact",
    "GatedFbank": "layers",
    "GatedLinear": "layers",
    "GatedConv1d": "layers",
    "GatedConv2d": "layers",
    "GatedGRU": "layers",
    "GatedTransformerEncoderLayer": "layers",
}

__all__ = ["__version__", *_PUBLIC]


class _Package(types.ModuleType):
    """Finds public names in the modules that define them."""

    def __getattr__(self, name):
        if name == "rules":
            return importlib.import_module("noisegate.rules")
        if name not in _PUBLIC:
            raise AttributeError(f"module 'noisegate' has no '{name}'")
        module = importlib.import_module(f"noisegate.{_PUBLIC[name]}")
        return getattr(module, name)

    def __setattr__(self, name, value):
        # An import would set the module where a function has its name
        if not (name in _PUBLIC and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self):
        return sorted({*super().__dir__(), *_PUBLIC, "rules"})


sys.modules[__name__].__class__ = _Package
