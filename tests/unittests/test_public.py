"""The public face: names of the package itself, loaded when they are used."""

import subprocess
import sys
import types

import pytest

import noisegate


def test_all_names_are_there():
    """None is a module, also where a file has its name."""
    for name in noisegate.__all__:
        value = getattr(noisegate, name)
        assert not isinstance(value, types.ModuleType), name
        assert name in dir(noisegate)
    with pytest.raises(AttributeError, match="has no 'Gate'"):
        noisegate.Gate  # noqa: B018


def in_a_process(code):
    """What a program prints."""
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_functions_are_not_hidden_by_their_files():
    """Whatever was imported before."""
    code = (
        "import noisegate.compact, noisegate\n"
        "print(callable(noisegate.compact), callable(noisegate.save_compact))"
    )
    assert in_a_process(code) == "True True"


def test_rules_need_no_import_of_their_own():
    """@noisegate.rules.register(MyLayer) works."""
    code = "import noisegate; print(noisegate.rules.register.__name__)"
    assert in_a_process(code) == "register"


def test_the_package_takes_nothing_optional():
    """Neither what is beside the core, nor packages of extras."""
    code = (
        "import sys, noisegate\n"
        "for name in noisegate.__all__: getattr(noisegate, name)\n"
        "beside = ('noisegate.evaluation', 'noisegate.baselines')\n"
        "extras = ('plotly', 'torch_pruning', 'onnx', 'sklearn')\n"
        "print([n for n in beside + extras if n in sys.modules])"
    )
    assert in_a_process(code).splitlines()[-1] == "[]"
