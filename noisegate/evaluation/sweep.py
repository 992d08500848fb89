"""Runs a recipe for each budget, method and seed: a trade-off curve.

A *cell* is one call of the recipe's own ``train.py``. Its YAML is that of the
gated recipe, with another gate or another complexity loss for another method
(:func:`noisegate.evaluation.methods.derive`); seed, budget and output folder
are overrides. A cell is finished when its ``result.json`` is there or a line of
``cells.jsonl``, so that a sweep can be stopped at any time and be started
again.

Authors
 * The noisegate developers, 2026
"""

import dataclasses
import fcntl
import itertools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import speechbrain as sb
from ruamel.yaml import YAML
from tqdm import tqdm

from noisegate.evaluation.chain import CHAIN_KEYS
from noisegate.evaluation.files import write_atomically
from noisegate.evaluation.methods import METHODS, derive
from noisegate.evaluation.results import Cell, SweepFolder, records, yaml_name
from noisegate.evaluation.run_folder import (
    check_overrides,
    comparable,
    contents_of,
    plan_of,
)
from noisegate.extras import extra

# Keys that have other values in each cell
_OWN = ("seed", "budget", "budgets", "output_folder", "complexity_loss")
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


def _check_own(values):
    """Refuses overrides of what the sweep sets."""
    for key in _OWN:
        if values.get(key) is not None:
            raise ValueError(
                f"{key} is set for each cell by the sweep (--budgets, --seeds, "
                "--folder): it can be no override. What a complexity_loss "
                "takes can, if it is a key of its own in the YAML"
            )


