"""What tells the classes of Mini-LA apart that should not.

Authors
 * The noisegate authors 2026
"""

from pathlib import Path

import numpy as np
import soundfile as sf
from asvspoof_protocols import SETS, read_protocol
from mini_la_chain import HOP, SAMPLE_RATE
from scipy.signal import welch
from vad_data import active_frames, active_rms

# Name of each split in the protocols.
SPLITS = {"train": "train", "valid": "dev", "test": "eval"}


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
