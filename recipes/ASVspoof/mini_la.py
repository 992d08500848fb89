#!/usr/bin/env python3
"""Mini-LA: a small anti-spoofing corpus from any folder of speech.

> python mini_la.py mini_la                                  # of the sample
> python mini_la.py mini_la --speech_folder=/path/to/speech
> python mini_la.py mini_la --check

It lets the recipe run without ASVspoof. The output has the tree and the
protocols of ASVspoof 2019 LA, so ``asvspoof_prepare.py`` reads it as such:

    ASVspoof2019_LA_{train,dev,eval}/flac/LA_{T,D,E}_1234567.flac
    ASVspoof2019_LA_cm_protocols/ASVspoof2019.LA.cm.{train.trn,...}.txt

The spoofs are made by the methods in `ATTACKS`: WORLD (Morise et al. 2016),
Griffin-Lim, linear prediction, phase vocoder, concatenation of waveforms and
espeak-ng. As in 2019 LA, six are in train and dev, others only in eval, and
two of the six come back in eval as A16 and A19. Every utterance is in the
corpus once as it is and once per attack of its set. No speaker is in two
sets.

So that nothing but the method tells the classes apart, every file, bona fide
ones included, passes through the same chain (`finish`): only speech with short
pauses is kept; the long-term spectrum is brought to the average of the
(target) speaker; band limits; a cut at random places to a length that is drawn
once per utterance, for all of its versions; active level; limited peaks; white
noise; 16 bits.
``--check`` measures what is left: it trains logistic regression on features
that should not know the class and reports its errors (0.5 AUC is chance).

Without ``--speech_folder`` the voices are the real ones of ``../VAD/sample``.

Needs ``pip install -e ".[asvspoof]"``: pyworld, and espeakng-loader for A07
and A08, which are left out without it.

Authors
 * The noisegate authors 2026
"""

import argparse
import io
import json
import logging
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import soundfile as sf
import torch
from asvspoof_protocols import SETS
from mini_la_attacks import (
    ATTACKS,
    KNOWN_ATTACKS,
    TTS_ATTACKS,
    Material,
    median_f0_hz,
    world_analysis,
)
from mini_la_chain import (
    HOP,
    SAMPLE_RATE,
    band_levels_db,
    finish,
    speech_only,
    until_long_enough,
)
from mini_la_check import SPLITS, check_shortcuts
from mini_la_speech import has_text_to_speech, speak
from speechbrain.utils.logger import get_logger
from vad_data import item_generator
from vad_layouts import AUDIO_SUFFIXES, SPEAKER_COLUMNS

from noisegate.evaluation.audio import read_audio
from noisegate.evaluation.files import fingerprint, read_table, write_atomically

logger = get_logger(__name__)

# Name of a set, letter in its file names, share of the utterances.
SUBSETS = {
    "train": ("T", 0.45),
    "dev": ("D", 0.20),
    "eval": ("E", 0.35),
}
SAMPLE = Path(__file__).resolve().parents[1] / "VAD" / "sample" / "speech"
# A file has a part of its utterance, so that its ends fall anywhere.
KEPT_SHARE = (0.7, 0.95)
MIN_FILE_S = 1.0
MAX_FILE_S = 4.0
NOTE = "mini_la.json"
# Raised when the same arguments give other files than before.
VERSION = 2


# An utterance is {"id", "speaker", "group", "path"}.


def list_utterances(speech_folder, speakers_csv=None):
    """Lists the speech in a folder with its speakers.

    Arguments
    ---------
    speech_folder : str
        Audio files of bona fide speech.
    speakers_csv : str
        Columns ``id`` (file name without suffix), ``speaker`` (or
        ``speaker_id``, ``speaker_cluster``), and if known ``split_group``
        (speakers to be kept in one set). Files not named are left out.
        Without it the speaker is the first folder below ``speech_folder``.

    Returns
    -------
    utterances : list of dict

    Raises
    ------
    FileNotFoundError
        If there is no speech.
    ValueError
        If the speakers are unknown.
    """
    root = Path(speech_folder)
    paths = sorted(
        path
        for path in root.rglob("*")
        if path.suffix.lower() in AUDIO_SUFFIXES and path.is_file()
    )
    if not paths:
        raise FileNotFoundError(
            f"speech_folder {root} has no audio file ({AUDIO_SUFFIXES})"
        )
    rows = {}
    if speakers_csv is not None:
        for row in read_table(speakers_csv, ["id"]):
            found = [row[name] for name in SPEAKER_COLUMNS if row.get(name)]
            if not found:
                raise ValueError(
                    f"{speakers_csv} has the columns {list(row)}, expected "
                    f"id and one of {SPEAKER_COLUMNS}"
                )
            group = row.get("split_group") or found[0]
            rows[row["id"]] = (found[0], group)
    utterances = []
    for path in paths:
        relative = path.relative_to(root)
        if speakers_csv is not None:
            if path.stem not in rows:
                continue
            speaker, group = rows[path.stem]
        else:
            if len(relative.parts) < 2:
                raise ValueError(
                    f"{path} is in no folder of a speaker: expected "
                    "speech_folder/speaker/file, or speakers_csv"
                )
            speaker = group = relative.parts[0]
        utterances.append(
            {
                "id": relative.with_suffix("").as_posix(),
                "speaker": speaker,
                "group": group,
                "path": str(path),
            }
        )
    return utterances


