"""Prepares the manifests of the ASVspoof recipe.

Layouts of the data; each may also lie one folder deeper, as it comes out of
the archives (``LA/``, ``LA-keys-full/``, ``DF-keys-full/``,
``ASVspoof5_protocols/``), and the protocols may lie in ``protocol_folder``:

``2019_la``
    ``ASVspoof2019_LA_{train,dev,eval}/flac/*.flac`` and
    ``ASVspoof2019_LA_cm_protocols/ASVspoof2019.LA.cm.{train.trn,dev.trl,
    eval.trl}.txt``. ``mini_la.py`` writes the same layout.
``2021_la``, ``2021_df``
    ``ASVspoof2021_{LA,DF}_eval/flac/*.flac`` and
    ``keys/{LA,DF}/CM/trial_metadata.txt``, for the test. These corpora have
    no training set: training and validation are those of 2019 LA if they are
    in the same folder, else their manifests are not written.
``asvspoof5``
    ``flac_{T,D,E_eval}/*.flac`` and ``ASVspoof5.train.tsv``,
    ``ASVspoof5.{dev,eval}.track_1.tsv`` (or, of the first release,
    ``ASVspoof5.{train,dev}.metadata.txt``).

The sets train, dev and eval become train, valid and test.

Authors
 * The noisegate authors 2026
"""

import json
import os
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soundfile as sf
from speechbrain.utils.logger import get_logger

from noisegate.evaluation.audio import audio_info
from noisegate.evaluation.files import (
    escaped,
    files_below,
    fingerprint,
    read_text,
    write_atomically,
)

logger = get_logger(__name__)

SPLITS = ("train", "valid", "test")
LABELS = ("bonafide", "spoof")
PHASES = ("eval", "progress", "hidden", "all")
SAMPLE_RATE = 16000
_CM_2019 = "ASVspoof2019_LA_cm_protocols/ASVspoof2019.LA.cm."
# Per layout and split: names the protocol may have, folder of the audio.
_SETS_2019 = {
    "train": ([f"{_CM_2019}train.trn.txt"], "ASVspoof2019_LA_train/flac"),
    "valid": ([f"{_CM_2019}dev.trl.txt"], "ASVspoof2019_LA_dev/flac"),
    "test": ([f"{_CM_2019}eval.trl.txt"], "ASVspoof2019_LA_eval/flac"),
}
SETS = {
    "2019_la": _SETS_2019,
    "2021_la": {
        **_SETS_2019,
        "test": (
            ["keys/LA/CM/trial_metadata.txt"],
            "ASVspoof2021_LA_eval/flac",
        ),
    },
    "2021_df": {
        **_SETS_2019,
        "test": (
            ["keys/DF/CM/trial_metadata.txt"],
            "ASVspoof2021_DF_eval/flac",
        ),
    },
    "asvspoof5": {
        "train": (
            ["ASVspoof5.train.tsv", "ASVspoof5.train.metadata.txt"],
            "flac_T",
        ),
        "valid": (
            ["ASVspoof5.dev.track_1.tsv", "ASVspoof5.dev.metadata.txt"],
            "flac_D",
        ),
        "test": (["ASVspoof5.eval.track_1.tsv"], "flac_E_eval"),
    },
}
LAYOUTS = ("auto", *SETS)
# Folders that the archives put around the above.
WRAPPERS = ("", "LA", "LA-keys-full", "DF-keys-full", "ASVspoof5_protocols")
# Where speaker, file, attack, label and phase stand, by number of columns.
COLUMNS = {
    5: (0, 1, 3, 4, None),  # 2019
    6: (0, 1, 4, 5, None),  # ASVspoof 5, first release
    8: (0, 1, 4, 5, 7),  # 2021 LA
    10: (0, 1, 7, 8, None),  # ASVspoof 5
    13: (0, 1, 4, 5, 7),  # 2021 DF
}
# Lists of enrolment utterances: audio in the same folders, but no trials.
ENROLMENT_LISTS = (
    "ASVspoof2019_LA_asv_protocols/*.trn.txt",
    "ASVspoof5.*.enroll.*",
)
ASV_SCORES_2019 = {
    "valid": "ASVspoof2019_LA_asv_scores/ASVspoof2019.LA.asv.dev.gi.trl."
    "scores.txt",
    "test": "ASVspoof2019_LA_asv_scores/ASVspoof2019.LA.asv.eval.gi.trl."
    "scores.txt",
}
ASV_SCORES_2021 = "keys/LA/ASV/ASVTorch_Kaldi/score.txt"
ARGUMENTS_FILE = "asvspoof_prepare.json"
# Raised when the same arguments give other manifests than before.
VERSION = 1
MAX_LISTED = 10
# Headers are read in threads: libsndfile works outside Python's lock.
N_THREADS = 8


