"""Runs the VAD recipe as a user would: train.py in a process of its own."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
from huggingface_hub import ModelCard

from noisegate.cli import main
from noisegate.deploy.runtime import Model
from tests.integration.events import scalars

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "VAD"

with open(ROOT / "tests" / "recipes" / "VAD.csv", encoding="utf-8") as table:
    ROWS = list(csv.DictReader(table))
TWO = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
DDP = [
    "--debug",
    # Otherwise each process has a checkpoint folder of its own
    "--debug_persistently",
    "--distributed_backend=gloo",
    "--device=cpu",
]


SAMPLE = RECIPE / "sample"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A part of the sample: some speakers and noises of each split."""
    folder = tmp_path_factory.mktemp("corpus") / "sample"
    for name, table, n_rows in (
        ("speech", "utterances.csv", 4),
        ("noise", "clips.csv", 2),
    ):
        (folder / name / "ogg").mkdir(parents=True)
        with open(SAMPLE / name / table, newline="", encoding="utf-8") as fin:
            rows = list(csv.DictReader(fin))
        kept = [
            row
            for split in ("train", "valid", "test")
            for row in [r for r in rows if r["split"] == split][:n_rows]
        ]
        write_rows(folder / name / table, kept)
        for row in kept:
            file = f"{name}/ogg/{row['id']}.ogg"
            shutil.copy(SAMPLE / file, folder / file)
    ids = {path.stem for path in (folder / "speech" / "ogg").iterdir()}
    with open(SAMPLE / "speech/segments.csv", encoding="utf-8") as fin:
        rows = [row for row in csv.DictReader(fin) if row["id"] in ids]
    write_rows(folder / "speech" / "segments.csv", rows)
    return folder


def write_rows(path, rows):
    """Writes a CSV."""
    with open(path, "w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def run(hparams, output, corpus, *overrides, launcher=()):
    """Runs train.py; returns the finished process."""
    command = [
        sys.executable,
        *launcher,
        "train.py",
        str(hparams),
        f"--data_folder={corpus / 'speech'}",
        f"--noise_folder={corpus / 'noise'}",
        f"--output_folder={output}",
        "--noprogressbar",
        *overrides,
    ]
    if not any("feature_cache" in override for override in overrides):
        command.append(f"--feature_cache={corpus.parent / 'features'}")
    return subprocess.run(
        command,
        cwd=RECIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,  # SpeechBrain logs errors on either
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
        timeout=600,
    )


# What speechbrain.inference makes of a folder, in a process without noisegate
INFERENCE = """
import sys, torch
sys.modules["noisegate"] = None
from speechbrain.inference.VAD import VAD
folder, file = sys.argv[1:]
vad = VAD.from_hparams(source=folder, savedir=folder)
wav = vad.load_audio(file)
with torch.no_grad():
    feats = vad.mods.compute_features(wav[None])
    feats = vad.mods.mean_var_norm(feats, torch.ones(1))
    expected = vad.mods.model(feats).sigmoid()
    assert torch.equal(vad.get_speech_prob_chunk(wav[None]), expected)
    probs = vad.get_speech_prob_file(file)
    assert probs.shape[1] == len(wav) // 160
    found = vad.get_speech_segments(
        file, apply_energy_VAD=True, double_check=True
    )
    assert found.numel() == 0 or found.shape[1] == 2
    vad.upsample_VAD(vad.apply_threshold(probs).float(), file)
"""


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["Hparam_file"][20:])
def test_every_row_runs_with_debug(row, corpus, tmp_path):
    """Each YAML trains, meets its budget, compacts and tests."""
    out = run(ROOT / row["Hparam_file"], tmp_path, corpus, "--debug")
    assert out.returncode == 0, out.stdout[-3000:]
    files = row["test_debug_checks"].partition("=[")[2].rstrip("]")
    for name in files.split(","):
        assert (tmp_path / name).stat().st_size > 0
    result = json.loads((tmp_path / "result.json").read_text())
    limit = result["budget"] * result["macs_per_second_full"]
    assert result["macs_per_second"] <= 1.01 * limit
    assert 0 <= result["test"]["EER"] <= 100
    compact = (tmp_path / "compact" / "hyperparams.yaml").read_text()
    bands = result["widths"]["features"]
    assert f'\ninput_shape: {{"model": [1, 401, {bands}]}}\n' in compact
    assert "noisegate" not in compact.partition("\n")[2]
    card = ModelCard.load(tmp_path / "compact" / "README.md")
    assert card.data.library_name == "speechbrain"
    eers = (result[split]["EER"] for split in ("valid", "test"))
    assert "| EER | {:.4g} | {:.4g} | - |".format(*eers) in card.text
    assert re.search(r"\| train \| \d+ \| \d+ \| \d+ \|", card.text)
    for line in ("activations at once, kB, 4 s", "ms per second of audio"):
        assert f"| {line}" in card.text
    file = next((corpus / "speech" / "ogg").iterdir())
    wav = tmp_path / "a.wav"
    soundfile.write(wav, *soundfile.read(file))
    subprocess.run(
        [sys.executable, "-c", INFERENCE, tmp_path / "compact", wav],
        cwd=tmp_path,
        check=True,
    )


