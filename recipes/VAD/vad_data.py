"""Audio reading, mixing and labels of the VAD recipe.

An item of a manifest written by ``vad_prepare.py`` names a piece of a speech
file, a piece of a noise file and a signal-to-noise ratio. The functions below
turn it into a waveform and into one label per 10 ms frame.

Authors
 * The noisegate authors 2026
"""

import hashlib
import math
import os

import numpy as np
import torch
from speechbrain.utils.data_pipeline import provides, takes
from speechbrain.utils.logger import get_logger

from noisegate.evaluation.audio import audio_info, read_audio, read_samples

logger = get_logger(__name__)

# The four ranges of the signal-to-noise ratio: name, lowest, highest (dB).
SNR_RANGES = (
    ("<5", -5.0, 5.0),
    ("5-15", 5.0, 15.0),
    ("15-25", 15.0, 25.0),
    (">=25", 25.0, 35.0),
)
ITEM_KEYS = (
    "speech_wav",
    "speech_start_s",
    "speech_stop_s",
    "noise_wav",
    "noise_start_s",
    "noise_span_s",
    "snr_db",
    "snr_range",
    "speech",
    "speech_level_db",
    "duration",
    "speaker",
)
FRAME_MS = 10
# Below 1 LSB of 16 bits a frame is silent; so is one 40 dB below the loudest.
SILENCE_RMS = 2.0**-15
SILENCE_DB = 40.0
# With less labelled speech than this, its level says little.
MIN_LEVEL_S = 0.1
DEFAULT_LEVEL_DB = -25.0
MAX_PEAK = 0.99
# Of the loudest channel; below that the channels cancel each other.
MIN_SUM_SHARE = 0.1
MAX_FAILED_SHARE = 0.01


# --------------------------------------------------------------- reading


def check_channels(path):
    """Raises ValueError if the mean of the channels of a file is no picture of
    them: if they cancel, as those of opposite phase do.

    Arguments
    ---------
    path : str
        The file.
    """
    _, n_samples, n_channels = audio_info(path)
    if n_channels == 1:
        return
    signal = read_samples(path, 0, n_samples)
    loudest = max(_rms(channel) for channel in signal.T)
    if _rms(signal.mean(axis=1)) < MIN_SUM_SHARE * loudest:
        raise ValueError(
            f"audio file {path} has channels that cancel in their mean: "
            "choose one (channel: 0)"
        )


# --------------------------------------------------------- levels, mixing


def active_frames(signal, sample_rate):
    """Marks the frames of 10 ms that are not silent.

    A frame is silent if its RMS value is at most 1 LSB of 16 bits or more than
    40 dB below that of the loudest frame.

    Arguments
    ---------
    signal : numpy.ndarray (time,)
        A signal.
    sample_rate : int
        In Hz.

    Returns
    -------
    active : numpy.ndarray (frames,)
        bool; the last frame may be shorter.

    Example
    -------
    >>> signal = np.concatenate([np.zeros(320), np.ones(160)])
    >>> active_frames(signal, 16000)
    array([False, False,  True])
    """
    length = sample_rate * FRAME_MS // 1000
    n_frames = math.ceil(len(signal) / length)
    padded = np.zeros(n_frames * length)
    if len(signal):  # an offset is no sound
        padded[: len(signal)] = signal - np.mean(signal)
    rms = np.sqrt(np.mean(padded.reshape(n_frames, length) ** 2, axis=1))
    floor = max(SILENCE_RMS, rms.max(initial=0.0) * 10 ** (-SILENCE_DB / 20))
    return rms > floor


