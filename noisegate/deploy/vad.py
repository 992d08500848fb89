"""The command ``noisegate vad``: when somebody speaks, while they do.

Authors
 * The noisegate developers, 2026
"""

import json
import os
import sys
from pathlib import Path

from noisegate.deploy.audio import blocks
from noisegate.deploy.runtime import Model

DEFAULT_MODEL = Path(__file__).with_name("vad.onnx")


class Segmenter:
    """Makes segments of scores, as they come.

    A segment begins with a frame whose score exceeds the threshold and ends
    where ``min_silence_s`` without one follow.

    Arguments
    ---------
    threshold : float
        Scores above it are speech.
    hop_s : float
        Time from frame to frame. Frames are centred at its multiples.
    min_speech_s : float
        Shorter segments are left out.
    min_silence_s : float
        Shorter pauses do not end a segment.

    Example
    -------
    >>> segmenter = Segmenter(0.0, 0.01, min_speech_s=0.02, min_silence_s=0.03)
    >>> segmenter.feed([-1, 1, 1, -1, 1, -1, -1, -1, 1])
    [(0.005, 0.045)]
    >>> segmenter.finish()  # a single frame is too short
    []
    """

    def __init__(self, threshold, hop_s, min_speech_s=0.1, min_silence_s=0.3):
        self.threshold, self.hop_s = threshold, hop_s
        self.min_speech_s = min_speech_s
        self.pause = max(1, round(min_silence_s / hop_s))
        self.n = 0  # frames seen
        self.first = self.last = None  # frames of the segment that is open

    def feed(self, scores):
        """Takes scores of frames in and returns the segments (list of
        tuple of float, start and end in s) that they end."""
        ended = []
        for score in scores:
            if score > self.threshold:
                if self.first is None:
                    self.first = self.n
                self.last = self.n
            self.n += 1
            if self.first is not None and self.n - self.last > self.pause:
                ended += self.finish()
        return ended

    def finish(self):
        """Ends the open segment; returns as `feed` does."""
        if self.first is None:
            return []
        start = max(0.0, (self.first - 0.5) * self.hop_s)
        end = (self.last + 0.5) * self.hop_s
        self.first = None
        if end - start < self.min_speech_s - 1e-9:
            return []
        return [(round(start, 4), round(end, 4))]


def segments(path, model, **options):
    """Yields the segments of speech in a file as soon as they have ended.

    Arguments
    ---------
    path : str
        See `noisegate.deploy.audio.blocks`.
    model : Model
        A detector with a score per frame.
    **options
        Of `Segmenter`; the threshold is the model's if it is None.

    Yields
    ------
    tuple of float
        Start and end, in s.
    """
    facts = model.facts
    if options.get("threshold") is None:
        options["threshold"] = facts["threshold"]
    segmenter = Segmenter(hop_s=facts["hop"] / facts["sample_rate"], **options)
    stream, length_s = model.stream(), 0.0
    for block in blocks(path, facts["sample_rate"]):
        length_s += len(block) / facts["sample_rate"]
        yield from segmenter.feed(stream.feed(block).reshape(-1))
    for start, end in [
        *segmenter.feed(stream.finish().reshape(-1)),
        *segmenter.finish(),
    ]:
        yield start, min(end, round(length_s, 4))


def _text(name, number, start, end):
    return f"{name}\t{start:.3f}\t{end:.3f}"


def _json(name, number, start, end):
    return json.dumps({"file": name, "start_s": start, "end_s": end})


def _rttm(name, number, start, end):
    stem = Path(name).stem.replace(" ", "_")
    return (
        f"SPEAKER {stem} 1 {start:.3f} {end - start:.3f} <NA> <NA> speech "
        "<NA> <NA>"
    )


def _audacity(name, number, start, end):
    return f"{start:.6f}\t{end:.6f}\tspeech"


def _srt(name, number, start, end):
    def time(seconds):
        ms = round(1000 * seconds)
        hours, ms = divmod(ms, 3600000)
        minutes, ms = divmod(ms, 60000)
        return f"{hours:02}:{minutes:02}:{ms // 1000:02},{ms % 1000:03}"

    return f"{number}\n{time(start)} --> {time(end)}\nspeech\n"


# Lines of: name of the file, number of the segment, start and end in s
FORMATS = {
    "text": _text,
    "json": _json,
    "rttm": _rttm,
    "audacity": _audacity,
    "srt": _srt,
}
OF_ONE_FILE = ("audacity", "srt")  # they do not name it


def each_file(files, lines):
    """Prints what a function finds in files; names those it cannot read.

    Arguments
    ---------
    files : list of str
        Their paths.
    lines : callable
        Called with a path, yields lines; raises ValueError if it is no audio.

    Returns
    -------
    int
        0, or 2 if a file could not be read.
    """
    status = 0
    for file in files:
        try:
            for line in lines(file):
                print(line, flush=True)
        except ValueError as error:
            print(f"noisegate: {file}: {error}", file=sys.stderr)
            status = 2
        except BrokenPipeError:  # nobody reads on
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            break
    return status


def run(files, model=None, form="text", **options):
    """Prints the segments of files; those that cannot be read are named.

    Arguments
    ---------
    files : list of str
        Audio files, "-" for the standard input.
    model : str
        What ``noisegate export`` wrote; the one that comes with noisegate if
        None.
    form : str
        One of `FORMATS`.
    **options
        Of `Segmenter`.

    Returns
    -------
    int
        0, or 2 if a file could not be read.

    Raises
    ------
    ValueError
        If the model is no detector, or the format cannot hold several files.
    """
    if form in OF_ONE_FILE and len(files) > 1:
        raise ValueError(f"--format={form} does not name files: give one file")
    path = DEFAULT_MODEL if model is None else model
    model = Model(path)
    if "threshold" not in model.facts and options.get("threshold") is None:
        raise ValueError(f"{path} says no threshold: give one")

    def lines(file):
        found = enumerate(segments(file, model, **options), 1)
        for number, (start, end) in found:
            yield FORMATS[form](file, number, start, end)

    return each_file(files, lines)
