#!/usr/bin/env python3
"""Gates on all kinds of models: what can be gated, and is it exact?

> python benchmarks/zoo.py [--only PATTERN]
> python benchmarks/zoo.py --table benchmarks/README.md

Each model of zoo_models.py is measured in a process of its own and under a
time limit. All times are those of the processor, so that a busy machine does
not change them. Results are written to benchmarks/results/zoo.json after each
model; a model that is in it is not measured again unless --again is given.

Authors
 * The noisegate developers, 2026
"""

import argparse
import copy
import fnmatch
import io
import json
import logging
import math
import re
import statistics
import sys
import time
import warnings
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(1, str(Path(sys.path[0], "recipes", "ASVspoof")))

from benchmarks import zoo_export, zoo_rival
from benchmarks.zoo_models import ZOO, build
from benchmarks.zoo_processes import limited
from noisegate.compact import compact
from noisegate.cost import count_macs
from noisegate.evaluation.files import (
    fill_blocks,
    markdown_table,
    write_atomically,
)
from noisegate.gates import Gates
from noisegate.loss import ComplexityLoss
from noisegate.probe import tensors
from noisegate.trial import relative_difference
from tests.unittests.models import corrected, corrections

RESULTS = Path(__file__).parent / "results" / "zoo.json"
LIMIT_S = 900  # of a model, without the parts that follow
LIMIT_PART_S = 200  # of export, of torch-pruning and so on
TOLERANCE = 1e-5  # of float32, relative to the greatest output
STEP_S = 0.3  # the batch grows until a plain training step takes as long
ROUNDS = 9
# Where the measurement itself cannot say why
NOTES = {
    "HiFi-GAN discriminator": "its feature maps are outputs",
    "Leaf": "a single layer",
    "RawNet2": "its band-pass filters are fixed, and most of the cost",
    "L2I Theta": "one layer between input and output",
}


# ---------------------------------------------------------------------------
# Parts of the measurement


def run(model, inputs, seed=5):
    """The floating point outputs of one evaluation pass."""
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        outputs = tensors(model(*copy.deepcopy(inputs)))
    return [x for x in outputs if x.is_floating_point()]


def scrambled(gates, seed):
    """Gives the channels of all gates a random order, and their widths."""
    draw = torch.Generator().manual_seed(seed)
    widths = {}
    for name, gate in gates.items():
        gate.reorder(torch.rand(gate.size, generator=draw))
        low, high = gate.min_width, gate.size
        steps = torch.randint(
            low // gate.granularity,
            high // gate.granularity + 1,
            (),
            generator=draw,
        )
        widths[name] = int(steps) * gate.granularity
    return widths


def half_widths(gates):
    """Half of all channels, or what comes next to it."""
    return {
        name: max(
            gate.min_width,
            gate.size // 2 // gate.granularity * gate.granularity,
        )
        for name, gate in gates.items()
    }


def cuts(gates):
    """Yields frozen copies of gates: random, half and smallest widths."""
    for seed in range(3):
        chosen = copy.deepcopy(gates)
        widths = scrambled(chosen, seed)
        if seed == 1:
            widths = half_widths(chosen)
        if seed == 2:
            widths = chosen.min_widths()
        chosen.freeze(widths)
        chosen.model.eval()
        yield chosen, widths


def _as_float64(value):
    if torch.is_tensor(value):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, (list, tuple)):
        return [_as_float64(item) for item in value]
    return value


def _difference64(gates, inputs):
    """The same in float64, None for models that run in float32 only."""
    inputs = _as_float64(inputs)
    try:
        gates = copy.deepcopy(gates)
        gates.model.double()
        small, _ = compact(gates)
        return relative_difference(run(gates.model, inputs), run(small, inputs))
    except RuntimeError:
        return None


def _worst(errors):
    """The greatest; max() of Python may pass over NaN."""
    return float(torch.tensor(errors, dtype=torch.float64).max())


def exactness(name, gates, inputs):
    """Whether cut models equal masked ones, cost what is said, and load."""
    errors, errors64, costs, loads = [], [], [], []
    passes = [run(gates.model, inputs, seed) for seed in (5, 6)]
    noise = relative_difference(*passes)
    for chosen, widths in cuts(gates):
        small, _ = compact(chosen)
        expected, made = run(chosen.model, inputs), run(small, inputs)
        errors.append(relative_difference(expected, made))
        errors64.append(_difference64(chosen, inputs))
        counted = count_macs(small, copy.deepcopy(inputs))
        costs.append([round(float(chosen.cost.macs(widths))), counted])
        file = io.BytesIO()
        torch.save(small.state_dict(), file)
        file.seek(0)
        lines = corrections(build(name)[0], small)
        loaded = corrected(build(name)[0], lines)
        loaded.load_state_dict(torch.load(file, weights_only=True))
        loads.append(relative_difference(made, run(loaded, inputs)))
    known = [error for error in errors64 if error is not None]
    return {
        "error": _worst(errors),
        "error64": _worst(known) if len(known) == 3 else None,
        "own_noise": noise,
        "exact": _worst(errors) <= TOLERANCE + 4 * noise,
        "macs_said_and_counted": costs,
        "loaded_error": _worst(loads),
    }


