"""What it takes to build a model again: stored beside the weights in checkpoints."""

from dataclasses import dataclass

from tdnet.models.encoding import PoolingMode
from tdnet.models.layers import Size


@dataclass(frozen=True)
class ModelConfig:
    """The arguments of ``tdnet.build_model``. The last three say nothing to a PSPNet."""

    name: str
    num_classes: int = 19
    pooling_mode: PoolingMode = "max"
    pooling_stride: int = 4
    norm_size: Size = (97, 193)
