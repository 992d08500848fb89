"""The cells of a sweep and where their results are.

A *cell* is one run of a recipe. Finished cells are kept in two compact files:
a line of ``cells.jsonl`` (settings, seed, all figures, versions, commit) and a
member of ``trials.zip`` (scores of the test by speaker). What runs here, or has
run here, has a folder in ``cells`` besides, which need not be kept.

Authors
 * The noisegate developers, 2026
"""

import dataclasses
import io
import itertools
import json
import zipfile
from pathlib import Path, PurePath

from noisegate.evaluation.files import (
    parsed,
    read_json,
    read_member,
    read_text,
    write_atomically,
)
from noisegate.evaluation.methods import FROM_SCRATCH, METHODS


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run.

    Arguments
    ---------
    method : str
        One of METHODS.
    budget : float
        Share of the MACs at full width.
    seed : int
        Seed of the run.
    model : str
        Name of the YAML without its ending, in a sweep over several, or name
        of the variant.
    """

    method: str
    budget: float
    seed: int
    model: str = ""

    @property
    def name(self):
        """str : name of the cell and of its folder."""
        name = f"{self.method}_{self.budget:g}_{self.seed}"
        return f"{self.model}_{name}" if self.model else name

    def like(self, **changes):
        """Cell : one that differs in some fields."""
        return dataclasses.replace(self, **changes)

    @property
    def dense(self):
        """Cell : the dense one of the same model and seed."""
        return self.like(method="dense", budget=1.0)

    @property
    def order(self):
        """tuple : what cells are sorted by."""
        number = list(METHODS).index(self.method)
        return self.seed, self.model, -self.budget, number


class SweepFolder:
    """The folder of a sweep and all cells that it has results of.

    Beside the two files it has, where the sweep was run, ``sweep.json`` (what
    was asked for), ``hparams`` (the YAML of each method), and ``cells/<name>``
    with the outputs of each run, its ``stdout.txt`` among them.

    Arguments
    ---------
    folder : str
        The folder.

    Raises
    ------
    ValueError
        If it holds no sweep.
    """

    def __init__(self, folder):
        self.folder = Path(folder).resolve()
        self._kept = {}  # finished cells: (cell, figures) by name
        path = self.folder / "cells.jsonl"
        lines = read_text(path).splitlines() if path.exists() else []
        for number, line in enumerate(lines, 1):
            where = f"{path}, line {number}"
            cell, row = _cell(parsed(line, where), where)
            self._kept[cell.name] = cell, row
        for path in self.folder.glob("cells/*/cell.json"):
            cell, _ = _cell(read_json(path), path)
            if cell.name == path.parent.name:
                self._kept.setdefault(cell.name, (cell, None))
        self.plan = self._plan()
        cells = [cell for cell, _ in self._kept.values()]
        self.cells = sorted(cells, key=lambda cell: cell.order)

    def _plan(self):
        """What was asked for: "recipe", "hparams", "overrides"."""
        path = self.folder / "sweep.json"
        if path.is_file():
            return read_json(path)
        for _, row in self._kept.values():
            if row is not None:
                return row["settings"]
        raise ValueError(
            f"{self.folder} is not the folder of a sweep, it has no sweep.json"
            " and no cells.jsonl"
        )

    def place(self, name):
        """Path : the folder of a cell."""
        return self.folder / "cells" / name

    def finished(self, name):
        """bool : whether a cell has a result."""
        known = self._kept.get(name, (None, None))[1] is not None
        return known or (self.place(name) / "result.json").exists()

    def needs(self, cell):
        """Returns the cells (dict) that a cell takes something of, by what it
        takes: "widths", and in a chain "start" and "teacher"."""
        found = {}
        if cell.method == "retrained":
            found["widths"] = cell.like(method="noise")
        if not self.plan.get("chain") or cell.method == "dense":
            return found
        found["teacher"] = cell.dense
        if cell.method not in FROM_SCRATCH:
            greater = [
                other
                for other in self.cells
                if other == cell.like(budget=other.budget)
                and other.budget > cell.budget
            ]
            before = min(greater, key=lambda c: c.budget, default=cell.dense)
            found["start"] = found["teacher"] = before
        return found

    def _chained(self, cell, needed, folder):
        """What a cell of a chain is called with besides."""
        chain = self.plan["chain"]
        if cell.method == "dense":
            return dense_run(chain["dense"])
        teacher = needed["teacher"].name
        compact = str(folder / "cells" / teacher / "compact")
        options = {"teacher_folder": compact}
        if "start" in needed:
            options["pretrained"] = compact
            full, at = (
                self.result(name)["macs_per_second"]
                for name in (cell.dense.name, teacher)
            )
            options |= stage(chain["stage"], cell.budget, full, at)
        elif epochs := chain.get("number_of_epochs"):
            # As many steps as the others have taken down to this budget
            wider = {
                c.budget for c in self.cells if cell.budget <= c.budget < 1
            }
            more = chain["stage"].get("number_of_epochs", epochs)
            options["number_of_epochs"] = epochs + len(wider) * more
        return options

    def arguments(self, cell, folder=None):
        """Returns what the recipe's train.py is called with for a cell.

        Arguments
        ---------
        cell : Cell
            The cell.
        folder : str
            Stands for the folder of the sweep, if given.

        Returns
        -------
        list of str
        """
        folder, more = PurePath(folder or self.folder), []
        needed = self.needs(cell)
        if "widths" in needed:
            result = folder / "cells" / needed["widths"].name / "result.json"
            more = [f"--complexity_loss={{widths: '{result}'}}"]
        own = {}
        if self.plan.get("chain"):
            own = self._chained(cell, needed, folder)
        budget = own.pop("budget", cell.budget)
        more += _as_overrides(own)
        variants, model = self.plan.get("variants"), cell.model
        if variants is not None:  # of one YAML
            more, model = [*more, *_as_overrides(variants[model])], ""
        return [
            str(folder / "hparams" / yaml_name(model, cell.method)),
            f"--seed={cell.seed}",
            f"--budget={json.dumps(budget)}",
            f"--output_folder={folder / 'cells' / cell.name}",
            "--noprogressbar",
            *more,
            # Of a stage are other values, as in a chain of one run
            *[
                text
                for text in self.plan["overrides"]
                if text.partition("=")[0].lstrip("-") not in own
            ],
        ]

    def result(self, name):
        """dict : figures of a finished cell, with the key "gates": the
        columns (dict of list) of ``gates.jsonl``, a value for each epoch."""
        path = self.place(name) / "result.json"
        if not path.exists():
            return self._kept[name][1]
        row = read_json(path)
        if self.plan.get("chain"):
            self._compare_with_dense(name, row)
        history = self.place(name) / "gates.jsonl"
        if history.exists():
            row["gates"] = _columns(records(history))
        return row

    def _compare_with_dense(self, name, row):
        """Puts the costs of the dense model in the place of those of the model
        that was cut, as "at full width"."""
        kept = (cell for cell, _ in self._kept.values())
        cells = itertools.chain(self.cells, kept)
        cell = next(cell for cell in cells if cell.name == name)
        dense = cell.dense.name
        if dense == name or not self.finished(dense):
            return
        full = self.result(dense)
        row["macs_per_second_full"] = full["macs_per_second"]
        row["macs_by_layer"] = {
            layer: [before, row["macs_by_layer"].get(layer, [0, 0])[1]]
            for layer, (_, before) in full["macs_by_layer"].items()
        }

    def results(self):
        """list of (Cell, dict) : the figures of the finished cells, with the
        key "latency" if the cell is in ``latency.json``."""
        path, timed, found = self.folder / "latency.json", {}, []
        if path.exists():
            timed = read_json(path)["cells"]
        for cell in self.cells:
            if self.finished(cell.name):
                result = dict(self.result(cell.name))
                if cell.name in timed:
                    result["latency"] = timed[cell.name]
                found.append((cell, result))
        return found

    def trials(self, name):
        """Path or zipfile.Path : scores of the test of a cell, which need not
        exist. A ValueError names a store that cannot be read."""
        path = self.place(name) / "trials.txt"
        store = self.folder / "trials.zip"
        if path.exists() or not store.exists():
            return path
        try:
            return zipfile.Path(store, f"{name}.txt")
        except zipfile.BadZipFile as error:
            raise ValueError(f"{store} is damaged: {error}") from error

    def gather(self):
        """Takes cells that have finished here into the two files."""
        lines, finished = [], []
        known = {*self.cells, *(cell for cell, _ in self._kept.values())}
        for cell in sorted(known, key=lambda cell: cell.order):
            if not self.finished(cell.name):
                continue
            settings = {"settings": self.plan, **self.result(cell.name)}
            row = {**settings, **dataclasses.asdict(cell)}
            if cell.model:  # of several models no page shows it
                row.pop("gates", None)
            lines.append(json.dumps(row) + "\n")
            finished.append(cell.name)
        path, text = self.folder / "cells.jsonl", "".join(lines)
        if not lines or path.exists() and path.read_bytes() == text.encode():
            return
        packed, n_members = io.BytesIO(), 0
        with zipfile.ZipFile(packed, "w") as store:
            for name in finished:
                trials = self.trials(name)
                if trials.exists():
                    n_members += 1
                    # Without a date, so that equal trials make equal files
                    store.writestr(
                        zipfile.ZipInfo(f"{name}.txt"),
                        read_member(trials),
                        zipfile.ZIP_LZMA,
                    )
        if n_members:
            write_atomically(self.folder / "trials.zip", packed.getvalue())
        write_atomically(path, text)


def _cell(row, where):
    """The cell that a row is of, and the rest of the row."""
    fields = dataclasses.fields(Cell)
    needed = [f.name for f in fields if f.default is dataclasses.MISSING]
    if not isinstance(row, dict) or not {*needed} <= {*row}:
        keys = [*row] if isinstance(row, dict) else row
        raise ValueError(
            f"{where} is of no cell of a sweep: expected the keys "
            f"{needed}, got {keys}"
        )
    found = {f.name: row.pop(f.name) for f in fields if f.name in row}
    return Cell(**found), row


def dense_run(values):
    """Returns the values of keys (dict) in the dense run of a chain.

    Arguments
    ---------
    values : dict
        Of that run, as the recipe has them.

    Returns
    -------
    dict
    """
    return {**values, "gate_layers": []}


def stage(values, budget, full, at):
    """Returns the values of keys (dict) in a stage of a chain.

    Arguments
    ---------
    values : dict
        Of the stages, as the recipe has them.
    budget : float
        Share of the MACs of the dense model.
    full : float
        MACs per second of the dense model.
    at : float
        MACs per second of the model that is cut.

    Returns
    -------
    dict
        With the share of the latter's MACs as "budget".
    """
    return {**values, "budget": min(1.0, budget * full / at)}


def _as_overrides(values):
    """Values by key as options of train.py: JSON is YAML."""
    return [f"--{key}={json.dumps(value)}" for key, value in values.items()]


def yaml_name(model, method):
    """Returns the name of the YAML of a method.

    Arguments
    ---------
    model : str
        See :class:`Cell`.
    method : str
        Likewise.

    Returns
    -------
    str
    """
    return f"{model}_{method}.yaml" if model else f"{method}.yaml"


def _columns(rows):
    """Lists of values by key, of four digits: enough for a page."""
    columns = {key: [] for row in rows for key in row}
    for row in rows:
        for key, values in columns.items():
            x = row.get(key)
            values.append(float(f"{x:.4g}") if isinstance(x, float) else x)
    return columns


def records(path):
    """Returns the lines of a JSON Lines file (list of dict); the last may be
    cut off.

    Arguments
    ---------
    path : pathlib.Path
        The file.

    Returns
    -------
    list of dict
    """
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue  # the run was interrupted here
    return found
