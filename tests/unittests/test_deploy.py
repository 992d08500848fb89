"""Streaming, export and the command vad, on real components."""

import csv
import json
import shutil
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import onnx
import pytest
import soundfile as sf
import torch
from hyperpyyaml import load_hyperpyyaml
from scipy.signal import resample_poly
from speechbrain.nnet.containers import Sequential
from speechbrain.processing.features import InputNormalization

from noisegate import compact, save_compact
from noisegate.cli import main
from noisegate.compact import constructor
from noisegate.deploy.audio import blocks
from noisegate.deploy.export import export
from noisegate.deploy.quantize import quantize
from noisegate.deploy.runtime import Model
from noisegate.deploy.streaming import Deployed
from noisegate.deploy.vad import (
    FORMATS,
    Segmenter,
    run as vad,
)
from noisegate.evaluation.methods import derive
from noisegate.pretrained import load_yaml
from tests.bad_audio import assert_named, bad_files

RECIPE = Path(__file__).parents[2] / "recipes" / "VAD"
YAML = RECIPE / "hparams" / "crnn_gated.yaml"
SPEECH = sorted((RECIPE / "sample" / "speech").rglob("*.ogg"))[:3]
CAUSAL = """
norm_type: global
conv_padding: causal
bidirectional: False
conv_channels: 8
rnn_units: 8
dnn_neurons: 6
"""


def save(folder, overrides):
    """A cut CRNN of random weights, and its folder."""
    hparams = load_hyperpyyaml(YAML.read_text(encoding="utf-8"), overrides)
    modules, gates = hparams["modules"], hparams["gates"]
    wav = torch.from_numpy(sf.read(SPEECH[0], dtype="float32")[0])[None]
    feats = modules["compute_features"](wav)
    modules["mean_var_norm"].train()(feats, torch.ones(1), epoch=1)
    gates.freeze({k: gate.min_width + 1 for k, gate in gates.items()})
    gates["features"].freeze(gates["features"].size)
    model, _ = compact(gates)
    modules["model"] = model
    originals = {
        name: constructor(YAML, name, overrides)
        for name in ("mean_var_norm", "model")
    }
    save_compact(
        folder, dict(modules), "", originals, sample_rate=16000, threshold=0.1
    )
    return folder


@pytest.fixture(scope="module")
def causal(tmp_path_factory):
    """The folder of a causal detector."""
    folder = tmp_path_factory.mktemp("causal") / "compact"
    torch.manual_seed(0)
    return save(folder, CAUSAL)


@pytest.fixture(scope="module")
def exported(causal):
    """The same for chunks, in ONNX."""
    path, error = export(
        causal, streaming=True, files=[str(file) for file in SPEECH]
    )
    assert error < 1e-4
    return path


def whole(folder, signal):
    """What SpeechBrain's modules of a folder return, (frames,)."""
    x = torch.from_numpy(signal)[None]
    modules = load_yaml(folder)["modules"]
    with torch.no_grad():
        for name in ("compute_features", "mean_var_norm", "model"):
            x = modules[name].eval()(x)
    return x.numpy().reshape(-1)


def test_any_chunks_give_what_the_whole_signal_gives(causal, exported):
    """200 random chunkings, in torch and in ONNX."""
    rng = np.random.default_rng(0)
    signal, _ = sf.read(SPEECH[1], dtype="float32")
    modules = load_yaml(causal)["modules"]
    model, deployed = Model(exported), Deployed(modules, True)

    class Torch:
        """The same interface, computed by torch."""

        facts, session = model.facts, model.session

        def run(self, wavs, states):
            with torch.no_grad():
                states = [torch.from_numpy(state) for state in states]
                outputs = deployed(torch.from_numpy(wavs), *states)
            return [output.numpy() for output in outputs]

    expected = whole(causal, signal)
    scale = np.abs(expected).max()
    for number in range(200):
        stream = model.stream()
        if number % 10 == 0:
            stream.model = Torch()
        most = rng.choice([400, 1600, 16000])
        made, start = [], 0
        while start < len(signal):
            end = start + int(rng.integers(1, most + 1))
            made.append(stream.feed(signal[start:end]))
            start = end
        made = np.concatenate([*made, stream.finish()]).reshape(-1)
        assert made.shape == expected.shape
        assert np.abs(made - expected).max() <= 1e-5 * scale


