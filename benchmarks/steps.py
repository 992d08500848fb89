#!/usr/bin/env python3
"""Training steps of five models, plain and with gates, on one device.

> python benchmarks/steps.py FOLDER [--device cuda] [--seconds 200] [--models=]
> python benchmarks/steps.py FOLDER --save=h200 --commit=$(git rev-parse HEAD)
> python benchmarks/steps.py --table benchmarks/README.md  # of what was saved

For each model a file ``FOLDER/steps_*.json`` with, in fp32 and bf16,

* the times of a step: the plain model, its gates open, at half of the
  channels, final (at half of the MACs), the cut model, with ``--aligned`` the
  model cut to multiples of 8, and with ``--compile`` the first three compiled.
  All are timed in turn in one process; a ratio is
  the median of the ratios within a round;
* how much more memory than before a step takes at most;
* how often a step makes the host wait for the device.

What has a file is not measured again. ``--seconds`` is the time after which
no further measurement is begun. ``--device=cpu`` takes small models, to see
that all of it runs, unless ``--batch`` is given.

Authors
 * The noisegate developers, 2026
"""

import argparse
import json
import platform
import statistics
import sys
import time
import warnings
from pathlib import Path

import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN
from speechbrain.lobes.models.transformer.Conformer import ConformerEncoder
from speechbrain.nnet.attention import RelPosEncXL
from torch.utils._python_dispatch import TorchDispatchMode

from noisegate import ComplexityLoss, Gates, compact
from noisegate.evaluation.files import (
    fill_blocks,
    markdown_table,
    write_atomically,
)
from noisegate.evaluation.methods import derive

ROOT = Path(__file__).parents[1]
TIMES = ROOT / "benchmarks" / "results" / "times.json"
sys.path.append(str(ROOT / "recipes" / "ASVspoof"))

from resnet34 import ResNet34  # noqa: E402

WARM_UP = 3
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16}
WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select")


class Encoder(torch.nn.Module):
    """The Conformer of SpeechBrain's recipes for LibriSpeech, one tensor in
    and one out."""

    def __init__(self, n_layers, d_model, d_ffn, nhead):
        super().__init__()
        self.project = torch.nn.Linear(80, d_model)
        self.position = RelPosEncXL(d_model)
        self.encoder = ConformerEncoder(
            n_layers, d_model, d_ffn, nhead, dropout=0.1
        )

    def forward(self, feats):
        """Returns the features (batch, frames, d_model) of fbanks."""
        x = self.project(feats)
        return self.encoder(x, pos_embs=self.position(x))[0]


class Wav2Vec2(torch.nn.Module):
    """wav2vec2 of transformers, random weights, one tensor in and one out."""

    def __init__(self, **sizes):
        super().__init__()
        from transformers import Wav2Vec2Config, Wav2Vec2Model

        # Both drop by numbers that are drawn on the host
        config = Wav2Vec2Config(layerdrop=0.0, mask_time_prob=0.0, **sizes)
        self.net = Wav2Vec2Model(config)

    def forward(self, wavs):
        """Returns the features (batch, frames, hidden) of waveforms."""
        return self.net(wavs).last_hidden_state


def crnn(small):
    """The detector of recipes/VAD."""
    path = ROOT / "recipes" / "VAD" / "hparams" / "crnn_gated.yaml"
    text = derive(path.read_text(encoding="utf-8"), "dense")
    values = load_hyperpyyaml(text)
    shape = (4 if small else 256, 401, values["n_mels"])
    return values["model"], shape


def resnet34(small):
    """The network of recipes/ASVspoof."""
    model = ResNet34(width=0.25 if small else 1.0)
    return model, ((2, 64, 96) if small else (128, 401, 96))


def ecapa(small):
    """ECAPA-TDNN of SpeechBrain's recipe for VoxCeleb."""
    widths = [32, 32, 32, 32, 96] if small else [1024] * 4 + [3072]
    model = ECAPA_TDNN(
        80,
        channels=widths,
        lin_neurons=192,
        attention_channels=16 if small else 128,
        se_channels=16 if small else 128,
    )
    return model, ((2, 40, 80) if small else (128, 301, 80))


