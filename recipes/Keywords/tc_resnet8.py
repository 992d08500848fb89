"""Networks for keywords, in plain torch.

Authors
 * The noisegate developers, 2026
"""

import torch
from torch.nn import BatchNorm1d, Conv1d, Linear, ReLU

KERNEL_SIZE = 9


class ResidualBlock(torch.nn.Module):
    """Two convolutions over time and a shortcut.

    Arguments
    ---------
    in_channels : int
        Number of channels read.
    out_channels : int
        Number of channels made.
    stride : int
        Of the first convolution, in frames.

    Example
    -------
    >>> ResidualBlock(4, 6, 2)(torch.rand(1, 4, 10)).shape
    torch.Size([1, 6, 5])
    """

    def __init__(self, in_channels, out_channels, stride):
        super().__init__()
        padding = KERNEL_SIZE // 2
        self.conv1 = Conv1d(
            in_channels,
            out_channels,
            KERNEL_SIZE,
            stride,
            padding,
            bias=False,
        )
        self.norm1 = BatchNorm1d(out_channels)
        self.conv2 = Conv1d(
            out_channels, out_channels, KERNEL_SIZE, 1, padding, bias=False
        )
        self.norm2 = BatchNorm1d(out_channels)
        self.shortcut = Conv1d(in_channels, out_channels, 1, stride, bias=False)
        self.shortcut_norm = BatchNorm1d(out_channels)
        self.act = ReLU()

    def forward(self, x):
        """Returns the result of the block.

        Arguments
        ---------
        x : torch.Tensor (batch, in_channels, time)
            What it reads.

        Returns
        -------
        torch.Tensor (batch, out_channels, time / stride)
        """
        y = self.act(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return self.act(y + self.shortcut_norm(self.shortcut(x)))


class TCResNet8(torch.nn.Module):
    """TC-ResNet8: convolutions over time, mel bands are channels.

    S. Choi et al., "Temporal convolution for real-time keyword spotting on
    mobile devices", Interspeech 2019.

    Arguments
    ---------
    n_mels : int
        Number of mel bands.
    n_classes : int
        Number of classes.
    channels : list of int
        Of the first convolution and of the three blocks; the published ones
        are 16, 24, 32 and 48, times a factor.
    dropout : float
        Of what the last layer reads.

    Example
    -------
    >>> model = TCResNet8(n_mels=40, n_classes=12)
    >>> model(torch.rand(2, 101, 40)).shape
    torch.Size([2, 12])
    """

    def __init__(
        self, n_mels, n_classes, channels=(16, 24, 32, 48), dropout=0.2
    ):
        super().__init__()
        first, *others = channels
        self.conv = Conv1d(n_mels, first, 3, padding=1, bias=False)
        self.norm = BatchNorm1d(first)
        self.act = ReLU()
        self.blocks = torch.nn.ModuleList()
        for size in others:
            self.blocks.append(ResidualBlock(first, size, stride=2))
            first = size
        self.dropout = torch.nn.Dropout(dropout)
        self.out = Linear(first, n_classes)

    def forward(self, feats, lens=None):
        """Returns scores of the classes.

        Arguments
        ---------
        feats : torch.Tensor (batch, time, n_mels)
            Log-mel features.
        lens : torch.Tensor (batch,)
            Not used, all clips have one length; SpeechBrain's interfaces
            pass it.

        Returns
        -------
        torch.Tensor (batch, n_classes)
        """
        x = self.act(self.norm(self.conv(feats.transpose(1, 2))))
        for block in self.blocks:
            x = block(x)
        return self.out(self.dropout(x.mean(2)))


class FeatureJitter(torch.nn.Module):
    """Noise and a shift in time, for training: cheap enough to be drawn anew
    for features that are kept.

    Arguments
    ---------
    noise : float
        Standard deviation of what is added to normalized features.
    shift : int
        Largest shift, in frames; what leaves at one end comes in at the other.

    Example
    -------
    >>> FeatureJitter(noise=0.1, shift=2)(torch.rand(2, 101, 40)).shape
    torch.Size([2, 101, 40])
    """

    def __init__(self, noise=0.3, shift=8):
        super().__init__()
        self.noise, self.shift = noise, shift

    def forward(self, feats):
        """Returns other features of the same shape.

        Arguments
        ---------
        feats : torch.Tensor (batch, time, n_mels)
            Normalized features.

        Returns
        -------
        torch.Tensor (batch, time, n_mels)
        """
        shift = int(torch.randint(-self.shift, self.shift + 1, (1,)))
        noise = self.noise * torch.randn_like(feats)
        return torch.roll(feats + noise, shift, dims=1)
