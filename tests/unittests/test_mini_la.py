"""Mini-LA: tree, protocols, attacks and what gives the class away."""

import json
import logging
import re
import shutil
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from scipy.signal import lfilter

pytest.importorskip("pyworld")

import asvspoof_prepare  # noqa: E402
import mini_la  # noqa: E402
import mini_la_attacks  # noqa: E402
import mini_la_chain  # noqa: E402
import mini_la_check  # noqa: E402
import mini_la_speech  # noqa: E402
import vad_data  # noqa: E402

from noisegate.evaluation.files import fingerprint  # noqa: E402

RATE = 16000
PROTOCOLS = {
    "train": "ASVspoof2019.LA.cm.train.trn.txt",
    "dev": "ASVspoof2019.LA.cm.dev.trl.txt",
    "eval": "ASVspoof2019.LA.cm.eval.trl.txt",
}
SMALL = {"n_speakers": 6, "utterances_per_speaker": 2}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mini_la") / "small"
    mini_la.make_mini_la(folder, num_workers=1, **SMALL)
    return folder


def protocol(folder, name):
    path = folder / "ASVspoof2019_LA_cm_protocols" / PROTOCOLS[name]
    return path.read_text("utf-8").splitlines()


def flac(folder, name, line):
    audio = folder / f"ASVspoof2019_LA_{name}" / "flac"
    return audio / f"{line.split()[1]}.flac"


def every_file(folder):
    return [
        flac(folder, name, line)
        for name in PROTOCOLS
        for line in protocol(folder, name)
    ]


@pytest.fixture(scope="module")
def speech():
    """Two clips of one voice, one of another, of the sample."""
    names = ("so_000050095", "so_000050099", "so_000010089")
    return [
        mini_la.load_clip({"path": mini_la.SAMPLE / "ogg" / f"{name}.ogg"})
        for name in names
    ]


def make_material(speech, phrases):
    return mini_la_attacks.Material(
        clip=speech[0],
        analysis=mini_la_attacks.world_analysis(speech[0]),
        rest=[speech[1]],
        foreign=lambda generator: speech[2],
        f0_hz=140.0,
        phrases=phrases,
        n_samples=2 * RATE,
    )


