"""Packages that only some commands need.

Authors
 * The noisegate developers, 2026
"""

import contextlib


@contextlib.contextmanager
def extra(name):
    """Says how to install what is imported within, if it is missing.

    Arguments
    ---------
    name : str
        The extra of setup.py that has the packages.

    Raises
    ------
    ImportError
        If a package is missing.

    Example
    -------
    >>> with extra("report"):  # doctest: +ELLIPSIS
    ...     import no_such_package
    Traceback (most recent call last):
    ImportError: no_such_package is missing: pip install ...
    """
    try:
        yield
    except ImportError as error:
        raise ImportError(
            f"{error.name} is missing: pip install "
            f"'speechbrain-noisegate[{name}]'"
        ) from error
