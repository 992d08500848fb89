"""Options and fixtures that all tests share."""

import pytest
import torch

# Programs, which do something when they are imported
collect_ignore = ["tests/shape.py", "tests/case_names.py"]
collect_ignore_glob = ["tests/integration/recipes/*"]


def pytest_addoption(parser):
    """Adds ``--device``, spelled as in SpeechBrain."""
    parser.addoption("--device", action="store", default="cpu")


def pytest_configure(config):
    """Keeps the small tests from fighting for the cores."""
    torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture
def device(request):
    """The device given on the command line, ``cpu`` by default."""
    return request.config.getoption("--device")
