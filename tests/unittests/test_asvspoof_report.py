"""The results table of the ASVspoof recipe, from made-up result files."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from models import ResNet34

from noisegate.evaluation.scores import write_scores
from tests.unittests.referee import count_macs

RECIPE = Path(__file__).parents[2] / "recipes" / "ASVspoof"
sys.path.append(str(RECIPE))


def load(name):
    """A script of the recipe as a module of its own name."""
    path = RECIPE / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"asvspoof_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


report, run_table = load("report"), load("run_table")


@pytest.fixture
def folder(tmp_path):
    """Figures of a dense model with two seeds, and of a gated one."""
    for name, macs, eer in (
        ("dense_1", 80e6, 3.0),
        ("dense_2", 80e6, 5.0),
        ("gated_0.25_1", 20e6, 4.0),
        ("stack2_0.72_1", 56e6, 2.0),
    ):
        test = {"EER": eer, "EER A07": 1.0, "Cllr": 0.2, "minDCF": 0.1}
        result = {
            "macs": macs,
            "macs_full": 80e6,
            "params": 1000,
            "segment_s": 2.0,
            "test": test,
            "test_intervals_95": {"EER": [1.0, 6.04]},
        }
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
        write_scores(
            tmp_path / f"{name}.scores.txt",
            list("abcdefgh"),
            ["-"] * 4 + ["A07"] * 4,
            [1] * 4 + [0] * 4,
            [8.0, 6.0, 5.0, 2.0, 7.0, 4.0, 3.0, 1.0],
        )
    (tmp_path / "latency.json").write_text("{}")
    return tmp_path


def test_table(folder):
    rows = report.load_results(folder)
    assert list(rows) == [("dense", 1.0), ("gated", 0.25), ("stack2", 0.72)]
    lines = report.results_table(rows, {"gated_0.25_1": 1.5}).splitlines()
    assert len(lines) == 5
    dense = [cell.strip() for cell in lines[2].split("|")[1:-1]]
    assert dense[:6] == ["dense", "–", "2", "80.00", "1.000", "1000"]
    assert dense[6:9] == ["–", "4.00 ± 1.41", "1.0–6.0"]
    gated = [cell.strip() for cell in lines[3].split("|")[1:-1]]
    assert gated[0] == "noise gates, all stacks" and gated[4] == "0.250"
    assert gated[6:8] == ["1.50", "4.00"]
    lines = report.attacks_table(rows).splitlines()
    assert "A07" in lines[0] and lines[3].endswith("| 0.25 | 1.0 |")


def test_published_table_holds_the_claim():
    table = report.published_table()
    assert "| ResNet34 (baseline) | - | - | 5.4 | 5.64 | 6.26 |" in table
    assert "| 0.125 | 0.5 | 0.91 | 2.53 |" in table
    readme = (RECIPE / "README.md").read_text(encoding="utf-8")
    assert table in readme


def test_plots(folder):
    rows = report.load_results(folder)
    report.plot_det(rows, folder, folder / "det.png")
    report.plot_tradeoff(rows, folder / "tradeoff.png")
    for name in ("det.png", "tradeoff.png"):
        assert (folder / name).stat().st_size > 5000


@pytest.mark.parametrize("full", [False, True])
def test_cells(full):
    """Every cell has its name, a YAML that exists, and is read again."""
    cells = list(run_table.cells(full))
    names = [name for name, _, _ in cells]
    n_models = 0 if full else 3 * 4 * 2
    assert len(set(names)) == len(names) == 3 * 4 + 2 * 3 + 4 + n_models
    for name, hparams, overrides in cells:
        assert (RECIPE / "hparams" / f"{hparams}.yaml").exists()
        assert hparams.startswith("mini_") != full
        seed = name.rpartition("_")[2]
        assert f"--seed={seed}" in overrides


def macs(**kwargs):
    """MACs of a ResNet34 for 2 s of audio."""
    model = ResNet34(**kwargs).eval()
    return count_macs(model, torch.zeros(1, 201, 96))


@pytest.mark.parametrize("full", [False, True])
def test_controls_cost_what_the_budget_allows(full):
    """Narrow dense models have the MACs of the budget, within 4 percent."""
    whole = 1.0 if full else 0.25
    dense = macs(width=whole)
    for budget, factor in run_table.NARROW.items():
        share = macs(width=factor * whole) / dense
        assert share == pytest.approx(budget, rel=0.04)


def test_budgets_of_single_stacks():
    """That of a stack is the share of the MACs with half of its channels."""
    channels = [32, 64, 128, 256]
    dense = macs(channels=channels)
    for stack, budget in run_table.STACK_BUDGETS.items():
        halved = list(channels)
        halved[stack] //= 2
        assert macs(channels=halved) / dense == pytest.approx(budget, abs=0.01)