def larger(inputs, times):
    """A batch of the example, ``times`` as large."""
    if torch.is_tensor(inputs):
        return inputs.repeat(times, *[1] * (inputs.dim() - 1))
    if isinstance(inputs, (list, tuple)):
        return [larger(item, times) for item in inputs]
    return inputs


def task_loss(model, inputs):
    """Mean square of the outputs, without infinite ones (of masks)."""
    outputs = tensors(model(*copy.deepcopy(inputs)))
    return sum(
        x.masked_fill(x.isinf(), 0.0).square().mean()
        for x in outputs
        if x.requires_grad
    )


def training(gates, inputs):
    """One training step in the middle of the gates' ranges."""
    gates = copy.deepcopy(gates)
    model = gates.model.train()
    for gate in gates.values():
        gate.set_width(max(gate.min_width + 0.5, gate.size - 1.5))
    before = {name: float(k) for name, k in gates.widths().items()}
    optimizer = torch.optim.Adam(gates.parameters(), 1e-3)
    torch.manual_seed(0)
    task_loss(model, larger(inputs, 2)).backward()
    of_task = [
        name
        for name, gate in gates.items()
        if gate.kappa.grad is not None and bool(gate.kappa.grad != 0)
    ]
    ComplexityLoss(gates, weight=1.0)().backward()
    finite = all(
        gate.kappa.grad is not None and bool(gate.kappa.grad.isfinite())
        for gate in gates.values()
    )
    optimizer.step()
    gates.clamp()
    gates.reorder()
    after = {name: float(k) for name, k in gates.widths().items()}
    return {
        "finite_gradients": finite,
        "moved": sum(before[name] != after[name] for name in before),
        "moved_by_the_task": len(of_task),
        "not_moved_by_the_task": sorted(set(before) - set(of_task)),
    }


def stepper(model, inputs, gates=None):
    """Returns a function that times one training step."""
    of_gates = [] if gates is None else gates.parameters()
    taken = {id(p) for p in of_gates}
    weights = [
        p for p in model.parameters() if id(p) not in taken and p.requires_grad
    ]
    groups = [{"params": weights}]
    if gates is not None:
        groups.append({"params": of_gates})
    optimizer = torch.optim.Adam(groups, 1e-5)
    complexity = None if gates is None else ComplexityLoss(gates, weight=0.1)
    model.train()

    def step():
        for gate in gates.values() if gates is not None else ():
            gate.set_width(gate.size)
        start = time.thread_time()
        loss = task_loss(model, inputs)
        if complexity is not None:
            loss = loss + complexity()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return time.thread_time() - start

    return step


def step_times(plain, gates, inputs):
    """Training steps with open gates against plain ones, in turn."""
    times = 2
    while True:
        batch = larger(inputs, times)
        step = stepper(plain, batch)
        step()
        seconds = min(step() for _ in range(2))
        if seconds >= STEP_S or times >= 1024:
            break
        times *= 2 ** max(1, min(4, int(math.log2(STEP_S / seconds))))
        times = min(times, 1024)
    gated = stepper(gates.model, batch, gates)
    gated()
    pairs = []
    for i in range(max(3, min(ROUNDS, int(5 / seconds)))):
        if i % 2:
            pairs.append((step(), gated()))
        else:
            b = gated()
            pairs.append((step(), b))
    return {
        "batch": times,
        "plain_ms": 1000 * statistics.median(a for a, _ in pairs),
        "ratio": statistics.median(b / a for a, b in pairs),
    }