def conformer(small):
    """A Conformer encoder: 12 layers of 512 channels, 8 heads."""
    sizes = (1, 32, 64, 4) if small else (12, 512, 2048, 8)
    return Encoder(*sizes), ((2, 40, 80) if small else (32, 400, 80))


def wav2vec2(small):
    """wav2vec2-base, 4 s of audio."""
    sizes = {}
    if small:
        sizes = dict(hidden_size=32, num_hidden_layers=2, intermediate_size=64)
        sizes |= dict(num_attention_heads=4, conv_dim=(32,) * 7)
        sizes |= dict(num_conv_pos_embedding_groups=4)
    return Wav2Vec2(**sizes), ((2, 8000) if small else (32, 64000))


MODELS = {
    function.__name__: function
    for function in (crnn, ecapa, resnet34, conformer, wav2vec2)
}


class Waits(TorchDispatchMode):
    """Counts what would make the host wait for a GPU, on any device."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.split("::")[1]
        if name in WAITING:
            self.names.append(name)
        return function(*args, **(kwargs or {}))


class Steps:
    """Training steps of a model, with gates if there are any."""

    def __init__(self, model, x, dtype, gates=None):
        self.model, self.x, self.dtype, self.gates = model, x, dtype, gates
        of_gates = [] if gates is None else gates.parameters()
        ids = {id(parameter) for parameter in of_gates}
        weights = [p for p in model.parameters() if id(p) not in ids]
        # No steps of a size: what is timed shall stay as it was
        self.optimizers = [torch.optim.Adam(weights, lr=0.0)]
        self.loss = None
        if gates is not None:
            self.optimizers.append(torch.optim.Adam(of_gates, lr=0.0))
            self.loss = ComplexityLoss(gates, budget=0.5)
        self.call = model

    def compile(self):
        """From now on the model is compiled."""
        self.call = torch.compile(self.model)

    def set_widths(self, share):
        """The width of each gate, as a share of its channels."""
        for gate in self.gates.values():
            gate.set_width(max(gate.min_width, share * gate.size))
        self.gates.clamp()

    def step(self):
        """Forward, backward, optimizers: what SpeechBrain's Brain does
        between its hooks."""
        device = self.x.device.type
        with torch.autocast(device, self.dtype, self.dtype is not None):
            loss = self.call(self.x).float().square().mean()
        if self.loss is not None:
            loss = loss + self.loss()
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def behind(self):
        """What ``GatedBrain`` does behind a step."""
        self.gates.clamp()
        self.loss.step(0.5)


def synchronize(device):
    """Waits for all that was started."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def timed(function, device):
    """Milliseconds that a call takes, with what it starts."""
    synchronize(device)
    start = time.perf_counter()
    function()
    synchronize(device)
    return 1000 * (time.perf_counter() - start)


def compare(functions, rounds, device):
    """Median ms by name, and the median ratio to the first."""
    for function in functions.values():
        for _ in range(WARM_UP):
            function()
    rows = [
        {name: timed(function, device) for name, function in functions.items()}
        for _ in range(rounds)
    ]
    first = next(iter(functions))
    return {
        name: {
            "ms": statistics.median(row[name] for row in rows),
            "ratio": statistics.median(row[name] / row[first] for row in rows),
        }
        for name in functions
    }


def peak_mb(function, device):
    """How many MB more than before a call takes at most; None on a CPU."""
    if device.type != "cuda":
        return None
    synchronize(device)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    synchronize(device)
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def waits(function, device):
    """How often a call makes the host wait for the device."""
    if device.type != "cuda":
        with Waits() as counted:
            function()
        return len(counted.names)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            function()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