def prepare_asvspoof(
    data_folder,
    save_folder,
    train_annotation,
    valid_annotation,
    test_annotation,
    layout="auto",
    protocol_folder=None,
    phase="eval",
    skip_bad_files=False,
    skip_prep=False,
):
    """Writes the manifests for training, validation and test.

    An item is named as its file and has

    - ``wav``: its path, beginning with ``{data_root}``;
    - ``length``: in seconds;
    - ``label``: "bonafide" or "spoof";
    - ``attack``: "A01" and so on as in the protocol, "-" if bona fide;
    - ``speaker``: as in the protocol.

    Before anything is written, protocols and audio are compared. A line that
    cannot be right (number of columns, a label that is neither of the two or
    that the attack contradicts), a file named twice, a speaker of several
    splits, audio that is missing, unreadable, truncated, or not 16 kHz mono,
    and audio that no list names are all collected, and the error lists them.
    Of each file the header and the last sample are read, which finds a
    truncated file without decoding it; damage in the middle of a file is not
    found.

    If the manifests exist and were made with the same arguments, nothing is
    done.

    Arguments
    ---------
    data_folder : str
        Audio, and unless ``protocol_folder`` is given protocols.
    save_folder : str
        Where the arguments are noted (``asvspoof_prepare.json``), with the
        paths of the scores of speaker verification, see `find_asv_scores`.
    train_annotation : str
        Manifest to write; None to leave the split out.
    valid_annotation : str
        Manifest to write, or None.
    test_annotation : str
        Manifest to write, or None.
    layout : str
        One of the above, or "auto" to tell it from the files.
    protocol_folder : str
        Where the protocols are, if not in ``data_folder``.
    phase : str
        Part of the 2021 trials to test on: "eval" (as in publications),
        "progress", "hidden" or "all".
    skip_bad_files : bool
        Whether to go on without what is wrong, with a warning that counts
        it, in place of the error. Of a file named twice the first line
        counts, or none if they contradict each other; a speaker of several
        splits stays in the last of them only.
    skip_prep : bool
        Whether to do nothing.

    Raises
    ------
    FileNotFoundError
        If a protocol or a folder of audio is missing.
    ValueError
        If an argument or the data are wrong.

    Example
    -------
    >>> prepare_asvspoof(
    ...     "LA",
    ...     "results/save",
    ...     "results/train.json",
    ...     "results/valid.json",
    ...     "results/test.json",
    ...     skip_prep=True,
    ... )
    """
    if skip_prep:
        return
    for name, value, allowed in (
        ("layout", layout, LAYOUTS),
        ("phase", phase, PHASES),
    ):
        if value not in allowed:
            raise ValueError(f"{name} is {value!r}, expected one of {allowed}")
    arguments = {
        "version": VERSION,
        "data_folder": os.path.abspath(data_folder),
        "protocol_folder": protocol_folder and os.path.abspath(protocol_folder),
        "layout": layout,
        "phase": phase,
        "skip_bad_files": skip_bad_files,
        "files": fingerprint(data_folder, protocol_folder or data_folder),
    }
    annotations = {
        split: path
        for split, path in zip(
            SPLITS, (train_annotation, valid_annotation, test_annotation)
        )
        if path is not None
    }
    note_path = Path(save_folder) / ARGUMENTS_FILE
    if _is_prepared(arguments, note_path, annotations):
        logger.info("Manifests are up to date, preparation skipped.")
        return

    root = Path(data_folder)
    if not root.is_dir():
        raise FileNotFoundError(f"data_folder {root} is not a folder")
    roots = _search_roots(data_folder, protocol_folder)
    if layout == "auto":
        layout = detect_layout(data_folder, protocol_folder)
        logger.info("Layout of the data: %s", layout)

    problems = defaultdict(list)
    trials = {}
    for split in list(annotations):
        names, audio_folder = SETS[layout][split]
        protocol = _find(roots, names)
        if protocol is None and layout.startswith("2021") and split != "test":
            logger.warning(
                "%s is not written: ASVspoof 2021 has no %s set and %s holds "
                "no 2019 LA",
                annotations[split],
                split,
                root,
            )
            continue
        if protocol is None:
            raise FileNotFoundError(
                f"no protocol for {split} in {roots[0]}: expected "
                f"{' or '.join(names)}"
            )
        trials[split] = _trials_with_audio(
            protocol, root, audio_folder, roots, phase, problems
        )
    _check_ids(trials, problems)
    _check_speakers(trials, problems)
    if problems:
        message = _problems_message(problems, root)
        if not skip_bad_files:
            raise ValueError(
                f"{message}\nset skip_bad_files to go on without them"
            )
        logger.warning("%s\nThey are left out.", message)

    # Without the note the manifests count as incomplete, whatever happens now.
    note_path.unlink(missing_ok=True)
    for split, found in trials.items():
        labels = Counter(trial["label"] for trial in found)
        for label in LABELS:
            if not labels[label]:
                raise ValueError(
                    f"{split} has no {label} trial, expected both classes"
                )
        manifest = {
            trial["id"]: {
                key: trial[key]
                for key in ("wav", "length", "label", "attack", "speaker")
            }
            for trial in found
        }
        write_atomically(annotations[split], json.dumps(manifest, indent=1))
        logger.info(
            "%s: %d bona fide, %d spoofed, %d attacks, %d speakers, %.1f h",
            split,
            labels["bonafide"],
            labels["spoof"],
            len({trial["attack"] for trial in found} - {"-"}),
            len({trial["speaker"] for trial in found}),
            sum(trial["length"] for trial in found) / 3600,
        )
    note = {
        "arguments": arguments,
        "splits": list(trials),
        "asv_scores": find_asv_scores(data_folder, protocol_folder),
    }
    write_atomically(note_path, json.dumps(note, indent=1))


