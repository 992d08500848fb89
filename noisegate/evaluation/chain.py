"""A chain of budgets: each stage goes on from the model that was cut before.

A stage is an ordinary run of the recipe, in a folder of its own, with other
values of some keys. So each trains a smaller model than the one before, and a
chain that was stopped goes on where it was.

Authors
 * The noisegate developers, 2026
"""

import contextlib
import json
import os
import sys
import traceback
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from speechbrain.utils.distributed import ddp_barrier, if_main_process
from speechbrain.utils.logger import get_logger

from noisegate.evaluation.card import write_card
from noisegate.evaluation.files import markdown_table, write_atomically
from noisegate.evaluation.results import dense_run, stage
from noisegate.evaluation.run_folder import (
    check_overrides,
    claim,
    move_aside,
    owned,
    plan_of,
    read_yaml,
    result_of,
)
from noisegate.evaluation.table import find_metric

logger = get_logger(__name__)

DENSE, OUTPUT = "dense", "output_folder"
# SpeechBrain and torch check by assertions what they are built with
USER_ERRORS = (ArithmeticError, AssertionError, ImportError, OSError)
USER_ERRORS += (TypeError, ValueError, YAMLError)
CHAIN_KEYS = ("pretrained", "budget", "output_folder", "gate_layers", "dense")
CHAIN_KEYS += ("stage", "teacher_folder")


def run_stages(run, hparams_file, run_opts, overrides=None):
    """Makes the run of a recipe, or its chain of runs; see :func:`stages`.

    An error that a user can mend (in a YAML, in files, in the settings) is
    printed in one line, and the process ends with status 2; the traceback
    goes to ``log.txt`` of the run. With ``--debug`` it is raised.

    Arguments
    ---------
    run : callable
        Is called with the path of the YAML, the run options and overrides.
    hparams_file : str
        Path of the YAML.
    run_opts : dict
        SpeechBrain's run options.
    overrides : str or dict
        Overrides of the YAML. ``overwrite`` is none of its keys: if it is
        true, a folder of before is moved aside.
    """
    folder = None
    try:
        for stage_overrides in stages(hparams_file, overrides, run_opts):
            folder = Path(plan_of(hparams_file, stage_overrides)[OUTPUT])
            run(hparams_file, run_opts, stage_overrides)
            if if_main_process():
                write_card(folder)
    except KeyboardInterrupt:
        sys.stderr.write(f"stopped; the same command goes on in {folder}\n")
        sys.exit(130)
    except USER_ERRORS as error:
        if run_opts.get("debug"):
            raise
        where = "--debug shows where"
        if folder is not None and folder.is_dir():
            with open(folder / "log.txt", "a", encoding="utf-8") as log:
                traceback.print_exc(file=log)
            where = f"traceback in {folder / 'log.txt'}"
        message = " ".join(str(error).split()) or type(error).__name__
        sys.stderr.write(f"{sys.argv[0]}: {message} ({where})\n")
        sys.stderr.flush()
        if run_opts.get("distributed_launch"):
            os._exit(2)  # the other processes wait for this one
        sys.exit(2)


def stages(hparams_file, overrides=None, run_opts=None):
    """Yields the overrides of each run of a recipe: of one, or of a chain.

    With ``budgets`` in the YAML, shares of the MACs of the dense model, there
    is a run in ``<output_folder>/<budget>`` for each, from the greatest down.
    It starts from what the one before has left, and that of the first from
    ``pretrained`` or, if that is null, from a dense model that is trained in
    ``<output_folder>/dense`` before. What it starts from is its teacher, if
    ``teacher_folder`` names no other. Runs with a ``result.json`` are not
    repeated, so that budgets can be added. At the end there are ``chain.md``
    and ``chain.json`` with the figures of all.

    Folders belong to their settings (:func:`.run_folder.claim`) and, as long
    as this generator lives, to this process.

    Arguments
    ---------
    hparams_file : str
        YAML with the keys ``budgets``, ``pretrained``, ``teacher_folder``,
        ``budget``, ``output_folder``, ``gate_layers``, and ``dense`` and
        ``stage``: values of further keys in the dense run and in the others.
        Without ``budgets``, or if it is null, there is one run.
    overrides : str or dict
        Those of the command line.
    run_opts : dict
        SpeechBrain's run options.

    Yields
    ------
    dict
        Overrides for ``load_hyperpyyaml``.

    Raises
    ------
    BlockingIOError
        If another process has a run in the folder.
    ValueError
        If a key is missing, a budget is not in (0, 1), an override has no
        effect in any run, or a folder belongs to a run with other settings.
    """
    if isinstance(overrides, str):
        overrides = YAML().load(overrides)  # may have !ref
    overrides = dict(overrides or {})
    overwrite = overrides.pop("overwrite", False)
    check_overrides(read_yaml(hparams_file), overrides)
    plan = plan_of(hparams_file, overrides)
    top = Path(plan[OUTPUT])
    make = _one
    if plan.get("budgets"):
        make = _chain
        _check_chain(plan, overrides)
    with contextlib.ExitStack() as stack:
        if if_main_process():
            if overwrite and top.exists():
                with owned(top):
                    move_aside(top)
            stack.enter_context(owned(top))
        yield from make(hparams_file, plan, overrides, run_opts, top)


