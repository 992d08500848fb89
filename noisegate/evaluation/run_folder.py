"""A run's folder belongs to its settings, and to one process at a time.

Authors
 * The noisegate developers, 2026
"""

import contextlib
import difflib
import hashlib
import json
import math
import os
import re
import shutil
import socket
import time
from pathlib import Path

from filelock import FileLock, Timeout
from hyperpyyaml import resolve_references
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq, TaggedScalar
from ruamel.yaml.error import YAMLError
from speechbrain.utils.logger import get_logger

from noisegate.evaluation.files import WAYS_OUT, read_json, write_atomically

logger = get_logger(__name__)

SETTINGS = "settings.json"
# Names of keys that are counts
_COUNTS = re.compile(
    r"(^|_)(n|num|number)_|(channels|epochs?|layers|neurons|seed|size|units"
    r"|sizes|widths|sample_rate|d_model|d_ffn|nhead|stride|per_segment)$"
)
# Of those, and others, keys for which zero makes nothing
_SIZES = re.compile(
    r"((batch|hidden)_sizes?|channels|neurons|units|sample_rate|segment_s|stride"
    r"|n_(fft|mels|frames|train|valid|test|classes|features)"
    r"|d_model|d_ffn|nhead|number_of_epochs)$"
)
_STARTS = ("pretrained", "teacher_folder")  # keys with weights of other runs
_FILES = (".ckpt", ".csv", ".json", ".jsonl", ".tsv")  # weights and manifests
_CONTENT = "content of "
_TOP = "OUTPUT_FOLDER"  # in it, as folders may be moved
# Keys of a YAML that do not change what comes out
FREE = ("num_workers", "use_tensorboard", "feature_cache", "skip_prep")
FREE += ("ckpt_interval_minutes",)
MORE = "number_of_epochs"  # may grow while the run is not finished
# Options of SpeechBrain that change what comes out
RUN_OPTIONS = ("precision", "eval_precision", "grad_accumulation_factor")
RUN_OPTIONS += ("max_grad_norm", "optimizer_step_limit", "debug")
RUN_OPTIONS += ("remove_vector_weight_decay", "auto_mix_prec")
RUN_OPTIONS += ("bfloat16_mix_prec",)


def read_yaml(hparams_file):
    """Returns what a YAML says, as it is written there.

    Arguments
    ---------
    hparams_file : str
        Path of the YAML.

    Returns
    -------
    ruamel.yaml.comments.CommentedMap

    Raises
    ------
    ValueError
        If it is no YAML, or has no keys.
    """
    try:
        with open(hparams_file, encoding="utf-8") as fin:
            found = YAML().load(fin)
    except (UnicodeDecodeError, YAMLError) as error:
        raise ValueError(f"{hparams_file} is no YAML: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{hparams_file} must hold keys and their values")
    return found


def plan_of(hparams_file, overrides=None):
    """Returns a YAML with its overrides and references, before it is loaded.

    Arguments
    ---------
    hparams_file : str
        Path of the YAML.
    overrides : str or dict
        Overrides of it.

    Returns
    -------
    ruamel.yaml.comments.CommentedMap
    """
    read_yaml(hparams_file)
    with open(hparams_file, encoding="utf-8") as fin:
        return YAML().load(resolve_references(fin, overrides).getvalue())


def check_overrides(plan, overrides):
    """Raises ValueError, which names the key, if an override is of another
    kind than what it replaces: a text for a number, a number below zero for
    one that is not, half a channel, no channels, NaN. Null fits always.

    Arguments
    ---------
    plan : dict
        The YAML without overrides.
    overrides : dict
        New values by key.
    """
    for key, value in overrides.items():
        if key not in plan:
            near = difflib.get_close_matches(key, plan, 1)
            hint = f"; is '{near[0]}' meant?" if near else ""
            raise ValueError(f"the YAML has no key '{key}'{hint}")
        default = plan[key]
        if isinstance(default, list) and isinstance(value, list):
            if default and all(_kind(x) == "a number" for x in default):
                for item in value:
                    check_overrides({key: default[0]}, {key: item})
        wanted = _kind(default)
        if value is None or default is None or wanted is None:
            continue
        if isinstance(value, TaggedScalar):  # !ref, is seen when it is resolved
            continue
        if isinstance(default, int) and wanted == "a number":
            wanted = "a whole number" if _COUNTS.search(key) else wanted
        good = _kind(value) == wanted.replace("whole ", "")
        if good and isinstance(value, float):
            whole = wanted == "a whole number" and value % 1
            good = math.isfinite(value) and not whole
        if good and "number" in wanted and value < 0 <= default:
            wanted, good = f"{wanted} from 0 on", False
        if good and value == 0 and default and _SIZES.search(key):
            wanted, good = f"{wanted} above 0", False
        if not good:
            raise ValueError(
                f"{key} must be {wanted}, as {str(default)!r} is; got {value!r}"
            )