def gating(name, rival=None):
    """All that is measured of one model; the rival's figures may be at hand."""
    model, inputs = build(name)
    result = {"parameters": sum(p.numel() for p in model.parameters())}
    plain = copy.deepcopy(model)
    start = time.thread_time()
    try:
        gates = Gates(model, example=copy.deepcopy(inputs))
    except ValueError as error:
        result["not_gated"] = " ".join(str(error).split())
        result["pruning"] = rival or limited(
            LIMIT_PART_S, zoo_rival.measure, plain, inputs, None
        )
        return result
    result["probing_s"] = time.thread_time() - start
    result["groups"] = {n: g.size for n, g in gates.items()}
    result["fixed"] = {
        g.name: g.locked_reason for g in gates.groups if g.locked_reason
    }
    full = gates.cost.macs()
    result["macs"] = full
    least = gates.cost.macs(gates.min_widths())
    result["gateable"] = 1 - float(least) / max(1, full)
    result["open_is_plain"] = all(
        torch.equal(x, y)
        for x, y in zip(run(plain, inputs), run(gates.model, inputs))
    )
    for part, function, args in (
        ("exactness", exactness, (name, gates, inputs)),
        ("training", training, (gates, inputs)),
        ("onnx", zoo_export.measure, (plain, gates, inputs)),
        ("pruning", zoo_rival.measure, (plain, inputs, gates)),
        ("step", step_times, (plain, gates, inputs)),
    ):
        if part == "pruning" and rival:
            result[part] = rival
        else:
            result[part] = limited(LIMIT_PART_S, function, *args)
    return result


# ---------------------------------------------------------------------------
# The table


def _yes(value):
    return "yes" if value else "**no**"


def _cells(name, result):
    """One row of the table."""
    rival = result.get("pruning", {})
    if "failed" in rival:
        theirs = ["-", "-"]
    else:
        theirs = [f"{rival['own_exact']} / {rival['own_groups']}"]
        theirs.append(
            f"{rival['ours_exact']} / {rival['ours']}" if rival["ours"] else "-"
        )
    if "groups" not in result:
        return [name, "0", *["-"] * 8, *theirs]
    exact = result["exactness"]
    if "failed" in exact:
        exact = None
    macs = exact and all(a == b for a, b in exact["macs_said_and_counted"])
    step = result["training"]
    moves = "failed" not in step and (
        step["finite_gradients"] and step["moved"] == len(result["groups"])
    )
    export = result["onnx"]
    onnx = export.get("skipped") or _yes(export.get("parity"))
    ratio = result["step"].get("ratio")
    return [
        name,
        str(len(result["groups"])),
        f"{100 * result['gateable']:.0f} %",
        f"{result['probing_s']:.1f}",
        _yes(exact and exact["exact"]),
        _yes(macs),
        _yes(exact and exact["loaded_error"] <= TOLERANCE),
        _yes(moves),
        onnx,
        "-" if ratio is None else f"{ratio:.2f}",
        *theirs,
    ]


HEADINGS = [
    "model",
    "gated groups",
    "MACs gateable",
    "probing, s",
    "cut exact",
    "MACs said = counted",
    "loads again",
    "step moves all widths",
    "ONNX",
    "step time",
    "torch-pruning: its groups exact",
    "torch-pruning: our groups exact",
]


def remarks(name, result):
    """Yields what has to be explained about a model."""
    if "failed" in result:
        yield result["failed"]
        return
    if name in NOTES:
        yield NOTES[name]
    if "not_gated" in result:
        yield f"not gated: {result['not_gated']}"
    by_reason = {}
    for group, reason in result.get("fixed", {}).items():
        if not reason.startswith(("the output of", "the input of")):
            # "layer.0 convolves over it", and layer.1 does too
            reason = re.sub(r"^\S+ (?=convolves)", "it ", reason)
            by_reason.setdefault(reason, []).append(f"`{group}`")
    for reason, groups in by_reason.items():
        more = f" and {len(groups) - 3} more" if len(groups) > 3 else ""
        keep = "keeps its width" if len(groups) == 1 else "keep their widths"
        reason = re.sub("^it ", "the layer behind ", reason)
        yield f"{', '.join(groups[:3])}{more} {keep}: {reason}"
    for part in ("exactness", "training", "step"):
        if "failed" in result.get(part, {}):
            yield f"{part}: {result[part]['failed']}"
    exact = result.get("exactness", {})
    if "error" in exact and not exact["exact"]:
        yield f"the cut model differs by {exact['error']:.1g}"
    if exact.get("own_noise"):
        yield f"draws random numbers in evaluation: {exact['own_noise']:.1g}"
    for said, counted in exact.get("macs_said_and_counted", []):
        if said != counted:
            yield f"MACs said {said}, counted {counted}"
            break
    stuck = result.get("training", {}).get("not_moved_by_the_task")
    if stuck:
        yield f"no gradient of the task in {', '.join(stuck)}"
    export = result.get("onnx", {})
    if "parity" in export and not export["parity"]:
        yield f"ONNX: {export['reason']}"
    if "failed" in export:
        yield f"ONNX: {export['failed']}"
    if "failed" in result.get("pruning", {}):
        yield f"torch-pruning: {result['pruning']['failed']}"


