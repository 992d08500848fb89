"""The command ``noisegate spoof``: is speech bona fide?

Authors
 * The noisegate developers, 2026
"""

import numpy as np

from noisegate.deploy.audio import blocks
from noisegate.deploy.runtime import Model
from noisegate.deploy.vad import each_file


def ratio(path, model):
    """Returns the log-likelihood ratio (float) of a file, in nats: above 0 it
    is more probably bona fide.

    Arguments
    ---------
    path : str
        See `noisegate.deploy.audio.blocks`; all of it is in memory.
    model : Model
        With the calibration of a run of recipe ASVspoof.

    Returns
    -------
    float
    """
    facts = model.facts
    signal = np.concatenate(list(blocks(path, facts["sample_rate"])))
    # As the recipe does with what is shorter than its segments
    least = round(facts["segment_s"] * facts["sample_rate"])
    if len(signal) < least:
        signal = np.resize(signal, least)
    score = float(model.run(signal[None])[0].reshape(-1)[0])
    return facts["calibration_scale"] * score + facts["calibration_offset"]


def run(files, model, threshold=0.0):
    """Prints whether files are bona fide; names those that cannot be read.

    Arguments
    ---------
    files : list of str
        Audio files, "-" for the standard input.
    model : str
        What ``noisegate export`` wrote of a run of recipe ASVspoof.
    threshold : float
        Log-likelihood ratio from which a file is accepted.

    Returns
    -------
    int
        0, or 2 if a file could not be read.

    Raises
    ------
    ValueError
        If the model has no calibration.
    """
    loaded = Model(model)
    needed = {"calibration_scale", "calibration_offset", "segment_s"}
    missing = needed - loaded.facts.keys()
    if missing:
        raise ValueError(f"{model} detects no spoofs: no {sorted(missing)}")

    def lines(file):
        found = ratio(file, loaded)
        said = "bonafide" if found >= threshold else "spoof"
        yield f"{file}\t{found:.3f}\t{said}"

    return each_file(files, lines)