def test_no_score_waits_for_more_than_half_a_window(exported):
    stream = Model(exported).stream()
    signal = np.zeros(16000, np.float32)
    for n in (1, 199, 200, 360, 361):
        assert len(Model(exported).stream().feed(signal[:n])) == max(
            0, 1 + (n - 200) // 160
        )
    scores = [stream.feed(signal[i : i + 160]) for i in range(0, 16000, 160)]
    assert sum(map(len, scores)) == 99
    assert len(stream.finish()) == 2


def changed(overrides):
    """`CAUSAL` with other values."""
    lines = CAUSAL.strip().split("\n")
    new = dict(line.split(": ") for line in (*lines, *overrides))
    return "\n".join(f"{key}: {value}" for key, value in new.items())


@pytest.mark.parametrize(
    "overrides",
    ["norm_type: sentence", "conv_padding: same", "bidirectional: True"],
)
def test_what_looks_ahead_is_not_streamed(overrides):
    text = derive(YAML.read_text(encoding="utf-8"), "dense")
    hparams = load_hyperpyyaml(text, changed([overrides]))
    modules = hparams["modules"]
    modules["mean_var_norm"](torch.randn(2, 50, 28), torch.ones(2), epoch=1)
    with pytest.raises(ValueError, match="cannot be streamed"):
        Deployed(modules, streaming=True)


def test_whole_signals_are_the_other_kind(tmp_path):
    folder = save(
        tmp_path / "compact",
        changed(
            ["norm_type: sentence", "conv_padding: same", "bidirectional: True"]
        ),
    )
    with pytest.raises(ValueError, match="cannot be streamed"):
        export(folder, streaming=True)
    assert not list(folder.glob("*.onnx*"))
    path, error = export(folder)
    assert error < 1e-4
    signal, _ = sf.read(SPEECH[2], dtype="float32")
    stream = Model(path).stream()
    assert len(stream.feed(signal[:1000])) == 0
    stream.feed(signal[1000:])
    expected = whole(folder, signal)
    made = stream.finish().reshape(-1)
    assert np.abs(made - expected).max() <= 1e-4 * np.abs(expected).max()


def test_a_model_may_not_look_back_over_all_time():
    class Mean(torch.nn.Module):
        """Knows of no state."""

        def forward(self, x):
            return x - x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]

    text = derive(YAML.read_text(encoding="utf-8"), "dense")
    modules = dict(load_hyperpyyaml(text, CAUSAL)["modules"])
    norm = InputNormalization()
    norm(torch.randn(1, 9, 28), torch.ones(1), epoch=1)
    modules["mean_var_norm"] = norm
    Deployed(modules, streaming=True)
    modules["mean_var_norm"] = Sequential(norm, Mean())
    with pytest.raises(ValueError, match="outputs differ by"):
        Deployed(modules, streaming=True)


def test_the_file_says_what_a_program_needs(causal, exported):
    facts = Model(exported).facts
    assert facts["sample_rate"] == 16000 and facts["threshold"] == 0.1
    assert (facts["window"], facts["hop"]) == (400, 160)
    assert [shape[-1] for shape in facts["states"]] == [28, 2, 2]
    onnx.checker.check_model(onnx.load(exported), full_check=True)
    with pytest.raises(FileExistsError, match="move it away"):
        export(causal)
    before = exported.read_bytes()
    elsewhere = causal / "onnx" / "b.onnx"
    assert main(["export", str(causal), f"--output={elsewhere}"]) is None
    assert elsewhere.is_file() and exported.read_bytes() == before
    with pytest.raises(SystemExit) as stopped:
        main(["export", str(causal / "none")])
    assert stopped.value.code == 2


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_integers_if_decisions_stay(kind, exported, tmp_path):
    """The share that changes is that of frames on another side."""
    shutil.copy(exported, tmp_path / "model.onnx")
    files = [str(file) for file in SPEECH]
    path, changed = quantize(tmp_path / "model.onnx", kind, files, 1.0)
    assert path == tmp_path / "model.int8.onnx"
    models = Model(exported), Model(path)
    assert models[0].facts == models[1].facts
    scores = [
        [np.concatenate([*map(s.feed, blocks(file, 16000)), s.finish()])]
        for file in files
        for s in (m.stream() for m in models)
    ]
    one, other = (np.concatenate([x for (x,) in scores[i::2]]) for i in (0, 1))
    assert not np.array_equal(one, other)
    assert changed == ((one > 0.1) != (other > 0.1)).mean()
    ops = [node.op_type for node in onnx.load(path).graph.node]
    assert any("Quantize" in op or "Integer" in op for op in ops)


