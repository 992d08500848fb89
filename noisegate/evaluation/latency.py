"""Times the cut models of a sweep, with torch and with onnxruntime.

One CPU thread, one segment at a time. The models are run in turn, round after
round, so that other load on the machine meets all alike: the ratio to the
dense model of the same run is worth more than the milliseconds.

Authors
 * The noisegate developers, 2026
"""

import contextlib
import copy
import importlib.metadata
import io
import itertools
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import torch
from tqdm import tqdm

from noisegate.evaluation.files import (
    markdown_table,
    read_json,
    write_atomically,
)
from noisegate.evaluation.results import SweepFolder
from noisegate.pretrained import load_yaml
from noisegate.probe import tensors
from noisegate.trial import MAX_NOISE, relative_difference

TOLERANCE = 1e-4  # other kernels, relative to the greatest output
_WARM_UP = 2  # rounds that are not counted
_EXPORTERS = {"tracing": False, "dynamo": True}  # the first is faster


def has_onnx():
    """Returns whether models can be exported and run.

    Returns
    -------
    bool
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        return False
    return True


def _outputs(model, inputs, seed=5):
    with torch.no_grad():
        torch.manual_seed(seed)
        return tensors(model(*copy.deepcopy(inputs)))


def _export(model, inputs, dynamo, expected):
    """What runs the exported model, and how its outputs differ from torch's."""
    import onnxruntime

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
        options.inter_op_num_threads = 1
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
    error = relative_difference(expected, session.run(None, feeds))
    return lambda: session.run(None, feeds), error


def to_onnx(model, inputs):
    """Exports a model with the first of torch's exporters that is exact.

    Arguments
    ---------
    model : torch.nn.Module
        A plain model, in evaluation mode.
    inputs : list
        Arguments of its forward. Their shapes become part of what is exported.

    Returns
    -------
    run : callable
        Runs it once in onnxruntime, on one thread and with these inputs;
        None if no exporter gives the outputs of torch.
    error : float
        Greatest difference to torch, relative to the greatest output; None
        without ``run``.
    exporter : str
        "tracing" or "dynamo"; None without ``run``.
    reasons : dict of str to str
        Why an exporter was not taken.
    """
    reasons = {}
    # Some models draw random numbers in evaluation
    expected = _outputs(model, inputs)
    noise = max(
        relative_difference(expected, _outputs(model, inputs, seed))
        for seed in (6, 7, 8)
    )
    for name, dynamo in _EXPORTERS.items():
        try:
            run, error = _export(model, inputs, dynamo, expected)
        except Exception as failure:  # whatever exporters raise
            text = (str(failure).strip().splitlines() or [""])[0]
            reasons[name] = f"{type(failure).__name__}: {text[:200]}"
            continue
        if error <= TOLERANCE + 4 * min(noise, MAX_NOISE):
            return run, error, name, reasons
        reasons[name] = f"outputs differ by {error:.1g}"
    return None, None, None, reasons


def _load(place):
    """The cut model of a cell, its input, and the seconds that this is."""
    path = place / "compact" / "hyperparams.yaml"
    if not path.exists():
        raise ValueError(f"{place} has no cut model (compact/hyperparams.yaml)")
    try:
        # Trained weights, for the comparison of outputs: those of a deep model
        # of fresh ones hardly depend on its input
        hparams = load_yaml(path.parent)
    except ImportError as error:
        raise ValueError(
            f"{path} cannot be built, is the folder of the recipe on "
            f"PYTHONPATH? {error}"
        ) from error
    shapes = hparams.get("input_shape")
    if not isinstance(shapes, dict) or "segment_s" not in hparams:
        raise ValueError(
            f"{path} does not say what its model reads: it is of an older "
            "noisegate, or the model reads more than one tensor. Run the "
            "cell again, or add the keys input_shape (by name of the module, "
            "as {model: [1, 401, 40]}) and segment_s"
        )
    try:
        ((name, shape),) = shapes.items()
        model = hparams["modules"][name].eval()
        x, seconds = torch.randn(shape), float(hparams["segment_s"])
        _outputs(model, [x])
    except Exception as error:  # of any of its layers
        raise ValueError(
            f"{path}: the model does not run, {type(error).__name__}: {error}"
        ) from error
    return model, x, seconds


