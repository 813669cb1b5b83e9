"""Blocks of segmentation-models-pytorch."""

from tdnet_ops.swap.known_block import KnownBlock, never

KNOWN_BLOCKS = (
    KnownBlock(
        paths=(
            "segmentation_models_pytorch.decoders.manet.decoder.PABBlock",
            "segmentation_models_pytorch.decoders.manet.decoder.PAB",
        ),
        convert=never("one softmax over all pairs of pixels, not over the keys of a query"),
    ),
)
