"""The card of a cut model: what a run knows of it.

Authors
 * The noisegate developers, 2026
"""

import json
from pathlib import Path

from noisegate.evaluation.files import (
    markdown_table,
    read_json,
    write_atomically,
)
from noisegate.evaluation.latency import measure_run
from noisegate.evaluation.run_folder import result_of

# Form of a card on the Hugging Face hub; the licence is for the user to add,
# as it depends on the data
_HEAD = """---
library_name: speechbrain
tags:
- speechbrain
- noisegate
---
"""


_DURATIONS = ("duration", "duration_s", "length")  # s, as recipes name it


def write_card(folder):
    """Writes ``compact/README.md`` into the folder of a finished run: figures,
    sizes, settings and versions of its cut model.

    Nothing is written if the run has no cut model yet, or a card already.

    Arguments
    ---------
    folder : str or pathlib.Path
        With ``result.json`` and ``compact``.
    """
    folder = Path(folder)
    compact, result = folder / "compact", result_of(folder)
    path = compact / "README.md"
    if result is None or not compact.is_dir() or path.exists():
        return
    size_kb = sum(f.stat().st_size for f in compact.iterdir()) / 1000
    share = result["macs_per_second"] / result["macs_per_second_full"]
    sizes = [
        ["parameters", str(result["params"])],
        ["MACs per second of audio", f"{result['macs_per_second']:,}"],
        ["of the model that was cut", f"{share:.3f}"],
        ["activations per second", f"{result['activations_per_second']:,.0f}"],
        ["size on disk, kB", f"{size_kb:.0f}"],
        *_measured(folder),
    ]
    intervals = result.get("test_intervals_95") or {}
    figures = [
        [
            name,
            _number(result["valid"].get(name)),
            _number(value),
            " to ".join(map(_number, intervals.get(name, ()))) or "-",
        ]
        for name, value in result["test"].items()
    ]
    layers = [
        [name, str(width), *(f"{n:,}" for n in result["macs_by_layer"][key])]
        for name, width in result["widths"].items()
        for key in (name, f"{name}.conv", f"{name}.w", f"{name}.rnn")
        if key in result["macs_by_layer"]
    ]
    versions = result["versions"]
    settings = "\n".join(result["overrides"])
    about = (
        f"noisegate {versions['noisegate']} (commit {versions['commit']}), "
        f"SpeechBrain {versions['speechbrain']}, torch {versions['torch']}; "
        f"seed {result['seed']}, {result['steps']} steps in "
        f"{result['epochs']} epochs on {result['device']}"
    )
    parts = [
        f"{_HEAD}\n# {Path(result['hparams']).stem}, cut\n",
        "A model whose layer sizes were learned, of plain SpeechBrain layers. "
        "The model was selected on validation data; the test was run once, on "
        "the cut model that is here.\n",
        markdown_table(["size", ""], sizes),
        "\n## Figures\n",
        markdown_table(
            ["figure", "validation", "test", "95 % interval"], figures
        ),
        *_data(folder),
        "\n## Widths\n",
        markdown_table(["layer", "width", "MACs/s before", "MACs/s"], layers),
        f"\n## How it was made\n\n{about}.\n",
        f"```\ntrain.py hparams/{result['hparams']}\n{settings}\n```\n",
        "## Limits\n\nIt knows the data that it was trained on: say here which "
        "these are, their licence, and what it was not tried on.\n",
    ]
    write_atomically(path, "\n".join(parts))


def _data(folder):
    """What the model was trained and tested with, by the manifests."""
    rows = []
    for split in ("train", "valid", "test"):
        path = folder / "save" / f"{split}.json"
        if path.is_file():
            items = read_json(path).values()
            speakers = {item.get("speaker") for item in items} - {None}
            lengths = (
                item.get(key) or 0 for item in items for key in _DURATIONS
            )
            minutes = sum(lengths) / 60
            row = [split, str(len(items)), str(len(speakers) or "-")]
            rows.append([*row, f"{minutes:.0f}" if minutes else "-"])
    if not rows:  # problems that are drawn have none
        return []
    headings = ["split", "items", "speakers", "minutes"]
    return ["\n## Data\n", markdown_table(headings, rows)]


def _measured(folder):
    """Rows of what the model takes where the run ended."""
    try:
        found = measure_run(folder)
    except ValueError:  # reads more than one tensor
        return []
    length, cpu = f"{found['segment_s']:g} s", found["cpu"]
    return [
        [f"activations at once, kB, {length}", f"{found['peak_kb']:.0f}"],
        [
            f"ms per second of audio, a thread of {cpu}",
            _number(found["ms_per_s"]),
        ],
    ]


def _number(value):
    if isinstance(value, float):
        return f"{value:.4g}"
    return "-" if value is None else json.dumps(value)
