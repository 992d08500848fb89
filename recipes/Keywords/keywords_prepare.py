"""Prepares the manifests of keyword recognition.

Two layouts: Speech Commands v0.02 as it is published, and a folder with a
``clips.csv``, as the sample that comes with this recipe.

P. Warden, "Speech Commands: a dataset for limited-vocabulary speech
recognition", arXiv 1804.03209, 2018.

Authors
 * The noisegate developers, 2026
"""

import json
import math
import random
import re
from pathlib import Path

import soundfile
from speechbrain.dataio.encoder import CategoricalEncoder
from speechbrain.utils.logger import get_logger

from noisegate.evaluation.audio import audio_info
from noisegate.evaluation.files import (
    escaped,
    read_table,
    read_text,
    write_manifest,
)

logger = get_logger(__name__)

SPLITS = ("train", "valid", "test")
COLUMNS = ("id", "speaker", "label", "split", "duration_s")
_SLACK_S = 0.01  # of times that were rounded
BACKGROUND = "_background_noise_"
UNKNOWN, SILENCE = "unknown", "silence"
WORDS_12 = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop")
WORDS_12 += ("go",)


def prepare_keywords(
    data_folder,
    save_folder,
    train_annotation,
    valid_annotation,
    test_annotation,
    n_classes=12,
    sample_rate=16000,
    unknown_share=0.1,
    silence_share=0.1,
    seed=1234,
    skip_prep=False,
):
    """Writes the manifests of the three splits, in JSON.

    Arguments
    ---------
    data_folder : str
        The folder of Speech Commands v0.02 (a folder for each word,
        ``validation_list.txt``, ``testing_list.txt``), or one with a
        ``clips.csv``: columns id, speaker, label, split, and file, start_s,
        duration_s where several clips are in one file; else they are
        flac/<id>.flac.
    save_folder : str
        Of the run. A manifest elsewhere is not replaced by another one.
    train_annotation : str
        The manifest of the training set.
    valid_annotation : str
        That of the validation set.
    test_annotation : str
        That of the test set.
    n_classes : int
        12: ten words, other words ("unknown") and silence, as in the
        challenge of the data set; 35: all words. Of Speech Commands only.
    sample_rate : int
        In Hz; audio at another rate is refused.
    unknown_share : float
        Clips of other words, relative to those of the ten words.
    silence_share : float
        Cuts of background noise, likewise.
    seed : int
        Of the choice of these.
    skip_prep : bool
        Whether nothing is done.

    Returns
    -------
    None

    Raises
    ------
    FileExistsError
        See :func:`noisegate.evaluation.files.write_manifest`.
    FileNotFoundError
        If the folder has neither layout, or a file of the lists is missing.
    ValueError
        If ``n_classes`` or the sample rate does not fit, a split is empty, or
        a speaker is in two splits.
    """
    if skip_prep:
        return
    folder = Path(data_folder)
    if (folder / "clips.csv").is_file():
        items = _from_table(folder)
    elif (folder / "testing_list.txt").is_file():
        if n_classes not in (12, 35):
            raise ValueError(f"n_classes must be 12 or 35, got {n_classes}")
        items = _from_lists(folder)
        if n_classes == 12:
            draw = random.Random(seed)
            items = _twelve(folder, items, unknown_share, silence_share, draw)
    else:
        raise FileNotFoundError(
            f"{folder} is neither Speech Commands (it has no testing_list.txt)"
            " nor a folder with a clips.csv"
        )
    labels = {item["label"] for item in items.values()}
    if len(labels) != n_classes:
        raise ValueError(
            f"{folder} has {len(labels)} classes, n_classes is {n_classes}: "
            f"{sorted(labels)}"
        )
    _check(folder, items, sample_rate)
    paths = train_annotation, valid_annotation, test_annotation
    for item in items.values():
        item.update({k: escaped(item[k]) for k in ("wav", "speaker", "label")})
    for split, path in zip(SPLITS, paths):
        chosen = {
            name: {k: v for k, v in item.items() if k != "split"}
            for name, item in sorted(items.items())
            if item["split"] == split
        }
        text = json.dumps(chosen, indent=1)
        write_manifest(path, text + "\n", save_folder)
        logger.info(f"{split}: {len(chosen)} clips")


def check_labels(labels, folder):
    """Raises ValueError if a teacher tells other words apart.

    Arguments
    ---------
    labels : CategoricalEncoder
        Of the classes of the data.
    folder : str
        Of the teacher: a compact folder or one of checkpoints; None for no
        teacher.
    """
    for path in Path(folder).glob("label_encoder.*") if folder else ():
        known = CategoricalEncoder()
        known.load(path)
        if known.lab2ind != labels.lab2ind:
            raise ValueError(
                f"teacher_folder {folder} is of {known.lab2ind}, the data have "
                f"{labels.lab2ind}"
            )


