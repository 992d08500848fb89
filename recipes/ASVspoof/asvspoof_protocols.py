"""Where the ASVspoof corpora keep their lists, and how these are read.

Authors
 * The noisegate authors 2026
"""

from pathlib import Path

import numpy as np

from noisegate.evaluation.files import read_text

LABELS = ("bonafide", "spoof")
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


def search_roots(data_folder, protocol_folder):
    first = Path(protocol_folder or data_folder)
    if not first.is_dir():
        raise FileNotFoundError(f"protocol_folder {first} is not a folder")
    return [
        folder / w for folder in (first, Path(data_folder)) for w in WRAPPERS
    ]


def find(roots, names):
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
    roots = search_roots(data_folder, protocol_folder)
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
    return any(find(roots, names) for names, _ in SETS[layout].values())


def enrolment_ids(roots):
    """Files that are only for enrolling speakers: "LA_0069 LA_D_1,LA_D_2"."""
    ids = set()
    for root in roots:
        for pattern in ENROLMENT_LISTS:
            for path in root.glob(pattern):
                for line in read_text(path).splitlines():
                    for field in line.split()[1:]:
                        ids.update(field.split(","))
    return ids


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
    roots = search_roots(data_folder, protocol_folder)
    names = {**ASV_SCORES_2019, "test_2021": ASV_SCORES_2021}
    found = {split: find(roots, [name]) for split, name in names.items()}
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
