"""What a header says of an audio file, and whether that is true.

Authors
 * The noisegate developers, 2026
"""

import os
import re

import soundfile as sf

# As programs write it that could not know the length.
_UNKNOWN_SIZE = 2**32 - 1
_WRONG_SIZE = re.compile(r"^\s*data\s*:\s*(\d+)\s*\(should be (\d+)\)", re.M)

_NO_CHUNK = "*** Unknown chunk marker"


def audio_info(path):
    """Sample rate and length of an audio file, from its header.

    Arguments
    ---------
    path : str
        The file.

    Returns
    -------
    sample_rate : int
        In Hz.
    n_samples : int
        Per channel, never 0.
    n_channels : int

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is unreadable, empty or shorter than its header says.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"audio file {path} does not exist")
    try:
        info = sf.info(os.fsencode(path), verbose=True)
    except (RuntimeError, OSError) as error:
        raise ValueError(f"audio file {path} is unreadable: {error}") from error
    # libsndfile takes what is there and says so in its log alone
    wrong = _WRONG_SIZE.search(info.extra_info)
    if wrong and int(wrong[1]) != _UNKNOWN_SIZE:
        raise ValueError(
            f"audio file {path} is damaged: its header says {wrong[1]} bytes "
            f"of samples, the file holds {wrong[2]}"
        )
    if _NO_CHUNK in info.extra_info:
        raise ValueError(
            f"audio file {path} is damaged: its header says "
            f"{info.frames} samples, what is behind them is no chunk"
        )
    if info.frames <= 0:
        raise ValueError(f"audio file {path} is empty: it holds no samples")
    return info.samplerate, info.frames, info.channels
