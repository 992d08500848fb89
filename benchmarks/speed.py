#!/usr/bin/env python3
"""Speed of gated training steps and of compacted models, as ratios.

> python benchmarks/speed.py [--device cpu] [--threads 1] [--rounds 20]
> python benchmarks/speed.py --table README.md   # from the figures on disk

Everything that is compared is timed in turn within this one process; the
ratio of a pair is the median over rounds of the ratio within the round.
Figures are written to benchmarks/results/times.json.

Authors
 * The noisegate developers, 2026
"""

import argparse
import platform
import sys
import tempfile
from pathlib import Path

import torch
from hyperpyyaml import load_hyperpyyaml
from steps import compare, save_times, saved_times

from noisegate.compact import compact, constructor, save_compact
from noisegate.evaluation.files import fill_blocks, markdown_table
from noisegate.evaluation.methods import derive

ROOT = Path(__file__).parents[1]
HPARAMS = ROOT / "recipes" / "VAD" / "hparams"
FRAMES, BATCH = 401, 16


NAMES = {"crnn": "CRNN", "transformer": "Transformer"}


def load(model, device, method="noise"):
    """Loads a recipe's YAML for a method of sweeps."""
    text = (HPARAMS / f"{model}_gated.yaml").read_text(encoding="utf-8")
    loaded = load_hyperpyyaml(derive(text, method))
    loaded["model"].to(device)
    return loaded


def train_step(hparams, x, y):
    """Returns a function that makes one training step, and its model."""
    model, gates = hparams["model"], hparams["gates"]
    of_gates = {id(p) for p in gates.parameters()}
    weights = [p for p in model.parameters() if id(p) not in of_gates]
    optimizers = [hparams["opt_class"](weights)]
    if gates:
        optimizers.append(hparams["gate_opt_class"](gates.parameters()))

    def step(kappa=1.0):
        for gate in gates.values():
            if gate.frozen is None:
                gate.set_width(max(gate.min_width, kappa * gate.size))
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            model(x).squeeze(-1), y
        )
        if gates:
            loss = loss + hparams["complexity_loss"]().to(loss.device)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return step


def step_times(model, rounds, device):
    """Training steps: plain, open gates, half-open gates, frozen gates."""
    torch.manual_seed(0)
    x = torch.randn(BATCH, FRAMES, 80, device=device)
    y = (torch.rand(BATCH, FRAMES, device=device) > 0.5).float()
    plain = train_step(load(model, device, "dense"), x, y)
    gated = train_step(load(model, device), x, y)
    halves = train_step(load(model, device), x, y)
    stochastic = train_step(load(model, device, "hard_concrete"), x, y)
    fixed = load(model, device)
    fixed["complexity_loss"].freeze()
    frozen = train_step(fixed, x, y)
    return compare(
        {
            "plain": plain,
            "open gates": gated,
            "gates at 0.9": lambda: gated(0.9),
            "gates at 0.5": lambda: halves(0.5),
            "frozen at 0.25": frozen,
            "stochastic gates": stochastic,
        },
        rounds,
        torch.device(device),
    )


def latencies(model, rounds, device):
    """Inference: compacted model against one built with these sizes."""
    torch.manual_seed(0)
    hparams = load(model, device)
    hparams["complexity_loss"].freeze()
    cut, features = compact(hparams["gates"])
    with tempfile.TemporaryDirectory() as folder:
        modules = {"compute_features": features, "model": cut}
        original = constructor(str(HPARAMS / f"{model}_gated.yaml"), "model")
        save_compact(f"{folder}/compact", modules, "", {"model": original})
        with open(f"{folder}/compact/hyperparams.yaml") as fin:
            built = load_hyperpyyaml(fin)["model"].to(device).eval()
    dense = load(model, device, "dense")["model"].eval()
    bands = hparams["gates"]["features"].integer_width()
    x = torch.randn(1, FRAMES, 80, device=device)
    narrow = x[..., :bands].contiguous()
    with torch.inference_mode():
        return compare(
            {
                "built with these sizes": lambda: built(narrow),
                "compacted": lambda: cut(narrow),
                "dense": lambda: dense(x),
            },
            5 * rounds,
            torch.device(device),
        )


def write_table(readme):
    """Writes the figures on disk into the block "speed" of a Markdown file."""
    rows = []
    for report in saved_times("speed").values():
        for model, label in NAMES.items():
            for what, figures in report[model].items():
                for name, value in figures.items():
                    row = [report["device"], label, what, name]
                    row += [f"{value['ms']:.1f}", f"{value['ratio']:.2f}"]
                    rows.append(row)
    headings = ["device", "model", "what", "variant", "ms", "ratio"]
    fill_blocks(readme, speed=markdown_table(headings, rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--table", metavar="README")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    if args.table:
        write_table(args.table)
        sys.exit()
    torch.set_num_threads(args.threads)
    report = {
        "device": args.device,
        "processor": platform.machine(),
        "threads": args.threads,
        "torch": torch.__version__,
        "rounds": args.rounds,
    }
    for name in ("crnn", "transformer"):
        report[name] = {
            "training step": step_times(name, args.rounds, args.device),
            "inference": latencies(name, args.rounds, args.device),
        }
        for what, rows in report[name].items():
            for row, value in rows.items():
                print(
                    f"{name:12} {what:14} {row:24} {value['ms']:8.1f} ms "
                    f"ratio {value['ratio']:.3f}"
                )
    save_times(f"speed_{args.device}", report)
