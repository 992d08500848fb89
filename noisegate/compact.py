"""Cuts a gated model to its learned widths and saves it.

The result holds torch and SpeechBrain layers only. It is saved as a folder
with weights and a ``hyperparams.yaml``. Chains of layers are built in it by
their ordinary constructors with the final sizes, so that it loads where
noisegate is not installed. Classes whose constructors cannot express the
sizes are built as they were and cut by :func:`shrink` before their weights are
loaded.

Authors
 * The noisegate developers, 2026
"""

import copy
import inspect
import io
import json
import os
import re
import shutil
import sys
import tempfile
import types
from pathlib import Path

import ruamel.yaml
import speechbrain as sb
import torch
from hyperpyyaml import load_hyperpyyaml, resolve_references
from speechbrain.utils.checkpoints import (
    DEFAULT_SAVE_HOOKS,
    DEFAULT_TRANSFER_HOOKS,
    get_default_hook,
)

from noisegate.cut import cut, kept_features
from noisegate.layers import undeclare
from noisegate.probe import FORWARD_ERRORS
from noisegate.rules.base import rule_of
from noisegate.rules.features import FEATURES

_STATE = ("training", "device")  # attributes that are no settings
_SETTINGS = (bool, int, float, str)  # kinds that a YAML can set


def compact(gates):
    """Returns the plain model, cut to the widths of its gates.

    Arguments
    ---------
    gates : noisegate.gates.Gates
        The gates of the model, best frozen; otherwise the widths that the
        model uses in evaluation are taken.

    Returns
    -------
    model : torch.nn.Module
        A plain copy in evaluation mode, whose output equals that of the
        gated model in evaluation.
    front_end : speechbrain.lobes.features.Fbank
        A copy of the front-end that makes only the open mel bands, or None.

    Example
    -------
    >>> import noisegate
    >>> from speechbrain.nnet.containers import Sequential
    >>> from speechbrain.nnet.linear import Linear
    >>> net = Sequential(input_shape=[None, None, 8])
    >>> net.append(Linear, n_neurons=16, layer_name="hidden")
    >>> net.append(Linear, n_neurons=1, layer_name="out")
    >>> gates = noisegate.Gates(net, input_shape=[1, 100, 8])
    >>> gates.freeze({"hidden": 4})
    >>> plain, _ = compact(gates)
    >>> plain.hidden.w, plain.out.w.in_features
    (Linear(in_features=8, out_features=4, bias=True), 4)
    """
    model, front_end = gates.plain_copy(), copy.deepcopy(gates.front_end)
    keep = {name: open_.cpu() for name, open_ in gates.open_channels().items()}
    cut(undeclare(model), kept_features(gates.groups, keep))
    if front_end is not None:
        undeclare(front_end)
    if FEATURES in keep:
        front_end = rule_of(front_end).cut("out", keep[FEATURES])
    return model.eval(), front_end


def final_sizes(gates, model):
    """Returns the sizes of all layers that :func:`compact` has cut, as
    :func:`shrink` needs them: ``{path: {role: size}}``."""
    sizes, kept = {}, kept_features(gates.groups, gates.open_channels())
    for (path, role), index in kept.items():
        size = len(index)
        if role == "norm":
            layer = model.get_submodule(path)
            size = list(getattr(layer, "normalized_shape", [size]))
        sizes.setdefault(path, {})[role] = size
    return sizes


def shrink(model, sizes):
    """Cuts a freshly built model to given sizes, in place.

    Which channels stay does not matter, weights are loaded afterwards.

    Arguments
    ---------
    model : torch.nn.Module
        The model at full width.
    sizes : dict
        See :func:`final_sizes`.

    Returns
    -------
    torch.nn.Module
        The model.

    Example
    -------
    >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1))
    >>> shrink(net, {"0": {"out": 2}, "1": {"in": 2}})
    Sequential(
      (0): Linear(in_features=3, out_features=2, bias=True)
      (1): Linear(in_features=2, out_features=1, bias=True)
    )
    """
    kept = {}
    for path, roles in sizes.items():
        for role, size in roles.items():
            if role != "norm":
                kept[path, role] = torch.arange(size)
                continue
            layer = model.get_submodule(path)
            full = getattr(layer, "normalized_shape", size)
            stays = torch.zeros(list(full), dtype=torch.bool)
            stays[tuple(slice(n) for n in size)] = True
            kept[path, role] = stays.flatten().nonzero().flatten()
    return cut(model, kept)


