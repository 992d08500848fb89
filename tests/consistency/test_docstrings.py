"""Public code is documented in SpeechBrain's docstring form.

Functions and classes have the headings Arguments and Returns where they take
or return something, and name each argument. What is inside the core (all but
the names that the package exports) and methods have a docstring, as short as
they deserve; methods of rules inherit that of LayerRule.
"""

import ast
from pathlib import Path

import pytest

import noisegate
import noisegate.rules

PUBLIC = {*noisegate.__all__, *noisegate.rules.__all__}
ROOT = Path(__file__).resolve().parents[2]
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)


def has_heading(docstring, heading):
    lines = [line.strip() for line in docstring.splitlines()]
    return (heading, "-" * len(heading)) in zip(lines, lines[1:])


def own_nodes(function):
    """Nodes of a function without those of functions inside it."""
    for child in ast.iter_child_nodes(function):
        if not isinstance(child, (*FUNCTION, ast.ClassDef, ast.Lambda)):
            yield child
            yield from own_nodes(child)


def gives_value(function):
    """Whether a function returns or yields something."""
    for node in own_nodes(function):
        if isinstance(node, (ast.Yield, ast.YieldFrom)):
            return True
        if isinstance(node, ast.Return) and not (
            node.value is None
            or (isinstance(node.value, ast.Constant) and not node.value.value)
        ):
            return True
    return False


def argument_names(function):
    args = function.args
    names = [a.arg for a in [*args.posonlyargs, *args.args, *args.kwonlyargs]]
    return [name for name in names if name not in ("self", "cls", "ctx")]


def problems_of(where, docstring, names, gives):
    """What is missing from one docstring."""
    if not docstring:
        return [f"{where}: no docstring"]
    found = []
    if names and not has_heading(docstring, "Arguments"):
        found.append(f"{where}: no heading Arguments")
    lines = [line.strip() for line in docstring.splitlines()]
    for name in names:
        if not any(line.startswith(f"{name} :") for line in lines):
            found.append(f"{where}: argument {name} is not described")
    headings = ("Returns", "Yields")
    if gives and not any(has_heading(docstring, h) for h in headings):
        found.append(f"{where}: no heading Returns")
    return found


def problems(source, where="module", full=None):
    """What is missing; ``full``: names with all headings (None: all)."""
    tree = ast.parse(source)
    found = [] if ast.get_docstring(tree) else [f"{where}: no docstring"]

    for node in tree.body:
        path = f"{where}:{getattr(node, 'name', '')}"
        if path.split(":")[-1].startswith("_"):
            continue
        if isinstance(node, FUNCTION):
            names, gives = argument_names(node), gives_value(node)
            if full is not None and node.name not in full:
                names, gives = [], False
            docstring = ast.get_docstring(node)
            found.extend(problems_of(path, docstring, names, gives))
        elif isinstance(node, ast.ClassDef):
            methods = [m for m in node.body if isinstance(m, FUNCTION)]
            init = [m for m in methods if m.name == "__init__"]
            names = argument_names(init[0]) if init else []
            if full is not None and node.name not in full:
                names = []
            docstring = ast.get_docstring(node)
            found.extend(problems_of(path, docstring, names, False))
            for method in methods:
                public = not method.name.startswith("_")
                inherits = "rules/" in where and hasattr(
                    noisegate.rules.LayerRule, method.name
                )
                if public and not inherits and not ast.get_docstring(method):
                    found.append(f"{path}.{method.name}: no docstring")
    return found


@pytest.mark.parametrize(
    "path", sorted((ROOT / "noisegate").glob("**/*.py")), ids=lambda p: p.name
)
def test_docstrings(path):
    source = path.read_text(encoding="utf-8")
    where = path.relative_to(ROOT / "noisegate")
    core = where.parts[0] not in ("baselines", "evaluation")
    found = problems(source, str(where), PUBLIC if core else None)
    assert not found, "\n".join(found)


def test_the_check_finds_what_is_missing():
    source = '''"""Module."""

def bare(): pass

def _private(a): pass

def half(a, b):
    """Half.

    Arguments
    ---------
    a : int
        The a.
    """
    return a

def early(a):
    """Early.

    Arguments
    ---------
    a : int
        The a.
    """
    if a:
        return
    inner = lambda: (yield)

class Layer:
    """Layer."""

    def __init__(self, size): pass

    def documented(self, x):
        """Short."""
        return x

    def forward(self, x):
        return x
'''
    assert problems(source, "m") == [
        "m:bare: no docstring",
        "m:half: argument b is not described",
        "m:half: no heading Returns",
        "m:Layer: no heading Arguments",
        "m:Layer: argument size is not described",
        "m:Layer.forward: no docstring",
    ]
