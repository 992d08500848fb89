#!/usr/bin/env python3
"""Random short stages: is the budget met, used, and reached in time?

> python benchmarks/short_stages.py [--runs=200]
> python benchmarks/short_stages.py --table benchmarks/README.md

Each run trains one of four networks for 60 to 600 steps, a third of them with
gates, to a budget from 0.9 to 0.04 (log-uniform), on targets of a network of
random weights. Results are written to benchmarks/results/short_stages.json
after each run; runs that are in it are not repeated.

Authors
 * The noisegate developers, 2026
"""

import argparse
import functools
import json
import logging
import math
import random
import statistics
import sys
from pathlib import Path

import speechbrain as sb
import torch
from speechbrain.lobes.models.CRDNN import CRDNN
from speechbrain.lobes.models.transformer.Transformer import TransformerEncoder
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(1, str(Path(sys.path[0], "recipes", "Keywords")))

from tc_resnet8 import TCResNet8

from noisegate import ComplexityLoss, GatedBrain, Gates, NoiseGate
from noisegate.evaluation.files import (
    fill_blocks,
    markdown_table,
    write_atomically,
)

RESULTS = Path(__file__).parent / "results" / "short_stages.json"
FRAMES, FEATURES, CLIPS, BATCH = 20, 16, 64, 8
EPOCH = CLIPS // BATCH  # steps
WARNING = "had not come down"


class Encoder(torch.nn.Module):
    """A Transformer between two linear layers."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(FEATURES, 32)
        self.encoder = TransformerEncoder(2, 4, d_ffn=64, d_model=32)
        self.last = torch.nn.Linear(32, 4)

    def forward(self, x):
        """Returns (batch, time, 4)."""
        return self.last(self.encoder(self.first(x))[0])


NETWORKS = {
    "MLP": lambda: torch.nn.Sequential(
        torch.nn.Linear(FEATURES, 64),
        torch.nn.ReLU(),
        torch.nn.Linear(64, 64),
        torch.nn.ReLU(),
        torch.nn.Linear(64, 4),
    ),
    "TC-ResNet8": lambda: TCResNet8(FEATURES, 4, channels=[16, 24, 32, 48]),
    "CRDNN": lambda: torch.nn.Sequential(
        CRDNN(
            input_shape=[None, None, FEATURES],
            cnn_channels=[8, 16],
            time_pooling=False,
            rnn_layers=1,
            rnn_neurons=24,
            dnn_blocks=1,
            dnn_neurons=32,
        ),
        torch.nn.Linear(32, 4),
    ),
    "Transformer": Encoder,
}


class StageBrain(GatedBrain):
    """Regression."""

    def compute_forward(self, batch, stage):
        """Returns what the network makes."""
        return self.modules.model(batch[0])

    def compute_objectives(self, predictions, batch, stage):
        """Returns squared error and complexity."""
        error = torch.nn.functional.mse_loss(predictions, batch[1])
        return error + self.complexity_term(stage)


def most_that_fits(gates, widths, limit):
    """MACs of widths that grow by single steps, in order, while they fit."""
    cost, widths = gates.cost, dict(widths)
    for name, gate in gates.items():
        more = {**widths, name: widths[name] + gate.granularity}
        while more[name] <= gate.size and cost.macs(more) <= limit:
            widths = dict(more)
            more[name] += gate.granularity
    return cost.macs(widths)


def run(seed):
    """Runs one stage.

    Arguments
    ---------
    seed : int
        Says all.

    Returns
    -------
    dict
        What was drawn, and "used" (share of the budget), "usable" (what a
        greedy search adds to it), "before" (MACs relative to the budget when
        widths were rounded) and "warned".
    """
    draw = random.Random(seed)
    name = draw.choice(list(NETWORKS))
    steps = round(math.exp(draw.uniform(math.log(60), math.log(600))))
    budget = math.exp(draw.uniform(math.log(0.04), math.log(0.9)))
    torch.manual_seed(seed)
    model, target = NETWORKS[name](), NETWORKS[name]().eval()
    x = torch.randn(CLIPS, FRAMES, FEATURES)
    with torch.no_grad():
        data = TensorDataset(x, target(x))
    epochs = max(3, round(steps / EPOCH))
    freeze_epoch = max(2, round(0.3 * epochs) + 1)
    gate = functools.partial(NoiseGate, kappa_min=0.01)
    gates = Gates(model, gate=gate, input_shape=[1, FRAMES, FEATURES])
    least = float(gates.cost.ratio(gates.min_widths()))
    budget = max(budget, 1.05 * least)
    loss = ComplexityLoss(gates, budget=budget, freeze_epoch=freeze_epoch)
    brain = StageBrain(
        {"model": model},
        functools.partial(torch.optim.Adam, lr=0.002),
        {"gates": gates, "complexity_loss": loss},
        {"device": "cpu", "noprogressbar": True},
    )
    before, messages = [], []
    freeze = loss.freeze

    def noted():
        before.append(float(gates.cost.ratio(gates.widths())) / budget)
        return freeze()

    loss.freeze = noted
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = logging.getLogger("noisegate.brain")
    logger.addHandler(handler)
    try:
        loader = DataLoader(data, batch_size=BATCH, shuffle=True)
        brain.fit(sb.utils.epoch_loop.EpochCounter(epochs), loader)
    finally:
        logger.removeHandler(handler)
    widths, limit = gates.integer_widths(), budget * gates.cost.macs()
    return {
        "seed": seed,
        "network": name,
        "steps": epochs * EPOCH,
        "steps_with_gates": (freeze_epoch - 1) * EPOCH,
        "budget": budget,
        "used": gates.cost.macs(widths) / limit,
        "usable": most_that_fits(gates, widths, limit) / limit,
        "before": before[0],
        "warned": any(WARNING in message for message in messages),
    }


def table(rows):
    """Rows of the table, one for each network."""
    lines = []
    for name in (*NETWORKS, "all"):
        mine = [row for row in rows if name in (row["network"], "all")]
        used = [row["used"] for row in mine]
        unused = sum(row["usable"] > row["used"] + 1e-9 for row in mine)
        before = [row["before"] for row in mine]
        line = [name, len(mine), sum(value > 1 for value in used)]
        line += [f"{100 * statistics.median(used):.1f}"]
        line += [f"{100 * min(used):.1f}", unused]
        line += [f"{statistics.median(before):.2f}", f"{max(before):.2f}"]
        lines.append([*line, sum(row["warned"] for row in mine)])
    headings = ["network", "runs", "over budget", "% used, median", "least"]
    headings += ["one more would fit", "before rounding, median", "greatest"]
    return markdown_table([*headings, "warned"], lines)


def main():
    """Runs what is missing, or writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--table", help="Markdown file with a block for it")
    arguments = parser.parse_args()
    rows = []
    if RESULTS.exists():
        rows = json.loads(RESULTS.read_text(encoding="utf-8"))
    if arguments.table:
        fill_blocks(arguments.table, short_stages=table(rows))
        return
    torch.set_num_threads(1)
    logging.getLogger("speechbrain").setLevel(logging.ERROR)
    for seed in range(len(rows), arguments.runs):
        rows.append(run(seed))
        write_atomically(RESULTS, json.dumps(rows, indent=0) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
