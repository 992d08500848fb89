#!/usr/bin/env python3
"""Mini-LA: a small anti-spoofing corpus from any folder of speech.

> python mini_la.py mini_la                                  # of the sample
> python mini_la.py mini_la --speech_folder=/path/to/speech
> python mini_la.py mini_la --check

It lets the recipe run without ASVspoof. The output has the tree and the
protocols of ASVspoof 2019 LA, so ``asvspoof_prepare.py`` reads it as such:

    ASVspoof2019_LA_{train,dev,eval}/flac/LA_{T,D,E}_1234567.flac
    ASVspoof2019_LA_cm_protocols/ASVspoof2019.LA.cm.{train.trn,...}.txt

The spoofs are made by the methods in `ATTACKS`: WORLD (Morise et al. 2016),
Griffin-Lim, linear prediction, phase vocoder, concatenation of waveforms and
espeak-ng. As in 2019 LA, six are in train and dev, others only in eval, and
two of the six come back in eval as A16 and A19. Every utterance is in the
corpus once as it is and once per attack of its set. No speaker is in two
sets.

So that nothing but the method tells the classes apart, every file, bona fide
ones included, passes through the same chain (`finish`): only speech with short
pauses is kept; the long-term spectrum is brought to the average of the
(target) speaker; band limits; a cut at random places to a length that is drawn
once per utterance, for all of its versions; active level; limited peaks; white
noise; 16 bits.
``--check`` measures what is left: it trains logistic regression on features
that should not know the class and reports its errors (0.5 AUC is chance).

Without ``--speech_folder`` the voices are the real ones of ``../VAD/sample``.

Needs ``pip install -e ".[asvspoof]"``: pyworld, and espeakng-loader for A07
and A08, which are left out without it.

Authors
 * The noisegate authors 2026
"""

import argparse
import ctypes
import io
import json
import logging
import sys
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import soundfile as sf
import torch
import torchaudio
from scipy.linalg import solve_toeplitz
from scipy.ndimage import convolve1d, maximum_filter1d, uniform_filter1d
from scipy.signal import (
    butter,
    fftconvolve,
    firwin2,
    lfilter,
    resample_poly,
    sosfilt,
    welch,
)
from scipy.spatial.distance import cdist
from speechbrain.utils.logger import get_logger

from noisegate.evaluation.audio import read_audio
from noisegate.evaluation.files import read_table, write_atomically
from noisegate.extras import extra

# Appended, so that the modules of this folder come first.
sys.path.append(str(Path(__file__).resolve().parents[1] / "VAD"))

from asvspoof_prepare import SETS, read_protocol  # noqa: E402
from vad_data import active_frames, active_rms, item_generator  # noqa: E402
from vad_layouts import AUDIO_SUFFIXES, SPEAKER_COLUMNS  # noqa: E402
from vad_segments import energy_segments, merge_segments  # noqa: E402

logger = get_logger(__name__)

SAMPLE_RATE = 16000
# Name of a set, letter in its file names, share of the utterances.
SUBSETS = {
    "train": ("T", 0.45),
    "dev": ("D", 0.20),
    "eval": ("E", 0.35),
}
SPLITS = {"train": "train", "valid": "dev", "test": "eval"}
SAMPLE = Path(__file__).resolve().parents[1] / "VAD" / "sample" / "speech"
# A file has a part of its utterance, so that its ends fall anywhere.
KEPT_SHARE = (0.7, 0.95)
MIN_FILE_S = 1.0
MAX_FILE_S = 4.0
# Pauses are shortened to this.
PAUSE_S = 0.1
BAND_HZ = (70.0, 7200.0)
LEVEL_DB = -26.0
CREST_DB = 13.0
SNR_DB = (25.0, 35.0)
MAX_EQUALIZATION_DB = 25.0
LPC_ORDER = 18
# Sharper resonances click when they move.
MAX_POLE = 0.985
HOP = 160
NOTE = "mini_la.json"
# Raised when the same arguments give other files than before.
VERSION = 2
MALE_VOICES = ("en-us+m1", "en-us+m2", "en-us+m3", "en-us+m5", "en-us+m7")
# Not f2, f3 and f5, whose breath is another one each time
FEMALE_VOICES = ("en-us+f1", "en-us+f4")
SENTENCES = (
    "Please make me a small coffee with a little milk.",
    "The old ferry leaves the harbour at a quarter past nine.",
    "Nobody knows who painted the door of the garden shed.",
    "Turn off the lamp in the kitchen and close the window.",
    "A cold wind blew dust across the empty market square.",
    "My brother keeps his bicycle under the wooden stairs.",
    "We should have asked the driver which road is open.",
    "She found three silver coins between the floor boards.",
    "Could you put a double espresso on the blue tray?",
    "The judge read every page of the report before lunch.",
    "His voice is my password, or at least it used to be.",
    "Five geese flew over the house as the fog was lifting.",
)


# ------------------------------------------------------------------ attacks
# An attack is a function of Material and numpy.random.Generator that returns a
# signal at 16 kHz, numpy.ndarray (time,), of any length.


