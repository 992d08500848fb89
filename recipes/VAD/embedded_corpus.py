"""A small corpus of speech-like signals and noises, made by computation.

It lets the VAD recipe run and be tested without a download. The speech is made
by a source-filter model: glottal pulses with intonation, vibrato and jitter,
a cascade of formant resonators that move between vowel targets, fricatives as
filtered noise, and plosives as a closure and a burst. Every speaker has their
own fundamental frequency, length of the vocal tract, rate and voice quality.
It is no speech: use it to try a method, not to publish a number on speech.

The noises are partly tonal, harmonic or modulated at the rate of syllables,
so that neither level nor periodicity alone tells speech from noise.

Authors
 * The noisegate authors 2026
"""

import json
import os
from pathlib import Path

import numpy as np
import soundfile as sf
from scipy.signal import butter, lfilter, sosfilt
from speechbrain.utils.logger import get_logger
from vad_data import item_generator

from noisegate.evaluation.files import write_atomically

logger = get_logger(__name__)

SAMPLE_RATE = 16000
# Parameters of the vocal tract change every 5 ms.
BLOCK = 80
BLOCK_S = BLOCK / SAMPLE_RATE
# First three formants in Hz of an adult male (after Peterson and Barney 1952).
VOWELS = {
    "i": (270, 2290, 3010),
    "I": (390, 1990, 2550),
    "E": (530, 1840, 2480),
    "a": (730, 1090, 2440),
    "o": (570, 840, 2410),
    "U": (440, 1020, 2240),
    "u": (300, 870, 2240),
    "V": (640, 1190, 2390),
    "r": (490, 1350, 1690),
}
# Voiced consonants: formants and level relative to a vowel.
SONORANTS = {
    "m": (250, 1000, 2200, 0.35),
    "n": (250, 1500, 2500, 0.35),
    "l": (360, 1200, 2700, 0.5),
    "w": (300, 700, 2200, 0.45),
    "j": (280, 2200, 3000, 0.45),
}
# Fricatives: band in Hz, level, whether the voice goes on.
FRICATIVES = {
    "s": (4000, 7500, 0.30, False),
    "S": (2000, 5500, 0.35, False),
    "f": (1500, 7000, 0.10, False),
    "h": (600, 3500, 0.10, False),
    "z": (4000, 7500, 0.20, True),
    "v": (1500, 6500, 0.08, True),
}
# Plosives: band of the burst in Hz, whether voiced.
PLOSIVES = {
    "p": (500, 1800, False),
    "t": (3000, 7000, False),
    "k": (1400, 3200, False),
    "b": (400, 1500, True),
    "d": (2500, 5500, True),
    "g": (1300, 2800, True),
}
# Gaps shorter than this belong to the speech around them.
MAX_GAP_S = 0.15
NOISE_KINDS = (
    "pink",
    "brown",
    "hum",
    "clicks",
    "rain",
    "engine",
    "beeps",
    "chirps",
    "siren",
    "melody",
)
NOISE_S = 8.0
# Noise files per kind in each split.
NOISE_COUNTS = {"train": 4, "valid": 2, "test": 2}


