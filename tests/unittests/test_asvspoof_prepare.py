"""Data preparation of the ASVspoof recipe, on small trees of its layouts."""

import json
import logging
import os
from collections import Counter
from pathlib import Path

import asvspoof_prepare
import asvspoof_protocols
import numpy as np
import pytest
import soundfile as sf
from speechbrain.dataio.dataset import DynamicItemDataset

ROOT = Path(__file__).parents[2]

RATE = 16000
SPLITS = ("train", "valid", "test")
CM = "ASVspoof2019_LA_cm_protocols"
# Lines of the official protocols (ODC-By 1.0).
LINES = {
    "train": (
        "LA_0079 LA_T_1138215 - - bonafide",
        "LA_0079 LA_T_1271820 - - bonafide",
        "LA_0079 LA_T_1004644 - A01 spoof",
        "LA_0079 LA_T_1056709 - A01 spoof",
    ),
    "dev": (
        "LA_0069 LA_D_1047731 - - bonafide",
        "LA_0069 LA_D_1105538 - - bonafide",
        "LA_0069 LA_D_1008730 - A01 spoof",
        "LA_0069 LA_D_1034049 - A01 spoof",
    ),
    "eval": (
        "LA_0033 LA_E_4581379 - - bonafide",
        "LA_0030 LA_E_5849185 - - bonafide",
        "LA_0039 LA_E_2834763 - A11 spoof",
        "LA_0014 LA_E_8877452 - A14 spoof",
    ),
}
PROTOCOLS = {
    "train": f"{CM}/ASVspoof2019.LA.cm.train.trn.txt",
    "dev": f"{CM}/ASVspoof2019.LA.cm.dev.trl.txt",
    "eval": f"{CM}/ASVspoof2019.LA.cm.eval.trl.txt",
}
# Where the official lists may be: not part of the repository.
OFFICIAL = Path(
    os.environ.get(
        "ASVSPOOF_PROTOCOLS",
        ROOT.parent / "shared" / "data" / "asvspoof2019_la_protocol",
    )
)


# ------------------------------------------------------------------ helpers


