"""Checks manifests of the VAD recipe, and their files, before a training.

Authors
 * The noisegate developers, 2026
"""

import json
import os

from speechbrain.dataio.dataio import load_data_json
from speechbrain.utils.logger import get_logger
from vad_data import FRAME_MS, ITEM_KEYS

from noisegate.evaluation.audio import audio_info

logger = get_logger(__name__)

MAX_LISTED = 10  # bad files in a message


def _unique_object(pairs):
    """JSON object without repeated keys (json would keep the last silently)."""
    found = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"id {key!r} occurs twice")
        found[key] = value
    return found


def check_manifests(paths, replacements, skip_bad_files=False):
    """Checks manifests before the first epoch, so that no run dies later.

    Every file named must exist, have a readable header and be long enough, and
    no item id may occur twice, inside one manifest or in two.

    Arguments
    ---------
    paths : list of str
        The manifests.
    replacements : dict
        Roots, as for ``DynamicItemDataset.from_json``.
    skip_bad_files : bool
        Whether to leave out items with bad files, with a warning, in place
        of the error.

    Returns
    -------
    manifests : list of dict
        The good items of each manifest with the roots replaced, ready for
        ``DynamicItemDataset``.
    """
    manifests, owner, needed_s = [], {}, {}
    for path in paths:
        if not os.path.isfile(path):
            raise FileNotFoundError(f"manifest {path} does not exist")
        try:
            with open(path, encoding="utf-8") as fin:
                json.load(fin, object_pairs_hook=_unique_object)
        except ValueError as error:
            raise ValueError(f"manifest {path}: {error}") from error
        manifest = load_data_json(path, replacements)
        for item_id, item in manifest.items():
            if item_id in owner:
                raise ValueError(
                    f"manifest {path}: id {item_id!r} is also in "
                    f"{owner[item_id]}"
                )
            owner[item_id] = path
            missing = [key for key in ITEM_KEYS if key not in item]
            if missing:
                raise ValueError(
                    f"manifest {path}: item {item_id!r} has no {missing}"
                )
            for wav, stop_s in _files_of(item):
                needed_s[wav] = max(needed_s.get(wav, 0.0), stop_s)
        manifests.append(manifest)

    bad = {}
    for wav, stop_s in needed_s.items():
        try:
            sample_rate, n_samples, _ = audio_info(wav)
            if n_samples / sample_rate < stop_s - FRAME_MS / 1000:
                raise ValueError(
                    f"audio file {wav} lasts {n_samples / sample_rate:.3f} s, "
                    f"the manifest needs {stop_s:.3f} s"
                )
        except (OSError, ValueError) as error:
            bad[wav] = str(error)
    if bad:
        message = bad_files_message(bad, len(needed_s))
        if not skip_bad_files:
            raise ValueError(
                f"{message}\nset skip_bad_files to leave their items out"
            )
        logger.warning("%s\nTheir items are left out.", message)
    good = []
    for path, manifest in zip(paths, manifests):
        kept = {
            item_id: item
            for item_id, item in manifest.items()
            if not any(wav in bad for wav, _ in _files_of(item))
        }
        if not kept:
            raise ValueError(f"manifest {path} has no usable item")
        if len(kept) < len(manifest):
            logger.warning(
                "%s: %d of %d items left out",
                path,
                len(manifest) - len(kept),
                len(manifest),
            )
        good.append(kept)
    return good


def _files_of(item):
    files = [(item["speech_wav"], item["speech_stop_s"])]
    if item["noise_wav"] is not None:
        files.append((item["noise_wav"], item["noise_span_s"][1]))
    return files


def bad_files_message(bad, n_files):
    """One line per bad file, ten at most.

    Arguments
    ---------
    bad : dict
        Reason by file.
    n_files : int
        Number of files looked at.

    Returns
    -------
    message : str
    """
    lines = [f"{len(bad)} of {n_files} audio files cannot be used:"]
    lines += [f"  {reason}" for reason in list(bad.values())[:MAX_LISTED]]
    if len(bad) > MAX_LISTED:
        lines.append(f"  and {len(bad) - MAX_LISTED} more")
    return "\n".join(lines)