class Pair:
    """A model with gates, and the same one without."""

    def __init__(self, name, device, batch, granularity=1):
        torch.manual_seed(0)
        start = time.perf_counter()
        model, shape = MODELS[name](device.type == "cpu" and batch is None)
        shape = (batch or shape[0], *shape[1:])
        example = [torch.randn(1, *shape[1:])]
        self.gates = Gates(model, example=example, granularity=granularity)
        cost = self.gates.cost
        self.about = {
            "model": name,
            "device": card(device),
            "torch": torch.__version__,
            "batch": list(shape),
            "gates": len(self.gates),
            "parameters": cost.params(),
            "macs_per_example": cost.macs(),
            "attach_s": time.perf_counter() - start,
        }
        self.plain = self.gates.plain_copy().to(device).train()
        self.gated = model.to(device).train()
        self.x, self.device = torch.randn(shape, device=device), device

    def learning(self, dtype, rounds, compiled):
        """Figures of the time in which widths are learned."""
        plain = Steps(self.plain, self.x, dtype)
        gated = Steps(self.gated, self.x, dtype, self.gates)

        def at(share):
            """A step as after an optimizer step and ``clamp``."""

            def step():
                gated.set_widths(share)
                gated.step()

            return step

        steps = {"plain": plain.step, "open": at(1.0), "half": at(0.5)}
        found = {"steps": compare(steps, rounds, self.device)}
        found["peak_mb"] = {
            k: peak_mb(v, self.device) for k, v in steps.items()
        }
        found["waits"] = {"plain": waits(plain.step, self.device)}
        for name, share in (("open", 1.0), ("half", 0.5)):
            gated.set_widths(share)
            found["waits"][name] = waits(gated.step, self.device)
        found["waits"]["behind a step"] = waits(gated.behind, self.device)
        if compiled:
            plain.compile()
            gated.compile()
            found["compiled"] = compare(steps, rounds, self.device)
        return found

    def freeze(self):
        """Final widths, at half of the MACs."""
        widths = ComplexityLoss(self.gates, budget=0.5).freeze()
        self.cut = compact(self.gates)[0].to(self.device).train()
        return float(self.gates.cost.ratio(widths))

    def final(self, dtype, rounds, aligned):
        """Figures of the time behind that."""
        models = {"plain": self.plain, "frozen": self.gated, "cut": self.cut}
        if aligned is not None:
            models["aligned"] = aligned.cut
        steps = {k: Steps(m, self.x, dtype).step for k, m in models.items()}
        found = {"final": compare(steps, rounds, self.device)}
        found["peak_mb"] = {
            k: peak_mb(v, self.device) for k, v in steps.items()
        }
        found["waits"] = {"frozen": waits(steps["frozen"], self.device)}
        return found


def measure(name, device, batch, rounds, precisions, compiled, aligned):
    """The figures of one model, by precision."""
    pair = Pair(name, device, batch)
    kinds = {kind: PRECISIONS[kind] for kind in precisions}
    results = {}
    for kind, dtype in kinds.items():
        found = pair.learning(dtype, rounds, compiled)
        results[kind] = {**pair.about, "precision": kind, **found}
    ratio = pair.freeze()
    other = None
    if aligned:
        other = Pair(name, device, batch, granularity=8)
        other.freeze()
    for kind, dtype in kinds.items():
        found = pair.final(dtype, rounds, other)
        for key in ("peak_mb", "waits"):
            results[kind][key] |= found.pop(key)
        results[kind] |= {"macs_ratio": ratio, **found}
    return results


