"""noisegate latency, on sweeps of two small models."""

import json
import sys

import pytest
import torch
from speechbrain.nnet.containers import Sequential
from speechbrain.nnet.linear import Linear

from noisegate.cli import main
from noisegate.compact import save_compact
from noisegate.evaluation import latency
from noisegate.evaluation.results import SweepFolder
from noisegate.evaluation.table import figures, summarize

SHAPE = {"segment_s": 0.5, "input_shape": {"model": [1, 50, 8]}}
MADE = """!new:speechbrain.nnet.containers.Sequential
    input_shape: [null, null, 8]
    hidden: !name:speechbrain.nnet.linear.Linear
        n_neurons: 32
    out: !name:speechbrain.nnet.linear.Linear
        n_neurons: 1"""
WIDTHS = {"dense_1_1": 32, "dense_1_2": 32, "noise_0.5_2": 16, "noise_0.5_3": 4}


def write_sweep(folder, shape=SHAPE):
    """Writes the folder of a sweep with cut models."""
    plan = {"recipe": "Toy", "hparams": "toy.yaml", "overrides": []}
    (folder / "sweep.json").write_text(json.dumps(plan))
    for name, width in WIDTHS.items():
        place = folder / "cells" / name
        net = Sequential(input_shape=[None, None, 8])
        net.append(Linear, n_neurons=width, layer_name="hidden")
        net.append(Linear, n_neurons=1, layer_name="out")
        made = {"model": MADE}
        save_compact(place / "compact", {"model": net}, "", made, **shape)
        result = {
            "widths": {"hidden": width},
            "params": 9 * width,
            "macs_per_second": width,
            "macs_per_second_full": 32,
            "activations_per_second": 1e6 * width,
            "steps": 3,
            "test": {"EER": 1.0},
        }
        (place / "result.json").write_text(json.dumps(result))
        method, budget, seed = name.split("_")
        cell = {"method": method, "budget": float(budget), "seed": int(seed)}
        (place / "cell.json").write_text(json.dumps(cell))
    return folder


@pytest.fixture
def sweep(tmp_path):
    """A folder of a sweep."""
    return write_sweep(tmp_path)


def fake_times(monkeypatch, *without):
    """Seconds that are known: a millisecond for each hidden unit."""

    def time_them(runs, rounds):
        for run in runs.values():
            run()
        units = {"torch": 1e-3, "onnx": 1e-4}
        return {(kind, n): units[kind] * WIDTHS[n] for kind, n in runs}

    def to_onnx(model, inputs):
        if model.hidden.w.out_features in without:
            return None, None, None, {"tracing": "no such operator"}
        return (lambda: None), 0.0, "tracing", {}

    monkeypatch.setattr(latency, "time_in_turn", time_them)
    monkeypatch.setattr(latency, "to_onnx", to_onnx)
    monkeypatch.setattr(latency, "has_onnx", lambda: True)


def test_ratios_are_to_the_dense_model_of_the_seed(sweep, monkeypatch):
    """Or to the first one; figures are per second of audio."""
    fake_times(monkeypatch)
    latency.write_latency(sweep)
    cells = json.loads((sweep / "latency.json").read_text())["cells"]
    assert cells.keys() == WIDTHS.keys()
    dense = {name: cell["dense"] for name, cell in cells.items()}
    assert dense == {
        "dense_1_1": "dense_1_1",
        "dense_1_2": "dense_1_2",
        "noise_0.5_2": "dense_1_2",
        "noise_0.5_3": "dense_1_1",
    }
    for name, cell in cells.items():
        for kind in ("torch", "onnx"):
            assert cell[f"{kind}_ratio"] == pytest.approx(WIDTHS[name] / 32)
        assert cell["torch_ms_per_s"] == pytest.approx(2 * WIDTHS[name])
        assert cell["onnx_ms_per_s"] == pytest.approx(0.2 * WIDTHS[name])


def test_columns_of_the_table(sweep, monkeypatch):
    """Absent if nothing is known, "-" if one seed lacks the figure."""
    rows = figures(SweepFolder(sweep).results())
    assert not any("torch" in text for text in summarize(rows)[0])
    fake_times(monkeypatch, WIDTHS["noise_0.5_2"])
    latency.write_latency(sweep)
    rows = figures(SweepFolder(sweep).results())
    headings, (dense, noise) = summarize(rows)
    assert headings[8:] == [
        "hidden",
        "activations (MB per s of audio)",
        "torch, ms/s (of dense)",
        "onnxruntime, ms/s (of dense)",
    ]
    assert dense[8:] == ["32", "128", "64 (1.00)", "6.4 (1.00)"]
    assert noise[8:] == ["10", "40", "20 (0.31)", "-"]
    for row in rows:
        assert ("onnx_ms_per_s" in row) == (row["macs_per_second"] != 16)