def write_audio(path, duration_s=0.5, rate=RATE, channels=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(len(path.name))
    shape = (round(duration_s * rate), channels)
    sf.write(path, 0.1 * generator.standard_normal(shape), rate)
    return path


def write_lines(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def make_2019(root, lines=LINES):
    for name, found in lines.items():
        write_lines(root / PROTOCOLS[name], found)
        for line in found:
            write_audio(flac(root, line.split()[1], name))
    return root


def flac(root, name, subset):
    return root / f"ASVspoof2019_LA_{subset}" / "flac" / f"{name}.flac"


def prepare(tmp_path, data_folder, out="out", **options):
    """Runs prepare_asvspoof; gives the manifests, None if not written."""
    folder = tmp_path / out
    paths = [folder / f"{split}.json" for split in SPLITS]
    asvspoof_prepare.prepare_asvspoof(
        str(data_folder), str(folder), *map(str, paths), **options
    )
    return [
        json.loads(p.read_text("utf-8")) if p.is_file() else None for p in paths
    ]


@pytest.fixture
def tree(tmp_path):
    return make_2019(tmp_path / "LA")


def refusal(tmp_path, data_folder, **options):
    """The message of the error; nothing was written."""
    with pytest.raises(ValueError) as error:
        prepare(tmp_path, data_folder, "refused", **options)
    assert not (tmp_path / "refused").exists()
    return str(error.value)


def test_a_manifest_of_others_is_not_replaced(tmp_path, tree):
    """One outside of the run's folder, unless it says the same."""
    mine = tmp_path / "mine.json"
    mine.write_text("{}")
    for folder in ("a", "a", "b"):
        paths = [mine, *(tmp_path / folder / f"{s}.json" for s in SPLITS[1:])]
        arguments = [str(tree), str(tmp_path / folder), *map(str, paths)]
        if mine.read_text() == "{}":
            with pytest.raises(FileExistsError, match="mine.json holds"):
                asvspoof_prepare.prepare_asvspoof(*arguments)
            assert mine.read_text() == "{}"
            mine.unlink()
        asvspoof_prepare.prepare_asvspoof(*arguments)
        assert len(json.loads(mine.read_text())) > 1


# --------------------------------------------------------------- good trees


@pytest.mark.parametrize("wrapper", ["", "LA"])
def test_2019_layout(tmp_path, wrapper):
    root = tmp_path / "data"
    make_2019(root / wrapper)
    manifests = prepare(tmp_path, root)
    assert [len(manifest) for manifest in manifests] == [4, 4, 4]
    folder = f"{wrapper}/" if wrapper else ""
    assert manifests[0]["LA_T_1138215"] == {
        "wav": "{data_root}/" + folder + "ASVspoof2019_LA_train/flac/"
        "LA_T_1138215.flac",
        "length": 0.5,
        "label": "bonafide",
        "attack": "-",
        "speaker": "LA_0079",
    }
    spoof = manifests[2]["LA_E_2834763"]
    assert spoof["label"] == "spoof"
    assert spoof["attack"] == "A11"
    assert spoof["speaker"] == "LA_0039"
    dataset = DynamicItemDataset.from_json(
        str(tmp_path / "out" / "valid.json"), {"data_root": str(root)}
    )
    for item in dataset.data.values():
        assert sf.info(item["wav"]).duration == item["length"]


@pytest.mark.skipif(not OFFICIAL.is_dir(), reason=f"no {OFFICIAL}")
def test_official_counts():
    """As published (Wang et al. 2020), and no speaker in two sets."""
    published = {
        "train": (2580, 22800, 20),
        "dev": (2548, 22296, 20),
        "eval": (7355, 63882, 67),
    }
    attacks = {
        "train": {f"A{i:02d}" for i in range(1, 7)},
        "dev": {f"A{i:02d}" for i in range(1, 7)},
        "eval": {f"A{i:02d}" for i in range(7, 20)},
    }
    speakers = []
    for name, (n_bona_fide, n_spoofed, n_speakers) in published.items():
        path = OFFICIAL / Path(PROTOCOLS[name]).name
        trials, others, problems = asvspoof_protocols.read_protocol(path)
        assert not problems
        assert not others
        labels = Counter(trial["label"] for trial in trials)
        assert labels == {"bonafide": n_bona_fide, "spoof": n_spoofed}
        found = Counter(trial["attack"] for trial in trials)
        assert found.pop("-") == n_bona_fide
        assert set(found) == attacks[name]
        assert len(set(found.values())) == 1
        assert len({trial["id"] for trial in trials}) == len(trials)
        speakers.append({trial["speaker"] for trial in trials})
        assert len(speakers[-1]) == n_speakers
        # The lines in this file are among the official ones.
        assert set(LINES[name]) <= set(path.read_text("utf-8").splitlines())
    assert len(set.union(*speakers)) == sum(map(len, speakers))


def test_protocols_elsewhere(tmp_path, tree):
    (tree / CM).rename(tmp_path / "protocols")
    with pytest.raises(FileNotFoundError, match="no protocol for train"):
        prepare(tmp_path, tree)
    manifests = prepare(
        tmp_path, tree, protocol_folder=str(tmp_path / "protocols")
    )
    assert [len(manifest) for manifest in manifests] == [4, 4, 4]


@pytest.mark.parametrize(
    "task, lines",
    [
        (
            "LA",
            (
                "LA_0009 LA_E_9332881 alaw ita_tx A07 spoof notrim eval",
                "LA_0020 LA_E_1000147 pstn mad_tx bonafide bonafide notrim "
                "eval",
                "LA_0020 LA_E_1000001 none loc_tx A08 spoof notrim progress",
            ),
        ),
        (
            "DF",
            (
                "LA_0023 DF_E_2000011 nocodec asvspoof A14 spoof notrim eval "
                "traditional_vocoder - - - -",
                "LA_0043 DF_E_2000026 mp3m4a asvspoof - bonafide notrim eval "
                "bonafide - - - -",
                "TEF2 DF_E_2000027 low_mp3 vcc2020 Task1-team20 spoof notrim "
                "progress neural_vocoder_autoregressive Task1 team20 FF E",
            ),
        ),
    ],
)
def test_2021_layout(tmp_path, caplog, task, lines):
    root = tmp_path / "data"
    write_lines(root / f"keys/{task}/CM/trial_metadata.txt", lines)
    for line in lines:
        name = line.split()[1]
        write_audio(root / f"ASVspoof2021_{task}_eval/flac/{name}.flac")
    with caplog.at_level(logging.WARNING):
        train, valid, test = prepare(tmp_path, root)
    assert train is None
    assert valid is None
    assert "no train set" in caplog.text
    assert len(test) == 2
    first, second = test.values()
    assert first["label"] == "spoof"
    assert first["attack"] == lines[0].split()[4]
    assert second["label"] == "bonafide"
    assert second["attack"] == "-"
    assert len(prepare(tmp_path, root, "all", phase="all")[2]) == 3
    # The second call finds the test manifest only, which is complete.
    written = (tmp_path / "out" / "test.json").stat().st_mtime_ns
    prepare(tmp_path, root)
    assert (tmp_path / "out" / "test.json").stat().st_mtime_ns == written

    make_2019(root)
    train, valid, test = prepare(tmp_path, root, "both")
    assert [len(train), len(valid), len(test)] == [4, 4, 2]
    test = prepare(tmp_path, root, "2019", layout="2019_la")[2]
    assert "LA_E_2834763" in test


@pytest.mark.parametrize("release", ["final", "first"])
def test_asvspoof5_layout(tmp_path, release):
    root = tmp_path / "data"
    middle = "F - - - AC1" if release == "final" else "F -"
    last = " -" if release == "final" else ""
    names = {
        "train": "ASVspoof5.train.tsv",
        "dev": "ASVspoof5.dev.track_1.tsv",
        "eval": "ASVspoof5.eval.track_1.tsv",
    }
    if release == "first":
        names = {n: f"ASVspoof5.{n}.metadata.txt" for n in ("train", "dev")}
    folders = {"train": "flac_T", "dev": "flac_D", "eval": "flac_E_eval"}
    for name, protocol in names.items():
        letter = folders[name][5]
        lines = [
            f"{letter}_4850 {letter}_0000000001 {middle} A05 spoof{last}",
            f"{letter}_4851 {letter}_0000000002 {middle} bonafide "
            f"bonafide{last}",
        ]
        write_lines(root / "ASVspoof5_protocols" / protocol, lines)
        for line in lines:
            write_audio(root / folders[name] / f"{line.split()[1]}.flac")
    if release == "first":
        with pytest.raises(FileNotFoundError, match="no protocol for test"):
            prepare(tmp_path, root)
        asvspoof_prepare.prepare_asvspoof(
            str(root),
            str(tmp_path / "out"),
            str(tmp_path / "train.json"),
            str(tmp_path / "valid.json"),
            None,
        )
        manifest = json.loads((tmp_path / "train.json").read_text("utf-8"))
    else:
        # Enrolment utterances are audio without a trial.
        write_audio(root / "flac_D" / "D_0000000003.flac")
        with pytest.raises(ValueError, match="1 files without a line"):
            prepare(tmp_path, root)
        write_lines(
            root / "ASVspoof5_protocols" / "ASVspoof5.dev.enroll.txt",
            ["D_4850 D_0000000003"],
        )
        manifest = prepare(tmp_path, root)[0]
    assert manifest == {
        "T_0000000001": {
            "wav": "{data_root}/flac_T/T_0000000001.flac",
            "length": 0.5,
            "label": "spoof",
            "attack": "A05",
            "speaker": "T_4850",
        },
        "T_0000000002": {
            "wav": "{data_root}/flac_T/T_0000000002.flac",
            "length": 0.5,
            "label": "bonafide",
            "attack": "-",
            "speaker": "T_4851",
        },
    }


def test_enrolment_files_are_not_extra(tmp_path, tree):
    """The official dev and eval folders hold 142 and 696 of them."""
    write_audio(flac(tree, "LA_D_1000265", "dev"))
    write_audio(flac(tree, "LA_D_1000752", "dev"))
    assert "2 files without a line" in refusal(tmp_path, tree)
    write_lines(
        tree / "ASVspoof2019_LA_asv_protocols"
        "/ASVspoof2019.LA.asv.dev.female.trn.txt",
        ["LA_0069 LA_D_1000265,LA_D_1000752"],
    )
    assert len(prepare(tmp_path, tree)[1]) == 4


# ---------------------------------------------------------------- bad trees


def test_missing_file(tmp_path, tree, caplog):
    path = flac(tree, "LA_T_1271820", "train")
    path.unlink()
    message = refusal(tmp_path, tree)
    assert "1 missing files" in message
    assert str(path) in message
    assert f"{PROTOCOLS['train']}:2" in message
    with caplog.at_level(logging.WARNING):
        manifests = prepare(tmp_path, tree, skip_bad_files=True)
    assert "1 missing files" in caplog.text
    assert [len(manifest) for manifest in manifests] == [3, 4, 4]
    assert "LA_T_1271820" not in manifests[0]


@pytest.mark.parametrize("kept", [0.0, 0.05, 0.5, 0.99])
def test_truncated_flac(tmp_path, tree, kept):
    path = write_audio(flac(tree, "LA_D_1047731", "dev"), duration_s=4.0)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    message = refusal(tmp_path, tree)
    assert "1 unreadable files" in message
    assert str(path) in message
    manifests = prepare(tmp_path, tree, skip_bad_files=True)
    assert [len(manifest) for manifest in manifests] == [4, 3, 4]


def test_wrong_format(tmp_path, tree):
    write_audio(flac(tree, "LA_D_1047731", "dev"), rate=8000)
    write_audio(flac(tree, "LA_D_1105538", "dev"), channels=2)
    flac(tree, "LA_D_1008730", "dev").write_bytes(b"no audio" * 100)
    message = refusal(tmp_path, tree)
    assert "LA_D_1047731.flac has 8000 Hz and 1 channels" in message
    assert "LA_D_1105538.flac has 16000 Hz and 2 channels" in message
    assert "LA_D_1008730.flac is unreadable" in message


@pytest.mark.parametrize(
    "line, reason",
    [
        ("LA_0039 LA_E_2834763 - A11 genuine", "has the label 'genuine'"),
        ("LA_0039 LA_E_2834763 - A11 bonafide", "its attack is 'A11'"),
        ("LA_0039 LA_E_2834763 - - spoof", "is spoof, its attack is '-'"),
        ("LA_0039 LA_E_2834763 A11 spoof", "has 4 columns, expected 5"),
    ],
)
def test_wrong_line(tmp_path, tree, line, reason):
    write_lines(tree / PROTOCOLS["eval"], [*LINES["eval"][:2], line])
    flac(tree, "LA_E_8877452", "eval").unlink()
    message = refusal(tmp_path, tree)
    assert reason in message
    assert f"{PROTOCOLS['eval']}:3" in message
    # The file has a line, if a wrong one.
    assert "without a line" not in message
    with pytest.raises(ValueError, match="test has no spoof trial"):
        prepare(tmp_path, tree, skip_bad_files=True)


def test_duplicate_lines(tmp_path, tree):
    first = LINES["train"][0]
    other = "LA_0079 LA_T_1056709 - A02 spoof"
    write_lines(tree / PROTOCOLS["train"], [*LINES["train"], first, other])
    message = refusal(tmp_path, tree)
    assert "2 duplicates" in message
    assert "LA_T_1138215 is also in" in message
    assert f"{PROTOCOLS['train']}:1" in message
    train = prepare(tmp_path, tree, skip_bad_files=True)[0]
    # The same line twice counts once; contradictory ones do not count.
    assert list(train) == ["LA_T_1138215", "LA_T_1271820", "LA_T_1004644"]


def test_duplicate_files(tmp_path, tree):
    copy = tree / "ASVspoof2019_LA_train" / "flac" / "b" / "LA_T_1138215.flac"
    write_audio(copy)
    assert str(copy) in refusal(tmp_path, tree)


def test_extra_file(tmp_path, tree, caplog):
    path = write_audio(flac(tree, "LA_T_9999999", "train"))
    message = refusal(tmp_path, tree)
    assert "1 files without a line" in message
    assert str(path) in message
    with caplog.at_level(logging.WARNING):
        manifests = prepare(tmp_path, tree, skip_bad_files=True)
    assert "1 files without a line" in caplog.text
    assert [len(manifest) for manifest in manifests] == [4, 4, 4]


def test_speaker_of_two_splits(tmp_path):
    lines = {
        **LINES,
        "train": [*LINES["train"], "LA_0069 LA_T_1000137 - A02 spoof"],
    }
    tree = make_2019(tmp_path / "LA", lines)
    message = refusal(tmp_path, tree)
    assert "1 speakers of several splits" in message
    assert "LA_0069 is in train" in message
    manifests = prepare(tmp_path, tree, skip_bad_files=True)
    assert "LA_T_1000137" not in manifests[0]
    assert [len(manifest) for manifest in manifests] == [4, 4, 4]


def test_all_problems_are_counted_and_some_listed(tmp_path, tree):
    lines = [f"LA_0079 LA_T_20000{i:02d} - A01 spoof" for i in range(25)]
    write_lines(tree / PROTOCOLS["train"], [*LINES["train"], *lines])
    write_audio(flac(tree, "LA_D_9999999", "dev"))
    message = refusal(tmp_path, tree)
    assert message.startswith("26 problems in the data")
    assert message.count("LA_T_20000") == 10
    assert "and 15 more" in message
    assert "set skip_bad_files" in message


def test_unknown_protocol_and_folders(tmp_path, tree):
    write_lines(tree / PROTOCOLS["train"], ["LA_0079,LA_T_1138215,bonafide"])
    with pytest.raises(ValueError, match="has 1 columns, expected one of"):
        prepare(tmp_path, tree)
    with pytest.raises(ValueError, match="layout is '2018_la'"):
        prepare(tmp_path, tree, layout="2018_la")
    with pytest.raises(ValueError, match="phase is 'dev'"):
        prepare(tmp_path, tree, phase="dev")
    with pytest.raises(ValueError, match="but layout 2019_la has none"):
        prepare(tmp_path, tree, phase="hidden")
    with pytest.raises(FileNotFoundError, match="absent"):
        prepare(tmp_path, tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="has no known layout"):
        prepare(tmp_path, tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="expected the audio of"):
        make_2019(tmp_path / "other")
        (tmp_path / "other" / "ASVspoof2019_LA_dev" / "flac").rename(
            tmp_path / "other" / "wav"
        )
        prepare(tmp_path, tmp_path / "other")


# -------------------------------------------------------------- idempotency


def test_second_call_does_nothing(tmp_path, tree, caplog):
    prepare(tmp_path, tree)
    path = tmp_path / "out" / "train.json"
    written = path.stat().st_mtime_ns
    prepare(tmp_path, tree)
    assert path.stat().st_mtime_ns == written
    # Files that changed are seen
    flac(tree, "LA_T_1138215", "train").unlink()
    with pytest.raises(ValueError, match="1 missing files"):
        prepare(tmp_path, tree)
    with caplog.at_level(logging.WARNING):
        train = prepare(tmp_path, tree, skip_bad_files=True)[0]
    assert "skip_bad_files was False, is True" in caplog.text
    assert len(train) == 3
    # A lost manifest is made again.
    path.unlink()
    assert prepare(tmp_path, tree, skip_bad_files=True)[0] == train
    assert not list((tmp_path / "out").glob("*.tmp"))


def test_skip_prep(tmp_path):
    assert prepare(tmp_path, tmp_path / "absent", skip_prep=True) == [None] * 3


# ------------------------------------------- scores of speaker verification


def test_asv_scores_of_2019(tmp_path, tree):
    assert asvspoof_protocols.find_asv_scores(tree) == {}
    path = tree / (
        "ASVspoof2019_LA_asv_scores/ASVspoof2019.LA.asv.eval.gi.trl.scores.txt"
    )
    lines = [
        "bonafide target 4.5",
        "bonafide nontarget -2.25",
        "A07 spoof 1.5",
        "A11 spoof -1",
    ]
    write_lines(path, lines)
    assert asvspoof_protocols.find_asv_scores(tree) == {"test": str(path)}
    scores = asvspoof_protocols.read_asv_scores(path)
    assert scores["target"].tolist() == [4.5]
    assert scores["nontarget"].tolist() == [-2.25]
    assert scores["spoof"].tolist() == [1.5, -1.0]
    assert scores["attack"] == ["A07", "A11"]
    prepare(tmp_path, tree)
    note = json.loads((tmp_path / "out/asvspoof_prepare.json").read_text())
    assert note["asv_scores"] == {"test": str(path)}
    write_lines(path, [*lines, "A07 spoofed 1.5"])
    with pytest.raises(ValueError, match="txt:5 is 'A07 spoofed 1.5'"):
        asvspoof_protocols.read_asv_scores(path)
    write_lines(path, lines[:2])
    with pytest.raises(ValueError, match="has no spoof trial"):
        asvspoof_protocols.read_asv_scores(path)


def test_asv_scores_of_2021(tmp_path):
    folder = tmp_path / "keys" / "LA" / "ASV"
    trials = [
        ("bonafide", "target", "eval", 3.0),
        ("bonafide", "nontarget", "eval", -3.0),
        ("A07", "spoof", "eval", 1.0),
        ("A08", "spoof", "progress", 2.0),
    ]
    tail = "alaw-ita_tx"
    write_lines(
        folder / "trial_metadata.txt",
        [
            f"LA_0007-{tail} LA_E_{i}-{tail} alaw ita_tx {a} {k} notrim {p}"
            for i, (a, k, p, _) in enumerate(trials)
        ],
    )
    path = write_lines(
        folder / "ASVTorch_Kaldi" / "score.txt",
        [f"LA_0007-{tail} LA_E_{i} {s}" for i, (*_, s) in enumerate(trials)],
    )
    assert asvspoof_protocols.find_asv_scores(tmp_path) == {
        "test_2021": str(path)
    }
    scores = asvspoof_protocols.read_asv_scores(path)
    assert scores["spoof"].tolist() == [1.0]
    every = asvspoof_protocols.read_asv_scores(path, phase="all")
    assert every["attack"] == ["A07", "A08"]
    write_lines(path, ["LA_0007 LA_E_0 1.0"])
    with pytest.raises(ValueError, match="1 lines, .* has 4"):
        asvspoof_protocols.read_asv_scores(path)
