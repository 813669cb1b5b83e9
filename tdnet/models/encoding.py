"""Query, key and value maps of a frame, and their pooled form (Eq. 3)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from tdnet.architectures import ModelConfig, PoolingMode
from tdnet.models.blocks import FeatureBlocks, project
from tdnet_ops import spatial_pool

KEY_CHANNELS = 64


@dataclass(frozen=True)
class StoredFrame:
    """What a past frame leaves behind: its pooled maps ``q_i``, ``k_i`` and ``v_i`` of Eq. 3.

    query and key are ``[B, 64, h, w]``, value is ``[B, d_v, h, w]``. (ValueEncoding keeps more.)
    """

    query: Tensor
    key: Tensor
    value: Tensor


class KeyProjection(nn.Module):
    """Two 1x1 convolutions, ``[B, C, H, W] -> [B, 64, H, W]``; the first with BatchNorm."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(in_channels, KEY_CHANNELS, 1)
        self.norm = nn.BatchNorm2d(KEY_CHANNELS)
        self.project = nn.Conv2d(KEY_CHANNELS, KEY_CHANNELS, 1)

    def forward(self, x: Tensor | FeatureBlocks) -> Tensor:
        reduced = project(self.reduce, x)
        return self.project(F.leaky_relu(self.norm(reduced), 0.01, inplace=True))


class Encoding(nn.Module):
    """Encodes path features ``[B, C, H, W]``, in blocks or not, as query, key and value maps.

    Args:
        in_channels: C.
        value_channels: d_v.
        pooling_mode: gamma of Eq. 3. "max" pools the maps over windows as the paper says;
            "subsample" takes the first pixel of each window, as the published weights expect.
        pooling_stride: n of Eq. 3.
    """

    def __init__(
        self,
        in_channels: int,
        value_channels: int,
        pooling_mode: PoolingMode,
        pooling_stride: int,
    ) -> None:
        super().__init__()
        self.query = KeyProjection(in_channels)
        self.key = KeyProjection(in_channels)
        self.value = nn.Conv2d(in_channels, value_channels, 1)
        self.pooling_mode = pooling_mode
        self.pooling_stride = pooling_stride

    def forward(
        self, features: Tensor | FeatureBlocks, image: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Full-size query ``[B, 64, H, W]`` and value ``[B, d_v, H, W]`` of the current frame.

        They are made of its features alone, not of its image.
        """
        return self.query(features), project(self.value, features)

    def store(self, features: Tensor | FeatureBlocks, query: Tensor, value: Tensor) -> StoredFrame:
        """Pool a frame whose full-size query and value are known already (streaming).

        1x1 convolutions in eval mode commute with subsampling, so only the key is computed anew.
        """
        return StoredFrame(
            self._pool(query), self._project_pooled(self.key, features), self._pool(value)
        )

    def encode_stored(
        self, features: Tensor | FeatureBlocks, image: Tensor | None = None
    ) -> StoredFrame:
        """The pooled maps of a frame that is only ever attended to (training on clips)."""
        return StoredFrame(
            self._project_pooled(self.query, features),
            self._project_pooled(self.key, features),
            self._project_pooled(partial(project, self.value), features),
        )

    def _project_pooled(
        self,
        projection: Callable[[Tensor | FeatureBlocks], Tensor],
        features: Tensor | FeatureBlocks,
    ) -> Tensor:
        # Max pooling must follow the convolutions (Eq. 3); subsampling may come first, which
        # does 1/n^2 of the work and is what the published training did.
        if self.pooling_mode == "max":
            return self._pool(projection(features))
        if isinstance(features, Tensor):
            return projection(self._pool(features))
        full, shares = self._pool(features.full), self._pool(features.shares)
        return projection(replace(features, full=full, shares=shares))

    def _pool(self, x: Tensor) -> Tensor:
        return spatial_pool(x, self.pooling_stride, self.pooling_mode)


class ValueEncoding(nn.Module):
    """Encodes path features as values alone, for an aggregation that attends to nothing.

    Values are stored at full size. Queries and keys are the images, for those who compare these.
    """

    def __init__(self, in_channels: int, value_channels: int) -> None:
        super().__init__()
        self.value = nn.Conv2d(in_channels, value_channels, 1)

    def forward(self, features: Tensor | FeatureBlocks, image: Tensor) -> tuple[Tensor, Tensor]:
        """The image and the value ``[B, d_v, H, W]`` of the current frame."""
        return image, project(self.value, features)

    def store(self, features: Tensor | FeatureBlocks, query: Tensor, value: Tensor) -> StoredFrame:
        """A frame whose value is known already (streaming)."""
        return StoredFrame(query, query, value)

    def encode_stored(self, features: Tensor | FeatureBlocks, image: Tensor) -> StoredFrame:
        """The maps of a frame that is only ever added to others (training on clips)."""
        return self.store(features, *self(features, image))


def build_encoding(config: ModelConfig, in_channels: int) -> Encoding | ValueEncoding:
    """The encoding of one path for the aggregation of a model."""
    if config.aggregation in ("add", "flow"):
        return ValueEncoding(in_channels, config.value_channels)
    return Encoding(in_channels, config.value_channels, config.pooling_mode, config.pooling_stride)
