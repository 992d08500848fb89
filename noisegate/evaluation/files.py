"""What all files have in common that runs leave behind.

Authors
 * The noisegate developers, 2026
"""

import csv
import hashlib
import io
import json
import os
import re
from lzma import LZMAError
from pathlib import Path
from zipfile import BadZipFile

# Of one machine; not "1/2", "../up" or "https://"
_PATH = re.compile(r"(?:file:/+|(?<![\w.~/])/(?!/))[^\s'\",\]}]+")

WAYS_OUT = "Choose another output_folder, or --overwrite=True, which moves "
WAYS_OUT += "the old folder aside"


def write_atomically(path, text):
    """Writes a file such that it is never seen half written.

    Arguments
    ---------
    path : str or pathlib.Path
        The file; its folder is made.
    text : str or bytes
        What to write.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as fout:
            fout.write(text.encode() if isinstance(text, str) else text)
            fout.flush()
            os.fsync(fout.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_manifest(path, text, save_folder):
    """Writes a manifest; one that others may use is not replaced, nor one
    that a run was begun with.

    Arguments
    ---------
    path : str or pathlib.Path
        The file. Below ``save_folder`` it is the run's own.
    text : str
        What to write.
    save_folder : str or pathlib.Path
        That of the run.

    Raises
    ------
    FileExistsError
        If the file holds something else and is not the run's own, or the run
        has checkpoints.

    Example
    -------
    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> write_manifest(f"{folder}/train.json", "{}", f"{folder}/save")
    >>> write_manifest(f"{folder}/train.json", "{}", f"{folder}/save")
    >>> write_manifest(f"{folder}/train.json", "[]", folder)
    >>> write_manifest(
    ...     f"{folder}/train.json", "{}", f"{folder}/save"
    ... )  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    FileExistsError: .../train.json holds something else than this run ...
    """
    path, folder = Path(path), Path(save_folder)
    if path.exists() and read_text(path) != text:
        if not path.resolve().is_relative_to(folder.resolve()):
            raise FileExistsError(
                f"{path} holds something else than this run would write, and "
                f"is not in its save_folder {folder}: --skip_prep=True reads "
                "it as it is; otherwise name another file, or remove this one"
            )
        if any(folder.glob("CKPT*")):
            raise FileExistsError(
                f"{path} is not what the data leads to now: they have changed "
                f"since the run in {folder} was begun. {WAYS_OUT}; "
                "--skip_prep=True goes on with what was there"
            )
    write_atomically(path, text)


def read_text(path):
    """Returns what a text file says, whatever ends its lines.

    Arguments
    ---------
    path : str or pathlib.Path
        The file, in UTF-8, with a byte-order mark or without.

    Returns
    -------
    str

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no text in UTF-8.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path} does not exist, or is no file")
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8: {error}") from error


def read_member(path):
    """Returns what a text file says that may be in an archive.

    Arguments
    ---------
    path : pathlib.Path or zipfile.Path
        The file, in UTF-8.

    Returns
    -------
    str

    Raises
    ------
    ValueError
        If it is damaged: names it.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (BadZipFile, LZMAError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def parsed(text, where):
    """Returns what a text in JSON says.

    Arguments
    ---------
    text : str
        The text.
    where : str or pathlib.Path
        Where it stands, for the error.

    Returns
    -------
    any

    Raises
    ------
    ValueError
        If it is no JSON.

    Example
    -------
    >>> parsed("<<<<<<< HEAD", "cells.jsonl, line 3")
    Traceback (most recent call last):
    ...
    ValueError: cells.jsonl, line 3 is damaged, no JSON (Expecting value: \
line 1 column 1 (char 0)): '<<<<<<< HEAD'
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{where} is damaged, no JSON ({error}): {text[:40]!r}"
        ) from error


def read_json(path):
    """Returns what a JSON file says.

    Arguments
    ---------
    path : str or pathlib.Path
        The file.

    Returns
    -------
    any

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no JSON: names the file.
    """
    return parsed(read_text(path), path)


