"""The zoo: voice activity, speakers, sounds, spoofing, interpretation.

Authors
 * The noisegate developers, 2026
"""

import torch
from aasist import AASIST
from resnet34 import ResNet34
from speechbrain.lobes.models import L2I, PIQ
from speechbrain.lobes.models.Cnn14 import Cnn14
from speechbrain.lobes.models.CRDNN import CRDNN, CNN_Block, DNN_Block
from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN
from speechbrain.lobes.models.ESPnetVGG import ESPnetVGG
from speechbrain.lobes.models.GatedNN import GatedNN
from speechbrain.lobes.models.ResNet import ResNet
from speechbrain.lobes.models.VanillaNN import VanillaNN
from speechbrain.lobes.models.Xvector import Classifier, Xvector
from speechbrain.nnet import RNN
from speechbrain.nnet.CNN import SincConv
from speechbrain.nnet.containers import Sequential
from speechbrain.nnet.linear import Linear
from speechbrain.nnet.normalization import LayerNorm

from benchmarks.zoo_entries import Joined, entry


class FilterwiseScaling(torch.nn.Module):
    """Scales and shifts each channel by what a linear layer says.

    Arguments
    ---------
    channels : int
        Number of channels.
    """

    def __init__(self, channels):
        super().__init__()
        self.linear = torch.nn.Linear(channels, channels)

    def forward(self, x):
        """Returns the scaled channels (batch, channels, time)."""
        factor = torch.sigmoid(self.linear(x.mean(-1))).unsqueeze(-1)
        return x * factor + factor


class RawBlock(torch.nn.Module):
    """Residual block of RawNet2.

    Arguments
    ---------
    n_in : int
        Channels read.
    n_out : int
        Channels made.
    """

    def __init__(self, n_in, n_out):
        super().__init__()
        self.norm1 = torch.nn.BatchNorm1d(n_in)
        self.conv1 = torch.nn.Conv1d(n_in, n_out, 3, padding=1)
        self.norm2 = torch.nn.BatchNorm1d(n_out)
        self.conv2 = torch.nn.Conv1d(n_out, n_out, 3, padding=1)
        self.short = torch.nn.Identity()
        if n_in != n_out:
            self.short = torch.nn.Conv1d(n_in, n_out, 1)
        self.act = torch.nn.LeakyReLU(0.3)
        self.pool = torch.nn.MaxPool1d(3)
        self.scale = FilterwiseScaling(n_out)

    def forward(self, x):
        """Returns (batch, channels, time / 3)."""
        y = self.conv1(self.act(self.norm1(x)))
        y = self.conv2(self.act(self.norm2(y)))
        return self.scale(self.pool(y + self.short(x)))


class RawNet2(torch.nn.Module):
    """RawNet2 as in the baselines of ASVspoof 2021, in other words.

    Tak et al., "End-to-end anti-spoofing with RawNet2", ICASSP 2021: fixed
    band-pass filters, six residual blocks with filter-wise feature map
    scaling, a GRU of three layers, two linear layers.

    Arguments
    ---------
    channels : list of int
        Band-pass filters and the widths of the two kinds of blocks.
    units : int
        Width of the GRU.
    kernel_size : int
        Samples of a band-pass filter.
    """

    def __init__(self, channels=(20, 20, 128), units=1024, kernel_size=1025):
        super().__init__()
        n_filters, first, second = channels
        self.front = SincConv(
            n_filters, kernel_size, in_channels=1, padding="valid"
        ).requires_grad_(False)
        self.pool = torch.nn.MaxPool1d(3)
        self.front_norm = torch.nn.BatchNorm1d(n_filters)
        self.act = torch.nn.SELU()
        sizes = [n_filters, first, first, *[second] * 4]
        self.blocks = torch.nn.Sequential(
            *(RawBlock(*pair) for pair in zip(sizes, sizes[1:]))
        )
        self.norm = torch.nn.BatchNorm1d(second)
        self.gru = torch.nn.GRU(second, units, 3, batch_first=True)
        self.fc = torch.nn.Linear(units, units)
        self.out = torch.nn.Linear(units, 2)

    def forward(self, wavs):
        """Returns two scores per utterance."""
        x = self.front(wavs.unsqueeze(-1)).transpose(1, 2)
        x = self.act(self.front_norm(self.pool(x.abs())))
        x = self.act(self.norm(self.blocks(x)))
        x, _ = self.gru(x.transpose(1, 2))
        return self.out(self.fc(x[:, -1]))


@entry("VAD CRDNN (LibriParty)")
def _():
    cnn = Sequential(input_shape=[None, None, 40])
    cnn.append(LayerNorm, layer_name="norm1")
    for i, channels in enumerate((16, 32)):
        cnn.append(
            CNN_Block, channels=channels, kernel_size=(3, 3), layer_name=f"c{i}"
        )
    dnn = Sequential(input_shape=[None, None, 64])
    for i in range(2):
        dnn.append(DNN_Block, neurons=16, layer_name=f"d{i}")
    dnn.append(Linear, n_neurons=1, bias=False, layer_name="lin")
    rnn = RNN.GRU(
        input_shape=[None, None, 320],
        hidden_size=32,
        num_layers=2,
        bidirectional=True,
    )

    def compute(m, feats):
        return m.dnn(m.rnn(m.cnn(feats).flatten(2))[0])

    return Joined(compute, cnn=cnn, rnn=rnn, dnn=dnn), torch.rand(2, 40, 40)


