"""Cuts a gated model to its learned widths and saves it.

The result holds torch and SpeechBrain layers only. It is saved as a folder
with weights and a ``hyperparams.yaml``, which loads where noisegate is not
installed. Modules are built in it as the recipe builds them, then parameters
are replaced by those of the final sizes, before the weights are loaded.

Authors
 * The noisegate developers, 2026
"""

import copy
import functools
import inspect
import io
import json
import operator
import os
import pydoc
import re
import shutil
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import ruamel.yaml
import torch
from hyperpyyaml import load_hyperpyyaml, resolve_references
from ruamel.yaml.tag import Tag
from sentencepiece import SentencePieceProcessor
from speechbrain.dataio.encoder import CategoricalEncoder
from speechbrain.nnet.adapters import AdaptedModel
from speechbrain.utils.checkpoints import (
    DEFAULT_LOAD_HOOKS,
    DEFAULT_SAVE_HOOKS,
    DEFAULT_TRANSFER_HOOKS,
    get_default_hook,
)
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from noisegate.cut import cut, fold, kept_features
from noisegate.layers import undeclare
from noisegate.probe import evaluating, tensors
from noisegate.rules.base import rule_of
from noisegate.rules.features import FEATURES
from noisegate.trial import relative_difference

_SAME = 1e-5  # of outputs, relative
_STATE = {*vars(torch.nn.Module()), "device"}  # are no settings
_SETTINGS = (bool, int, float, str, type(None))  # kinds that a YAML can set


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
        rule = rule_of(front_end)
        if gates.respaced:
            front_end = rule.respaced(len(keep[FEATURES]))
        else:
            front_end = rule.cut("out", keep[FEATURES])
    return model.eval(), front_end


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
    _without_gates(tree[key])
    out = io.StringIO()
    yaml.dump(tree[key], out)
    return out.getvalue().strip()


def _without_gates(node):
    """Puts plain layers in the place of those that ask for a gate."""
    head, _, path = str(getattr(node, "tag", None) or "").partition(":")
    gated = pydoc.locate(path) if path.startswith("noisegate.") else None
    plain = getattr(gated, "plain", None)
    if plain is not None:
        node.yaml_set_ctag(Tag(suffix=f"{head}:{_path(plain)}"))
    if isinstance(node, dict):
        if plain is not None:
            node.pop("gate", None)
        node = list(node.values())
    for child in node if isinstance(node, list) else ():
        _without_gates(child)


def _path(kind):
    return f"{kind.__module__}.{kind.__qualname__}"


def _scalar(value):
    if isinstance(value, type):
        return f"!name:{_path(value)}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_scalar(item) for item in value) + "]"
    if isinstance(value, dict):
        items = [f"{_scalar(k)}: {_scalar(v)}" for k, v in value.items()]
        return "{" + ", ".join(items) + "}"
    if isinstance(value, float):
        return re.sub("inf|nan", r".\g<0>", float.__repr__(value))  # as in YAML
    return json.dumps(value)


def _plain(value):
    """Whether a YAML can set a value."""
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, (list, tuple)):
        return all(map(_plain, value))
    return isinstance(value, _SETTINGS)


def _settings(module):
    """Classes and plain attributes by path: what equal modules share."""
    found = {}
    for path, part in module.named_modules():
        found[path, "class"] = rule_of(part).kind or _path(type(part)), type
        for key, value in vars(part).items():
            if isinstance(value, types.FunctionType):
                value = _path(value), type(value)
            setting = _plain(value) or isinstance(value, (tuple, type))
            if setting and key not in _STATE:
                found[path, key] = value
    return found


