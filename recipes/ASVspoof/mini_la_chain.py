"""What every file of Mini-LA passes through, whatever its class.

So nothing but the method of an attack tells spoofs from bona fide speech; see
``mini_la.py``.

Authors
 * The noisegate authors 2026
"""

import numpy as np
from scipy.ndimage import maximum_filter1d, uniform_filter1d
from scipy.signal import butter, fftconvolve, firwin2, sosfilt, welch
from vad_data import active_rms
from vad_segments import energy_segments, merge_segments

SAMPLE_RATE = 16000
HOP = 160
# Pauses are shortened to this.
PAUSE_S = 0.1
BAND_HZ = (70.0, 7200.0)
LEVEL_DB = -26.0
CREST_DB = 13.0
SNR_DB = (25.0, 35.0)
MAX_EQUALIZATION_DB = 25.0


def crossfade(pieces, n_samples):
    """Joins signals; each fades into the next.

    Arguments
    ---------
    pieces : list of numpy.ndarray (time,)
        None shorter than ``n_samples``.
    n_samples : int
        Length of the fades.

    Returns
    -------
    signal : numpy.ndarray (time,)

    Example
    -------
    >>> len(crossfade([np.ones(100), np.ones(100)], 20))
    180
    """
    ramp = (np.arange(n_samples) + 0.5) / n_samples
    joined = [pieces[0]]
    for piece in pieces[1:]:
        last = joined.pop()
        joined += [
            last[:-n_samples],
            last[-n_samples:] * (1 - ramp) + piece[:n_samples] * ramp,
            piece[n_samples:],
        ]
        if len(joined[-1]) < n_samples:
            joined = [np.concatenate(joined)]
    return np.concatenate(joined)


def speech_only(signal):
    """Leaves out silence at both ends and shortens pauses to 0.1 s.

    Arguments
    ---------
    signal : numpy.ndarray (time,)
        At 16 kHz.

    Returns
    -------
    signal : numpy.ndarray (time,)
        Empty if there is no speech.
    """
    margin_s = PAUSE_S / 2
    segments = [
        [max(start_s - margin_s, 0.0), stop_s + margin_s]
        for start_s, stop_s in energy_segments(signal, SAMPLE_RATE)
    ]
    if not segments:
        return np.zeros(0)
    pieces = [
        signal[round(start_s * SAMPLE_RATE) : round(stop_s * SAMPLE_RATE)]
        for start_s, stop_s in merge_segments(segments)
    ]
    return crossfade([np.asarray(p, dtype=float) for p in pieces], HOP // 2)


def band_levels_db(signal):
    """Long-term spectrum in 24 bands from 70 to 7200 Hz, relative to its mean.

    Arguments
    ---------
    signal : numpy.ndarray (time,)
        At 16 kHz.

    Returns
    -------
    levels_db : numpy.ndarray (bands,)
    """
    frequency, power = welch(signal, SAMPLE_RATE, nperseg=1024)
    edges = band_edges_hz()
    levels_db = [
        10
        * np.log10(np.mean(power[(frequency >= a) & (frequency < b)]) + 1e-14)
        for a, b in zip(edges[:-2], edges[2:])
    ]
    return np.array(levels_db) - np.mean(levels_db)


def band_edges_hz():
    """Edges of 24 half-overlapping bands, equally wide on the mel scale.

    Returns
    -------
    edges_hz : numpy.ndarray (26,)
    """
    low, high = (1127 * np.log1p(f / 700) for f in BAND_HZ)
    return 700 * np.expm1(np.linspace(low, high, 26) / 1127)


def finish(signal, levels_db, n_samples, generator):
    """What every file goes through, bona fide or spoofed.

    Arguments
    ---------
    signal : numpy.ndarray (time,)
        At 16 kHz.
    levels_db : numpy.ndarray (bands,)
        Long-term spectrum to reach, as `band_levels_db`.
    n_samples : int
        Length to cut to.
    generator : numpy.random.Generator
        Source of the place of the cut, the noise and its level.

    Returns
    -------
    signal : numpy.ndarray (time,)
        Active level -26 dB of full scale, noise 25 to 35 dB below it.
    """
    difference_db = levels_db - band_levels_db(signal)
    difference_db = np.clip(
        difference_db, -MAX_EQUALIZATION_DB, MAX_EQUALIZATION_DB
    )
    frequency = np.linspace(0, SAMPLE_RATE / 2, 257)
    gain_db = np.interp(frequency, band_edges_hz()[1:-1], difference_db)
    gain = 10 ** (gain_db / 20)
    gain[(frequency < BAND_HZ[0]) | (frequency > BAND_HZ[1])] = 0.0
    taps = firwin2(513, frequency, gain, fs=SAMPLE_RATE)
    signal = fftconvolve(signal, taps, "same")
    high_pass = butter(4, BAND_HZ[0], "highpass", fs=SAMPLE_RATE, output="sos")
    signal = sosfilt(high_pass, signal)
    if len(signal) < n_samples:
        signal = np.resize(signal, n_samples)
    start = generator.integers(len(signal) - n_samples + 1)
    signal = signal[start : start + n_samples]
    signal = limit_peaks(signal)
    noise_level = 10 ** (-generator.uniform(*SNR_DB) / 20)
    signal += noise_level * generator.standard_normal(n_samples)
    return signal * 10 ** (LEVEL_DB / 20) / active_rms(signal, SAMPLE_RATE)


def limit_peaks(signal):
    """Turns the gain down around peaks, within 10 ms.

    Vocoders change the phases and with them the peaks.

    Arguments
    ---------
    signal : numpy.ndarray (time,)
        At 16 kHz.

    Returns
    -------
    signal : numpy.ndarray (time,)
        Active level about 1, peaks at most 13 dB above it.
    """
    # Limiting lowers the level, so the peaks are above it again.
    for _ in range(3):
        signal = signal / (active_rms(signal, SAMPLE_RATE) + 1e-9)
        envelope = maximum_filter1d(np.abs(signal), 2 * HOP + 1)
        gain = np.minimum(1.0, 10 ** (CREST_DB / 20) / (envelope + 1e-9))
        signal = signal * uniform_filter1d(gain, HOP)
    return signal


def until_long_enough(clips, n_samples):
    """Joins clips until they last long enough, from the first again at need."""
    clips = list(clips)
    joined, n_joined, i = [], 0, 0
    while n_joined < n_samples:
        joined.append(clips[i % len(clips)])
        n_joined += len(joined[-1]) - HOP
        i += 1
    return crossfade(joined, HOP)