def read_table(path, columns):
    """Returns the rows of a CSV file.

    Arguments
    ---------
    path : str or pathlib.Path
        The file, see :func:`read_text`; its first line names the columns.
    columns : list of str
        Those that it must have.

    Returns
    -------
    list of dict

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no table, or a column is missing.
    """
    reader = csv.DictReader(io.StringIO(read_text(path)))
    try:
        rows = list(reader)
    except csv.Error as error:
        raise ValueError(f"{path} is no table: {error}") from error
    if set(columns) - set(reader.fieldnames or ()):
        raise ValueError(
            f"{path} has the columns {reader.fieldnames}, expected "
            f"{list(columns)}"
        )
    return rows


def escaped(path):
    """Returns a path for a manifest, such that SpeechBrain's replacements of
    ``{root}`` and the like leave it as it is.

    Arguments
    ---------
    path : str
        The path, below the root.

    Returns
    -------
    str

    Example
    -------
    >>> escaped("a{b}.wav").format(root="/data")
    'a{b}.wav'
    """
    return path.replace("{", "{{").replace("}", "}}")


def files_below(folder):
    """Yields all files below a folder, in order; links are followed.

    Arguments
    ---------
    folder : str or pathlib.Path
        The folder.

    Yields
    ------
    str
        A path that begins with that of the folder.
    """
    seen = set()
    for directory, folders, names in os.walk(folder, followlinks=True):
        place = os.path.realpath(directory)
        if place in seen:  # a link to a folder above it
            folders.clear()
            continue
        seen.add(place)
        folders.sort()
        for name in sorted(names):
            yield os.path.join(directory, name)


def fingerprint(*places):
    """Returns a hash of names, sizes and times of files.

    Arguments
    ---------
    *places : str or pathlib.Path
        Files, and folders, of which all files below count.

    Returns
    -------
    str

    Example
    -------
    >>> folder = getfixture("tmpdir")
    >>> before = fingerprint(folder)
    >>> folder.join("a.csv").write("id")
    >>> fingerprint(folder) == before
    False
    """
    content = hashlib.sha256()
    for place in dict.fromkeys(map(str, places)):
        for path in files_below(place) if os.path.isdir(place) else [place]:
            if not os.path.exists(path):  # a link to nothing
                continue
            status = os.stat(path)
            name = os.path.relpath(path, place)
            line = f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n"
            content.update(os.fsencode(line))
    return content.hexdigest()[:20]


def markdown_table(headings, rows):
    """Returns a Markdown table.

    Arguments
    ---------
    headings : list of str
        Column headings.
    rows : list of list
        Cells, which are written as ``str`` has them.

    Returns
    -------
    str

    Example
    -------
    >>> print(markdown_table(["model", "|K|"], [["crnn", 3]]))
    | model | \\|K\\| |
    | --- | --- |
    | crnn | 3 |
    """

    def line(cells):
        cells = (str(cell).replace("|", "\\|") for cell in cells)
        return f"| {' | '.join(cells)} |"

    return "\n".join(map(line, [headings, ["---"] * len(headings), *rows]))


def fill_blocks(path, **blocks):
    """Replaces the generated blocks of a Markdown file.

    Arguments
    ---------
    path : str or pathlib.Path
        The file, with lines ``<!-- name -->`` and ``<!-- /name -->``.
    **blocks : dict of str to str
        New contents by name.

    Raises
    ------
    ValueError
        If there is no such block.
    """
    path = Path(path)
    text = path.read_text(encoding="utf-8")
    for name, block in blocks.items():
        before, mark, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(f"<!-- /{name} -->")
        if not (mark and end):
            raise ValueError(f"{path} has no block '{name}'")
        text = before + mark + "\n" + block + "\n\n" + end + after
    write_atomically(path, text)


def without_paths(text):
    """Returns a text without the paths of the machine.

    Arguments
    ---------
    text : str
        The text, or one argument of a command line.

    Returns
    -------
    str
        With "PATH" in their place.

    Example
    -------
    >>> without_paths("see /corpora/la/log.txt for it")
    'see PATH for it'
    """
    # The value of an option may hold spaces
    option = re.match(r"(-*[\w.]+=)?(file:/)?/(?!/)", text)
    if option:
        return f"{option[1] or ''}PATH"
    return _PATH.sub("PATH", text)
