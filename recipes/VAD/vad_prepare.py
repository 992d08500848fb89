"""Prepares the manifests of the VAD recipe.

Clean speech is cut into consecutive segments of equal length and each is mixed
with noise at known signal-to-noise ratios; the mixing itself is done by
``vad_data.py`` from the manifests written here. Layouts of the data:

``vctk_esc50``
    VCTK 0.92 (``wav48_silence_trimmed/p225/p225_001_mic1.flac``; the second
    microphone is not used) or 0.80 (``wav48/p225/p225_001.wav``), and ESC-50
    (``audio/*.wav``, ``meta/esc50.csv``). The ten classes that ESC-50 calls
    human non-speech sounds are left out of the noise, see `HUMAN_CLASSES`.
``libriparty``
    The folder ``LibriParty/dataset`` as SpeechBrain's recipe reads it:
    ``metadata/{train,dev,eval}.json`` and
    ``{train,dev,eval}/session_0/session_0_mixture.wav``. The sessions are
    noisy already, so nothing is added and the ratio is unknown.
``barista_esc10``
    A folder with ``utterances.csv``, ``segments.csv`` and audio files
    ``<id>.flac``, and a noise folder with ``clips.csv`` and ``<id>.flac``. The
    sample that comes with the recipe has this form (``<id>.ogg``).
``folders``
    Any folder of clean speech and any folder of noise.

Speakers, speech files and noise files are never in two splits.

Authors
 * The noisegate authors 2026
"""

import hashlib
import json
import math
import os
from pathlib import Path

import numpy as np
from scipy.signal import butter, sosfilt
from speechbrain.utils.logger import get_logger
from vad_data import (
    DEFAULT_LEVEL_DB,
    FRAME_MS,
    SNR_RANGES,
    active_frames,
    check_channels,
    draw_noise_start,
    draw_snr,
    item_generator,
    speech_rms,
    uniform_snr,
)
from vad_manifests import MAX_LISTED, bad_files_message

from noisegate.evaluation.audio import audio_info, read_audio
from noisegate.evaluation.files import (
    escaped,
    files_below,
    fingerprint,
    read_table,
    read_text,
    write_atomically,
)

logger = get_logger(__name__)

LAYOUTS = (
    "auto",
    "vctk_esc50",
    "libriparty",
    "barista_esc10",
    "folders",
)
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
# A last piece shorter than this is dropped.
MIN_PIECE_S = 0.1
# Labels may end this much behind their file.
_SLACK_S = 0.1
# A noise file with less sound than this is not used.
MIN_NOISE_S = 0.5
ARGUMENTS_FILE = "vad_prepare.json"
# Raised when the same arguments give other manifests than before.
VERSION = 1