def constructor(hparams_file, key, overrides=None):
    """Returns the expression that builds one module of a recipe.

    ``key`` is one of ``modules`` or of the file itself, the overrides are
    those of the command line; all references are resolved.
    """
    with open(hparams_file, encoding="utf-8") as fin:
        resolved = resolve_references(fin, overrides)
    yaml = ruamel.yaml.YAML()
    tree = yaml.load(resolved)
    tree = {**tree, **(tree.get("modules") or {})}
    if key not in tree:
        raise KeyError(f"{hparams_file} has no key '{key}'")
    out = io.StringIO()
    yaml.dump(tree[key], out)
    return out.getvalue().strip()


def _scalar(value):
    if isinstance(value, type):
        return f"!name:{value.__module__}.{value.__qualname__}"
    if isinstance(value, (bool, type(None))):
        return {True: "True", False: "False", None: "null"}[value]
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_scalar(item) for item in value) + "]"
    if isinstance(value, str):
        return json.dumps(value)
    return repr(value)


def _to_yaml(module, indent=0):
    """A ``!new:`` expression that builds the module."""
    pad = " " * (indent + 4)
    kind = _class(module)
    head = f"!new:{kind.__module__}.{kind.__qualname__}"
    if isinstance(module, torch.nn.Sequential) or (
        isinstance(module, sb.nnet.containers.Sequential)
        and all(name.isdigit() for name in module)
    ):
        lines = [f"- {_to_yaml(m, indent + 4)}" for m in module.children()]
    elif isinstance(module, sb.nnet.containers.Sequential):
        lines = [
            f"{name}: {_to_yaml(m, indent + 4)}" for name, m in module.items()
        ]
    else:
        lines = [
            f"{k}: {_scalar(v)}" for k, v in rule_of(module).arguments().items()
        ]
    if not lines:
        return head
    return "\n".join([head, *(pad + line for line in lines)])


def _class(module):
    """The class; that of the chain for blocks that are nothing but one."""
    chain = sb.nnet.containers.Sequential
    alike = isinstance(module, chain) and type(module).forward is chain.forward
    return chain if alike else type(module)


def _settings(module):
    """Classes, shapes and plain attributes: what two equal modules share."""
    found = {k: tuple(v.shape) for k, v in module.state_dict().items()}
    plain = (*_SETTINGS, type, types.FunctionType)
    for path, part in module.named_modules():
        found[path, "class"] = _class(part)
        for key, value in vars(part).items():
            own = key.startswith("_") or key in _STATE
            if isinstance(value, plain) and not own:
                found[path, key] = value
    return found


def _missing(name, lines, module):
    """Lines that set what was set behind the constructor of a module, after
    those that make it. Raises ValueError if it cannot be set."""
    try:
        with torch.random.fork_rng():
            built = _settings(load_hyperpyyaml("\n".join(lines))[name])
    except ImportError as error:
        raise ValueError(
            f"'{name}' cannot be built from its YAML: {error}"
        ) from error
    expected, more = _settings(module), []
    for key, value in expected.items():
        if built.get(key) == value:
            continue
        path, attribute = key if isinstance(key, tuple) else (key, "shape")
        owner = f"{name}.{path}" if path else name
        if not (isinstance(value, _SETTINGS) and key in built):
            raise ValueError(
                f"'{owner}': its {attribute} is {value}, but {built.get(key)} "
                "as its YAML builds it, which cannot be set there"
            )
        more += [
            f"__{name}_set_{len(more) // 2}: !apply:setattr",
            f"    [!ref <{owner}>, {attribute}, {_scalar(value)}]",
        ]
    return more


def _builds(expression, module):
    """Whether an expression makes a module of the same class and sizes."""
    try:
        return not _missing("module", [f"module: {expression}"], module)
    except FORWARD_ERRORS:  # what a constructor raises for such sizes
        return False


def _expression(name, module, originals):
    """Lines that make a module: the constructor, or the original cut."""
    if rule_of(module).in_front:
        written = [f"{name}: {_to_yaml(module)}"]
        return written + _missing(name, written, module)
    error = None
    original, sizes = originals.get(name, (None, None))
    written = [f"{name}: " + (original or "").replace("\n", "\n    ")]
    # Functions that made a module may be at hand in the recipe only
    called = (original or "").startswith("!apply:")
    if original is not None and not sizes and not called:  # as it was
        return written + _missing(name, written, module)
    try:
        expression = _to_yaml(module)
        if _builds(expression, module):
            return [f"{name}: {expression}"]
    except ValueError as e:
        error = e
    if original is None:
        raise ValueError(
            f"the constructors in '{name}' cannot express its sizes; give how "
            "it was built in originals (see noisegate.compact.constructor)"
        ) from error
    if sizes:
        written += [
            f"__{name}_sizes: !apply:noisegate.shrink",
            f"    - !ref <{name}>",
            f"    - {json.dumps(sizes)}",
        ]
    return written + _missing(name, written, module)