def split_speakers(utterances, seed):
    """Deals the speakers to train, dev and eval.

    Arguments
    ---------
    utterances : list of dict
        With ``speaker`` and ``group``; a group is in one set.
    seed : int
        Of the order in which they are dealt.

    Returns
    -------
    subsets : dict
        For each set the list of its speakers; about 45, 20 and 35 % of the
        utterances.

    Raises
    ------
    ValueError
        If a set would have less than two speakers.
    """
    speakers, sizes = defaultdict(set), defaultdict(int)
    for utterance in utterances:
        speakers[utterance["group"]].add(utterance["speaker"])
        sizes[utterance["group"]] += 1
    groups = sorted(speakers)
    item_generator(seed, "split").shuffle(groups)
    # Large groups first: the small ones then even out the shares.
    groups.sort(key=lambda group: -sizes[group])
    counts = dict.fromkeys(SUBSETS, 0)
    subsets = {name: [] for name in SUBSETS}
    for group in groups:
        name = max(
            SUBSETS,
            key=lambda n: (
                len(subsets[n]) < 2,
                SUBSETS[n][1] * len(utterances) - counts[n],
            ),
        )
        subsets[name] += sorted(speakers[group])
        counts[name] += sizes[group]
    for name, found in subsets.items():
        if len(found) < 2:
            raise ValueError(
                f"{len(speakers)} groups of speakers leave {len(found)} for "
                f"{name}: expected two speakers in each set"
            )
    return subsets


def load_clip(utterance):
    """The speech of an utterance without silence, see `speech_only`.

    Arguments
    ---------
    utterance : dict
        From `list_utterances`.

    Returns
    -------
    clip : numpy.ndarray (time,)
    """
    return speech_only(read_audio(utterance["path"], sample_rate=SAMPLE_RATE))


