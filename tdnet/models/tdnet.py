"""TDNet: m sub-networks that take turns over the frames of a video.

Notation of the paper: frame t is encoded as full-size maps Q_t and V_t; past frames are kept as
pooled maps q, k, v (Eq. 3). Hops of attention carry the values of the oldest frame of the window
from frame to frame (Eq. 4) and at last to the current one (Eq. 5), unless the config names another
aggregation.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from tdnet.architectures import ModelConfig
from tdnet.models.aggregation import Memory, build_aggregator
from tdnet.models.blocks import FeatureBlocks
from tdnet.models.encoding import StoredFrame, build_encoding
from tdnet.models.features import build_features
from tdnet.models.heads import SegmentationHead
from tdnet.models.layers import SpatialLayerNorm, resize


@dataclass(frozen=True)
class EncodedFrame:
    """The current frame at full feature size (stride 8).

    features are what the path's sub-network found, ``[B, C, H, W]``, in blocks or not; query is
    Q_t, ``[B, 64, H, W]``; value is V_t, ``[B, d_v, H, W]``.
    """

    features: Tensor | FeatureBlocks
    query: Tensor
    value: Tensor


@dataclass(frozen=True)
class Stream:
    """All that a TDNet remembers of a video: at most m-1 stored frames, and the latest one."""

    path: int = 0  # of the next frame
    window: tuple[StoredFrame, ...] = ()  # oldest first
    latest: EncodedFrame | None = None  # until it is pooled
    memory: Memory | None = None  # for the next frame


class Path(nn.Module):
    """One sub-network with its encoding, its aggregation (oldest frame first) and its head."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        self.features = build_features(config, index)
        self.encoding = build_encoding(config, self.features.out_channels)
        self.hops = build_aggregator(config)
        self.norm = SpatialLayerNorm(config.norm_size)
        self.head = SegmentationHead(
            config.value_channels, config.head_channels, config.num_classes
        )


