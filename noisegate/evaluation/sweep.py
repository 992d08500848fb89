"""Runs a recipe for each budget, method and seed: a trade-off curve.

A *cell* is one call of the recipe's own ``train.py``. Its YAML is that of the
gated recipe, with another gate or another complexity loss for another method
(:func:`derive`); seed, budget and output folder are overrides. A cell is
finished when its ``result.json`` is there, so that a sweep can be stopped at
any time and be started again.

Authors
 * The noisegate developers, 2026
"""

import csv
import dataclasses
import fcntl
import io
import json
import math
import os
import shlex
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path, PurePath

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.tag import Tag
from tqdm import tqdm

from noisegate.evaluation.files import markdown_table, write_atomically

# Gate, complexity loss (None: as in the recipe) and further keys of the latter
METHODS = {
    "dense": (None, None, {}),
    "noise": (None, None, {}),
    "stochastic": ("noisegate.baselines.gates.HardConcreteGate", None, {}),
    "stg": ("noisegate.baselines.gates.STGGate", None, {}),
    "pruned": (
        "noisegate.baselines.gates.HardGate",
        "noisegate.baselines.pruning.MagnitudePruning",
        {},
    ),
    "torch_pruning": (
        "noisegate.baselines.gates.HardGate",
        "noisegate.baselines.pruning.TorchPruning",
        {},
    ),
    "narrow": (
        "noisegate.baselines.gates.HardGate",
        "noisegate.baselines.gates.FixedWidths",
        {"widths": "uniform"},
    ),
    "retrained": (
        "noisegate.baselines.gates.HardGate",
        "noisegate.baselines.gates.FixedWidths",
        {"widths": "uniform"},  # overridden with the result of a noise gate
    ),
}
_GATE_KEYS = ("kappa_min", "granularity")  # what all gates have
# Of the recipe's complexity loss. Pruning keeps its own schedule: the gates'
# may be over long before the weights tell anything.
_LOSS_KEYS = ("gates", "budget", "freeze_epoch")
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
_METRICS = ("EER", "error_rate", "error", "loss")  # the first that is there
_POLL_S = 0.5
_SLURM_PAUSE_S = 30.0
_SLURM_ACTIVE = (
    "PENDING",
    "CONFIGURING",
    "RUNNING",
    "COMPLETING",
    "SUSPENDED",
    "REQUEUED",
    "REQUEUE_HOLD",
    "PREEMPTED",
)


def derive(text, method):
    """Returns the YAML of a rival.

    Arguments
    ---------
    text : str
        YAML of a gated recipe, with the keys ``gates``, ``complexity_loss``,
        ``budget``, ``seed`` and ``output_folder``.
    method : str
        One of METHODS.

    Returns
    -------
    str
        The same with another gate and another complexity loss; the keys of
        the gate that only it has, and those of the loss, are left out.

    Raises
    ------
    ValueError
        If one of the keys is missing.

    Example
    -------
    >>> text = '''
    ... seed: 1
    ... output_folder: results
    ... budget: 0.25
    ... gates: !new:noisegate.gates.Gates
    ...     gate: !name:noisegate.gate.NoiseGate
    ...         kappa_min: 0.1
    ...         ramp: 4.0
    ... complexity_loss: !new:noisegate.loss.ComplexityLoss
    ...     budget: !ref <budget>
    ... '''
    >>> print(derive(text, "stochastic").split("gate: ")[1].split("comp")[0])
    !name:noisegate.baselines.gates.HardConcreteGate
        kappa_min: 0.1
    <BLANKLINE>
    """
    yaml = YAML()
    yaml.width = 1000
    yaml.indent(mapping=4, sequence=4, offset=2)
    hparams = yaml.load(text)
    missing = [
        key
        for key in ("gates", "complexity_loss", "budget", "seed")
        + ("output_folder",)
        if key not in hparams
    ]
    if missing:
        raise ValueError(
            f"a sweep needs the keys {missing} in the YAML of the gated recipe"
        )
    if method == "noise":
        return text
    gates, loss = hparams["gates"], hparams["complexity_loss"]
    gate_class, loss_class, more = METHODS[method]
    if method == "dense":
        gates["layers"] = []
    if gate_class is not None:
        gate = CommentedMap()
        old = gates.get("gate")
        for key in _GATE_KEYS:
            if isinstance(old, CommentedMap) and key in old:
                gate[key] = old[key]
        gate.yaml_set_ctag(Tag(suffix=f"!name:{gate_class}"))
        gates["gate"] = gate
    if loss_class is not None:
        new = CommentedMap()
        for key in _LOSS_KEYS:
            if key in loss:
                new[key] = loss[key]
        new.update(more)
        new.yaml_set_ctag(Tag(suffix=f"!new:{loss_class}"))
        hparams["complexity_loss"] = new
    out = io.StringIO()
    yaml.dump(hparams, out)
    return out.getvalue()