def make_mini_la(
    folder,
    speech_folder=None,
    speakers_csv=None,
    n_speakers=None,
    utterances_per_speaker=20,
    seed=2026,
    num_workers=2,
):
    """Writes the corpus.

    Files that are there already are kept, so an interrupted run goes on where
    it was. The protocols come last.

    Arguments
    ---------
    folder : str
        Where to write. If it holds a corpus made with the same arguments,
        nothing is done.
    speech_folder : str
        Bona fide speech, see `list_utterances`; None for the
        sample of recipes/VAD.
    speakers_csv : str
        See `list_utterances`.
    n_speakers : int
        Speakers to use, at least 6; None for all.
    utterances_per_speaker : int
        At most this many.
    seed : int
        Same seed, same corpus.
    num_workers : int
        Processes; 1 for none but this one.

    Raises
    ------
    ValueError
        If the folder holds a corpus made with other arguments or something
        else, or there is too little speech.
    """
    folder = Path(folder)
    if speakers_csv is not None and speech_folder is None:
        raise ValueError(
            f"speakers_csv is {speakers_csv}, but there is no speech_folder "
            "whose speakers it names"
        )
    attacks = [
        a for a in ATTACKS if a not in TTS_ATTACKS or has_text_to_speech()
    ]
    arguments = {
        "version": VERSION,
        "speech": None if speech_folder is None else Path(speech_folder).name,
        "speakers_csv": speakers_csv and Path(speakers_csv).name,
        "files": speech_folder
        and fingerprint(*filter(None, (speech_folder, speakers_csv))),
        "n_speakers": n_speakers,
        "utterances_per_speaker": utterances_per_speaker,
        "attacks": attacks,
        "seed": seed,
    }
    note = folder / NOTE
    protocols = {
        name: folder / SETS["2019_la"][split][0][0]
        for split, name in SPLITS.items()
    }
    if note.is_file():
        before = {"files": None}
        before.update(json.loads(note.read_text(encoding="utf-8")))
        complete = all(path.is_file() for path in protocols.values())
        # A complete corpus may be used where espeak-ng is missing.
        asked = {
            **arguments,
            **({"attacks": before["attacks"]} if complete else {}),
        }
        if before != asked:
            raise ValueError(
                f"{folder} holds a corpus made with {before}, asked for {asked}"
            )
        if complete:
            logger.info("%s is complete, nothing is done", folder)
            return
    elif folder.exists() and any(folder.iterdir()):
        raise ValueError(
            f"{folder} holds something else than Mini-LA, which is not written "
            "into it: make_mini_la=False trains on what is there"
        )
    if speech_folder is None:
        speech_folder, speakers_csv = SAMPLE, SAMPLE / "utterances.csv"
    utterances = list_utterances(speech_folder, speakers_csv)
    tasks = _plan(utterances, arguments)
    write_atomically(note, json.dumps(arguments, indent=1))
    phrases_path = None
    context = get_context("spawn")
    if len(attacks) < len(ATTACKS):
        logger.warning(
            "%s are left out: espeak-ng is missing (pip install "
            "espeakng-loader)",
            " and ".join(TTS_ATTACKS),
        )
    else:
        phrases_path = str(folder / "phrases.npz")
        with ProcessPoolExecutor(1, context) as pool:
            pool.submit(speak, phrases_path).result()
    lines, reports = defaultdict(list), []
    arguments = [(task, str(folder), phrases_path, seed) for task in tasks]
    if num_workers > 1:
        # Each process computes on one core.
        with ProcessPoolExecutor(
            num_workers, context, torch.set_num_threads, (1,)
        ) as pool:
            futures = [pool.submit(_make_speaker, *a) for a in arguments]
            for future in as_completed(futures):
                reports.append(future.result())
                logger.info("%d of %d speakers", len(reports), len(tasks))
    else:
        n_threads = torch.get_num_threads()
        torch.set_num_threads(1)
        reports = [_make_speaker(*a) for a in arguments]
        torch.set_num_threads(n_threads)
    for subset, made, problems in reports:
        lines[subset] += made
        for problem in problems:
            logger.warning("left out: %s", problem)
    for name, path in protocols.items():
        if not lines[name]:
            raise ValueError(f"{name} has no utterance of {MIN_FILE_S} s")
        # File names are drawn, so their order says nothing.
        found = sorted(lines[name], key=lambda line: line.split()[1])
        write_atomically(path, "\n".join(found) + "\n")
        n_bona_fide = sum(line.endswith("bonafide") for line in found)
        logger.info(
            "%s: %d bona fide, %d spoofed",
            name,
            n_bona_fide,
            len(found) - n_bona_fide,
        )
    if phrases_path:
        Path(phrases_path).unlink()


def _plan(utterances, arguments):
    """One task per speaker, with the names of all files to make."""
    by_speaker = defaultdict(list)
    for utterance in utterances:
        by_speaker[utterance["speaker"]].append(utterance)
    generator = item_generator(arguments["seed"], "plan")
    speakers = sorted(s for s, found in by_speaker.items() if len(found) > 1)
    if len(by_speaker) > len(speakers):
        logger.warning(
            "%d speakers with a single utterance are left out",
            len(by_speaker) - len(speakers),
        )
    if arguments["n_speakers"] is not None:
        generator.shuffle(speakers)
        speakers = sorted(speakers[: arguments["n_speakers"]])
    limit = arguments["utterances_per_speaker"]
    for speaker in speakers:
        generator.shuffle(by_speaker[speaker])
        by_speaker[speaker] = by_speaker[speaker][:limit]
    used = [u for s in speakers for u in by_speaker[s]]
    subsets = split_speakers(used, arguments["seed"])
    numbers = generator.choice(9999, len(speakers), replace=False) + 1
    names = {s: f"LA_{n:04d}" for s, n in zip(speakers, numbers)}
    tasks = []
    for subset, members in subsets.items():
        known = [a for a in arguments["attacks"] if a in KNOWN_ATTACKS]
        unknown = [a for a in arguments["attacks"] if a not in KNOWN_ATTACKS]
        versions = ["-", *(unknown if subset == "eval" else known)]
        n_files = len(versions) * sum(len(by_speaker[s]) for s in members)
        numbers = iter(
            generator.choice(9000000, n_files, replace=False) + 1000000
        )
        letter = SUBSETS[subset][0]
        for speaker in members:
            others = [s for s in members if s != speaker]
            tasks.append(
                {
                    "subset": subset,
                    "name": names[speaker],
                    "utterances": by_speaker[speaker],
                    "others": [by_speaker[s] for s in others],
                    "files": [
                        {
                            version: f"LA_{letter}_{next(numbers)}"
                            for version in versions
                        }
                        for _ in by_speaker[speaker]
                    ],
                }
            )
    return tasks


