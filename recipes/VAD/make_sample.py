#!/usr/bin/env python3
"""Makes the sample that comes with the recipe.

> python make_sample.py /path/to/so762_vad /path/to/esc10 [sample]

Real speech with labels (all training and validation speakers of the subset of
speechocean762, one utterance of each test speaker) and real noise (ESC-10
without human sounds), as Opus in Ogg at about 4 kB a second. The splits are
those of the sources; takes of one noise recording are in one split. Run once;
what it made is in the repository.

Authors
 * The noisegate developers, 2026
"""

import argparse
import csv
import shutil
from pathlib import Path

import soundfile

OPUS_LEVEL = 0.9  # of libsndfile's 0 to 1: about 4 kB a second at 16 kHz
NOISES_PER_CLASS = {"train": 6, "valid": 3, "test": 3}
FOLD_SPLITS = {"1": "train", "2": "train", "3": "train"}
FOLD_SPLITS |= {"4": "valid", "5": "test"}


def read_rows(path):
    """Reads a CSV.

    Arguments
    ---------
    path : pathlib.Path
        The file.

    Returns
    -------
    list of dict
    """
    with open(path, newline="", encoding="utf-8") as fin:
        return list(csv.DictReader(fin))


def write_rows(path, rows, columns):
    """Writes some columns of a CSV.

    Arguments
    ---------
    path : pathlib.Path
        The file.
    rows : list of dict
        Its rows.
    columns : list of str
        Its columns.
    """
    with open(path, "w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(
            out, columns, extrasaction="ignore", lineterminator="\n"
        )
        writer.writeheader()
        writer.writerows(rows)


def convert(source, target):
    """Writes a file as Opus, and checks that labels still fit.

    Arguments
    ---------
    source : pathlib.Path
        A FLAC file of 16 kHz.
    target : pathlib.Path
        The Ogg file.

    Raises
    ------
    ValueError
        If the decoded file is longer, shorter or at another rate.
    """
    signal, rate = soundfile.read(source, dtype="float32")
    target.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(
        target,
        signal,
        rate,
        format="OGG",
        subtype="OPUS",
        compression_level=OPUS_LEVEL,
    )
    info = soundfile.info(target)
    if (info.frames, info.samplerate) != (len(signal), rate):
        raise ValueError(f"{target} has {info.frames} samples of {source}")


def main():
    """Makes the folder."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("speech", type=Path)
    parser.add_argument("noise", type=Path)
    parser.add_argument("sample", type=Path, nargs="?", default="sample")
    args = parser.parse_args()
    utterances, tested = [], set()
    for row in read_rows(args.speech / "utterances.csv"):
        if row["split"] == "test" and row["speaker"] in tested:
            continue
        tested.add(row["speaker"])
        utterances.append(row)
    ids = {row["id"] for row in utterances}
    segments = read_rows(args.speech / "segments.csv")
    segments = [row for row in segments if row["id"] in ids]
    clips, taken = [], {}
    for row in read_rows(args.noise / "clips.csv"):
        split = FOLD_SPLITS[row["fold"]]
        number = taken.get((row["class"], split), 0)
        if row["human"] == "1" or number == NOISES_PER_CLASS[split]:
            continue
        if float(row["nonsilent_ratio"]) < 0.9 or row["speech_like_s"] > "0.20":
            continue
        taken[row["class"], split] = number + 1
        clips.append({**row, "split": split})
    for source, name, rows in (
        (args.speech, "speech", utterances),
        (args.noise, "noise", clips),
    ):
        for row in rows:
            convert(
                source / "flac" / f"{row['id']}.flac",
                args.sample / name / "ogg" / f"{row['id']}.ogg",
            )
    columns = ["id", "speaker", "sex", "age", "split", "duration_s"]
    write_rows(args.sample / "speech" / "utterances.csv", utterances, columns)
    columns = ["id", "start_s", "end_s"]
    write_rows(args.sample / "speech" / "segments.csv", segments, columns)
    columns = ["id", "class", "split", "duration_s", "source_author"]
    columns += ["source_licence", "source_title", "source_url"]
    write_rows(args.sample / "noise" / "clips.csv", clips, columns)
    shutil.copy(args.speech / "LICENSE", args.sample / "speech" / "LICENSE")


if __name__ == "__main__":
    main()
