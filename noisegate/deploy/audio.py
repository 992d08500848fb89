"""Audio as it comes: in blocks, of files and pipes, without torch.

Authors
 * The noisegate developers, 2026
"""

import os
import sys
import wave

import numpy as np
import soundfile as sf

from noisegate.extras import extra

BLOCK_S = 1.0  # of a file
PIPE_S = 0.1  # of a pipe, where someone may be waiting


def blocks(path, sample_rate):
    """Yields the signal of a file, one channel at a rate, in blocks.

    Arguments
    ---------
    path : str
        Any file that libsndfile reads. "-" is the standard input: WAV or, if it
        does not begin like one, samples of 16 bits, little-endian, of one
        channel at ``sample_rate``.
    sample_rate : int
        In Hz. Other rates are resampled (with soxr), channels are averaged.

    Yields
    ------
    numpy.ndarray
        (time,), float32.

    Raises
    ------
    ValueError
        If it is no audio, or has no samples or some that are not finite.
    """
    rate, read = _pipe(sample_rate) if path == "-" else _file(path)
    resampler = None
    if rate != sample_rate:
        with extra("deploy"):
            import soxr
        resampler = soxr.ResampleStream(rate, sample_rate, 1)
    n = 0
    for block in read:
        n += len(block)
        block = block.mean(axis=1, dtype=np.float32)
        if not np.isfinite(block).all():
            raise ValueError("it has samples that are not finite numbers")
        yield block if resampler is None else resampler.resample_chunk(block)
    if n == 0:
        raise ValueError("it has no samples")
    if resampler is not None:
        rest = np.zeros(0, np.float32)
        yield resampler.resample_chunk(rest, last=True)


def _file(path):
    if not os.path.isfile(path):
        what = "is a folder" if os.path.isdir(path) else "does not exist"
        raise ValueError(f"it {what}")
    try:
        file = sf.SoundFile(path)
    except sf.LibsndfileError as error:
        raise ValueError(f"it is no audio: {error.error_string}") from error
    return file.samplerate, _read(file)


def _read(file):
    with file:
        size = round(BLOCK_S * file.samplerate)
        while True:
            try:
                block = file.read(size, dtype="float32", always_2d=True)
            except sf.LibsndfileError as error:
                raise ValueError(
                    f"it is damaged behind {file.tell() / file.samplerate:.1f} "
                    f"s: {error.error_string}"
                ) from error
            if len(block) == 0:
                return
            yield block


def _pipe(sample_rate):
    source = sys.stdin.buffer
    if source.peek(4)[:4] != b"RIFF":
        return sample_rate, _samples(source.read, sample_rate, 1, 2)
    try:
        file = wave.open(source)
    except (wave.Error, EOFError) as error:
        raise ValueError(f"it is no WAV of integers: {error}") from error
    width, channels = file.getsampwidth(), file.getnchannels()
    if width not in (2, 4):
        raise ValueError(f"it has {8 * width} bits, a pipe must have 16 or 32")
    frame = width * channels

    def read(n_bytes):
        return file.readframes(n_bytes // frame)

    rate = file.getframerate()
    return rate, _samples(read, rate, channels, width)


def _samples(read, rate, channels, width):
    size = round(PIPE_S * rate) * channels * width
    while data := read(size):
        whole = len(data) - len(data) % (channels * width)
        numbers = np.frombuffer(data[:whole], f"<i{width}")
        block = numbers.reshape(-1, channels) / 2.0 ** (8 * width - 1)
        yield block.astype(np.float32)