class Corrections:
    """Makes a module as it was built the one that was cut, and notes how."""

    def __init__(self, name, built, module):
        self.name, self.built, self.module = name, built, module
        self.lines = []
        self._unfold()
        self._resize()
        self._set()

    def _part(self, path):
        if not path:
            return f"!ref <{self.name}>"
        inside = f'[!ref <{self.name}>, "{path}"]'
        return f"!apply:torch.nn.Module.get_submodule {inside}"

    def _call(self, function, path, key=None, *arguments):
        key = key and json.dumps(key)  # "0" and "on" are no texts in YAML
        arguments = ", ".join(filter(None, [self._part(path), key, *arguments]))
        line = f"__{self.name}_{len(self.lines)}: !apply:{function}"
        self.lines.append(f"{line} [{arguments}]")

    def _unfold(self):
        """Takes normalizations of weights off, as cutting does."""
        before, after = self.built.state_dict(), self.module.state_dict()
        if before.keys() == after.keys():
            return
        for path, part in self.built.named_modules():
            for hook in part._forward_pre_hooks.values():
                if isinstance(hook, SpectralNorm):  # torch leaves something
                    self._call("noisegate.cut.fold", path)
                if isinstance(hook, WeightNorm):
                    remove = "torch.nn.utils.remove_weight_norm"
                    self._call(remove, path, hook.name)
            if parametrize.is_parametrized(part):
                remove = "torch.nn.utils.parametrize.remove_parametrizations"
                for key in part.parametrizations:
                    self._call(remove, path, key)
        fold(self.built)

    def _resize(self):
        """Gives parameters and buffers their sizes."""
        before, owners = self.built.state_dict(keep_vars=True), {}
        after = self.module.state_dict(keep_vars=True)
        if differ := sorted(before.keys() - after.keys()):
            raise ValueError(f"'{self.name}' has no {differ}, as its YAML has")
        for full, tensor in after.items():
            path, _, key = full.rpartition(".")
            other, first = before.get(full), owners.setdefault(id(tensor), full)
            same = other is not None and other.shape == tensor.shape
            if first != full:
                if not same or before[first] is not other:
                    path_of_first, _, its_key = first.rpartition(".")
                    value = f'[{self._part(path_of_first)}, "{its_key}"]'
                    self._call("setattr", path, key, f"!apply:getattr {value}")
            elif same:
                continue
            elif not isinstance(tensor, torch.nn.Parameter):
                register = "torch.nn.Module.register_buffer"
                self._call(register, path, key, _zeros(tensor))
            elif other is not None:
                value = f"[{_zeros(tensor)}, {tensor.requires_grad}]"
                value = f"!new:torch.nn.Parameter {value}"
                self._call("setattr", path, key, value)
            else:
                raise ValueError(f"'{self.name}.{full}' is not in its YAML")

    def _set(self):
        """Sets what was set behind constructors."""
        before = _settings(self.built)
        for (path, key), value in _settings(self.module).items():
            if before.get((path, key), before) == value:
                continue
            if not _plain(value):
                owner = f"{self.name}.{path}".rstrip(".")
                raise ValueError(
                    f"'{owner}': its {key} is {value}, but "
                    f"{before.get((path, key))} as its YAML builds it, which "
                    "cannot be set there"
                )
            made = _scalar(value)
            if isinstance(value, tuple):
                made = f"!new:tuple [{made}]"
            self._call("setattr", path, key, made)


def _zeros(tensor):
    """An expression for zeros of the shape and type of a tensor."""
    made = f"!apply:torch.zeros [{list(tensor.shape)}]"
    if tensor.dtype is torch.float32:
        return made
    return f'!apply:torch.Tensor.type [{made}, "{tensor.cpu().type()}"]'


def _expression(name, module, original):
    """Lines that make a module: as it was built, and corrected."""
    if not isinstance(module, torch.nn.Module):
        return [f"{name}: !new:{_path(type(module))}"]
    if original is None and rule_of(module).in_front:
        original = f"!new:{_path(type(module))}"
        for key, value in rule_of(module).arguments().items():
            original += f"\n{key}: {_scalar(value)}"
    if original is None:
        raise ValueError(f"originals must say how '{name}' was built")
    made = original.replace("\n", "\n    ")
    try:
        with torch.random.fork_rng():
            built = load_hyperpyyaml(f"{name}: {made}")[name]
    except ImportError as error:
        raise ValueError(f"'{name}' cannot be built: {error}") from error
    return [f"{name}: {made}", *Corrections(name, built, module).lines]


def _own_files(text):
    """Files beside the recipe that a YAML takes classes from."""
    found = []
    for name in sorted(set(re.findall(r"!(?:new|apply|name):(\w+)\.", text))):
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
        built = load_hyperpyyaml(text)
    for name, module in modules.items():
        path = Path(folder, name + ".ckpt")
        if path.exists():  # as by Pretrainer, which waits for other processes
            load = get_default_hook(module, DEFAULT_TRANSFER_HOOKS)
            if load is None:
                load = get_default_hook(module, DEFAULT_LOAD_HOOKS)
                load = functools.partial(load, end_of_epoch=False)
            load(built[name], path)
        expected, made = _learned(module), _learned(built[name])
        for key, value in expected.items():
            equal = torch.equal if torch.is_tensor(value) else operator.eq
            if key not in made or not equal(value, made[key]):
                raise ValueError(
                    f"'{name}.{key}' is {value}, but {made.get(key)} when it "
                    "is loaded from what was written"
                )


def _has_saver(module):
    """Whether a class tells SpeechBrain how it is saved."""
    usual = DEFAULT_SAVE_HOOKS[torch.nn.Module]
    return get_default_hook(module, DEFAULT_SAVE_HOOKS) is not usual


def vocabularies(values):
    """Returns the label encoders and tokenizers among some values (dict)."""
    found = {}
    for name, value in values.items():
        value = getattr(value, "sp", value)  # of speechbrain.tokenizers
        kinds = CategoricalEncoder, SentencePieceProcessor
        if isinstance(value, kinds) and value not in found.values():
            found[name] = value
    return found