def _from_table(folder):
    items, path = {}, folder / "clips.csv"
    for number, row in enumerate(read_table(path, COLUMNS), start=2):
        times = {k: row.get(k) or 0 for k in ("start_s", "duration_s")}
        try:
            times = {key: float(value) for key, value in times.items()}
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
        if not 0 <= times["start_s"] < math.inf > times["duration_s"] > 0:
            raise ValueError(
                f"{path}, line {number}: '{row['id']}' begins at "
                f"{row.get('start_s')} s and lasts {row['duration_s']} s"
            )
        if row["id"] in items:
            raise ValueError(f"{path} has the id '{row['id']}' twice")
        items[row["id"]] = {
            "wav": str(folder / row.get("file", f"flac/{row['id']}.flac")),
            **times,
            "speaker": row["speaker"] or f"silence_{row['split']}",
            "label": row["label"],
            "split": row["split"],
        }
    return items


def _from_lists(folder):
    """All words; what is in no list is for training."""
    split_of = {}
    for split, name in (
        ("valid", "validation_list.txt"),
        ("test", "testing_list.txt"),
    ):
        lines = read_text(folder / name).split()
        split_of.update(dict.fromkeys(lines, split))
    items = {}
    for path in sorted(folder.glob("*/*.wav")):
        word = path.parent.name
        if word == BACKGROUND:
            continue
        key = f"{word}/{path.name}"
        items[f"{word}_{path.stem}"] = {
            "wav": str(path),
            "start_s": 0.0,
            "duration_s": None,
            "speaker": re.sub("_nohash_.*", "", path.stem),
            "label": word,
            "split": split_of.pop(key, "train"),
        }
    if split_of:
        raise FileNotFoundError(
            f"{folder} lacks {len(split_of)} files of its lists, the first is "
            f"{next(iter(split_of))}"
        )
    return items


def _twelve(folder, items, unknown_share, silence_share, draw):
    """Ten words, a share of the others, and cuts of background noise."""
    noises = sorted((folder / BACKGROUND).glob("*.wav"))
    if not noises:
        raise FileNotFoundError(f"{folder / BACKGROUND} has no WAV files")
    lengths = [soundfile.info(path).duration for path in noises]
    chosen = {}
    for split in SPLITS:
        mine = {k: v for k, v in items.items() if v["split"] == split}
        known = {k: v for k, v in mine.items() if v["label"] in WORDS_12}
        others = sorted(mine.keys() - known.keys())
        n_others = min(len(others), round(unknown_share * len(known)))
        chosen.update(known)
        for key in draw.sample(others, n_others):
            chosen[key] = {**mine[key], "label": UNKNOWN}
        for i in range(round(silence_share * len(known))):
            number = draw.randrange(len(noises))
            chosen[f"silence_{split}_{i}"] = {
                "wav": str(noises[number]),
                "start_s": draw.uniform(0, max(0.0, lengths[number] - 1.0)),
                "duration_s": 1.0,
                "speaker": f"silence_{split}",
                "label": SILENCE,
                "split": split,
            }
    return chosen


def _check(folder, items, sample_rate):
    split_of = {}
    for name, item in items.items():
        if item["split"] not in SPLITS:
            raise ValueError(f"'{name}': split is '{item['split']}'")
        other = split_of.setdefault(item["speaker"], item["split"])
        if other != item["split"]:
            raise ValueError(
                f"speaker {item['speaker']} is in {other} and {item['split']}"
            )
    if missing := set(SPLITS) - set(split_of.values()):
        raise ValueError(f"{folder} has no clips for {sorted(missing)}")
    needed_s = {}
    for item in items.values():
        stop_s = item["start_s"] + (item["duration_s"] or 0.0)
        needed_s[item["wav"]] = max(needed_s.get(item["wav"], 0.0), stop_s)
    bad = []
    for path, stop_s in sorted(needed_s.items()):
        try:
            rate, n_samples, n_channels = audio_info(path)
        except (FileNotFoundError, ValueError) as error:
            bad.append(str(error))
            continue
        if (rate, n_channels) != (sample_rate, 1):
            bad.append(
                f"{path} has {rate} Hz and {n_channels} channels, expected "
                f"1 at the sample_rate of {sample_rate} Hz"
            )
        elif n_samples / rate < stop_s - _SLACK_S:
            bad.append(
                f"{path} lasts {n_samples / rate:.3f} s, clips of it go to "
                f"{stop_s:.3f} s"
            )
    if bad:
        raise ValueError(
            f"{len(bad)} of {len(needed_s)} audio files cannot be used: "
            + "; ".join(bad[:10])
        )
