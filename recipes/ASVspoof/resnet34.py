"""ResNet34 with free widths.

It knows nothing of gates. Its constructor takes every width that a gate could
learn, and it tells the widths that it has under the same names, so that a
network that was cut is built again by its ordinary constructor.

Authors
 * The noisegate developers, 2026
"""

import torch

_BLOCKS = (3, 4, 6, 3)  # residual blocks in each stack


class _BasicBlock(torch.nn.Module):
    """Two 3 x 3 convolutions with a shortcut; He et al. 2016, figure 5."""

    def __init__(self, in_channels, inner_channels, out_channels, stride):
        super().__init__()
        conv = {"kernel_size": 3, "padding": 1, "bias": False}
        self.conv1 = torch.nn.Conv2d(
            in_channels, inner_channels, stride=stride, **conv
        )
        self.norm1 = torch.nn.BatchNorm2d(inner_channels)
        self.act1 = torch.nn.ReLU()
        self.conv2 = torch.nn.Conv2d(inner_channels, out_channels, **conv)
        self.norm2 = torch.nn.BatchNorm2d(out_channels)
        self.shortcut = torch.nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = torch.nn.Sequential(
                torch.nn.Conv2d(
                    in_channels, out_channels, 1, stride=stride, bias=False
                ),
                torch.nn.BatchNorm2d(out_channels),
            )
        self.act2 = torch.nn.ReLU()

    def forward(self, x):
        y = self.act1(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return self.act2(y + self.shortcut(x))


class ResNet34(torch.nn.Module):
    """ResNet34 for anti-spoofing, with any width for each of its layers.

    He et al., "Deep residual learning for image recognition", CVPR 2016,
    table 1, with half of the channels: a convolution with stride, four stacks
    of 3, 4, 6 and 3 blocks, the last three of which halve time and frequency.
    Then the mean over frequency, mean and standard deviation over time, one
    embedding layer and one output.

    With the defaults it has 5.39 M parameters. For 4 s of audio as 96 log-mel
    bands every 10 ms it takes 2.77 G multiply-accumulates, that is 5.53 GFLOP
    if one MAC is two FLOPs. With that convention it has the size published in
    arXiv 2601.13704 (5.4 M, 5.64 GFLOP), which names neither the convention
    nor the length of the input.

    Arguments
    ---------
    channels : list of int
        Width of each of the four stacks; the first convolution has that of
        the first stack, because a shortcut without weights joins them.
    inner_channels : list of list of int
        Width between the two convolutions of each block, by stack (3, 4, 6
        and 3 numbers). None takes that of the stack.
    width : float
        Factor for all of these widths: 0.25 is a quarter of the channels.
    stem_stride : int
        Stride of the first convolution, in time and frequency.
    embedding_size : int
        Width of the embedding.
    dropout : float
        Probability of dropout on the embedding, 0 to 1.
    cosine : bool
        Whether the output is the cosine between embedding and a learned
        direction, for the OC-softmax loss; else a log-odds.

    Example
    -------
    >>> model = ResNet34(width=0.25).eval()
    >>> model(torch.randn(2, 201, 96), torch.tensor([1.0, 0.5])).shape
    torch.Size([2, 1])
    >>> model.channels
    [8, 16, 32, 64]
    >>> uneven = [[3, 8, 1], [16] * 4, [32] * 6, [5] * 3]
    >>> model = ResNet34(channels=[8, 16, 32, 64], inner_channels=uneven)
    >>> model.inner_channels == uneven
    True
    """

    def __init__(
        self,
        channels=(32, 64, 128, 256),
        inner_channels=None,
        width=1.0,
        stem_stride=2,
        embedding_size=128,
        dropout=0.0,
        cosine=False,
    ):
        super().__init__()
        if len(channels) != len(_BLOCKS):
            raise ValueError(
                f"channels must be {len(_BLOCKS)} numbers, got {channels}"
            )
        if inner_channels is None:
            inner_channels = [[c] * n for c, n in zip(channels, _BLOCKS)]
        if tuple(len(inner) for inner in inner_channels) != _BLOCKS:
            raise ValueError(
                f"inner_channels must be lists of {_BLOCKS} numbers, got "
                f"{inner_channels}"
            )
        if not width > 0:
            raise ValueError(f"width must be positive, got {width}")
        self.width = 1.0  # what `channels` tells has it in it
        self.cosine, self.dropout = cosine, dropout

        def scaled(size):
            return max(1, round(size * width))

        last = scaled(channels[0])
        self.conv = torch.nn.Conv2d(
            1, last, 3, stride=stem_stride, padding=1, bias=False
        )
        self.norm = torch.nn.BatchNorm2d(last)
        self.act = torch.nn.ReLU()
        for i, (out, inner) in enumerate(zip(channels, inner_channels)):
            stack = torch.nn.Sequential()
            for k, size in enumerate(inner):
                stride = 2 if i > 0 and k == 0 else 1
                stack.append(
                    _BasicBlock(last, scaled(size), scaled(out), stride)
                )
                last = scaled(out)
            self.add_module(f"stack{i}", stack)
        self.drop = torch.nn.Dropout(dropout)
        self.embedding = torch.nn.Linear(2 * last, embedding_size)
        self.out = torch.nn.Linear(embedding_size, 1, bias=not cosine)
        for module in self.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight, mode="fan_out")

    @property
    def stacks(self):
        """list of torch.nn.Sequential : the four stacks of blocks."""
        return [self.stack0, self.stack1, self.stack2, self.stack3]

    @property
    def channels(self):
        """list of int : width of each stack."""
        return [stack[-1].conv2.out_channels for stack in self.stacks]

    @property
    def inner_channels(self):
        """list of list of int : inner width of each block."""
        return [[b.conv1.out_channels for b in s] for s in self.stacks]

    @property
    def stem_stride(self):
        """int : stride of the first convolution."""
        return self.conv.stride[0]

    @property
    def embedding_size(self):
        """int : width of the embedding."""
        return self.embedding.out_features

    def forward(self, feats, lens=None):
        """Computes a score per utterance, higher = bona fide.

        Padded frames are kept out of the pooling, but those at the end reach
        a little into what is convolved beside them: for scores that do not
        depend on the batch, evaluate utterances one by one.

        Arguments
        ---------
        feats : torch.Tensor
            Features (batch, time, bands).
        lens : torch.Tensor
            Relative lengths (batch,), 0 to 1; None if nothing is padded.

        Returns
        -------
        torch.Tensor
            Scores (batch, 1).
        """
        x = self.act(self.norm(self.conv(feats.unsqueeze(1))))
        for stack in self.stacks:
            x = stack(x)
        mean, std = masked_statistics(x.mean(3), lens)
        x = self.drop(self.embedding(torch.cat([mean, std], dim=1)))
        if self.cosine:
            scale = x.norm(dim=1, keepdim=True) * self.out.weight.norm()
            return self.out(x) / scale.clamp(min=1e-8)
        return self.out(x)


