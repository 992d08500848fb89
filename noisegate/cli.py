"""The command ``noisegate``.

> noisegate inspect hparams/crnn_gated.yaml --data_folder=none

Authors
 * The noisegate developers, 2026
"""

import argparse
import math
import sys
from pathlib import Path

from noisegate import __version__
from noisegate.evaluation.methods import METHODS

# What takes long to import (torch, SpeechBrain) is imported where it is used


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
    from hyperpyyaml import load_hyperpyyaml

    from noisegate.evaluation.run_folder import read_yaml
    from noisegate.gates import Gates

    read_yaml(hparams_file)
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
            f"{len(found)} {found or ''}. Those of a factory (!name:) are "
            "found by the Brain in data: run train.py, whose log has the table"
        )
    return hparams[found[0]]


def _list_of(convert):
    return lambda text: [convert(item) for item in text.split(",")]


def _options(text):
    pairs = [item.partition("=") for item in text.split(",") if item]
    return {key: int(v) if v.isdigit() else v for key, _, v in pairs}


def _count(text):
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text}")
    return number


def _finite(text):
    number = float(text)
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"expected a number, got {text}")
    return number


def _not_negative(text):
    number = _finite(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"expected 0 or more, got {text}")
    return number


def _mapping(path):
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        found = YAML(typ="safe").load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, YAMLError) as error:
        raise argparse.ArgumentTypeError(f"{path}: {error}") from error
    named = isinstance(found, dict) and found
    if not (named and all(isinstance(v, dict) for v in found.values())):
        raise argparse.ArgumentTypeError(
            f"expected a YAML of names and their values, got {path}: {found!r}"
        )
    return found


def _inspect(known, overrides):
    """Prints the groups of a model."""
    import speechbrain as sb

    arguments = [known.hparams, *overrides]
    hparams_file, _, overrides = sb.parse_arguments(arguments)
    print(load_gates(hparams_file, overrides))


def _sweep(known, overrides):
    """Runs a sweep and prints its table."""
    from noisegate.evaluation.files import markdown_table
    from noisegate.evaluation.sweep import Sweep
    from noisegate.evaluation.table import figures, summarize

    sweep = Sweep(
        known.hparams,
        known.folder,
        known.budgets,
        known.methods,
        known.seeds,
        overrides,
        known.variants,
        known.chain,
    )
    failed = sweep.run(known.jobs, known.retry, known.slurm)
    results = sweep.results()
    if results:
        print(markdown_table(*summarize(figures(results), known.metric)))
        print(f"\nfigures of each cell: {sweep.folder / 'cells.jsonl'}")
    if failed:
        text = ", ".join(failed)
        raise RuntimeError(f"failed (see --retry): {text}")


def _report(known, overrides):
    """Writes the page of a sweep."""
    from noisegate.evaluation.report import write_report

    page = write_report(
        known.folder,
        known.metric,
        known.published,
        known.readme,
        known.columns,
        known.block,
    )
    print(f"report: {page}")


def _latency(known, overrides):
    """Times the models of a sweep."""
    from noisegate.evaluation.files import read_json
    from noisegate.evaluation.latency import describe_latency, write_latency
    from noisegate.evaluation.trust import check_trust

    for place in Path(known.folder).glob("cells/*/compact/hyperparams.yaml"):
        check_trust(place, known.trust)
    path = write_latency(known.folder, known.rounds)
    print(describe_latency(read_json(path)))
    print(f"\nlatency: {path}")


def _export(known, overrides):
    """Writes a cut model as ONNX."""
    from noisegate.deploy.export import export
    from noisegate.evaluation.trust import check_trust

    check_trust(Path(known.folder, "hyperparams.yaml"), known.trust)
    if known.int8 and not known.check:
        raise ValueError("--int8 needs --check and files of the validation set")
    path, error = export(
        known.folder, known.output, known.streaming, known.check
    )
    print(
        f"{path}: {path.stat().st_size / 1000:.0f} kB, differs from torch by "
        f"{error:.1g} of the greatest output at most"
    )
    if known.int8:
        from noisegate.deploy.quantize import quantize

        path, changed = quantize(
            path, known.int8, known.check, known.max_changed
        )
        print(
            f"{path}: {path.stat().st_size / 1000:.0f} kB, decides otherwise "
            f"in {100 * changed:.2g} % of the audio"
        )


def _vad(known, overrides):
    """Prints segments of speech."""
    from noisegate.deploy.vad import run

    return run(
        known.files,
        known.model,
        known.format,
        threshold=known.threshold,
        min_speech_s=known.min_speech_ms / 1000,
        min_silence_s=known.min_silence_ms / 1000,
    )


def _spot(known, overrides):
    """Prints keywords."""
    from noisegate.deploy.spot import run

    return run(known.files, known.model, known.threshold)


def _spoof(known, overrides):
    """Prints whether speech is bona fide."""
    from noisegate.deploy.spoof import run

    return run(known.files, known.model, known.threshold)


