"""The known blocks: a file for each package that has some, a row for each of its classes."""

from tdnet_ops.swap.blocks import (
    diffusers,
    mmcv,
    segmentation_models,
    timm,
    transformers,
    ultralytics,
)

_PACKAGES = (timm, mmcv, diffusers, transformers, ultralytics, segmentation_models)
KNOWN_BLOCKS = tuple(row for package in _PACKAGES for row in package.KNOWN_BLOCKS)