def prepare_vad(
    data_folder,
    noise_folder,
    save_folder,
    train_annotation,
    valid_annotation,
    test_annotation,
    layout="auto",
    segment_s=4.0,
    mixes_per_segment=1,
    sample_rate=16000,
    seed=1234,
    utterances_csv=None,
    segments_csv=None,
    noise_csv=None,
    max_utterances_per_speaker=None,
    channel=None,
    skip_bad_files=False,
    skip_prep=False,
):
    """Writes the manifests for training, validation and test.

    An item is a mixture of exactly ``segment_s`` seconds. Utterances are cut
    into consecutive pieces; a last piece that is shorter is filled by noise
    alone. A training piece is mixed ``mixes_per_segment`` times, each in a
    range of ratios drawn uniformly among [-5, 5), [5, 15), [15, 25) and
    [25, 35) dB; a validation or test piece once in each range. An item has

    - ``speech_wav``, ``speech_start_s``, ``speech_stop_s``: its piece;
    - ``speech``: the speech in it, [start_s, stop_s] from its beginning;
    - ``speech_level_db``: level of the speech of the whole file;
    - ``noise_wav``, ``noise_start_s``: where the noise begins; it goes on
      round and round inside ``noise_span_s``, the part of the file with sound;
    - ``snr_db``, ``snr_range`` ("<5", "5-15", "15-25", ">=25", or "all" where
      nothing is added);
    - ``duration`` (``segment_s``) and ``speaker``.

    Paths begin with ``{speech_root}`` and ``{noise_root}``, see
    `manifest_roots`.

    If the manifests exist and were made with the same arguments from the same
    files (names, sizes, times), nothing is done; otherwise they are made anew
    and a warning says why.

    Arguments
    ---------
    data_folder : str
        Speech, see the list of layouts above.
    noise_folder : str
        Noise; None for ``data_folder`` (libriparty).
    save_folder : str
        Where the arguments are noted (``vad_prepare.json``).
    train_annotation : str
        Manifest to write.
    valid_annotation : str
        Manifest to write.
    test_annotation : str
        Manifest to write.
    layout : str
        One of the above, or "auto" to tell it from the files.
    segment_s : float
        Length of an item.
    mixes_per_segment : int
        Items per training piece.
    sample_rate : int
        Rate at which the items will be read, in Hz. The files may have
        another one.
    seed : int
        Of the choice of noise, offset and ratio. The splits do not depend on
        it.
    utterances_csv : str
        Layout folders: columns ``id`` (file name without suffix, or its path
        below ``data_folder`` without suffix), and if known ``split`` and
        ``speaker`` (or ``speaker_id``, ``speaker_cluster``). Files not named
        are left out. Without it, the speaker is the first folder below
        ``data_folder``, or for files right in it the name up to the first
        "_" or "-"; without ``split``, speakers are split by a fixed hash.
    segments_csv : str
        Layout folders: columns ``id``, ``start_s``, ``end_s``: the speech.
        Without it, `energy_segments` labels the clean signals.
    noise_csv : str
        Layout folders: columns ``id``, and if known ``split`` or ``fold`` (1
        to 3 train, 4 valid, 5 test) and ``human`` (1: left out).
    max_utterances_per_speaker : int
        To use a part of a large corpus; None for all.
    channel : int
        Channel of the speech files, from 0; None for the mean of all, where
        files whose channels cancel each other are bad.
    skip_bad_files : bool
        Whether to leave out unreadable files, with a warning, in place of
        the error.
    skip_prep : bool
        Whether to do nothing.

    Example
    -------
    >>> prepare_vad(
    ...     "VCTK-Corpus-0.92",
    ...     "ESC-50",
    ...     "results/save",
    ...     "results/train.json",
    ...     "results/valid.json",
    ...     "results/test.json",
    ...     skip_prep=True,
    ... )
    """
    if skip_prep:
        return
    # All arguments but the names of the manifests decide on their content.
    arguments = {
        "version": VERSION,
        "data_folder": os.path.abspath(data_folder),
        "noise_folder": os.path.abspath(noise_folder or data_folder),
        "layout": layout,
        "segment_s": float(segment_s),
        "mixes_per_segment": mixes_per_segment,
        "sample_rate": sample_rate,
        "seed": seed,
        "utterances_csv": utterances_csv,
        "segments_csv": segments_csv,
        "noise_csv": noise_csv,
        "max_utterances_per_speaker": max_utterances_per_speaker,
        "channel": channel,
        "skip_bad_files": skip_bad_files,
    }
    _check_arguments(arguments)
    root = Path(data_folder)
    noise_root = Path(noise_folder or data_folder)
    for name, folder in (("data_folder", root), ("noise_folder", noise_root)):
        if not folder.is_dir():
            raise FileNotFoundError(f"{name} {folder} is not a folder")
    arguments["files"] = fingerprint(root, noise_root)
    annotations = dict(
        zip(SPLITS, (train_annotation, valid_annotation, test_annotation))
    )
    arguments_path = Path(save_folder) / ARGUMENTS_FILE
    if _is_prepared(arguments, arguments_path, annotations):
        logger.info("Manifests are up to date, preparation skipped.")
        return

    if layout == "auto":
        layout = detect_layout(root, noise_root)
        logger.info("Layout of the data: %s", layout)
    utterances, noises = _list_files(
        layout, root, noise_root, utterances_csv, segments_csv, noise_csv
    )
    if max_utterances_per_speaker is not None:
        utterances = _limit(utterances, max_utterances_per_speaker)
    for utterance in utterances:
        utterance["channel"] = channel
    utterances, noises = _scan(
        utterances, noises, root, noise_root, sample_rate, skip_bad_files
    )
    _check_splits(utterances, noises, needs_noise=layout != "libriparty")
    manifests = {
        split: _make_items(
            split, utterances, noises, segment_s, mixes_per_segment, seed
        )
        for split in SPLITS
    }

    # Without the note the manifests count as incomplete, whatever happens now.
    arguments_path.unlink(missing_ok=True)
    for split, manifest in manifests.items():
        if not manifest:
            raise ValueError(
                f"no item for {split}: no file of {root} lasts {segment_s} s"
            )
        speech_s = sum(
            stop_s - start_s
            for item in manifest.values()
            for start_s, stop_s in item["speech"]
        )
        # Less than one frame of either
        if min(speech_s, len(manifest) * segment_s - speech_s) < 0.01:
            what = "no speech" if speech_s < 0.01 else "nothing but speech"
            raise ValueError(
                f"{split}: {what} in {len(manifest)} items of {root}: "
                "expected both classes in the labels"
            )
        write_atomically(annotations[split], json.dumps(manifest, indent=1))
        logger.info(
            "%s: %d items, %.1f min, %.1f %% speech, %d speakers",
            split,
            len(manifest),
            len(manifest) * segment_s / 60,
            100 * speech_s / (len(manifest) * segment_s),
            len({item["speaker"] for item in manifest.values()}),
        )
    write_atomically(arguments_path, json.dumps(arguments, indent=1))


