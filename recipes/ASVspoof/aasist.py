"""AASIST (Jung et al. 2022) with free widths.

It knows nothing of gates. Its constructor takes every width that a gate could
learn, and it tells the widths that it has under the same names, so that a
network that was cut is built again by its ordinary constructor.

Authors
 * The noisegate developers, 2026
"""

import math

import numpy as np
import torch
from scipy.signal import firwin


def _sinc_filters(n_filters, kernel_size, sample_rate):
    """Band-pass filters, equally wide on the mel scale."""
    top = 2595.0 * math.log10(1.0 + sample_rate / 2 / 700.0)
    mel = np.linspace(0.0, top, n_filters + 1)
    edges = 700.0 * (10.0 ** (mel / 2595.0) - 1.0)
    # Inside the range that the design takes: above 0, below Nyquist
    edges = edges.clip(1.0, sample_rate / 2 - 1.0)
    filters = [
        firwin(
            kernel_size,
            list(band),
            pass_zero=False,
            window="hamming",
            scale=False,
            fs=sample_rate,
        )
        for band in zip(edges, edges[1:])
    ]
    return torch.tensor(np.stack(filters), dtype=torch.float32).unsqueeze(1)


class _RawBlock(torch.nn.Module):
    """Residual block of RawNet2, pre-activated, in two dimensions."""

    def __init__(self, in_channels, inner_channels, out_channels, first):
        super().__init__()
        self.norm1 = None if first else torch.nn.BatchNorm2d(in_channels)
        self.conv1 = torch.nn.Conv2d(
            in_channels, inner_channels, (2, 3), padding=(1, 1)
        )
        self.norm2 = torch.nn.BatchNorm2d(inner_channels)
        self.act = torch.nn.SELU()
        self.conv2 = torch.nn.Conv2d(
            inner_channels, out_channels, (2, 3), padding=(0, 1)
        )
        self.shortcut = torch.nn.Identity()
        if in_channels != out_channels:
            self.shortcut = torch.nn.Conv2d(
                in_channels, out_channels, (1, 3), padding=(0, 1)
            )
        self.pool = torch.nn.MaxPool2d((1, 3))

    def forward(self, x):
        y = x if self.norm1 is None else self.act(self.norm1(x))
        y = self.conv2(self.act(self.norm2(self.conv1(y))))
        return self.pool(y + self.shortcut(x))


class _Attention(torch.nn.Module):
    """What all graph attentions do: weights from products of nodes."""

    def __init__(self, in_size, out_size, n_kinds, temperature):
        super().__init__()
        self.temperature = temperature
        self.pairs = torch.nn.Linear(in_size, out_size)
        self.kinds = torch.nn.Linear(out_size, n_kinds, bias=False)
        self.neighbours = torch.nn.Linear(in_size, out_size)
        self.own = torch.nn.Linear(in_size, out_size)
        torch.nn.init.xavier_normal_(self.kinds.weight)

    def forward(self, products, nodes, own, kind=None):
        # (batch, queries, nodes, kinds): one weight vector per kind of pair
        logits = self.kinds(torch.tanh(self.pairs(products)))
        if kind is not None:
            kind = kind.expand(*logits.shape[:-1]).unsqueeze(-1)
            logits = logits.gather(-1, kind)
        weights = torch.softmax(logits.squeeze(-1) / self.temperature, -1)
        return self.neighbours(weights @ nodes) + self.own(own)


class _GraphAttention(torch.nn.Module):
    """Attention among nodes of one kind (batch, nodes, features)."""

    def __init__(self, in_size, out_size, temperature):
        super().__init__()
        self.drop = torch.nn.Dropout(0.2)
        self.attention = _Attention(in_size, out_size, 1, temperature)
        self.norm = torch.nn.BatchNorm1d(out_size)
        self.act = torch.nn.SELU()

    def forward(self, x):
        x = self.drop(x)
        products = x.unsqueeze(2) * x.unsqueeze(1)
        y = self.attention(products, x, x)
        return self.act(self.norm(y.transpose(1, 2)).transpose(1, 2))