def _cpu():
    """Name of the processor."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [x.partition(":")[2] for x in lines if x.startswith("model name")]
    return (names or [platform.processor() or platform.machine()])[0].strip()


def time_in_turn(runs, rounds):
    """Times functions in turn, so that a busy machine slows all of them.

    Arguments
    ---------
    runs : dict of object to callable
        What is timed, by any key; on one thread of torch, without gradients.
    rounds : int
        Times that each is called, of which the median counts.

    Returns
    -------
    dict of object to float
        Median seconds by the same keys.
    """
    seconds = {key: [] for key in runs}
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            for _ in tqdm(range(_WARM_UP + rounds), "rounds", leave=False):
                for key, run in runs.items():
                    start = time.perf_counter()
                    run()
                    seconds[key].append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    return {k: statistics.median(v[_WARM_UP:]) for k, v in seconds.items()}


def _peak_bytes(run):
    """The most bytes that are allocated at once within a call."""
    # Its library complains where there is no GPU
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    activities = [torch.profiler.ProfilerActivity.CPU]
    profiler = torch.profiler.profile(
        activities=activities, profile_memory=True, acc_events=True
    )
    with torch.inference_mode(), profiler as profile:
        run()
    events = profile.profiler.kineto_results.events()
    events = [event for event in events if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(itertools.accumulate(event.nbytes() for event in events))


def measure_run(folder, rounds=5):
    """Measures the cut model of a run by itself: without front-end and
    normalization, one segment, on one thread.

    Arguments
    ---------
    folder : pathlib.Path
        Of the run; has ``compact``.
    rounds : int
        Times that it is run, of which the median counts.

    Returns
    -------
    dict
        "ms_per_s" (milliseconds per second of audio), "peak_kb" (the most
        memory that its features take at once, without weights), "segment_s",
        "cpu".

    Raises
    ------
    ValueError
        If the model reads more than one tensor.
    """
    model, x, seconds = _load(folder)
    (median,) = time_in_turn({"": lambda: model(x)}, rounds).values()
    return {
        "ms_per_s": 1000 * median / seconds,
        "peak_kb": _peak_bytes(lambda: model(x)) / 1000,
        "segment_s": seconds,
        "cpu": _cpu(),
    }


def _dense(cell, cells):
    """The dense cell of the same seed, or the first one, or None."""
    dense = [other for other in cells if other.method == "dense"]
    same = [other for other in dense if other.seed == cell.seed]
    return next(iter(same + dense), None)


def measure_latency(sweep, rounds=15):
    """Times the cut models of all finished cells.

    Each is called with one segment, batch size 1: the input of the model
    alone, without front-end and normalization.

    Arguments
    ---------
    sweep : noisegate.evaluation.results.SweepFolder
        The sweep. All its models are held in memory.
    rounds : int
        Times that each model is run, of which the median counts.

    Returns
    -------
    dict
        "measured_with" and "cells", by name of the cell: "torch_ms_per_s" and
        "onnx_ms_per_s" (milliseconds per second of audio), "torch_ratio" and
        "onnx_ratio" (to the cell "dense": that of the same seed, else the
        first), "segment_s" (seconds), "input_shape". What is not known is
        None; "onnx_reason" says why there is no figure of onnxruntime.

    Raises
    ------
    ValueError
        If no cell is finished, or one has no cut model or none whose input is
        known.
    """
    if rounds < 1:
        raise ValueError(f"at least one round is needed, got {rounds}")
    cells = [cell for cell in sweep.cells if sweep.finished(cell.name)]
    if not cells:
        raise ValueError(f"no cell of {sweep.folder} is finished")
    loaded = {cell.name: _load(sweep.place(cell.name)) for cell in cells}
    with_onnx = has_onnx()
    runs, found = {}, {}
    for cell in tqdm(cells, "export to ONNX", leave=False):
        model, x, seconds = loaded[cell.name]
        run, reason = None, "onnx, onnxruntime and onnxscript are needed"
        if with_onnx:
            run, _, _, reasons = to_onnx(model, [x])
            reason = "; ".join(f"{k}: {v}" for k, v in reasons.items())
        runs["torch", cell.name] = lambda model=model, x=x: model(x)
        found[cell.name] = {"segment_s": seconds, "input_shape": list(x.shape)}
        if run is None:
            found[cell.name]["onnx_reason"] = reason
        else:
            runs["onnx", cell.name] = run
    medians = time_in_turn(runs, rounds)
    for cell in cells:
        figures, dense = found[cell.name], _dense(cell, cells)
        figures["dense"] = dense and dense.name
        for kind in ("torch", "onnx"):
            mine = medians.get((kind, cell.name))
            base = dense and medians.get((kind, dense.name))
            per_second = mine and 1000 * mine / figures["segment_s"]
            figures[f"{kind}_ms_per_s"] = per_second
            ratio = mine / base if mine and base else None
            figures[f"{kind}_ratio"] = ratio
    versions = {"torch": torch.__version__, "onnxruntime": None}
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        versions["onnxruntime"] = importlib.metadata.version("onnxruntime")
    return {
        "measured_with": {
            "cpu": _cpu(),
            "threads": 1,
            "batch_size": 1,
            "rounds": rounds,
            "versions": {"python": platform.python_version(), **versions},
        },
        "cells": found,
    }


def write_latency(folder, rounds=15):
    """Writes ``latency.json`` into the folder of a sweep.

    Arguments
    ---------
    folder : str
        The folder of the sweep.
    rounds : int
        See :func:`measure_latency`.

    Returns
    -------
    pathlib.Path
        The file.

    Raises
    ------
    ValueError
        If the folder holds no sweep, and as :func:`measure_latency`.
    """
    sweep = SweepFolder(folder)
    path = sweep.folder / "latency.json"
    write_atomically(
        path, json.dumps(measure_latency(sweep, rounds), indent=2) + "\n"
    )
    return path


def latency_note(folder):
    """Returns what a reader of the table of a sweep has to know.

    Arguments
    ---------
    folder : pathlib.Path
        The folder of the sweep.

    Returns
    -------
    str
        What was timed, and with what; empty without ``latency.json``.
    """
    path = Path(folder) / "latency.json"
    if not path.exists():
        return ""
    measured = read_json(path)
    how = measured["measured_with"]
    versions = how["versions"].items()
    versions = ", ".join(f"{name} {x}" for name, x in versions if x)
    lengths = {cell["segment_s"] for cell in measured["cells"].values()}
    lengths = ", ".join(f"{length:g}" for length in sorted(lengths))
    return (
        "Latency in milliseconds per second of audio, in brackets relative to "
        "the dense model: the model alone, without front-end, on one segment "
        f"of {lengths} s, with {how['threads']} thread of {how['cpu']}; median "
        f"of {how['rounds']} rounds in which the models were run in turn "
        f"({versions})."
    )


def describe_latency(measured):
    """Returns a table of latencies.

    Arguments
    ---------
    measured : dict
        See :func:`measure_latency`.

    Returns
    -------
    str
        Markdown, a line for each cell; below, why there are no figures of
        onnxruntime.

    Example
    -------
    >>> cell = {"torch_ms_per_s": 2.0, "torch_ratio": 0.5, "onnx_ratio": None}
    >>> cell.update(onnx_ms_per_s=None, onnx_reason="outputs differ")
    >>> print(describe_latency({"cells": {"noise_0.25_1": cell}}))
    | cell | torch, ms/s | of dense | onnxruntime, ms/s | of dense |
    | --- | --- | --- | --- | --- |
    | noise_0.25_1 | 2 | 0.5 | - | - |
    <BLANKLINE>
    noise_0.25_1 is not in onnxruntime: outputs differ
    """
    headings = ["cell", "torch, ms/s", "of dense"]
    headings += ["onnxruntime, ms/s", "of dense"]
    rows, reasons = [], []
    for name, cell in measured["cells"].items():
        figures = [
            cell[f"{kind}_{what}"]
            for kind in ("torch", "onnx")
            for what in ("ms_per_s", "ratio")
        ]
        rows.append(
            [name, *("-" if x is None else f"{x:.3g}" for x in figures)]
        )
        if "onnx_reason" in cell:
            reason = cell["onnx_reason"]
            reasons.append(f"{name} is not in onnxruntime: {reason}")
    table = markdown_table(headings, rows)
    return "\n".join([table, "", *reasons]) if reasons else table
