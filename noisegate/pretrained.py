"""Trained modules: where a run starts from.

Authors
 * The noisegate developers, 2026
"""

import functools
import sys
from pathlib import Path

import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.parameter_transfer import Pretrainer

from noisegate._private import take_over
from noisegate.compact import has_saver

_YAML = "hyperparams.yaml"


def load_yaml(folder):
    """Returns what the ``hyperparams.yaml`` of a folder makes (dict), without
    trained weights. Networks of a recipe are found in files beside it."""
    text = Path(folder, _YAML).read_text(encoding="utf-8")
    sys.path.insert(0, str(folder))
    try:
        with torch.random.fork_rng():
            return load_hyperpyyaml(text)
    finally:
        sys.path.remove(str(folder))


def load_modules(folder):
    """Returns the modules (dict) of a folder with a ``hyperparams.yaml`` and
    weights: a compact one, or one for SpeechBrain's ``from_hparams``."""
    loaded = load_yaml(folder)
    if "pretrainer" in loaded:
        loaded["pretrainer"].set_collect_in(str(folder))
        loaded["pretrainer"].load_collected()
    found = {**loaded, **loaded.get("modules", {})}
    return {k: v for k, v in found.items() if isinstance(v, torch.nn.Module)}


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
        If the folder has no module of a name that has parameters, if it is of
        another class, or if its parameters have other names or shapes.

    Example
    -------
    >>> start_from(None, {"model": torch.nn.Linear(3, 2)})
    """
    if folder is None:
        return
    folder = Path(folder)
    if (folder / _YAML).is_file():
        found = load_modules(folder)
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
    chosen = {k: v for k, v in modules.items() if k in found}
    exact = {
        name: functools.partial(_load_exactly, name=name)
        for name, module in chosen.items()
        if not has_saver(module)
    }
    Pretrainer(str(folder), chosen, custom_hooks=exact).load_collected()


def _check_names(folder, modules, found):
    missing = [
        name
        for name, module in modules.items()
        if name not in found and any(True for _ in module.parameters())
    ]
    if missing:
        raise ValueError(f"{folder} has no {missing}, it has {sorted(found)}")


def _load_exactly(module, path, name):
    state = torch.load(path, map_location="cpu")
    try:
        module.load_state_dict(state)
    except RuntimeError as e:
        raise ValueError(f"'{name}' cannot start from {path}: {e}") from e
