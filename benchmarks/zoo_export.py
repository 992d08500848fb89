"""Exports cut models to ONNX and compares what onnxruntime computes.

Authors
 * The noisegate developers, 2026
"""

import copy

from noisegate.compact import compact
from noisegate.evaluation.latency import has_onnx, to_onnx


def measure(plain, gates, inputs):
    """Exports the model at half of its widths.

    Arguments
    ---------
    plain : torch.nn.Module
        The uncut model.
    gates : noisegate.gates.Gates
        Gates on a copy of it.
    inputs : list
        Arguments of its forward.

    Returns
    -------
    dict
        Whether onnxruntime computes the same ("parity"), with which exporter
        and, if not, why, and whether the uncut model can be exported.
    """
    if not has_onnx():
        return {"skipped": "not installed"}
    gates = copy.deepcopy(gates)
    steps = {n: g.granularity for n, g in gates.items()}
    gates.freeze(
        {
            n: max(g.min_width, g.size // 2 // steps[n] * steps[n])
            for n, g in gates.items()
        }
    )
    small, _ = compact(gates)
    _, error, exporter, reasons = to_onnx(small, inputs)
    result = {"parity": error is not None, "error": error}
    result["exporter"] = exporter
    if error is None:
        result["reason"] = "; ".join(f"{k}: {v}" for k, v in reasons.items())
        uncut = to_onnx(plain, inputs)[1]
        result["plain_exports"] = uncut is not None
        if uncut is None:
            result["reason"] = (
                "the uncut model cannot be exported either: " + result["reason"]
            )
    return result
