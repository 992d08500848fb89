"""Finds the speech and noise of corpora, by the layouts of ``vad_prepare.py``.

Authors
 * The noisegate developers, 2026
"""

import hashlib
import json
import math
import mimetypes
import os
from pathlib import Path

from speechbrain.utils.logger import get_logger
from vad_segments import merge_segments

from noisegate.evaluation.files import files_below, read_table, read_text

logger = get_logger(__name__)

SPLITS = ("train", "valid", "test")
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg")
# ESC-50, targets 20 to 29. Most come from a mouth; in the recordings of the
# others (clapping, footsteps, brushing teeth) people may be heard.
HUMAN_CLASSES = (
    "breathing",
    "brushing_teeth",
    "clapping",
    "coughing",
    "crying_baby",
    "drinking_sipping",
    "footsteps",
    "laughing",
    "sneezing",
    "snoring",
)
FOLD_SPLITS = {
    "1": "train",
    "2": "train",
    "3": "train",
    "4": "valid",
    "5": "test",
}
SPEAKER_COLUMNS = ("speaker", "speaker_id", "speaker_cluster")
# Shares of speakers (or noise files) where the data name no split.
VALID_SHARE = 0.1
TEST_SHARE = 0.2


def detect_layout(root, noise_root):
    """Tells the layout of the data from its files.

    Arguments
    ---------
    root : pathlib.Path
        Folder of the speech.
    noise_root : pathlib.Path
        Folder of the noise.

    Returns
    -------
    layout : str
    """
    if _libriparty_prefix(root) is not None:
        return "libriparty"
    is_vctk = any(
        (root / name).is_dir() for name in ("wav48_silence_trimmed", "wav48")
    )
    if is_vctk and (noise_root / "meta" / "esc50.csv").is_file():
        return "vctk_esc50"
    more = (root / "segments.csv", noise_root / "clips.csv")
    if (root / "utterances.csv").is_file() and any(x.is_file() for x in more):
        return "barista_esc10"
    return "folders"


# An utterance is {"id", "wav" (below the root), "speaker", "split", "speech"
# (segments, or None to label by energy), "mix"}; a noise is {"wav", "split"}.


def list_files(
    layout, root, noise_root, utterances_csv, segments_csv, noise_csv
):
    given = [t for t in (utterances_csv, segments_csv, noise_csv) if t]
    if given and layout in ("libriparty", "vctk_esc50"):
        raise ValueError(f"layout {layout} has no place for {given[0]}")
    if layout == "libriparty":
        return _list_libriparty(root), []
    if layout == "vctk_esc50":
        return _list_vctk(root), _list_esc50(noise_root)
    if layout == "barista_esc10":
        utterances_csv = utterances_csv or root / "utterances.csv"
        segments_csv = segments_csv or root / "segments.csv"
        if (noise_root / "clips.csv").is_file():
            noise_csv = noise_csv or noise_root / "clips.csv"
    if noise_csv is None and root.resolve() == noise_root.resolve():
        raise ValueError(
            f"noise_folder is {noise_root}, the same as data_folder: expected "
            "a folder of noise without speech"
        )
    utterances = _list_speech(root, root, utterances_csv, segments_csv)
    return utterances, _list_noise(noise_root, noise_root, noise_csv)


def _find_audio(root, folder):
    paths, others = [], []
    for path in files_below(folder):
        if path.lower().endswith(AUDIO_SUFFIXES):
            paths.append(Path(path).relative_to(root).as_posix())
        elif str(mimetypes.guess_type(path)[0]).startswith("audio/"):
            others.append(path)
    if others:
        logger.warning(
            "%d audio files of %s are left out, the first is %s: %s are read",
            len(others),
            folder,
            others[0],
            ", ".join(AUDIO_SUFFIXES),
        )
    if not paths:
        raise FileNotFoundError(
            f"{folder} has no audio file, expected {', '.join(AUDIO_SUFFIXES)}"
        )
    return sorted(paths)