def _own_files(text):
    """Files beside the recipe that a YAML takes classes from."""
    found = []
    for name in sorted(set(re.findall(r"!new:(\w+)\.", text))):
        module = sys.modules.get(name)
        path = Path(getattr(module, "__file__", None) or "")
        alone = path.suffix == ".py" and not hasattr(module, "__path__")
        if alone and "site-packages" not in path.parts:
            found.append(path)
    return found


def _check_folder(folder, modules):
    """Raises ValueError if what a folder loads is not what was saved."""
    text = Path(folder, "hyperparams.yaml").read_text(encoding="utf-8")
    with torch.random.fork_rng():
        built = load_hyperpyyaml(text)["modules"]
    for name, module in modules.items():
        path = Path(folder, name + ".ckpt")
        if path.exists():  # as by Pretrainer, which waits for other processes
            load = get_default_hook(module, DEFAULT_TRANSFER_HOOKS)
            load(built[name], path)
        expected, made = _tensors(module), _tensors(built[name])
        for key, value in expected.items():
            if key not in made or not torch.equal(value, made[key]):
                raise ValueError(
                    f"'{name}.{key}' is {value}, but {made.get(key)} when it "
                    "is loaded from what was written"
                )


def _has_saver(module):
    """Whether a class tells SpeechBrain how it is saved."""
    usual = DEFAULT_SAVE_HOOKS[torch.nn.Module]
    return get_default_hook(module, DEFAULT_SAVE_HOOKS) is not usual


def _tensors(module):
    """What was learned: the state, and the statistics of normalizers."""
    found = dict(module.state_dict())
    for path, part in module.named_modules():
        for key, value in vars(part).items() if _has_saver(part) else ():
            if torch.is_tensor(value):
                found[f"{path}.{key}".lstrip(".")] = value
    return {key: value.cpu() for key, value in found.items()}


def save_compact(folder, modules, header="", originals=None, **values):
    """Saves plain modules as weights and a YAML that builds them.

    The folder has the form that SpeechBrain's ``Pretrained.from_hparams``
    reads. A file beside the recipe that defines a network is copied into it:
    with the folder on ``sys.path`` it loads by SpeechBrain alone. It is written
    under another name first and moved into place.

    Arguments
    ---------
    folder : str
        Must not exist yet.
    modules : dict of str to torch.nn.Module
        The modules by the names they get in the YAML, e.g. compute_features,
        mean_var_norm, model.
    header : str
        Comment for the top of the YAML.
    originals : dict of str to tuple
        What is written for modules whose own constructors cannot express the
        sizes: the expression that builds the uncut module (see
        :func:`constructor`) and the sizes to cut it to (see
        :func:`final_sizes`). Loading these modules needs noisegate, unless
        there are no sizes: they were not cut.
    **values : dict
        Further keys of the YAML (numbers, strings, flat dicts).

    Raises
    ------
    FileExistsError
        If the folder exists: results are never overwritten.
    ValueError
        If a module can be built by its constructor neither at its sizes nor
        as given in originals; if what is loaded from the folder differs.
    """
    folder = os.path.abspath(folder)
    if os.path.exists(folder):
        raise FileExistsError(f"{folder} exists, a result is not overwritten")
    lines = [f"# {line}" for line in header.splitlines()]
    for key, value in values.items():
        if isinstance(value, dict):
            lines.append(f"{key}:")
            lines += [f"    {k}: {_scalar(v)}" for k, v in value.items()]
        else:
            lines.append(f"{key}: {_scalar(value)}")
    for name, module in modules.items():
        lines += _expression(name, module, originals or {})
    lines.append("modules:")
    lines += [f"    {name}: !ref <{name}>" for name in modules]
    loaded = {
        name: module
        for name, module in modules.items()
        if module.state_dict() or _has_saver(module)
    }
    lines.append(
        "pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer"
    )
    lines.append("    loadables:")
    lines += [f"        {name}: !ref <{name}>" for name in loaded]
    os.makedirs(os.path.dirname(folder), exist_ok=True)
    part = tempfile.mkdtemp(dir=os.path.dirname(folder), prefix=".compact")
    try:
        for name, module in loaded.items():
            # Without what makes it wait for the other processes
            save = inspect.unwrap(get_default_hook(module, DEFAULT_SAVE_HOOKS))
            save(module, os.path.join(part, name + ".ckpt"))
        text = "\n".join(lines) + "\n"
        Path(part, "hyperparams.yaml").write_text(text, encoding="utf-8")
        for file in _own_files(text):
            shutil.copy(file, part)
        _check_folder(part, modules)
        os.chmod(part, 0o755)
        os.rename(part, folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
