#!/usr/bin/env python3
"""The detector that comes with noisegate, beside what people use.

> python benchmarks/vad.py --speech /path/to/so762_vad /path/to/barista \
      --noise=/path/to/noise_rir [--crdnn=crdnn.onnx]
> python benchmarks/vad.py --table benchmarks/README.md

The test speakers of the folders of speech (``utterances.csv``,
``segments.csv``, FLAC), each utterance mixed with a noise of ``noise.csv``, of
the kinds that the detector was not trained on, at one of five SNR; frames of 10
ms. Each system runs in a process
of its own on one thread, the systems in turn, three times: processor time per
second of audio, from samples to scores, reading left out.

Needs ``pip install silero-vad webrtcvad-wheels pulsevad`` for the others; what
is not there is left out. ``--crdnn`` is what `noisegate export` wrote of the
dense network of SpeechBrain's recipe, trained on the data of the detector
(README.md has the commands).

Intervals are those of this very model over speakers, those of differences
paired.

Authors
 * The noisegate developers, 2026
"""

import argparse
import importlib.metadata
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "vad.json"
# What is there imports torch: not for the processes that are measured
sys.path.append(str(ROOT / "recipes" / "VAD"))
RATE, HOP = 16000, 160
SNRS_DB = (-5, 0, 5, 10, 20)
ROUNDS = 3


def repeated(scores, step, delay=0):
    """Scores of steps as those of frames of 10 ms, whose centres are at
    multiples of it; ``delay`` is the time in samples of the first."""
    frames = np.arange(0, len(scores) * step + delay, HOP)
    index = np.clip((frames - delay) // step, 0, len(scores) - 1)
    return np.asarray(scores)[index]


class Noisegate:
    """The model that comes with noisegate, chunks of 100 ms as of a pipe."""

    package, delay_ms, block = "speechbrain-noisegate", 12.5, RATE // 10

    def __init__(self):
        from noisegate.deploy.runtime import Model
        from noisegate.deploy.vad import DEFAULT_MODEL

        self.files = [DEFAULT_MODEL]
        self.model = Model(DEFAULT_MODEL)

    def __call__(self, signal):
        stream, made = self.model.stream(), []
        for start in range(0, len(signal), self.block):
            made.append(stream.feed(signal[start : start + self.block]))
        return np.concatenate([*made, stream.finish()]).reshape(-1)


class NoisegateFiles(Noisegate):
    """The same in blocks of 1 s, as of a file."""

    delay_ms, block = 1012.5, RATE


class CRDNN:
    """SpeechBrain's own network, which reads whole signals."""

    package, delay_ms, file = "speechbrain", None, "CRDNN_FILE"

    def __init__(self):
        from noisegate.deploy.runtime import Model

        self.files = [os.environ.get(self.file, "no --crdnn")]
        self.model = Model(self.files[0])

    def __call__(self, signal):
        return self.model.run(signal[None].astype(np.float32))[0].reshape(-1)


class Silero:
    """silero-vad in onnxruntime, windows of 32 ms."""

    package, delay_ms, name = "silero-vad", 32.0, "silero_vad.onnx"

    def __init__(self):
        import importlib.util

        spec = importlib.util.find_spec("silero_vad")
        folder = Path(spec.submodule_search_locations[0]) / "data"
        self.files = [folder / self.name]
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            str(self.files[0]), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, signal):
        # As its OnnxWrapper does: 64 samples of context
        state = np.zeros((2, 1, 128), np.float32)
        context = np.zeros((1, 64), np.float32)
        rate, scores = np.array(RATE), []
        signal = np.pad(signal, (0, -len(signal) % 512))
        for start in range(0, len(signal), 512):
            x = np.concatenate(
                [context, signal[None, start : start + 512]], axis=1
            )
            output, state = self.session.run(
                None, {"input": x, "state": state, "sr": rate}
            )
            context = x[:, -64:]
            scores.append(float(output[0, 0]))
        return repeated(scores, 512)