def _is_prepared(arguments, note_path, annotations):
    try:
        note = json.loads(note_path.read_text(encoding="utf-8"))
        before, splits = note["arguments"], note["splits"]
    except (OSError, ValueError, KeyError):
        return False
    changed = [
        f"{name} was {before.get(name)!r}, is {value!r}"
        for name, value in arguments.items()
        if before.get(name) != value
    ]
    if changed:
        logger.warning("Manifests made anew: %s", "; ".join(changed))
        return False
    # A split that the data do not have is not waited for.
    if arguments["layout"].startswith("2021") or arguments["layout"] == "auto":
        annotations = {s: p for s, p in annotations.items() if s in splits}
    return bool(annotations) and all(map(os.path.isfile, annotations.values()))


# -------------------------------------------------------------------- files


def _search_roots(data_folder, protocol_folder):
    first = Path(protocol_folder or data_folder)
    if not first.is_dir():
        raise FileNotFoundError(f"protocol_folder {first} is not a folder")
    return [
        folder / w for folder in (first, Path(data_folder)) for w in WRAPPERS
    ]


def _find(roots, names):
    """The first of the names that exists; in roots[0], also without folder."""
    for name in names:
        for path in [
            *(root / name for root in roots),
            roots[0] / Path(name).name,
        ]:
            if path.is_file():
                return path
    return None