def test_integers_that_change_decisions_are_not_kept(exported, tmp_path):
    """Where half of the scores lie on each side, some change it."""
    model, path = onnx.load(exported), tmp_path / "model.onnx"
    files = [str(file) for file in SPEECH]
    stream, scores = Model(exported).stream(), []
    for block in blocks(files[0], 16000):
        scores.append(stream.feed(block))
    facts = {
        **Model(exported).facts,
        "threshold": float(np.median(np.concatenate(scores))),
    }
    onnx.helper.set_model_props(model, {"noisegate": json.dumps(facts)})
    onnx.save(model, path)
    with pytest.raises(ValueError, match="decisions change, more than 0 %"):
        quantize(path, "dynamic", files, 0.0)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_integers_need_files(causal, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["export", str(causal), "--int8=static"])
    assert stop.value.code == 2
    assert "--int8 needs --check" in capsys.readouterr().err


def test_damaged_models_are_named(tmp_path, exported, capsys):
    path = tmp_path / "bad.onnx"
    for content in (b"", b"onnx", exported.read_bytes()[:-900]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="bad.onnx is not what"):
            Model(path)
    plain = onnx.load(exported)
    del plain.metadata_props[:]
    onnx.save(plain, path)
    with pytest.raises(ValueError, match="bad.onnx is not what"):
        Model(path)
    with pytest.raises(ValueError, match="none.onnx cannot be read"):
        Model(tmp_path / "none.onnx")


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 44100, 48000])
def test_blocks_are_the_file_at_another_rate(rate, tmp_path):
    time = np.arange(3 * rate + 7) / rate
    signal = np.sin(2 * np.pi * 440 * time) / 2
    both = np.stack([1.5 * signal, 0.5 * signal], axis=1)
    path = tmp_path / "a.wav"
    sf.write(path, both, rate, subtype="FLOAT")
    made = np.concatenate(list(blocks(str(path), 16000)))
    expected = resample_poly(signal, 16000, rate)
    assert abs(len(made) - len(expected)) <= 1
    middle = slice(2000, 40000)
    assert np.abs(made[middle] - expected[middle]).max() < 2e-3


@pytest.mark.parametrize("command", ["vad", "spot"])
def test_bad_audio_is_named_and_the_rest_is_done(command, tmp_path, capsys):
    files = [str(file) for file in (*bad_files(tmp_path), SPEECH[0])]
    with pytest.raises(SystemExit) as stopped:
        main([command, *files, "--threshold=-99"])
    assert stopped.value.code == 2
    assert_named(files, *capsys.readouterr())


def test_formats(exported, capsys):
    file, length_s = str(SPEECH[0]), sf.info(SPEECH[0]).duration
    for form in FORMATS:
        assert vad([file], exported, form, threshold=-99.0) == 0
        out = capsys.readouterr().out
        end = f"{length_s:.3f}"
        expected = {
            "text": f"{file}\t0.000\t{end}\n",
            "rttm": f"SPEAKER {SPEECH[0].stem} 1 0.000 {end} <NA> <NA> speech "
            "<NA> <NA>\n",
            "audacity": f"0.000000\t{length_s:.6f}\tspeech\n",
            "srt": f"1\n00:00:00,000 --> 00:00:{length_s:06.3f}".replace(
                ".", ","
            )
            + "\nspeech\n\n",
        }
        if form == "json":
            assert json.loads(out)["start_s"] == 0.0
        else:
            assert out == expected[form]
    with pytest.raises(ValueError, match="give one file"):
        vad([file, file], exported, "srt")


