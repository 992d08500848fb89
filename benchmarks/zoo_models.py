"""Small configurations of the models of SpeechBrain, and of three more.

Each entry of :data:`ZOO` builds a model and the arguments of its forward,
all positional. What a recipe puts behind a model (output layers, a decoder)
is part of it where the model alone would end in its hidden features.

Authors
 * The noisegate developers, 2026
"""

import importlib.util
from pathlib import Path
from unittest import mock

import torch
from aasist import AASIST
from resnet34 import ResNet34
from speechbrain.lobes.features import Leaf
from speechbrain.lobes.models import (
    L2I,
    PIQ,
    FastSpeech2,
    HifiGAN,
    MetricGAN,
    MetricGAN_U,
    beats,
    conv_tasnet,
    dual_path,
    resepformer,
    segan_model,
)
from speechbrain.lobes.models.Cnn14 import Cnn14
from speechbrain.lobes.models.ContextNet import ContextNet
from speechbrain.lobes.models.convolution import ConvolutionFrontEnd
from speechbrain.lobes.models.CRDNN import CRDNN, CNN_Block, DNN_Block
from speechbrain.lobes.models.DiffWave import DiffWave
from speechbrain.lobes.models.discrete.dac import DAC
from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN
from speechbrain.lobes.models.EnhanceResnet import EnhanceResnet
from speechbrain.lobes.models.ESPnetVGG import ESPnetVGG
from speechbrain.lobes.models.GatedNN import GatedNN
from speechbrain.lobes.models.ResNet import ResNet
from speechbrain.lobes.models.RNNLM import RNNLM
from speechbrain.lobes.models.Tacotron2 import Tacotron2
from speechbrain.lobes.models.transformer.Transformer import TransformerEncoder
from speechbrain.lobes.models.transformer.TransformerASR import TransformerASR
from speechbrain.lobes.models.transformer.TransformerLM import TransformerLM
from speechbrain.lobes.models.transformer.TransformerSE import CNNTransformerSE
from speechbrain.lobes.models.transformer.TransformerST import TransformerST
from speechbrain.lobes.models.VanillaNN import VanillaNN
from speechbrain.lobes.models.wav2vec import EncoderWrapper, W2VLatentExtractor
from speechbrain.lobes.models.Xvector import Classifier, Xvector
from speechbrain.nnet import RNN
from speechbrain.nnet.adapters import AdaptedModel, LoRA
from speechbrain.nnet.CNN import Conv1d, SincConv
from speechbrain.nnet.containers import ConnectBlocks, Sequential
from speechbrain.nnet.embedding import Embedding
from speechbrain.nnet.linear import Linear
from speechbrain.nnet.normalization import BatchNorm1d, LayerNorm
from speechbrain.nnet.quaternion_networks.q_CNN import QConv1d
from speechbrain.nnet.quaternion_networks.q_linear import QLinear
from speechbrain.nnet.transducer.transducer_joint import Transducer_joint
from speechbrain.nnet.unet import UNetModel

ZOO = {}


def entry(name):
    """Enters the function that builds a model."""

    def enter(function):
        ZOO[name] = function
        return function

    return enter