def _files_by_id(paths):
    """Each file under its path without suffix and, if unique, its stem."""
    by_id, by_stem = {}, {}
    for path in paths:
        name = os.path.splitext(path)[0]
        if name in by_id:
            raise ValueError(
                f"{path} and {by_id[name]} differ in their suffix only"
            )
        by_id[name] = path
        by_stem.setdefault(os.path.basename(name), []).append(path)
    for stem, found in by_stem.items():
        if len(found) == 1:
            by_id.setdefault(stem, found[0])
    return by_id


def _match_rows(rows, csv_path, paths, folder):
    """Pairs of CSV row and file; every row must have its file."""
    by_id = _files_by_id(paths)
    absent = [row["id"] for row in rows if row["id"] not in by_id]
    if absent:
        raise FileNotFoundError(
            f"{csv_path} names {len(absent)} ids without an audio file in "
            f"{folder}: {absent[:10]}"
        )
    if len({row["id"] for row in rows}) < len(rows):
        raise ValueError(f"{csv_path} has an id twice")
    if len(paths) > len(rows):
        logger.info(
            "%d files of %s are not in %s and left out",
            len(paths) - len(rows),
            folder,
            csv_path,
        )
    return [(row, by_id[row["id"]]) for row in rows]


def split_by_hash(names):
    """Splits names by a fixed hash: 20 % test, 10 % valid, at least one each.

    Arguments
    ---------
    names : iterable of str
        Speakers or files; at least three different ones.

    Returns
    -------
    splits : dict
        Split by name.

    Example
    -------
    >>> list(split_by_hash("abcdefghij").values()).count("train")
    7
    """
    names = sorted(
        set(names), key=lambda n: hashlib.sha256(os.fsencode(n)).digest()
    )
    if len(names) < 3:
        raise ValueError(
            f"only {names} to split, expected at least three different "
            "speakers (or noise files); name the split in a CSV file"
        )
    n_test = max(1, round(TEST_SHARE * len(names)))
    n_valid = max(1, round(VALID_SHARE * len(names)))
    return {
        name: "test"
        if i < n_test
        else "valid"
        if i < n_test + n_valid
        else "train"
        for i, name in enumerate(names)
    }


def _fill_splits(entries, group_key):
    """Splits by hash where the data name no split."""
    if any(entry["split"] is None for entry in entries):
        splits = split_by_hash(entry[group_key] for entry in entries)
        for entry in entries:
            entry["split"] = splits[entry[group_key]]
    return entries


def _checked_split(row, csv_path):
    if row.get("split"):
        split = {"dev": "valid", "eval": "test"}.get(row["split"], row["split"])
        if split not in SPLITS:
            raise ValueError(
                f"{csv_path}: split of {row['id']} is {row['split']!r}, "
                f"expected one of {SPLITS}"
            )
        return split
    if row.get("fold"):
        if row["fold"] not in FOLD_SPLITS:
            raise ValueError(
                f"{csv_path}: fold of {row['id']} is {row['fold']!r}, expected "
                f"one of {list(FOLD_SPLITS)}"
            )
        return FOLD_SPLITS[row["fold"]]
    return None


def _speaker_of_path(path):
    folder, _, rest = path.partition("/")
    if rest:
        return folder
    stem = os.path.splitext(path)[0]
    return stem.replace("-", "_").split("_")[0]


def _list_speech(root, folder, utterances_csv, segments_csv):
    paths = _find_audio(root, folder)
    if utterances_csv is None:
        matched = [({"id": os.path.splitext(p)[0]}, p) for p in paths]
    else:
        rows = read_table(utterances_csv, ("id",))
        matched = _match_rows(rows, utterances_csv, paths, folder)
    segments = None
    if segments_csv is not None:
        segments = _read_segments(segments_csv, _files_by_id(paths))
    utterances = []
    for row, path in matched:
        speaker = next((row[c] for c in SPEAKER_COLUMNS if row.get(c)), None)
        utterances.append(
            {
                "id": os.path.splitext(path)[0],
                "wav": path,
                "speaker": speaker or _speaker_of_path(path),
                "split": _checked_split(row, utterances_csv),
                "speech": None if segments is None else segments.get(path, []),
                "mix": True,
            }
        )
    return _fill_splits(utterances, "speaker")


