"""The zoo: synthesis, vocoders, diffusion, codecs; layers between linear ones.

Authors
 * The noisegate developers, 2026
"""

import torch
from speechbrain.lobes.features import Leaf
from speechbrain.lobes.models import FastSpeech2, HifiGAN
from speechbrain.lobes.models.DiffWave import DiffWave
from speechbrain.lobes.models.discrete.dac import DAC
from speechbrain.lobes.models.Tacotron2 import Tacotron2
from speechbrain.lobes.models.transformer.Transformer import TransformerEncoder
from speechbrain.nnet import RNN
from speechbrain.nnet.adapters import AdaptedModel, LoRA
from speechbrain.nnet.CNN import Conv1d, SincConv
from speechbrain.nnet.containers import ConnectBlocks, Sequential
from speechbrain.nnet.linear import Linear
from speechbrain.nnet.normalization import BatchNorm1d
from speechbrain.nnet.quaternion_networks.q_CNN import QConv1d
from speechbrain.nnet.quaternion_networks.q_linear import QLinear
from speechbrain.nnet.unet import UNetModel

from benchmarks.zoo_entries import Joined, entry


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