def _kind(value):
    """What a value of a YAML is, in words; None for what is made there."""
    if isinstance(value, (TaggedScalar, CommentedMap, CommentedSeq)):
        if value.tag.value not in (None, "tag:yaml.org,2002:map"):
            return None
    for kinds, name in (
        (bool, "true or false"),
        ((int, float), "a number"),
        (str, "a text"),
        ((list, dict), "a list or a mapping"),
    ):
        if isinstance(value, kinds):
            return name
    return None


def claim(folder, hparams_file, overrides, run_opts, top=None, passed=()):
    """Makes sure that a folder is new or was begun with the same settings.

    The settings are all values of the YAML, but for the folder itself, and
    options like ``--precision``, and what was in manifests, files of weights
    and folders of models that it names when the run began
    (:func:`contents_of`). May differ: the number of workers, logging,
    where features are cached, and, while the run is not finished, the number
    of epochs, if it grows. What a run that was stopped has left half done is
    taken away.

    Arguments
    ---------
    folder : pathlib.Path
        That of the run.
    hparams_file : str
        Path of the YAML.
    overrides : dict
        Overrides of it.
    run_opts : dict
        SpeechBrain's run options, or None.
    top : pathlib.Path
        The folder that names of other folders may begin with; that of the run
        if None.
    passed : tuple of str
        Further keys that may differ.

    Raises
    ------
    ValueError
        If the folder belongs to other settings: names them.
    """
    top = str(top or folder)
    finished = result_of(folder) is not None
    path, compact = folder / SETTINGS, folder / "compact"
    now = _settings(hparams_file, overrides, run_opts, top)
    content = contents_of(now)
    if path.exists():
        before = read_json(path)
        kept = {k: before[k] for k in (*FREE, *passed) if k in before}
        more = now.get(MORE), before.get(MORE)
        if not finished and None not in more and more[0] > more[1]:
            kept[MORE] = more[1]
        kept = {
            key: value.replace(_TOP, top) if isinstance(value, str) else value
            for key, value in kept.items()
            if key in now
        }
        like = _settings(hparams_file, {**overrides, **kept}, run_opts, top)
        changes = _changes(*comparable(before, {**like, **content}))
        content = {k: before[k] for k in before if k.startswith(_CONTENT)}
        if changes:
            raise ValueError(
                f"{folder} belongs to a run with other settings: {changes}. "
                f"{WAYS_OUT}"
            )
    elif finished or any(folder.glob("save/CKPT*")) or compact.exists():
        raise ValueError(
            f"{folder} holds a run of unknown settings (it has no {SETTINGS})."
            f" {WAYS_OUT}"
        )
    if finished:
        return
    for left in (*folder.glob(".*.tmp"), compact):
        if left.is_dir():
            shutil.rmtree(left)
        else:
            left.unlink(missing_ok=True)
    write_atomically(path, json.dumps({**now, **content}, indent=1) + "\n")


def move_aside(folder):
    """Renames a folder, so that its run can be made anew.

    Arguments
    ---------
    folder : pathlib.Path
        The folder.
    """
    number = 1
    while (target := folder.with_name(f"{folder.name}.old{number}")).exists():
        number += 1
    folder.rename(target)
    logger.warning(f"{folder} is now {target}")