@dataclass
class Material:
    """What an attack may use.

    Arguments
    ---------
    clip : numpy.ndarray (time,)
        The utterance that is spoofed.
    analysis : tuple of numpy.ndarray
        What `world_analysis` gives for it.
    rest : list of numpy.ndarray (time,)
        Other utterances of the speaker.
    foreign : callable
        Given a generator, draws speech of another speaker of the same set,
        (numpy.ndarray).
    f0_hz : float
        Median fundamental frequency of the speaker.
    phrases : dict
        Synthetic speech, (list of numpy.ndarray) by voice; empty without
        espeak-ng.
    n_samples : int
        Length of the file to make.
    """

    clip: np.ndarray
    analysis: tuple
    rest: list
    foreign: Callable
    f0_hz: float
    phrases: dict
    n_samples: int


def world_f0(signal):
    """Fundamental frequency by WORLD (DIO and StoneMask).

    Arguments
    ---------
    signal : numpy.ndarray (time,)
        Speech at 16 kHz.

    Returns
    -------
    f0_hz : numpy.ndarray (frames,)
        Every 5 ms; 0 where unvoiced.
    time_s : numpy.ndarray (frames,)
        Centres of the frames.
    """
    with extra("asvspoof"):
        import pyworld

    signal = np.ascontiguousarray(signal, dtype=np.float64)
    coarse, time_s = pyworld.dio(signal, SAMPLE_RATE)
    return pyworld.stonemask(signal, coarse, time_s, SAMPLE_RATE), time_s


def world_analysis(signal):
    """Analyses speech by WORLD, with frames of 5 ms.

    Arguments
    ---------
    signal : numpy.ndarray (time,)
        Speech at 16 kHz.

    Returns
    -------
    f0_hz : numpy.ndarray (frames,)
        0 where unvoiced.
    envelope : numpy.ndarray (frames, bins)
        Power spectrum.
    aperiodicity : numpy.ndarray (frames, bins)
        Share of noise, 0 to 1.
    """
    with extra("asvspoof"):
        import pyworld

    signal = np.ascontiguousarray(signal, dtype=np.float64)
    f0_hz, time_s = world_f0(signal)
    envelope = pyworld.cheaptrick(signal, f0_hz, time_s, SAMPLE_RATE)
    aperiodicity = pyworld.d4c(signal, f0_hz, time_s, SAMPLE_RATE)
    return f0_hz, envelope, aperiodicity


def _world_synthesis(f0_hz, envelope, aperiodicity):
    with extra("asvspoof"):
        import pyworld

    return pyworld.synthesize(
        f0_hz,
        np.ascontiguousarray(envelope),
        np.ascontiguousarray(aperiodicity),
        SAMPLE_RATE,
    )


def median_f0_hz(f0_hz):
    """Median over voiced frames, 150 Hz if there are none.

    Arguments
    ---------
    f0_hz : numpy.ndarray (frames,)
        0 where unvoiced.

    Returns
    -------
    median : float
    """
    voiced = f0_hz[f0_hz > 0]
    return float(np.median(voiced)) if len(voiced) else 150.0


def _world_copy(material, generator):
    """Copy-synthesis by WORLD: nothing is changed between the two halves."""
    return _world_synthesis(*material.analysis)


def _world_parametric(material, generator):
    """WORLD with the parameters of a statistical synthesizer.

    The envelope is coded to 24 coefficients and aperiodicity to its bands; F0
    and envelope are smoothed over 35 ms, as statistical models do.
    """
    with extra("asvspoof"):
        import pyworld

    f0_hz, envelope, aperiodicity = material.analysis
    fft_size = 2 * (envelope.shape[1] - 1)
    code = pyworld.code_spectral_envelope(envelope, SAMPLE_RATE, 24)
    bands = pyworld.code_aperiodicity(aperiodicity, SAMPLE_RATE)
    kernel = np.hanning(9)[1:-1] / np.hanning(9).sum()
    code = convolve1d(code, kernel, axis=0, mode="nearest")
    voiced = (f0_hz > 0).astype(float)
    f0_hz = np.convolve(f0_hz, kernel, "same") / np.maximum(
        np.convolve(voiced, kernel, "same"), 1e-3
    )
    return _world_synthesis(
        f0_hz * voiced,
        pyworld.decode_spectral_envelope(
            np.ascontiguousarray(code), SAMPLE_RATE, fft_size
        ),
        pyworld.decode_aperiodicity(bands, SAMPLE_RATE, fft_size),
    )


def _convert_by_world(signal, target_f0_hz):
    """Brings median F0 and formants of a signal to those of a voice."""
    f0_hz, envelope, aperiodicity = world_analysis(signal)
    ratio = target_f0_hz / median_f0_hz(f0_hz)
    scale = _formant_scale(ratio)
    bins = np.arange(envelope.shape[1])
    envelope = np.stack(
        [np.exp(np.interp(bins / scale, bins, row)) for row in np.log(envelope)]
    )
    return _world_synthesis(f0_hz * ratio, envelope, aperiodicity)


def _formant_scale(f0_ratio):
    # Between voices, formants differ by about the cube root of what F0 does.
    return float(np.clip(f0_ratio ** (1 / 3), 0.85, 1.18))


def _world_conversion(material, generator):
    """Voice conversion by WORLD from another speaker: F0 and formants."""
    return _convert_by_world(material.foreign(generator), material.f0_hz)


def _to_signal(magnitude, n_fft, hop, n_iterations, length, generator):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(generator.integers(2**31)))
        signal = torchaudio.functional.griffinlim(
            magnitude,
            torch.hann_window(n_fft),
            n_fft=n_fft,
            hop_length=hop,
            win_length=n_fft,
            power=1.0,
            n_iter=n_iterations,
            momentum=0.99,
            length=length,
            rand_init=True,
        )
    return signal.double().numpy()


