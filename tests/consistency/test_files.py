"""Tracked text files: links that resolve, no paths of one machine."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Written so that the pattern does not match itself.
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:work|root)/|/tmp/[v]env")


@pytest.fixture(scope="module")
def texts():
    """Content of each tracked text file."""
    try:
        out = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True
        ).stdout.decode()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    texts = {}
    for name in filter(None, out.split("\0")):
        try:
            texts[name] = (ROOT / name).read_text(encoding="utf-8")
        except (UnicodeDecodeError, FileNotFoundError, IsADirectoryError):
            continue  # binary, or deleted but not yet committed
    return texts


def broken_links(text, folder):
    """Relative links of a Markdown text that lead nowhere."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"`[^`\n]*`", "", text)
    links = re.findall(r"\]\(<?([^)\s>]+)", text)
    links += re.findall(r"^\[[^\]]+\]:\s*(\S+)", text, flags=re.MULTILINE)
    return [
        link
        for link in links
        if not re.match(r"[a-z]+:|#", link)
        and not (folder / link.split("#")[0]).exists()
    ]


def machine_paths(text):
    """Lines that hold a path of one machine."""
    return [x for x in text.splitlines() if MACHINE_PATH.search(x)]


def test_links_resolve(texts):
    broken = {
        name: links
        for name, text in texts.items()
        if name.endswith(".md")
        and (links := broken_links(text, (ROOT / name).parent))
    }
    assert not broken


def test_no_machine_paths(texts):
    found = {n: x for n, t in texts.items() if (x := machine_paths(t))}
    assert not found


def test_the_architecture_names_all_rooms(texts):
    """Each file and folder of the package has its line in the page."""
    inside = {n.split("/")[1] for n in texts if n.startswith("noisegate/")}
    rooms = {n if "." in n else f"{n}/" for n in inside}
    rooms -= {"__main__.py", "version.txt"}
    page = texts["docs/architecture.md"]
    assert [n for n in sorted(rooms) if f"\n| `{n}` |" not in page] == []


def test_the_link_check_finds_broken_links(tmp_path):
    (tmp_path / "there.md").touch()
    text = """[a](there.md), [b](there.md#part), [c](#part), ![d](gone.png)
[e](https://example.org/gone), `[f](code.md)` and [g](<gone too.md>)
[h]: gone.md
```
[i](in_a_block.md)
```
"""
    assert broken_links(text, tmp_path) == ["gone.png", "gone", "gone.md"]


def test_the_path_check_finds_machine_paths():
    slash = "/"
    bad = [f"cd {slash}work/x", f'"{slash}root/y"', f"{slash}tmp/venv/bin"]
    good = ["https://example.org/root/", "a/work/b", "at work/rest", "./root/"]
    assert machine_paths("\n".join(bad + good)) == bad
