"""Cut models as they are deployed: front-end inside, in chunks if they can.

Authors
 * The noisegate developers, 2026
"""

import copy
import math

import torch
from speechbrain.nnet.CNN import Conv1d
from speechbrain.processing.features import STFT

from noisegate.trial import relative_difference

TOLERANCE = 1e-5  # of chunks to the whole, relative to the greatest output
MODULES = ("compute_features", "mean_var_norm", "model")


class RealSTFT(torch.nn.Module):
    """SpeechBrain's ``STFT`` by products with sines and cosines.

    Exporters know no complex numbers. Cosines are even about the middle of a
    frame, sines odd: half of the products do.

    Arguments
    ---------
    stft : speechbrain.processing.features.STFT
        What it replaces.
    center : bool
        Whether half a window of zeros is put in front and behind, as there;
        if not, that is up to the caller.

    Raises
    ------
    ValueError
        If it has settings that are not SpeechBrain's defaults.

    Example
    -------
    >>> stft = STFT(sample_rate=16000)
    >>> wavs = torch.randn(2, 1600)
    >>> torch.allclose(RealSTFT(stft, True)(wavs), stft(wavs), atol=1e-4)
    True
    """

    def __init__(self, stft, center):
        super().__init__()
        n, self.hop = stft.n_fft, stft.hop_length
        window = torch.zeros(n, dtype=torch.float64)
        left = (n - stft.win_length) // 2
        window[left : left + stft.win_length] = stft.window.double()
        expected = {
            "center": stft.center,
            "pad_mode": stft.pad_mode == "constant",
            "normalized_stft": not stft.normalized_stft,
            "onesided": stft.onesided,
            "n_fft": n % 2 == 0,
        }
        if not all(expected.values()):
            other = [name for name, good in expected.items() if not good]
            raise ValueError(f"STFT cannot be exported with such {other}")
        self.padding = n // 2 if center else 0
        angle = 2 * torch.pi * torch.arange(n, dtype=torch.float64) / n
        self.register_buffer("cosines", torch.cos(angle).float())
        self.register_buffer("sines", -torch.sin(angle).float())
        self.register_buffer("taper", window.float())
        # As tensors, or exporters write their product out, which is a third of
        # the file
        self.register_buffer("bins", torch.arange(n // 2 + 1))
        self.register_buffer("places", torch.arange(n // 2 + 1).unsqueeze(1))

    def _frames(self, wavs):
        """Frames (batch, frames, n_fft), of blocks that they share."""
        n = len(self.cosines)
        block = math.gcd(n, self.hop)
        size, step = n // block, self.hop // block
        blocks = wavs.shape[1] // block
        last = (blocks - size) // step * step + 1
        shared = wavs[:, : blocks * block].reshape(wavs.shape[0], -1, block)
        parts = [shared[:, i : i + last : step] for i in range(size)]
        return torch.cat(parts, dim=2)

    def forward(self, wavs):
        """Returns the STFT (batch, frames, bins, 2) of (batch, samples)."""
        if self.padding:
            wavs = torch.nn.functional.pad(wavs, (self.padding, self.padding))
        frames, n = self._frames(wavs) * self.taper, len(self.cosines)
        first, middle = frames[..., :1], frames[..., n // 2 : n // 2 + 1]
        left = frames[..., 1 : n // 2]
        right = frames[..., n // 2 + 1 :].flip(-1)
        even = torch.cat([first, left + right, middle], dim=-1)
        turns = self.places * self.bins % n
        real = even @ self.cosines[turns]
        imaginary = (left - right) @ self.sines[turns[1:-1]]
        return torch.stack([real, imaginary], dim=-1)


class _Stateful(torch.nn.Module):
    """A layer that begins where the chunk before ended. ``state`` is None for
    the beginning of a signal, ``batch_dim`` its dimension of signals."""

    batch_dim = 0

    def __init__(self, layer):
        super().__init__()
        self.layer, self.state = layer, None


class _CausalConv(_Stateful):
    """SpeechBrain's causal ``Conv1d``: its zeros in front are the state."""

    def forward(self, x):
        layer = self.layer
        conv = layer.conv
        size = conv.dilation[0] * (conv.kernel_size[0] - 1)
        if self.state is None:
            self.state = x.new_zeros(x.shape[0], size, x.shape[2])
        x = torch.cat([self.state, x], dim=1)
        self.state = x[:, x.shape[1] - size :]
        return conv(x.transpose(1, 2)).transpose(1, 2)


class _Recurrence(_Stateful):
    """``torch.nn.GRU`` and ``RNN`` of one direction."""

    batch_dim = 1

    def flatten_parameters(self):
        """SpeechBrain calls it."""

    def forward(self, x, state=None):
        layer = self.layer
        if self.state is None:
            n = layer.num_layers
            self.state = x.new_zeros(n, x.shape[0], layer.hidden_size)
        x, self.state = layer(x, self.state)
        return x, self.state


def _stateful(layer):
    """The layer for chunks, or None if it needs no state."""
    if isinstance(layer, Conv1d) and layer.padding == "causal":
        if not layer.skip_transpose and layer.conv.stride[0] == 1:
            return _CausalConv(layer)
    if isinstance(layer, (torch.nn.GRU, torch.nn.RNN)):
        if not layer.bidirectional:
            return _Recurrence(layer)
    return None


class Deployed(torch.nn.Module):
    """Front-end, normalization and network in one module.

    Arguments
    ---------
    modules : dict of str to torch.nn.Module
        Of a cut model: "compute_features", "model" and, if there is one,
        "mean_var_norm". They are copied.
    streaming : bool
        Whether signals come in chunks. ``forward`` then takes the samples that
        its frames need, ``window - hop`` of them seen before (`window` zeros
        in halves before and behind the signal), and states, and returns
        states.

    Raises
    ------
    ValueError
        If a module is missing or, for ``streaming``, if chunks do not give
        what the whole signal gives.
    """

    def __init__(self, modules, streaming=False):
        super().__init__()
        missing = {"compute_features", "model"} - modules.keys()
        if missing:
            raise ValueError(
                f"modules must have {sorted(missing)}, there are "
                f"{sorted(modules)}"
            )
        parts = [modules[name] for name in MODULES if name in modules]
        whole = copy.deepcopy(torch.nn.ModuleList(parts)).eval().cpu()
        self.parts = copy.deepcopy(whole)
        found = []
        for path, layer in list(self.parts.named_modules()):
            new = None
            if isinstance(layer, STFT):
                found.append(layer)
                new = RealSTFT(layer, center=not streaming)
            elif streaming:
                new = _stateful(layer)
            if new is not None:
                self.parts.set_submodule(path, new)
        if len(found) != 1:
            raise ValueError(
                f"the front-end must have one STFT, it has {len(found)}"
            )
        self.window, self.hop = found[0].n_fft, found[0].hop_length
        self.stateful = [
            m for m in self.parts.modules() if isinstance(m, _Stateful)
        ]
        self.eval()  # exporters put back the mode that the whole of it has
        if streaming:
            self._check(whole)

    def forward(self, wavs, *states):
        """Computes the network's output.

        Arguments
        ---------
        wavs : torch.Tensor
            Signals of one length, (batch, samples).
        *states : torch.Tensor
            What the chunk before returned, ``initial`` for the first.

        Returns
        -------
        tuple of torch.Tensor
            The output and, for chunks, the states.
        """
        for layer, state in zip(self.stateful, states):
            layer.state = state
        x = wavs
        for part in self.parts:
            x = part(x)
        return (x, *(layer.state for layer in self.stateful))

    def initial(self):
        """Returns the states (list of torch.Tensor) of silence before the
        first sample."""
        for layer in self.stateful:
            layer.state = None
        # Known once it has run
        with torch.no_grad():
            states = self(torch.zeros(1, self.window))[1:]
        return [torch.zeros_like(state) for state in states]

    @torch.no_grad()
    def _check(self, whole):
        """Compares chunks with the whole signal."""
        generator = torch.Generator().manual_seed(0)
        wavs = torch.randn(1, 40 * self.hop, generator=generator) / 10
        wavs[:, 20 * self.hop :] *= 10  # the first half must not hear of it
        expected = wavs
        for part in whole:
            expected = part(expected)
        half = torch.zeros(1, self.window // 2)
        padded, outputs = torch.cat([half, wavs, half], dim=1), []
        start, frames = 0, [1, 2, 3, 5, 7, 11, 12]
        if expected.ndim < 2 or expected.shape[1] != sum(frames):
            raise ValueError(
                "the model cannot be streamed: it gives no output for each "
                f"frame, but the shape {tuple(expected.shape)} for "
                f"{sum(frames)} frames"
            )
        try:
            states = self.initial()
            for n in frames:
                end = start + self.window + (n - 1) * self.hop
                output, *states = self(padded[:, start:end], *states)
                outputs.append(output)
                start += n * self.hop
            error = relative_difference([expected], [torch.cat(outputs, 1)])
            found = f"in chunks its outputs differ by {error:.2g}"
        except RuntimeError as failure:  # no output of a chunk that short
            error, found = float("nan"), f"it computes no chunks: {failure}"
        if not error <= TOLERANCE:
            raise ValueError(
                f"the model cannot be streamed: {found}. Convolutions must be "
                "SpeechBrain's Conv1d with padding causal, recurrences of one "
                "direction, normalizations without statistics over time "
                "(InputNormalization: norm_type global)"
            )
