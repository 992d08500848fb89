"""A chain of budgets: each stage goes on from the model that was cut before.

A stage is an ordinary run of the recipe, in a folder of its own, with other
values of some keys. So each trains a smaller model than the one before, and a
chain that was stopped goes on where it was.

Authors
 * The noisegate developers, 2026
"""

import json
from pathlib import Path

from hyperpyyaml import resolve_references
from ruamel.yaml import YAML
from speechbrain.utils.distributed import ddp_barrier, if_main_process
from speechbrain.utils.logger import get_logger

from noisegate.evaluation.files import markdown_table, write_atomically
from noisegate.evaluation.results import find_metric, stage

logger = get_logger(__name__)

DENSE = "dense"
CHAIN_KEYS = ("pretrained", "budget", "output_folder", "gate_layers", "dense")
CHAIN_KEYS += ("stage", "teacher_folder")


def stages(hparams_file, overrides=None):
    """Yields the overrides of each run of a recipe: of one, or of a chain.

    With ``budgets`` in the YAML, shares of the MACs of the dense model, there
    is a run in ``<output_folder>/<budget>`` for each, from the greatest down.
    It starts from what the one before has left, and that of the first from
    ``pretrained`` or, if that is null, from a dense model that is trained in
    ``<output_folder>/dense`` before. This model is the teacher of all, if
    ``teacher_folder`` names no other. Runs with a ``result.json`` are not
    repeated, so that budgets can be added. At
    the end there are ``chain.md`` and ``chain.json`` with the figures of all.

    Arguments
    ---------
    hparams_file : str
        YAML with the keys ``budgets``, ``pretrained``, ``teacher_folder``,
        ``budget``, ``output_folder``, ``gate_layers``, and ``dense`` and
        ``stage``: values of further keys in the dense run and in the others.
        Without ``budgets``, or if it is null, there is one run.
    overrides : str or dict
        Those of the command line.

    Yields
    ------
    str or dict
        Overrides for ``load_hyperpyyaml``.

    Raises
    ------
    ValueError
        If a key is missing or a budget is not in (0, 1).
    """
    yaml = YAML(typ="safe")
    with open(hparams_file, encoding="utf-8") as fin:
        text = resolve_references(fin, overrides).getvalue()
    plan = YAML().load(text)
    budgets = plan.get("budgets")
    top = Path(plan["output_folder"])
    if not budgets:
        if _finished(top) is not None:
            path = top / "result.json"
            logger.warning(f"{path} exists: this run is finished")
        else:
            yield overrides
        return
    if isinstance(overrides, str):
        overrides = yaml.load(overrides)
    common = {**(overrides or {}), "budgets": None}
    missing = [key for key in CHAIN_KEYS if key not in plan]
    if missing:
        raise ValueError(f"a chain of budgets needs the keys {missing}")
    for budget in budgets:
        if not 0 < budget < 1:
            raise ValueError(f"budgets must be in (0, 1), got {budget}")

    def run(name, start, **values):
        place = {"output_folder": str(top / name), "pretrained": start}
        return {**common, **values, **place}

    start, full, at = plan["pretrained"], None, None
    teacher = plan["teacher_folder"] or start
    names = [f"{budget:g}" for budget in sorted(budgets, reverse=True)]
    if start is None:
        names.insert(0, DENSE)
    results = {}
    for name in names:
        if _finished(top / name) is None:
            if name == DENSE:
                values = {**plan["dense"], "gate_layers": [], "budget": 1.0}
            else:
                share = full or 1, at or 1
                values = stage(plan["stage"], float(name), *share)
                values["teacher_folder"] = teacher
            yield run(name, start, **values)
        result = _finished(top / name)
        if result is None:
            raise RuntimeError(f"the run in {top / name} has no result.json")
        results[name] = result
        full = full or result["macs_per_second_full"]
        at = result["macs_per_second"]
        start = str(top / name / "compact")
        teacher = teacher or start
    if if_main_process():
        _write(top, results, full)


def _finished(folder):
    """The result of a run, or None; the same for all processes."""
    ddp_barrier()
    path = folder / "result.json"
    if not path.exists():
        return None
    return json.loads(path.read_text(encoding="utf-8"))


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
