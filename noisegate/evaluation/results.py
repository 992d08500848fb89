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
import math
import statistics
import zipfile
from pathlib import Path, PurePath

from noisegate.evaluation.files import write_atomically
from noisegate.evaluation.methods import FROM_SCRATCH, METHODS

_FLOAT_BYTES = 4
# Columns of figures that not all cells have: key, its ratio, unit
_MORE = {
    "activations (MB per s of audio)": (
        "activations_per_second",
        None,
        1e6 / _FLOAT_BYTES,
    ),
    "torch, ms/s (of dense)": ("torch_ms_per_s", "torch_ratio", 1),
    "onnxruntime, ms/s (of dense)": ("onnx_ms_per_s", "onnx_ratio", 1),
}
_FEW = 3  # widths that a table has room for
_METRICS = ("EER", "error_rate", "error", "loss")  # the first that is there


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
        for row in self._lines():
            cell = Cell(**{f.name: row.pop(f.name) for f in _FIELDS})
            self._kept[cell.name] = cell, row
        for path in self.folder.glob("cells/*/cell.json"):
            cell = Cell(**json.loads(path.read_text(encoding="utf-8")))
            if cell.name == path.parent.name:
                self._kept.setdefault(cell.name, (cell, None))
        self.plan = self._plan()
        cells = [cell for cell, _ in self._kept.values()]
        self.cells = sorted(cells, key=lambda cell: cell.order)

    def _lines(self):
        path = self.folder / "cells.jsonl"
        if not path.exists():
            return []
        lines = path.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def _plan(self):
        """What was asked for: "recipe", "hparams", "overrides"."""
        path = self.folder / "sweep.json"
        if path.is_file():
            return json.loads(path.read_text(encoding="utf-8"))
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
        if self.plan.get("chain") and cell.method != "dense":
            found["teacher"] = cell.like(method="dense", budget=1.0)
            if cell.method not in FROM_SCRATCH:
                greater = [
                    other
                    for other in self.cells
                    if other == cell.like(budget=other.budget)
                    and other.budget > cell.budget
                ]
                before = min(greater, key=lambda c: c.budget, default=None)
                found["start"] = before or found["teacher"]
        return found

    def _chained(self, cell, needed, folder):
        """What a cell of a chain is called with besides."""
        chain = self.plan["chain"]
        if cell.method == "dense":
            return {**chain["dense"], "gate_layers": []}
        teacher = needed["teacher"].name
        place = folder / "cells" / teacher / "compact"
        options = {"teacher_folder": str(place)}
        if "start" in needed:
            start = needed["start"].name
            options["pretrained"] = str(folder / "cells" / start / "compact")
            full, at = (
                self.result(name)["macs_per_second"]
                for name in (teacher, start)
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
        row = json.loads(path.read_text(encoding="utf-8"))
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
        dense = cell.like(method="dense", budget=1.0).name
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
            timed = json.loads(path.read_text(encoding="utf-8"))["cells"]
        for cell in self.cells:
            if self.finished(cell.name):
                result = dict(self.result(cell.name))
                if cell.name in timed:
                    result["latency"] = timed[cell.name]
                found.append((cell, result))
        return found

    def trials(self, name):
        """Path or zipfile.Path : scores of the test of a cell, which need not
        exist."""
        path = self.place(name) / "trials.txt"
        store = self.folder / "trials.zip"
        if path.exists() or not store.exists():
            return path
        return zipfile.Path(store, f"{name}.txt")

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
                        trials.read_text(encoding="utf-8"),
                        zipfile.ZIP_LZMA,
                    )
        if n_members:
            write_atomically(self.folder / "trials.zip", packed.getvalue())
        write_atomically(path, text)


_FIELDS = dataclasses.fields(Cell)


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


def find_metric(rows, metric=None):
    """Returns the figure that a sweep is judged by.

    Arguments
    ---------
    rows : list of dict
        See :func:`summarize`.
    metric : str
        The figure asked for, if any.

    Returns
    -------
    str
        It, or the first of EER, error rate, error and loss that all have.

    Raises
    ------
    ValueError
        If a cell does not have it.
    """
    wanted = [metric] if metric else _METRICS
    for name in wanted:
        if all(f"test {name}" in row for row in rows):
            return name
    raise ValueError(f"not all results have a figure 'test' of {wanted}")


def _optional(result):
    """Figures that not all cells have."""
    found = {**result, **result.get("latency", {})}
    keys = [key for key, ratio, _ in _MORE.values()]
    keys += [ratio for _, ratio, _ in _MORE.values() if ratio]
    return {key: found[key] for key in keys if found.get(key) is not None}


