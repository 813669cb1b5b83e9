"""Blocks that can be fused: how each is made, and its inputs."""

import paper_blocks
import torch
from packages import load

SIZE = (9, 14)


def one_map(channels, size=SIZE):
    return lambda batch: (torch.randn(batch, channels, *size),)


def timm_non_local():
    return load("timm.layers.non_local_attn").NonLocalAttn(24, rd_ratio=0.5), one_map(24)


def mmcv_non_local(**settings):
    def make():
        module = load("mmcv.cnn.bricks.non_local")
        return module.NonLocal2d(12, **settings), one_map(12)

    return make


def danet_position():
    return paper_blocks.PositionAttention(16), one_map(16)


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
    "DANet position": danet_position,
}


def randomise(block):
    """Random parameters and statistics, in place."""
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.25)
    for name, buffer in block.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            torch.nn.init.uniform_(buffer, 0.5, 1.5)
    return block