def detect_layout(data_folder, protocol_folder=None):
    """Tells the layout of the data from its files.

    Arguments
    ---------
    data_folder : str
        As given to `prepare_asvspoof`.
    protocol_folder : str
        As given to `prepare_asvspoof`.

    Returns
    -------
    layout : str
        With several corpora in the folder, 2021 goes before 2019, because
        2019 is its training set.
    """
    roots = _search_roots(data_folder, protocol_folder)
    found = [
        layout
        for layout in ("2021_la", "2021_df", "2019_la", "asvspoof5")
        if any(
            (Path(data_folder) / w / SETS[layout]["test"][1]).is_dir()
            for w in WRAPPERS
        )
        or (layout in ("2019_la", "asvspoof5") and _has_protocol(roots, layout))
    ]
    if not found:
        expected = [SETS[layout]["test"][1] for layout in SETS]
        raise FileNotFoundError(
            f"data_folder {data_folder} has no known layout: expected one of "
            f"{expected} in it"
        )
    if found[:2] == ["2021_la", "2021_df"]:
        raise ValueError(
            f"data_folder {data_folder} holds ASVspoof 2021 LA and DF: set "
            "layout to 2021_la or 2021_df"
        )
    return found[0]


def _has_protocol(roots, layout):
    return any(_find(roots, names) for names, _ in SETS[layout].values())


def _list_audio(folder):
    """Paths of the audio by file name without suffix; and second copies."""
    by_id, copies = {}, []
    for path in files_below(folder):
        stem, suffix = os.path.splitext(os.path.basename(path))
        if suffix.lower() in (".flac", ".wav"):
            if stem in by_id:
                copies.append(path)
            by_id.setdefault(stem, path)
    return by_id, copies


def _enrolment_ids(roots):
    """Files that are only for enrolling speakers: "LA_0069 LA_D_1,LA_D_2"."""
    ids = set()
    for root in roots:
        for pattern in ENROLMENT_LISTS:
            for path in root.glob(pattern):
                for line in read_text(path).splitlines():
                    for field in line.split()[1:]:
                        ids.update(field.split(","))
    return ids


# ---------------------------------------------------------------- protocols


def read_protocol(path, phase="eval"):
    """Reads the list of trials of a set.

    The format is told by the number of columns of the first line, see
    `COLUMNS`.

    Arguments
    ---------
    path : str
        Protocol of 2019 LA, key of 2021 LA or DF, or list of ASVspoof 5.
    phase : str
        Of the 2021 keys: "eval", "progress", "hidden" or "all".

    Returns
    -------
    trials : list of dict
        With ``id``, ``speaker``, ``attack`` ("-" if bona fide), ``label`` and
        ``line`` (number, from 1). The lines with a problem are not in it.
    others : set
        Ids that the protocol names but that are not among the trials.
    problems : list of str
        What is wrong, line by line.

    Example
    -------
    >>> path = getfixture("tmpdir").join("cm.train.trn.txt")
    >>> path.write("LA_0079 LA_T_1138215 - - bonafide\\n")
    >>> read_protocol(path)[0][0]["speaker"]
    'LA_0079'
    """
    trials, others, problems = [], set(), []
    n_columns = None
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        fields = line.split()
        if not fields:
            continue
        if n_columns is None:
            n_columns = len(fields)
            if n_columns not in COLUMNS:
                raise ValueError(
                    f"{path} has {n_columns} columns, expected one of "
                    f"{sorted(COLUMNS)}"
                )
        if len(fields) > 1:
            others.add(fields[1])
        where = f"{path}:{number}"
        if len(fields) != n_columns:
            problems.append(
                f"{where} has {len(fields)} columns, expected {n_columns}"
            )
            continue
        *columns, phase_column = COLUMNS[n_columns]
        speaker, name, attack, label = (fields[i] for i in columns)
        if phase_column is not None and phase not in (
            "all",
            fields[phase_column],
        ):
            continue
        is_attack = attack not in ("-", "bonafide")
        if label not in LABELS:
            problems.append(
                f"{where}: {name} has the label {label!r}, expected one "
                f"of {LABELS}"
            )
        elif is_attack != (label == "spoof"):
            problems.append(
                f"{where}: {name} is {label}, its attack is {attack!r}"
            )
        else:
            trials.append(
                {
                    "id": name,
                    "speaker": speaker,
                    "attack": attack if is_attack else "-",
                    "label": label,
                    "line": number,
                }
            )
    others -= {trial["id"] for trial in trials}
    return trials, others, problems


