"""noisegate sweep, on the Synthetic recipe."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from noisegate.cli import main
from noisegate.evaluation.methods import METHODS, derive
from noisegate.evaluation.results import SweepFolder
from noisegate.evaluation.sweep import Sweep
from noisegate.evaluation.table import figures, summarize

RECIPES = Path(__file__).parents[2] / "recipes"
GATED = RECIPES / "Synthetic" / "hparams" / "student_gated.yaml"
SMALL = [
    "--teacher_widths=[4]",
    "--n_train=16",
    "--number_of_epochs=4",
    "--freeze_epoch=3",
]
SEEDS = ["--budgets=0.25", "--methods=noise", "--seeds=2"]
YAMLS = [
    path
    for path in sorted(RECIPES.glob("*/hparams/*.yaml"))
    if "!new:noisegate.Gates" in path.read_text()
]


def command(folder, *options, overrides=()):
    """The command line of a sweep."""
    return [
        sys.executable,
        "-m",
        "noisegate.cli",
        "sweep",
        str(GATED),
        f"--folder={folder}",
        *options,
        "--",
        *SMALL,
        *overrides,
    ]


def results(folder):
    """Results by name of the cell."""
    return {
        path.parent.name: json.loads(path.read_text())
        for path in Path(folder).glob("cells/*/result.json")
    }


def dumped(node):
    """A part of a YAML as text."""
    out = io.StringIO()
    YAML().dump({"node": node}, out)
    return out.getvalue()


@pytest.mark.parametrize("method", METHODS)
def test_the_yaml_of_a_method(method):
    """Differs from that of the recipe in gates and loss alone."""
    text = GATED.read_text(encoding="utf-8")
    yaml = YAML()
    before, after = yaml.load(text), yaml.load(derive(text, method))
    changed = {k for k in before if dumped(before[k]) != dumped(after[k])}
    assert list(before) == list(after)
    assert changed <= {"gates", "complexity_loss", "gate_lr"}
    assert (text == derive(text, method)) == (method == "noise")
    kept = dumped(before["gates"]["gate"].get("kappa_min"))
    assert dumped(after["gates"]["gate"].get("kappa_min")) == kept


def test_all_recipes_can_be_swept():
    """Each gated YAML has the keys, and a dense twin without gates; a cell is
    one run, also of a recipe that makes a chain of budgets by itself."""
    assert len(YAMLS) >= 13
    for path in YAMLS:
        text = path.read_text(encoding="utf-8")
        assert YAML().load(derive(text, "dense"))["gates"]["layers"] == []
        for method in METHODS:
            assert YAML().load(derive(text, method)).get("budgets") is None


def test_all_methods_and_the_table(tmp_path):
    """Equal steps, budgets met; what is finished is not run again."""
    pytest.importorskip("torch_pruning")
    options = [
        "--budgets=1,0.25",
        "--methods=noise,stg,magnitude,torch_pruning,narrow,retrained",
        "--jobs=2",
    ]
    run = subprocess.run(
        command(tmp_path, *options), capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    cells = results(tmp_path)
    assert len(cells) == 7
    dense = cells["dense_1_1"]
    assert dense["macs_per_second"] == dense["macs_per_second_full"]
    for name, cell in cells.items():
        assert cell["steps"] == dense["steps"]
        if name != "dense_1_1":
            share = cell["macs_per_second"] / cell["macs_per_second_full"]
            assert 0.2 < share <= 0.25
    noise, retrained = cells["noise_0.25_1"], cells["retrained_0.25_1"]
    assert noise["widths"] == retrained["widths"]
    assert noise["test"] != retrained["test"]
    assert "| retrained | 0.25 | 1 |" in run.stdout
    rows = [
        json.loads(line)
        for line in (tmp_path / "cells.jsonl").read_text().splitlines()
    ]
    assert [row["method"] for row in rows] == [
        *("dense", "noise", "stg", "torch_pruning", "magnitude"),
        *("narrow", "retrained"),
    ]

    logs = {p: p.stat().st_mtime_ns for p in tmp_path.glob("cells/*/*.txt")}
    again = subprocess.run(
        command(tmp_path, *options), capture_output=True, text=True
    )
    assert again.returncode == 0 and again.stdout == run.stdout
    assert logs == {
        p: p.stat().st_mtime_ns for p in tmp_path.glob("cells/*/*.txt")
    }

    # Also where the recipe cannot be imported
    main(["latency", str(tmp_path), "--rounds=1", "--trust"])
    timed = json.loads((tmp_path / "latency.json").read_text())["cells"]
    assert timed.keys() == cells.keys()

    changed = subprocess.run(
        command(tmp_path, *options, overrides=["--lr=0.1"]),
        capture_output=True,
        text=True,
    )
    assert changed.returncode == 2
    assert "holds another sweep" in changed.stderr


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Results of a sweep of two seeds."""
    folder = tmp_path_factory.mktemp("sweep")
    subprocess.run(command(folder, *SEEDS), check=True)
    return results(folder)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_stopped_and_started_again(tmp_path, number, uninterrupted):
    """The same figures as without, and no cell is run twice at a time."""
    with subprocess.Popen(
        command(tmp_path, *SEEDS), stderr=subprocess.DEVNULL
    ) as process:
        log = tmp_path / "cells" / "noise_0.25_1" / "train_log.txt"
        while not log.exists() and process.poll() is None:
            time.sleep(0.05)
        os.kill(process.pid, number)
        process.wait()
    assert len(results(tmp_path)) < 2
    subprocess.run(command(tmp_path, *SEEDS), check=True)
    resumed = results(tmp_path)
    assert resumed.keys() == uninterrupted.keys() and len(resumed) == 2
    for name, cell in uninterrupted.items():
        assert resumed[name]["test"] == cell["test"]
        assert resumed[name]["widths"] == cell["widths"]