def test_published_variant_gates_the_mel_bands_alone(corpus, tmp_path):
    """--gate_layers=[features] leaves all other widths as they are."""
    out = run(
        "hparams/transformer_gated.yaml",
        tmp_path,
        corpus,
        "--debug",
        "--gate_layers=[features]",
        "--ramp=1",
        "--reorder=False",
        "--budget=0.5",
    )
    assert out.returncode == 0, out.stdout[-3000:]
    widths = json.loads((tmp_path / "result.json").read_text())["widths"]
    assert widths.pop("features") in range(4, 80, 4)
    assert widths == {"enc1.pos_ffn": 88, "enc2.pos_ffn": 88, "out": 1}


def test_mixing_on_the_fly(corpus, tmp_path):
    """Without cache the compacted front-end makes the open bands itself."""
    out = run(
        "hparams/crnn_gated.yaml",
        tmp_path,
        corpus,
        "--debug",
        "--feature_cache=null",
        "--random_mix=True",
        "--precision=bf16",
    )
    assert out.returncode == 0, out.stdout[-3000:]
    assert (tmp_path / "result.json").exists()


def test_two_processes(corpus, tmp_path):
    """Under torchrun there is one result, and it meets the budget; also if
    DDP looks for what no pass has reached: gates that are open, at first."""
    flags = (*DDP, "--find_unused_parameters")
    out = run("hparams/crnn_gated.yaml", tmp_path, corpus, *flags, launcher=TWO)
    assert out.returncode == 0, out.stdout[-3000:]
    result = json.loads((tmp_path / "result.json").read_text())
    limit = result["budget"] * result["macs_per_second_full"]
    assert result["macs_per_second"] <= 1.01 * limit


def test_tensorboard_of_two_processes(corpus, tmp_path):
    """One file of events, with figures and widths of each epoch."""
    pytest.importorskip("tensorboard")
    out = run(
        "hparams/crnn_gated.yaml",
        tmp_path,
        corpus,
        *DDP,
        "--use_tensorboard=True",
        launcher=TWO,
    )
    assert out.returncode == 0, out.stdout[-3000:]
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1
    figures = scalars(tmp_path)
    assert {"loss/train", "EER/valid", "lr", "macs_ratio"} < set(figures)
    assert all(list(steps) == [1, 2] for steps in figures.values())
    result = json.loads((tmp_path / "result.json").read_text())
    for gate in ("features", "conv1", "rnn"):
        width = figures[f"width/{gate}"][2]
        assert width == result["widths"][gate]