def _one(hparams_file, plan, overrides, run_opts, top):
    if _finished(top, hparams_file, overrides, run_opts) is None:
        yield overrides
    else:
        path = top / "result.json"
        logger.warning(f"{path} exists: this run is finished")


def _check_chain(plan, overrides):
    missing = [key for key in CHAIN_KEYS if key not in plan]
    if missing:
        raise ValueError(f"a chain of budgets needs the keys {missing}")
    for key in ("dense", "stage"):
        if not isinstance(plan[key], dict):
            raise ValueError(f"{key} must be a mapping, got {plan[key]!r}")
        try:
            check_overrides(plan, plan[key])
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from error
    if not isinstance(plan["budgets"], list):
        raise ValueError(f"budgets must be a list, got {plan['budgets']!r}")
    for budget in plan["budgets"]:
        if not (isinstance(budget, float) and 0 < budget < 1):
            raise ValueError(f"budgets must be in (0, 1), got {budget}")
    runs = [plan["stage"]]
    if plan["pretrained"] is None:
        runs.append(dense_run(plan["dense"]))
    for key, value in overrides.items():
        used = value in [own.get(key, value) for own in runs]
        if key == "budget" or not used:
            raise ValueError(
                f"{key} has no effect: with budgets each run has its own; set "
                "it in stage and dense, or --budgets=null for a single run"
            )


def _chain(hparams_file, plan, overrides, run_opts, top):
    budgets = plan["budgets"]
    common = {**overrides, "budgets": None}

    def run(name, start, **values):
        place = {"output_folder": str(top / name), "pretrained": start}
        return {**common, **values, **place}

    start, full, at = plan["pretrained"], None, None
    # A budget that is added changes both at once
    teacher = plan["teacher_folder"] or YAML().load("!ref <pretrained>")
    names = [f"{budget:g}" for budget in sorted(budgets, reverse=True)]
    if start is None:
        names.insert(0, DENSE)
    results = {}
    for name in names:
        if name == DENSE:
            values = {**dense_run(plan["dense"]), "budget": 1.0}
        else:
            share = full or 1, at or 1
            values = stage(plan["stage"], float(name), *share)
            values["teacher_folder"] = teacher
        values = run(name, start, **values)
        result = _finished(top / name, hparams_file, values, run_opts, top)
        if result is None:
            yield values
            ddp_barrier()  # the main process writes it
            result = result_of(top / name)
        if result is None:
            raise RuntimeError(f"the run in {top / name} has no result.json")
        results[name] = result
        full = full or result["macs_per_second_full"]
        at = result["macs_per_second"]
        start = str(top / name / "compact")
    if if_main_process():
        _write(top, results, full)


def _finished(folder, hparams_file, overrides, run_opts, top=None):
    """The result of a run with these settings, or None; the same for all
    processes."""
    if if_main_process():
        # A budget that was added changes where the next ones start from
        passed = ("pretrained", "budget") if top and result_of(folder) else ()
        claim(folder, hparams_file, overrides, run_opts, top, passed)
    ddp_barrier()
    return result_of(folder)


def _write(top, results, full):
    """Writes the figures of a chain."""
    rows, lines = [], []
    for name, result in results.items():
        row = {"name": name, "macs_per_second": result["macs_per_second"]}
        row["macs_share"] = result["macs_per_second"] / full
        for key in ("params", "steps", "train_seconds"):
            row[key] = result.get(key)
        row.update((f"test {k}", v) for k, v in result["test"].items())
        rows.append(row)
    metric = find_metric(rows)
    for row in rows:
        seconds = row["train_seconds"]
        lines.append(
            [
                row["name"],
                f"{row[f'test {metric}']:.4g}",
                f"{row['macs_per_second'] / 1e6:.3g}",
                f"{row['macs_share']:.4f}",
                str(row["params"]),
                "-" if seconds is None else f"{seconds:.1f}",
            ]
        )
    headings = ["budget", f"{metric} (test)", "MACs/s (M)", "of dense"]
    headings += ["parameters", "seconds of training"]
    text = markdown_table(headings, lines)
    write_atomically(top / "chain.md", text + "\n")
    write_atomically(top / "chain.json", json.dumps(rows, indent=2) + "\n")
    logger.info(f"All budgets of the chain:\n{text}")
