"""Reads audio files, and says what is wrong with them.

Authors
 * The noisegate developers, 2026
"""

import math
import os
import re

import numpy as np
import soundfile as sf
from scipy.signal import resample_poly

# As programs write it that could not know the length.
_UNKNOWN_SIZE = 2**32 - 1
_WRONG_SIZE = re.compile(r"^\s*data\s*:\s*(\d+)\s*\(should be (\d+)\)", re.M)
_NO_CHUNK = "*** Unknown chunk marker"
_SLACK_MS = 10  # by which times in a manifest may be rounded


def audio_info(path):
    """Sample rate and length of an audio file, whose last sample is read.

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
    sample_rate, n_samples, n_channels = _header(path)
    read_samples(path, n_samples - 1, n_samples)
    return sample_rate, n_samples, n_channels


def _header(path):
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


def read_audio(path, start_s=0.0, stop_s=None, sample_rate=16000, channel=None):
    """Reads a piece of an audio file as one channel.

    Channels are averaged if none is chosen; another sample rate is resampled
    by a polyphase filter.

    Arguments
    ---------
    path : str
        The file.
    start_s : float
        Where the piece begins.
    stop_s : float
        Where it ends; None for the end of the file.
    sample_rate : int
        Sample rate of the result in Hz.
    channel : int
        The channel, from 0; None for the mean of all.

    Returns
    -------
    signal : numpy.ndarray (time,)
        float32.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is unreadable, empty, too short or holds NaN or Inf.
    """
    file_rate, n_samples, _ = _header(path)
    start = round(start_s * file_rate)
    stop = n_samples if stop_s is None else round(stop_s * file_rate)
    slack = file_rate * _SLACK_MS // 1000
    if not 0 <= start < stop or stop > n_samples + slack or start >= n_samples:
        raise ValueError(
            f"audio file {path} lasts {n_samples / file_rate:.3f} s, asked for "
            f"{start_s:.3f} to {stop / file_rate:.3f} s"
        )
    signal = read_samples(path, start, min(stop, n_samples))
    if channel is None:
        signal = signal.mean(axis=1)
    elif channel < signal.shape[1]:
        signal = signal[:, channel]
    else:
        raise ValueError(
            f"audio file {path} has {signal.shape[1]} channels, channel is "
            f"{channel}"
        )
    if sample_rate != file_rate:
        divisor = math.gcd(sample_rate, file_rate)
        signal = resample_poly(
            signal, sample_rate // divisor, file_rate // divisor
        )
    return np.ascontiguousarray(signal, dtype=np.float32)


def read_samples(path, start, stop):
    """Reads samples of all channels.

    Arguments
    ---------
    path : str
        The file.
    start : int
        The first sample.
    stop : int
        The one behind the last.

    Returns
    -------
    signal : numpy.ndarray (time, channels)
        float32.

    Raises
    ------
    ValueError
        If the file is unreadable or too short, or holds NaN or Inf.
    """
    try:
        signal, _ = sf.read(
            os.fsencode(path),
            start=start,
            stop=stop,
            dtype="float32",
            always_2d=True,
        )
    except (RuntimeError, OSError) as error:
        raise ValueError(f"audio file {path} is unreadable: {error}") from error
    if len(signal) < stop - start:
        raise ValueError(
            f"audio file {path} is truncated: {len(signal)} samples read, "
            f"{stop - start} expected from its header"
        )
    if not np.isfinite(signal).all():
        raise ValueError(f"audio file {path} holds NaN or Inf samples")
    return signal