def _magnitude(signal, n_fft, hop):
    return torchaudio.functional.spectrogram(
        torch.from_numpy(np.asarray(signal, dtype=np.float32)),
        pad=0,
        window=torch.hann_window(n_fft),
        n_fft=n_fft,
        hop_length=hop,
        win_length=n_fft,
        power=1.0,
        normalized=False,
    )


def _griffin_lim(material, generator):
    """Phases by Griffin-Lim from the magnitudes (64 ms every 16 ms)."""
    magnitude = _magnitude(material.clip, 1024, 256)
    length = len(material.clip)
    return _to_signal(magnitude, 1024, 256, 32, length, generator)


def _mel_griffin_lim(signal, n_fft, n_mels, n_iterations, generator):
    magnitude = _magnitude(signal, n_fft, n_fft // 4)
    n_bins = n_fft // 2 + 1
    to_mel = torchaudio.transforms.MelScale(n_mels, SAMPLE_RATE, n_stft=n_bins)
    to_linear = torchaudio.transforms.InverseMelScale(
        n_bins, n_mels, SAMPLE_RATE
    )
    magnitude = to_linear(to_mel(magnitude)).clamp(min=0)
    return _to_signal(
        magnitude, n_fft, n_fft // 4, n_iterations, len(signal), generator
    )


def _griffin_lim_mel(material, generator):
    """Griffin-Lim from 80 mel bands (64 ms every 16 ms)."""
    return _mel_griffin_lim(material.clip, 1024, 80, 32, generator)


def _griffin_lim_coarse(material, generator):
    """Griffin-Lim from 60 mel bands (32 ms every 8 ms), 10 iterations."""
    return _mel_griffin_lim(material.clip, 512, 60, 10, generator)


def _lpc(signal):
    """Prediction polynomials and gains, 30 ms every 10 ms."""
    length = 3 * HOP
    n_frames = -(-len(signal) // HOP)
    padded = np.pad(signal, (HOP, length + n_frames * HOP - len(signal)))
    frames = np.lib.stride_tricks.sliding_window_view(padded, length)[::HOP]
    spectrum = np.fft.rfft(frames[:n_frames] * np.hanning(length), 2 * length)
    power = np.fft.irfft(np.abs(spectrum) ** 2)[:, : LPC_ORDER + 1]
    power[:, 0] = power[:, 0] * 1.0001 + 1e-9
    polynomials = np.ones((n_frames, LPC_ORDER + 1))
    for polynomial, r in zip(polynomials, power):
        polynomial[1:] = -solve_toeplitz(r[:-1], r[1:])
    error = np.sum(polynomials * power, axis=1)
    return polynomials, np.sqrt(error / np.sum(np.hanning(length) ** 2))


def _filter_frames(signal, numerators, denominators):
    """Filters with coefficients that change every hop."""
    signal = np.pad(signal, (0, len(numerators) * HOP - len(signal)))
    output, state = np.empty_like(signal), np.zeros(LPC_ORDER)
    for i, (b, a) in enumerate(zip(numerators, denominators)):
        part = slice(i * HOP, (i + 1) * HOP)
        output[part], state = lfilter(b, a, signal[part], zi=state)
    return output


def _lpc_vocoder(material, generator):
    """Linear prediction of order 18, excited by pulses or noise."""
    signal = lfilter([1, -0.97], 1, material.clip)
    polynomials, gains = _lpc(signal)
    # WORLD's frames are half as far apart as those here.
    f0_hz = material.analysis[0][::2][: len(gains)]
    f0_hz = np.repeat(np.pad(f0_hz, (0, len(gains) - len(f0_hz))), HOP)
    pulses = np.diff(np.floor(np.cumsum(f0_hz) / SAMPLE_RATE), prepend=0)
    noise = generator.standard_normal(len(f0_hz))
    excitation = np.where(
        f0_hz > 0,
        pulses * np.sqrt(SAMPLE_RATE / np.maximum(f0_hz, 1)),
        noise,
    )
    numerators = np.zeros_like(polynomials)
    numerators[:, 0] = gains
    polynomials = polynomials * MAX_POLE ** np.arange(LPC_ORDER + 1)
    output = _filter_frames(excitation, numerators, polynomials)
    return lfilter([1], [1, -0.97], output)


def _lpc_conversion(material, generator):
    """Voice conversion from another speaker by filtering the waveform.

    The residual of linear prediction is kept; the poles are turned, which
    moves the formants.
    """
    foreign = material.foreign(generator)
    signal = lfilter([1, -0.97], 1, foreign)
    source_f0_hz = median_f0_hz(world_f0(foreign)[0])
    scale = _formant_scale(material.f0_hz / source_f0_hz)
    polynomials, _ = _lpc(signal)
    # The poles are the eigenvalues of the companion matrices.
    companions = np.tile(np.eye(LPC_ORDER, k=-1), (len(polynomials), 1, 1))
    companions[:, 0] = -polynomials[:, 1:]
    poles = np.linalg.eigvals(companions)
    angle = np.angle(poles)
    moved = np.clip(angle * scale, -0.98 * np.pi, 0.98 * np.pi)
    # Poles on the real axis stay, so that the rest stays paired.
    angle = np.where(np.abs(poles.imag) > 1e-9, moved, angle)
    poles = np.minimum(np.abs(poles), MAX_POLE) * np.exp(1j * angle)
    turned = np.ones((len(polynomials), 1))
    for pole in poles.T[:, :, None]:
        turned = np.pad(turned, ((0, 0), (0, 1))) - pole * np.pad(
            turned, ((0, 0), (1, 0))
        )
    turned = turned.real
    one = np.zeros_like(polynomials)
    one[:, 0] = 1.0
    residual = _filter_frames(signal, polynomials, one)
    output = _filter_frames(residual, one, turned)
    return lfilter([1], [1, -0.97], output)


def _phase_vocoder_conversion(material, generator):
    """Voice conversion from another speaker: pitch by the phase vocoder."""
    foreign = material.foreign(generator)
    source_f0_hz = median_f0_hz(world_f0(foreign)[0])
    ratio = float(np.clip(material.f0_hz / source_f0_hz, 0.7, 1.4))
    ratio = Fraction(ratio).limit_denominator(8)
    if ratio == 1:
        ratio = Fraction(9, 8) if generator.random() < 0.5 else Fraction(8, 9)
    n_fft, hop = 512, 128
    window = torch.hann_window(n_fft)
    spectrum = torch.stft(
        torch.from_numpy(foreign.astype(np.float32)),
        n_fft,
        hop,
        window=window,
        return_complex=True,
    )
    advance = torch.linspace(0, np.pi * hop, n_fft // 2 + 1)[:, None]
    stretched = torchaudio.functional.phase_vocoder(
        spectrum, float(1 / ratio), advance
    )
    signal = torch.istft(stretched, n_fft, hop, window=window).double().numpy()
    return resample_poly(signal, ratio.denominator, ratio.numerator)


def _unit_selection(material, generator):
    """Concatenation of pieces of 120 ms from other utterances of the speaker.

    The pieces are those whose cepstra follow the utterance best (Euclidean
    distance, and that of the joint to the frame before), joined within 10 ms
    where the waveforms agree best.
    """
    n_unit = 12
    database = np.concatenate(material.rest)
    wanted, stored = _cepstra(material.clip), _cepstra(database)
    view = np.lib.stride_tricks.sliding_window_view
    # One row per place in the database, all cepstra of its 120 ms.
    candidates, targets = (
        view(cepstra, n_unit, axis=0).reshape(-1, n_unit * wanted.shape[1])
        for cepstra in (stored[:-2], wanted)
    )
    distances = cdist(targets[::n_unit], candidates, "sqeuclidean") / n_unit
    margin, n_samples = HOP // 2, n_unit * HOP
    output = np.zeros(0)
    previous = None
    for cost in distances:
        if previous is not None:
            joint = stored[previous + n_unit]
            cost += 0.5 * np.sum((stored[: len(cost)] - joint) ** 2, axis=1)
        best = previous = int(np.argmin(cost))
        start = best * HOP
        if len(output):
            tail = output[-HOP:]
            area = database[max(start - margin, 0) : start + HOP + margin]
            lag = int(np.argmax(np.correlate(area, tail, "valid")))
            start = max(start - margin, 0) + lag
        unit = database[start : start + n_samples + HOP]
        output = crossfade([output, unit], HOP) if len(output) else unit
    return output


def _cepstra(signal):
    transform = torchaudio.transforms.MFCC(
        SAMPLE_RATE,
        n_mfcc=13,
        melkwargs={"n_fft": 512, "hop_length": HOP, "n_mels": 40},
    )
    cepstra = transform(torch.from_numpy(np.asarray(signal, dtype=np.float32)))
    cepstra = cepstra.double().numpy().T
    # The level counts less than the spectrum.
    cepstra[:, 0] *= 0.3
    return cepstra


def _draw_phrases(material, generator):
    voices = MALE_VOICES if material.f0_hz < 155 else FEMALE_VOICES
    phrases = material.phrases[voices[generator.integers(len(voices))]]
    order = generator.permutation(len(phrases))
    return _until_long_enough(
        (phrases[i] for i in order), 1.1 * material.n_samples
    )


def _text_to_speech(material, generator):
    """espeak-ng, by formants, in a voice of about the speaker's pitch."""
    return _draw_phrases(material, generator)


def _text_to_speech_conversion(material, generator):
    """espeak-ng, brought to the speaker's F0 and formants by WORLD."""
    signal = _draw_phrases(material, generator)
    return _convert_by_world(signal, material.f0_hz)


# Numbered like their kin in 2019 LA where there are any.
ATTACKS = {
    "A01": _griffin_lim,
    "A02": _world_copy,
    "A03": _griffin_lim_mel,
    "A04": _unit_selection,
    "A05": _world_conversion,
    "A06": _lpc_vocoder,
    "A07": _text_to_speech,
    "A08": _text_to_speech_conversion,
    "A09": _world_parametric,
    "A11": _griffin_lim_coarse,
    "A14": _phase_vocoder_conversion,
    "A16": _unit_selection,
    "A17": _lpc_conversion,
    "A19": _lpc_vocoder,
}
KNOWN_ATTACKS = ("A01", "A02", "A03", "A04", "A05", "A06")
TTS_ATTACKS = ("A07", "A08")


def has_text_to_speech():
    """Whether espeak-ng can be loaded.

    Returns
    -------
    found : bool
    """
    try:
        import espeakng_loader
    except ImportError:
        return False
    return Path(espeakng_loader.get_library_path()).is_file()


def speak(path):
    """Speaks all sentences in all voices by espeak-ng and stores them.

    The library keeps a state from one call to the next: only a fresh process
    that makes the same calls gets the same samples.

    Arguments
    ---------
    path : str
        File to write (``.npz``): for each voice and sentence an array at 16
        kHz.
    """
    import espeakng_loader

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    chunks = []

    @ctypes.CFUNCTYPE(
        ctypes.c_int,
        ctypes.POINTER(ctypes.c_short),
        ctypes.c_int,
        ctypes.c_void_p,
    )
    def keep(samples, n_samples, events):
        if samples and n_samples > 0:
            chunks.append(
                np.ctypeslib.as_array(samples, (n_samples,)).astype(float)
            )
        return 0

    synchronous_output, utf_8 = 2, 1
    data = espeakng_loader.get_data_path().encode()
    rate = library.espeak_Initialize(synchronous_output, 0, data, 0)
    if rate <= 0:
        raise RuntimeError(f"espeak-ng does not start with the data in {data}")
    library.espeak_SetSynthCallback(keep)
    spoken = {}
    for voice in MALE_VOICES + FEMALE_VOICES:
        if library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise RuntimeError(f"espeak-ng has no voice {voice}")
        for i, sentence in enumerate(SENTENCES):
            chunks.clear()
            text = sentence.encode()
            library.espeak_Synth(
                text, len(text) + 1, 0, 1, 0, utf_8, None, None
            )
            divisor = np.gcd(rate, SAMPLE_RATE)
            spoken[f"{voice}/{i:02d}"] = resample_poly(
                np.concatenate(chunks) / 2**15,
                SAMPLE_RATE // divisor,
                rate // divisor,
            ).astype(np.float32)
    np.savez(path, **spoken)


# ------------------------------------------------------- chain of every file


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


def _until_long_enough(clips, n_samples):
    """Joins clips until they last long enough, from the first again at need."""
    clips = list(clips)
    joined, n_joined, i = [], 0, 0
    while n_joined < n_samples:
        joined.append(clips[i % len(clips)])
        n_joined += len(joined[-1]) - HOP
        i += 1
    return crossfade(joined, HOP)


# ------------------------------------------------------------------- corpus
# An utterance is {"id", "speaker", "group", "path"}.


def list_utterances(speech_folder, speakers_csv=None):
    """Lists the speech in a folder with its speakers.

    Arguments
    ---------
    speech_folder : str
        Audio files of bona fide speech.
    speakers_csv : str
        Columns ``id`` (file name without suffix), ``speaker`` (or
        ``speaker_id``, ``speaker_cluster``), and if known ``split_group``
        (speakers to be kept in one set). Files not named are left out.
        Without it the speaker is the first folder below ``speech_folder``.

    Returns
    -------
    utterances : list of dict

    Raises
    ------
    FileNotFoundError
        If there is no speech.
    ValueError
        If the speakers are unknown.
    """
    root = Path(speech_folder)
    paths = sorted(
        path
        for path in root.rglob("*")
        if path.suffix.lower() in AUDIO_SUFFIXES and path.is_file()
    )
    if not paths:
        raise FileNotFoundError(
            f"speech_folder {root} has no audio file ({AUDIO_SUFFIXES})"
        )
    rows = {}
    if speakers_csv is not None:
        for row in read_table(speakers_csv, ["id"]):
            found = [row[name] for name in SPEAKER_COLUMNS if row.get(name)]
            if not found:
                raise ValueError(
                    f"{speakers_csv} has the columns {list(row)}, expected "
                    f"id and one of {SPEAKER_COLUMNS}"
                )
            group = row.get("split_group") or found[0]
            rows[row["id"]] = (found[0], group)
    utterances = []
    for path in paths:
        relative = path.relative_to(root)
        if speakers_csv is not None:
            if path.stem not in rows:
                continue
            speaker, group = rows[path.stem]
        else:
            if len(relative.parts) < 2:
                raise ValueError(
                    f"{path} is in no folder of a speaker: expected "
                    "speech_folder/speaker/file, or speakers_csv"
                )
            speaker = group = relative.parts[0]
        utterances.append(
            {
                "id": relative.with_suffix("").as_posix(),
                "speaker": speaker,
                "group": group,
                "path": str(path),
            }
        )
    return utterances


def split_speakers(utterances, seed):
    """Deals the speakers to train, dev and eval.

    Arguments
    ---------
    utterances : list of dict
        With ``speaker`` and ``group``; a group is in one set.
    seed : int
        Of the order in which they are dealt.

    Returns
    -------
    subsets : dict
        For each set the list of its speakers; about 45, 20 and 35 % of the
        utterances.

    Raises
    ------
    ValueError
        If a set would have less than two speakers.
    """
    speakers, sizes = defaultdict(set), defaultdict(int)
    for utterance in utterances:
        speakers[utterance["group"]].add(utterance["speaker"])
        sizes[utterance["group"]] += 1
    groups = sorted(speakers)
    item_generator(seed, "split").shuffle(groups)
    # Large groups first: the small ones then even out the shares.
    groups.sort(key=lambda group: -sizes[group])
    counts = dict.fromkeys(SUBSETS, 0)
    subsets = {name: [] for name in SUBSETS}
    for group in groups:
        name = max(
            SUBSETS,
            key=lambda n: (
                len(subsets[n]) < 2,
                SUBSETS[n][1] * len(utterances) - counts[n],
            ),
        )
        subsets[name] += sorted(speakers[group])
        counts[name] += sizes[group]
    for name, found in subsets.items():
        if len(found) < 2:
            raise ValueError(
                f"{len(speakers)} groups of speakers leave {len(found)} for "
                f"{name}: expected two speakers in each set"
            )
    return subsets


def load_clip(utterance):
    """The speech of an utterance without silence, see `speech_only`.

    Arguments
    ---------
    utterance : dict
        From `list_utterances`.

    Returns
    -------
    clip : numpy.ndarray (time,)
    """
    return speech_only(read_audio(utterance["path"], sample_rate=SAMPLE_RATE))


def make_mini_la(
    folder,
    speech_folder=None,
    speakers_csv=None,
    n_speakers=None,
    utterances_per_speaker=20,
    seed=2026,
    num_workers=2,
):
    """Writes the corpus.

    Files that are there already are kept, so an interrupted run goes on where
    it was. The protocols come last.

    Arguments
    ---------
    folder : str
        Where to write. If it holds a corpus made with the same arguments,
        nothing is done.
    speech_folder : str
        Bona fide speech, see `list_utterances`; None for the
        sample of recipes/VAD.
    speakers_csv : str
        See `list_utterances`.
    n_speakers : int
        Speakers to use, at least 6; None for all.
    utterances_per_speaker : int
        At most this many.
    seed : int
        Same seed, same corpus.
    num_workers : int
        Processes; 1 for none but this one.

    Raises
    ------
    ValueError
        If the folder holds a corpus made with other arguments, or there is
        too little speech.
    """
    folder = Path(folder)
    attacks = [
        a for a in ATTACKS if a not in TTS_ATTACKS or has_text_to_speech()
    ]
    arguments = {
        "version": VERSION,
        "speech": None if speech_folder is None else Path(speech_folder).name,
        "speakers_csv": speakers_csv and Path(speakers_csv).name,
        "n_speakers": n_speakers,
        "utterances_per_speaker": utterances_per_speaker,
        "attacks": attacks,
        "seed": seed,
    }
    note = folder / NOTE
    protocols = {
        name: folder / SETS["2019_la"][split][0][0]
        for split, name in SPLITS.items()
    }
    if note.is_file():
        before = json.loads(note.read_text(encoding="utf-8"))
        complete = all(path.is_file() for path in protocols.values())
        # A complete corpus may be used where espeak-ng is missing.
        asked = {
            **arguments,
            **({"attacks": before["attacks"]} if complete else {}),
        }
        if before != asked:
            raise ValueError(
                f"{folder} holds a corpus made with {before}, asked for {asked}"
            )
        if complete:
            logger.info("%s is complete, nothing is done", folder)
            return
    if speech_folder is None:
        speech_folder, speakers_csv = SAMPLE, SAMPLE / "utterances.csv"
    utterances = list_utterances(speech_folder, speakers_csv)
    tasks = _plan(utterances, arguments)
    write_atomically(note, json.dumps(arguments, indent=1))
    phrases_path = None
    context = get_context("spawn")
    if len(attacks) < len(ATTACKS):
        logger.warning(
            "%s are left out: espeak-ng is missing (pip install "
            "espeakng-loader)",
            " and ".join(TTS_ATTACKS),
        )
    else:
        phrases_path = str(folder / "phrases.npz")
        with ProcessPoolExecutor(1, context) as pool:
            pool.submit(speak, phrases_path).result()
    lines, reports = defaultdict(list), []
    arguments = [(task, str(folder), phrases_path, seed) for task in tasks]
    if num_workers > 1:
        # Each process computes on one core.
        with ProcessPoolExecutor(
            num_workers, context, torch.set_num_threads, (1,)
        ) as pool:
            futures = [pool.submit(_make_speaker, *a) for a in arguments]
            for future in as_completed(futures):
                reports.append(future.result())
                logger.info("%d of %d speakers", len(reports), len(tasks))
    else:
        n_threads = torch.get_num_threads()
        torch.set_num_threads(1)
        reports = [_make_speaker(*a) for a in arguments]
        torch.set_num_threads(n_threads)
    for subset, made, problems in reports:
        lines[subset] += made
        for problem in problems:
            logger.warning("left out: %s", problem)
    for name, path in protocols.items():
        if not lines[name]:
            raise ValueError(f"{name} has no utterance of {MIN_FILE_S} s")
        # File names are drawn, so their order says nothing.
        found = sorted(lines[name], key=lambda line: line.split()[1])
        write_atomically(path, "\n".join(found) + "\n")
        n_bona_fide = sum(line.endswith("bonafide") for line in found)
        logger.info(
            "%s: %d bona fide, %d spoofed",
            name,
            n_bona_fide,
            len(found) - n_bona_fide,
        )
    if phrases_path:
        Path(phrases_path).unlink()


def _plan(utterances, arguments):
    """One task per speaker, with the names of all files to make."""
    by_speaker = defaultdict(list)
    for utterance in utterances:
        by_speaker[utterance["speaker"]].append(utterance)
    generator = item_generator(arguments["seed"], "plan")
    speakers = sorted(s for s, found in by_speaker.items() if len(found) > 1)
    if len(by_speaker) > len(speakers):
        logger.warning(
            "%d speakers with a single utterance are left out",
            len(by_speaker) - len(speakers),
        )
    if arguments["n_speakers"] is not None:
        generator.shuffle(speakers)
        speakers = sorted(speakers[: arguments["n_speakers"]])
    limit = arguments["utterances_per_speaker"]
    for speaker in speakers:
        generator.shuffle(by_speaker[speaker])
        by_speaker[speaker] = by_speaker[speaker][:limit]
    used = [u for s in speakers for u in by_speaker[s]]
    subsets = split_speakers(used, arguments["seed"])
    numbers = generator.choice(9999, len(speakers), replace=False) + 1
    names = {s: f"LA_{n:04d}" for s, n in zip(speakers, numbers)}
    tasks = []
    for subset, members in subsets.items():
        known = [a for a in arguments["attacks"] if a in KNOWN_ATTACKS]
        unknown = [a for a in arguments["attacks"] if a not in KNOWN_ATTACKS]
        versions = ["-", *(unknown if subset == "eval" else known)]
        n_files = len(versions) * sum(len(by_speaker[s]) for s in members)
        numbers = iter(
            generator.choice(9000000, n_files, replace=False) + 1000000
        )
        letter = SUBSETS[subset][0]
        for speaker in members:
            others = [s for s in members if s != speaker]
            tasks.append(
                {
                    "subset": subset,
                    "name": names[speaker],
                    "utterances": by_speaker[speaker],
                    "others": [by_speaker[s] for s in others],
                    "files": [
                        {
                            version: f"LA_{letter}_{next(numbers)}"
                            for version in versions
                        }
                        for _ in by_speaker[speaker]
                    ],
                }
            )
    return tasks


def _make_speaker(task, folder, phrases_path, seed):
    """Makes all files of a speaker; gives set, protocol lines, problems."""
    clips, problems = [], []
    for utterance in task["utterances"]:
        try:
            clip = load_clip(utterance)
        except (OSError, ValueError) as error:
            clip = np.zeros(0)
            problems.append(str(error))
        clips.append(clip)
    shortest = MIN_FILE_S / KEPT_SHARE[0] * SAMPLE_RATE
    good = [i for i, clip in enumerate(clips) if len(clip) >= shortest]
    problems += [
        f"{u['id']} has {len(clip) / SAMPLE_RATE:.2f} s of speech"
        for u, clip in zip(task["utterances"], clips)
        if 0 < len(clip) < shortest
    ]
    if len(good) < 2:
        problems.append(f"speaker of {task['utterances'][0]['id']}")
        return task["subset"], [], problems
    levels_db = np.mean([band_levels_db(clips[i]) for i in good], axis=0)
    analyses = {i: world_analysis(clips[i]) for i in good}
    f0_hz = np.concatenate([f0_hz for f0_hz, _, _ in analyses.values()])
    phrases = defaultdict(list)
    if set(TTS_ATTACKS) & set(task["files"][0]):
        with np.load(phrases_path) as stored:
            for key in sorted(stored.files):
                clip = speech_only(stored[key])
                phrases[key.split("/")[0]].append(clip)
    lines = []
    audio = Path(folder) / f"ASVspoof2019_LA_{task['subset']}" / "flac"
    for i in good:
        draw = item_generator(seed, task["name"], i)
        share = draw.uniform(*KEPT_SHARE)
        n_samples = round(
            min(
                share * len(clips[i]),
                draw.uniform(0.8, 1.0) * MAX_FILE_S * SAMPLE_RATE,
            )
        )
        for version, name in task["files"][i].items():
            label = "bonafide" if version == "-" else "spoof"
            lines.append(f"{task['name']} {name} - {version} {label}")
            path = audio / f"{name}.flac"
            if path.is_file():
                continue
            generator = item_generator(seed, name)
            signal = clips[i]
            if version != "-":
                material = Material(
                    clip=clips[i],
                    analysis=analyses[i],
                    rest=[clips[j] for j in good if j != i],
                    foreign=partial(_foreign_speech, task, n_samples),
                    f0_hz=median_f0_hz(f0_hz),
                    phrases=phrases,
                    n_samples=n_samples,
                )
                signal = ATTACKS[version](material, generator)
            write_flac(path, finish(signal, levels_db, n_samples, generator))
    return task["subset"], lines, problems


def write_flac(path, signal):
    """Writes a file as a whole.

    Arguments
    ---------
    path : pathlib.Path
        The file.
    signal : numpy.ndarray (time,)
        What to write.
    """
    packed = io.BytesIO()
    sf.write(packed, signal, SAMPLE_RATE, "PCM_16", format="FLAC")
    write_atomically(path, packed.getvalue())


def _foreign_speech(task, n_samples, generator):
    """Speech of another speaker of the set, a little longer than asked."""
    for k in generator.permutation(len(task["others"])):
        utterances, clips = task["others"][k], []
        for i in generator.permutation(len(utterances)):
            try:
                clip = load_clip(utterances[i])
            except (OSError, ValueError):
                continue  # reported where it is the utterance itself
            if len(clip) > 2 * HOP:
                clips.append(clip)
            if sum(map(len, clips)) > 1.1 * n_samples:
                break
        if clips:
            return _until_long_enough(clips, 1.1 * n_samples)
    raise ValueError(f"{task['subset']} has speech of one speaker only")


# -------------------------------------------------------------------- check


def trivial_features(signal):
    """Features of a file that should not tell how the speech was made.

    Arguments
    ---------
    signal : numpy.ndarray (time,)
        16 bit samples of a file.

    Returns
    -------
    features : dict
        Numbers by name.
    """
    x = signal / 2**15
    frames = x[: len(x) // HOP * HOP].reshape(-1, HOP)
    level_db = 10 * np.log10(np.mean(frames**2, axis=1) + 1e-12)
    active = active_frames(x, SAMPLE_RATE)
    where = np.flatnonzero(active)
    frequency, power = welch(x, SAMPLE_RATE, nperseg=512)
    share = np.cumsum(power) / np.sum(power)
    rms_db = 10 * np.log10(np.mean(x**2))
    bits = signal.astype(np.int64)
    return {
        "duration_s": len(x) / SAMPLE_RATE,
        "active_level_db": 20 * np.log10(active_rms(x, SAMPLE_RATE)),
        "rms_db": rms_db,
        "peak_db": 20 * np.log10(np.abs(x).max()),
        "crest_db": 20 * np.log10(np.abs(x).max()) - rms_db,
        "floor_db": np.percentile(level_db, 2),
        "dc_lsb": bits.mean(),
        "leading_silence_s": where[0] * 0.01,
        "trailing_silence_s": (len(active) - 1 - where[-1]) * 0.01,
        "silence_share": 1 - active.mean(),
        "rolloff_50_hz": frequency[np.searchsorted(share, 0.50)],
        "rolloff_85_hz": frequency[np.searchsorted(share, 0.85)],
        "rolloff_95_hz": frequency[np.searchsorted(share, 0.95)],
        "above_7500_hz_db": 10 * np.log10(power[frequency > 7500].mean()),
        "below_60_hz_db": 10 * np.log10(power[frequency < 60].mean()),
        "odd_share": np.mean(bits & 1),
        "second_bit_share": np.mean((bits >> 1) & 1),
        "zero_share": np.mean(bits == 0),
        "repeated_share": np.mean(np.diff(bits) == 0),
        "clipped_share": np.mean(np.abs(bits) >= 32440),
    }


def check_shortcuts(folder, features=trivial_features):
    """How well features that should not know the class tell it.

    Logistic regression is trained on the bona fide and spoofed files of train
    and tested on dev and eval.

    Arguments
    ---------
    folder : str
        A tree in the layout of 2019 LA.
    features : callable
        Gives numbers by name, from the samples of a file.

    Returns
    -------
    report : dict
        For "dev" and "eval": ``eer`` in percent and ``auc`` (a random score
        has 50 and 0.5), ``attacks`` with the AUC of each, and ``features``
        with the AUC of each alone. 0.5 is chance on either side of it.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from noisegate.evaluation.metrics import eer, roc_auc

    data = {}
    for split, name in SPLITS.items():
        (protocol,), audio = SETS["2019_la"][split]
        trials, _, _ = read_protocol(Path(folder) / protocol)
        table = []
        for trial in trials:
            path = Path(folder) / audio / f"{trial['id']}.flac"
            signal, _ = sf.read(str(path), dtype="int16")
            table.append(features(signal))
        data[name] = (
            np.array([list(row.values()) for row in table]),
            np.array([trial["label"] == "bonafide" for trial in trials]),
            np.array([trial["attack"] for trial in trials]),
        )
    model = make_pipeline(
        StandardScaler(),
        LogisticRegression(class_weight="balanced", max_iter=1000),
    )
    model.fit(*data["train"][:2])
    report = {}
    for name in ("dev", "eval"):
        x, y, attacks = data[name]
        scores = model.decision_function(x)
        report[name] = {
            "eer": eer(scores, y),
            "auc": roc_auc(scores, y),
            "attacks": {
                str(attack): roc_auc(scores[chosen], y[chosen])
                for attack in sorted(set(attacks) - {"-"})
                for chosen in [y | (attacks == attack)]
            },
            "features": {
                key: roc_auc(column, y) for key, column in zip(table[0], x.T)
            },
        }
    return report


def main(arguments=None):
    """Reads the command line.

    Arguments
    ---------
    arguments : list of str
        In place of those of the process.
    """
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        epilog="The attacks: "
        + "; ".join(
            f"{name} {make.__doc__.splitlines()[0].rstrip('.')}"
            for name, make in ATTACKS.items()
        ),
    )
    parser.add_argument("folder", help="where the corpus is or will be")
    parser.add_argument("--speech_folder", help="speaker/file.{wav,flac,ogg}")
    parser.add_argument("--speakers_csv", help="columns id, speaker")
    parser.add_argument("--n_speakers", type=int)
    parser.add_argument("--utterances_per_speaker", type=int, default=20)
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--num_workers", type=int, default=2)
    parser.add_argument(
        "--check",
        action="store_true",
        help="report what trivial features tell about the class",
    )
    options = vars(parser.parse_args(arguments))
    check = options.pop("check")
    make_mini_la(**options)
    if not check:
        return
    for name, found in check_shortcuts(options["folder"]).items():
        print(f"{name}: EER {found['eer']:.1f} %, AUC {found['auc']:.3f}")
        for part in ("attacks", "features"):
            for key, auc in found[part].items():
                print(f"  {key:20s} AUC {auc:.3f}")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
