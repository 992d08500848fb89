"""Small models of all kinds that can be gated, and what tests do to them."""

import speechbrain as sb
import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.lobes.models.conv_tasnet import MaskNet
from speechbrain.lobes.models.CRDNN import CNN_Block, DNN_Block
from speechbrain.lobes.models.dual_path import (
    Decoder,
    Encoder,
    SepformerWrapper,
)
from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN
from speechbrain.lobes.models.ResNet import ResNet as SpeakerResNet
from speechbrain.lobes.models.transformer.Conformer import ConformerEncoder
from speechbrain.lobes.models.transformer.Transformer import (
    TransformerEncoder,
    TransformerEncoderLayer,
)
from speechbrain.lobes.models.wav2vec import EncoderWrapper, W2VLatentExtractor
from speechbrain.lobes.models.Xvector import Xvector
from speechbrain.nnet.attention import RelPosEncXL
from speechbrain.nnet.CNN import Conv1d, Conv2d
from speechbrain.nnet.containers import Sequential
from speechbrain.nnet.linear import Linear
from speechbrain.nnet.normalization import BatchNorm1d, BatchNorm2d, LayerNorm
from speechbrain.nnet.RNN import GRU

from noisegate.baselines.gates import HardConcreteGate
from noisegate.compact import Corrections
from noisegate.cut import detached_copy
from noisegate.gate import NoiseGate
from noisegate.gates import Gates

BANDS = 80
SECONDS = 0.2
GATES = {"noise": NoiseGate, "stochastic": HardConcreteGate}


def crnn(norm=LayerNorm):
    """Two convolutions, a bidirectional GRU, two linear layers."""
    net = Sequential(input_shape=[None, None, BANDS])
    for name in ("conv1", "conv2"):
        net.append(Conv1d, out_channels=12, kernel_size=5, layer_name=name)
        net.append(norm, layer_name=name + "_norm")
        net.append(torch.nn.ReLU(), layer_name=name + "_act")
    net.append(
        GRU,
        hidden_size=10,
        num_layers=2,
        bidirectional=True,
        layer_name="rnn",
    )
    net.append(Linear, n_neurons=14, layer_name="hidden")
    net.append(torch.nn.ReLU(), layer_name="hidden_act")
    net.append(Linear, n_neurons=1, layer_name="out")
    return net


def crnn_batch():
    """The same with BatchNorm."""
    return crnn(BatchNorm1d)


def conv2d():
    """Convolutions over time and frequency, flattened for a GRU."""
    net = Sequential(input_shape=[None, None, BANDS])
    for name, channels in (("conv1", 6), ("conv2", 5)):
        net.append(
            Conv2d,
            out_channels=channels,
            kernel_size=(3, 5),
            stride=(4, 1),
            layer_name=name,
        )
        net.append(BatchNorm2d, layer_name=name + "_norm")
        net.append(torch.nn.ReLU(), layer_name=name + "_act")
    net.append(GRU, hidden_size=9, layer_name="rnn")
    net.append(Linear, n_neurons=1, layer_name="out")
    return net


def transformer(ffn_type="regularFFN", normalize_before=True):
    """Two encoder layers behind a projection."""
    net = Sequential(input_shape=[None, None, BANDS])
    net.append(Linear, n_neurons=16, layer_name="project")
    for name in ("layer1", "layer2"):
        encoder = TransformerEncoderLayer(
            d_ffn=20,
            nhead=4,
            d_model=16,
            ffn_type=ffn_type,
            ffn_cnn_kernel_size_list=[5, 3],
            normalize_before=normalize_before,
        )
        net.append(encoder, layer_name=name)
    net.append(LayerNorm, layer_name="norm")
    net.append(Linear, n_neurons=1, layer_name="out")
    return net


def transformer_post():
    """Normalization behind the residual sums."""
    return transformer(normalize_before=False)


def transformer_cnn():
    """Convolutions as feed-forward layers."""
    return transformer("1dcnn")