def test_segments_do_not_depend_on_how_scores_come():
    rng = np.random.default_rng(0)
    scores = np.repeat(rng.normal(size=80), rng.integers(1, 40, size=80))
    one = Segmenter(0.2, 0.01)
    expected = [*one.feed(scores), *one.finish()]
    assert len(expected) > 5
    other, found = Segmenter(0.2, 0.01), []
    for part in np.array_split(scores, 97):
        found += other.feed(part)
    assert [*found, *other.finish()] == expected
    assert all(end - start >= 0.1 for start, end in expected)
    pauses = [b[0] - a[1] for a, b in zip(expected, expected[1:])]
    assert min(pauses) >= 0.29


def piped(exported, data, *options):
    """What the command prints of a pipe, in a process of its own."""
    command = [sys.executable, "-m", "noisegate", "vad", "-"]
    run = subprocess.run(
        [*command, f"--model={exported}", "--threshold=-99", *options],
        input=data,
        capture_output=True,
    )
    return run.returncode, run.stdout.decode(), run.stderr.decode()


def test_pipes(tmp_path, exported):
    signal, _ = sf.read(SPEECH[0], dtype="int16")
    status, out, err = piped(exported, signal.astype("<i2").tobytes() + b"x")
    assert status == 0, err
    assert float(out.split()[-1]) == pytest.approx(len(signal) / 16000, 1e-3)
    path = tmp_path / "a.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((2, 2, 48000, 0, "NONE", ""))
        file.writeframes(np.repeat(signal, 6).tobytes())
    status, again, err = piped(exported, path.read_bytes())
    assert status == 0, err
    assert float(again.split()[-1]) == pytest.approx(float(out.split()[-1]))
    assert piped(exported, b"")[0] == 2
    assert piped(exported, b"RIFF and more")[0] == 2


def test_torch_is_not_imported(exported):
    code = (
        "import sys\n"
        "from noisegate.cli import main\n"
        f"main(['vad', {str(SPEECH[0])!r}, '--model={exported}'])\n"
        "others = {'torch', 'speechbrain', 'scipy', 'ruamel'}\n"
        "assert not others & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_page_shows_how_to_run_chunks(
    causal, exported, tmp_path, monkeypatch
):
    """The example of docs/deploy.md as it stands there."""
    page = Path(__file__).parents[2] / "docs" / "deploy.md"
    text = page.read_text(encoding="utf-8")
    (code,) = [
        block.partition("```")[0]
        for block in text.split("```python\n")[1:]
        if "onnxruntime" in block.partition("```")[0]
    ]
    shutil.copy(exported, tmp_path / "vad.onnx")
    signal, rate = sf.read(SPEECH[2], dtype="float32")
    sf.write(tmp_path / "speech.wav", signal, rate, subtype="FLOAT")
    monkeypatch.chdir(tmp_path)
    values = {}
    exec(code, values)
    expected = whole(causal, signal)
    assert len(values["speech"]) == len(expected)
    difference = np.abs(values["scores"] - expected).max()
    assert difference <= 1e-5 * np.abs(expected).max()


def test_who_reads_no_further_ends_it_quietly(exported):
    """As ``noisegate vad *.wav | head -1`` does."""
    command = [sys.executable, "-m", "noisegate", "vad", f"--model={exported}"]
    command += ["--threshold=-99", *[str(file) for file in SPEECH] * 30]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_the_models_that_come_with_it_work(capsys):
    """Speech is found in the sample, none in noise; a word in a clip."""
    with open(SPEECH[0].parents[1] / "segments.csv", encoding="utf-8") as fin:
        rows = {row["id"]: row for row in csv.DictReader(fin)}
    row = rows[SPEECH[0].stem]
    assert main(["vad", str(SPEECH[0]), "--format=json"]) is None
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert found[0]["start_s"] == pytest.approx(float(row["start_s"]), abs=0.3)
    noise = sorted((RECIPE / "sample" / "noise" / "ogg").glob("*rain*"))[0]
    main(["vad", str(noise)])
    assert capsys.readouterr().out == ""