def _make_speaker(task, folder, phrases_path, seed):
    """Makes all files of a speaker; gives set, protocol lines, problems."""
    clips, problems = [], []
    for utterance in task["utterances"]:
        try:
            clip = load_clip(utterance)
        except (OSError, ValueError) as error:
            clip = np.zeros(0)
            problems.append(str(error))
        clips.append(clip)
    shortest = MIN_FILE_S / KEPT_SHARE[0] * SAMPLE_RATE
    good = [i for i, clip in enumerate(clips) if len(clip) >= shortest]
    problems += [
        f"{u['id']} has {len(clip) / SAMPLE_RATE:.2f} s of speech"
        for u, clip in zip(task["utterances"], clips)
        if 0 < len(clip) < shortest
    ]
    if len(good) < 2:
        problems.append(f"speaker of {task['utterances'][0]['id']}")
        return task["subset"], [], problems
    levels_db = np.mean([band_levels_db(clips[i]) for i in good], axis=0)
    analyses = {i: world_analysis(clips[i]) for i in good}
    f0_hz = np.concatenate([f0_hz for f0_hz, _, _ in analyses.values()])
    phrases = defaultdict(list)
    if set(TTS_ATTACKS) & set(task["files"][0]):
        with np.load(phrases_path) as stored:
            for key in sorted(stored.files):
                clip = speech_only(stored[key])
                phrases[key.split("/")[0]].append(clip)
    lines = []
    audio = Path(folder) / f"ASVspoof2019_LA_{task['subset']}" / "flac"
    for i in good:
        draw = item_generator(seed, task["name"], i)
        share = draw.uniform(*KEPT_SHARE)
        n_samples = round(
            min(
                share * len(clips[i]),
                draw.uniform(0.8, 1.0) * MAX_FILE_S * SAMPLE_RATE,
            )
        )
        for version, name in task["files"][i].items():
            label = "bonafide" if version == "-" else "spoof"
            lines.append(f"{task['name']} {name} - {version} {label}")
            path = audio / f"{name}.flac"
            if path.is_file():
                continue
            generator = item_generator(seed, name)
            signal = clips[i]
            if version != "-":
                material = Material(
                    clip=clips[i],
                    analysis=analyses[i],
                    rest=[clips[j] for j in good if j != i],
                    foreign=partial(_foreign_speech, task, n_samples),
                    f0_hz=median_f0_hz(f0_hz),
                    phrases=phrases,
                    n_samples=n_samples,
                )
                signal = ATTACKS[version](material, generator)
            write_flac(path, finish(signal, levels_db, n_samples, generator))
    return task["subset"], lines, problems


def write_flac(path, signal):
    """Writes a file as a whole.

    Arguments
    ---------
    path : pathlib.Path
        The file.
    signal : numpy.ndarray (time,)
        What to write.
    """
    packed = io.BytesIO()
    sf.write(packed, signal, SAMPLE_RATE, "PCM_16", format="FLAC")
    write_atomically(path, packed.getvalue())


def _foreign_speech(task, n_samples, generator):
    """Speech of another speaker of the set, a little longer than asked."""
    for k in generator.permutation(len(task["others"])):
        utterances, clips = task["others"][k], []
        for i in generator.permutation(len(utterances)):
            try:
                clip = load_clip(utterances[i])
            except (OSError, ValueError):
                continue  # reported where it is the utterance itself
            if len(clip) > 2 * HOP:
                clips.append(clip)
            if sum(map(len, clips)) > 1.1 * n_samples:
                break
        if clips:
            return until_long_enough(clips, 1.1 * n_samples)
    raise ValueError(f"{task['subset']} has speech of one speaker only")


def main(arguments=None):
    """Reads the command line.

    Arguments
    ---------
    arguments : list of str
        In place of those of the process.
    """
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        epilog="The attacks: "
        + "; ".join(
            f"{name} {make.__doc__.splitlines()[0].rstrip('.')}"
            for name, make in ATTACKS.items()
        ),
    )
    parser.add_argument("folder", help="where the corpus is or will be")
    parser.add_argument("--speech_folder", help="speaker/file.{wav,flac,ogg}")
    parser.add_argument("--speakers_csv", help="columns id, speaker")
    parser.add_argument("--n_speakers", type=int)
    parser.add_argument("--utterances_per_speaker", type=int, default=20)
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--num_workers", type=int, default=2)
    parser.add_argument(
        "--check",
        action="store_true",
        help="report what trivial features tell about the class",
    )
    options = vars(parser.parse_args(arguments))
    check = options.pop("check")
    try:
        make_mini_la(**options)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if not check:
        return
    for name, found in check_shortcuts(options["folder"]).items():
        print(f"{name}: EER {found['eer']:.1f} %, AUC {found['auc']:.3f}")
        for part in ("attacks", "features"):
            for key, auc in found[part].items():
                print(f"  {key:20s} AUC {auc:.3f}")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