def make_corpus(folder, n_speakers=20, utterances_per_speaker=6, seed=2026):
    """Writes the corpus: FLAC files, and lists of files and segments.

    In ``folder`` there will be ``speech/spk00/spk00_00.flac``,
    ``noise/pink_train0.flac``, ``utterances.csv`` (id, duration_s, speaker,
    split), ``segments.csv`` (id, start_s, end_s), ``noise.csv`` (id, class,
    split, duration_s) and ``corpus.json`` (the arguments). The labels are
    exact, since they come from the score of each utterance. A gap of less
    than 150 ms, such as a stop closure, is speech. The default is about 12 min
    of speech files and 11 min of noise.

    A complete corpus made with the same arguments is kept; with others
    ValueError is raised.

    Arguments
    ---------
    folder : str
        Where to write.
    n_speakers : int
        At least 3; a fifth each, at least one, is for validation and test.
    utterances_per_speaker : int
        Each lasts 4.5 to 10 s.
    seed : int
        Same seed, same corpus.

    Example
    -------
    >>> folder = getfixture("tmpdir").join("corpus").strpath
    >>> make_corpus(folder, n_speakers=3, utterances_per_speaker=1)
    >>> sorted(os.listdir(folder))[:3]
    ['corpus.json', 'noise', 'noise.csv']
    """
    if n_speakers < 3:
        raise ValueError(f"n_speakers is {n_speakers}, expected at least 3")
    if utterances_per_speaker < 1:
        raise ValueError(
            f"utterances_per_speaker is {utterances_per_speaker}, expected at "
            "least 1"
        )
    folder = Path(folder)
    arguments = {
        "n_speakers": n_speakers,
        "utterances_per_speaker": utterances_per_speaker,
        "seed": seed,
    }
    note = folder / "corpus.json"
    if note.is_file():
        before = json.loads(note.read_text(encoding="utf-8"))
        if before == arguments:
            return
        raise ValueError(
            f"{folder} holds a corpus made with {before}, asked for {arguments}"
        )
    n_held_out = max(1, n_speakers // 5)
    utterances = ["id,duration_s,speaker,split"]
    segments = ["id,start_s,end_s"]
    total_s = 0.0
    for s in range(n_speakers):
        split = "train"
        if s < 2 * n_held_out:
            split = "valid" if s < n_held_out else "test"
        name = f"spk{s:02d}"
        speaker = draw_speaker(item_generator(seed, name))
        for u in range(utterances_per_speaker):
            utterance_id = f"{name}_{u:02d}"
            signal, spans_s = make_utterance(
                speaker, item_generator(seed, utterance_id)
            )
            write_flac(
                folder / "speech" / name / f"{utterance_id}.flac", signal
            )
            duration_s = len(signal) / SAMPLE_RATE
            total_s += duration_s
            utterances.append(f"{utterance_id},{duration_s:.4f},{name},{split}")
            segments += [
                f"{utterance_id},{start_s:.4f},{stop_s:.4f}"
                for start_s, stop_s in spans_s
            ]
    noises = ["id,class,split,duration_s"]
    for kind in NOISE_KINDS:
        for split, count in NOISE_COUNTS.items():
            for i in range(count):
                noise_id = f"{kind}_{split}{i}"
                signal = make_noise(kind, item_generator(seed, noise_id))
                write_flac(folder / "noise" / f"{noise_id}.flac", signal)
                noises.append(f"{noise_id},{kind},{split},{NOISE_S}")
    for name, lines in (
        ("utterances.csv", utterances),
        ("segments.csv", segments),
        ("noise.csv", noises),
    ):
        write_atomically(folder / name, "\n".join(lines) + "\n")
    write_atomically(note, json.dumps(arguments))
    logger.info("%.1f min of speech-like files in %s", total_s / 60, folder)


def write_flac(path, signal):
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    sf.write(str(temporary), signal, SAMPLE_RATE, "PCM_16", format="FLAC")
    os.replace(temporary, path)


# ------------------------------------------------------------------- speech


def draw_speaker(generator):
    """Voice of one speaker; the longer the vocal tract, the lower the pitch."""
    tract = generator.uniform(0.95, 1.28)
    pitch = 85 * (tract / 0.95) ** 2.9
    return {
        "formant_scale": tract,
        "f0_hz": pitch * generator.uniform(0.88, 1.15),
        "f0_range": generator.uniform(0.08, 0.22),
        "vibrato": generator.uniform(0.0, 0.015),
        "vibrato_hz": generator.uniform(4.5, 6.5),
        "jitter": generator.uniform(0.004, 0.015),
        "breath": generator.uniform(0.01, 0.08),
        "open_quotient": generator.uniform(0.5, 0.8),
        "tilt": generator.uniform(0.0, 0.5),
        "rate": generator.uniform(0.8, 1.25),
        "upper_formants_hz": [
            generator.uniform(3300, 3700),
            generator.uniform(4300, 4900),
        ],
        "level": 10 ** (generator.uniform(-32, -18) / 20),
    }


def _draw_score(speaker, generator):
    """Phones (kind, name, duration_s) of an utterance, pauses included."""

    def length(low, high):
        return generator.uniform(low, high) / speaker["rate"]

    def pick(table):
        return list(table)[generator.integers(len(table))]

    score = [("pause", None, generator.uniform(0.2, 1.2))]
    duration_s = score[0][2]
    target_s = generator.uniform(4.2, 7.8)
    while duration_s < target_s:
        word = []
        for _ in range(generator.integers(1, 4)):
            onset = generator.random()
            if onset < 0.3:
                word.append(("closure", None, length(0.04, 0.09)))
                word.append(("plosive", pick(PLOSIVES), length(0.02, 0.05)))
            elif onset < 0.55:
                word.append(("fricative", pick(FRICATIVES), length(0.06, 0.14)))
            elif onset < 0.85:
                word.append(("sonorant", pick(SONORANTS), length(0.05, 0.09)))
            word.append(("vowel", pick(VOWELS), length(0.08, 0.22)))
            if generator.random() < 0.3:  # a diphthong
                word.append(("vowel", pick(VOWELS), length(0.06, 0.12)))
            coda = generator.random()
            if coda < 0.2:
                word.append(("sonorant", pick(SONORANTS), length(0.05, 0.09)))
            elif coda < 0.35:
                word.append(("fricative", pick(FRICATIVES), length(0.06, 0.14)))
        if generator.random() < 0.35:
            word.append(("pause", None, generator.uniform(0.2, 1.5)))
        score += word
        duration_s += sum(phone[2] for phone in word)
    if score[-1][0] == "pause":
        score.pop()
    score.append(("pause", None, generator.uniform(0.3, 1.0)))
    # Whole blocks, so that the labels are exact.
    return [(kind, name, max(1, round(d / BLOCK_S))) for kind, name, d in score]


def make_utterance(speaker, generator):
    """One utterance and where it holds speech.

    Arguments
    ---------
    speaker : dict
        A voice.
    generator : numpy.random.Generator
        Source of the draws.

    Returns
    -------
    signal : numpy.ndarray (time,)
    segments : list of [start_s, stop_s]
    """
    score = _draw_score(speaker, generator)
    n_blocks = sum(blocks for _, _, blocks in score)
    n_samples = n_blocks * BLOCK
    voicing = np.zeros(n_blocks)
    aspiration = np.zeros(n_blocks)
    formants = np.zeros((n_blocks, 3))
    frication = np.zeros(n_samples)
    spans = []
    at = 0
    previous = np.array(VOWELS["V"], dtype=float)
    for kind, name, blocks in score:
        stop = at + blocks
        part = slice(at, stop)
        target = previous
        if kind == "vowel":
            target = np.array(VOWELS[name], dtype=float)
            voicing[part] = generator.uniform(0.7, 1.0)
        elif kind == "sonorant":
            target = np.array(SONORANTS[name][:3], dtype=float)
            voicing[part] = SONORANTS[name][3]
        elif kind == "fricative":
            low, high, level, voiced = FRICATIVES[name]
            voicing[part] = 0.25 if voiced else 0.0
            _add_noise(frication, at, stop, low, high, level, generator)
        elif kind == "plosive":
            low, high, voiced = PLOSIVES[name]
            burst = min(stop, at + 3)
            _add_noise(frication, at, burst, low, high, 0.35, generator)
            aspiration[part] = 0.05 if voiced else 0.25
        formants[part] = target
        previous = target
        if kind != "pause":
            if spans and (at - spans[-1][1]) * BLOCK_S < MAX_GAP_S:
                spans[-1][1] = stop
            else:
                spans.append([at, stop])
        at = stop
    # A word that begins with a closure begins with its burst.
    spans = _without_leading_closures(score, spans)

    formants = _smooth(formants, 11) * speaker["formant_scale"]
    voicing = _smooth(voicing[:, None], 5)[:, 0]
    aspiration = _smooth(aspiration[:, None], 3)[:, 0]
    # Nothing outside the labels, in spite of the smoothing.
    inside = np.zeros(n_blocks)
    for first, stop in spans:
        inside[first:stop] = 1.0
    source = _glottal_source(speaker, n_samples, generator)
    source *= _per_sample(voicing * inside)
    breath = generator.standard_normal(n_samples)
    source += breath * _per_sample(
        (aspiration + speaker["breath"] * voicing) * inside
    )
    signal = _vocal_tract(source, formants, speaker["upper_formants_hz"])
    signal /= np.sqrt(np.mean(signal[_per_block(inside)] ** 2)) + 1e-9
    signal += frication * _per_sample(inside, smooth=False)
    signal *= speaker["level"] / np.sqrt(
        np.mean(signal[_per_block(inside)] ** 2)
    )
    # Formants ring for some ms after the last label: fade within 10 ms.
    signal *= _smooth(_per_sample(inside, smooth=False)[:, None], 161)[:, 0]
    room = sosfilt(
        butter(1, 800, fs=SAMPLE_RATE, output="sos"),
        generator.standard_normal(n_samples),
    )
    signal += 10 ** (generator.uniform(-78, -62) / 20) * room
    peak = np.abs(signal).max()
    if peak > 0.9:
        signal *= 0.9 / peak
    segments = [[a * BLOCK_S, b * BLOCK_S] for a, b in spans]
    return signal, segments


def _without_leading_closures(score, spans):
    starts, at = {}, 0
    for kind, _, blocks in score:
        starts[at] = blocks if kind == "closure" else 0
        at += blocks
    return [[first + starts[first], stop] for first, stop in spans]


def _add_noise(signal, first, stop, low, high, level, generator):
    """Adds filtered noise with soft edges between two blocks."""
    length = (stop - first) * BLOCK
    band = butter(2, [low, high], "bandpass", fs=SAMPLE_RATE, output="sos")
    noise = sosfilt(band, generator.standard_normal(length + 200))[200:]
    ramp = min(length // 3, 240)
    window = np.ones(length)
    window[:ramp] = np.linspace(0, 1, ramp)
    window[length - ramp :] = np.linspace(1, 0, ramp)
    rms = np.sqrt(np.mean(noise**2)) + 1e-9
    signal[first * BLOCK : stop * BLOCK] += level * window * noise / rms


def _smooth(tracks, width):
    kernel = np.hanning(width + 2)[1:-1]
    kernel /= kernel.sum()
    padded = np.pad(tracks, ((width // 2, width // 2), (0, 0)), mode="edge")
    return np.stack(
        [np.convolve(track, kernel, "valid") for track in padded.T], axis=1
    )


def _per_block(inside):
    return np.repeat(inside > 0, BLOCK)


def _per_sample(track, smooth=True):
    if not smooth:
        return np.repeat(track, BLOCK)
    n_samples = len(track) * BLOCK
    centres = np.arange(len(track)) * BLOCK + BLOCK / 2
    return np.interp(np.arange(n_samples), centres, track)


def _glottal_source(speaker, n_samples, generator):
    """Derivative of the glottal flow, that is, radiated at the lips."""
    time_s = np.arange(n_samples) / SAMPLE_RATE
    n_points = n_samples // 4000 + 3
    accents = np.cumsum(generator.normal(0, 0.5, n_points))
    accents -= accents.mean()
    accents = np.clip(accents, -1.5, 1.5) * speaker["f0_range"]
    melody = np.interp(
        np.arange(n_samples), np.arange(n_points) * 4000, accents
    )
    declination = 0.1 * (0.5 - time_s / time_s[-1])
    vibrato = speaker["vibrato"] * np.sin(
        2 * np.pi * speaker["vibrato_hz"] * time_s
    )
    jitter = generator.normal(0, speaker["jitter"], n_samples // 64 + 2)
    jitter = np.interp(
        np.arange(n_samples), np.arange(len(jitter)) * 64, jitter
    )
    f0_hz = speaker["f0_hz"] * np.exp(melody + declination + vibrato + jitter)
    cycles = np.cumsum(f0_hz) / SAMPLE_RATE
    number = cycles.astype(int)
    shimmer = 1 + generator.normal(0, 0.05, number[-1] + 1)
    phase = (cycles - number) / speaker["open_quotient"]
    # A parabola that opens up to p = 0.7, then a fall that jumps back at 1.
    opening = 6 * (phase / 0.7) * (1 - phase / 0.7)
    closing = -2 * (phase - 0.7) / 0.3**2
    pulse = np.where(
        phase < 0.7, opening / 0.7, np.where(phase < 1, closing, 0)
    )
    pulse = pulse * shimmer[number]
    tilt = speaker["tilt"]
    return lfilter([1 - tilt], [1, -tilt], pulse - pulse.mean())


def _vocal_tract(source, formants, upper_formants_hz):
    """Cascade of five resonators; the first three move every 5 ms."""
    n_blocks = len(formants)
    upper = np.tile(upper_formants_hz, (n_blocks, 1))
    frequency = np.concatenate([formants, upper], axis=1)
    frequency = np.minimum(frequency, 0.46 * SAMPLE_RATE)
    bandwidth = np.array([70.0, 100.0, 140.0, 220.0, 300.0])
    radius = np.exp(-np.pi * bandwidth / SAMPLE_RATE)
    cosine = np.cos(2 * np.pi * frequency / SAMPLE_RATE)
    sos = np.zeros((n_blocks, 5, 6))
    sos[:, :, 3] = 1.0
    sos[:, :, 4] = -2 * radius * cosine
    sos[:, :, 5] = radius**2
    sos[:, :, 0] = sos[:, :, 3:].sum(axis=2)  # gain 1 at 0 Hz
    output = np.empty(len(source))
    state = np.zeros((5, 2))
    for i in range(n_blocks):
        part = slice(i * BLOCK, (i + 1) * BLOCK)
        output[part], state = sosfilt(sos[i], source[part], zi=state)
    return output


# -------------------------------------------------------------------- noise


def make_noise(kind, generator):
    """Eight seconds of a noise.

    Arguments
    ---------
    kind : str
        One of `NOISE_KINDS`.
    generator : numpy.random.Generator
        Source of the draws; it decides on the instance of the kind.

    Returns
    -------
    signal : numpy.ndarray (time,)
        With a peak of 0.5.

    Example
    -------
    >>> make_noise("hum", np.random.default_rng(0)).shape
    (128000,)
    """
    if kind not in NOISE_KINDS:
        raise ValueError(f"kind is {kind!r}, expected one of {NOISE_KINDS}")
    n_samples = round(NOISE_S * SAMPLE_RATE)
    time_s = np.arange(n_samples) / SAMPLE_RATE
    signal = globals()[f"_noise_{kind}"](time_s, generator)
    # A faint floor: no instance is digitally silent between its events.
    signal = signal / np.abs(signal).max()
    signal += 10 ** (generator.uniform(-70, -45) / 20) * _coloured(
        n_samples, 1.0, generator
    )
    return 0.5 * signal / np.abs(signal).max()


def _coloured(n_samples, exponent, generator):
    """Noise whose power falls as 1 / f^exponent, with an RMS value of 1."""
    spectrum = np.fft.rfft(generator.standard_normal(n_samples))
    frequency = np.fft.rfftfreq(n_samples, 1 / SAMPLE_RATE)
    spectrum *= np.maximum(frequency, 30.0) ** (-exponent / 2)
    signal = np.fft.irfft(spectrum, n_samples)
    return signal / signal.std()


def _slow(time_s, generator, depth):
    """A gain that drifts between 1 - depth and 1 within about a second."""
    points = generator.uniform(1 - depth, 1, int(time_s[-1]) + 3)
    return np.interp(time_s, np.arange(len(points)), points)


def _noise_pink(time_s, generator):
    exponent = generator.uniform(0.6, 1.3)
    return _coloured(len(time_s), exponent, generator) * _slow(
        time_s, generator, generator.uniform(0, 0.6)
    )


def _noise_brown(time_s, generator):
    exponent = generator.uniform(1.7, 2.3)
    return _coloured(len(time_s), exponent, generator) * _slow(
        time_s, generator, generator.uniform(0.2, 0.9)
    )


def _noise_hum(time_s, generator):
    f0_hz = generator.choice([50.0, 60.0, 100.0, 120.0])
    f0_hz *= generator.uniform(0.99, 1.01)
    signal = 0.05 * _coloured(len(time_s), 1.0, generator)
    for k in range(1, generator.integers(6, 25)):
        gain = generator.uniform(0.1, 1) / k ** generator.uniform(0.3, 1.2)
        signal += gain * np.sin(
            2 * np.pi * (k * f0_hz * time_s + generator.random())
        )
    return signal * _slow(time_s, generator, 0.3)


def _events(time_s, generator, rate_hz, make):
    """Adds the signals that make() returns, at random times."""
    signal = np.zeros(len(time_s))
    at_s = generator.exponential(0.5 / rate_hz)
    while at_s < time_s[-1]:
        event = make()
        first = int(at_s * SAMPLE_RATE)
        event = event[: len(signal) - first]
        signal[first : first + len(event)] += event
        at_s += generator.exponential(1 / rate_hz) + 0.01
    return signal


def _noise_clicks(time_s, generator):
    def click():
        decay_s = generator.uniform(0.002, 0.03)
        t = np.arange(int(6 * decay_s * SAMPLE_RATE)) / SAMPLE_RATE
        tone = np.sin(2 * np.pi * generator.uniform(500, 5000) * t)
        burst = generator.standard_normal(len(t)) + tone
        return generator.uniform(0.2, 1) * burst * np.exp(-t / decay_s)

    return _events(time_s, generator, generator.uniform(2, 9), click)


def _noise_rain(time_s, generator):
    def drop():
        t = np.arange(int(0.02 * SAMPLE_RATE)) / SAMPLE_RATE
        tone = np.sin(2 * np.pi * generator.uniform(1000, 6000) * t)
        return generator.exponential(1.0) * tone * np.exp(-t / 0.003)

    drops = _events(time_s, generator, generator.uniform(40, 90), drop)
    band = butter(1, [500, 7000], "bandpass", fs=SAMPLE_RATE, output="sos")
    hiss = sosfilt(band, generator.standard_normal(len(time_s)))
    return drops + generator.uniform(0.2, 0.6) * hiss


def _noise_engine(time_s, generator):
    # Firing frequency drifts; the noise is modulated by it, and the whole by
    # a slow load of 1 to 5 Hz as syllables are.
    speed = generator.uniform(25, 90) * np.exp(
        0.3 * (_slow(time_s, generator, 1.0) - 0.5)
    )
    phase = 2 * np.pi * np.cumsum(speed) / SAMPLE_RATE
    tone = sum(
        np.sin(k * phase + generator.uniform(0, 6)) / k**0.7
        for k in range(1, 20)
    )
    noise = _coloured(len(time_s), 1.2, generator) * (1 + 0.8 * np.sin(phase))
    load_hz = generator.uniform(1, 5)
    load = 1 + generator.uniform(0, 0.8) * np.sin(2 * np.pi * load_hz * time_s)
    return (tone + noise) * load


def _noise_beeps(time_s, generator):
    f_hz = generator.uniform(400, 2500, generator.integers(1, 4))
    on_s = generator.uniform(0.08, 0.4)
    n_harmonics = generator.integers(1, 5)

    def beep():
        t = np.arange(int(on_s * SAMPLE_RATE)) / SAMPLE_RATE
        ramp = np.minimum(1, np.minimum(t, t[::-1]) / 0.005)
        f = generator.choice(f_hz)
        return ramp * sum(
            np.sin(2 * np.pi * k * f * t) / k
            for k in range(1, n_harmonics + 1)
            if k * f < 7500
        )

    return _events(time_s, generator, generator.uniform(0.8, 2.5), beep)


def _noise_chirps(time_s, generator):
    centre_hz = generator.uniform(1800, 4500)

    def chirp():
        t = np.arange(int(generator.uniform(0.04, 0.25) * SAMPLE_RATE))
        t = t / SAMPLE_RATE
        sweep = generator.uniform(-6000, 6000)
        wobble = generator.uniform(0, 300) * np.sin(2 * np.pi * 28 * t)
        f = np.clip(centre_hz + sweep * (t - t[-1] / 2) + wobble, 800, 7500)
        window = np.hanning(len(t))
        return window * np.sin(2 * np.pi * np.cumsum(f) / SAMPLE_RATE)

    return _events(time_s, generator, generator.uniform(2, 7), chirp)


def _noise_siren(time_s, generator):
    # A harmonic tone that glides as a voice does, through fixed resonances.
    base_hz = generator.uniform(150, 700)
    rate_hz = generator.uniform(0.3, 3)
    f = base_hz * 2 ** (0.5 * np.sin(2 * np.pi * rate_hz * time_s))
    phase = 2 * np.pi * np.cumsum(f) / SAMPLE_RATE
    tone = sum(
        np.sin(k * phase) / k for k in range(1, 12) if k * base_hz * 1.42 < 7800
    )
    return tone * _slow(time_s, generator, 0.5)


def _noise_melody(time_s, generator):
    # Plucked tones with decaying harmonics.
    root_hz = generator.uniform(110, 330)
    scale = np.array([0, 2, 4, 7, 9, 12, 14, 16])
    decay_s = generator.uniform(0.1, 0.5)

    def pluck():
        t = np.arange(int(3 * decay_s * SAMPLE_RATE)) / SAMPLE_RATE
        f = root_hz * 2 ** (generator.choice(scale) / 12)
        attack = np.minimum(1, t / 0.004)
        return attack * sum(
            generator.uniform(0.2, 1)
            / k
            * np.exp(-t * k**0.5 / decay_s)
            * np.sin(2 * np.pi * k * f * t)
            for k in range(1, 11)
            if k * f < 7500
        )

    return _events(time_s, generator, generator.uniform(1.5, 5), pluck)
