"""Blocks that can be fused: how each is made, and its inputs."""

import functools

import paper_blocks
import torch
from packages import load

SIZE = (9, 14)


def one_map(channels, size=SIZE):
    return lambda batch: (torch.randn(batch, channels, *size),)


def one_map_of_16(block, batch, size):
    return (torch.randn(batch, 16, *size),)


def pixels_and_regions(block, batch, size):
    return torch.randn(batch, 16, *size), torch.randn(batch, 16, 5, 1)


def timm_non_local():
    return load("timm.layers.non_local_attn").NonLocalAttn(24, rd_ratio=0.5), one_map(24)


def mmcv_non_local(**settings):
    def make():
        module = load("mmcv.cnn.bricks.non_local")
        return module.NonLocal2d(12, **settings), one_map(12)

    return make


def paper(cls, *args, inputs=one_map_of_16):
    return lambda: (cls(*args), functools.partial(inputs, None, size=SIZE))


def diffusers_attention(processor="AttnProcessor2_0", **settings):
    def make():
        module = load("diffusers.models.attention_processor")
        settings.setdefault("norm_num_groups", 4)
        chosen = getattr(module, processor)()
        block = module.Attention(16, bias=True, processor=chosen, **settings)
        return block, one_map(16)

    return make


def vae_attention(**settings):
    return diffusers_attention(heads=1, dim_head=16, residual_connection=True, **settings)


def diffusers_tokens():
    block, _ = diffusers_attention(heads=4, dim_head=8, norm_num_groups=None, dropout=0.1)()
    return block, lambda batch: (torch.randn(batch, 35, 16),)


def ultralytics_attention():
    block = load("ultralytics.nn.modules.block").Attention(32, num_heads=2)
    return block, one_map(32)


def tokens_of_a_map(channels, size=(21, 23)):
    return lambda batch: (torch.randn(batch, size[0] * size[1], channels), *size)


def segformer(ratio):
    def make():
        module = load("transformers.models.segformer.modeling_segformer")
        config = load("transformers").SegformerConfig(attn_implementation="sdpa")
        return module.SegformerAttention(config, 16, 2, ratio), tokens_of_a_map(16)

    return make


def pvt(ratio):
    def make():
        module = load("transformers.models.pvt.modeling_pvt")
        config = load("transformers").PvtConfig()
        return module.PvtEfficientSelfAttention(config, 16, 2, ratio), tokens_of_a_map(16)

    return make


MAKERS = {
    "timm NonLocalAttn": timm_non_local,
    "mmcv embedded Gaussian": mmcv_non_local(),
    "mmcv without scale": mmcv_non_local(use_scale=False, reduction=1),
    "mmcv sub_sample": mmcv_non_local(sub_sample=True),
    "mmcv norm": mmcv_non_local(sub_sample=True, norm_cfg={"type": "BN"}),
    "mmcv Gaussian": mmcv_non_local(mode="gaussian"),
    "mmcv Gaussian sub_sample norm": mmcv_non_local(
        mode="gaussian", sub_sample=True, norm_cfg={"type": "BN"}
    ),
    "diffusers VAE": vae_attention(),
    "diffusers VAE, AttnProcessor": vae_attention(processor="AttnProcessor", upcast_softmax=True),
    "diffusers without scale": vae_attention(processor="AttnProcessor", scale_qk=False),
    "diffusers without scale, by torch": vae_attention(scale_qk=False),
    "diffusers tokens": diffusers_tokens,
    "ultralytics PSA": ultralytics_attention,
    "SegFormer": segformer(4),
    "SegFormer without reduction": segformer(1),
    "PVT": pvt(4),
    "PVT without reduction": pvt(1),
    "DANet position": paper(paper_blocks.PositionAttention, 16),
    "SAGAN": paper(paper_blocks.SelfAttention, 16),
    "BigGAN": paper(paper_blocks.BigGanAttention, 16),
    "OCR object attention": paper(paper_blocks.ObjectAttention, 16, 8, inputs=pixels_and_regions),
    "asymmetric non-local": paper(paper_blocks.AsymmetricNonLocal, 16, 8),
    "STM": paper(paper_blocks.SpaceTimeMemoryRead, inputs=paper_blocks.memory_and_query),
    "STCN": paper(paper_blocks.CorrespondenceRead, inputs=paper_blocks.frames_and_query),
    "XMem": paper(paper_blocks.AnisotropicRead, inputs=paper_blocks.frames_and_selection),
}


def randomise(block):
    """Random parameters and statistics, in place."""
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.25)
    for name, buffer in block.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            torch.nn.init.uniform_(buffer, 0.5, 1.5)
    return block
