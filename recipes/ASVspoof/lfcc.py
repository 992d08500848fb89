"""Linear-frequency cepstral coefficients.

Authors
 * The noisegate developers, 2026
"""

import torch
import torchaudio
from speechbrain.processing.features import Deltas


class LFCC(torch.nn.Module):
    """Linear-frequency cepstral coefficients with their two derivatives.

    A front-end of the ASVspoof baselines: a bank of triangular filters that
    are equally wide in Hz, logarithm, discrete cosine transform. Sahidullah,
    Kinnunen and Hanilçi, "A comparison of features for synthetic speech
    detection", Interspeech 2015.

    Arguments
    ---------
    sample_rate : int
        In Hz.
    n_filters : int
        Number of filters.
    n_lfcc : int
        Number of coefficients, at most n_filters.
    n_fft : int
        Samples of a Fourier transform.
    win_length : float
        Milliseconds of a frame.
    hop_length : float
        Milliseconds between frames.
    deltas : bool
        Whether first and second derivatives are appended.

    Example
    -------
    >>> compute_features = LFCC()
    >>> compute_features(torch.randn(2, 16000)).shape
    torch.Size([2, 101, 60])
    """

    def __init__(
        self,
        sample_rate=16000,
        n_filters=20,
        n_lfcc=20,
        n_fft=512,
        win_length=20.0,
        hop_length=10.0,
        deltas=True,
    ):
        super().__init__()
        self.sample_rate, self.n_filters = sample_rate, n_filters
        self.n_lfcc, self.n_fft, self.deltas = n_lfcc, n_fft, deltas
        self.win_length, self.hop_length = win_length, hop_length
        if n_lfcc > n_filters:
            raise ValueError(
                f"n_lfcc must be at most n_filters = {n_filters}, got {n_lfcc}"
            )
        self.compute_lfcc = torchaudio.transforms.LFCC(
            sample_rate,
            n_filter=n_filters,
            n_lfcc=n_lfcc,
            log_lf=True,
            speckwargs={
                "n_fft": n_fft,
                "win_length": round(sample_rate * win_length / 1000),
                "hop_length": round(sample_rate * hop_length / 1000),
            },
        )
        if deltas:
            self.compute_deltas = Deltas(input_size=n_lfcc)

    @property
    def n_features(self):
        """int : number of features per frame."""
        return self.n_lfcc * (3 if self.deltas else 1)

    @torch.no_grad()
    def forward(self, wav):
        """Computes the features.

        Arguments
        ---------
        wav : torch.Tensor
            Waveforms (batch, samples).

        Returns
        -------
        torch.Tensor
            (batch, frames, features)
        """
        with torch.autocast(wav.device.type, enabled=False):
            feats = self.compute_lfcc(wav.float()).transpose(1, 2)
            if self.deltas:
                first = self.compute_deltas(feats)
                second = self.compute_deltas(first)
                feats = torch.cat([feats, first, second], dim=-1)
        return feats