def test_a_model_that_is_not_exported(sweep, monkeypatch, capsys):
    """Keeps its figure of torch; the reason is kept and printed."""
    fake_times(monkeypatch, WIDTHS["noise_0.5_2"])
    main(["latency", str(sweep)])
    cells = json.loads((sweep / "latency.json").read_text())["cells"]
    cell = cells["noise_0.5_2"]
    assert cell["torch_ratio"] == 0.5
    assert cell["onnx_ms_per_s"] is None and cell["onnx_ratio"] is None
    assert "no such operator" in cell["onnx_reason"]
    assert cells["noise_0.5_3"]["onnx_ratio"] == pytest.approx(0.125)
    assert "tracing: no such operator" in capsys.readouterr().out


def test_real_times(sweep, capsys):
    """All cells have figures, and so have the page and the table."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    pytest.importorskip("plotly")
    threads = torch.get_num_threads()
    main(["latency", str(sweep), "--rounds=2"])
    assert torch.get_num_threads() == threads
    measured = json.loads((sweep / "latency.json").read_text())
    assert measured["measured_with"]["rounds"] == 2
    assert measured["measured_with"]["versions"]["onnxruntime"]
    for name, cell in measured["cells"].items():
        assert cell["torch_ms_per_s"] > 0 and cell["onnx_ms_per_s"] > 0
        if name.startswith("dense"):
            assert cell["torch_ratio"] == cell["onnx_ratio"] == 1
    main(["report", str(sweep)])
    text = (sweep / "report.md").read_text()
    assert "on one segment of 0.5 s, with 1 thread of" in text
    rows = figures(SweepFolder(sweep).results())
    assert len(rows) == 4 and all(row["onnx_ratio"] for row in rows)


def test_without_onnx(sweep, monkeypatch):
    """Torch is timed."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    latency.write_latency(sweep, rounds=1)
    measured = json.loads((sweep / "latency.json").read_text())
    for cell in measured["cells"].values():
        assert cell["torch_ms_per_s"] > 0 and cell["onnx_ms_per_s"] is None
        assert "onnxruntime" in cell["onnx_reason"]


class Wrong(torch.nn.Module):
    """Draws numbers, or has none."""

    def __init__(self, random):
        super().__init__()
        self.random = random

    def forward(self, x):
        """Returns noise or NaN."""
        return x + torch.rand_like(x) if self.random else (-x.abs() - 1).log()


@pytest.mark.parametrize("random, reason", [(True, ""), (False, " nan")])
def test_other_outputs_are_no_export(random, reason, monkeypatch):
    """NaN is not taken for agreement."""
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(latency, "_EXPORTERS", {"tracing": False})
    run, error, exporter, reasons = latency.to_onnx(
        Wrong(random), [torch.ones(2, 3)]
    )
    assert run is error is exporter is None
    assert f"outputs differ by{reason}" in reasons["tracing"]


def test_errors(tmp_path, capsys):
    """One line that says what is missing; nothing is written."""

    def message(*options):
        with pytest.raises(SystemExit) as stop:
            main(["latency", str(tmp_path), *options])
        assert stop.value.code == 2
        assert not (tmp_path / "latency.json").exists()
        return capsys.readouterr().err

    assert "not the folder of a sweep" in message()
    (tmp_path / "sweep.json").write_text("{}")
    assert "no cell of" in message()
    write_sweep(tmp_path, {})
    assert "input_shape" in message() and "older" in message()
    assert "expected 1 or more, got 0" in message("--rounds=0")
    (tmp_path / "cells" / "dense_1_1" / "compact").rename(tmp_path / "away")
    assert "has no cut model" in message()


def test_the_memory_of_features_is_counted():
    """Two layers hold most: 50 frames of 1000 numbers of 4 bytes each."""
    sizes = [100, 1000, 1000, 10]
    layers = [torch.nn.Linear(n, m) for n, m in zip(sizes, sizes[1:])]
    net, x = torch.nn.Sequential(*layers), torch.rand(50, 100)
    assert latency._peak_bytes(lambda: net(x)) == 2 * 50 * 1000 * 4