def transformer_cnn_post():
    """Convolutions as feed-forward layers, normalization behind."""
    return transformer("1dcnn", False)


def norms():
    """Normalizations of the input, of a GRU's two directions, of a plane."""
    net = Sequential(input_shape=[None, None, BANDS])
    net.append(LayerNorm, layer_name="norm0")
    net.append(Linear, n_neurons=11, bias=False, layer_name="project")
    net.append(BatchNorm1d, affine=False, layer_name="norm1")
    net.append(GRU, hidden_size=7, bidirectional=True, layer_name="rnn1")
    net.append(BatchNorm1d, layer_name="norm2")
    net.append(GRU, hidden_size=6, bidirectional=True, layer_name="rnn2")
    net.append(LayerNorm, layer_name="norm3")
    net.append(Linear, n_neurons=1, layer_name="out")
    return net


MODELS = {
    "crnn": crnn,
    "crnn_batch": crnn_batch,
    "conv2d": conv2d,
    "transformer": transformer,
    "transformer_post": transformer_post,
    "transformer_cnn": transformer_cnn,
    "transformer_cnn_post": transformer_cnn_post,
    "norms": norms,
}


class Block(torch.nn.Module):
    """Two convolutions with a residual sum."""

    def __init__(self, n_in, n_out, stride):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(n_out)
        self.conv2 = torch.nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.bn2 = torch.nn.BatchNorm2d(n_out)
        self.down = torch.nn.Sequential()
        if stride > 1:
            self.down = torch.nn.Sequential(
                torch.nn.Conv2d(n_in, n_out, 1, stride, bias=False),
                torch.nn.BatchNorm2d(n_out),
            )

    def forward(self, x):
        """Returns (batch, channels, time, frequency)."""
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.down(x))


