"""The zoo: recognition, translation, language models.

Authors
 * The noisegate developers, 2026
"""

import importlib.util
from pathlib import Path
from unittest import mock

import torch
from speechbrain.lobes.models import beats
from speechbrain.lobes.models.ContextNet import ContextNet
from speechbrain.lobes.models.convolution import ConvolutionFrontEnd
from speechbrain.lobes.models.RNNLM import RNNLM
from speechbrain.lobes.models.transformer.Transformer import TransformerEncoder
from speechbrain.lobes.models.transformer.TransformerASR import TransformerASR
from speechbrain.lobes.models.transformer.TransformerLM import TransformerLM
from speechbrain.lobes.models.transformer.TransformerST import TransformerST
from speechbrain.lobes.models.wav2vec import EncoderWrapper, W2VLatentExtractor
from speechbrain.nnet import RNN
from speechbrain.nnet.embedding import Embedding
from speechbrain.nnet.linear import Linear
from speechbrain.nnet.transducer.transducer_joint import Transducer_joint

from benchmarks.zoo_classification import crdnn
from benchmarks.zoo_entries import Joined, entry


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
        enc=crdnn(rnn_class=RNN.LSTM, rnn_layers=1, dnn_blocks=1),
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
