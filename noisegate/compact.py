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
import shutil
import tempfile
import types

import ruamel.yaml
import speechbrain as sb
import torch
from hyperpyyaml import load_hyperpyyaml, resolve_references
from speechbrain.lobes.models.transformer.Transformer import (
    TransformerEncoderLayer,
)

from noisegate.cut import cut, detached_copy, kept_features
from noisegate.gate import Gate
from noisegate.gates import Gates, Tap, _MaskedLayer
from noisegate.layers import GATED_LAYERS
from noisegate.leaves import FEATURES

# Attributes that do not come from the constructor, or are written separately
_STATE = ("training", "top_db")
_OWN_CHILDREN = (Tap, _MaskedLayer, Gate)


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
    features : speechbrain.lobes.features.Fbank
        A copy of the front-end that makes only the open mel bands, or None.

    Example
    -------
    >>> from speechbrain.nnet.containers import Sequential
    >>> from speechbrain.nnet.linear import Linear
    >>> net = Sequential(input_shape=[None, None, 8])
    >>> net.append(Linear, n_neurons=16, layer_name="hidden")
    >>> net.append(Linear, n_neurons=1, layer_name="out")
    >>> gates = Gates(net, input_shape=[1, 100, 8])
    >>> gates.freeze({"hidden": 4})
    >>> plain, _ = compact(gates)
    >>> plain.hidden.w, plain.out.w.in_features
    (Linear(in_features=8, out_features=4, bias=True), 4)
    """
    model = _strip(detached_copy(gates.model))
    features = None
    if gates.front_end is not None:
        features = _strip(copy.deepcopy(gates.front_end))
    keep = {name: gate.open_channels().cpu() for name, gate in gates.items()}
    cut(model, kept_features(gates.groups, keep))
    if FEATURES in keep:
        features = _cut_fbank(features, keep[FEATURES])
    return model.eval(), features


def final_sizes(gates, model):
    """Returns the sizes of all layers that were cut.

    Arguments
    ---------
    gates : noisegate.gates.Gates
        The gates of the model.
    model : torch.nn.Module
        The cut model, see :func:`compact`.

    Returns
    -------
    dict
        ``{path: {role: size}}``, what :func:`shrink` needs.
    """
    keep = {name: g.open_channels() for name, g in gates.items()}
    sizes = {}
    for (path, role), index in kept_features(gates.groups, keep).items():
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

    Arguments
    ---------
    hparams_file : str
        YAML of a recipe.
    key : str
        The name of the module: a key in ``modules`` or of the file itself.
    overrides : str or dict
        What replaces values of the file, as on the command line.

    Returns
    -------
    str
        Its ``!new:`` expression, all references resolved.
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


def _strip(model):
    """Takes gates, taps and gated classes out of a copied model."""
    for module in model.modules():
        for name, child in list(module.named_children()):
            if isinstance(child, _OWN_CHILDREN):
                del module._modules[name]
        hooks = module._forward_pre_hooks
        for key, hook in list(hooks.items()):
            if isinstance(getattr(hook, "__self__", None), (Tap, Gates)):
                del hooks[key]
        if hasattr(module.__dict__.get("forward"), "func"):
            del module.__dict__["forward"]
        if isinstance(module, GATED_LAYERS):
            module.__class__ = type(module).__bases__[0]
            del module.gate
    return model


def _cut_fbank(features, keep):
    """A filterbank with the filters ``keep`` only.

    SpeechBrain's trainable filterbank keeps centres and bandwidths as
    parameters: any subset of filters can be loaded into one.
    """
    old = features.compute_fbanks
    arguments = _arguments(features)
    arguments.update(n_mels=len(keep), requires_grad=True)
    new = sb.lobes.features.Fbank(**arguments)
    # The new one multiplies by the sample rate, the old one by its settings
    scale = 1 / old.sample_rate if old.freeze else old.param_change_factor**2
    with torch.no_grad():
        new.compute_fbanks.f_central.copy_(old.f_central.cpu()[keep] * scale)
        new.compute_fbanks.band.copy_(old.band.cpu()[keep] * scale)
    new.compute_fbanks.top_db = old.top_db
    return new.requires_grad_(False)


# ---------------------------------------------------------------------------
# Saving


def _fbank_arguments(module):
    stft, bank = module.compute_STFT, module.compute_fbanks
    arguments = {
        "deltas": module.deltas,
        "context": module.context,
        "requires_grad": module.requires_grad,
        "sample_rate": stft.sample_rate,
        "f_min": bank.f_min,
        "f_max": bank.f_max,
        "n_fft": bank.n_fft,
        "n_mels": bank.n_mels,
        "filter_shape": bank.filter_shape,
        "win_length": 1000 * stft.win_length / stft.sample_rate,
        "hop_length": 1000 * stft.hop_length / stft.sample_rate,
    }
    return arguments


def _conv_arguments(module):
    conv = module.conv
    arguments = {
        "out_channels": conv.out_channels,
        "kernel_size": module.kernel_size,
        "in_channels": conv.in_channels,
        "stride": module.stride,
        "dilation": module.dilation,
        "padding": module.padding,
        "groups": conv.groups,
        "bias": conv.bias is not None,
        "padding_mode": module.padding_mode,
        "skip_transpose": module.skip_transpose,
    }
    if module.unsqueeze:  # decided by the constructor from the input shape
        del arguments["in_channels"]
        arguments["input_shape"] = [1] * (1 + len(conv.kernel_size))
    return arguments


def _gru_arguments(module):
    rnn = module.rnn
    arguments = {
        "hidden_size": rnn.hidden_size,
        "input_size": rnn.input_size,
        "num_layers": rnn.num_layers,
        "bias": rnn.bias,
        "dropout": rnn.dropout,
        "bidirectional": rnn.bidirectional,
    }
    if module.reshape:  # decided by the constructor from the input shape
        del arguments["input_size"]
        arguments["input_shape"] = [1, 1, 1, rnn.input_size]
    return arguments


def _encoder_arguments(module):
    att, ffn = module.self_att.att, module.pos_ffn
    arguments = {
        "nhead": att.num_heads,
        "d_model": att.embed_dim,
        "dropout": module.dropout1.p,
        "normalize_before": module.normalize_before,
        "ffn_type": module.pos_ffn_type,
    }
    if module.pos_ffn_type == "regularFFN":
        arguments["d_ffn"] = ffn.ffn[0].out_features
        arguments["activation"] = type(ffn.ffn[1])
    else:
        arguments["d_ffn"] = ffn[0].conv.out_channels
        arguments["ffn_cnn_kernel_size_list"] = [
            ffn[0].kernel_size,
            ffn[2].kernel_size,
        ]
        arguments["causal"] = ffn[0].padding == "causal"
    return arguments


def _norm_arguments(module):
    norm = module.norm
    arguments = {"eps": norm.eps}
    if isinstance(norm, torch.nn.LayerNorm):
        arguments["input_size"] = list(norm.normalized_shape)
        arguments["elementwise_affine"] = norm.weight is not None
        return arguments
    arguments["input_size"] = norm.num_features
    arguments["momentum"] = norm.momentum
    arguments["affine"] = norm.affine
    arguments["track_running_stats"] = norm.track_running_stats
    if isinstance(module, sb.nnet.normalization.BatchNorm1d):
        arguments["combine_batch_time"] = module.combine_batch_time
        arguments["skip_transpose"] = module.skip_transpose
    return arguments


def _pooling_arguments(module):
    pool = module.pool_layer
    arguments = {
        "pool_type": "max" if "Max" in type(pool).__name__ else "avg",
        "kernel_size": pool.kernel_size,
        "stride": pool.stride,
        "padding": pool.padding,
        "ceil_mode": pool.ceil_mode,
    }
    if arguments["pool_type"] == "max":
        arguments["dilation"] = pool.dilation
    planes = isinstance(pool, (torch.nn.AvgPool2d, torch.nn.MaxPool2d))
    for key, value in arguments.items():
        if isinstance(value, tuple):
            arguments[key] = value[-1]
    arguments["input_dims"] = 4 if planes else 3
    arguments["pool_axis"] = module.pool_axis
    return arguments


def _linear_arguments(module):
    return {
        "n_neurons": module.w.out_features,
        "input_size": module.w.in_features,
        "bias": module.w.bias is not None,
        "max_norm": module.max_norm,
        "combine_dims": module.combine_dims,
    }


_ARGUMENTS = {
    sb.lobes.features.Fbank: _fbank_arguments,
    sb.nnet.CNN.Conv1d: _conv_arguments,
    sb.nnet.CNN.Conv2d: _conv_arguments,
    sb.nnet.RNN.GRU: _gru_arguments,
    sb.nnet.linear.Linear: _linear_arguments,
    sb.nnet.normalization.BatchNorm1d: _norm_arguments,
    sb.nnet.normalization.BatchNorm2d: _norm_arguments,
    sb.nnet.normalization.LayerNorm: _norm_arguments,
    sb.nnet.pooling.Pooling1d: _pooling_arguments,
    TransformerEncoderLayer: _encoder_arguments,
}


def _arguments(module):
    """Constructor arguments that build a module of these sizes again."""
    for kind, arguments in _ARGUMENTS.items():
        if isinstance(module, kind):
            return arguments(module)
    kept = {}
    for name, parameter in inspect.signature(type(module)).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if hasattr(module, name):
            kept[name] = getattr(module, name)
        elif parameter.default is parameter.empty:
            raise ValueError(
                f"cannot write {type(module).__name__} to YAML: its argument "
                f"'{name}' is not kept as an attribute"
            )
    return kept


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
        lines = [f"{k}: {_scalar(v)}" for k, v in _arguments(module).items()]
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
    plain = (bool, int, float, str, type, types.FunctionType)
    for path, part in module.named_modules():
        found[path, "class"] = _class(part)
        for key, value in vars(part).items():
            own = key.startswith("_") or key in _STATE
            if isinstance(value, plain) and not own:
                found[path, key] = value
    return found


def _builds(expression, module):
    """Whether an expression makes a module of the same class and sizes."""
    try:
        with torch.random.fork_rng():
            built = load_hyperpyyaml(f"module: {expression}")["module"]
    except Exception:  # whatever a constructor raises for such sizes
        return False
    return _settings(built) == _settings(module)


def _expression(name, module, originals):
    """Lines that make a module: the constructor, or the original cut."""
    error = None
    original, sizes = originals.get(name, (None, None))
    written = [f"{name}: " + (original or "").replace("\n", "\n    ")]
    # Functions that made a module may be at hand in the recipe only
    called = (original or "").startswith("!apply:")
    if original is not None and not sizes and not called:  # as it was
        return written
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
    return written


def save_compact(folder, modules, header="", originals=None, **values):
    """Saves plain modules as weights and a YAML that builds them.

    The folder has the form that SpeechBrain's ``Pretrained.from_hparams``
    reads. It is written under another name first and moved into place.

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
        as given in originals.
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
        if isinstance(module, sb.lobes.features.Fbank):
            top_db = _scalar(module.compute_fbanks.top_db)
            lines += [
                f"__{name}_top_db: !apply:setattr",
                f"    [!ref <{name}.compute_fbanks>, top_db, {top_db}]",
            ]
    lines.append("modules:")
    lines += [f"    {name}: !ref <{name}>" for name in modules]
    loaded = [name for name, module in modules.items() if module.state_dict()]
    lines.append(
        "pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer"
    )
    lines.append("    loadables:")
    lines += [f"        {name}: !ref <{name}>" for name in loaded]
    os.makedirs(os.path.dirname(folder), exist_ok=True)
    part = tempfile.mkdtemp(dir=os.path.dirname(folder), prefix=".compact")
    try:
        for name in loaded:
            state = modules[name].state_dict()
            torch.save(state, os.path.join(part, name + ".ckpt"))
        with open(
            os.path.join(part, "hyperparams.yaml"), "w", encoding="utf-8"
        ) as out:
            out.write("\n".join(lines) + "\n")
        os.chmod(part, 0o755)
        os.rename(part, folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