def _read_segments(segments_csv, by_id):
    segments = {}
    for row in read_table(segments_csv, ("id", "start_s", "end_s")):
        if row["id"] not in by_id:
            raise FileNotFoundError(
                f"{segments_csv} names {row['id']!r}, which has no audio file"
            )
        start_s, end_s = float(row["start_s"]), float(row["end_s"])
        if not 0 <= start_s < end_s < math.inf:
            raise ValueError(
                f"{segments_csv}: {row['id']} has speech from {start_s} to "
                f"{end_s} s, expected 0 <= start_s < end_s"
            )
        segments.setdefault(by_id[row["id"]], []).append([start_s, end_s])
    return {path: sorted(found) for path, found in segments.items()}


def _list_noise(root, folder, noise_csv):
    paths = _find_audio(root, folder)
    if noise_csv is None:
        noises = [{"wav": path, "split": None} for path in paths]
        return _fill_splits(noises, "wav")
    rows = read_table(noise_csv, ("id",))
    noises = [
        {"wav": path, "split": _checked_split(row, noise_csv)}
        for row, path in _match_rows(rows, noise_csv, paths, folder)
        if row.get("human") != "1"
    ]
    return _fill_splits(noises, "wav")


def _list_vctk(root):
    if (root / "wav48_silence_trimmed").is_dir():
        paths = _find_audio(root, root / "wav48_silence_trimmed")
        paths = [p for p in paths if os.path.splitext(p)[0].endswith("_mic1")]
    else:
        paths = _find_audio(root, root / "wav48")
    utterances = [
        {
            "id": os.path.splitext(os.path.basename(path))[0],
            "wav": path,
            "speaker": path.split("/")[1],
            "split": None,
            "speech": None,
            "mix": True,
        }
        for path in paths
    ]
    return _fill_splits(utterances, "speaker")


def _list_esc50(root):
    rows = read_table(
        root / "meta" / "esc50.csv", ("filename", "fold", "category")
    )
    return [
        {
            "wav": f"audio/{row['filename']}",
            "split": _checked_split(
                {**row, "id": row["filename"]}, root / "meta" / "esc50.csv"
            ),
        }
        for row in rows
        if row["category"] not in HUMAN_CLASSES
    ]


def _libriparty_prefix(root):
    for prefix in ("", "dataset/", "LibriParty/dataset/"):
        if (root / f"{prefix}metadata" / "train.json").is_file():
            return prefix
    return None


def _list_libriparty(root):
    prefix = _libriparty_prefix(root)
    if prefix is None:
        raise FileNotFoundError(
            f"data_folder {root} has no metadata/train.json, expected the "
            "folder LibriParty/dataset"
        )
    utterances = []
    for split, name in zip(SPLITS, ("train", "dev", "eval")):
        path = root / f"{prefix}metadata" / f"{name}.json"
        try:
            sessions = json.loads(read_text(path))
        except ValueError as error:
            raise ValueError(f"{path} is not JSON: {error}") from error
        for session, parts in sessions.items():
            # Each part but these two lists the utterances of one speaker.
            speakers = sorted(set(parts) - {"noises", "background"})
            speech = [
                [float(utterance["start"]), float(utterance["stop"])]
                for speaker in speakers
                for utterance in parts[speaker]
            ]
            utterances.append(
                {
                    "id": f"{name}_{session}",
                    "wav": f"{prefix}{name}/{session}/{session}_mixture.wav",
                    "speaker": "+".join(speakers),
                    "split": split,
                    "speech": merge_segments(speech),
                    "mix": False,
                }
            )
    return utterances
