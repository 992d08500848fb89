"""Exports cut models to ONNX and compares what onnxruntime computes.

Authors
 * The noisegate developers, 2026
"""

import contextlib
import copy
import io
import tempfile
from pathlib import Path

import torch

from noisegate.compact import compact
from noisegate.probe import tensors

try:
    import onnxruntime
    import onnxscript  # noqa: F401
except ImportError:
    onnxruntime = None

TOLERANCE = 1e-4  # other kernels, relative to the greatest output


def _run(model, inputs):
    with torch.no_grad():
        torch.manual_seed(5)
        return tensors(model(*copy.deepcopy(inputs)))


def _export(model, inputs, dynamo):
    """Greatest relative difference between torch and onnxruntime."""
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        path = str(Path(folder) / "model.onnx")
        torch.manual_seed(5)
        torch.onnx.export(
            copy.deepcopy(model),
            tuple(copy.deepcopy(inputs)),
            path,
            dynamo=dynamo,
        )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
        # Inputs that the output does not depend on are left out
        given = tensors(inputs)
        taken = session.get_inputs()
        if len(taken) < len(given):
            shapes = [list(x.shape) for x in taken]
            given = [x for x in given if list(x.shape) in shapes]
        feeds = {x.name: y.numpy() for x, y in zip(taken, given)}
        made = session.run(None, feeds)
    worst = 0.0
    expected = _run(model, inputs)
    if len(expected) != len(made):
        raise ValueError(f"{len(made)} outputs in place of {len(expected)}")
    for x, y in zip(expected, map(torch.as_tensor, made)):
        if x.shape != y.shape:
            raise ValueError(f"shape {y.shape} in place of {x.shape}")
        scale = x.abs().max().clamp(min=1e-6)
        if x.numel():
            worst = max(worst, float((x - y).abs().max() / scale))
    return worst


def _tried(model, inputs):
    """Difference and reasons against the two exporters of torch."""
    reasons = {}
    for name, dynamo in (("tracing", False), ("dynamo", True)):
        try:
            error = _export(model, inputs, dynamo)
        except Exception as failure:
            text = (str(failure).strip().splitlines() or [""])[0]
            reasons[name] = f"{type(failure).__name__}: {text[:200]}"
            continue
        if error <= TOLERANCE:
            return error, name, reasons
        reasons[name] = f"outputs differ by {error:.1g}"
    return None, None, reasons


def measure(plain, gates, inputs):
    """Exports the model at half of its widths.

    Arguments
    ---------
    plain : torch.nn.Module
        The uncut model.
    gates : noisegate.attach.Gates
        Gates on a copy of it.
    inputs : list
        Arguments of its forward.

    Returns
    -------
    dict
        Whether onnxruntime computes the same ("parity"), with which exporter
        and, if not, why, and whether the uncut model can be exported.
    """
    if onnxruntime is None:
        return {"skipped": "not installed"}
    gates = copy.deepcopy(gates)
    steps = {n: g.granularity for n, g in gates.gates.items()}
    gates.freeze(
        {
            n: max(g.min_width, g.size // 2 // steps[n] * steps[n])
            for n, g in gates.gates.items()
        }
    )
    small, _ = compact(gates)
    error, exporter, reasons = _tried(small, inputs)
    result = {"parity": error is not None, "error": error}
    result["exporter"] = exporter
    if error is None:
        result["reason"] = "; ".join(f"{k}: {v}" for k, v in reasons.items())
        uncut = _tried(plain, inputs)[0]
        result["plain_exports"] = uncut is not None
        if uncut is None:
            result["reason"] = (
                "the uncut model cannot be exported either: " + result["reason"]
            )
    return result