def build(name):
    """Builds a model with random parameters and statistics.

    Equal or zero initial values would hide wrong cuts.

    Arguments
    ---------
    name : str
        Key of :data:`ZOO`.

    Returns
    -------
    model : torch.nn.Module
        In evaluation mode.
    inputs : list
        Arguments of its forward.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, *inputs = ZOO[name]()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))
                elif parameter.numel() > 1 and parameter.std() < 1e-4:
                    parameter.normal_(std=0.1)
            for module in model.modules():
                if getattr(module, "running_var", None) is not None:
                    module.running_mean.normal_(std=0.3)
                    module.running_var.uniform_(0.5, 1.5)
    return model.eval(), inputs


class Joined(torch.nn.Module):
    """Modules and the function of them that a recipe computes.

    Arguments
    ---------
    compute : callable
        Called with this object and the arguments of the forward.
    **modules : dict
        The modules by name.
    """

    def __init__(self, compute, **modules):
        super().__init__()
        self.compute = compute
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, *inputs):
        """Returns what the function returns."""
        return self.compute(self, *inputs)


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


# ---------------------------------------------------------------------------
# Voice activity, speakers, sounds, spoofing


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


def _crdnn(**options):
    sizes = {"rnn_layers": 2, "rnn_neurons": 24, "dnn_neurons": 20, **options}
    return CRDNN(input_size=40, cnn_channels=[8, 16], **sizes)


@entry("CRDNN (LiGRU)")
def _():
    return _crdnn(), torch.rand(2, 16, 40)


@entry("CRDNN (LSTM, projection)")
def _():
    model = _crdnn(rnn_class=RNN.LSTM, projection_dim=18, time_pooling=True)
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


# ---------------------------------------------------------------------------
# Interpretation


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


# ---------------------------------------------------------------------------
# Separation and enhancement


def _masked(m, x):
    """A mask network between encoder and decoder, two speakers."""
    h = m.encoder(x)
    masks = m.masks(h)
    return torch.stack([m.decoder(h * mask) for mask in masks], -1)


def _separator(masks, channels):
    return Joined(
        _masked,
        encoder=dual_path.Encoder(kernel_size=8, out_channels=channels),
        masks=masks,
        decoder=dual_path.Decoder(
            channels, 1, kernel_size=8, stride=4, bias=False
        ),
    )


@entry("Conv-TasNet")
def _():
    masks = conv_tasnet.MaskNet(24, 16, 32, 3, 2, 1, 2)
    return _separator(masks, 24), torch.rand(2, 400)


@entry("Conv-TasNet (cLN, causal)")
def _():
    masks = conv_tasnet.MaskNet(
        24, 16, 32, 3, 2, 1, 2, norm_type="cLN", causal=True
    )
    return _separator(masks, 24), torch.rand(2, 400)


@entry("SepFormer")
def _():
    model = dual_path.SepformerWrapper(
        encoder_out_nchannels=32,
        masknet_chunksize=20,
        masknet_numlayers=1,
        intra_numlayers=1,
        inter_numlayers=1,
        intra_nhead=4,
        inter_nhead=4,
        intra_dffn=48,
        inter_dffn=48,
    )
    return model, torch.rand(1, 400)


@entry("DPRNN")
def _():
    masks = dual_path.Dual_Path_Model(
        32,
        32,
        dual_path.SBRNNBlock(32, 24, 1),
        dual_path.SBRNNBlock(32, 24, 1),
        num_layers=1,
        K=20,
    )
    return _separator(masks, 32), torch.rand(1, 400)


@entry("DPTNet")
def _():
    masks = dual_path.Dual_Path_Model(
        32,
        32,
        dual_path.DPTNetBlock(d_model=32, nhead=4, dim_feedforward=24),
        dual_path.DPTNetBlock(d_model=32, nhead=4, dim_feedforward=24),
        num_layers=1,
        K=20,
    )
    return _separator(masks, 32), torch.rand(1, 400)


def _resource_efficient(**options):
    masks = resepformer.ResourceEfficientSeparator(
        32, num_spk=2, layer=2, segment_size=10, **options
    )
    return _separator(masks, 32)


@entry("RE-SepFormer")
def _():
    kind = resepformer.SBTransformerBlock_wnormandskip
    model = _resource_efficient(
        mem_type="av",
        unit=48,
        seg_model=kind(1, 32, 4, d_ffn=40),
        mem_model=kind(1, 32, 4, d_ffn=40),
    )
    return model, torch.rand(2, 200)


@entry("SkiM")
def _():
    model = _resource_efficient(
        causal=True,
        mem_type="hc",
        unit=24,
        seg_model=resepformer.SegLSTM(32, 24),
        mem_model=resepformer.MemLSTM(24, mem_type="hc"),
    )
    return model, torch.rand(2, 200)


@entry("MetricGAN generator")
def _():
    model = MetricGAN.EnhancementGenerator(input_size=257, hidden_size=200)
    return model, torch.rand(2, 15, 257), torch.ones(2)


@entry("MetricGAN discriminator")
def _():
    return MetricGAN.MetricDiscriminator(), torch.rand(1, 2, 40, 65)


@entry("MetricGAN-U generator")
def _():
    model = MetricGAN_U.EnhancementGenerator(input_size=33, hidden_size=20)
    return model, torch.rand(2, 15, 33), torch.ones(2)


@entry("SEGAN generator")
def _():
    return segan_model.Generator(31, False, False), torch.rand(1, 4096, 1)


@entry("SEGAN discriminator")
def _():
    return segan_model.Discriminator(31), torch.rand(1, 16384, 2)


@entry("EnhanceResnet")
def _():
    model = EnhanceResnet(
        n_fft=128,
        win_length=8,
        hop_length=4,
        channel_counts=[8, 16],
        dense_nodes=32,
    )
    return model, torch.rand(1, 2000)


@entry("CNNTransformerSE")
def _():
    model = CNNTransformerSE(
        d_model=32,
        output_size=33,
        nhead=4,
        num_layers=2,
        d_ffn=48,
        custom_emb_module=Sequential(
            torch.nn.Linear(33, 32), input_shape=[None, None, 33]
        ),
    )
    return model, torch.rand(2, 12, 33)


# ---------------------------------------------------------------------------
# Recognition, translation, language models


def _with_heads(m, feats, tokens):
    encoded, decoded = m.net(m.front(feats), tokens, torch.ones(len(feats)))
    return m.ctc(encoded), m.seq(decoded)


def _asr(front=None, n_in=24, **options):
    sizes = {
        "d_model": 32,
        "nhead": 4,
        "num_encoder_layers": 2,
        "num_decoder_layers": 1,
        "d_ffn": 48,
        "activation": torch.nn.GELU,
        "normalize_before": True,
        "causal": False,
        **options,
    }
    return Joined(
        _with_heads,
        front=front or torch.nn.Identity(),
        net=TransformerASR(20, n_in, **sizes),
        ctc=Linear(input_size=32, n_neurons=20),
        seq=Linear(input_size=32, n_neurons=20),
    )


def _asr_inputs():
    return torch.rand(2, 12, 24), torch.randint(1, 19, (2, 6))


def _conformer(attention, **options):
    return _asr(
        encoder_module="conformer",
        attention_type=attention,
        kernel_size=5,
        **options,
    )


@entry("TransformerASR")
def _():
    return _asr(), *_asr_inputs()


@entry("ConformerASR (RelPosMHAXL)")
def _():
    return _conformer("RelPosMHAXL"), *_asr_inputs()


@entry("ConformerASR (RoPEMHA)")
def _():
    return _conformer("RoPEMHA"), *_asr_inputs()


@entry("ConformerASR (hypermixing)")
def _():
    return _conformer("hypermixing"), *_asr_inputs()


@entry("BranchformerASR")
def _():
    model = _asr(
        encoder_module="branchformer",
        attention_type="RelPosMHAXL",
        kernel_size=5,
        csgu_linear_units=40,
    )
    return model, *_asr_inputs()


@entry("ConformerASR, CNN in front")
def _():
    front = ConvolutionFrontEnd(
        input_shape=(2, 48, 24),
        num_blocks=2,
        num_layers_per_block=1,
        out_channels=[8, 4],
        kernel_sizes=[3, 3],
        strides=[2, 2],
        residuals=[False, False],
    )
    model = _conformer("RelPosMHAXL", front=front)
    return model, torch.rand(2, 48, 24), torch.randint(1, 19, (2, 6))


@entry("ConformerASR, encoder alone")
def _():
    model = _conformer("RelPosMHAXL").net
    return model, *_asr_inputs(), torch.ones(2)


@entry("TransformerST")
def _():
    net = TransformerST(
        20,
        24,
        32,
        4,
        1,
        1,
        48,
        activation=torch.nn.GELU,
        ctc_weight=0.3,
        asr_weight=0.3,
        asr_tgt_vocab=20,
    )
    model = Joined(
        lambda m, x, y: [f(z) for f, z in zip((m.enc, m.dec), m.net(x, y)[:2])],
        net=net,
        enc=Linear(input_size=32, n_neurons=20),
        dec=Linear(input_size=32, n_neurons=20),
    )
    return model, *_asr_inputs()


@entry("TransformerEncoder")
def _():
    model = Joined(
        lambda m, x: m.out(m.net(m.project(x))[0]),
        project=Linear(input_size=24, n_neurons=32),
        net=TransformerEncoder(2, 4, 48, d_model=32),
        out=Linear(input_size=32, n_neurons=10),
    )
    return model, torch.rand(2, 12, 24)


@entry("TransformerEncoder, alone")
def _():
    return TransformerEncoder(2, 4, 48, d_model=32), torch.rand(2, 12, 32)


@entry("TransformerLM")
def _():
    model = TransformerLM(20, 32, 4, 2, 0, 48, activation=torch.nn.GELU)
    return model, torch.randint(1, 19, (2, 12))


@entry("RNNLM")
def _():
    model = RNNLM(
        output_neurons=15, embedding_dim=16, rnn_neurons=24, dnn_neurons=20
    )
    return model, torch.randint(0, 14, (2, 9))


@entry("ConvolutionFrontEnd")
def _():
    model = ConvolutionFrontEnd(
        input_shape=(2, 30, 20),
        num_blocks=2,
        num_layers_per_block=2,
        out_channels=[8, 16],
        kernel_sizes=[3, 3],
        strides=[2, 2],
        residuals=[True, False],
    )
    return model, torch.rand(2, 30, 20)


@entry("ContextNet")
def _():
    model = ContextNet(
        input_shape=(2, 48, 20),
        out_channels=24,
        conv_channels=[16] * 3,
        strides=[1, 2, 1],
        num_blocks=3,
        num_layers=2,
        inner_dim=6,
        residuals=[False, True, True],
    )
    return model, torch.rand(2, 48, 20)


@entry("wav2vec 2.0")
def _():
    model = Joined(
        lambda m, x: m.out(m.encoder(m.extractor(x))["embeddings"]),
        extractor=W2VLatentExtractor(out_channels=[16] * 7),
        encoder=EncoderWrapper(
            16,
            32,
            TransformerEncoder(d_model=32, num_layers=1, nhead=4, d_ffn=48),
        ),
        out=Linear(input_size=32, n_neurons=20),
    )
    return model, torch.rand(1, 3000)


@entry("BEATs")
def _():
    sizes = {
        "embed_dim": 32,
        "encoder_embed_dim": 48,
        "encoder_ffn_embed_dim": 64,
        "encoder_layers": 2,
        "encoder_attention_heads": 4,
        "conv_pos": 16,
        "conv_pos_groups": 4,
    }
    # Its constructor takes sizes from a checkpoint only
    config = beats.BEATsConfig(sizes)
    with mock.patch.object(beats, "BEATsConfig", lambda _: config):
        net = beats.BEATs(freeze=False)

    def compute(m, x):
        return m.out(m.net.extract_features(x, torch.ones(len(x)))[0])

    model = Joined(compute, net=net, out=Linear(input_size=48, n_neurons=10))
    return model, torch.randn(1, 10000)


@entry("CRDNN + attentional decoder")
def _():
    model = Joined(
        lambda m, x, y: m.lin(m.dec(m.emb(y), m.enc(x), torch.ones(len(x)))[0]),
        enc=_crdnn(rnn_class=RNN.LSTM, rnn_layers=1, dnn_blocks=1),
        emb=Embedding(num_embeddings=12, embedding_dim=10),
        dec=RNN.AttentionalRNNDecoder(
            rnn_type="gru",
            attn_type="location",
            hidden_size=16,
            attn_dim=14,
            num_layers=1,
            enc_dim=20,
            input_size=10,
            channels=4,
            kernel_size=10,
        ),
        lin=Linear(input_size=16, n_neurons=12),
    )
    return model, torch.rand(2, 16, 40), torch.randint(0, 11, (2, 5))


@entry("Transducer")
def _():
    def compute(m, x, y):
        encoded = m.project_enc(m.enc(x)[0]).unsqueeze(2)
        predicted = m.project_dec(m.dec(m.emb(y))[0]).unsqueeze(1)
        return m.out(m.joint(encoded, predicted))

    model = Joined(
        compute,
        enc=RNN.LSTM(
            input_shape=[None, None, 20], hidden_size=24, bidirectional=True
        ),
        project_enc=Linear(input_size=48, n_neurons=32),
        emb=Embedding(num_embeddings=12, consider_as_one_hot=True, blank_id=0),
        dec=RNN.GRU(input_shape=[None, None, 11], hidden_size=24),
        project_dec=Linear(input_size=24, n_neurons=32),
        joint=Transducer_joint(joint="sum", nonlinearity=torch.nn.LeakyReLU),
        out=Linear(input_size=32, n_neurons=12),
    )
    return model, torch.rand(2, 16, 20), torch.randint(0, 11, (2, 5))


@entry("G2P AttentionSeq2Seq")
def _():
    # Its package asks for transformers, the module itself does not
    path = Path(beats.__file__).parent / "g2p" / "model.py"
    spec = importlib.util.spec_from_file_location("g2p_model", path)
    g2p = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(g2p)
    net = g2p.AttentionSeq2Seq(
        enc=RNN.LSTM(
            input_shape=[None, None, 16], hidden_size=12, bidirectional=True
        ),
        encoder_emb=Embedding(num_embeddings=20, embedding_dim=16),
        emb=Embedding(num_embeddings=15, embedding_dim=16),
        dec=RNN.AttentionalRNNDecoder(
            rnn_type="gru",
            attn_type="content",
            hidden_size=20,
            attn_dim=14,
            num_layers=1,
            enc_dim=24,
            input_size=16,
        ),
        lin=Linear(input_size=20, n_neurons=15),
        out=torch.nn.LogSoftmax(-1),
    )
    model = Joined(
        lambda m, x, y: m.net((x, torch.ones(len(x))), (y, torch.ones(len(y)))),
        net=net,
    )
    return (
        model,
        torch.randint(0, 19, (2, 7)),
        torch.randint(0, 14, (2, 6)),
    )


# ---------------------------------------------------------------------------
# Synthesis, vocoders, diffusion, codecs


@entry("Tacotron2")
def _():
    net = Tacotron2(
        mask_padding=True,
        n_mel_channels=20,
        n_symbols=30,
        symbols_embedding_dim=32,
        encoder_kernel_size=5,
        encoder_n_convolutions=2,
        encoder_embedding_dim=32,
        attention_rnn_dim=40,
        attention_dim=16,
        attention_location_n_filters=8,
        attention_location_kernel_size=7,
        n_frames_per_step=1,
        decoder_rnn_dim=40,
        prenet_dim=16,
        postnet_embedding_dim=24,
        postnet_n_convolutions=3,
    )

    def compute(m, tokens, mels):
        lengths = [torch.full((len(x),), x.shape[-1]) for x in (tokens, mels)]
        return m.net((tokens, lengths[0], mels, mels.shape[-1], lengths[1]))

    model = Joined(compute, net=net)
    return model, torch.randint(1, 29, (2, 6)), torch.rand(2, 20, 10)


def _fastspeech(kind, **options):
    return kind(
        enc_num_layers=1,
        enc_num_head=2,
        enc_d_model=32,
        enc_ffn_dim=48,
        enc_k_dim=32,
        enc_v_dim=32,
        enc_dropout=0.1,
        dec_num_layers=1,
        dec_num_head=2,
        dec_d_model=32,
        dec_ffn_dim=48,
        dec_k_dim=32,
        dec_v_dim=32,
        dec_dropout=0.1,
        normalize_before=False,
        ffn_type="1dcnn",
        ffn_cnn_kernel_size_list=[9, 1],
        n_char=40,
        n_mels=20,
        postnet_embedding_dim=24,
        postnet_kernel_size=5,
        postnet_n_convolutions=3,
        postnet_dropout=0.5,
        padding_idx=0,
        dur_pred_kernel_size=3,
        pitch_pred_kernel_size=3,
        energy_pred_kernel_size=3,
        variance_predictor_dropout=0.5,
        **options,
    )


_TOKENS = [[13, 12, 31, 14, 19], [31, 16, 30, 31, 0]]


@entry("FastSpeech2")
def _():
    durations = torch.tensor([[2, 4, 1, 5, 3], [1, 2, 4, 3, 0]])
    model = _fastspeech(FastSpeech2.FastSpeech2)
    return model, torch.tensor(_TOKENS), durations


@entry("FastSpeech2 with alignment")
def _():
    model = _fastspeech(
        FastSpeech2.FastSpeech2WithAlignment,
        in_query_channels=20,
        in_key_channels=32,
        attn_channels=20,
        temperature=0.0005,
    )
    return model, torch.tensor(_TOKENS), torch.rand(2, 30, 20)


def _hifigan(kind, **options):
    return kind(
        out_channels=1,
        resblock_type="1",
        resblock_dilation_sizes=[[1, 3, 5], [1, 3, 5]],
        resblock_kernel_sizes=[3, 7],
        upsample_kernel_sizes=[8, 4],
        upsample_initial_channel=32,
        upsample_factors=[4, 2],
        **options,
    )


@entry("HiFi-GAN generator")
def _():
    model = _hifigan(HifiGAN.HifiganGenerator, in_channels=20)
    return model, torch.rand(1, 20, 12)


@entry("Unit HiFi-GAN generator")
def _():
    model = _hifigan(
        HifiGAN.UnitHifiganGenerator,
        in_channels=32,
        vocab_size=50,
        embedding_dim=32,
        attn_dim=24,
        duration_predictor=True,
        var_pred_hidden_dim=24,
    )
    return model, torch.randint(0, 49, (2, 10, 1))


@entry("HiFi-GAN discriminator")
def _():
    return HifiGAN.MultiPeriodDiscriminator(), torch.rand(1, 1, 8192)


@entry("DiffWave")
def _():
    model = DiffWave(
        input_channels=80,
        residual_layers=2,
        residual_channels=16,
        dilation_cycle_length=2,
        total_steps=10,
    )
    steps = torch.randint(9, (1,))
    return model, torch.rand(1, 1, 2560), steps, torch.rand(1, 80, 10)


@entry("UNet (diffusion)")
def _():
    model = UNetModel(
        in_channels=3,
        model_channels=32,
        out_channels=1,
        num_res_blocks=1,
        attention_resolutions=[1],
        channel_mult=(1, 2),
        norm_num_groups=8,
    )
    return model, torch.rand(1, 3, 16, 32), torch.tensor([10])


@entry("DAC")
def _():
    codec = DAC(
        encoder_dim=8,
        encoder_rates=[2, 4],
        decoder_dim=32,
        decoder_rates=[4, 2],
        n_codebooks=2,
        codebook_size=16,
        codebook_dim=4,
    )
    model = Joined(
        lambda m, x: m.decoder(m.encoder(x)),
        encoder=codec.encoder,
        decoder=codec.decoder,
    )
    return model, torch.rand(1, 1, 320)


# ---------------------------------------------------------------------------
# Layers, between two linear ones


def _between(layer, n_in, n_out):
    def compute(m, x):
        y = m.layer(m.first(x))
        return m.last(y[0] if isinstance(y, tuple) else y)

    model = Joined(
        compute,
        first=Linear(input_size=10, n_neurons=n_in),
        layer=layer,
        last=Linear(input_size=n_out, n_neurons=3),
    )
    return model, torch.rand(2, 10, 10)


_RNN = {"hidden_size": 16, "input_shape": [2, 10, 12]}


@entry("nnet GRU")
def _():
    layer = RNN.GRU(num_layers=2, bidirectional=True, **_RNN)
    return _between(layer, 12, 32)


@entry("nnet LiGRU")
def _():
    layer = RNN.LiGRU(num_layers=2, bidirectional=True, **_RNN)
    return _between(layer, 12, 32)


@entry("nnet SLiGRU")
def _():
    return _between(RNN.SLiGRU(**_RNN), 12, 16)


@entry("nnet QuasiRNN")
def _():
    layer = RNN.QuasiRNN(num_layers=2, bidirectional=True, **_RNN)
    return _between(layer, 12, 32)


@entry("nnet ConnectBlocks (dense)")
def _():
    layer = ConnectBlocks(input_shape=[2, 10, 20], shortcut_type="dense")
    for _ in range(3):
        layer.append(Linear, n_neurons=20, end_of_block=True)
    return _between(layer, 20, 20)


@entry("nnet SincConv + Conv1d")
def _():
    model = Sequential(input_shape=[2, 1600])
    model.append(SincConv, out_channels=16, kernel_size=11, layer_name="sinc")
    model.append(BatchNorm1d, layer_name="norm")
    model.append(torch.nn.LeakyReLU(), layer_name="act")
    model.append(Conv1d, out_channels=12, kernel_size=3, layer_name="conv")
    model.append(Linear, n_neurons=4, layer_name="out")
    return model, torch.rand(2, 1600)


@entry("Leaf")
def _():
    model = Leaf(
        out_channels=20, window_len=5.0, window_stride=2.0, in_channels=1
    )
    return model, torch.rand(2, 1600)


@entry("nnet QConv1d + QLinear")
def _():
    model = Sequential(input_shape=[2, 10, 16])
    model.append(QConv1d, out_channels=8, kernel_size=3, layer_name="conv")
    model.append(torch.nn.ReLU(), layer_name="act")
    model.append(QLinear, n_neurons=6, layer_name="out")
    return model, torch.rand(2, 10, 16)


@entry("LoRA on TransformerEncoder")
def _():
    net = AdaptedModel(
        model_to_adapt=TransformerEncoder(1, 4, 48, d_model=32),
        adapter_class=LoRA,
        all_linear=True,
        adapter_kwargs={"rank": 4},
    )
    return _between(net, 32, 32)
