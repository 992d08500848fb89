"""Writes a cut model as ONNX, with its front-end, and compares it with torch.

Authors
 * The noisegate developers, 2026
"""

import contextlib
import io
import json
import os
import warnings
from pathlib import Path

import numpy as np
import torch
from speechbrain.dataio.encoder import CategoricalEncoder

from noisegate.deploy.audio import blocks
from noisegate.deploy.runtime import Model
from noisegate.deploy.streaming import Deployed
from noisegate.extras import extra
from noisegate.pretrained import load_yaml

OPSET = 20
TOLERANCE = 1e-4  # of onnxruntime to torch, relative to the greatest output
LENGTHS_S = (0.31, 1.0, 2.503)
_FACTS = ("threshold", "segment_s", "calibration_scale", "calibration_offset")


def _write(module, path, states):
    """Exports by torch's tracing exporter, which keeps recurrent layers."""
    names = [f"state{i}" for i in range(len(states))]
    axes = {"wavs": {0: "batch", 1: "samples"}}
    for name, layer in zip(names, module.stateful):
        axes[name] = axes[f"next_{name}"] = {layer.batch_dim: "batch"}
    axes["scores"] = {0: "batch", 1: "frames"}
    wavs = torch.randn(1, module.window + 24 * module.hop) / 10
    with (
        contextlib.redirect_stdout(io.StringIO()),
        warnings.catch_warnings(),
    ):
        # Of the exporter, about itself; what it wrote is compared
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (wavs, *states),
            str(path),
            input_names=["wavs", *names],
            output_names=["scores", *(f"next_{name}" for name in names)],
            dynamic_axes=axes,
            opset_version=OPSET,
            # onnxruntime does it when it loads the file
            do_constant_folding=False,
            dynamo=False,
        )


def _facts(folder, values, deployed, states):
    """What a program needs to know of the model, for its metadata."""
    facts = {
        "sample_rate": values["sample_rate"],
        "window": deployed.window,
        "hop": deployed.hop,
        "states": [list(state.shape) for state in states],
        "parameters": sum(p.numel() for p in deployed.parameters()),
    }
    for name in _FACTS:
        if name in values:
            facts[name] = values[name]
    for value in values.values():
        if isinstance(value, CategoricalEncoder):
            facts["labels"] = [value.ind2lab[i] for i in range(len(value))]
    return facts


def _check(path, whole, signals):
    """Greatest difference to torch, relative to the greatest output."""
    model, worst = Model(path), 0.0
    generator = np.random.default_rng(0)
    for signal in signals:
        with torch.no_grad():
            expected = whole(torch.from_numpy(signal)[None])[0].numpy()[0]
        stream, made, start = model.stream(), [], 0
        while start < len(signal):
            end = start + int(generator.integers(1, 1600))
            made.append(stream.feed(signal[start:end]))
            start = end
        made = np.concatenate([*made, stream.finish()])
        if made.shape != expected.shape:
            raise ValueError(
                f"onnxruntime makes the shape {made.shape} of "
                f"{len(signal)} samples, torch {expected.shape}"
            )
        difference = np.abs(made - expected).max() / np.abs(expected).max()
        worst = max(worst, float(difference))
    return worst


def export(folder, path=None, streaming=False, files=()):
    """Writes a cut model as ONNX.

    Front-end, normalization and network are one graph. Its input ``wavs``
    (batch, samples) has any number of signals of any one length, its output is
    ``scores``. With ``streaming`` the signal comes in chunks, and states go
    in and out; see docs/deploy.md. What was written is run by onnxruntime and
    compared with torch: on noise of several lengths, and on ``files``.

    Arguments
    ---------
    folder : str or pathlib.Path
        A folder of a cut model, with ``compute_features``, ``model`` and, if
        there is one, ``mean_var_norm``.
    path : str or pathlib.Path
        What is written; ``model.onnx`` in the folder if None. It must not
        exist.
    streaming : bool
        Whether for signals in chunks.
    files : list of str
        Audio files to compare on, besides.

    Returns
    -------
    path : pathlib.Path
        What was written.
    error : float
        Greatest difference to torch, relative to the greatest output.

    Raises
    ------
    ValueError
        If the model cannot be exported or streamed, or if onnxruntime's
        outputs are others.
    FileExistsError
        If ``path`` exists.
    """
    with extra("deploy"):
        import onnx

    folder = Path(folder)
    path = folder / "model.onnx" if path is None else Path(path)
    if path.exists():
        raise FileExistsError(f"{path} exists: move it away first")
    values = load_yaml(folder)
    missing = {"sample_rate", "modules"} - values.keys()
    if missing:
        raise ValueError(f"{folder} has no {sorted(missing)}")
    modules = values["modules"]
    whole = Deployed(modules)
    deployed = Deployed(modules, streaming=True) if streaming else whole
    states = deployed.initial() if streaming else []
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        _write(deployed, part, states)
        written = onnx.load(part)
        facts = _facts(folder, values, deployed, states)
        onnx.helper.set_model_props(written, {"noisegate": json.dumps(facts)})
        onnx.checker.check_model(written)
        onnx.save(written, part)
        generator = np.random.default_rng(1)
        rate = values["sample_rate"]
        signals = [
            generator.normal(size=round(s * rate)).astype(np.float32) / 10
            for s in LENGTHS_S
        ]
        for file in files:
            signals.append(np.concatenate(list(blocks(file, rate))))
        error = _check(part, whole, signals)
        if not error <= TOLERANCE:
            raise ValueError(
                f"onnxruntime's outputs differ from torch's by {error:.2g} of "
                f"the greatest one, more than {TOLERANCE}"
            )
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path, error