def test_a_cell_that_fails(tmp_path):
    """Is reported with its log, the others are finished."""
    options = [
        "--budgets=0.25,0.0001",
        "--methods=noise,retrained",
    ]
    run = subprocess.run(
        command(tmp_path, *options), capture_output=True, text=True
    )
    assert run.returncode == 1
    assert "noise_0.0001_1: exit status 2, see" in run.stderr
    assert "retrained_0.0001_1: not run, noise_0.0001_1 failed" in run.stderr
    assert set(results(tmp_path)) == {"noise_0.25_1", "retrained_0.25_1"}
    log = tmp_path / "cells" / "noise_0.0001_1" / "stdout.txt"
    assert "is out of reach" in log.read_text()
    size = log.stat().st_size
    run = subprocess.run(
        command(tmp_path, *options), capture_output=True, text=True
    )
    assert run.returncode == 1 and log.stat().st_size == size
    run = subprocess.run(
        command(tmp_path, *options, "--retry"), capture_output=True, text=True
    )
    assert run.returncode == 1 and log.stat().st_size > size


@pytest.mark.parametrize(
    "options, message",
    [
        ({"methods": ["nosie"]}, "got 'nosie'"),
        ({"methods": ["retrained"]}, "takes the widths of 'noise'"),
        ({"budgets": [0.0]}, r"budgets must be in \(0, 1\], got 0.0"),
        ({"n_seeds": 0}, "at least one seed is needed, got 0"),
        ({"overrides": ["--seed=5"]}, "^seed is set for each cell"),
        ({"overrides": ["--complexity_loss={budget: 0.1}"]}, "^complexity_l"),
        ({"variants": {"a": {"output_folder": "x"}}}, "^output_folder is set"),
        ({"hparams_files": ["nowhere.yaml"]}, "nowhere.yaml is no file"),
        ({"hparams_files": ["alone.yaml"]}, "no train.py beside .*alone.yaml"),
    ],
)
def test_what_is_asked_for_is_checked(tmp_path, options, message):
    """Before anything is written."""
    asked = {
        "hparams_files": [GATED],
        "budgets": [0.5],
        "methods": ["noise"],
        **options,
    }
    (tmp_path / "alone.yaml").write_text("seed: 1\n")
    asked["hparams_files"] = [tmp_path / f for f in asked["hparams_files"]]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        Sweep(folder=tmp_path / "sweep", **asked)
    assert not (tmp_path / "sweep").exists()