@contextlib.contextmanager
def owned(folder):
    """Keeps other processes out of a folder.

    The lock is the kernel's: it ends with the process, whatever ends that.

    Arguments
    ---------
    folder : pathlib.Path
        The folder; is made.

    Returns
    -------
    contextlib.AbstractContextManager
        For a ``with`` block, at whose end the folder is free.

    Raises
    ------
    BlockingIOError
        If another process owns it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock, note = FileLock(folder / ".lock"), folder / ".owner.json"
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise BlockingIOError(
            f"{folder} is used by another process"
            f"{_owner(note).get('who', '')}: wait until it ends, or choose "
            "another folder"
        ) from error
    before = _owner(note)
    if before:
        logger.info(f"{folder} was left{before['who']}; going on")
    who = f" by process {os.getpid()} on {socket.gethostname()}"
    who = {"who": f"{who}, which began at {time.ctime()}"}
    write_atomically(note, json.dumps(who))
    try:
        yield
    finally:
        note.unlink(missing_ok=True)
        lock.release()


def _owner(note):
    try:
        return json.loads(note.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def _settings(hparams_file, overrides, run_opts, top):
    """All values of a run, flat, by name."""
    settings = dict(_leaves(plan_of(hparams_file, overrides)))
    for option in RUN_OPTIONS:
        if (run_opts or {}).get(option):
            settings[f"--{option}"] = run_opts[option]
    text = json.dumps(settings, sort_keys=True)
    quoted = json.dumps(top)[1:-1]
    return json.loads(text.replace(quoted, _TOP))


def contents_of(settings):
    """Returns hashes of what settings name, to see whether it is another.

    Arguments
    ---------
    settings : dict
        Values by key. Those that name a file of weights (``.ckpt``) or a
        manifest (``.csv``, ``.json``, ``.jsonl``, ``.tsv``) count, and the
        weights in the folders ``pretrained`` and ``teacher_folder``; what is
        not there does not.

    Returns
    -------
    dict of str to str
        By ``content of <key>``.
    """
    found = {}
    for key, place in settings.items():
        files = []
        if isinstance(place, str) and place.endswith(_FILES):
            files = [Path(place)]
        elif key.rpartition(".")[2] in _STARTS and os.path.isdir(str(place)):
            for pattern in ("*.ckpt", "CKPT+*/*.ckpt"):
                files += sorted(Path(place).glob(pattern))
        files = [path for path in files if path.is_file()]
        content = hashlib.sha256()
        for path in files:
            content.update(os.fsencode(path.name))
            with open(path, "rb") as fin:
                for block in iter(lambda: fin.read(2**20), b""):
                    content.update(block)
        if files:
            found[f"{_CONTENT}{key}"] = content.hexdigest()[:20]
    return found


def comparable(before, now):
    """Returns settings without the contents that only one of two has.

    What a run starts from may go when it has ended, and what it has made
    itself was not there when it began.

    Arguments
    ---------
    before : dict
        Settings, with contents (:func:`contents_of`).
    now : dict
        Others.

    Returns
    -------
    tuple of dict
        The two.
    """
    return tuple(
        {k: one[k] for k in one if k in other or not k.startswith(_CONTENT)}
        for one, other in ((before, now), (now, before))
    )


def _leaves(node, path=""):
    """Pairs of name and value; the tag of a mapping is a value, too."""
    tag = getattr(getattr(node, "tag", None), "value", None)
    if isinstance(node, dict):
        children = node.items()
    elif isinstance(node, list):
        children = enumerate(node)
    else:
        if isinstance(node, TaggedScalar):
            node = f"{tag} {node.value}"
        if not isinstance(node, (str, int, float, type(None))):
            node = str(node)
        yield path, node
        return
    if tag:
        yield f"{path} is a", tag
    elif not node:
        yield path, str(node)
    for key, child in children:
        yield from _leaves(child, f"{path}.{key}" if path else str(key))


def result_of(folder):
    """Returns what a finished run has written (dict), or None.

    Arguments
    ---------
    folder : pathlib.Path
        That of the run. A result that cannot be read is set aside.

    Returns
    -------
    dict or None
    """
    path = folder / "result.json"
    if not path.exists():
        return None
    try:
        return read_json(path)
    except ValueError as error:
        path.rename(path.with_name("result.json.broken"))
        logger.warning(f"{error}; it is set aside")
        return None


def _changes(before, now):
    """What differs, in words: of the keys at the top if any of them does."""
    missing = "nothing"
    names = [k for k in {**before, **now} if before.get(k) != now.get(k)]
    names = [k for k in names if "." not in k] or names
    changes = [
        f"{name} was {before.get(name, missing)!r}, is "
        f"{now.get(name, missing)!r}"
        for name in names[:6]
    ]
    if len(names) > 6:
        changes.append(f"and {len(names) - 6} more")
    return "; ".join(changes)