def manifest_roots(data_folder, noise_folder=None):
    """What to put in place of the roots in the manifests.

    Arguments
    ---------
    data_folder : str
        As given to `prepare_vad`.
    noise_folder : str
        As given to `prepare_vad`.

    Returns
    -------
    replacements : dict
        For ``DynamicItemDataset.from_json``.

    Example
    -------
    >>> manifest_roots("VCTK", "ESC-50")
    {'speech_root': 'VCTK', 'noise_root': 'ESC-50'}
    """
    return {
        "speech_root": str(data_folder),
        "noise_root": str(noise_folder or data_folder),
    }


def _check_arguments(arguments):
    if arguments["layout"] not in LAYOUTS:
        raise ValueError(
            f"layout is {arguments['layout']!r}, expected one of {LAYOUTS}"
        )
    for name in (
        "segment_s",
        "mixes_per_segment",
        "sample_rate",
        "max_utterances_per_speaker",
    ):
        value = arguments[name]
        if value is not None and value <= 0:
            raise ValueError(f"{name} is {value}, expected more than 0")
    if arguments["sample_rate"] % 100:
        raise ValueError(
            f"sample_rate is {arguments['sample_rate']}, expected a multiple "
            "of 100 Hz, for whole samples in 10 ms"
        )
    hops = arguments["segment_s"] * 1000 / FRAME_MS
    if abs(hops - round(hops)) > 1e-6:
        raise ValueError(
            f"segment_s is {arguments['segment_s']}, expected a multiple of "
            f"{FRAME_MS} ms"
        )


def _is_prepared(arguments, arguments_path, annotations):
    if not all(os.path.isfile(path) for path in annotations.values()):
        return False
    try:
        with open(arguments_path, encoding="utf-8") as fin:
            before = json.load(fin)
    except (OSError, ValueError):
        logger.warning("%s is missing: manifests made anew", arguments_path)
        return False
    changed = [
        f"{name} was {before.get(name)!r}, is {value!r}"
        for name, value in arguments.items()
        if before.get(name) != value
    ]
    if changed:
        logger.warning("Manifests made anew: %s", "; ".join(changed))
    return not changed


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
    if (root / "utterances.csv").is_file() and (
        noise_root / "clips.csv"
    ).is_file():
        return "barista_esc10"
    return "folders"


# ------------------------------------------------------------ lists of files
# An utterance is {"id", "wav" (below the root), "speaker", "split", "speech"
# (segments, or None to label by energy), "mix"}; a noise is {"wav", "split"}.


def _list_files(
    layout, root, noise_root, utterances_csv, segments_csv, noise_csv
):
    if layout == "libriparty":
        return _list_libriparty(root), []
    if layout == "vctk_esc50":
        return _list_vctk(root), _list_esc50(noise_root)
    if layout == "barista_esc10":
        utterances_csv = root / "utterances.csv"
        segments_csv = root / "segments.csv"
        noise_csv = noise_root / "clips.csv"
    elif root.resolve() == noise_root.resolve():
        raise ValueError(
            f"noise_folder is {noise_root}, the same as data_folder: expected "
            "a folder of noise without speech"
        )
    utterances = _list_speech(root, root, utterances_csv, segments_csv)
    return utterances, _list_noise(noise_root, noise_root, noise_csv)