def test_a_yaml_without_the_keys(tmp_path):
    """Says which are missing."""
    with pytest.raises(ValueError, match=r"the keys \['gates'"):
        derive("seed: 1\n", "noise")


def test_several_models_and_a_fresh_clone(tmp_path):
    """Two YAMLs in one sweep; its two files are all that a clone needs."""
    other = tmp_path / "other.yaml"
    other.write_text(GATED.read_text(encoding="utf-8"), encoding="utf-8")
    yamls = [GATED, other]
    first = tmp_path / "first"
    sweep = Sweep(yamls, first, [0.5], ["noise"], 1, SMALL)
    assert sweep.run(n_jobs=2) == []
    clone = tmp_path / "clone"
    clone.mkdir()
    (clone / "cells.jsonl").write_bytes((first / "cells.jsonl").read_bytes())
    kept = SweepFolder(clone)
    names = ["other_noise_0.5_1", "student_gated_noise_0.5_1"]
    assert [cell.name for cell in kept.cells] == names
    headings, table = summarize(figures(kept.results()), columns=["loss"])
    assert headings[:2] == ["model", "method"] and len(table) == 2
    again = Sweep(yamls, clone, [0.5], ["noise", "retrained"], 1, SMALL)
    assert all(again.finished(name) for name in names)
    assert again.run(n_jobs=2) == []  # with the widths that are in the file
    assert len((clone / "cells.jsonl").read_text().splitlines()) == 4
    with pytest.raises(ValueError, match="holds another sweep"):
        Sweep(yamls, clone, [0.5], ["noise"], 1, ["--lr=1"])


def test_a_sweep_belongs_to_the_weights_it_starts_from(tmp_path):
    """Others in the same folder are another sweep."""
    yaml = RECIPES / "VAD" / "hparams" / "crnn_gated.yaml"
    weights = tmp_path / "dense" / "model.ckpt"
    weights.parent.mkdir()
    overrides = [f"--pretrained={weights.parent}"]

    def prepare():
        return Sweep([yaml], tmp_path / "a", [0.5], ["noise"], 1, overrides)

    for content in (b"1", b"1", b"2"):
        weights.write_bytes(content)
        if content == b"1":
            assert "content of pretrained" in prepare().plan
            continue
        with pytest.raises(ValueError, match="holds another sweep"):
            prepare()


def test_manifests_that_cells_make_are_not_of_others(tmp_path):
    """Those of others are settings of the sweep, also in a variant."""
    yaml = RECIPES / "VAD" / "hparams" / "crnn_gated.yaml"
    made, theirs = tmp_path / "train.json", tmp_path / "test.json"
    theirs.write_text("{}")
    variants = {"a": {"test_annotation": str(theirs)}}
    overrides = [f"--train_annotation={made}"]

    def prepare():
        place = tmp_path / "sweep"
        given = [yaml], place, [0.5], ["noise"], 1, overrides, variants
        return Sweep(*given).plan

    assert "content of a.test_annotation" in prepare()
    made.write_text("{}")  # by its first cell
    assert "content of train_annotation" not in prepare()
    theirs.write_text("[]")
    with pytest.raises(ValueError, match="holds another sweep"):
        prepare()


def test_variants_of_a_recipe(tmp_path):
    """Models that differ in keys; some have budgets of their own."""
    variants = {
        "wide": {"hidden_sizes": [64, 32], "budget": [1, 0.5]},
        "small": {"hidden_sizes": [8]},
    }
    sweep = Sweep(
        [GATED], tmp_path, [0.25], ["noise"], 1, SMALL, variants=variants
    )
    names = ["wide_dense_1_1", "wide_noise_0.5_1", "small_noise_0.25_1"]
    assert [cell.name for cell in sweep.cells] == names
    assert sweep.run(n_jobs=2) == []
    headings, table = summarize(figures(sweep.results()))
    column = headings.index("hidden1, hidden2")
    widths = {tuple(row[:2]): row[column] for row in table}
    assert widths["wide", "dense"] == "64, 32"
    assert widths["small", "noise"] == "2, 0"
    changed = {**variants, "small": {"hidden_sizes": [16]}}
    with pytest.raises(ValueError, match="holds another sweep"):
        Sweep([GATED], tmp_path, [0.25], ["noise"], 1, SMALL, variants=changed)
    with pytest.raises(ValueError, match="no name"):
        Sweep([GATED], tmp_path, [0.25], ["noise"], variants={"a/b": {}})
    with pytest.raises(ValueError, match="budgets must be"):
        wrong = {"a": {"budget": 2.0}}
        Sweep([GATED], tmp_path, [0.25], ["noise"], variants=wrong)