class SileroFiles(Silero):
    """silero-vad's model for files, 31 of the windows at a time."""

    delay_ms, name = 992.0, "silero_vad_16k_sequence.onnx"

    def __call__(self, signal):
        signal = np.pad(signal, (64, -len(signal) % 512))
        n = (len(signal) - 64) // 512
        windows = np.lib.stride_tricks.sliding_window_view(signal, 576)[::512]
        h = c = np.zeros((1, 1, 128), np.float32)
        scores = []
        for start in range(0, n, 31):
            x = np.ascontiguousarray(windows[start : start + 31])
            made, h, c = self.session.run(None, {"input": x, "h": h, "c": c})
            scores.append(made)
        return repeated(np.concatenate(scores), 512)


class WebRTC:
    """webrtcvad, windows of 10 ms: how many of its four modes say speech."""

    package, delay_ms, modes = "webrtcvad-wheels", 10.0, (0, 1, 2, 3)

    def __init__(self):
        import webrtcvad

        self.make = webrtcvad.Vad
        self.files = [Path(sys.modules["_webrtcvad"].__file__)]

    def __call__(self, signal):
        data = np.clip(np.round(32768 * signal), -32768, 32767)
        data = data.astype("<i2").tobytes()
        scores = np.zeros(len(signal) // HOP)
        for mode in self.modes:
            detector = self.make(mode)
            for i in range(len(scores)):
                frame = data[2 * i * HOP : 2 * (i + 1) * HOP]
                scores[i] += detector.is_speech(frame, RATE)
        return scores


class WebRTC2(WebRTC):
    """webrtcvad in mode 2 alone."""

    modes = (2,)


class Pulse:
    """pulsevad, its default of 2.1 k parameters in int8: windows of 200 ms
    each 100 ms."""

    package, delay_ms = "pulsevad", 150.0

    def __init__(self):
        import pulsevad

        self.session = pulsevad.load_pulsevad()
        self.predict = pulsevad.predict_window
        self.files = [pulsevad.get_model_path("pulsevad_2.1k_int8.onnx")]

    def __call__(self, signal):
        n = max(1, 1 + (len(signal) - 3200) // 1600)
        signal = np.pad(signal, (0, max(0, 3200 - len(signal))))
        scores = [
            self.predict(self.session, signal[1600 * i : 1600 * i + 3200])
            for i in range(n)
        ]
        return repeated(scores, 1600, delay=800)


SYSTEMS = {
    "noisegate": Noisegate,
    "noisegate, files": NoisegateFiles,
    "SpeechBrain's CRDNN": CRDNN,
    "silero-vad": Silero,
    "silero-vad, files": SileroFiles,
    "webrtcvad": WebRTC,
    "webrtcvad, mode 2": WebRTC2,
    "pulsevad": Pulse,
}


def mixtures(speech, noise, most):
    """Yields source, speaker, SNR, signal and segments of noisy test
    utterances."""
    import soundfile as sf
    from make_sample import read_rows
    from merge_data import TEST_NOISES
    from vad_data import mix_at_snr

    rng = np.random.default_rng(0)
    clips = [r for r in read_rows(noise / "noise.csv") if r["part"] == "0"]
    clips = [r for r in clips if r["class"] in TEST_NOISES]
    assert all(row["human_voice"] == "0" for row in clips)
    noises = [sf.read(noise / "noise" / f"{r['id']}.flac")[0] for r in clips]
    for folder in speech:
        segments = {}
        for row in read_rows(folder / "segments.csv"):
            place = [float(row["start_s"]), float(row["end_s"])]
            segments.setdefault(row["id"], []).append(place)
        rows = read_rows(folder / "utterances.csv")
        rows = [row for row in rows if row["split"] == "test"][:most]
        # Any noise at any SNR
        order = rng.integers(len(noises), size=len(rows))
        for number, row in enumerate(rows):
            clean, rate = sf.read(folder / "flac" / f"{row['id']}.flac")
            assert rate == RATE, (row["id"], rate)
            snr = SNRS_DB[number % len(SNRS_DB)]
            other = np.roll(noises[order[number]], rng.integers(RATE))
            where = segments.get(row["id"], [])
            mixed = mix_at_snr(clean, other, where, snr).numpy()
            speaker = row.get("speaker") or row["split_group"]
            yield folder.name, f"{folder.name} {speaker}", snr, mixed, where


def one(name, path):
    """Runs one system in this process: prints its figures, keeps scores."""
    began = time.perf_counter()
    system = SYSTEMS[name]()
    data = np.load(path)
    signals = [data[str(i)] for i in range(len(data.files))]
    system(signals[0][:RATE])
    started_s = time.perf_counter() - began
    start = time.process_time()
    scores = [system(signal) for signal in signals]
    cpu_s = time.process_time() - start
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (memory_kb,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
    np.savez(
        path.with_name(f"{name}.npz"),
        **{str(i): s for i, s in enumerate(scores)},
    )
    seconds = sum(map(len, signals)) / RATE
    figures = {
        "cpu_ms_per_second": 1000 * cpu_s / seconds,
        "start_s": started_s,
        "memory_mb": int(memory_kb) / 1024 - data_mb(signals),
        "size_kb": sum(os.path.getsize(f) for f in system.files) / 1000,
    }
    print(json.dumps(figures))


def data_mb(signals):
    """Memory of the signals themselves."""
    return sum(signal.nbytes for signal in signals) / 2**20


def scores_by_frame(scored, items):
    """Pairs of scores and labels of each utterance, cut to its frames."""
    from vad_data import frame_labels

    for i, (_, _, _, signal, where) in enumerate(items):
        n, scores = len(signal) // HOP, scored[str(i)]
        scores = np.pad(scores, (0, max(0, n - len(scores))), "edge")[:n]
        yield scores, frame_labels(where, n).numpy()


def intervals(frames, items):
    """EERs with intervals over speakers (dict), and how much greater each is
    than that of noisegate."""
    from noisegate.evaluation.bootstrap import Bootstrap
    from noisegate.evaluation.trials import Trials

    runs = {}
    for name, pairs in frames.items():
        speakers = np.repeat([x[1] for x in items], [len(s) for s, _ in pairs])
        scores, labels = map(np.concatenate, zip(*pairs))
        edges = np.unique(np.quantile(scores, np.linspace(0, 1, 1000)))
        steps = np.searchsorted(edges, scores).astype(float)
        runs[name] = {0: Trials.of(steps, labels, speakers)}
    draws, found = Bootstrap(runs), {}
    for name in runs:
        eer = draws.estimate(lambda eer, name=name: eer[name])
        more = draws.estimate(
            lambda eer, name=name: eer[name] - eer["noisegate"]
        )
        found[name] = {
            "eer_interval": [eer.low, eer.high],
            "eer_more": [more.value, more.low, more.high],
        }
    return found


def run(speech, noise, most, commit, crdnn):
    """Measures all systems that are installed."""
    from noisegate.evaluation.files import write_atomically
    from noisegate.evaluation.metrics import eer, roc_auc

    items = list(mixtures(speech, noise, most))
    seconds = sum(len(item[3]) for item in items) / RATE
    print(f"{len(items)} utterances, {seconds / 60:.1f} min", flush=True)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "signals.npz"
        np.savez(path, **{str(i): item[3] for i, item in enumerate(items)})
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        if crdnn:
            env[CRDNN.file] = str(crdnn.resolve())
        for _ in range(ROUNDS):
            for name in SYSTEMS:
                command = [sys.executable, __file__, "--one", name, str(path)]
                made = subprocess.run(
                    command, env=env, capture_output=True, text=True
                )
                if made.returncode:
                    reason = made.stderr.strip().splitlines()[-1]
                    print(f"{name}: left out, {reason}", flush=True)
                    continue
                figures = json.loads(made.stdout.splitlines()[-1])
                print(name, figures, flush=True)
                found.setdefault(name, []).append(figures)
        frames = {
            name: list(
                scores_by_frame(np.load(path.with_name(f"{name}.npz")), items)
            )
            for name in found
        }
    sure, rows = intervals(frames, items), []
    for name, rounds in found.items():
        row = {
            key: statistics.median(r[key] for r in rounds) for key in rounds[0]
        }
        row |= {
            "system": name,
            "version": importlib.metadata.version(SYSTEMS[name].package),
            "delay_ms": SYSTEMS[name].delay_ms,
            **sure[name],
            "eer": {},
            "auc": {},
        }
        groups = {}
        for pair, (source, _, snr, _, _) in zip(frames[name], items):
            for key in (source, f"{snr} dB", "all"):
                groups.setdefault(key, []).append(pair)
        for key, pairs in groups.items():
            scores, labels = map(np.concatenate, zip(*pairs))
            row["eer"][key] = eer(scores, labels)
            row["auc"][key] = roc_auc(scores, labels)
        rows.append(row)
    about = {
        "commit": commit,
        "python": sys.version.split()[0],
        "onnxruntime": importlib.metadata.version("onnxruntime"),
        "utterances": len(items),
        "speakers": len({item[1] for item in items}),
        "minutes": seconds / 60,
        "rounds": ROUNDS,
        "systems": rows,
    }
    write_atomically(RESULT, json.dumps(about, indent=1) + "\n")


def table(path):
    """Fills the table of a README."""
    from noisegate.evaluation.files import fill_blocks, markdown_table

    about = json.loads(RESULT.read_text(encoding="utf-8"))
    rows = about["systems"]
    sources = [key for key in rows[0]["auc"] if key[-2:] != "dB"]
    sources.sort(key=lambda source: source != "all")
    noisy = [f"{snr} dB" for snr in SNRS_DB]
    figures = [
        [
            f"{row['system']} ({row['version']})",
            *(f"{row['auc'][key]:.3f}" for key in (*sources, *noisy)),
            "{:.1f} ({:.1f} to {:.1f})".format(
                row["eer"]["all"], *row["eer_interval"]
            ),
            "{:+.1f} ({:+.1f} to {:+.1f})".format(*row["eer_more"]),
            *(f"{row['eer'][key]:.1f}" for key in noisy),
        ]
        for row in rows
    ]
    header = ["system", *(f"AUC, {s}" for s in (*sources, *noisy)), "EER, all"]
    header += ["more than noisegate", *(f"EER, {s}" for s in noisy)]
    costs = [
        [
            row["system"],
            f"{row['cpu_ms_per_second']:.2f}",
            f"{row['size_kb']:.0f}",
            f"{row['start_s']:.2f}",
            f"{row['memory_mb']:.0f}",
            "the end" if row["delay_ms"] is None else f"{row['delay_ms']:.1f}",
        ]
        for row in rows
    ]
    of_costs = ["system", "ms of CPU per s", "model, kB", "start, s"]
    of_costs += ["memory, MB", "delay, ms"]
    text = (
        f"{about['utterances']} utterances of {about['speakers']} speakers, "
        f"{about['minutes']:.0f} min, commit "
        f"{about['commit']}, onnxruntime {about['onnxruntime']}, one thread, "
        f"medians of {about['rounds']} runs in turn.\n\n"
    )
    tables = markdown_table(header, figures), markdown_table(of_costs, costs)
    fill_blocks(path, vad=text + "\n\n".join(tables))


def main():
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--speech", nargs="+", type=Path)
    parser.add_argument("--noise", type=Path)
    parser.add_argument("--most", type=int, help="utterances of a folder")
    parser.add_argument("--commit", help="that is measured")
    parser.add_argument("--crdnn", type=Path, help="ONNX of SpeechBrain's")
    parser.add_argument("--one", nargs=2, metavar=("SYSTEM", "NPZ"))
    parser.add_argument("--table", type=Path, help="README to fill")
    arguments = parser.parse_args()
    if arguments.one:
        one(arguments.one[0], Path(arguments.one[1]))
    elif arguments.table:
        table(arguments.table)
    elif arguments.speech and arguments.noise:
        run(
            *(
                getattr(arguments, k)
                for k in "speech noise most commit crdnn".split()
            )
        )
    else:
        parser.error("give --speech and --noise, or --table")


if __name__ == "__main__":
    main()
