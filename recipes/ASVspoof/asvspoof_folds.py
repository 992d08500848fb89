#!/usr/bin/env python3
"""Folds over attacks and speakers of a corpus with the tree of 2019 LA.

> python asvspoof_folds.py /path/to/neural_la /path/to/folds \
      --together A01,A05 A04,A07,A08 A11,A12 A14,A15 A02,A24 --most=40
> python train.py hparams/mini_ecapa_gated.yaml --make_mini_la=False \
      --data_folder='!ref /path/to/folds/<seed>'

What a model does about attacks that it has not heard depends on which ones
these are. All three sets of the corpus are dealt to parts of about equal size,
once by speaker and once by attack; ``--together`` names attacks that are one
system with another voice or rate. Fold n tests on bona fide speakers and on
attacks of part n. Of the rest, the speakers of the next part are for
validation, with the attacks of training, as in 2019 LA. What is spoofed of
bona fide speakers of the test is in no other set. ``--most`` limits the clips
of an attack in validation and test, where else one may be most of them. A
spoofed voice that the test and another set have is named by set there, as
``asvspoof_prepare.py`` lets no speaker be in two.

A fold is a folder with the tree and the protocols of 2019 LA and links to the
audio; its name is a seed, so that a sweep over seeds is one over folds.

Authors
 * The noisegate developers, 2026
"""

import argparse
from collections import Counter
from pathlib import Path

from asvspoof_protocols import SETS, read_protocol

from noisegate.evaluation.files import write_atomically


def read_corpus(folder):
    """Returns the trials of all sets, each with the ``path`` of its audio.

    Raises FileNotFoundError if a protocol is missing, ValueError if one has a
    line that cannot be right.
    """
    trials = []
    for (protocol,), audio in SETS["2019_la"].values():
        found, _, problems = read_protocol(Path(folder) / protocol)
        if problems:
            raise ValueError("; ".join(problems[:3]))
        for trial in found:
            path = Path(folder) / audio / f"{trial['id']}.flac"
            trials.append({**trial, "path": path.resolve()})
    return trials


def deal(sizes, n_parts):
    """Returns a part for each key: the largest first, each to the part that
    has least.

    Example
    -------
    >>> deal({"a": 5, "b": 3, "c": 2, "d": 1}, 2)
    {'a': 0, 'b': 1, 'c': 1, 'd': 0}
    """
    totals, parts = [0] * n_parts, {}
    for key in sorted(sizes, key=lambda key: (-sizes[key], key)):
        parts[key] = totals.index(min(totals))
        totals[parts[key]] += sizes[key]
    return parts


def make_folds(trials, n_parts, together=(), most=None):
    """Returns for each fold the trials of its sets.

    Arguments
    ---------
    trials : list of dict
        As `read_protocol` has them.
    n_parts : int
        Number of folds, at least 3.
    together : list of str
        Attacks that share a part, with commas between.
    most : int
        Number of clips of an attack in validation and test; None: all.

    Returns
    -------
    folds : list of dict
        ``train``, ``valid``, ``test``: lists of trials.

    Raises
    ------
    ValueError
        If there are less attacks or bona fide speakers than parts, or
        an attack to be put together does not occur.
    """
    system = {t["attack"]: t["attack"] for t in trials if t["attack"] != "-"}
    for group in together:
        for attack in group.split(","):
            if attack not in system:
                raise ValueError(f"no attack '{attack}' is in the corpus")
            system[attack] = group
    seen, few = Counter(), []  # the first clips of each attack
    for trial in trials:
        seen[trial["attack"]] += trial["attack"] != "-"
        few.append(most is None or seen[trial["attack"]] <= most)
    speakers = Counter(t["speaker"] for t in trials if t["attack"] == "-")
    attacks = Counter(
        system[t["attack"]]
        for t, first in zip(trials, few)
        if first and t["attack"] != "-"
    )
    for what, sizes in ("speakers", speakers), ("attacks", attacks):
        if not 3 <= n_parts <= len(sizes):
            raise ValueError(
                f"folds must be from 3 to {len(sizes)}, the number of {what}; "
                f"got {n_parts}"
            )
    voices = Counter(t["speaker"] for t in trials)
    by_attack = deal(attacks, n_parts)
    by_speaker = deal(speakers, n_parts)
    by_speaker.update(
        deal({v: n for v, n in voices.items() if v not in speakers}, n_parts)
    )
    folds = []
    for test in range(n_parts):
        sets = {"train": [], "valid": [], "test": []}
        for trial, first in zip(trials, few):
            spoofed = trial["attack"] != "-"
            whose = by_speaker[trial["speaker"]]
            if spoofed and by_attack[system[trial["attack"]]] == test:
                name = "test"
                trial = {**trial, "speaker": f"{trial['speaker']}_test"}
            elif whose == test:
                if spoofed and trial["speaker"] in speakers:
                    continue
                name = "train" if spoofed else "test"
            else:
                name = "valid" if whose == (test + 1) % n_parts else "train"
            if name == "train" or first:
                sets[name].append(trial)
        folds.append(sets)
    return folds


def write_fold(sets, folder):
    """Writes protocols and links of a fold, and prints its sizes."""
    for name, ((protocol,), audio) in SETS["2019_la"].items():
        place = Path(folder) / audio
        place.mkdir(parents=True)
        lines = []
        for t in sets[name]:
            (place / f"{t['id']}.flac").symlink_to(t["path"])
            lines.append(
                f"{t['speaker']} {t['id']} - {t['attack']} {t['label']}\n"
            )
        write_atomically(Path(folder) / protocol, "".join(lines))
        attacks = Counter(t["attack"] for t in sets[name])
        n_real = attacks.pop("-")
        print(
            f"{folder} {name}: {n_real} bona fide, {attacks.total()} spoofed, "
            f"{len(attacks)} attacks"
        )


def main(arguments=None):
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument(
        "--first", type=int, default=1986, help="seed that names the first"
    )
    parser.add_argument("--together", nargs="*", default=[])
    parser.add_argument("--most", type=int)
    args = parser.parse_args(arguments)
    trials = read_corpus(args.corpus)
    folds = make_folds(trials, args.folds, args.together, args.most)
    for seed, sets in enumerate(folds, args.first):
        place = args.folder / str(seed)
        if place.exists():
            parser.error(f"{place} exists already")
        write_fold(sets, place)


if __name__ == "__main__":
    main()
