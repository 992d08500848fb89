"""Names from before the present layout, for programs that still use them.

Run as a program by them (`exec`), it changes the modules of its process only.
"""

import importlib
import sys
import types
from pathlib import Path

ROOT = Path(__file__).parents[1] if "__file__" in globals() else Path.cwd()
ROOT = globals().get("PROJ", ROOT)
sys.path[:0] = [str(ROOT), str(ROOT / "recipes" / "ASVspoof")]

# Old module: where its names are now
MOVED = {
    "attach": ["gates", "attach"],
    "verify": ["trial"],
    "cost": ["cost", "loss"],
    "gate": ["gate", "baselines.gates"],
    "rivals": ["baselines.gates", "baselines.pruning"],
    "metrics": [
        *("evaluation.metrics", "evaluation.scores"),
        *("evaluation.tdcf", "evaluation.trials"),
    ],
    "tradeoff": ["evaluation.bootstrap", "evaluation.curves"],
    "latency": ["evaluation.latency"],
    "sweep": ["evaluation.sweep"],
    "report": ["evaluation.report"],
    "files": ["evaluation.files"],
    "brain": ["brain"],
    "compact": ["compact"],
    "models": ["models"],
}
RENAMED = {
    "StochasticGate": "HardConcreteGate",
    "GaussianGate": "STGGate",
    "fix_inexact": "lock_inexact",
    "copy_of": "detached_copy",
}


class Moved(types.ModuleType):
    """A module that finds its names in others when they are asked for."""

    def __getattr__(self, name):
        old = self.__name__.rpartition(".")[2]
        for place in MOVED[old]:
            where = place if place == "models" else f"noisegate.{place}"
            module = importlib.import_module(where)
            for known in (name, RENAMED.get(name, name)):
                if known in vars(module):
                    return vars(module)[known]
        raise AttributeError(f"{self.__name__} had no {name}")


for old in MOVED:
    try:
        present = importlib.import_module(f"noisegate.{old}")
    except ModuleNotFoundError:
        sys.modules[f"noisegate.{old}"] = Moved(f"noisegate.{old}")
        continue
    for place in MOVED[old]:
        module = importlib.import_module(f"noisegate.{place}")
        for name, value in vars(module).items():
            if not name.startswith("__") and not hasattr(present, name):
                setattr(present, name, value)
    for name, now in RENAMED.items():
        if hasattr(present, now):
            setattr(present, name, getattr(present, now))

from noisegate.gates import Gates  # noqa: E402
from noisegate.groups import Group  # noqa: E402

Gates.gates = property(lambda gates: gates)
Gates.names = property(list)
Group.fixed = property(lambda group: group.locked_reason)
Group.kind = property(lambda group: group.role)
_init = Gates.__init__


def _with_old_names(self, model, *args, features=None, **kwargs):
    if features is not None:
        kwargs["front_end"] = features
    _init(self, model, *args, **kwargs)


Gates.__init__ = _with_old_names

from tests.unittests import models  # noqa: E402

compact = sys.modules["noisegate.compact"]
compact.final_sizes = lambda gates, small: models.corrections(
    gates.plain_copy(), small
)
compact.shrink = models.corrected
