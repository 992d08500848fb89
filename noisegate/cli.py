"""The command ``noisegate``.

> noisegate inspect hparams/crnn_gated.yaml --data_folder=none

Authors
 * The noisegate developers, 2026
"""

import argparse
import json
import sys
from pathlib import Path

import speechbrain as sb
from hyperpyyaml import load_hyperpyyaml

from noisegate.evaluation.files import markdown_table
from noisegate.evaluation.latency import describe_latency, write_latency
from noisegate.evaluation.report import write_report
from noisegate.evaluation.sweep import METHODS, Sweep, summarize, write_summary
from noisegate.gates import Gates


def load_gates(hparams_file, overrides=""):
    """Loads the gates of a recipe, as its ``train.py`` would.

    Arguments
    ---------
    hparams_file : str
        Path of the YAML. Modules of the recipe that it names are looked for
        beside it and in the folder above.
    overrides : str or dict
        Overrides of its keys.

    Returns
    -------
    noisegate.gates.Gates

    Raises
    ------
    ValueError
        If the YAML makes no gates or more than one object of them.
    """
    folder = Path(hparams_file).resolve().parent
    paths = [str(folder.parent), str(folder)]
    sys.path[:0] = paths
    try:
        with open(hparams_file, encoding="utf-8") as fin:
            hparams = load_hyperpyyaml(fin, overrides)
    finally:
        sys.path[:2] = []
    found = [key for key, v in hparams.items() if isinstance(v, Gates)]
    if len(found) != 1:
        raise ValueError(
            f"{hparams_file} must make one noisegate.gates.Gates, it makes "
            f"{len(found)} {found or ''}"
        )
    return hparams[found[0]]


def describe(gates):
    """Returns a table of the groups of a model.

    Arguments
    ---------
    gates : noisegate.gates.Gates
        The gates.

    Returns
    -------
    str
        A line for each group with its kind and channels, the smallest width,
        the step of its widths, the MACs per second of audio that depend on
        it, and where it is read or why it has no gate; below the totals and
        layers with weights that are not known to noisegate.

    Example
    -------
    >>> from speechbrain.nnet.containers import Sequential
    >>> from speechbrain.nnet.linear import Linear
    >>> net = Sequential(input_shape=[None, None, 8])
    >>> net.append(Linear, n_neurons=16, layer_name="hidden")
    >>> net.append(Linear, n_neurons=1, layer_name="out")
    >>> for line in describe(Gates(net, input_shape=[1, 9, 8])).split("\\n"):
    ...     print(*line.split())
    group kind channels smallest step MACs/s share
    hidden linear 16 1 1 1296 100.0 % read by out.w
    features features 8 - - - - no gate: the input of the model
    out linear 1 - - 144 11.1 % no gate: the output of the model
    <BLANKLINE>
    gated: 1 of 3 groups; MACs/s 1296, at the smallest widths 81 (6.2 %)
    parameters 161, at the smallest widths 11
    """
    cost, total = gates.cost, gates.cost.macs()
    header = ("group", "kind", "channels", "smallest", "step", "MACs/s")
    header = (*header, "share", "")
    rows = []
    for group in gates.groups:
        gate = gates.get(group.name)
        size = cost.sizes[group.name]
        # What is left with two widths gives the slope, and so what depends
        macs = total - cost.macs({group.name: 0})
        share = f"{100 * macs / total:.1f} %" if total else "-"
        per_second = round(macs / cost.seconds)
        if not group.ports:  # the input, whose width is not looked at
            per_second, share = "-", "-"
        if gate is None:
            reason = group.locked_reason or "not asked for"
            limits, note = ("-", "-"), f"no gate: {reason}"
        else:
            limits = gate.min_width, gate.granularity
            readers = dict.fromkeys(port.layer for port in group.find("in"))
            note = "read by " + ", ".join(list(readers)[:2])
            if len(readers) > 2:
                note += f" and {len(readers) - 2} more"
        rows.append(
            (
                gate is None,
                (
                    group.name,
                    group.role,
                    size,
                    *limits,
                    per_second,
                    share,
                    note,
                ),
            )
        )
    rows = [header] + [row for _, row in sorted(rows, key=lambda r: r[0])]
    widths = [max(len(str(row[i])) for row in rows) for i in range(7)]
    lines = []
    for row in rows:
        cells = [str(x).ljust(n) for x, n in zip(row[:2], widths)]
        cells += [str(x).rjust(n) for x, n in zip(row[2:7], widths[2:])]
        lines.append("  ".join([*cells, row[7]]).rstrip())
    least = gates.min_widths()
    smallest = cost.macs_per_second(least)
    ratio = 100 * smallest / max(1, cost.macs_per_second())
    lines += [
        "",
        f"gated: {len(gates)} of {len(gates.groups)} groups; MACs/s "
        f"{cost.macs_per_second()}, at the smallest widths {smallest} "
        f"({ratio:.1f} %)",
        f"parameters {cost.params()}, at the smallest widths "
        f"{cost.params(least)}",
    ]
    if gates.unknown:
        layers = (f"{path} ({name})" for path, name in gates.unknown.items())
        lines.append(f"layers that are not known: {', '.join(layers)}")
    return "\n".join(lines)


def _list_of(convert):
    return lambda text: [convert(item) for item in text.split(",")]


