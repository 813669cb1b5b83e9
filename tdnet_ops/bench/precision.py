"""Holds float32 to float32 while a case is checked and timed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch

_T = TypeVar("_T")


def _settings() -> tuple[Any, ...]:
    """Everything with a `fp32_precision` that products and convolutions obey."""
    backends: Any = torch.backends
    return (
        backends.cuda.matmul,
        backends.cudnn.conv,
        backends.cudnn.rnn,
        backends.mkldnn.matmul,
        backends.mkldnn.conv,
    )


def _readable(read: Callable[[], _T]) -> _T | None:
    """None where torch refuses to read an old setting after a new one was set."""
    try:
        return read()
    except RuntimeError:
        return None


@contextlib.contextmanager
def ieee() -> Iterator[None]:
    """No TF32 and no bfloat16 in float32 products and convolutions, the user's choice restored.

    cuDNN's convolutions run in TF32 unless told otherwise, so that even the reference would be
    3e-4 off. Both the new settings and the old flags are set: torch.compile reads the old ones,
    which raises where the two disagree.
    """
    new = [(setting, setting.fp32_precision) for setting in _settings()]
    products = _readable(torch.get_float32_matmul_precision)
    convolutions = _readable(lambda: torch.backends.cudnn.allow_tf32)
    try:
        if products is not None:
            torch.set_float32_matmul_precision("highest")
        if convolutions is not None:
            torch.backends.cudnn.allow_tf32 = False
        for setting, _ in new:
            setting.fp32_precision = "ieee"
        yield
    finally:
        if products is not None:
            torch.set_float32_matmul_precision(products)
        if convolutions is not None:
            torch.backends.cudnn.allow_tf32 = convolutions
        for setting, value in new:
            setting.fp32_precision = value