def main(arguments=None):
    """Runs the command.

    Arguments
    ---------
    arguments : list of str
        Those of the command line, if left out.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="noisegate")
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument(
        "--debug", action="store_true", help="show where an error came from"
    )
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
        allow_abbrev=False,  # --seed=5 is not five seeds
        description="Runs the recipe's own train.py for each cell; start it "
        "again to go on. Overrides for all cells follow behind --.",
    )
    sweep.add_argument(
        "hparams",
        nargs="+",
        help="YAML of a gated recipe; several are models to compare",
    )
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
        default=["noise", "hard_concrete", "magnitude", "narrow"],
        help=f"of {', '.join(m for m in METHODS if m != 'dense')}",
    )
    sweep.add_argument(
        "--variants",
        type=_mapping,
        metavar="YAML",
        help="models to compare: values of keys by name (docs/sweep.md)",
    )
    sweep.add_argument(
        "--chain",
        action="store_true",
        help="go on from budget to budget, from the dense model down",
    )
    sweep.add_argument(
        "--seeds", type=_count, default=1, help="number of seeds"
    )
    sweep.add_argument("--jobs", type=_count, default=1, help="cells at a time")
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
        "and curves.png into the folder of a sweep; with several models a "
        "table.",
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
        "<!-- name --> and <!-- /name -->",
    )
    report.add_argument(
        "--block", metavar="NAME", help="that name; of the folder by default"
    )
    report.add_argument(
        "--columns",
        type=_list_of(str),
        default=[],
        help="further figures of the test for the table",
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
        "--rounds", type=_count, default=15, help="times that each model is run"
    )
    export = commands.add_parser(
        "export",
        help="write a cut model as ONNX, with its front-end",
        description="Writes front-end, normalization and network as one ONNX "
        "file, runs it with onnxruntime and compares it with torch.",
    )
    export.add_argument("folder", help="the compact folder of a run")
    export.add_argument(
        "--output", metavar="FILE", help="model.onnx in the folder by default"
    )
    export.add_argument(
        "--streaming",
        action="store_true",
        help="for signals in chunks; the model must be causal",
    )
    export.add_argument(
        "--check",
        nargs="+",
        default=[],
        metavar="AUDIO",
        help="compare on these files, too",
    )
    export.add_argument(
        "--int8",
        choices=["dynamic", "static"],
        help="write one with integers of 8 bits besides, if its decisions "
        "stay on the files of --check: take those of the validation set",
    )
    export.add_argument(
        "--max_changed",
        type=_not_negative,
        default=0.01,
        help="share of decisions that may change",
    )
    for loads in (latency, export):
        loads.add_argument(
            "--trust",
            action="store_true",
            help="load models that bring code of their own (docs/security.md)",
        )
    vad = commands.add_parser(
        "vad",
        help="print where somebody speaks in audio files, without torch",
        description="Prints segments of speech as soon as they have ended.",
    )
    vad.add_argument(
        "--format",
        choices=["text", "json", "rttm", "audacity", "srt"],
        default="text",
    )
    vad.add_argument(
        "--threshold", type=_finite, help="of the score; the model's by default"
    )
    vad.add_argument(
        "--min_speech_ms",
        type=_not_negative,
        default=100,
        help="shorter segments are left out",
    )
    vad.add_argument(
        "--min_silence_ms",
        type=_not_negative,
        default=300,
        help="shorter pauses do not end a segment",
    )
    spot = commands.add_parser(
        "spot",
        help="print which keywords are said in audio files, without torch",
        description="Prints keywords, and when they are said, as they come.",
    )
    spot.add_argument(
        "--threshold",
        type=_finite,
        default=0.6,
        help="mean probability of five looks within 0.5 s",
    )
    spoof = commands.add_parser(
        "spoof",
        help="print whether audio files are bona fide speech, without torch",
        description="Prints the log-likelihood ratio of each file, and "
        "whether it is accepted as bona fide.",
    )
    spoof.add_argument(
        "--threshold",
        type=_finite,
        default=0.0,
        help="ln(c_fa (1 - p) / (c_miss p)), where p is how probable bona "
        "fide speech is and c are the costs of errors",
    )
    for hears in (vad, spot, spoof):
        hears.add_argument(
            "files",
            nargs="+",
            metavar="FILE",
            help="audio; - is a pipe: WAV, or 16 bits at the rate of the model",
        )
        own = "" if hears is spoof else "; else its own"
        hears.add_argument(
            "--model",
            metavar="ONNX",
            required=hears is spoof,
            help=f"of noisegate export{own}",
        )
    # Behind "--", an argument could be taken for another YAML
    end = arguments.index("--") if "--" in arguments else len(arguments)
    known, overrides = parser.parse_known_args(arguments[:end])
    overrides += arguments[end + 1 :]
    if known.command not in ("inspect", "sweep") and overrides:
        parser.error(f"unrecognized arguments: {' '.join(overrides)}")
    command = {
        "inspect": _inspect,
        "sweep": _sweep,
        "report": _report,
        "latency": _latency,
        "export": _export,
        "vad": _vad,
        "spot": _spot,
        "spoof": _spoof,
    }[known.command]
    try:
        status = command(known, overrides)
    except KeyboardInterrupt:
        again = "; the same command goes on" if command is _sweep else ""
        parser.exit(130, f"stopped{again}\n")
    except (ImportError, KeyError, OSError, RuntimeError, ValueError) as error:
        if known.debug:
            raise
        failed = isinstance(error, RuntimeError)  # not of the user
        text = f"noisegate: {error} (noisegate --debug shows where)\n"
        parser.exit(1 if failed else 2, text)
    if status:
        parser.exit(status)


if __name__ == "__main__":
    main()