def test_finished_result_is_kept(corpus, tmp_path):
    """A second call does not train again or touch the result."""
    tiny = ["--conv_channels=8", "--rnn_units=8", "--dnn_neurons=8"]
    tiny += ["--number_of_epochs=2", "--freeze_epoch=2", "--budget=0.5"]
    first = run("hparams/crnn_gated.yaml", tmp_path, corpus, *tiny)
    assert first.returncode == 0, first.stdout[-3000:]
    files = ("result.json", "train_log.txt", "gates.jsonl")
    before = [(tmp_path / name).read_bytes() for name in files]
    again = run("hparams/crnn_gated.yaml", tmp_path, corpus, *tiny)
    assert again.returncode == 0 and "finished" in again.stdout
    other = run(
        "hparams/crnn_gated.yaml", tmp_path, corpus, *tiny, "--data_seed=2"
    )
    assert other.returncode == 2
    assert "data_seed was 1234, is 2" in other.stdout
    assert "Traceback" not in other.stdout
    assert [(tmp_path / name).read_bytes() for name in files] == before


@pytest.mark.parametrize(
    "override, message",
    [
        ("--gate_layers=[conv9]", "'conv9' names no group"),
        ("--gate_layers=[out]", "out is the output of the model"),
        ("--budget=0.001", "out of reach"),
        ("--kappa_min=1.5", "kappa_min must be a number in (0, 1], got 1.5"),
        ("--freeze_epoch=99", "freeze_epoch must be in [2, number_of_epochs"),
        ("--data_folder=nowhere", "nowhere"),
        ("--random_mix=True", "random_mix"),
    ],
)
def test_wrong_values_are_clear_errors(corpus, tmp_path, override, message):
    """The error names what is wrong, and no result appears."""
    out = run("hparams/crnn_gated.yaml", tmp_path, corpus, override)
    assert out.returncode != 0
    assert message in out.stdout
    assert not (tmp_path / "result.json").exists()


def test_unreadable_audio_is_named_before_training(corpus, tmp_path):
    """A truncated file stops the run, or is left out if asked for."""
    broken = tmp_path / "sample"
    subprocess.run(["cp", "-r", str(corpus), str(broken)], check=True)
    victim = sorted(broken.glob("speech/**/*.ogg"))[0]
    victim.write_bytes(victim.read_bytes()[:50])
    out = run("hparams/crnn_gated.yaml", tmp_path / "a", broken, "--debug")
    assert out.returncode != 0 and victim.name in out.stdout
    assert "going into epoch" not in out.stdout.lower()
    out = run(
        "hparams/crnn_gated.yaml",
        tmp_path / "b",
        broken,
        "--debug",
        "--gate_layers=[]",  # the dense model, by one override
        "--skip_bad_files=True",
    )
    assert out.returncode == 0, out.stdout[-3000:]
    result = json.loads((tmp_path / "b" / "result.json").read_text())
    assert result["macs_per_second"] == result["macs_per_second_full"]


CAUSAL = ["--conv_padding=causal", "--bidirectional=False"]
CAUSAL += ["--norm_type=global", "--max_gain_db=20"]


def test_a_causal_detector(corpus, tmp_path):
    """It is trained, cut, and exported for chunks."""
    bands = '--gate_layers={"*": {}, features: False}'
    out = run(
        "hparams/crnn_gated.yaml", tmp_path, corpus, "--debug", *CAUSAL, bands
    )
    assert out.returncode == 0, out.stdout[-3000:]
    path = tmp_path / "vad.onnx"
    file = next((corpus / "speech" / "ogg").iterdir())
    export = ["export", str(tmp_path / "compact"), "--streaming"]
    main([*export, f"--output={path}", f"--check={file}"])
    facts = Model(path).facts
    result = json.loads((tmp_path / "result.json").read_text())
    assert facts["threshold"] == result["valid"]["threshold"]
    assert facts["parameters"] == result["params"]


def test_bands_stay_in_front_of_statistics_of_each(corpus, tmp_path):
    """Said before the training."""
    yaml = "hparams/crnn_gated.yaml"
    out = run(yaml, tmp_path, corpus, *CAUSAL)
    assert out.returncode == 2
    assert "train.py: mel bands are gated, but" in out.stdout