def card(device):
    """The name of what was measured on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def run(arguments, names, device):
    """Measures what is not in the folder yet, as long as there is time."""
    end = time.monotonic() + arguments.seconds
    arguments.folder.mkdir(parents=True, exist_ok=True)
    how = arguments.batch, arguments.rounds, arguments.precisions.split(",")
    for name in names:
        path = arguments.folder / f"steps_{name}.json"
        if path.exists() or time.monotonic() > end:
            print("there:" if path.exists() else "left:", path.name)
            continue
        chosen = arguments.compile, arguments.aligned
        chosen = [name in listed.split(",") for listed in chosen]
        try:
            found = measure(name, device, *how, *chosen)
        except ImportError as error:  # transformers is no dependency
            print(f"{name}: left out, {error}")
            continue
        write_atomically(path, json.dumps(found, indent=1))
        print(json.dumps(found), flush=True)
        if device.type == "cuda":
            torch.cuda.empty_cache()


def saved_times(kind):
    """What was saved of a kind ("steps", "speed"): dict by name."""
    saved = json.loads(TIMES.read_text(encoding="utf-8"))
    return {k: v for k, v in saved.items() if k.startswith(f"{kind}_")}


def save_times(name, found):
    """Puts what was measured into ``results/times.json``."""
    saved = json.loads(TIMES.read_text(encoding="utf-8"))
    text = json.dumps({**saved, name: found}, indent=1)
    write_atomically(TIMES, text + "\n")


def save(folder, name, commit):
    """Gathers what was measured of all models."""
    rows = []
    for path in sorted(folder.glob("steps_*.json")):
        for row in json.loads(path.read_text(encoding="utf-8")).values():
            rows.append({**row, "commit": commit})
    save_times(f"steps_{name}", rows)


def table(path):
    """Fills the tables of a README with what was saved."""
    saved = saved_times("steps")
    fill_blocks(path, **{name: _table(rows) for name, rows in saved.items()})


def _table(found):
    """The table of one device."""
    order = list(MODELS)
    found.sort(key=lambda row: (order.index(row["model"]), row["precision"]))
    header = (
        "model, batch",
        "precision",
        "gates",
        "plain, ms",
        *("open", "half", "frozen", "cut", "cut to multiples of 8"),
        "compiled: plain, ms",
        *("open", "half"),
        "waits of a step: plain / half",
        "memory, GB: plain / half / cut",
    )
    rows = []
    for row in found:
        steps, final = row["steps"], row["final"]
        both = row.get("compiled")
        memory = [row["peak_mb"][key] for key in ("plain", "half", "cut")]
        memory = [f"{mb / 1024:.1f}" if mb else "-" for mb in memory]
        rows.append(
            (
                f"{row['model']}, {' × '.join(map(str, row['batch']))}",
                row["precision"],
                row["gates"],
                f"{steps['plain']['ms']:.1f}",
                *(f"{steps[key]['ratio']:.2f}" for key in ("open", "half")),
                *(f"{final[key]['ratio']:.2f}" for key in ("frozen", "cut")),
                f"{final['aligned']['ratio']:.2f}"
                if "aligned" in final
                else "-",
                f"{both['plain']['ms']:.1f}" if both else "-",
                *(
                    f"{both[key]['ratio']:.2f}" if both else "-"
                    for key in ("open", "half")
                ),
                # Of a CPU they are those of Adam, which counts there
                f"{row['waits']['plain']} / {row['waits']['half']}"
                if row["peak_mb"]["plain"]
                else "-",
                " / ".join(memory),
            )
        )
    how = {(row["device"], row["torch"], row["commit"]) for row in found}
    where = "; ".join(f"{a}, torch {b}, commit {c}" for a, b, c in sorted(how))
    return f"{where}.\n\n{markdown_table(header, rows)}"


def main():
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=200)
    parser.add_argument("--batch", type=int, help="else sizes for a device")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--precisions", default=",".join(PRECISIONS))
    parser.add_argument("--compile", default="", help="models, by commas")
    parser.add_argument("--aligned", default="", help="models, by commas")
    parser.add_argument("--save", help="name in results/times.json")
    parser.add_argument("--commit", help="that was measured")
    parser.add_argument("--table", type=Path, help="README to fill")
    arguments = parser.parse_args()
    if arguments.table:
        table(arguments.table)
        return
    if arguments.folder is None:
        parser.error("give a folder for the figures, or --table")
    if arguments.save:
        save(arguments.folder, arguments.save, arguments.commit)
        return
    names = arguments.models.split(",")
    if unknown := set(names) - set(MODELS):
        parser.error(f"--models: {sorted(unknown)} are none of {[*MODELS]}")
    run(arguments, names, torch.device(arguments.device))


if __name__ == "__main__":
    main()