def _trials_with_audio(protocol, root, folder, roots, phase, problems):
    """The trials of a protocol whose audio is good, with wav and length."""
    folders = [root / w / folder for w in WRAPPERS]
    folder = next((f for f in folders if f.is_dir()), None)
    if folder is None:
        raise FileNotFoundError(
            f"{folders[0]} is not a folder: expected the audio of {protocol}"
        )
    trials, others, wrong = read_protocol(protocol, phase)
    if not (trials or wrong):
        raise ValueError(f"protocol {protocol} has no line of a trial")
    problems["wrong lines"] += wrong
    paths, copies = _list_audio(folder)
    extra = set(paths) - {t["id"] for t in trials} - others
    if extra:
        extra -= _enrolment_ids(roots)
    problems["files without a line"] += copies + [
        paths[i] for i in sorted(extra)
    ]
    for trial in trials:
        trial["where"] = f"{protocol}:{trial['line']}"
        trial["path"] = paths.get(trial["id"])
        if trial["path"] is None:
            problems["missing files"].append(
                f"{folder / trial['id']}.flac ({trial['where']})"
            )
    trials = [trial for trial in trials if trial["path"]]
    good = []
    with ThreadPoolExecutor(N_THREADS) as pool:
        lengths = pool.map(_length_s, [trial["path"] for trial in trials])
        for trial, (length_s, problem) in zip(trials, lengths):
            if problem:
                problems["unreadable files"].append(problem)
                continue
            relative = Path(trial["path"]).relative_to(root).as_posix()
            wav = "{data_root}/" + escaped(relative)
            trial.update(wav=wav, length=length_s)
            good.append(trial)
    for kind in [kind for kind, found in problems.items() if not found]:
        del problems[kind]
    return good


def _length_s(path):
    """Length in seconds, or what is wrong with a file."""
    try:
        sample_rate, n_samples, channels = audio_info(path)
        with sf.SoundFile(os.fsencode(path)) as audio:
            # Of a truncated file, the header still gives the full length.
            audio.seek(n_samples - 1)
            truncated = len(audio.read(1)) < 1
    except (OSError, ValueError, RuntimeError) as error:
        text = str(error)
        return None, text if path in text else f"{path} is truncated: {text}"
    if truncated:
        return None, f"{path} is truncated: its last sample cannot be read"
    if (sample_rate, channels) != (SAMPLE_RATE, 1):
        return None, (
            f"{path} has {sample_rate} Hz and {channels} channels, expected "
            f"{SAMPLE_RATE} Hz and 1"
        )
    return n_samples / sample_rate, None


def _check_ids(trials, problems):
    """Notes files that occur twice; leaves one, or none if they differ."""
    seen, contradictory = {}, set()
    for split, found in trials.items():
        unique = []
        for trial in found:
            content = [
                split,
                *(trial[k] for k in ("speaker", "attack", "label")),
            ]
            if trial["id"] not in seen:
                seen[trial["id"]] = (content, trial["where"])
                unique.append(trial)
                continue
            first, where = seen[trial["id"]]
            agree = "" if content == first else ", and they differ"
            problems["duplicates"].append(
                f"{trial['where']}: {trial['id']} is also in {where}{agree}"
            )
            if agree:
                contradictory.add(trial["id"])
        trials[split] = unique
    for split, found in trials.items():
        trials[split] = [t for t in found if t["id"] not in contradictory]