def crdnn(**options):
    sizes = {"rnn_layers": 2, "rnn_neurons": 24, "dnn_neurons": 20, **options}
    return CRDNN(input_size=40, cnn_channels=[8, 16], **sizes)


@entry("CRDNN (LiGRU)")
def _():
    return crdnn(), torch.rand(2, 16, 40)


@entry("CRDNN (LSTM, projection)")
def _():
    model = crdnn(rnn_class=RNN.LSTM, projection_dim=18, time_pooling=True)
    return model, torch.rand(2, 16, 40)


@entry("VanillaNN")
def _():
    model = VanillaNN(
        input_shape=[None, None, 20], dnn_blocks=3, dnn_neurons=32
    )
    return model, torch.rand(2, 10, 20)


@entry("GatedNN")
def _():
    return GatedNN([2, 10, 20], blocks=2, neurons=32), torch.rand(2, 10, 20)


@entry("ESPnetVGG")
def _():
    model = ESPnetVGG(
        input_shape=[2, 16, 40],
        cnn_channels=[8, 16],
        rnn_layers=2,
        rnn_neurons=16,
        projection_neurons=16,
    )
    return model, torch.rand(2, 16, 40)


def _ecapa():
    return ECAPA_TDNN(
        20,
        channels=[32, 32, 32, 32, 48],
        attention_channels=16,
        res2net_scale=4,
        se_channels=12,
        lin_neurons=24,
    )


@entry("ECAPA-TDNN")
def _():
    return _ecapa(), torch.rand(2, 40, 20)


def _xvector():
    return Xvector(
        in_channels=20, tdnn_channels=[32, 32, 32, 32, 48], lin_neurons=24
    )


@entry("x-vector")
def _():
    return _xvector(), torch.rand(2, 40, 20)


@entry("x-vector + classifier")
def _():
    classifier = Classifier(
        input_shape=[None, None, 24],
        lin_blocks=1,
        lin_neurons=16,
        out_neurons=10,
    )
    model = Joined(lambda m, x: m.c(m.e(x)), e=_xvector(), c=classifier)
    return model, torch.rand(2, 40, 20)


@entry("ResNet (speakers)")
def _():
    model = ResNet(
        input_size=24,
        channels=[8, 8, 16, 16],
        block_sizes=[1, 2, 1, 1],
        lin_neurons=12,
    )
    return model, torch.rand(2, 32, 24)


@entry("ResNet34 (noisegate)")
def _():
    return ResNet34(width=0.25), torch.rand(2, 64, 48)


@entry("AASIST (noisegate)")
def _():
    model = AASIST(channels=[32, 32, 64, 64, 64, 64], graph_sizes=[64, 32])
    return model, torch.rand(2, 3000)


@entry("AASIST-L (noisegate)")
def _():
    return AASIST(), torch.rand(2, 3000)


@entry("RawNet2")
def _():
    return RawNet2((20, 20, 32), 48, 129), torch.rand(2, 6000)


@entry("Cnn14")
def _():
    return Cnn14(64, 64), torch.rand(1, 128, 64)


@entry("L2I Cnn14 + PSI")
def _():
    model = Joined(
        lambda m, x: m.psi(m.cnn(x)[1]),
        cnn=Cnn14(mel_bins=80, emb_dim=2048, return_reps=True),
        psi=L2I.CNN14PSI_stft(2048, 10),
    )
    return model, torch.rand(1, 201, 80)


@entry("L2I Psi")
def _():
    features = [
        torch.rand(2, 32, 6, 2),
        torch.rand(2, 24, 6, 2),
        torch.rand(2, 16, 12, 5),
    ]
    return L2I.Psi(n_comp=10, T=120, in_emb_dims=[32, 24, 16]), features


@entry("L2I PsiOptimized")
def _():
    model = L2I.PsiOptimized(
        dim=32, K=10, use_adapter=False, adapter_reduce_dim=False
    )
    return model, torch.rand(1, 32, 26, 32)


@entry("L2I Theta")
def _():
    return L2I.Theta(10, 24, 8), torch.rand(2, 10, 24)


@entry("L2I NMFEncoder")
def _():
    return L2I.NMFEncoder(65, 10), torch.rand(1, 65, 40)


@entry("PIQ Conv2dEncoder_v2")
def _():
    return PIQ.Conv2dEncoder_v2(dim=16), torch.rand(1, 65, 65)


@entry("PIQ VectorQuantizedPSI_Audio")
def _():
    model = PIQ.VectorQuantizedPSI_Audio(dim=16, K=32)
    return model, torch.rand(2, 16, 8, 8), torch.tensor([0, 2])