class Sweep(SweepFolder):
    """A sweep that can be run.

    Arguments
    ---------
    hparams_files : list of str
        YAMLs of gated recipes with one ``train.py``, beside them or in the
        folder above; several are models to compare.
    folder : str
        Where the sweep is kept.
    budgets : list of float
        Shares of the MACs at full width, in (0, 1]; 1 stands for the dense
        model, whatever the methods.
    methods : list of str
        From METHODS without "dense".
    n_seeds : int
        Number of seeds, from that of the YAML upwards.
    overrides : list of str
        Overrides for all cells, as for train.py.
    variants : dict of str to dict
        Models to compare that differ in some keys of one YAML: their values
        by name. The key ``budget`` may be a list, in place of ``budgets``.
    chain : bool
        Whether methods go from budget to budget, from the dense model on, each
        time taught by what they start from (:mod:`noisegate.evaluation.chain`),
        with the values of the keys ``dense`` and ``stage`` in the YAML. Those
        that start from scratch have the dense model as teacher, and as many
        epochs as the others take in all down to the same budget.

    Raises
    ------
    FileNotFoundError
        If a YAML is missing.
    ValueError
        If a method or budget is not known, if variants are asked for of
        several YAMLs, if overrides have keys that the sweep sets, if the
        folder holds a sweep with other YAMLs, overrides or variants, or a
        chain that a new budget would change.
    """

    def __init__(
        self,
        hparams_files,
        folder,
        budgets,
        methods,
        n_seeds=1,
        overrides=(),
        variants=None,
        chain=False,
    ):
        files = [Path(file).resolve() for file in hparams_files]
        for file in files:
            if not file.is_file():
                raise FileNotFoundError(f"{file} is no file")
        places = (files[0].parents[1], files[0].parent)
        scripts = [place / "train.py" for place in places]
        scripts = [script for script in scripts if script.exists()]
        if not scripts:
            raise ValueError(f"there is no train.py beside {files[0]}")
        self.script = scripts[0]
        self._asked = {
            "recipe": str(self.script.parent.name),
            "hparams": " ".join(file.name for file in files),
            "overrides": list(overrides),
        }
        variants = {k: dict(v) for k, v in (variants or {}).items()}
        if variants and len(files) > 1:
            raise ValueError("variants are of one YAML, got several")
        for name in variants:  # names a folder
            if not re.fullmatch(r"[\w.-]+", name):
                raise ValueError(f"no name for a variant: '{name}'")
        own = {k: v.pop("budget", budgets) for k, v in variants.items()}
        own = {k: v if isinstance(v, list) else [v] for k, v in own.items()}
        if variants:
            self._asked["variants"] = variants
        if chain:
            self._asked["chain"] = self._stages(files, overrides)
            budgets = {1.0, *budgets}  # where it starts from
        known = [name for name in METHODS if name != "dense"]
        for method in methods:
            if method not in known:
                raise ValueError(f"methods must be of {known}, got '{method}'")
        for budget in [*budgets, *itertools.chain(*own.values())]:
            if not 0 < budget <= 1:
                raise ValueError(f"budgets must be in (0, 1], got {budget}")
        if n_seeds < 1:
            raise ValueError(f"at least one seed is needed, got {n_seeds}")
        if "retrained" in methods and "noise" not in methods:
            raise ValueError("'retrained' takes the widths of 'noise': add it")
        cells, self.hparams = [], {}  # YAML by model and method
        for file in files:
            text = file.read_text(encoding="utf-8")
            model = file.stem if len(files) > 1 else ""
            # As train.py reads them: options of SpeechBrain's own are no keys
            _, _, given = sb.parse_arguments([str(file), *overrides])
            given = YAML().load(given) or {}
            for values in (given, *variants.values()):
                _check_own(values)
            for method in ("dense", *methods):
                derived = derive(text, method)
                self.hparams[model, method] = derived
                plan = YAML().load(derived)
                for values in (given, *variants.values()):
                    check_overrides(plan, values)
            first = int(YAML().load(text)["seed"])
            for seed, (name, asked) in itertools.product(
                range(first, first + n_seeds), (own or {model: budgets}).items()
            ):
                for budget in sorted(set(asked), reverse=True):
                    chosen = ["dense"] if budget == 1 else methods
                    cells += [Cell(m, budget, seed, name) for m in chosen]
        named = dict(given)  # the same for all files
        for name, values in variants.items():
            named.update((f"{name}.{key}", v) for key, v in values.items())
        self._asked.update(contents_of(named))
        super().__init__(folder)
        before, now = comparable(self.plan, self._asked)
        if before != now:
            raise ValueError(
                f"{self.folder} holds another sweep: {self.plan}, asked for is "
                f"{self._asked}"
            )
        self.cells = cells
        if chain:
            self._check_chain()
        self._write_plan()

    @staticmethod
    def _stages(files, overrides):
        """The keys of a chain, of one YAML."""
        arguments = [str(files[0]), *overrides]
        hparams_file, _, overrides = sb.parse_arguments(arguments)
        hparams = plan_of(hparams_file, overrides)
        keys = (*CHAIN_KEYS, "number_of_epochs")
        missing = [key for key in keys if key not in hparams]
        if missing or len(files) > 1:
            raise ValueError(
                f"a chain needs one YAML, with the keys {list(keys)}; "
                f"{files[0].name} lacks {missing}"
            )
        values = {key: dict(hparams[key]) for key in ("dense", "stage")}
        epochs = {**hparams, **values["dense"]}["number_of_epochs"]
        return {**values, "number_of_epochs": epochs}

    def _plan(self):
        try:
            return super()._plan()
        except ValueError:  # nothing is there yet
            return self._asked

    def _check_chain(self):
        """Refuses a budget above which what is made has gone past: that
        started from another model, or had fewer epochs, than it would now."""

        def made(cell):
            return self.finished(cell.name) or self.place(cell.name).exists()

        for cell in self.cells:
            if cell.method == "dense" or not made(cell):
                continue
            needed = self.needs(cell)
            start = needed.get("start", cell.dense)
            if start.method != "dense" and not made(start):
                raise ValueError(
                    f"{cell.name} in {self.folder} was not cut by way of the "
                    f"budget {start.budget}: add smaller ones, or take another "
                    "folder"
                )
            if "start" in needed or not self.finished(cell.name):
                continue
            now = self._chained(cell, needed, self.folder)["number_of_epochs"]
            had = self.result(cell.name).get("epochs", now)
            if had != now:
                raise ValueError(
                    f"{cell.name} in {self.folder} had {had} epochs, with "
                    f"these budgets it would have {now}: take another folder"
                )

    def _write_plan(self):
        """Notes what is run, and refuses to mix it with something else."""
        for (model, method), text in self.hparams.items():
            yaml = self.folder / "hparams" / yaml_name(model, method)
            if yaml.exists() and yaml.read_text(encoding="utf-8") != text:
                raise ValueError(
                    f"{yaml} is not what {self.plan['hparams']} leads to now: "
                    "the recipe has changed, take another folder"
                )
            write_atomically(yaml, text)
        text = json.dumps(self.plan, indent=2) + "\n"
        write_atomically(self.folder / "sweep.json", text)

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

    def _prepare(self, cell):
        """Makes the folder of a cell and what it needs."""
        place = self.place(cell.name)
        note = json.dumps(dataclasses.asdict(cell))
        write_atomically(place / "cell.json", note + "\n")
        for what, other in self.needs(cell).items():
            needed = self.place(other.name) / "result.json"
            if what == "widths" and not needed.exists():  # in cells.jsonl alone
                write_atomically(needed, json.dumps(self.result(other.name)))

    def _progress(self, run):
        """Name of a cell, with its last epoch and the MACs in it."""
        path = self.place(run.cell.name) / "gates.jsonl"
        lines = records(path) if path.exists() else []
        if not lines:
            return run.cell.name
        epoch, macs = (lines[-1][k] for k in ("epoch", "macs_per_second"))
        return f"{run.cell.name}: epoch {epoch}, {macs / 1e6:.3g} M MACs/s"

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
        needed = {
            cell: [other.name for other in self.needs(cell).values()]
            for cell in waiting
        }
        before = signal.signal(signal.SIGTERM, _interrupt)
        try:
            while waiting or running:
                for cell in list(waiting):
                    if lost := set(needed[cell]).intersection(failed):
                        text = f"{cell.name}: not run, {min(lost)} failed"
                        bar.write(text, file=sys.stderr)
                        waiting.remove(cell)
                        failed.append(cell.name)
                ready = [
                    cell
                    for cell in waiting
                    if all(map(self.finished, needed[cell]))
                ]
                for cell in ready[: max(0, n_jobs - len(running))]:
                    waiting.remove(cell)
                    self._prepare(cell)
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
                names = ", ".join(map(self._progress, running))
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
            self.gather()
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
        with extra("slurm"):
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
