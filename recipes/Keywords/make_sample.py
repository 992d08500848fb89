#!/usr/bin/env python3
"""Makes the sample that comes with the recipe.

> python make_sample.py /path/to/gsc12 [sample]

All 2,814 clips of gsc12 (12 classes of Speech Commands v0.02, splits by
speaker) as Opus in Ogg at about 4 kB a second, one file for each speaker. Run
once; what it made is in the repository.

Authors
 * The noisegate developers, 2026
"""

import argparse
import csv
import shutil
from pathlib import Path

import numpy as np
import soundfile

RATE = 16000
OPUS_LEVEL = 0.9  # of libsndfile's 0 to 1: about 4 kB a second at 16 kHz
PAUSE_S = 0.1  # between clips, so that none is heard in the next
COLUMNS = ["id", "speaker", "label", "word", "split", "file", "start_s"]
COLUMNS += ["duration_s"]


def main():
    """Makes the folder."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("sample", type=Path, nargs="?", default="sample")
    args = parser.parse_args()
    with open(args.source / "clips.csv", encoding="utf-8") as fin:
        rows = list(csv.DictReader(fin))
    files = {}  # rows by name
    for row in rows:
        name = row["speaker"] or f"silence_{row['split']}"
        files.setdefault(name, []).append(row)
    (args.sample / "ogg").mkdir(parents=True)
    pause = np.zeros(round(PAUSE_S * RATE), np.float32)
    for name, clips in sorted(files.items()):
        parts, position = [], 0
        for row in clips:
            path = args.source / "flac" / f"{row['id']}.flac"
            signal, rate = soundfile.read(path, dtype="float32")
            if rate != RATE:
                raise ValueError(f"{path} has {rate} samples a second")
            row["file"] = f"ogg/{name}.ogg"
            row["start_s"] = f"{position / RATE:.5f}"
            row["duration_s"] = f"{len(signal) / RATE:.5f}"
            parts += [signal, pause]
            position += len(signal) + len(pause)
        target = args.sample / "ogg" / f"{name}.ogg"
        soundfile.write(
            target,
            np.concatenate(parts),
            RATE,
            format="OGG",
            subtype="OPUS",
            compression_level=OPUS_LEVEL,
        )
        info = soundfile.info(target)
        if (info.frames, info.samplerate) != (position, RATE):
            raise ValueError(f"{target} has {info.frames} of {position}")
    path = args.sample / "clips.csv"
    with open(path, "w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(
            out, COLUMNS, extrasaction="ignore", lineterminator="\n"
        )
        writer.writeheader()
        writer.writerows(rows)
    shutil.copy(args.source / "LICENSE", args.sample / "LICENSE")


if __name__ == "__main__":
    main()