def write_speech(path, n_words=4, rate=44100, seed=0):
    """Words of noise through a formant, silence around them."""
    generator = np.random.default_rng(seed)
    word = np.hanning(rate // 2) * np.sin(
        2 * np.pi * generator.uniform(100, 300) * np.arange(rate // 2) / rate
    )
    word += 0.05 * np.hanning(rate // 2) * generator.standard_normal(rate // 2)
    gap = 1e-4 * generator.standard_normal(rate // 2)
    path.parent.mkdir(parents=True, exist_ok=True)
    sf.write(path, 0.3 * np.concatenate([gap, word] * n_words + [gap]), rate)


# ------------------------------------------------------- tree and protocols


def test_protocol_lines_are_those_of_2019(corpus):
    for name, letter in (("train", "T"), ("dev", "D"), ("eval", "E")):
        lines = protocol(corpus, name)
        form = re.compile(
            rf"LA_\d{{4}} LA_{letter}_\d{{7}} - (- bonafide|A\d\d spoof)"
        )
        assert all(form.fullmatch(line) for line in lines)
        assert len({line.split()[1] for line in lines}) == len(lines)
        audio = corpus / f"ASVspoof2019_LA_{name}" / "flac"
        assert sorted(p.stem for p in audio.iterdir()) == sorted(
            line.split()[1] for line in lines
        )


def test_preparation_takes_the_tree_as_it_is(tmp_path, corpus):
    paths = [str(tmp_path / f"{split}.json") for split in mini_la_check.SPLITS]
    asvspoof_prepare.prepare_asvspoof(str(corpus), str(tmp_path), *paths)
    for path, name in zip(paths, PROTOCOLS):
        manifest = json.loads(Path(path).read_text("utf-8"))
        assert len(manifest) == len(protocol(corpus, name))
        labels = Counter(item["label"] for item in manifest.values())
        n_attacks = len({i["attack"] for i in manifest.values()} - {"-"})
        assert labels["spoof"] == n_attacks * labels["bonafide"]


def test_speakers_and_attacks_of_the_sets(corpus):
    speakers, attacks = {}, {}
    for name in PROTOCOLS:
        fields = [line.split() for line in protocol(corpus, name)]
        speakers[name] = {f[0] for f in fields}
        attacks[name] = {f[3] for f in fields} - {"-"}
        # Every speaker is both bona fide and spoofed.
        assert speakers[name] == {f[0] for f in fields if f[3] == "-"}
        assert len(speakers[name]) == 2
    assert len(set.union(*speakers.values())) == 6
    assert (
        attacks["train"] == attacks["dev"] == set(mini_la_attacks.KNOWN_ATTACKS)
    )
    assert not attacks["eval"] & attacks["train"]
    expected = set(mini_la_attacks.ATTACKS) - attacks["train"]
    if not mini_la.has_text_to_speech():
        expected -= set(mini_la_attacks.TTS_ATTACKS)
    assert attacks["eval"] == expected
    # Two of them are known ones, as in 2019.
    assert mini_la_attacks.ATTACKS["A16"] is mini_la_attacks.ATTACKS["A04"]
    assert mini_la_attacks.ATTACKS["A19"] is mini_la_attacks.ATTACKS["A06"]


def test_files_are_alike(corpus):
    for name in PROTOCOLS:
        durations = defaultdict(list)
        for line in protocol(corpus, name):
            path = flac(corpus, name, line)
            info = sf.info(path)
            assert info.format == "FLAC"
            assert info.subtype == "PCM_16"
            assert (info.samplerate, info.channels) == (RATE, 1)
            assert mini_la.MIN_FILE_S <= info.duration <= mini_la.MAX_FILE_S
            durations[line.split()[3]].append(info.frames)
            signal, _ = sf.read(path)
            level = vad_data.active_rms(signal, RATE)
            assert 20 * np.log10(level) == pytest.approx(
                mini_la_chain.LEVEL_DB, abs=0.05
            )
            crest_db = 20 * np.log10(np.abs(signal).max() / level)
            assert crest_db < mini_la_chain.CREST_DB + 2.0
            assert abs(signal.mean()) < 1e-3
        # The same lengths for bona fide speech and for each attack.
        assert len({tuple(sorted(d)) for d in durations.values()}) == 1


def test_interrupted_run_goes_on_with_the_same_files(
    tmp_path, corpus, monkeypatch
):
    """Deterministic: what is made again equals what was there."""
    again = tmp_path / "again"
    shutil.copytree(corpus, again)
    # All files of a speaker of dev and of one of eval.
    removed = [
        flac(again, name, line)
        for name in ("dev", "eval")
        for line in protocol(again, name)
        if line.split()[0] == protocol(again, name)[0].split()[0]
    ]
    for path in removed:
        path.unlink()
    shutil.rmtree(again / "ASVspoof2019_LA_cm_protocols")
    kept = flac(again, "train", protocol(corpus, "train")[0])
    before = kept.stat().st_mtime_ns
    mini_la.make_mini_la(again, num_workers=1, **SMALL)
    assert kept.stat().st_mtime_ns == before
    for name in PROTOCOLS:
        assert protocol(again, name) == protocol(corpus, name)
    for path in removed:
        original = corpus / path.relative_to(again)
        assert path.read_bytes() == original.read_bytes(), path.name

    # Complete: nothing is done, even without espeak-ng. Other arguments are
    # refused.
    removed[0].unlink()
    monkeypatch.setattr(mini_la, "has_text_to_speech", lambda: False)
    mini_la.make_mini_la(again, num_workers=1, **SMALL)
    assert not removed[0].exists()
    with pytest.raises(ValueError, match="holds a corpus made with"):
        mini_la.make_mini_la(again, seed=1, **SMALL)


def test_the_corpus_belongs_to_its_speech(tmp_path, corpus):
    """Another folder of the same name, files that were changed or names of
    speakers that nothing uses are refused."""
    speech = [tmp_path / name / "speech" for name in ("a", "b")]
    for folder, text in zip(speech, ("1", "12")):
        folder.mkdir(parents=True)
        (folder / "x.txt").write_text(text)
    of_a = tmp_path / "corpus"
    shutil.copytree(corpus, of_a)
    note = json.loads((of_a / mini_la.NOTE).read_text())
    note["speech"] = "speech"
    note["files"] = fingerprint(speech[0])
    (of_a / mini_la.NOTE).write_text(json.dumps(note))
    mini_la.make_mini_la(of_a, speech[0], **SMALL)
    with pytest.raises(ValueError, match="holds a corpus made with"):
        mini_la.make_mini_la(of_a, speech[1], **SMALL)
    (speech[0] / "x.txt").write_text("123")
    with pytest.raises(ValueError, match="holds a corpus made with"):
        mini_la.make_mini_la(of_a, speech[0], **SMALL)
    with pytest.raises(ValueError, match="speakers_csv is a.csv"):
        mini_la.make_mini_la(tmp_path / "new", speakers_csv="a.csv")


def test_plan_depends_on_the_seed():
    utterances = [
        {"id": f"s{s}/{u}", "speaker": f"s{s}", "group": f"s{s}", "path": ""}
        for s in range(8)
        for u in range(3)
    ]
    arguments = {
        "seed": 1,
        "n_speakers": None,
        "utterances_per_speaker": 2,
        "attacks": list(mini_la_attacks.ATTACKS),
    }
    plan = mini_la._plan(utterances, arguments)
    assert plan == mini_la._plan(utterances, arguments)
    assert plan != mini_la._plan(utterances, {**arguments, "seed": 2})
    assert all(len(task["utterances"]) == 2 for task in plan)


def test_groups_of_speakers_stay_together():
    utterances = [
        {"speaker": f"s{i}", "group": f"g{i // 2}"}
        for i in range(40)
        for _ in range(1 + i % 5)
    ]
    subsets = mini_la.split_speakers(utterances, seed=3)
    where = {s: name for name, found in subsets.items() for s in found}
    assert len(where) == 40
    assert all(where[f"s{i}"] == where[f"s{i + 1}"] for i in range(0, 40, 2))
    counts = Counter(where[u["speaker"]] for u in utterances)
    for name, (_, share) in mini_la.SUBSETS.items():
        assert counts[name] / len(utterances) == pytest.approx(share, abs=0.05)


# ----------------------------------------------------- folders of speech


def test_folder_of_speech(tmp_path, monkeypatch, caplog):
    root = tmp_path / "speech"
    for s in range(6):
        for u in range(2):
            write_speech(root / f"spk{s}" / f"u{u}.wav", seed=10 * s + u)
    (root / "spk0" / "u2.wav").write_bytes(b"broken")
    write_speech(root / "spk1" / "short.wav", n_words=1)
    write_speech(root / "lonely" / "u0.wav")
    monkeypatch.setattr(mini_la, "has_text_to_speech", lambda: False)
    # Quick: the attacks themselves are tested elsewhere.
    monkeypatch.setattr(
        mini_la, "ATTACKS", {"A01": copy, "A07": copy, "A09": copy}
    )
    with caplog.at_level(logging.WARNING):
        mini_la.make_mini_la(tmp_path / "out", root, num_workers=1)
    assert "A07 and A08 are left out: espeak-ng is missing" in caplog.text
    assert "1 speakers with a single utterance are left out" in caplog.text
    assert "spk0/u2.wav is unreadable" in caplog.text
    assert "spk1/short has 0." in caplog.text
    lines = [
        li for name in PROTOCOLS for li in protocol(tmp_path / "out", name)
    ]
    # Each of the 12 good utterances as it is and by one attack.
    assert Counter(line.split()[4] for line in lines) == {
        "bonafide": 12,
        "spoof": 12,
    }
    assert {line.split()[3] for line in lines} == {"-", "A01", "A09"}
    assert len(every_file(tmp_path / "out")) == 24


def copy(material, generator):
    return material.clip


def test_speakers_of_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no audio file"):
        mini_la.list_utterances(tmp_path)
    write_speech(tmp_path / "a_1.wav")
    write_speech(tmp_path / "a_2.wav")
    with pytest.raises(ValueError, match="is in no folder of a speaker"):
        mini_la.list_utterances(tmp_path)
    table = tmp_path / "speakers.csv"
    table.write_text("id,speaker_cluster,split_group\na_2,spk7,grp1\n")
    assert mini_la.list_utterances(tmp_path, table) == [
        {
            "id": "a_2",
            "speaker": "spk7",
            "group": "grp1",
            "path": str(tmp_path / "a_2.wav"),
        }
    ]
    table.write_text("id,name\na_2,spk7\n")
    with pytest.raises(ValueError, match="expected id and one of"):
        mini_la.list_utterances(tmp_path, table)
    with pytest.raises(ValueError, match="expected two speakers in each set"):
        mini_la.make_mini_la(tmp_path / "out", n_speakers=5)


# ------------------------------------------------------------------ attacks


@pytest.mark.parametrize(
    "name",
    [
        a
        for a in mini_la_attacks.ATTACKS
        if a not in mini_la_attacks.TTS_ATTACKS
    ],
)
def test_attack_gives_speech(speech, name):
    material = make_material(speech, {})
    signal = mini_la_attacks.ATTACKS[name](material, np.random.default_rng(0))
    assert signal.ndim == 1
    assert np.isfinite(signal).all()
    conversion = name in ("A05", "A14", "A17")
    source = speech[2] if conversion else speech[0]
    assert 0.7 < len(signal) / len(source) < 1.45
    # Not the waveform of the source, but about its envelope in time.
    n = min(len(signal), len(source))
    assert abs(np.corrcoef(signal[:n], source[:n])[0, 1]) < 0.95
    assert vad_data.active_frames(signal, RATE).mean() > 0.5
    again = mini_la_attacks.ATTACKS[name](material, np.random.default_rng(0))
    assert np.array_equal(signal, again)


def test_world_copy_keeps_the_spectrum(speech):
    material = make_material(speech, {})
    copied = mini_la_attacks.ATTACKS["A02"](material, None)
    distance_db = mini_la_chain.band_levels_db(
        copied
    ) - mini_la_chain.band_levels_db(speech[0])
    assert np.abs(distance_db).mean() < 2.0


@pytest.mark.parametrize("name", ["A05", "A14"])
def test_conversion_reaches_the_pitch(speech, name):
    source_f0_hz = mini_la_attacks.median_f0_hz(
        mini_la_attacks.world_f0(speech[2])[0]
    )
    material = make_material(speech, {})
    material.f0_hz = 1.25 * source_f0_hz
    signal = mini_la_attacks.ATTACKS[name](material, np.random.default_rng(0))
    f0_hz = mini_la_attacks.median_f0_hz(mini_la_attacks.world_f0(signal)[0])
    assert f0_hz / source_f0_hz == pytest.approx(1.25, abs=0.05)


def test_filtering_without_a_shift_changes_nothing(speech, monkeypatch):
    monkeypatch.setattr(mini_la_attacks, "_formant_scale", lambda ratio: 1.0)
    monkeypatch.setattr(mini_la_attacks, "MAX_POLE", 1.0)
    material = make_material(speech, {})
    signal = mini_la_attacks.ATTACKS["A17"](material, None)[: len(speech[2])]
    assert np.abs(signal - speech[2]).max() < 1e-9


@pytest.mark.skipif(
    not mini_la.has_text_to_speech(), reason="espeak-ng is missing"
)
@pytest.mark.parametrize("f0_hz", [110.0, 210.0])
def test_text_to_speech(speech, tmp_path, f0_hz):
    mini_la_speech.speak(tmp_path / "phrases.npz")
    phrases = defaultdict(list)
    with np.load(tmp_path / "phrases.npz") as stored:
        for key in stored.files:
            phrases[key.split("/")[0]].append(stored[key])
    assert set(phrases) == {
        *mini_la_speech.MALE_VOICES,
        *mini_la_speech.FEMALE_VOICES,
    }
    material = make_material(speech, phrases)
    material.f0_hz = f0_hz
    plain, converted = (
        mini_la_attacks.ATTACKS[name](material, np.random.default_rng(0))
        for name in mini_la_attacks.TTS_ATTACKS
    )
    assert len(plain) >= material.n_samples
    assert len(converted) >= material.n_samples
    found_hz = mini_la_attacks.median_f0_hz(
        mini_la_attacks.world_f0(converted)[0]
    )
    assert found_hz == pytest.approx(f0_hz, rel=0.06)


# ------------------------------------------------------- chain of every file


def test_speech_only():
    tone = np.sin(2 * np.pi * 200 * np.arange(RATE) / RATE)
    silence = np.zeros(RATE)
    signal = mini_la_chain.speech_only(
        np.concatenate([silence, tone, silence, tone, silence])
    )
    # Two tones, 0.05 s at each end, 0.1 s between; labels are 10 ms wide.
    assert len(signal) / RATE == pytest.approx(2.2, abs=0.05)
    assert len(mini_la_chain.speech_only(np.zeros(RATE))) == 0


def test_crossfade_joins_without_a_jump():
    ramp = np.linspace(0, 1, 100)
    joined = mini_la_chain.crossfade([ramp, ramp + 1, ramp + 2], 10)
    assert len(joined) == 280
    assert np.abs(np.diff(joined)).max() < 0.15
    short = mini_la_chain.crossfade([np.ones(10)] * 5, 8)
    assert np.allclose(short, 1.0)


def test_finish_removes_level_offset_and_colour(speech):
    """Files that differ in what must not tell the class come out alike."""
    target = mini_la_chain.band_levels_db(speech[1])
    dull = 0.1 + 0.01 * lfilter([0.3], [1, -0.7], speech[0])
    outputs = [
        mini_la_chain.finish(signal, target, 2 * RATE, np.random.default_rng(0))
        for signal in (speech[0], dull)
    ]
    features = [
        mini_la_check.trivial_features(np.round(x * 2**15)) for x in outputs
    ]
    for name, tolerance in (
        ("duration_s", 0.0),
        ("active_level_db", 0.1),
        ("dc_lsb", 1.0),
        ("rolloff_95_hz", 700.0),
        ("above_7500_hz_db", 0.5),
        ("below_60_hz_db", 1.5),
        ("silence_share", 0.05),
    ):
        a, b = (found[name] for found in features)
        assert abs(a - b) <= tolerance, name


# -------------------------------------------------------------------- check


def test_check_finds_a_planted_shortcut(tmp_path, corpus):
    pytest.importorskip("sklearn")
    report = mini_la_check.check_shortcuts(corpus)
    assert set(report) == {"dev", "eval"}
    assert report["eval"]["features"]["duration_s"] == 0.5
    assert set(report["dev"]["attacks"]) == set(mini_la_attacks.KNOWN_ATTACKS)

    planted = tmp_path / "planted"
    shutil.copytree(corpus, planted)
    for name in PROTOCOLS:
        for line in protocol(planted, name):
            path = flac(planted, name, line)
            if line.endswith("spoof"):
                signal, _ = sf.read(path)
                sf.write(path, np.pad(0.7 * signal, (0, 1600)), RATE)
    report = mini_la_check.check_shortcuts(planted)
    for name in ("dev", "eval"):
        assert report[name]["features"]["active_level_db"] == 1.0
        assert report[name]["auc"] > 0.95
        assert report[name]["eer"] < 20


def test_command_says_what_is_wrong_in_a_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        mini_la.main([str(tmp_path / "new"), "--speech_folder=/nowhere"])
    assert stopped.value.code == 2
    assert "/nowhere" in capsys.readouterr().err


def test_a_corpus_that_is_there_is_not_touched(tmp_path):
    """As one gets with the data_folder of ASVspoof 2019 LA."""
    protocol = tmp_path / "ASVspoof2019_LA_cm_protocols" / "train.trn.txt"
    protocol.parent.mkdir()
    protocol.write_text("LA_0079 LA_T_1138215 - - bonafide\n")
    with pytest.raises(ValueError, match="something else .*make_mini_la=Fals"):
        mini_la.make_mini_la(tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files == [protocol]
    assert protocol.read_text() == "LA_0079 LA_T_1138215 - - bonafide\n"