def test_methods_in_a_chain(tmp_path, monkeypatch):
    """The dense start and teacher for all; costs relative to the dense model;
    what noise gates do is what the recipe does with its key budgets."""
    folder = tmp_path / "sweep"
    stage = "--stage={number_of_epochs: 4, freeze_epoch: 3}"
    yaml = tmp_path / "student.yaml"
    text = GATED.read_text(encoding="utf-8")
    yaml.write_text(text, encoding="utf-8")
    (tmp_path / "train.py").symlink_to(GATED.parents[1] / "train.py")
    methods = ["noise", "magnitude", "narrow"]
    small = [*SMALL, stage, "--noprogressbar"]  # one of SpeechBrain's
    sweep = Sweep([yaml], folder, [0.5, 0.25], methods, 1, small, chain=True)
    noise = [cell for cell in sweep.cells if cell.method == "noise"]
    needs = [
        {what: cell.name for what, cell in sweep.needs(cell).items()}
        for cell in noise
    ]
    assert needs == [
        {"teacher": "dense_1_1", "start": "dense_1_1"},
        {"teacher": "noise_0.5_1", "start": "noise_0.5_1"},
    ]
    narrow = [c for c in sweep.cells if c.method == "narrow"]
    for cell in narrow:
        assert sweep.needs(cell) == {"teacher": cell.dense}
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert sweep.run(n_jobs=2) == []
    shares = {
        (row["method"], row["budget"]): row["macs_share"]
        for row in figures(sweep.results())
    }
    assert len(shares) == 7
    for (method, budget), share in shares.items():
        assert 0.8 * budget < share <= budget, method
    # Who starts from scratch has as many steps as the others have had
    names = ["dense_1_1", "noise_0.5_1", "noise_0.25_1"]
    steps = [sweep.result(name)["steps"] for name in names]
    assert sweep.result("narrow_0.5_1")["steps"] == sum(steps[:2])
    assert sweep.result("narrow_0.25_1")["steps"] == sum(steps)
    widths = sweep.result("noise_0.25_1")["widths"]
    command = [sys.executable, str(sweep.script), str(yaml), *small]
    command += ["--budgets=[0.5,0.25]", f"--output_folder={tmp_path / 'run'}"]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, cwd=GATED.parents[1], env=one_thread)
    path = tmp_path / "run" / "0.25" / "result.json"
    alone = json.loads(path.read_text())
    assert alone["widths"] == widths
    assert alone["test"] == sweep.result("noise_0.25_1")["test"]
    # Only smaller budgets can be added
    more = {"overrides": small, "chain": True}
    added = Sweep([yaml], folder, [0.5, 0.25, 0.125], methods, 2, **more)
    assert len(added.cells) == 2 * 10
    with pytest.raises(ValueError, match="noise_0.25_1 .* way of .* 0.375"):
        Sweep([yaml], folder, [0.5, 0.375, 0.25], methods, **more)
    with pytest.raises(
        ValueError, match="narrow_0.25_1 .* 12 epochs.* have 16"
    ):
        Sweep([yaml], folder, [0.5, 0.375, 0.25], ["narrow"], **more)
    other = tmp_path / "other.yaml"
    other.write_text(text.replace("\nstage:", "\nunused:"))
    with pytest.raises(ValueError, match="a chain needs one YAML"):
        Sweep([other], tmp_path / "other", [0.5], ["noise"], chain=True)


def test_metric_that_is_missing():
    """No table of nothing."""
    with pytest.raises(ValueError, match="no cell is finished"):
        figures([])
