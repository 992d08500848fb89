"""Fixtures of several files of tests."""

import pytest

from tests.unittests.vad_folders import make_folders


@pytest.fixture
def folders(tmp_path):
    """A folder of speech and one of noise, for recipe VAD."""
    return make_folders(tmp_path)
