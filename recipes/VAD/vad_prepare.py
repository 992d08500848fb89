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
from speechbrain.utils.logger import get_logger
from vad_data import (
    DEFAULT_LEVEL_DB,
    FRAME_MS,
    active_frames,
    check_channels,
    speech_rms,
)
from vad_layouts import SPLITS, detect_layout, list_files
from vad_manifests import MAX_LISTED, bad_files_message
from vad_mixes import make_items
from vad_segments import energy_segments, merge_segments

from noisegate.evaluation.audio import audio_info, read_audio
from noisegate.evaluation.files import (
    fingerprint,
    write_atomically,
    write_manifest,
)

logger = get_logger(__name__)

LAYOUTS = (
    "auto",
    "vctk_esc50",
    "libriparty",
    "barista_esc10",
    "folders",
)
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
    and a warning says why. One outside of ``save_folder`` is not replaced
    (:func:`noisegate.evaluation.files.write_manifest`).

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
        Layouts folders and barista_esc10: columns ``id`` (file name, or path
        below ``data_folder``, without suffix), and if known ``split`` and
        ``speaker`` (or ``speaker_id``, ``speaker_cluster``). Files not named
        are left out. Without it, the speaker is the first folder below
        ``data_folder``, or for files right in it the name up to the first
        "_" or "-"; without ``split``, speakers are split by a fixed hash.
    segments_csv : str
        Likewise: columns ``id``, ``start_s``, ``end_s``: the speech.
        Without it, `energy_segments` labels the clean signals.
    noise_csv : str
        Likewise: columns ``id``, and if known ``split`` or ``fold`` (1
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
    tables = filter(None, (utterances_csv, segments_csv, noise_csv))
    arguments["files"] = fingerprint(root, noise_root, *tables)
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
    utterances, noises = list_files(
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
        split: make_items(
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
        text = json.dumps(manifest, indent=1)
        write_manifest(annotations[split], text, save_folder)
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
