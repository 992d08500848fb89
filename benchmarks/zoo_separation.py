"""The zoo: separation and enhancement.

Authors
 * The noisegate developers, 2026
"""

import torch
from speechbrain.lobes.models import (
    MetricGAN,
    MetricGAN_U,
    conv_tasnet,
    dual_path,
    resepformer,
    segan_model,
)
from speechbrain.lobes.models.EnhanceResnet import EnhanceResnet
from speechbrain.lobes.models.transformer.TransformerSE import CNNTransformerSE
from speechbrain.nnet.containers import Sequential

from benchmarks.zoo_entries import Joined, entry


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
