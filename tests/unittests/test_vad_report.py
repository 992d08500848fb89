"""The results table of the VAD recipe says what the result files say."""

import json
import sys
from pathlib import Path

import pytest
from hyperpyyaml import load_hyperpyyaml

RECIPE = Path(__file__).parents[2] / "recipes" / "VAD"
sys.path.insert(0, str(RECIPE))

import report  # noqa: E402
import run_table  # noqa: E402

RESULTS = RECIPE / "results" / "barista_esc10"


def test_cells_are_unique_and_complete():
    """Four methods for two models, dense and gated for two others."""
    names = [name for name, _, _ in run_table.cells()]
    assert len(names) == len(set(names)) == 48
    for _, hparams, _ in run_table.cells():
        assert (RECIPE / "hparams" / f"{hparams}.yaml").exists()


@pytest.mark.parametrize("model, budget", run_table.NARROW)
def test_controls_cost_what_the_budget_allows(model, budget):
    """Narrow dense models have the MACs of the budget, within 2 percent."""
    sizes = [o[2:].split("=") for o in run_table.NARROW[model, budget]]
    options = {"data_folder": "none", **{k: int(v) for k, v in sizes}}
    macs = []
    for name, overrides in (
        (f"{model}_small", options),
        (model, {"data_folder": "none"}),
    ):
        with open(RECIPE / "hparams" / f"{name}.yaml") as fin:
            gates = load_hyperpyyaml(fin, overrides)["gates"]
        macs.append(gates.cost.macs_per_second())
    assert macs[0] / macs[1] == pytest.approx(budget, rel=0.02)


def test_gated_runs_are_within_their_budget():
    """At most 1 percent over, at most 5 percent under."""
    for (_, method, budget), runs in report.load_results(RESULTS).items():
        for run in runs if method in ("gated", "stochastic") else []:
            share = run["macs_per_second"] / run["macs_per_second_full"]
            assert 0.95 * budget <= share <= 1.01 * budget, run["name"]
            assert run["budget"] == budget


def test_table_of_the_readme_is_generated():
    """Nothing in it was typed, nothing is left out."""
    latency = json.loads((RESULTS / "latency.json").read_text())
    table = report.results_table(report.load_results(RESULTS), latency)
    readme = (RECIPE / "README.md").read_text(encoding="utf-8")
    assert table in readme
    assert report.published_table() in readme
