#!/usr/bin/env python3
"""The data of the detector that comes with noisegate: several sets in one.

> python merge_data.py /path/to/merged --speech /path/to/so762_vad \
      /path/to/barista --noise /path/to/esc10 /path/to/noise_rir

Makes the folders ``speech`` (``utterances.csv``, ``segments.csv``) and
``noise`` (``clips.csv``) with links to the audio files. Splits stay as they
are. Of noise without folds (``noise.csv``), what has voices is left out, and
the kinds in `TEST_NOISES`, for tests on noise that was not trained on; the
others are for training.

Authors
 * The noisegate developers, 2026
"""

import argparse
from pathlib import Path

from make_sample import read_rows, write_rows

TEST_NOISES = ("boat", "rain", "running tap", "storm", "waves", "music loop")


def link(rows, source, target):
    """Links the audio files of rows."""
    target.mkdir(parents=True, exist_ok=True)
    for row in rows:
        place = target / f"{row['id']}.flac"
        if not place.exists():
            place.symlink_to((source / place.name).resolve())


def main():
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--speech", nargs="+", type=Path, required=True)
    parser.add_argument("--noise", nargs="+", type=Path, required=True)
    args = parser.parse_args()
    speech, noise = args.folder / "speech", args.folder / "noise"
    utterances, segments, clips = [], [], []
    for folder in args.speech:
        rows = read_rows(folder / "utterances.csv")
        link(rows, folder / "flac", speech / "flac")
        for row in rows:
            # Groups of speakers where speakers are not known
            who = row.get("speaker") or row["split_group"]
            kept = {key: row[key] for key in ("id", "split", "duration_s")}
            utterances.append({**kept, "speaker": who})
        segments += read_rows(folder / "segments.csv")
    for folder in args.noise:
        if (folder / "clips.csv").exists():
            rows = read_rows(folder / "clips.csv")
            link(rows, folder / "flac", noise / "flac")
        else:
            rows = read_rows(folder / "noise.csv")
            rows = [r for r in rows if r["human_voice"] == "0"]
            rows = [r for r in rows if r["class"] not in TEST_NOISES]
            rows = [{**row, "fold": "1"} for row in rows]
            link(rows, folder / "noise", noise / "flac")
        clips += [
            {key: row[key] for key in ("id", "class", "fold")} for row in rows
        ]
    for path, rows in (
        (speech / "utterances.csv", utterances),
        (speech / "segments.csv", segments),
        (noise / "clips.csv", clips),
    ):
        write_rows(path, rows, list(rows[0]))


if __name__ == "__main__":
    main()
