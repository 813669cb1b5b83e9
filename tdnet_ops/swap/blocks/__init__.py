"""The known blocks: a file for each package that has some, a row for each of its classes."""

from tdnet_ops.swap.blocks import mmcv, segmentation_models, timm

KNOWN_BLOCKS = (*timm.KNOWN_BLOCKS, *mmcv.KNOWN_BLOCKS, *segmentation_models.KNOWN_BLOCKS)
