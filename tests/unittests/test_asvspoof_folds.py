"""Folds over attacks and speakers: what is tested on is new."""

import itertools
import json
import random
from collections import Counter

import asvspoof_folds
import numpy as np
import pytest
import soundfile as sf
from asvspoof_prepare import prepare_asvspoof
from asvspoof_protocols import SETS


def corpus(seed, n_speakers=12, n_attacks=8, n_clips=120):
    """Trials of random speakers; some of the spoofed voices are bona fide."""
    draw, trials = random.Random(seed), []
    for number in range(n_clips):
        attack = draw.choice(["-", f"A{draw.randrange(n_attacks):02}"])
        voices = n_speakers + 4 * (attack != "-")
        speaker = f"S{draw.randrange(voices):02}"
        label = "bonafide" if attack == "-" else "spoof"
        trial = {"id": f"LA_{number}", "speaker": speaker}
        trials.append({**trial, "attack": attack, "label": label})
    return trials


@pytest.mark.parametrize("seed", range(5))
def test_what_is_tested_on_is_new(seed):
    trials = corpus(seed)
    folds = asvspoof_folds.make_folds(trials, 4, ["A00,A01"])
    tested = [t["id"] for sets in folds for t in sets["test"]]
    assert sorted(tested) == sorted(t["id"] for t in trials)
    voices = {t["id"]: t["speaker"] for t in trials}
    for sets in folds:
        attacks = {s: {t["attack"] for t in sets[s]} - {"-"} for s in sets}
        named = {s: {t["speaker"] for t in sets[s]} for s in sets}
        for one, other in itertools.combinations(sets, 2):
            assert not named[one] & named[other]
        known = attacks["train"] | attacks["valid"]
        assert not attacks["test"] & known
        assert all(
            len({"A00", "A01"} & x) != 1 for x in (known, attacks["test"])
        )
        new = {t["speaker"] for t in sets["test"] if t["attack"] == "-"}
        for name in ("train", "valid"):
            assert not new & {voices[t["id"]] for t in sets[name]}
        counted = sum(len(found) for found in sets.values())
        lost = [
            t["id"]
            for t in trials
            if t["speaker"] in new
            and t["attack"] not in {"-", *attacks["test"]}
        ]
        assert counted + len(lost) == len(trials)


def test_parts_are_of_about_equal_size():
    folds = asvspoof_folds.make_folds(corpus(0, 40, 30, 2000), 5)
    sizes = [len(sets["test"]) for sets in folds]
    assert sum(sizes) == 2000 and max(sizes) - min(sizes) < 60


def test_no_attack_is_most_of_a_fold():
    trials = corpus(0, n_attacks=6, n_clips=400)
    folds = asvspoof_folds.make_folds(trials, 3, most=10)
    for sets in folds:
        for name in ("valid", "test"):
            found = Counter(t["attack"] for t in sets[name])
            assert found.pop("-") > 20 and max(found.values()) <= 10
        found = Counter(t["attack"] for t in sets["train"])
        assert max(v for k, v in found.items() if k != "-") > 10
    assert sum(len(sets["test"]) for sets in folds) == 60 + sum(
        t["attack"] == "-" for t in trials
    )


def test_a_corpus_becomes_folds(tmp_path, capsys):
    """The recipe reads each; nothing is overwritten."""
    trials = corpus(0)
    for name, ((protocol,), audio) in SETS["2019_la"].items():
        lines = []
        for t in trials[list(SETS["2019_la"]).index(name) :: 3]:
            path = tmp_path / "LA" / audio / f"{t['id']}.flac"
            path.parent.mkdir(parents=True, exist_ok=True)
            sf.write(path, 0.1 * np.ones(8000), 16000)
            fields = t["speaker"], t["id"], "-", t["attack"], t["label"]
            lines.append(" ".join(fields) + "\n")
        place = tmp_path / "LA" / protocol
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("".join(lines), encoding="utf-8")
    call = [str(tmp_path / "LA"), str(tmp_path / "folds"), "--folds=3"]
    asvspoof_folds.main([*call, "--first=1"])
    assert capsys.readouterr().out.count("spoofed") == 9
    tested = []
    for seed in (1, 2, 3):
        out = [tmp_path / f"{seed}_{s}.json" for s in SETS["2019_la"]]
        prepare_asvspoof(
            str(tmp_path / "folds" / str(seed)),
            str(tmp_path / f"save{seed}"),
            *map(str, out),
            layout="2019_la",
        )
        tested += json.loads(out[2].read_text(encoding="utf-8"))
    assert sorted(tested) == sorted(t["id"] for t in trials)
    with pytest.raises(SystemExit):
        asvspoof_folds.main([*call, "--first=3"])
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    "n_parts, together, says",
    [
        (2, [], "folds must be from 3 to 12, the number of speakers; got 2"),
        (9, [], "folds must be from 3 to 8, the number of attacks; got 9"),
        (4, ["A00,A99"], "no attack 'A99'"),
    ],
)
def test_what_cannot_be_dealt_is_refused(n_parts, together, says):
    with pytest.raises(ValueError, match=says):
        asvspoof_folds.make_folds(corpus(0), n_parts, together)
