"""Segments of speech: merged, and found by their energy.

Authors
 * The noisegate developers, 2026
"""

import numpy as np
from scipy.signal import butter, sosfilt
from vad_data import FRAME_MS


def merge_segments(segments, gap_s=0.0):
    """Sorts segments and joins those that overlap or are close.

    Arguments
    ---------
    segments : list of [start_s, stop_s]
        In any order.
    gap_s : float
        Gaps up to this are closed.

    Returns
    -------
    merged : list of [start_s, stop_s]

    Example
    -------
    >>> merge_segments([[2.0, 3.0], [0.0, 1.0], [0.5, 1.5]])
    [[0.0, 1.5], [2.0, 3.0]]
    """
    merged = []
    for start_s, stop_s in sorted(segments):
        if merged and start_s - merged[-1][1] <= gap_s:
            merged[-1][1] = max(merged[-1][1], stop_s)
        else:
            merged.append([start_s, stop_s])
    return merged


def energy_segments(signal, sample_rate):
    """Labels the speech of a clean recording by its level.

    The level L of a frame (20 ms every 10 ms, above 80 Hz) is compared with
    the level of the speech, T, the 99th percentile of L, and that of the
    background, B, the 10th percentile. A frame is speech if L is above
    max(T - 30 dB, B + 6 dB), but at most T - 10 dB. Then gaps up to 150 ms
    (stop closures) are closed and speech below 80 ms is dropped. A recording
    with T below -70 dB has no speech. This works for clean speech only: any
    loud sound counts as speech.

    Arguments
    ---------
    signal : numpy.ndarray (time,)
        A clean recording.
    sample_rate : int
        In Hz.

    Returns
    -------
    segments : list of [start_s, stop_s]

    Example
    -------
    >>> signal = np.zeros(16000)
    >>> signal[4000:12000] = np.sin(np.arange(8000))
    >>> energy_segments(signal, 16000)
    [[0.25, 0.76]]
    """
    hop = sample_rate * FRAME_MS // 1000
    n_frames = len(signal) // hop
    if n_frames < 2:
        return []
    high_pass = butter(2, 80, "highpass", fs=sample_rate, output="sos")
    power = np.square(sosfilt(high_pass, signal))
    hop_power = power[: n_frames * hop].reshape(n_frames, hop).mean(axis=1)
    # Frame i is centred at i * hop: the mean of the hops on its two sides.
    edges = np.pad(hop_power, 1, mode="edge")
    level_db = 10 * np.log10(0.5 * (edges[1:] + edges[:-1]) + 1e-12)
    top_db = np.percentile(level_db, 99)
    background_db = np.percentile(level_db, 10)
    if top_db < -70:
        return []
    threshold_db = min(max(top_db - 30, background_db + 6), top_db - 10)
    speech = np.concatenate([[False], level_db > threshold_db, [False]])
    changes = np.flatnonzero(np.diff(speech.astype(np.int8)))
    # Labels say frame i is speech if its centre is in [start, stop).
    segments = [
        [float(first) * FRAME_MS / 1000, float(stop) * FRAME_MS / 1000]
        for first, stop in changes.reshape(-1, 2)
    ]
    merged = merge_segments(segments, gap_s=0.15)
    return [[a, b] for a, b in merged if b - a >= 0.08]