def _find_audio(root, folder):
    paths = sorted(
        Path(path).relative_to(root).as_posix()
        for path in files_below(folder)
        if path.lower().endswith(AUDIO_SUFFIXES)
    )
    if not paths:
        raise FileNotFoundError(
            f"{folder} has no audio file, expected {', '.join(AUDIO_SUFFIXES)}"
        )
    return paths


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


def _limit(utterances, per_speaker):
    """The first utterances of each speaker in the order of a fixed hash."""
    kept, count = set(), {}
    for utterance in sorted(
        utterances, key=lambda u: hashlib.sha256(os.fsencode(u["id"])).digest()
    ):
        speaker = utterance["speaker"]
        count[speaker] = count.get(speaker, 0) + 1
        if count[speaker] <= per_speaker:
            kept.add(utterance["wav"])
    return [u for u in utterances if u["wav"] in kept]


# ------------------------------------------------------------------- labels


def merge_segments(segments, gap_s=0.0):
    """Sorts segments and joins those that overlap or are close.

    Arguments
    ---------
    segments : list of [start_s, stop_s]
        In any order.
    gap_s : float
        Gaps up to this are closed.

    Returns
    -------
    merged : list of [start_s, stop_s]

    Example
    -------
    >>> merge_segments([[2.0, 3.0], [0.0, 1.0], [0.5, 1.5]])
    [[0.0, 1.5], [2.0, 3.0]]
    """
    merged = []
    for start_s, stop_s in sorted(segments):
        if merged and start_s - merged[-1][1] <= gap_s:
            merged[-1][1] = max(merged[-1][1], stop_s)
        else:
            merged.append([start_s, stop_s])
    return merged


def energy_segments(signal, sample_rate):
    """Labels the speech of a clean recording by its level.

    The level L of a frame (20 ms every 10 ms, above 80 Hz) is compared with
    the level of the speech, T, the 99th percentile of L, and that of the
    background, B, the 10th percentile. A frame is speech if L is above
    max(T - 30 dB, B + 6 dB), but at most T - 10 dB. Then gaps up to 150 ms
    (stop closures) are closed and speech below 80 ms is dropped. A recording
    with T below -70 dB has no speech. This works for clean speech only: any
    loud sound counts as speech.

    Arguments
    ---------
    signal : numpy.ndarray (time,)
        A clean recording.
    sample_rate : int
        In Hz.

    Returns
    -------
    segments : list of [start_s, stop_s]

    Example
    -------
    >>> signal = np.zeros(16000)
    >>> signal[4000:12000] = np.sin(np.arange(8000))
    >>> energy_segments(signal, 16000)
    [[0.25, 0.76]]
    """
    hop = sample_rate * FRAME_MS // 1000
    n_frames = len(signal) // hop
    if n_frames < 2:
        return []
    high_pass = butter(2, 80, "highpass", fs=sample_rate, output="sos")
    power = np.square(sosfilt(high_pass, signal))
    hop_power = power[: n_frames * hop].reshape(n_frames, hop).mean(axis=1)
    # Frame i is centred at i * hop: the mean of the hops on its two sides.
    edges = np.pad(hop_power, 1, mode="edge")
    level_db = 10 * np.log10(0.5 * (edges[1:] + edges[:-1]) + 1e-12)
    top_db = np.percentile(level_db, 99)
    background_db = np.percentile(level_db, 10)
    if top_db < -70:
        return []
    threshold_db = min(max(top_db - 30, background_db + 6), top_db - 10)
    speech = np.concatenate([[False], level_db > threshold_db, [False]])
    changes = np.flatnonzero(np.diff(speech.astype(np.int8)))
    # Labels say frame i is speech if its centre is in [start, stop).
    segments = [
        [float(first) * FRAME_MS / 1000, float(stop) * FRAME_MS / 1000]
        for first, stop in changes.reshape(-1, 2)
    ]
    merged = merge_segments(segments, gap_s=0.15)
    return [[a, b] for a, b in merged if b - a >= 0.08]