class TDNet(nn.Module):
    """A temporally distributed network of m paths.

    Frame by frame (``label`` and ``prepare``): ``encode`` the frame by its path, ``decode`` it
    with the memory; then, before the next frame comes, ``store`` it and compute the memory of the
    next path with ``propagate``. Paths are numbered from 0 here. If the config says so, all paths
    share one sub-network, which then has the channels of path 0.

    Raises:
        ValueError: for a config of one path.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.num_paths < 2:
            raise ValueError(f"num_paths: expected at least 2, got {config.num_paths}")
        self.config = config
        self.num_paths = config.num_paths
        networks = 1 if config.shared else config.num_paths
        self.paths = nn.ModuleList(Path(config, index) for index in range(networks))
        self.surviving_paths = config.num_paths

    @property
    def surviving_paths(self) -> int:
        """How many frames labels are made of, the current one included: m, unless it is set.

        With fewer, the oldest of the window are dropped, in clips as in streams (Table 8).
        """
        return self._surviving_paths

    @surviving_paths.setter
    def surviving_paths(self, count: int) -> None:
        if type(count) is not int or not 1 <= count <= self.num_paths:
            raise ValueError(
                f"surviving_paths: expected an integer from 1 to {self.num_paths}, got {count!r}"
            )
        self._surviving_paths = count

    def start(self, path: int = 0) -> Stream:
        """The stream of a new video; its first frame takes ``path``, the next one path + 1, ...

        Raises:
            ValueError: there is no such path.
        """
        self._check_path(path)
        return Stream(path)

    def label(self, image: Tensor, stream: Stream) -> tuple[Tensor, Stream]:
        """Logits of the next frame ``[B, 3, H, W]`` at stride 8, and the stream after it.

        The first m-1 frames are labelled from their own features alone.
        """
        stream = self.prepare(stream)
        frame = self.encode(image, stream.path)
        logits = self.decode(frame, stream.memory, stream.path)
        path = (stream.path + 1) % self.num_paths
        return logits, replace(stream, path=path, latest=frame, memory=None)

    def prepare(self, stream: Stream) -> Stream:
        """Pool the latest frame and compute what it and others say to the next, if it is to do."""
        if stream.latest is None:
            return stream
        capacity = self.surviving_paths - 1
        if capacity == 0:
            return replace(stream, window=(), latest=None)
        stored = self.store(stream.latest, (stream.path - 1) % self.num_paths)
        window = (*stream.window, stored)[-capacity:]
        memory = self.propagate(window, stream.path) if len(window) == capacity else None
        return replace(stream, window=window, latest=None, memory=memory)

    def encode(self, image: Tensor, path: int) -> EncodedFrame:
        """Encode a normalised image ``[B, 3, H, W]`` by the sub-network of ``path``."""
        parts = self._path(path)
        features = parts.features(image)
        query, value = parts.encoding(features, image)
        return EncodedFrame(features, query, value)

    def store(self, frame: EncodedFrame, path: int) -> StoredFrame:
        """Pool a frame that ``path`` has encoded, to be attended to by later frames (Eq. 3)."""
        return self._path(path).encoding.store(frame.features, frame.query, frame.value)

    def propagate(self, window: Sequence[StoredFrame], path: int) -> Memory:
        """Carry values through the past frames, oldest first, for the frame that follows.

        Eq. 4 with the hops of ``path``, which is the path of the frame that follows. The frames
        are m-1, or one less than the surviving paths.

        Raises:
            ValueError: if there are more or fewer.
        """
        expected = max(self.surviving_paths - 1, 1)
        if len(window) != expected:
            raise ValueError(f"window: expected {expected} past frames, got {len(window)}")
        return self._path(path).hops.recall(window)

    def decode(self, frame: EncodedFrame, memory: Memory | None, path: int) -> Tensor:
        """Logits of a frame at stride 8, ``[B, K, H, W]`` (Eq. 5 and the head of ``path``).

        With no memory (fewer than m-1 frames before this one) they come from V_t alone.
        """
        parts = self._path(path)
        value = frame.value
        if memory is not None:
            value = parts.hops.merge(frame.query, value, memory)
        return parts.head(parts.norm(value))

    def forward(self, clip: Tensor, path: int | None = None) -> Tensor:
        """Logits of the last frame of a clip.

        Args:
            clip: ``[B, m, 3, H, W]`` normalised images, oldest first. Those that do not survive
                (`surviving_paths`) are not looked at.
            path: the path of the last frame, 0 to m-1; those before it precede it cyclically.
                None: the last path, so that the first frame has path 0.

        Returns:
            ``[B, K, H, W]`` logits at the size of the images.

        Raises:
            ValueError: if the clip does not hold m images, or there is no such path.
        """
        height, width = clip.shape[-2:]
        return resize(self.coarse_logits(clip, path), (height, width))

    def coarse_logits(self, clip: Tensor, path: int | None = None) -> Tensor:
        """Logits of the last frame at stride 8; arguments and errors as those of a call."""
        frame, memory, path = self._encode_clip(clip, path)
        return self.decode(frame, memory, path)

    def opinions(self, clip: Tensor, path: int | None = None) -> tuple[Tensor, Tensor]:
        """Logits of the last frame at stride 8, with its past and from V_t alone (Eq. 6).

        Arguments and errors as those of a call of the model.
        """
        frame, memory, path = self._encode_clip(clip, path)
        return self.decode(frame, memory, path), self.decode(frame, None, path)

    def _encode_clip(
        self, clip: Tensor, path: int | None
    ) -> tuple[EncodedFrame, Memory | None, int]:
        """The last frame, what those before it say to it, and its path."""
        if clip.dim() != 5 or clip.shape[1] != self.num_paths or clip.shape[2] != 3:
            raise ValueError(
                f"clip: expected [B, {self.num_paths}, 3, H, W], got {list(clip.shape)}"
            )
        last = self.num_paths - 1 if path is None else path
        self._check_path(last)
        *past, current = clip.unbind(1)[self.num_paths - self.surviving_paths :]
        window = []
        for age, image in zip(range(len(past), 0, -1), past, strict=True):
            parts = self._path((last - age) % self.num_paths)
            window.append(parts.encoding.encode_stored(parts.features(image), image))
        memory = self.propagate(window, last) if window else None
        return self.encode(current, last), memory, last

    def _check_path(self, path: int) -> None:
        if not 0 <= path < self.num_paths:
            raise ValueError(f"path: expected 0 to {self.num_paths - 1}, got {path}")

    def _path(self, path: int) -> Path:
        module = self.paths[path % len(self.paths)]
        assert isinstance(module, Path)
        return module