@dataclasses.dataclass
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
    """

    method: str
    budget: float
    seed: int

    @property
    def name(self):
        """str : name of the cell and of its folder."""
        return f"{self.method}_{self.budget:g}_{self.seed}"

    @property
    def needs(self):
        """str or None : name of the cell whose learned widths it takes."""
        if self.method != "retrained":
            return None
        return Cell("noise", self.budget, self.seed).name


class SweepFolder:
    """The cells of a sweep and the folder that they are kept in.

    The folder has ``sweep.json`` (what was asked for), ``hparams`` (the YAML
    of each method), and ``cells/<method>_<budget>_<seed>`` with the outputs of
    each run, its ``stdout.txt`` among them.

    Arguments
    ---------
    folder : str
        The folder.
    cells : list of Cell
        Its cells.
    plan : dict
        What is in ``sweep.json``: "recipe", "hparams", "overrides".
    """

    def __init__(self, folder, cells, plan):
        self.folder = Path(folder).resolve()
        self.cells = cells
        self.plan = plan

    @classmethod
    def read(cls, folder):
        """Opens a sweep from its folder alone, with all cells there.

        Arguments
        ---------
        folder : str
            The folder.

        Returns
        -------
        SweepFolder

        Raises
        ------
        ValueError
            If it holds no sweep.
        """
        path = Path(folder) / "sweep.json"
        if not path.is_file():
            raise ValueError(
                f"{folder} is not the folder of a sweep, it has no sweep.json"
            )
        cells, order = [], list(METHODS)
        for place in Path(folder).glob("cells/*/"):
            method, *numbers = place.name.rsplit("_", 2)
            try:
                budget, seed = float(numbers[0]), int(numbers[1])
            except (ValueError, IndexError):
                continue  # not of the sweep
            cell = Cell(method, budget, seed)
            if method in METHODS and cell.name == place.name:
                cells.append(cell)
        cells.sort(key=lambda c: (c.seed, -c.budget, order.index(c.method)))
        return cls(folder, cells, json.loads(path.read_text(encoding="utf-8")))

    def place(self, name):
        """Path : the folder of a cell."""
        return self.folder / "cells" / name

    def finished(self, name):
        """bool : whether a cell has a result."""
        return (self.place(name) / "result.json").exists()

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
        folder = PurePath(self.folder if folder is None else folder)
        more = []
        if cell.needs is not None:
            result = folder / "cells" / cell.needs / "result.json"
            more = [f"--complexity_loss={{widths: '{result}'}}"]
        return [
            str(folder / "hparams" / f"{cell.method}.yaml"),
            f"--seed={cell.seed}",
            f"--budget={cell.budget:g}",
            f"--output_folder={folder / 'cells' / cell.name}",
            "--noprogressbar",
            *more,
            *self.plan["overrides"],
        ]

    def results(self):
        """Returns the results of the finished cells.

        Returns
        -------
        list of (Cell, dict)
            With the key "latency" if the cell is in ``latency.json``.
        """
        latency, found = self.folder / "latency.json", []
        timed = {}
        if latency.exists():
            timed = json.loads(latency.read_text(encoding="utf-8"))["cells"]
        for cell in self.cells:
            if not self.finished(cell.name):
                continue
            path = self.place(cell.name) / "result.json"
            result = json.loads(path.read_text(encoding="utf-8"))
            if cell.name in timed:
                result["latency"] = timed[cell.name]
            found.append((cell, result))
        return found


class Sweep(SweepFolder):
    """A sweep that can be run.

    Arguments
    ---------
    hparams_file : str
        YAML of a gated recipe. Its ``train.py`` is beside it or in the folder
        above.
    folder : str
        Where the sweep is kept.
    budgets : list of float
        Shares of the MACs at full width, in (0, 1]; 1 stands for the dense
        model, whatever the methods.
    methods : list of str
        From METHODS without "dense", or ``name=path`` with a YAML of one's own
        for one of them.
    n_seeds : int
        Number of seeds, from that of the YAML upwards.
    overrides : list of str
        Overrides for all cells, as for train.py.

    Raises
    ------
    ValueError
        If a method or budget is not known, or if the folder holds a sweep
        with other YAMLs or overrides.
    """

    def __init__(
        self, hparams_file, folder, budgets, methods, n_seeds=1, overrides=()
    ):
        hparams_file = Path(hparams_file).resolve()
        places = (hparams_file.parents[1], hparams_file.parent)
        scripts = [place / "train.py" for place in places]
        scripts = [script for script in scripts if script.exists()]
        if not scripts:
            raise ValueError(f"there is no train.py in {places[0]}")
        self.script = scripts[0]
        plan = {
            "recipe": str(self.script.parent.name),
            "hparams": hparams_file.name,
            "overrides": list(overrides),
        }
        super().__init__(folder, [], plan)
        text = hparams_file.read_text(encoding="utf-8")
        self.hparams = {"dense": derive(text, "dense")}
        for method in methods:
            name, _, path = method.partition("=")
            if name not in METHODS or name == "dense":
                known = [name for name in METHODS if name != "dense"]
                raise ValueError(f"methods must be of {known}, got '{name}'")
            self.hparams[name] = derive(text, name)
            if path:
                own = Path(path).read_text(encoding="utf-8")
                derive(own, "noise")  # has the keys
                self.hparams[name] = own
        for budget in budgets:
            if not 0 < budget <= 1:
                raise ValueError(f"budgets must be in (0, 1], got {budget}")
        if n_seeds < 1:
            raise ValueError(f"at least one seed is needed, got {n_seeds}")
        if "retrained" in self.hparams and "noise" not in self.hparams:
            raise ValueError("'retrained' takes the widths of 'noise': add it")
        first = int(YAML().load(text)["seed"])
        for seed in range(first, first + n_seeds):
            for budget in sorted(set(budgets), reverse=True):
                if budget == 1:
                    self.cells.append(Cell("dense", 1.0, seed))
                    continue
                self.cells += [
                    Cell(method, budget, seed)
                    for method in self.hparams
                    if method != "dense"
                ]
        self._write_plan(hparams_file)

    def _write_plan(self, hparams_file):
        """Notes what is run, and refuses to mix it with something else."""
        (self.folder / "hparams").mkdir(parents=True, exist_ok=True)
        path = self.folder / "sweep.json"
        if path.exists():
            before = json.loads(path.read_text(encoding="utf-8"))
            if before != self.plan:
                raise ValueError(
                    f"{self.folder} holds another sweep: {before}, asked for "
                    f"is {self.plan}"
                )
        for name, text in self.hparams.items():
            yaml = self.folder / "hparams" / f"{name}.yaml"
            if yaml.exists() and yaml.read_text(encoding="utf-8") != text:
                raise ValueError(
                    f"{yaml} is not what {hparams_file} leads to now: the "
                    "recipe has changed, take another folder"
                )
            write_atomically(yaml, text)
        write_atomically(path, json.dumps(self.plan, indent=2) + "\n")

    def command(self, cell):
        """Returns the command that runs a cell.

        Arguments
        ---------
        cell : Cell
            The cell.

        Returns
        -------
        list of str
        """
        return [sys.executable, str(self.script), *self.arguments(cell)]

    def run(self, n_jobs=1, retry=False, slurm=None):
        """Runs what is not finished, some cells at a time.

        A cell that failed is not run again unless asked for; a cell that was
        interrupted goes on from its last checkpoint. If this process is
        stopped, so are the cells that run on this machine; jobs of Slurm stay
        in the queue. What still runs when this process has ended is waited
        for by the next call.

        Arguments
        ---------
        n_jobs : int
            Number of cells at a time; they share the processors.
        retry : bool
            Whether cells that failed are run once more.
        slurm : dict
            If given, cells are jobs of Slurm: options of sbatch, as
            ``submitit.SlurmExecutor.update_parameters`` takes them
            (``partition``, ``time`` in minutes, ``gres``, ...).

        Returns
        -------
        list of str
            Names of the cells that failed, or that need one that did.
        """
        waiting, failed = [], []
        for cell in self.cells:
            mark = self.place(cell.name) / "failed.txt"
            if retry and mark.exists():
                mark.unlink()
            if self.finished(cell.name):
                continue
            if mark.exists():
                failed.append(cell.name)
            else:
                waiting.append(cell)
        n_done = len(self.cells) - len(waiting) - len(failed)
        bar = tqdm(total=len(self.cells), initial=n_done, unit="cell")
        running, shown = [], None
        before = signal.signal(signal.SIGTERM, _interrupt)
        try:
            while waiting or running:
                lost = [c for c in waiting if c.needs in failed]
                for cell in lost:
                    text = f"{cell.name}: not run, {cell.needs} failed"
                    bar.write(text, file=sys.stderr)
                    waiting.remove(cell)
                    failed.append(cell.name)
                ready = [
                    c
                    for c in waiting
                    if c.needs is None or self.finished(c.needs)
                ]
                for cell in ready[: max(0, n_jobs - len(running))]:
                    waiting.remove(cell)
                    if slurm is None:
                        running.append(_Run(self, cell, n_jobs))
                    else:
                        running.append(_SlurmRun(self, cell, slurm))
                time.sleep(_POLL_S)
                for run in [run for run in running if run.ended()]:
                    running.remove(run)
                    name = run.cell.name
                    if self.finished(name):
                        bar.update()
                        continue
                    failed.append(name)
                    text = f"{run.outcome()}, see {run.log}"
                    write_atomically(
                        self.place(name) / "failed.txt", text + "\n"
                    )
                    bar.write(f"{name}: {text}", file=sys.stderr)
                names = ", ".join(run.cell.name for run in running)
                state = f"{len(failed)} failed; {names}"
                # In a log file a line for each change, no moving clock
                if state != shown or sys.stderr.isatty():
                    bar.set_postfix_str(state)
                shown = state
        finally:
            for run in running:
                run.stop()
            signal.signal(signal.SIGTERM, before)
            bar.close()
        return failed


class _Run:
    """A cell that is running."""

    def __init__(self, sweep, cell, n_jobs):
        self.sweep, self.cell, self.n_jobs = sweep, cell, n_jobs
        self.folder = sweep.place(cell.name)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log = self.folder / "stdout.txt"
        # Is held until the process of the cell ends, whoever started it
        self.lock = open(self.folder / "lock", "w", encoding="utf-8")
        self.process = None

    def _start(self):
        threads = str(max(1, (os.cpu_count() or 1) // self.n_jobs))
        with open(self.log, "ab") as out:
            self.process = subprocess.Popen(
                self.sweep.command(self.cell),
                cwd=self.sweep.script.parent,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=[self.lock.fileno()],
                env={"OMP_NUM_THREADS": threads, **os.environ},
            )

    def ended(self):
        """Whether the process has ended; starts it as soon as it may."""
        if self.process is None:
            try:
                fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            self._start()
        ended = self.process.poll() is not None
        if ended:
            self.lock.close()
        return ended

    def outcome(self):
        """How it ended."""
        return f"exit status {self.process.returncode}"

    def stop(self):
        """Ends the process and those that it has started."""
        self.lock.close()
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            self.process.wait()


class _SlurmRun:
    """A cell that is a job of Slurm, of this call or of an earlier one."""

    def __init__(self, sweep, cell, options):
        self.cell = cell
        folder = sweep.place(cell.name)
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / "stdout.txt"
        self.note = folder / "slurm_job.txt"
        if not self.note.exists():
            write_atomically(self.note, self._submit(sweep, folder, options))
        self.job = self.note.read_text(encoding="utf-8")
        self.asked, self.pause_s = time.monotonic(), 1.0

    def _submit(self, sweep, folder, options):
        import submitit

        executor = submitit.SlurmExecutor(folder / "slurm")
        executor.update_parameters(**{"job_name": self.cell.name, **options})
        line = shlex.join(sweep.command(self.cell))
        line += f" >> {shlex.quote(str(self.log))} 2>&1"
        function = submitit.helpers.CommandFunction(
            ["bash", "-c", line], verbose=False, cwd=sweep.script.parent
        )
        return executor.submit(function).job_id

    def ended(self):
        """Whether the job has left the queue; seldom asks."""
        if time.monotonic() < self.asked + self.pause_s:
            return False
        self.asked = time.monotonic()
        self.pause_s = min(_SLURM_PAUSE_S, 2 * self.pause_s)
        answer = subprocess.run(
            ["squeue", "--noheader", "--states=all", "--format=%T"]
            + [f"--jobs={self.job}"],
            capture_output=True,
            text=True,
            check=False,
        )
        # Jobs that ended some minutes ago are not known any more
        unknown = "Invalid job id" in answer.stderr
        if answer.returncode and not unknown:
            return False  # the controller does not answer
        if answer.stdout.strip() in _SLURM_ACTIVE:
            return False
        self.note.unlink()
        return True

    def outcome(self):
        """How it ended."""
        return f"job {self.job} of Slurm ended without a result"

    def stop(self):
        """Leaves the job in the queue."""


def _interrupt(number, frame):
    raise KeyboardInterrupt


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


def summarize(results, metric=None):
    """Returns a table of a sweep, and all figures.

    Arguments
    ---------
    results : list of (Cell, dict)
        See :meth:`SweepFolder.results`.
    metric : str
        Key of "test" in the results; EER, error or loss if None, the first
        that there is.

    Returns
    -------
    headings : list of str
        Those of the table.
    table : list of list of str
        For each method and budget the number of seeds, mean and standard
        deviation of the metric, MACs per second of audio and relative to the
        dense model, parameters, training steps, and where known activations
        and latencies (see docs/sweep.md).
    rows : list of dict
        One for each cell: its figures that are numbers.

    Raises
    ------
    ValueError
        If there are no results, or none with the metric.
    """
    rows = []
    for cell, result in results:
        row = {
            "method": cell.method,
            "budget": cell.budget,
            "seed": cell.seed,
            "macs_share": result["macs_per_second"]
            / result["macs_per_second_full"],
            "macs_per_second": result["macs_per_second"],
            "params": result["params"],
            "steps": result["steps"],
        }
        # Absent from old results, or not measured
        row.update(_optional(result))
        for key, value in result["test"].items():
            if isinstance(value, (int, float)):
                row[f"test {key}"] = value
        rows.append(row)
    if not rows:
        raise ValueError("no cell is finished")
    metric = find_metric(rows, metric)
    more = [
        name
        for name, (key, _, _) in _MORE.items()
        if any(key in row for row in rows)
    ]
    headings = ["method", "budget", "n", f"{metric} (test)", "MACs/s (M)"]
    headings += ["of dense", "parameters", "steps", *more]
    table = []
    groups = {}
    for row in rows:
        groups.setdefault((-row["budget"], row["method"]), []).append(row)
    order = list(METHODS)
    for key in sorted(groups, key=lambda k: (k[0], order.index(k[1]))):
        group = groups[key]
        values = [row[f"test {metric}"] for row in group]
        spread = ""
        # statistics.stdev fails where a figure is not finite
        if len(values) > 1 and all(map(math.isfinite, values)):
            spread = f" ± {statistics.stdev(values):.2g}"

        def mean(column, group=group):
            return statistics.mean(row[column] for row in group)

        table.append(
            [
                key[1],
                f"{-key[0]:g}",
                f"{len(group)}",
                f"{statistics.mean(values):.3g}{spread}",
                f"{mean('macs_per_second') / 1e6:.3g}",
                f"{mean('macs_share'):.3f}",
                f"{mean('params'):.0f}",
                f"{mean('steps'):.0f}",
                *(_mean_of(group, *_MORE[name]) for name in more),
            ]
        )
    return headings, table, rows


def write_summary(folder, headings, table, rows):
    """Writes ``summary.md`` and ``cells.csv``.

    Arguments
    ---------
    folder : pathlib.Path
        The folder of the sweep.
    headings : list of str
        See :func:`summarize`.
    table : list of list of str
        Likewise.
    rows : list of dict
        Likewise.
    """
    text = markdown_table(headings, table)
    write_atomically(folder / "summary.md", f"{text}\n")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(folder / "cells.csv", out.getvalue())
