"""Files that runs leave behind."""

import pytest

from noisegate.evaluation.files import (
    fill_blocks,
    without_paths,
    write_atomically,
    write_manifest,
)
from noisegate.evaluation.results import SweepFolder


def test_blocks_are_filled_and_must_exist(tmp_path):
    """Text around a block stays; without the block nothing is written."""
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- x -->\nold\n<!-- /x -->\nb\n")
    fill_blocks(page, x="new")
    filled = "a\n<!-- x -->\n\nnew\n\n<!-- /x -->\nb\n"
    assert page.read_text() == filled
    with pytest.raises(ValueError, match="page.md has no block 'y'"):
        fill_blocks(page, x="newer", y="new")
    assert page.read_text() == filled


def test_a_file_is_whole_or_not_there(tmp_path):
    """Also if writing fails; nothing else is left behind."""
    path = tmp_path / "new" / "result.json"
    write_atomically(path, "{}")
    with pytest.raises(TypeError):
        write_atomically(path, None)
    assert path.read_text() == "{}"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    "text, cleaned",
    [
        ("--data_folder=/corpora/la", "--data_folder=PATH"),
        ("--loss={widths: '/a/b.json'}", "--loss={widths: 'PATH'}"),
        ("--data_folder=/my data/la", "--data_folder=PATH"),
        ("seen at file:///a/b, c", "seen at PATH, c"),
        ("a=1 --wav=/a b", "a=1 --wav=PATH b"),
        ("--data_folder=data/la", "--data_folder=data/la"),
        ("--lr=1/2", "--lr=1/2"),
        ("https://example.org/a", "https://example.org/a"),
        ("../up/there", "../up/there"),
    ],
)
def test_paths_of_the_machine_are_left_out(text, cleaned):
    assert without_paths(text) == cleaned


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("<<<<<<< HEAD", r"cells.jsonl, line 2 is damaged, no JSON.*<<<<<<<"),
        ('{"method": "noise"}', r"line 2 is of no cell .*\['method'\]"),
        ("3", "line 2 is of no cell .*got 3"),
    ],
)
def test_a_line_that_is_no_cell(tmp_path, line, message):
    """As a merge with conflicts or an editor leaves it."""
    cell = '{"method": "noise", "budget": 0.5, "seed": 1, "settings": {}}'
    text = f"{cell}\n{line}\n"
    (tmp_path / "cells.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        SweepFolder(tmp_path)


def test_a_manifest_that_a_run_was_begun_with_is_kept(tmp_path):
    """Other data under the name of a run: refused once it has checkpoints."""
    path, save = tmp_path / "save" / "train.json", tmp_path / "save"
    for text in ("{}", "[]"):  # nothing was trained with the first
        write_manifest(path, text, save)
    (save / "CKPT+1").mkdir()
    write_manifest(path, "[]", save)
    with pytest.raises(FileExistsError, match="they have changed since"):
        write_manifest(path, "{}", save)
    assert path.read_text() == "[]"
