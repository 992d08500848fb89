"""The command ``noisegate spot``: which keywords are said, and when.

Authors
 * The noisegate developers, 2026
"""

from collections import deque
from pathlib import Path

import numpy as np

from noisegate.deploy.audio import blocks
from noisegate.deploy.runtime import Model
from noisegate.deploy.vad import each_file

DEFAULT_MODEL = Path(__file__).with_name("keywords.onnx")
STEP_S = 0.1  # from one look to the next
LOOKS = 5  # whose probabilities are averaged
PAUSE_S = 1.0  # the same word again before that is the same one
NO_WORDS = ("silence", "unknown")


def keywords(path, model, threshold=0.6):
    """Yields the keywords in a file as soon as they are heard.

    The model looks at the last ``segment_s`` seconds ten times a second. A word
    is heard where the mean probability of five looks exceeds the threshold.

    Arguments
    ---------
    path : str
        See `noisegate.deploy.audio.blocks`.
    model : Model
        With ``labels``, for signals of ``segment_s``.
    threshold : float
        Between 0 and 1.

    Yields
    ------
    tuple
        Time in s (float, the middle of what was looked at), word (str) and
        probability (float).
    """
    facts = model.facts
    rate, words = facts["sample_rate"], facts["labels"]
    size, step = round(facts["segment_s"] * rate), round(STEP_S * rate)
    # Also words at the very beginning and end are once in the middle
    margin = np.zeros(size // 2, np.float32)
    waiting, looks = margin, deque(maxlen=LOOKS)
    place, last = -len(margin), {}

    def signal():
        yield from blocks(path, rate)
        yield margin

    for block in signal():
        waiting = np.concatenate([waiting, block])
        while len(waiting) >= size:
            scores = model.run(waiting[None, :size])[0].reshape(-1)
            odds = np.exp(scores - scores.max())
            looks.append(odds / odds.sum())
            mean = np.mean(looks, axis=0)
            best, time_s = int(mean.argmax()), (place + size / 2) / rate
            word = words[best]
            if mean[best] > threshold and len(looks) == LOOKS:
                new = time_s - last.get(word, -np.inf) > PAUSE_S
                last[word] = time_s
                if new and word not in NO_WORDS:
                    yield round(time_s, 3), word, round(float(mean[best]), 3)
            waiting, place = waiting[step:], place + step


def run(files, model=None, threshold=0.6):
    """Prints the keywords of files; those that cannot be read are named.

    Arguments
    ---------
    files : list of str
        Audio files, "-" for the standard input.
    model : str
        What ``noisegate export`` wrote; the one that comes with noisegate if
        None.
    threshold : float
        See `keywords`.

    Returns
    -------
    int
        0, or 2 if a file could not be read.

    Raises
    ------
    ValueError
        If the model has no labels.
    """
    path = DEFAULT_MODEL if model is None else model
    model = Model(path)
    missing = {"labels", "segment_s"} - model.facts.keys()
    if missing:
        raise ValueError(
            f"{path} is no model of keywords: no {sorted(missing)}"
        )

    def lines(file):
        for time_s, word, probability in keywords(file, model, threshold):
            yield f"{file}\t{time_s:.2f}\t{word}\t{probability:.2f}"

    return each_file(files, lines)