def _options(text):
    pairs = [item.partition("=") for item in text.split(",") if item]
    return {key: int(v) if v.isdigit() else v for key, _, v in pairs}


def _sweep(parser, known, overrides):
    """Runs a sweep and prints its table; the exit status tells of failures."""
    if overrides[:1] == ["--"]:
        overrides = overrides[1:]
    failed = []
    try:
        sweep = Sweep(
            known.hparams,
            known.folder,
            known.budgets,
            known.methods,
            known.seeds,
            overrides,
        )
        failed = sweep.run(known.jobs, known.retry, known.slurm)
        results = sweep.results()
        if results:
            headings, table, rows = summarize(results, known.metric)
            write_summary(sweep.folder, headings, table, rows)
            print(markdown_table(headings, table))
            print(f"\nfigures of each cell: {sweep.folder / 'cells.csv'}")
    except KeyboardInterrupt:
        parser.exit(130, "stopped; the same command goes on\n")
    except (ValueError, OSError) as error:
        parser.exit(1, f"noisegate: {error}\n")
    if failed:
        text = ", ".join(failed)
        parser.exit(1, f"noisegate: failed (see --retry): {text}\n")


def main(arguments=None):
    """Runs the command.

    Arguments
    ---------
    arguments : list of str
        Those of the command line, if left out.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="noisegate")
    commands = parser.add_subparsers(dest="command", required=True)
    inspect = commands.add_parser(
        "inspect",
        help="print the channel groups of a model, before any training",
        description="Prints which widths of a model can be learned, what "
        "depends on them, and which can not and why. Overrides of the YAML "
        "follow its name, as for train.py.",
    )
    inspect.add_argument("hparams", help="YAML of a recipe that makes Gates")
    sweep = commands.add_parser(
        "sweep",
        help="run a recipe for each budget, method and seed",
        description="Runs the recipe's own train.py for each cell; start it "
        "again to go on. Overrides for all cells follow behind --.",
    )
    sweep.add_argument("hparams", help="YAML of a gated recipe")
    sweep.add_argument("--folder", required=True, help="where it is kept")
    sweep.add_argument(
        "--budgets",
        type=_list_of(float),
        default=[1.0, 0.5, 0.25, 0.125],
        help="shares of the dense MACs, 1 for the dense model",
    )
    sweep.add_argument(
        "--methods",
        type=_list_of(str),
        default=["noise", "stochastic", "pruned", "narrow"],
        help=f"of {', '.join(m for m in METHODS if m != 'dense')}; "
        "name=file.yaml for a YAML of your own",
    )
    sweep.add_argument("--seeds", type=int, default=1, help="number of seeds")
    sweep.add_argument("--jobs", type=int, default=1, help="cells at a time")
    sweep.add_argument(
        "--retry", action="store_true", help="run cells that failed once more"
    )
    sweep.add_argument(
        "--slurm",
        type=_options,
        metavar="KEY=VALUE,...",
        help="run cells as jobs of Slurm, with these options of sbatch: "
        "partition=gpu,time=60,gres=gpu:1",
    )
    sweep.add_argument("--metric", help="figure of the table, EER by default")
    report = commands.add_parser(
        "report",
        help="write a page about a sweep",
        description="Writes report.html, which needs no network, report.md "
        "and cells.csv into the folder of a sweep.",
    )
    report.add_argument("folder", help="--folder of the sweep")
    report.add_argument(
        "--metric", help="figure of the curves, EER by default; less is better"
    )
    report.add_argument(
        "--published",
        metavar="CSV",
        help="show figures of other work: columns model, *flops, eer_percent",
    )
    report.add_argument(
        "--readme",
        metavar="FILE",
        help="put the tables of the curves into a Markdown file, between "
        "<!-- name --> and <!-- /name --> for the name of the folder",
    )
    latency = commands.add_parser(
        "latency",
        help="time the cut models of a sweep, in turn, on one CPU thread",
        description="Times the cut model of each finished cell with torch and "
        "onnxruntime and writes latency.json into the folder of the sweep; "
        "`noisegate report` shows it.",
    )
    latency.add_argument("folder", help="--folder of the sweep")
    latency.add_argument(
        "--rounds", type=int, default=15, help="times that each model is run"
    )
    known, overrides = parser.parse_known_args(arguments)
    if known.command in ("report", "latency") and overrides:
        parser.error(f"unrecognized arguments: {' '.join(overrides)}")
    if known.command == "latency":
        try:
            path = write_latency(known.folder, known.rounds)
        except (ValueError, OSError, RuntimeError) as error:
            parser.exit(1, f"noisegate: {error}\n")
        print(describe_latency(json.loads(path.read_text(encoding="utf-8"))))
        print(f"\nlatency: {path}")
        return
    if known.command == "report":
        try:
            page = write_report(
                known.folder, known.metric, known.published, known.readme
            )
            print(f"report: {page}")
        except (ImportError, ValueError, OSError) as error:
            parser.exit(1, f"noisegate: {error}\n")
        return
    if known.command == "sweep":
        _sweep(parser, known, overrides)
        return
    try:
        hparams_file, _, overrides = sb.parse_arguments(
            [known.hparams, *overrides]
        )
        print(describe(load_gates(hparams_file, overrides)))
    except (KeyError, ValueError, OSError) as error:
        parser.exit(1, f"noisegate: {error}\n")


if __name__ == "__main__":
    main()
