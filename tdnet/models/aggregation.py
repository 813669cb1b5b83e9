"""How a frame is joined with those before it (Sec. 3.2 and Fig. 6).

Each way is a list of its layers with two methods: `recall`, what the past says to the next frame,
which does not wait for it, and `merge`, which brings the two together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from tdnet.architectures import ModelConfig
from tdnet.models.encoding import StoredFrame
from tdnet.models.flow import carried, image_flow
from tdnet_ops import attention_propagate


@dataclass(frozen=True)
class Memory:
    """What the past says to the next frame: keys to attend to, and their values.

    keys are ``[B, 64, h, w]``, values ``[B, d_v, h, w]``. "apm" has one of each, k_{t-1} and
    v'_{t-1}; "sta" one a frame, oldest first; "add" no key and one value of full size; "flow"
    values of full size, its keys are the images.
    It belongs to the path that will read it, since every path has its own layers.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]


class Hop(nn.Module):
    """One hop of attention with its projection phi and the residual sum (Eq. 2, 4 and 5)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.phi = nn.Linear(channels, channels)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, residual: Tensor) -> Tensor:
        return attention_propagate(query, key, value, residual, self.phi.weight, self.phi.bias)


class AttentionPropagation(nn.ModuleList):
    """Attention from each frame to the one before it (Eq. 4), at last from the current one (Eq. 5).

    "apm". Of the m-1 hops all but the last run ahead. With fewer frames than hops, those of
    the oldest frames are left out.
    """

    def __init__(self, channels: int, hops: int) -> None:
        super().__init__(Hop(channels) for _ in range(hops))

    def recall(self, window: Sequence[StoredFrame]) -> Memory:
        key, value = window[0].key, window[0].value
        inner_hops = list(self)[len(self) - len(window) : -1]
        for hop, frame in zip(inner_hops, window[1:], strict=True):
            value = hop(frame.query, key, value, frame.value)
            key = frame.key
        return Memory((key,), (value,))

    def merge(self, query: Tensor, value: Tensor, memory: Memory) -> Tensor:
        return self[-1](query, memory.keys[0], memory.values[0], value)


class SpatioTemporalAttention(nn.ModuleList):
    """Attention from the current frame to every frame of the window (Eq. 2), each with its phi.

    "sta". Nothing runs ahead. Keys and values are pooled, as those of "apm" are.
    """

    def __init__(self, channels: int, hops: int) -> None:
        super().__init__(Hop(channels) for _ in range(hops))

    def recall(self, window: Sequence[StoredFrame]) -> Memory:
        return Memory(tuple(frame.key for frame in window), tuple(frame.value for frame in window))

    def merge(self, query: Tensor, value: Tensor, memory: Memory) -> Tensor:
        hops = list(self)[len(self) - len(memory.keys) :]
        for hop, key, past in zip(hops, memory.keys, memory.values, strict=True):
            value = hop(query, key, past, value)
        return value


class Addition(nn.ModuleList):
    """The sum of the values of all frames of the window, each where it is, at full size.

    "add". It has no layers and compensates no motion. The sum of the past runs ahead.
    """

    def recall(self, window: Sequence[StoredFrame]) -> Memory:
        oldest, *later = (frame.value for frame in window)
        return Memory((), (sum(later, oldest),))

    def merge(self, query: Tensor, value: Tensor, memory: Memory) -> Tensor:
        return value + memory.values[0]


class FlowWarping(nn.ModuleList):
    """The sum of the values of all frames of the window, each carried to the current frame.

    "flow". Optical flow (`tdnet.models.flow`) from the current image to each past one says where
    from. It has no layers; queries and keys are images. Nothing runs ahead, and no gradient
    reaches the flow.
    """

    def recall(self, window: Sequence[StoredFrame]) -> Memory:
        return Memory(tuple(frame.key for frame in window), tuple(frame.value for frame in window))

    def merge(self, query: Tensor, value: Tensor, memory: Memory) -> Tensor:
        for image, past in zip(memory.keys, memory.values, strict=True):
            value = value + carried(past, image_flow(query, image))
        return value


Aggregator = AttentionPropagation | SpatioTemporalAttention | Addition | FlowWarping


def build_aggregator(config: ModelConfig) -> Aggregator:
    """The layers of one path that join its frame with the m-1 before it."""
    if config.aggregation == "add":
        return Addition()
    if config.aggregation == "flow":
        return FlowWarping()
    attention = SpatioTemporalAttention if config.aggregation == "sta" else AttentionPropagation
    return attention(config.value_channels, config.num_paths - 1)
