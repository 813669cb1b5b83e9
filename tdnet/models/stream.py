"""What a segmenter asks of a model."""

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from tdnet.architectures import ModelConfig


@runtime_checkable
class StreamingModel(Protocol):
    """A model that labels a video frame by frame.

    What it remembers of a video is the stream, a value of its own that it never changes but
    replaces: a segmenter keeps it, and several segmenters may share a model. Images are
    normalised, float, ``[1, 3, H, W]``, and all of a stream have one size.
    """

    config: ModelConfig
    training: bool

    def start(self, path: int = 0) -> Any:
        """The stream of a video of which no frame was seen yet.

        path, 0 to ``config.num_paths`` - 1, is the sub-network that the first frame takes.
        """

    def label(self, image: Tensor, stream: Any) -> tuple[Tensor, Any]:
        """Coarse logits of the next frame, ``[1, K, h, w]``, and the stream after it.

        Their corner pixels are those of the image: they are to be resized with align_corners=True.
        """

    def prepare(self, stream: Any) -> Any:
        """The same stream, with what the next frame needs from past ones computed.

        ``label`` does it first where it was not done; the numbers are the same.
        """

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def eval(self) -> Any: ...