def _learned(module):
    """What was learned: the state, statistics of normalizers, labels."""
    if isinstance(module, SentencePieceProcessor):
        return {"model": module.serialized_model_proto()}
    if isinstance(module, CategoricalEncoder):
        return {"labels": module.lab2ind}
    found = dict(module.state_dict())
    for path, part in module.named_modules():
        for key, value in vars(part).items() if _has_saver(part) else ():
            if torch.is_tensor(value):
                found[f"{path}.{key}".lstrip(".")] = value
    return {key: value.cpu() for key, value in found.items()}


_LOAD = """
import sys
import torch
from hyperpyyaml import load_hyperpyyaml
folder, file = sys.argv[1:]
sys.path.insert(0, folder)
with open(folder + "/hyperparams.yaml", encoding="utf-8") as fin:
    loaded = load_hyperpyyaml(fin)
loaded["pretrainer"].set_collect_in(folder)
loaded["pretrainer"].load_collected()
outputs = {}
for name, (args, kwargs) in torch.load(file, weights_only=False).items():
    torch.manual_seed(0)
    with torch.no_grad():
        outputs[name] = loaded["modules"][name].eval()(*args, **kwargs)
torch.save(outputs, file)
"""


def _check_outputs(folder, modules, calls):
    """Raises ValueError if what a new process loads from a folder returns
    something else; ``calls`` has arguments of each module."""
    with tempfile.TemporaryDirectory() as place:
        file = os.path.join(place, "calls.pt")
        torch.save(calls, file)
        # In the types and on the device that they have there
        load = functools.partial(torch.load, file, "cpu", weights_only=False)
        calls = load()
        torch.save(calls, file)
        command = [sys.executable, "-c", _LOAD, folder, file]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise ValueError(
                "what was written cannot be loaded in a new process: "
                + done.stderr.strip().rpartition("\n")[2]
            )
        outputs = load()
    for name, (args, kwargs) in calls.items():
        with torch.random.fork_rng(), evaluating(modules[name]):
            torch.manual_seed(0)
            expected = tensors(modules[name](*args, **kwargs))
        made = tensors(outputs[name])
        if not relative_difference(expected, made) <= _SAME:
            raise ValueError(
                f"'{name}' returns {made}, loaded in a new process, in place "
                f"of {expected}"
            )


def save_compact(
    folder, modules, header="", originals=None, calls=None, **values
):
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
        mean_var_norm, model; label encoders and tokenizers of SentencePiece.
    header : str
        Comment for the top of the YAML.
    originals : dict of str
        Expressions that build the uncut modules (see :func:`constructor`); a
        front-end needs none.
    calls : dict of str to tuple
        Arguments and keyword arguments of a call of each module; for these
        what a new process loads has to return what the module does.
    **values : dict
        Further keys of the YAML (numbers, strings, flat dicts). ``interface``
        has expressions of further modules, which a class of
        ``speechbrain.inference`` asks for.

    Raises
    ------
    FileExistsError
        If the folder exists: results are never overwritten.
    ValueError
        If a module cannot be built and corrected as given in originals; if
        what is loaded from the folder differs, or returns something else.
    """
    folder = os.path.abspath(folder)
    if os.path.exists(folder):
        raise FileExistsError(f"{folder} exists, a result is not overwritten")
    lines = [f"# {line}" for line in header.splitlines()]
    interface = values.pop("interface", {})
    for key, value in values.items():
        lines.append(f"{key}: {_scalar(value)}")
    for name, module in modules.items():
        lines += _expression(name, module, (originals or {}).get(name))
    lines.append("modules:")
    lines += [
        f"    {name}: !ref <{name}>"
        for name, module in modules.items()
        if isinstance(module, torch.nn.Module)
    ]
    lines += [f"    {name}: {text}" for name, text in interface.items()]
    loaded = {k: module for k, module in modules.items() if _learned(module)}
    pretrainer = "!new:speechbrain.utils.parameter_transfer.Pretrainer"
    lines += [f"pretrainer: {pretrainer}", "    loadables:"]
    lines += [f"        {name}: !ref <{name}>" for name in loaded]
    top = os.path.dirname(folder)
    os.makedirs(top, exist_ok=True)
    part = tempfile.mkdtemp(".tmp", ".compact", top)
    try:
        for name, module in loaded.items():
            path = os.path.join(part, name + ".ckpt")
            if isinstance(module, SentencePieceProcessor):
                Path(path).write_bytes(module.serialized_model_proto())
                continue
            save = get_default_hook(module, DEFAULT_SAVE_HOOKS)
            if isinstance(module, AdaptedModel):  # saves what is trained
                save = DEFAULT_SAVE_HOOKS[torch.nn.Module]
            # Without what makes it wait for the other processes
            inspect.unwrap(save)(module, path)
        text = "\n".join(lines) + "\n"
        Path(part, "hyperparams.yaml").write_text(text, encoding="utf-8")
        for file in _own_files(text):
            shutil.copy(file, part)
        _check_folder(part, modules)
        if calls:
            _check_outputs(part, modules, calls)
        os.chmod(part, 0o755)
        os.rename(part, folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
