"""The command ``noisegate``."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from speechbrain.nnet.quaternion_networks.q_linear import QLinear

import noisegate
from noisegate.cli import load_gates, main
from noisegate.gates import Gates

RECIPES = Path(__file__).parents[2] / "recipes"
CRNN = RECIPES / "VAD" / "hparams" / "crnn_gated.yaml"


def test_inspect_prints_all_groups(capsys):
    """Gated ones with their limits, the others with the reason."""
    main(["inspect", str(CRNN), "--data_folder=none", "--noise_folder=none"])
    out = capsys.readouterr().out
    lines = {line.split()[0]: line for line in out.splitlines() if line}
    assert lines["rnn"].endswith("read by dnn.w")
    assert lines["out"].endswith("no gate: the output of the model")
    assert "gated: 5 of 6 groups" in out


def test_overrides_are_those_of_training():
    """What is not asked for has no gate, and the sizes are the new ones."""
    overrides = {"data_folder": "none", "noise_folder": "none"}
    overrides.update(gate_layers=["conv*"], rnn_units=24, budget=0.6)
    text = repr(load_gates(CRNN, overrides))
    assert "no gate: not asked for" in text
    rnn = next(line for line in text.splitlines() if line.startswith("rnn"))
    assert rnn.split()[1:3] == ["rnn", "24"]


def test_the_macs_that_depend_on_a_group_are_counted():
    """Those of all layers that make or read it."""
    overrides = {"data_folder": "none", "noise_folder": "none"}
    gates = load_gates(CRNN, overrides)
    by_layer = gates.cost.macs_by_layer()
    expected = by_layer["dnn.w"] + by_layer["out.w"]
    line = next(x for x in repr(gates).splitlines() if x.startswith("dnn"))
    assert int(line.split()[5]) == pytest.approx(expected, abs=1)


def test_the_version(capsys):
    """That of the package."""
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.strip() == noisegate.__version__


def test_help_does_not_wait_for_torch():
    """Nothing heavy is imported before a command is known."""
    code = (
        "import sys; from noisegate.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'speechbrain', 'scipy'} & set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True
    )
    assert run.stdout.splitlines()[-1] == "[]", run.stderr


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nowhere.yaml"], "nowhere.yaml"),
        ([str(CRNN), "--data_folder=x", "--bandz=3"], "bandz"),
        (["plain.yaml"], "plain.yaml must make one"),
        (["text.yaml"], "text.yaml must hold keys"),
        (["broken.yaml"], "broken.yaml is no YAML"),
        (["bytes.yaml"], "bytes.yaml is no YAML"),
    ],
)
def test_errors_are_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    """And the exit status is 2."""
    monkeypatch.chdir(tmp_path)
    Path("plain.yaml").write_text("width: 3\n")
    Path("text.yaml").write_text("width\n")
    Path("broken.yaml").write_text("width: [3\nother: 2")
    Path("bytes.yaml").write_bytes(bytes(range(128, 256)))
    with pytest.raises(SystemExit) as stop:
        main(["inspect", *arguments])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5"])
@pytest.mark.parametrize("option", ["--jobs", "--seeds"])
def test_counts_are_counts(option, value, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["sweep", "a.yaml", "--folder=b", f"{option}={value}"])
    assert stop.value.code == 2
    assert f"argument {option}: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["sweep", "a.yaml", "--folder=b", "--variants=gone.yaml"],
        ["sweep", "a.yaml", "--folder=b", "--variants=text.yaml"],
        ["sweep", "a.yaml", "--folder=b", "--variants=numbers.yaml"],
        ["vad", "a.wav", "--threshold=nan"],
        ["vad", "a.wav", "--min_speech_ms=-1"],
        ["vad", "a.wav", "--min_silence_ms=inf"],
        ["spot", "a.wav", "--threshold=nan"],
    ],
)
def test_values_of_options_are_refused(
    arguments, capsys, tmp_path, monkeypatch
):
    """By the name of the option."""
    monkeypatch.chdir(tmp_path)
    Path("text.yaml").write_text("wide\n")
    Path("numbers.yaml").write_text("wide: 3\n")
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    option = arguments[-1].partition("=")[0]
    assert f"argument {option}: " in capsys.readouterr().err


def test_a_sweep_refuses_keys_that_the_recipe_has_not(capsys, tmp_path):
    """Before it runs a cell."""
    arguments = ["sweep", str(CRNN), f"--folder={tmp_path / 'sweep'}"]
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--", "--bugdet=3"])
    assert stop.value.code == 2
    assert "no key 'bugdet'; is 'budget' meant?" in capsys.readouterr().err
    assert not (tmp_path / "sweep").exists()


def test_a_seed_is_not_a_number_of_seeds(capsys, tmp_path):
    """As an option that is cut short would be."""
    arguments = ["sweep", str(CRNN), f"--folder={tmp_path / 'sweep'}"]
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--seed=5"])
    assert stop.value.code == 2
    assert "seed is set for each cell by the sweep" in capsys.readouterr().err


def test_unknown_layers_are_named():
    """In the table, and in the error if nothing can be gated."""
    quaternions = QLinear(n_neurons=4, input_shape=[None, None, 8])
    net = torch.nn.Sequential(
        torch.nn.Linear(8, 8), torch.nn.Linear(8, 8), quaternions
    )
    table = repr(Gates(net, input_shape=[1, 9, 8]))
    assert "layers that are not known: 2 (QLinear)" in table
    assert "\n0 " in table
    with pytest.raises(ValueError, match="QLinear is no layer that"):
        Gates(quaternions, input_shape=[1, 9, 8])
