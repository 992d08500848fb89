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

import soundfile as sf
from asvspoof_protocols import (
    LABELS,
    LAYOUTS,
    SETS,
    WRAPPERS,
    detect_layout,
    enrolment_ids,
    find,
    find_asv_scores,
    read_protocol,
    search_roots,
)
from speechbrain.utils.logger import get_logger

from noisegate.evaluation.audio import audio_info
from noisegate.evaluation.files import (
    escaped,
    files_below,
    fingerprint,
    write_atomically,
    write_manifest,
)

logger = get_logger(__name__)

SPLITS = ("train", "valid", "test")
PHASES = ("eval", "progress", "hidden", "all")
SAMPLE_RATE = 16000
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
    done. One outside of ``save_folder`` is not replaced by another one
    (:func:`noisegate.evaluation.files.write_manifest`).

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
        "progress", "hidden" or "all". Others have no phases.
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
    roots = search_roots(data_folder, protocol_folder)
    if layout == "auto":
        layout = detect_layout(data_folder, protocol_folder)
        logger.info("Layout of the data: %s", layout)
    if phase != "eval" and not layout.startswith("2021"):
        raise ValueError(f"phase is '{phase}', but layout {layout} has none")

    problems = defaultdict(list)
    trials = {}
    for split in list(annotations):
        names, audio_folder = SETS[layout][split]
        protocol = find(roots, names)
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
        text = json.dumps(manifest, indent=1)
        write_manifest(annotations[split], text, save_folder)
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
        extra -= enrolment_ids(roots)
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