def masked_statistics(x, lens=None):
    """Mean and standard deviation over time, without padding.

    Arguments
    ---------
    x : torch.Tensor
        (batch, channels, time)
    lens : torch.Tensor
        Relative lengths (batch,), 0 to 1; None if nothing is padded. At least
        one frame of each counts.

    Returns
    -------
    mean : torch.Tensor
        (batch, channels)
    std : torch.Tensor
        (batch, channels), at least 0.001.

    Example
    -------
    >>> x = torch.tensor([[[1.0, 3.0, 99.0]]])
    >>> masked_statistics(x, torch.tensor([2 / 3]))
    (tensor([[2.]]), tensor([[1.0000]]))
    """
    if lens is None:
        mean = x.mean(2)
        variance = (x - mean.unsqueeze(2)).square().mean(2)
    else:
        frames = torch.ceil(lens * x.shape[2] - 1e-3).clamp(min=1)
        time = torch.arange(x.shape[2], device=x.device)
        weights = (time < frames[:, None]).to(x.dtype)
        weights = (weights / weights.sum(1, keepdim=True)).unsqueeze(1)
        mean = (x * weights).sum(2)
        variance = ((x - mean.unsqueeze(2)).square() * weights).sum(2)
    return mean, (variance + 1e-6).sqrt()
