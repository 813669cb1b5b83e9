"""Models of single frames: the baselines and small networks."""

from torch import Tensor, nn

from tdnet.architectures import ModelConfig
from tdnet.models.features import build_features
from tdnet.models.heads import build_head
from tdnet.models.layers import resize


class SingleFrameModel(nn.Module):
    """Features of a frame and a head. Every frame is treated alike."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.features = build_features(config)
        self.head = build_head(config, self.features.out_channels)

    def forward(self, image: Tensor) -> Tensor:
        """Normalised images ``[B, 3, H, W]`` to logits ``[B, K, H, W]``."""
        height, width = image.shape[-2:]
        return resize(self.coarse_logits(image), (height, width))

    def coarse_logits(self, image: Tensor) -> Tensor:
        """Normalised images ``[B, 3, H, W]`` to logits at stride 8 (2 for ESPNetv2)."""
        return self.head(self.features(image))

    def start(self, path: int = 0) -> None:
        """The stream of a new video: there is nothing to remember, and one path."""

    def label(self, image: Tensor, stream: None) -> tuple[Tensor, None]:
        """Coarse logits of the next frame."""
        return self.coarse_logits(image), None

    def prepare(self, stream: None) -> None:
        """Nothing depends on past frames."""