# --------------------------------------------------------------- the content


def _scan(utterances, noises, root, noise_root, sample_rate, skip_bad_files):
    """Reads every file: length, labels, level of speech; sound in noise."""
    bad, good, good_noises, n_quiet = {}, [], [], 0
    for utterance in utterances:
        path = root / utterance["wav"]
        try:
            _scan_speech(utterance, path, sample_rate)
            good.append(utterance)
        except (OSError, ValueError) as error:
            bad[str(path)] = str(error)
    for noise in noises:
        path = noise_root / noise["wav"]
        try:
            if _scan_noise(noise, path, sample_rate):
                good_noises.append(noise)
            else:
                n_quiet += 1
        except (OSError, ValueError) as error:
            bad[str(path)] = str(error)
    if bad:
        message = bad_files_message(bad, len(utterances) + len(noises))
        if not skip_bad_files:
            raise ValueError(f"{message}\nset skip_bad_files to leave them out")
        logger.warning("%s\nThey are left out.", message)
    silent = [u["wav"] for u in good if u["mix"] and not u["speech"]]
    if silent:
        logger.warning(
            "%d of %d speech files have no speech: %s",
            len(silent),
            len(good),
            ", ".join(silent[:MAX_LISTED]),
        )
    if n_quiet:
        logger.info(
            "%d noise files hold less than %.1f s of sound and are left out",
            n_quiet,
            MIN_NOISE_S,
        )
    return good, good_noises


def _scan_speech(utterance, path, sample_rate):
    file_rate, n_samples, _ = audio_info(path)
    duration_s = n_samples / file_rate
    utterance["duration_s"] = duration_s
    if not utterance["mix"]:
        utterance["level_db"] = None
        return
    channel = utterance["channel"]
    if channel is None:
        check_channels(path)
    signal = read_audio(path, sample_rate=sample_rate, channel=channel)
    if utterance["speech"] is None:
        utterance["speech"] = energy_segments(signal, sample_rate)
    beyond = [s for s in utterance["speech"] if s[1] > duration_s + _SLACK_S]
    if beyond:
        raise ValueError(
            f"audio file {path} lasts {duration_s:.3f} s, its labels have "
            f"speech from {beyond[0][0]} to {beyond[0][1]} s: expected seconds "
            "inside the file"
        )
    utterance["speech"] = [
        [start_s, min(stop_s, duration_s)]
        for start_s, stop_s in merge_segments(utterance["speech"])
        if start_s < duration_s
    ]
    rms = speech_rms(signal, utterance["speech"], sample_rate)
    level_db = 20 * math.log10(rms) if rms > 0 else DEFAULT_LEVEL_DB
    utterance["level_db"] = round(level_db, 2)


def _scan_noise(noise, path, sample_rate):
    """Notes the frames with sound; False if there are too few."""
    file_rate, n_samples, _ = audio_info(path)
    check_channels(path)
    active = active_frames(
        read_audio(path, sample_rate=sample_rate), sample_rate
    )
    if active.sum() * FRAME_MS / 1000 < MIN_NOISE_S:
        return False
    found = np.flatnonzero(active)
    # From the first to the last frame with sound.
    noise["span_s"] = [
        round(float(found[0]) * FRAME_MS / 1000, 4),
        round(
            min((found[-1] + 1.0) * FRAME_MS / 1000, n_samples / file_rate), 4
        ),
    ]
    noise["active"] = active
    return True


def _check_splits(utterances, noises, needs_noise):
    for kind, entries in (
        (
            "speaker",
            [
                (s, u["split"])
                for u in utterances
                for s in u["speaker"].split("+")
            ],
        ),
        ("speech file", [(u["wav"], u["split"]) for u in utterances]),
        ("noise file", [(n["wav"], n["split"]) for n in noises]),
    ):
        owner = {}
        for name, split in entries:
            if owner.setdefault(name, split) != split:
                raise ValueError(
                    f"{kind} {name!r} is in {owner[name]} and in {split}, "
                    "expected one split only"
                )
        missing = set(SPLITS) - set(owner.values())
        if missing and (needs_noise or kind != "noise file"):
            raise ValueError(f"no {kind} for {sorted(missing)}")


