"""Integers of 8 bits in exported models, as long as decisions stay.

Authors
 * The noisegate developers, 2026
"""

import logging
import os
from pathlib import Path

import numpy as np

from noisegate.deploy.audio import blocks
from noisegate.deploy.runtime import Model
from noisegate.extras import extra

KINDS = ("dynamic", "static")
_NETWORK = "/parts.2/"  # of what `export` writes: front-end, norm, network
_QUANTIZED = ("Conv", "MatMul", "Gemm")


def _scores(model, file):
    """Scores of an audio file, read in blocks."""
    stream, made = model.stream(), []
    for block in blocks(file, model.facts["sample_rate"]):
        made.append(stream.feed(block))
    return np.concatenate([*made, stream.finish()])


def _decisions(model, files):
    """What is decided of each frame, or of each file."""
    made = []
    for file in files:
        scores = _scores(model, file)
        if "labels" in model.facts:
            made.append(scores.argmax(-1).flatten())
        else:
            shift = model.facts.get("threshold", 0.0)
            if "calibration_scale" in model.facts:  # accepted from 0 on
                scale = model.facts["calibration_scale"]
                shift = -model.facts["calibration_offset"] / scale
            made.append((scores > shift).flatten())
    return np.concatenate(made)


def _calibration(model, files):
    """What the model is fed with for some files, as onnxruntime asks."""
    from onnxruntime.quantization import CalibrationDataReader

    feeds, run = [], model.session.run

    class Recorder:
        """A session that notes what it is run with."""

        get_outputs = model.session.get_outputs

        def run(self, names, feed):
            feeds.append(feed)
            return run(names, feed)

    class Reader(CalibrationDataReader):
        """Gives them one after the other."""

        def get_next(self):
            return next(self.left, None)

    model.session = Recorder()
    for file in files:
        _scores(model, file)
    reader = Reader()
    reader.left = iter(feeds)
    return reader


def quantize(path, kind, files, max_changed=0.01):
    """Quantizes the network of an exported model to integers of 8 bits.

    The front-end stays in floats, as do GRUs, for which onnxruntime has no
    integers. Both models then decide of all frames (or, with labels, of all
    words) of some audio files: an error rate cannot rise by more than the share
    of decisions that change.

    Arguments
    ---------
    path : str or pathlib.Path
        What `noisegate.deploy.export.export` has written.
    kind : str
        "dynamic": weights are integers, the range of what flows between layers
        is looked at each time; "static": it was looked at on the files.
    files : list of str
        Audio of the validation set.
    max_changed : float
        Greatest share of decisions that may change, in [0, 1].

    Returns
    -------
    path : pathlib.Path
        What was written beside: <name>.int8.onnx.
    changed : float
        Share of decisions that have changed.

    Raises
    ------
    ValueError
        If more decisions have changed, in which case nothing is written; if
        there are no files.
    FileExistsError
        If what would be written exists.
    """
    with extra("deploy"):
        import onnx
        from onnxruntime import quantization

    if kind not in KINDS:
        raise ValueError(f"kind must be of {list(KINDS)}, got '{kind}'")
    if not files:
        raise ValueError("int8 needs audio files of the validation set")
    path = Path(path)
    target = path.with_suffix(".int8.onnx")
    if target.exists():
        raise FileExistsError(f"{target} exists: move it away first")
    part = target.with_name(target.name + ".part")
    model = Model(path)
    nodes = [node.name for node in onnx.load(path).graph.node]
    options = {
        "op_types_to_quantize": list(_QUANTIZED),
        "nodes_to_exclude": [n for n in nodes if not n.startswith(_NETWORK)],
        "weight_type": quantization.QuantType.QInt8,
    }
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)  # it advises a pre-processing
    try:
        if kind == "static":
            reader = _calibration(Model(path), files)
            quantization.quantize_static(
                path, part, reader, per_channel=True, **options
            )
        else:
            quantization.quantize_dynamic(path, part, **options)
        before, after = (_decisions(m, files) for m in (model, Model(part)))
        changed = float((before != after).mean())
        if changed > max_changed:
            raise ValueError(
                f"with {kind} int8 {100 * changed:.2g} % of {len(before)} "
                f"decisions change, more than {100 * max_changed:.2g} %"
            )
        os.replace(part, target)
    finally:
        logging.root.setLevel(level)
        part.unlink(missing_ok=True)
    return target, changed