class _HeteroAttention(torch.nn.Module):
    """Attention among temporal and spectral nodes, and of a master node."""

    def __init__(self, in_size, out_size, temperature):
        super().__init__()
        self.time = torch.nn.Linear(in_size, in_size)
        self.spectrum = torch.nn.Linear(in_size, in_size)
        self.drop = torch.nn.Dropout(0.2)
        # Kinds of pairs: both temporal, both spectral, one of each
        self.attention = _Attention(in_size, out_size, 3, temperature)
        self.master = _Attention(in_size, out_size, 1, temperature)
        self.norm = torch.nn.BatchNorm1d(out_size)
        self.act = torch.nn.SELU()

    def forward(self, time, spectrum, master):
        n_time = time.shape[1]
        x = torch.cat([self.time(time), self.spectrum(spectrum)], dim=1)
        x = self.drop(x)
        is_time = torch.arange(x.shape[1], device=x.device) < n_time
        same = is_time[:, None] == is_time
        kind = torch.where(same, (~is_time).long()[:, None], 2)
        products = x.unsqueeze(2) * x.unsqueeze(1)
        y = self.attention(products, x, x, kind)
        master = self.master((x * master).unsqueeze(1), x, master)
        y = self.act(self.norm(y.transpose(1, 2)).transpose(1, 2))
        return y[:, :n_time], y[:, n_time:], master


class _GraphPool(torch.nn.Module):
    """Keeps the share of nodes with the highest learned scores."""

    def __init__(self, share, size, dropout=0.3):
        super().__init__()
        self.share = share
        self.drop = torch.nn.Dropout(dropout)
        self.score = torch.nn.Linear(size, 1)

    def forward(self, x):
        scores = torch.sigmoid(self.score(self.drop(x)))
        n_kept = max(1, int(x.shape[1] * self.share))
        kept = scores.topk(n_kept, dim=1).indices
        return (x * scores).gather(1, kept.expand(-1, -1, x.shape[2]))


class _Branch(torch.nn.Module):
    """Two heterogeneous attentions with graph pooling in between."""

    def __init__(self, in_size, out_size, share, temperature):
        super().__init__()
        self.master = torch.nn.Parameter(torch.randn(1, 1, in_size))
        self.first = _HeteroAttention(in_size, out_size, temperature)
        self.pool_time = _GraphPool(share, out_size)
        self.pool_spectrum = _GraphPool(share, out_size)
        self.second = _HeteroAttention(out_size, out_size, temperature)

    def forward(self, time, spectrum):
        master = self.master.repeat(len(time), 1, 1)
        time, spectrum, master = self.first(time, spectrum, master)
        time, spectrum = self.pool_time(time), self.pool_spectrum(spectrum)
        more = self.second(time, spectrum, master)
        return time + more[0], spectrum + more[1], master + more[2]