def _make_items(split, utterances, noises, segment_s, mixes_per_segment, seed):
    noises = [noise for noise in noises if noise["split"] == split]
    items, n_dropped = {}, 0
    for utterance in utterances:
        if utterance["split"] != split:
            continue
        for k, piece in enumerate(_cut(utterance, segment_s)):
            start_s, stop_s = piece["speech_start_s"], piece["speech_stop_s"]
            if not utterance["mix"]:
                # Nothing to fill a short piece with.
                if stop_s - start_s < segment_s - FRAME_MS / 1000:
                    n_dropped += 1
                    continue
                mixes = [("all", {**_NO_NOISE})]
            else:
                mixes = _draw_mixes(
                    f"{utterance['id']}_{k:03d}",
                    split,
                    noises,
                    segment_s,
                    mixes_per_segment,
                    seed,
                )
            for name, mix in mixes:
                item_id = f"{utterance['id']}_{k:03d}_{name}"
                if item_id in items:
                    raise ValueError(f"item id {item_id!r} occurs twice")
                items[item_id] = {**piece, **mix}
    if n_dropped:
        logger.info("%s: %d short last pieces dropped", split, n_dropped)
    return items


_NO_NOISE = {
    "noise_wav": None,
    "noise_start_s": None,
    "noise_span_s": None,
    "snr_db": None,
    "snr_range": "all",
}


def _cut(utterance, segment_s):
    """Consecutive pieces of an utterance, without the noise."""
    duration_s = utterance["duration_s"]
    channel = {}
    if utterance["channel"] is not None:
        channel["channel"] = utterance["channel"]
    n_pieces = max(1, math.ceil((duration_s - MIN_PIECE_S) / segment_s))
    for k in range(n_pieces):
        start_s = k * segment_s
        stop_s = min(start_s + segment_s, duration_s)
        yield {
            "speech_wav": "{speech_root}/" + escaped(utterance["wav"]),
            "speech_start_s": round(start_s, 4),
            "speech_stop_s": round(stop_s, 4),
            "speech_level_db": utterance["level_db"],
            "speech": [
                [
                    round(max(a - start_s, 0.0), 4),
                    round(min(b, stop_s) - start_s, 4),
                ]
                for a, b in utterance["speech"]
                if a < stop_s and b > start_s
            ],
            "duration": segment_s,
            "speaker": utterance["speaker"],
            **channel,
        }


def _draw_mixes(name, split, noises, segment_s, mixes_per_segment, seed):
    """Noise, offset and ratio of each item of a piece."""
    if split == "train":
        plan = [(f"mix{i}", None) for i in range(mixes_per_segment)]
    else:
        plan = [(f"snr{i}", limits) for i, limits in enumerate(SNR_RANGES)]
    for tag, limits in plan:
        generator = item_generator(seed, split, name, tag)
        noise = noises[generator.integers(len(noises))]
        if limits is None:
            snr_range, snr_db = draw_snr(generator)
        else:
            snr_range, low, high = limits
            snr_db = uniform_snr(generator, low, high)
        yield (
            tag,
            {
                "noise_wav": "{noise_root}/" + escaped(noise["wav"]),
                "noise_start_s": _draw_start(generator, noise, segment_s),
                "noise_span_s": noise["span_s"],
                "snr_db": snr_db,
                "snr_range": snr_range,
            },
        )


def _draw_start(generator, noise, segment_s):
    """A beginning such that the excerpt is not silent."""
    start_s = draw_noise_start(generator, noise["span_s"], segment_s)
    if start_s + segment_s > noise["span_s"][1]:
        return start_s  # wraps round, so it holds the whole span
    hops_per_s = 1000 / FRAME_MS
    first = int(start_s * hops_per_s)
    stop = int((start_s + segment_s) * hops_per_s)
    # 0.1 s of sound is enough to measure a level.
    if noise["active"][first:stop].sum() >= 0.1 * hops_per_s:
        return start_s
    # Around a frame with sound.
    found = np.flatnonzero(noise["active"])
    chosen_s = found[generator.integers(len(found))] / hops_per_s
    first_s, last_s = noise["span_s"][0], noise["span_s"][1] - segment_s
    return round(min(max(chosen_s - segment_s / 2, first_s), last_s), 4)
