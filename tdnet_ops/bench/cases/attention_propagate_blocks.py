"""attention_propagate as the blocks of other people's models call it: `--case blocks`.

Without what stands around it: the projections of queries, keys and values, norms, dropout. Tokens
are maps of one row. `published` is plain PyTorch here: matmul, softmax, matmul, linear layer, add.
"""

from __future__ import annotations

from tdnet_ops.bench.case import Case
from tdnet_ops.bench.cases.attention_propagate import Size, attention_case


def _projected(
    name: str, size: Size, pooled: Size, channels: int, out_channels: int, heads: int = 1
) -> Case:
    """With phi and a residual, as many channels of keys as of values."""
    return attention_case(
        *(name, size, pooled, channels, channels),
        out_channels=out_channels,
        heads=heads,
        on_request=True,
        group="blocks",
    )


def _of_heads(name: str, size: Size, pooled: Size, channels: int, heads: int) -> Case:
    return _projected(name, size, pooled, channels, channels, heads)


def _memory_read(name: str, frames: int, key_channels: int) -> Case:
    """One object, 480x854 pixels at stride 16, keys of several frames."""
    return attention_case(
        *(name, (30, 54), (30 * frames, 54), 512, key_channels), on_request=True, group="blocks"
    )


# Images of 512x512 for SegFormer, mmcv's block (stride 8) and the VAE, of 224x224 for the others.
CASES = (
    _of_heads("segformer-b2-stage-1", (128, 128), (16, 16), 64, heads=1),
    _of_heads("segformer-b2-stage-3", (32, 32), (16, 16), 320, heads=5),
    _of_heads("pvt-small-stage-1", (56, 56), (7, 7), 64, heads=1),
    _of_heads("pvt-small-stage-2", (28, 28), (7, 7), 128, heads=2),
    _of_heads("pvt-small-stage-3", (14, 14), (7, 7), 320, heads=5),
    _of_heads("pvt-small-stage-4", (1, 50), (1, 50), 512, heads=8),
    _of_heads("cvt-13-stage-1", (56, 56), (28, 28), 64, heads=1),
    _of_heads("cvt-13-stage-2", (28, 28), (14, 14), 192, heads=3),
    _of_heads("cvt-13-stage-3", (1, 197), (1, 50), 384, heads=6),
    _of_heads("vit-b", (1, 197), (1, 197), 768, heads=12),
    _projected("timm-non-local", (14, 14), (14, 14), 128, out_channels=1024),
    _projected("mmcv-non-local", (64, 64), (64, 64), 256, out_channels=512),
    _projected("vae-mid-block", (64, 64), (64, 64), 512, out_channels=512),
    _memory_read("stm-5-frames", 5, key_channels=128),
    _memory_read("stcn-5-frames", 5, key_channels=64),
    _memory_read("xmem-10-frames", 10, key_channels=64),
)
