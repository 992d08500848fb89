#!/usr/bin/env python3
"""Folds over attacks and speakers of a corpus with the tree of 2019 LA.

> python asvspoof_folds.py /path/to/neural_la /path/to/folds \
      --together A01,A05 A04,A07,A08 A11,A12 A14,A15 A02,A24 --most=40
> python train.py hparams/mini_ecapa_gated.yaml --make_mini_la=False \
      --data_folder='!ref /path/to/folds/<seed>'

What a model does about attacks that it has not heard depends on which ones
these are. All three sets of the corpus are dealt to parts of about equal
size: bona fide speech by speaker, spoofed speech by attack; ``--together``
names attacks that are one system with another voice or rate. Fold n tests on
part n, validates on the next one and trains on the others. So test and
validation have attacks and bona fide speakers of their own. What is spoofed of
their bona fide speakers is left out of training, and of validation if it is of
those of the test. ``--most`` limits the clips of an attack in validation and
test, where else one attack may be most of a fold. A spoofed voice that two
sets have is named by set, as ``asvspoof_prepare.py`` lets no speaker be in
two.

A fold is a folder with the tree and the protocols of 2019 LA and links to the
audio; its name is a seed, so that a sweep over seeds is one over folds.

Authors
 * The noisegate developers, 2026
"""

import argparse
from collections import Counter, defaultdict
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
    real = [t for t in trials if t["attack"] == "-"]
    fake = [t for t in trials if t["attack"] != "-"]
    speaker_sizes = Counter(t["speaker"] for t in real)
    seen, counted = Counter(), []  # the first clips of each attack
    for trial in fake:
        seen[trial["attack"]] += 1
        counted.append(most is None or seen[trial["attack"]] <= most)
    attack_sizes = Counter(
        system[t["attack"]] for t, count in zip(fake, counted) if count
    )
    for what, sizes in ("speakers", speaker_sizes), ("attacks", attack_sizes):
        if not 3 <= n_parts <= len(sizes):
            raise ValueError(
                f"folds must be from 3 to {len(sizes)}, the number of {what}; "
                f"got {n_parts}"
            )
    by_speaker = deal(speaker_sizes, n_parts)
    by_attack = deal(attack_sizes, n_parts)
    folds = []
    for test in range(n_parts):
        sets = {"train": [], "valid": [], "test": []}
        names = defaultdict(lambda: "train")
        names.update({test: "test", (test + 1) % n_parts: "valid"})
        for trial in real:
            sets[names[by_speaker[trial["speaker"]]]].append(trial)
        for trial, count in zip(fake, counted):
            name = names[by_attack[system[trial["attack"]]]]
            if name != "train" and not count:
                continue
            part = by_speaker.get(trial["speaker"])
            whose = name if part is None else names[part]
            order = list(sets)
            if order.index(whose) > order.index(name):
                continue  # speaks in a set that has to be new
            sets[name].append(
                {**trial, "speaker": f"{trial['speaker']}_{name}"}
                if whose != name or part is None
                else trial
            )
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
