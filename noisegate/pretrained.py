"""Trained modules: where a run starts from.

Authors
 * The noisegate developers, 2026
"""

import sys
from pathlib import Path
from pickle import UnpicklingError

import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.utils.checkpoints import (
    DEFAULT_LOAD_HOOKS,
    Checkpointer,
    get_default_hook,
)
from torch.nn import Module

from noisegate._private import take_over

_YAML = "hyperparams.yaml"


def load_yaml(folder):
    """Returns what the ``hyperparams.yaml`` of a folder makes (dict), with
    trained weights. Networks of a recipe are found in files beside it. A
    ValueError names what are not the weights of the YAML's modules."""
    text = Path(folder, _YAML).read_text(encoding="utf-8")
    sys.path.insert(0, str(folder))
    try:
        with torch.random.fork_rng():
            loaded = load_hyperpyyaml(text)
    finally:
        sys.path.remove(str(folder))
    if (pretrainer := loaded.get("pretrainer")) is None:  # as that of a run
        raise ValueError(f"{folder}/{_YAML} has no pretrainer, so no weights")
    pretrainer.set_collect_in(str(folder))
    things = pretrainer.loadables.items()
    exact = {k: _load_exactly for k, x in things if isinstance(x, Module)}
    pretrainer.add_custom_hooks({**exact, **pretrainer.custom_hooks})
    pretrainer.load_collected()
    return loaded


def start_from(folder, modules):
    """Brings the modules of a recipe to the state of trained ones, in place.

    For the YAML, above ``gates``: ``!apply:noisegate.start_from [!ref
    <pretrained>, !ref <modules>]``. Modules of a folder with a
    ``hyperparams.yaml`` are taken as they are there: cut ones have their sizes.

    Arguments
    ---------
    folder : str
        A compact folder, a published model, a checkpoint, or the folder of a
        run's checkpoints, of which the last is taken; None for no start.
    modules : dict of str to torch.nn.Module
        By the names that they have in the folder.

    Raises
    ------
    ValueError
        If the folder has no weights or no module of a name with parameters, if
        it is of another class, or has parameters of other names or shapes.

    Example
    -------
    >>> start_from(None, {"model": torch.nn.Linear(3, 2)})
    """
    if folder is None:
        return
    folder = Path(folder)
    if (folder / _YAML).is_file():
        found = load_yaml(folder)
        found.update(found.get("modules", {}))
        found = {k: v for k, v in found.items() if isinstance(v, Module)}
        _check_names(folder, modules, found)
        for name in modules.keys() & found.keys():
            take_over(modules[name], found[name], name)
        return
    if not (folder / "CKPT.yaml").is_file():
        last = folder.is_dir() and Checkpointer(folder).find_checkpoint()
        if not last:
            raise ValueError(
                f"{folder} is no trained model: it has no {_YAML} and is "
                "no checkpoint, nor holds one"
            )
        folder = last.path
    found = {path.stem for path in folder.glob("*.ckpt")}
    _check_names(folder, modules, found)
    for name in modules.keys() & found:
        _load_exactly(modules[name], folder / f"{name}.ckpt")


def _check_names(folder, modules, found):
    missing = [
        name
        for name, module in modules.items()
        if name not in found and any(True for _ in module.parameters())
    ]
    if missing:
        raise ValueError(f"{folder} has no {missing}, it has {sorted(found)}")


def _load_exactly(module, path):
    """Which SpeechBrain's Pretrainer does not: parameters that a file lacks
    stay as they were drawn."""
    try:
        get_default_hook(module, DEFAULT_LOAD_HOOKS)(module, path, False)
    except (EOFError, OSError, RuntimeError, UnpicklingError) as e:
        what = f"'{Path(path).stem}' cannot start from {path}"
        raise ValueError(f"{what}: {e} ({type(e).__name__})") from e