def active_rms(signal, sample_rate):
    """RMS value over the samples in non-silent frames, 0 if there are none.

    Arguments
    ---------
    signal : numpy.ndarray (time,)
        A signal.
    sample_rate : int
        In Hz.

    Returns
    -------
    rms : float
    """
    active = active_frames(signal, sample_rate)
    mask = np.repeat(active, sample_rate * FRAME_MS // 1000)[: len(signal)]
    return _rms(signal[mask])


def speech_rms(speech, segments, sample_rate):
    """RMS value over labelled speech, 0 if less than 0.1 s is labelled.

    Arguments
    ---------
    speech : numpy.ndarray (time,)
        A clean signal.
    segments : list of [start_s, stop_s]
        Where it holds speech.
    sample_rate : int
        In Hz.

    Returns
    -------
    rms : float
    """
    mask = np.zeros(len(speech), dtype=bool)
    for start_s, stop_s in segments:
        mask[round(start_s * sample_rate) : round(stop_s * sample_rate)] = True
    if mask.sum() < MIN_LEVEL_S * sample_rate:
        return 0.0
    return _rms(speech[mask])


def _rms(signal):
    if len(signal) == 0:
        return 0.0
    return float(np.std(signal, dtype=np.float64))  # an offset is no sound


def mix_at_snr(
    speech,
    noise,
    segments,
    snr_db,
    sample_rate=16000,
    speech_level_db=DEFAULT_LEVEL_DB,
):
    """Adds noise to speech at a signal-to-noise ratio.

    The ratio is 20 log10(S / N), where S is the RMS value of the labelled
    speech and N that of the noise in its non-silent frames. So neither pauses
    in the speech nor digital silence in the noise changes it. The sum is
    scaled down, if it needs to be, to a peak of 0.99.

    Arguments
    ---------
    speech : numpy.ndarray (time,)
        Clean speech; zeros where there is none.
    noise : numpy.ndarray (any,)
        Repeated or cropped to the length of the speech.
    segments : list of [start_s, stop_s]
        Where the speech is.
    snr_db : float
        The ratio.
    sample_rate : int
        In Hz.
    speech_level_db : float
        20 log10(S) to use if less than 0.1 s of speech is labelled, so that
        the noise in a piece that falls into a pause is as loud as elsewhere.

    Returns
    -------
    mixture : torch.Tensor (time,)
        float32.

    Example
    -------
    >>> speech, noise = np.full(1600, 0.1), np.tile([0.5, -0.5], 800)
    >>> mixture = mix_at_snr(speech, noise, [[0.0, 0.1]], 20.0)
    >>> [round(x, 3) for x in mixture[:2].tolist()]
    [0.11, 0.09]
    """
    speech = np.asarray(speech, dtype=np.float64)
    noise = np.asarray(noise, dtype=np.float64)
    if len(noise) == 0:
        raise ValueError("noise is empty, expected at least one sample")
    noise = np.resize(noise, len(speech))
    level = speech_rms(speech, segments, sample_rate)
    if level <= SILENCE_RMS:
        level = 10 ** (speech_level_db / 20)
    noise_level = active_rms(noise, sample_rate)
    if noise_level == 0.0:
        raise ValueError("noise is silent, expected a frame above 1 LSB")
    gain = level / noise_level * 10 ** (-snr_db / 20)
    mixture = speech + gain * noise
    peak = np.abs(mixture).max(initial=0.0)
    if peak > MAX_PEAK:
        mixture *= MAX_PEAK / peak
    return torch.from_numpy(mixture.astype(np.float32))


def frame_labels(segments, n_frames, hop_ms=FRAME_MS):
    """One speech label per frame; frame i is centred at i * hop_ms.

    Arguments
    ---------
    segments : list of [start_s, stop_s]
        Speech, relative to the beginning of the item.
    n_frames : int
        Number of labels.
    hop_ms : float
        Distance of the frames.

    Returns
    -------
    labels : torch.Tensor (frames,)
        float32: 1 if start_s <= centre < stop_s for a segment, else 0.

    Example
    -------
    >>> frame_labels([[0.01, 0.03]], n_frames=5)
    tensor([0., 1., 1., 0., 0.])
    """
    labels = torch.zeros(n_frames)
    for start_s, stop_s in segments:
        # 1e-6: 0.07 s is frame 7, whatever the rounding of 0.07 / 0.01 says.
        first = math.ceil(start_s * 1000 / hop_ms - 1e-6)
        last = math.ceil(stop_s * 1000 / hop_ms - 1e-6)
        labels[max(first, 0) : max(last, 0)] = 1.0
    return labels


# ------------------------------------------------------------------ items


def load_item(item, sample_rate=16000):
    """The waveform of one item of a manifest.

    Arguments
    ---------
    item : dict
        As in a manifest, with the roots replaced.
    sample_rate : int
        In Hz.

    Returns
    -------
    wav : torch.Tensor (time,)
        Exactly ``item["duration"]`` seconds, float32.
    """
    n_samples = round(item["duration"] * sample_rate)
    piece = read_audio(
        item["speech_wav"],
        item["speech_start_s"],
        item["speech_stop_s"],
        sample_rate,
        item.get("channel"),
    )[:n_samples]
    speech = np.zeros(n_samples, dtype=np.float32)
    speech[: len(piece)] = piece
    if item["noise_wav"] is None:
        return torch.from_numpy(speech)
    noise = _read_noise(item, n_samples, sample_rate)
    try:
        return mix_at_snr(
            speech,
            noise,
            item["speech"],
            item["snr_db"],
            sample_rate,
            item["speech_level_db"],
        )
    except ValueError as error:
        raise ValueError(f"{item['noise_wav']}: {error}") from error


def _read_noise(item, n_samples, sample_rate):
    """n_samples of noise from noise_start_s on, round and round its span."""
    first_s, last_s = item["noise_span_s"]
    start_s = item["noise_start_s"]
    stop_s = start_s + n_samples / sample_rate
    if stop_s <= last_s:
        return read_audio(item["noise_wav"], start_s, stop_s, sample_rate)
    span = read_audio(item["noise_wav"], first_s, last_s, sample_rate)
    span = np.roll(span, -round((start_s - first_s) * sample_rate))
    return np.resize(span, n_samples)


def item_generator(*parts):
    """A random generator that depends on the given values only.

    Arguments
    ---------
    *parts : str or int
        For example seed, epoch and item id.

    Returns
    -------
    generator : numpy.random.Generator

    Example
    -------
    >>> a, b = item_generator(1, "x"), item_generator(1, "x")
    >>> a.random() == b.random()
    True
    """
    digest = hashlib.sha256(os.fsencode("/".join(map(str, parts)))).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


def draw_snr(generator):
    """Draws one of the four ranges, then a ratio uniformly inside.

    Arguments
    ---------
    generator : numpy.random.Generator
        Source of the draw.

    Returns
    -------
    snr_range : str
        Name of the range.
    snr_db : float
        The ratio.
    """
    name, low, high = SNR_RANGES[generator.integers(len(SNR_RANGES))]
    return name, uniform_snr(generator, low, high)


def uniform_snr(generator, low, high):
    """Draws a ratio from [low, high).

    Arguments
    ---------
    generator : numpy.random.Generator
        Source of the draw.
    low : float
        In dB.
    high : float
        In dB.

    Returns
    -------
    snr_db : float
        Two decimals, rounded down so as not to reach ``high``.
    """
    return math.floor(100 * generator.uniform(low, high)) / 100


def draw_noise_start(generator, span_s, duration_s):
    """Draws where to begin in the span of a noise file.

    Without wrapping round its end if the span is long enough.

    Arguments
    ---------
    generator : numpy.random.Generator
        Source of the draw.
    span_s : list of float
        Beginning and end of the useful part of the file.
    duration_s : float
        Length of the noise that is needed.

    Returns
    -------
    start_s : float
    """
    first_s, last_s = span_s
    if last_s - first_s > duration_s:
        last_s -= duration_s
    return round(float(generator.uniform(first_s, last_s)), 4)


class ItemLoader:
    """Waveform and labels of an item by its id.

    With ``random_mix`` the noise file (among those of the same manifest, so of
    the same split), the offset in it and the ratio are drawn anew in each
    epoch, by a generator that depends on seed, epoch and item id only: a
    resumed training sees the same mixtures. Then a file that has become
    unreadable does not end the training. Its item is replaced by the next
    good one and a warning names the file; if that happens to more than 1 % of
    the items in an epoch, RuntimeError is raised.

    Arguments
    ---------
    data : dict
        Items by id, for example ``DynamicItemDataset.data``.
    sample_rate : int
        In Hz.
    n_frames : int
        Labels per item; None for 1 + duration / hop (a centred STFT).
    hop_ms : float
        Distance of the frames.
    random_mix : bool
        Whether to draw the mixture anew in each epoch.
    seed : int
        Seed of these draws.

    Example
    -------
    >>> path = getfixture("tmpdir").join("tone.wav").strpath
    >>> sf.write(path, 0.1 * np.ones(1600), 16000)
    >>> item = dict.fromkeys(ITEM_KEYS)
    >>> item.update(speech_wav=path, speech_start_s=0, speech_stop_s=0.1)
    >>> item.update(speech=[[0.0, 0.05]], duration=0.1)
    >>> wav, labels = ItemLoader({"a": item})("a")
    >>> wav.shape, labels.shape, int(labels.sum())
    (torch.Size([1600]), torch.Size([11]), 5)
    """

    def __init__(
        self,
        data,
        sample_rate=16000,
        n_frames=None,
        hop_ms=FRAME_MS,
        random_mix=False,
        seed=1234,
    ):
        self.data = data
        self.ids = list(data)
        self.position = {item_id: i for i, item_id in enumerate(self.ids)}
        self.sample_rate = sample_rate
        self.n_frames = n_frames
        self.hop_ms = hop_ms
        self.random_mix = random_mix
        self.seed = seed
        self.noises = sorted(
            {
                (item["noise_wav"], *item["noise_span_s"])
                for item in data.values()
                if item["noise_wav"] is not None
            }
        )
        if random_mix and not self.noises:
            raise ValueError(
                "random_mix is True, but no item of the manifest has noise"
            )
        # In shared memory, for the workers of a DataLoader.
        self.epoch = torch.zeros(1, dtype=torch.int64).share_memory_()
        self.failed = torch.zeros(len(data), dtype=torch.bool).share_memory_()

    def set_epoch(self, epoch):
        """Begins an epoch: other mixtures, no failed items yet.

        Arguments
        ---------
        epoch : int
            Its number.
        """
        self.epoch.fill_(epoch)
        self.failed.fill_(False)

    def draw(self, item_id):
        """The item as it is mixed in this epoch.

        Arguments
        ---------
        item_id : str
            Its id.

        Returns
        -------
        item : dict
            The item of the manifest, with random_mix another noise and ratio.
        """
        item = self.data[item_id]
        if not self.random_mix:
            return item
        generator = item_generator(self.seed, self.epoch.item(), item_id)
        noise_wav, *span_s = self.noises[generator.integers(len(self.noises))]
        snr_range, snr_db = draw_snr(generator)
        start_s = draw_noise_start(generator, span_s, item["duration"])
        return {
            **item,
            "noise_wav": noise_wav,
            "noise_span_s": span_s,
            "noise_start_s": start_s,
            "snr_db": snr_db,
            "snr_range": snr_range,
        }

    def load(self, item_id):
        """Waveform and labels of an item; errors are raised as they are.

        Arguments
        ---------
        item_id : str
            Its id.

        Returns
        -------
        wav : torch.Tensor (time,)
        labels : torch.Tensor (frames,)
        """
        item = self.draw(item_id)
        n_frames = self.n_frames
        if n_frames is None:
            n_frames = 1 + round(item["duration"] * 1000 / self.hop_ms)
        try:
            wav = load_item(item, self.sample_rate)
        except ValueError as error:
            # A drawn excerpt may fall into a pause of the noise: the one in
            # the manifest does not.
            if not self.random_mix or "noise is silent" not in str(error):
                raise
            wav = load_item(self.data[item_id], self.sample_rate)
        return wav, frame_labels(item["speech"], n_frames, self.hop_ms)

    def __call__(self, item_id):
        """Waveform and labels of an item, or of the one that replaces it.

        Arguments
        ---------
        item_id : str
            Its id.

        Returns
        -------
        wav : torch.Tensor (time,)
        labels : torch.Tensor (frames,)
        """
        if not self.random_mix:
            return self.load(item_id)
        position = self.position[item_id]
        for _ in range(len(self.ids)):
            try:
                return self.load(self.ids[position])
            except (OSError, ValueError) as error:
                self.failed[position] = True
                logger.warning(
                    "item %s is replaced by the next one: %s",
                    self.ids[position],
                    error,
                )
                n_failed = int(self.failed.sum())
                if n_failed > MAX_FAILED_SHARE * len(self.ids):
                    raise RuntimeError(
                        f"{n_failed} of {len(self.ids)} items failed in this "
                        f"epoch, more than {MAX_FAILED_SHARE:.0%}; the last "
                        f"one: {error}"
                    ) from error
                position = (position + 1) % len(self.ids)
        raise RuntimeError("every item failed")

    def pipeline(self, wav_key="wav", labels_key="labels"):
        """The loader as a SpeechBrain dynamic item.

        Arguments
        ---------
        wav_key : str
            Key of the waveform.
        labels_key : str
            Key of the labels.

        Returns
        -------
        pipeline : speechbrain.utils.data_pipeline.DynamicItem
            Takes the id; for ``DynamicItemDataset.add_dynamic_item``.
        """

        @takes("id")
        @provides(wav_key, labels_key)
        def wav_and_labels(item_id):
            return self(item_id)

        return wav_and_labels
