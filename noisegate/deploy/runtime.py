"""Runs exported models, without torch.

Authors
 * The noisegate developers, 2026
"""

import json

import numpy as np

from noisegate.extras import extra


class Model:
    """A model that ``noisegate export`` wrote.

    Arguments
    ---------
    path : str or pathlib.Path
        The ONNX file.

    Attributes
    ----------
    facts : dict
        ``sample_rate``, ``window`` and ``hop`` in samples, ``states`` (their
        shapes, none if signals are read whole), and what is known besides:
        ``threshold``, ``labels``, ``macs_per_second``, ``parameters``.

    Raises
    ------
    ValueError
        If it is no such file.
    """

    def __init__(self, path):
        with extra("deploy"):
            import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        try:
            with open(path, "rb") as file:
                content = file.read()
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error}") from error
        other = f"{path} is not what `noisegate export` writes"
        try:
            self.session = onnxruntime.InferenceSession(
                content, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's have no other base
            raise ValueError(f"{other}: {error}") from error
        meta = self.session.get_modelmeta().custom_metadata_map
        if "noisegate" not in meta:
            raise ValueError(f"{other}: its metadata has no 'noisegate'")
        self.facts = json.loads(meta["noisegate"])

    def run(self, wavs, states=()):
        """Computes scores of signals, or of chunks.

        Arguments
        ---------
        wavs : numpy.ndarray
            (batch, samples), float32.
        states : list of numpy.ndarray
            Of a model for chunks, see `stream`.

        Returns
        -------
        list of numpy.ndarray
            Scores, (batch, frames, ...), and the states behind them.
        """
        feeds = {f"state{i}": state for i, state in enumerate(states)}
        return self.session.run(None, {"wavs": wavs, **feeds})

    def stream(self):
        """Returns a `Stream` of this model."""
        return Stream(self)


class Stream:
    """One signal that is read bit by bit.

    Scores come as soon as their frames are there: half a window after their
    time. A model that is not for chunks gives all of them at the end.

    Arguments
    ---------
    model : Model
        What computes them.
    """

    def __init__(self, model):
        self.model, facts = model, model.facts
        self.window, self.hop = facts["window"], facts["hop"]
        self.chunks = bool(facts["states"])
        self.states = [np.zeros(s, np.float32) for s in facts["states"]]
        half = self.window // 2 if self.chunks else 0
        self.silence = np.zeros(half, np.float32)
        self.waiting = [self.silence]

    def feed(self, samples):
        """Takes samples in, (time,), and returns the scores of the frames that
        they complete, (frames, ...)."""
        self.waiting.append(np.asarray(samples, np.float32))
        if not self.chunks:
            return self._none()
        signal = np.concatenate(self.waiting)
        n = 1 + (len(signal) - self.window) // self.hop
        if len(signal) < self.window:
            self.waiting = [signal]
            return self._none()
        used = signal[: self.window + (n - 1) * self.hop]
        scores, *self.states = self.model.run(used[None], self.states)
        self.waiting = [signal[n * self.hop :]]
        return scores[0]

    def finish(self):
        """Returns the scores of the last frames, (frames, ...)."""
        if self.chunks:
            return self.feed(self.silence)
        scores = self.model.run(np.concatenate(self.waiting)[None])[0]
        self.waiting = []
        return scores[0]

    def _none(self):
        shape = self.model.session.get_outputs()[0].shape[2:]
        return np.zeros((0, *shape), np.float32)