def _check_speakers(trials, problems):
    """Notes speakers of several splits; leaves each in the last of them."""
    splits_of = defaultdict(dict)
    for split, found in trials.items():
        for trial in found:
            splits_of[trial["speaker"]].setdefault(split, trial["where"])
    last = {}
    for speaker, splits in splits_of.items():
        last[speaker] = list(splits)[-1]
        if len(splits) > 1:
            problems["speakers of several splits"].append(
                f"{speaker} is in "
                + " and ".join(f"{s} ({w})" for s, w in splits.items())
            )
    for split, found in trials.items():
        trials[split] = [t for t in found if last[t["speaker"]] == split]


def _problems_message(problems, root):
    n_problems = sum(map(len, problems.values()))
    lines = [f"{n_problems} problems in the data of {root}"]
    for kind, found in problems.items():
        lines.append(f"{len(found)} {kind}:")
        lines += [f"  {text}" for text in found[:MAX_LISTED]]
        if len(found) > MAX_LISTED:
            lines.append(f"  and {len(found) - MAX_LISTED} more")
    return "\n".join(lines)


# ------------------------------------------- scores of speaker verification


def find_asv_scores(data_folder, protocol_folder=None):
    """Finds the score files of speaker verification that come with the data.

    They are needed for the tandem detection cost (t-DCF).

    Arguments
    ---------
    data_folder : str
        As given to `prepare_asvspoof`.
    protocol_folder : str
        As given to `prepare_asvspoof`.

    Returns
    -------
    paths : dict
        ``valid`` and ``test`` (2019 LA), ``test_2021`` (2021 LA), as far as
        they exist; each is for `read_asv_scores`.
    """
    roots = _search_roots(data_folder, protocol_folder)
    names = {**ASV_SCORES_2019, "test_2021": ASV_SCORES_2021}
    found = {split: _find(roots, [name]) for split, name in names.items()}
    return {split: str(path) for split, path in found.items() if path}


def read_asv_scores(path, phase="eval"):
    """Reads scores of speaker verification.

    A line of 2019 is ``A07 spoof -3.2`` (attack or "bonafide", kind of trial,
    score). In 2021 the score file has the score in its third column, and
    kind, attack and phase stand in the same line of ``trial_metadata.txt``
    one folder above.

    Arguments
    ---------
    path : str
        The score file.
    phase : str
        Of 2021: "eval", "progress", "hidden" or "all".

    Returns
    -------
    scores : dict
        ``target``, ``nontarget`` and ``spoof``: numpy.ndarray (trials,); the
        higher, the more like the claimed speaker. ``attack``: list with the
        attack of each score in ``spoof``.

    Raises
    ------
    ValueError
        If a line has another form, or a kind of trial is missing.
    """
    path = Path(path)
    key_path = path.parents[1] / "trial_metadata.txt"
    rows = [line.split() for line in read_text(path).splitlines()]
    if key_path.is_file():
        keys = [line.split() for line in read_text(key_path).splitlines()]
        if len(keys) != len(rows):
            raise ValueError(
                f"{path} has {len(rows)} lines, {key_path} has {len(keys)}: "
                "expected equally many"
            )
        rows = [
            [key[4], key[5], row[-1]]
            for key, row in zip(keys, rows)
            if phase in ("all", key[7])
        ]
    scores = {"target": [], "nontarget": [], "spoof": [], "attack": []}
    for number, row in enumerate(rows, start=1):
        if len(row) != 3 or row[1] not in ("target", "nontarget", "spoof"):
            raise ValueError(
                f"{path}:{number} is {' '.join(row)!r}, expected an attack, "
                "target, nontarget or spoof, and a score"
            )
        scores[row[1]].append(float(row[2]))
        if row[1] == "spoof":
            scores["attack"].append(row[0])
    for kind in ("target", "nontarget", "spoof"):
        if not scores[kind]:
            raise ValueError(f"{path} has no {kind} trial")
        scores[kind] = np.array(scores[kind])
    return scores
