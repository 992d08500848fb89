"""The attacks of Mini-LA: how its spoofs are made.

An attack is a function of `Material` and numpy.random.Generator that returns a
signal at 16 kHz, numpy.ndarray (time,), of any length. `ATTACKS` names them.

Authors
 * The noisegate authors 2026
"""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
import torchaudio
from mini_la_chain import HOP, SAMPLE_RATE, crossfade, until_long_enough
from mini_la_speech import FEMALE_VOICES, MALE_VOICES
from scipy.linalg import solve_toeplitz
from scipy.ndimage import convolve1d
from scipy.signal import lfilter, resample_poly
from scipy.spatial.distance import cdist

from noisegate.extras import extra

LPC_ORDER = 18
# Sharper resonances click when they move.
MAX_POLE = 0.985


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
    return until_long_enough(
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
