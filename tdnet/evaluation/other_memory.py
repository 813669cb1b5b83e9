"""Does a TDNet use its memory? Give it that of another moment and see what it costs."""

from __future__ import annotations

from torch import Tensor, nn

from tdnet.models.stream import StreamingModel
from tdnet.models.tdnet import Stream, TDNet

Past = tuple[Stream, ...]
"""Streams as they were before the latest frames, oldest first; the last is the true one."""


def with_memory_of(model: TDNet, frames_ago: int) -> StreamingModel:
    """The model, for which each frame's memory is what it was so many frames ago.

    `evaluate` of it against that of the model: a model whose numbers are the same looks at none of
    the frames it stores. The first frames of a stream, before which there is no such moment, have
    their own memory.

    Args:
        model: only read.
        frames_ago: a multiple of m, so that the memory is made of the same paths.

    Raises:
        ValueError: frames_ago is no positive multiple of m.
    """
    if frames_ago < 1 or frames_ago % model.num_paths:
        raise ValueError(
            f"frames_ago: expected a positive multiple of {model.num_paths}, got {frames_ago}"
        )
    return _OtherMemory(model, frames_ago)


class _OtherMemory(nn.Module):
    """See `with_memory_of`; a StreamingModel."""

    def __init__(self, model: TDNet, frames_ago: int) -> None:
        super().__init__()
        self.config = model.config
        self.model = model
        self.frames_ago = frames_ago

    @property
    def surviving_paths(self) -> int:
        return self.model.surviving_paths

    def start(self, path: int = 0) -> Past:
        return (self.model.start(path),)

    def prepare(self, stream: Past) -> Past:
        return (*stream[:-1], self.model.prepare(stream[-1]))

    def label(self, image: Tensor, stream: Past) -> tuple[Tensor, Past]:
        *before, now = self.prepare(stream)
        logits, after = self.model.label(image, now)
        if len(before) < self.frames_ago:
            return logits, (*before, now, after)
        if before[0].memory is not None:
            assert after.latest is not None
            logits = self.model.decode(after.latest, before[0].memory, now.path)
        return logits, (*before[1:], now, after)
