"""Items of a manifest: pieces of speech, each with noise at a drawn SNR.

Authors
 * The noisegate developers, 2026
"""

import math

import numpy as np
from speechbrain.utils.logger import get_logger
from vad_data import (
    FRAME_MS,
    SNR_RANGES,
    draw_noise_start,
    draw_snr,
    item_generator,
    uniform_snr,
)

from noisegate.evaluation.files import escaped

logger = get_logger(__name__)

# A last piece shorter than this is dropped.
MIN_PIECE_S = 0.1


def make_items(split, utterances, noises, segment_s, mixes_per_segment, seed):
    noises = [noise for noise in noises if noise["split"] == split]
    items, n_dropped = {}, 0
    for utterance in utterances:
        if utterance["split"] != split:
            continue
        for k, piece in enumerate(_cut(utterance, segment_s)):
            start_s, stop_s = piece["speech_start_s"], piece["speech_stop_s"]
            if not utterance["mix"]:
                # Nothing to fill a short piece with.
                if stop_s - start_s < segment_s - FRAME_MS / 1000:
                    n_dropped += 1
                    continue
                mixes = [("all", {**_NO_NOISE})]
            else:
                mixes = _draw_mixes(
                    f"{utterance['id']}_{k:03d}",
                    split,
                    noises,
                    segment_s,
                    mixes_per_segment,
                    seed,
                )
            for name, mix in mixes:
                item_id = f"{utterance['id']}_{k:03d}_{name}"
                if item_id in items:
                    raise ValueError(f"item id {item_id!r} occurs twice")
                items[item_id] = {**piece, **mix}
    if n_dropped:
        logger.info("%s: %d short last pieces dropped", split, n_dropped)
    return items


_NO_NOISE = {
    "noise_wav": None,
    "noise_start_s": None,
    "noise_span_s": None,
    "snr_db": None,
    "snr_range": "all",
}


def _cut(utterance, segment_s):
    """Consecutive pieces of an utterance, without the noise."""
    duration_s = utterance["duration_s"]
    channel = {}
    if utterance["channel"] is not None:
        channel["channel"] = utterance["channel"]
    n_pieces = max(1, math.ceil((duration_s - MIN_PIECE_S) / segment_s))
    for k in range(n_pieces):
        start_s = k * segment_s
        stop_s = min(start_s + segment_s, duration_s)
        yield {
            "speech_wav": "{speech_root}/" + escaped(utterance["wav"]),
            "speech_start_s": round(start_s, 4),
            "speech_stop_s": round(stop_s, 4),
            "speech_level_db": utterance["level_db"],
            "speech": [
                [
                    round(max(a - start_s, 0.0), 4),
                    round(min(b, stop_s) - start_s, 4),
                ]
                for a, b in utterance["speech"]
                if a < stop_s and b > start_s
            ],
            "duration": segment_s,
            "speaker": utterance["speaker"],
            **channel,
        }


def _draw_mixes(name, split, noises, segment_s, mixes_per_segment, seed):
    """Noise, offset and ratio of each item of a piece."""
    if split == "train":
        plan = [(f"mix{i}", None) for i in range(mixes_per_segment)]
    else:
        plan = [(f"snr{i}", limits) for i, limits in enumerate(SNR_RANGES)]
    for tag, limits in plan:
        generator = item_generator(seed, split, name, tag)
        noise = noises[generator.integers(len(noises))]
        if limits is None:
            snr_range, snr_db = draw_snr(generator)
        else:
            snr_range, low, high = limits
            snr_db = uniform_snr(generator, low, high)
        yield (
            tag,
            {
                "noise_wav": "{noise_root}/" + escaped(noise["wav"]),
                "noise_start_s": _draw_start(generator, noise, segment_s),
                "noise_span_s": noise["span_s"],
                "snr_db": snr_db,
                "snr_range": snr_range,
            },
        )


def _draw_start(generator, noise, segment_s):
    """A beginning such that the excerpt is not silent."""
    start_s = draw_noise_start(generator, noise["span_s"], segment_s)
    if start_s + segment_s > noise["span_s"][1]:
        return start_s  # wraps round, so it holds the whole span
    hops_per_s = 1000 / FRAME_MS
    first = int(start_s * hops_per_s)
    stop = int((start_s + segment_s) * hops_per_s)
    # 0.1 s of sound is enough to measure a level.
    if noise["active"][first:stop].sum() >= 0.1 * hops_per_s:
        return start_s
    # Around a frame with sound.
    found = np.flatnonzero(noise["active"])
    chosen_s = found[generator.integers(len(found))] / hops_per_s
    first_s, last_s = noise["span_s"][0], noise["span_s"][1] - segment_s
    return round(min(max(chosen_s - segment_s / 2, first_s), last_s), 4)