class ResNet(torch.nn.Module):
    """Two residual stacks and statistics pooling."""

    def __init__(self, bands=12, flatten=True):
        super().__init__()
        self.flatten = flatten
        self.conv = torch.nn.Conv2d(1, 6, 3, 1, 1, bias=False)
        self.bn = torch.nn.BatchNorm2d(6)
        self.stack1 = torch.nn.Sequential(Block(6, 6, 1), Block(6, 6, 1))
        self.stack2 = torch.nn.Sequential(Block(6, 7, 2), Block(7, 7, 1))
        self.out = torch.nn.Linear(14 * (bands // 2 if flatten else 1), 2)

    def forward(self, x):
        """Returns two scores for each utterance."""
        x = x.transpose(1, 2).unsqueeze(1)
        x = torch.relu(self.bn(self.conv(x)))
        x = self.stack2(self.stack1(x))
        # Over time alone, or over time and frequency
        x = x.flatten(1, 2) if self.flatten else x.flatten(2)
        deviation = (x.var(2) + 1e-5).sqrt()
        return self.out(torch.cat([x.mean(2), deviation], 1))


class Chain(torch.nn.Module):
    """Modules that a recipe calls one after the other."""

    def __init__(self, *modules):
        super().__init__()
        self.steps = torch.nn.ModuleList(modules)

    def forward(self, x):
        """Returns what the last one returns, without its states."""
        for step in self.steps:
            x = step(x)
            x = x[0] if isinstance(x, tuple) else x
        return x


def vad_crdnn(rnn=GRU):
    """The parts of SpeechBrain's VAD model."""
    cnn = Sequential(input_shape=[None, None, 12])
    cnn.append(LayerNorm, layer_name="norm1")
    for i, channels in enumerate((5, 6)):
        cnn.append(
            CNN_Block,
            channels=channels,
            kernel_size=(3, 3),
            layer_name=f"cnn{i}",
        )
    dnn = Sequential(input_shape=[None, None, 14])
    dnn.append(DNN_Block, neurons=9, layer_name="dnn1")
    dnn.append(Linear, n_neurons=1, bias=False, layer_name="lin")
    options = {"hidden_size": 7, "num_layers": 2, "bidirectional": True}
    return Chain(cnn, rnn(input_shape=[2, 16, 3, 6], **options), dnn)


class ConvTasNet(torch.nn.Module):
    """Encoder, mask network and decoder of a separation recipe."""

    def __init__(self):
        super().__init__()
        self.encoder = Encoder(kernel_size=8, out_channels=12)
        self.mask = MaskNet(12, 7, 9, 3, 2, 1, 2)
        self.decoder = Decoder(12, 1, kernel_size=8, stride=4, bias=False)

    def forward(self, x):
        """Returns two signals."""
        h = self.encoder(x)
        return torch.stack([self.decoder(h * mask) for mask in self.mask(h)])


class Conformer(torch.nn.Module):
    """Conformer encoder with relative positions and an output layer."""

    def __init__(self):
        super().__init__()
        self.project = Linear(n_neurons=16, input_size=12)
        self.positions = RelPosEncXL(16)
        self.encoder = ConformerEncoder(
            num_layers=2, d_model=16, d_ffn=20, nhead=4, kernel_size=5
        )
        self.out = Linear(n_neurons=3, input_size=16)

    def forward(self, x):
        """Returns scores of frames."""
        x = self.project(x)
        positions = self.positions(x).to(x)  # they are float32 always
        return self.out(self.encoder(x, pos_embs=positions)[0])


class Wav2Vec2(torch.nn.Module):
    """SpeechBrain's own wav2vec 2.0 encoder with an output layer."""

    def __init__(self):
        super().__init__()
        self.extractor = W2VLatentExtractor(out_channels=[8] * 7)
        encoder = TransformerEncoder(
            d_model=16,
            num_layers=2,
            nhead=4,
            d_ffn=20,
            activation=torch.nn.GELU,
        )
        self.encoder = EncoderWrapper(8, 16, encoder)
        self.out = Linear(n_neurons=3, input_size=16)

    def forward(self, x):
        """Returns scores of frames."""
        return self.out(self.encoder(self.extractor(x))["embeddings"])


def grouped():
    """Convolutions and normalizations in groups, and channel multipliers."""
    return torch.nn.Sequential(
        torch.nn.Conv1d(10, 18, 3),
        torch.nn.GroupNorm(6, 18),
        torch.nn.ReLU(),
        torch.nn.Conv1d(18, 12, 3, groups=6),
        torch.nn.ReLU(),
        torch.nn.Conv1d(12, 5, 1),
        torch.nn.PReLU(5),
        torch.nn.Conv1d(5, 15, 3, groups=5),
        torch.nn.GELU(),
        torch.nn.ConvTranspose1d(15, 20, 4, 2, groups=5),
        torch.nn.GroupNorm(5, 20),
        torch.nn.Conv1d(20, 3, 1),
    )


class ConvPositions(torch.nn.Module):
    """An encoder behind a convolution in groups, as in wav2vec 2.0."""

    def __init__(self, groups=4, nhead=4):
        super().__init__()
        self.project = Linear(n_neurons=24, input_size=12)
        self.positions = torch.nn.Conv1d(24, 24, 5, padding=2, groups=groups)
        self.encoder = TransformerEncoder(
            num_layers=2,
            nhead=nhead,
            d_ffn=20,
            d_model=24,
            activation=torch.nn.GELU,
        )
        self.out = Linear(n_neurons=3, input_size=24)

    def forward(self, x):
        """Returns scores of frames."""
        x = self.project(x)
        x = x + self.positions(x.mT).relu().mT
        return self.out(self.encoder(x)[0])


SWAP_IN = {
    "grouped": (grouped, (2, 10, 16)),
    "conv_positions": (ConvPositions, (2, 16, 12)),
    "resnet": (ResNet, (2, 20, 12)),
    "resnet_pooled": (lambda: ResNet(flatten=False), (2, 20, 12)),
    "sb_resnet": (
        lambda: SpeakerResNet(
            input_size=16,
            channels=[4, 4, 6, 6],
            block_sizes=[1, 2, 1, 1],
            lin_neurons=5,
        ),
        (2, 20, 16),
    ),
    "ecapa": (
        lambda: ECAPA_TDNN(
            10,
            channels=[32, 32, 32, 32, 24],
            attention_channels=7,
            res2net_scale=4,
            se_channels=6,
            lin_neurons=5,
        ),
        (2, 20, 10),
    ),
    "xvector": (
        lambda: Xvector(
            in_channels=10,
            tdnn_channels=[8, 8, 8, 8, 12],
            lin_neurons=5,
        ),
        (2, 25, 10),
    ),
    "crdnn": (vad_crdnn, (2, 16, 12)),
    "ligru": (lambda: vad_crdnn(sb.nnet.RNN.LiGRU), (2, 16, 12)),
    "conv_tasnet": (ConvTasNet, (2, 160)),
    "sepformer": (
        lambda: SepformerWrapper(
            encoder_out_nchannels=16,
            masknet_chunksize=10,
            masknet_numlayers=1,
            intra_numlayers=1,
            inter_numlayers=1,
            intra_nhead=4,
            inter_nhead=4,
            intra_dffn=9,
            inter_dffn=7,
        ),
        (1, 320),
    ),
    "conformer": (Conformer, (2, 16, 12)),
    "wav2vec2": (Wav2Vec2, (1, 1600)),
}


def front_end(bands=BANDS):
    """The mel filterbank in front of the models."""
    return sb.lobes.features.Fbank(n_mels=bands)


def randomise(model, seed=0):
    """Gives all parameters and normalization statistics random values."""
    draw = torch.Generator().manual_seed(seed)

    def normal(like):
        return torch.randn(like.shape, generator=draw)

    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.copy_(1 + 0.5 * normal(parameter))
        for module in model.modules():
            if getattr(module, "running_var", None) is not None:
                module.running_mean.copy_(normal(module.running_mean))
                module.running_var.copy_(0.5 + normal(module.running_var).abs())
    return model.eval()


def gated(name, gate="noise", seed=0, **options):
    """A random model with gates on all groups that can have one."""
    torch.manual_seed(seed)
    model = randomise(MODELS[name](), seed)
    return Gates(
        model,
        front_end=front_end(),
        gate=GATES.get(gate, gate),
        segment_s=SECONDS,
        **options,
    )


def random_widths(gates, seed=0):
    """Allowed random integer widths."""
    draw = torch.Generator().manual_seed(seed)
    widths = {}
    for name, gate in gates.items():
        low = gate.min_width // gate.granularity
        high = gate.size // gate.granularity + 1
        steps = int(torch.randint(low, high, (1,), generator=draw))
        widths[name] = steps * gate.granularity
    return widths


def scramble(gates, seed=0):
    """Gives the channels of each gate a random order."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for gate in gates.values():
            useful = torch.rand(gate.size, generator=draw)
            gate.reorder(useful.to(gate.rank.device))
            if isinstance(gate, HardConcreteGate):
                gate.location.add_(torch.randn(gate.size, generator=draw))


def open_bands(gates, feats):
    """The features that the cut model reads."""
    gate = gates.get("features")
    return feats if gate is None else feats[..., gate.open_channels()]


_FRESH = []


def fresh():
    """The model that :func:`corrected` was given, for YAMLs."""
    return _FRESH[-1]


def corrections(model, small):
    """What the YAML of a saved folder does to a fresh model (list of str)."""
    return Corrections("model", detached_copy(model), small).lines


def corrected(model, lines):
    """A fresh model to which that was done."""
    _FRESH[:] = [model]
    made = f"model: !apply:{__name__}.fresh"
    return load_hyperpyyaml("\n".join([made, *lines]))["model"]