def _short(text, size=230):
    text = text.replace("|", "\\|").replace("<", "&lt;")
    return text if len(text) <= size else text[: size - 3] + "..."


def summary(results):
    """The figures that the goals are about.

    Arguments
    ---------
    results : dict
        By name of the model.

    Returns
    -------
    list of str
        Lines.
    """
    gated = {n: r for n, r in results.items() if "groups" in r}

    def count(test):
        return sum(bool(test(r)) for r in gated.values())

    def macs_agree(r):
        pairs = r["exactness"].get("macs_said_and_counted", [(0, 1)])
        return all(said == counted for said, counted in pairs)

    ratios = [
        r["step"]["ratio"] for r in gated.values() if "ratio" in r["step"]
    ]
    groups = sum(len(r["groups"]) for r in gated.values())
    rivals = [r.get("pruning", {"failed": ""}) for r in results.values()]
    built = [r for r in rivals if "failed" not in r]
    exported = count(lambda r: r["onnx"].get("parity"))
    plain = count(lambda r: r["onnx"].get("plain_exports") is False)
    exact = count(lambda r: r["exactness"].get("exact"))
    whole = sum(r["ours"] > 0 and r["ours_exact"] == r["ours"] for r in built)
    return [
        f"- {len(results)} of {len(ZOO)} models measured, {len(gated)} gated "
        f"({groups} groups); all groups exact on {exact}.",
        f"- {count(lambda r: r['gateable'] >= 0.7)} models with at least 70 % "
        "of their MACs gateable.",
        f"- MACs said = counted on {count(macs_agree)}; loaded again on "
        f"{count(lambda r: r['exactness'].get('loaded_error', 1) <= 1e-5)}; a "
        "training step moves all widths on "
        f"{count(lambda r: r['training'].get('moved') == len(r['groups']))}.",
        f"- The cut model runs in onnxruntime with equal outputs on {exported};"
        f" of the others {plain} cannot be exported uncut either.",
        "- Training step with open gates over plain: median "
        f"{statistics.median(ratios):.2f}, "
        f"{min(ratios):.2f} to {max(ratios):.2f}."
        if ratios
        else "",
        f"- torch-pruning builds its graph for {len(built)} models; it cuts "
        f"{sum(r['own_exact'] for r in built)} of its own "
        f"{sum(r['own_groups'] for r in built)} groups exactly "
        f"({sum(r['own_runs'] for r in built)} run), "
        f"{sum(r['ours_exact'] for r in built)} of our {groups}, and on "
        f"{whole} models all of ours.",
    ]


def write_table(readme):
    """Writes the figures on disk into the block "zoo" of a Markdown file.

    Arguments
    ---------
    readme : str
        Path of the file.
    """
    results = json.loads(RESULTS.read_text(encoding="utf-8"))["models"]
    results = {name: results[name] for name in ZOO if name in results}
    lines = [*filter(None, summary(results)), ""]
    rows = []
    for name, result in results.items():
        if "failed" in result:
            row = [name, "failed", *["-"] * (len(HEADINGS) - 2)]
        else:
            row = _cells(name, result)
        rows.append(row)
    lines.append(markdown_table(HEADINGS, rows))
    lines += ["", "What the table cannot say:", ""]
    for name, result in results.items():
        lines += [f"- {name}: {_short(r)}" for r in remarks(name, result)]
    fill_blocks(readme, zoo="\n".join(lines))


def main():
    """Measures what is asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", metavar="PATTERN", default="*")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--keep_rival", action="store_true")
    parser.add_argument("--table", metavar="README")
    args = parser.parse_args()
    if args.table:
        write_table(args.table)
        return
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.disable(logging.CRITICAL)
    report = {"models": {}}
    if RESULTS.exists():
        report = json.loads(RESULTS.read_text(encoding="utf-8"))
    report["torch"] = torch.__version__
    if not args.keep_rival:
        report["torch_pruning"] = zoo_rival.version()
    for name in ZOO:
        done = name in report["models"] and not args.again
        if done or not fnmatch.fnmatch(name, args.only):
            continue
        start = time.monotonic()
        rival = report["models"].get(name, {}).get("pruning")
        rival = rival if args.keep_rival else None
        result = limited(LIMIT_S, gating, name, rival)
        report["models"][name] = result
        write_atomically(RESULTS, json.dumps(report, indent=1) + "\n")
        if "failed" in result:
            row = [name, "failed"]
        else:
            row = _cells(name, result)
        seconds = time.monotonic() - start
        print(*row, f"{seconds:.0f} s", sep=" | ", flush=True)
        for remark in remarks(name, result):
            print("   ", remark[:300], flush=True)


if __name__ == "__main__":
    main()