class AASIST(torch.nn.Module):
    """Graph attention over time and spectrum of the waveform.

    Jung et al., "AASIST: audio anti-spoofing using integrated
    spectro-temporal graph attention networks", ICASSP 2022: fixed band-pass
    filters and residual blocks of RawNet2 make a map of (channels, spectrum,
    time); its maxima over time and over spectrum are the nodes of two graphs,
    which two branches join by heterogeneous attention with a master node; the
    element-wise maximum of the branches is read out.

    The defaults are the small variant of the paper, AASIST-L: about 85 k
    trained parameters (the published one has a second output). Written from
    the paper; where it leaves a choice open, the published count decided.

    Arguments
    ---------
    channels : list of int
        Output width of each of the six residual blocks.
    inner_channels : list of int
        Width between the two convolutions of each block; None takes channels.
    graph_sizes : list of int
        Features of a node in the two graphs, and in the joint one.
    pool_shares : list of float
        Share of nodes that pooling keeps: spectral, temporal, joint.
    n_filters : int
        Number of band-pass filters.
    kernel_size : int
        Samples of a filter.
    dropout : float
        Probability of dropout in front of the output, 0 to 1.
    cosine : bool
        Whether the output is a cosine, for the OC-softmax loss.
    sample_rate : int
        In Hz.

    Example
    -------
    >>> model = AASIST().eval()
    >>> model(torch.randn(2, 16000)).shape
    torch.Size([2, 1])
    """

    def __init__(
        self,
        channels=(32, 32, 24, 24, 24, 24),
        inner_channels=None,
        graph_sizes=(24, 32),
        pool_shares=(0.4, 0.5, 0.7),
        n_filters=70,
        kernel_size=129,
        dropout=0.5,
        cosine=False,
        sample_rate=16000,
    ):
        super().__init__()
        inner_channels = inner_channels or list(channels)
        if len(channels) != len(inner_channels):
            raise ValueError(
                "channels and inner_channels must be equally many, got "
                f"{channels} and {inner_channels}"
            )
        self.graph_sizes, self.pool_shares = graph_sizes, pool_shares
        self.n_filters, self.kernel_size = n_filters, kernel_size
        self.dropout, self.cosine = dropout, cosine
        self.sample_rate = sample_rate
        self.front = torch.nn.Conv1d(1, n_filters, kernel_size, bias=False)
        self.front.weight = torch.nn.Parameter(
            _sinc_filters(n_filters, kernel_size, sample_rate),
            requires_grad=False,
        )
        self.front_pool = torch.nn.MaxPool2d(3)
        self.front_norm = torch.nn.BatchNorm2d(1)
        self.act = torch.nn.SELU()
        self.blocks = torch.nn.Sequential()
        last = 1
        for i, (inner, out) in enumerate(zip(inner_channels, channels)):
            self.blocks.append(_RawBlock(last, inner, out, first=i == 0))
            last = out
        small, large = graph_sizes
        # (1, bands, channels), so that a band knows its place
        self.position = torch.nn.Parameter(torch.randn(1, n_filters // 3, last))
        self.spectrum = torch.nn.Sequential(
            _GraphAttention(last, small, temperature=2.0),
            _GraphPool(pool_shares[0], small),
        )
        self.time = torch.nn.Sequential(
            _GraphAttention(last, small, temperature=2.0),
            _GraphPool(pool_shares[1], small),
        )
        self.branches = torch.nn.ModuleList(
            _Branch(small, large, pool_shares[2], temperature=100.0)
            for _ in range(2)
        )
        self.drop_way = torch.nn.Dropout(0.2)
        self.drop = torch.nn.Dropout(dropout)
        self.out = torch.nn.Linear(5 * large, 1, bias=not cosine)

    @property
    def channels(self):
        """list of int : output width of each residual block."""
        return [block.conv2.out_channels for block in self.blocks]

    @property
    def inner_channels(self):
        """list of int : inner width of each residual block."""
        return [block.conv1.out_channels for block in self.blocks]

    def forward(self, wavs, lens=None):
        """Computes a score per utterance, higher = bona fide.

        Arguments
        ---------
        wavs : torch.Tensor
            Waveforms (batch, samples), of 0.2 s at least.
        lens : torch.Tensor
            Not used: pad by repetition, or evaluate utterances one by one.

        Returns
        -------
        torch.Tensor
            Scores (batch, 1).
        """
        x = self.front(wavs.unsqueeze(1)).abs().unsqueeze(1)
        x = self.act(self.front_norm(self.front_pool(x)))
        x = self.blocks(x).abs()  # (batch, channels, spectrum, time)
        spectrum = self.spectrum(x.amax(3).transpose(1, 2) + self.position)
        time = self.time(x.amax(2).transpose(1, 2))
        ways = [branch(time, spectrum) for branch in self.branches]
        time, spectrum, master = (
            torch.maximum(*(self.drop_way(part) for part in parts))
            for parts in zip(*ways)
        )
        x = torch.cat(
            [
                time.abs().amax(1),
                time.mean(1),
                spectrum.abs().amax(1),
                spectrum.mean(1),
                master.squeeze(1),
            ],
            dim=1,
        )
        x = self.drop(x)
        if self.cosine:
            scale = x.norm(dim=1, keepdim=True) * self.out.weight.norm()
            return self.out(x) / scale.clamp(min=1e-8)
        return self.out(x)