def _mean_of(group, key, ratio, unit):
    """Mean over seeds as text, if all have it, with that of the ratio."""
    if not all(key in row for row in group):
        return "-"
    text = f"{statistics.mean(row[key] for row in group) / unit:.3g}"
    if ratio and all(ratio in row for row in group):
        text += f" ({statistics.mean(row[ratio] for row in group):.2f})"
    return text


def _narrowed(rows):
    """Names of widths that differ, in order."""
    names = dict.fromkeys(name for row in rows for name in row["widths"])
    return [
        name
        for name in names
        if len({row["widths"].get(name) for row in rows}) > 1
    ]


def _widths(group, names):
    """Mean widths over seeds as text."""
    means = (
        statistics.mean(row["widths"].get(name, 0) for row in group)
        for name in names
    )
    return ", ".join(f"{mean:.3g}" for mean in means)


def figures(results):
    """Returns the figures of cells that are numbers.

    Arguments
    ---------
    results : list of (Cell, dict)
        See :meth:`SweepFolder.results`.

    Returns
    -------
    list of dict
        One for each cell, in order.

    Raises
    ------
    ValueError
        If there are none.
    """
    rows = []
    for cell, result in results:
        full = result["macs_per_second_full"]
        row = {
            **dataclasses.asdict(cell),
            "macs_share": result["macs_per_second"] / full,
            "widths": result["widths"],
        }
        for key in ("macs_per_second", "params", "steps"):
            row[key] = result[key]
        # Absent from old results, or not measured
        row.update(_optional(result))
        for key, value in result["test"].items():
            if isinstance(value, (int, float)):
                row[f"test {key}"] = value
        for key, ends in (result.get("test_intervals_95") or {}).items():
            row[f"interval {key}"] = "{:.1f} to {:.1f}".format(*ends)
        rows.append(row)
    if not rows:
        raise ValueError("no cell is finished")
    return rows


def summarize(rows, metric=None, columns=()):
    """Returns a table of a sweep.

    Arguments
    ---------
    rows : list of dict
        See :func:`figures`.
    metric : str
        Key of "test" in the results; EER, error or loss if None, the first
        that there is.
    columns : list of str
        Further keys of "test" to show.

    Returns
    -------
    headings : list of str
        Those of the table.
    table : list of list of str
        For each model, budget and method the number of seeds, mean and
        standard deviation of the metric, MACs per second of audio and relative
        to the dense model, parameters, training steps, and where known
        activations and latencies (see docs/sweep.md); the widths if they are
        few.

    Raises
    ------
    ValueError
        If a cell lacks one of the figures.
    """
    shown = [find_metric(rows, metric)]
    shown += [find_metric(rows, column) for column in columns]
    more = {
        name: keys
        for name, keys in _MORE.items()
        if any(keys[0] in row for row in rows)
    }
    several = any(row["model"] for row in rows)
    headings = ["model"] * several + ["method", "budget", "n"]
    headings += [f"{shown[0]} (test)", "MACs/s (M)", "of dense", "parameters"]
    narrowed = _narrowed(rows)
    few = 0 < len(narrowed) <= _FEW
    headings += ["steps", *[", ".join(narrowed)] * few, *more, *shown[1:]]
    interval = f"interval {shown[0]}"  # of one run, over its conditions
    with_intervals = any(interval in row for row in rows)
    if with_intervals:
        headings.append("95 % interval of the first seed")
    groups = {}
    for row in rows:
        key = row["model"], -row["budget"], row["method"]
        groups.setdefault(key, []).append(row)
    order, table = list(METHODS), []
    for key in sorted(groups, key=lambda k: (*k[:2], order.index(k[2]))):
        group = groups[key]

        def mean(column, group=group):
            return statistics.mean(row[column] for row in group)

        tests = [
            spread([row[f"test {name}"] for row in group]) for name in shown
        ]
        table.append(
            [
                *key[:1] * several,
                key[2],
                f"{-key[1]:g}",
                f"{len(group)}",
                tests[0],
                f"{mean('macs_per_second') / 1e6:.3g}",
                f"{mean('macs_share'):.3f}",
                f"{mean('params'):.0f}",
                f"{mean('steps'):.0f}",
                *[_widths(group, narrowed)] * few,
                *(_mean_of(group, *keys) for keys in more.values()),
                *tests[1:],
                *[group[0].get(interval, "-")] * with_intervals,
            ]
        )
    return headings, table


def spread(values):
    """Returns mean and standard deviation as text.

    Arguments
    ---------
    values : iterable of float
        The values.

    Returns
    -------
    str
        "-" if there are none.

    Example
    -------
    >>> spread([1.0, 2.0, 3.0])
    '2 ± 1'
    """
    values = list(values)
    if not values:
        return "-"
    text = f"{statistics.mean(values):.3g}"
    # statistics.stdev fails where a figure is not finite
    if len(values) > 1 and all(map(math.isfinite, values)):
        text += f" ± {statistics.stdev(values):.2g}"
    return text
