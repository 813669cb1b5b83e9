"""A call for every shape class of every kernel, at the sizes of TDNet: what tune.py chooses for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from tdnet_ops import triton as kernels

# 769 x 1537 at stride 8, and its pooled keys, which are the queries of inner hops too.
_QUERIES, _KEYS = (97, 193), (25, 49)

Workload = tuple[str, Callable[[], object]]


class _Random(NamedTuple):
    """Makes tensors; of any numbers on a CPU, where nothing runs."""

    dtype: torch.dtype
    device: torch.device
    layout: torch.memory_format

    def _numbers(self, *shape: int) -> Tensor:
        x = torch.empty(shape, dtype=self.dtype, device=self.device)
        return x if x.is_cpu else x.normal_()

    def map(self, channels: int, size: tuple[int, int]) -> Tensor:
        return self._numbers(1, channels, *size).to(memory_format=self.layout)

    def matrix(self, *shape: int) -> Tensor:
        return self._numbers(*shape) * shape[-1] ** -0.5


def workloads(device: torch.device) -> Iterator[Workload]:
    """Names and calls, on tensors of `device`."""
    for layout in (torch.channels_last, torch.contiguous_format):
        name = str(layout).removeprefix("torch.")
        half, full = (_Random(dtype, device, layout) for dtype in (torch.float16, torch.float32))
        x, logits = half.map(512, _QUERIES), half.map(19, _QUERIES)
        yield f"spatial_pool, {name}", partial(kernels.spatial_pool, x, 4)
        yield f"upsample_argmax, {name}", partial(kernels.upsample_argmax, logits, [769, 1537])
        for random, allow_tf32, kind in (
            (half, False, "half"),
            (full, True, "tf32"),
            (full, False, "float32"),
        ):
            for product, workload in _products(random, allow_tf32):
                yield f"{product}, {kind}, {name}", workload


def _size(x: Tensor) -> tuple[int, int]:
    return x.shape[2], x.shape[3]


def _products(random: _Random, allow_tf32: bool) -> Iterator[Workload]:
    q, keys = random.map(64, _QUERIES), random.map(64, _KEYS)
    deep, deep_keys = random.map(256, _QUERIES), random.map(256, _KEYS)
    for x in (q, deep):
        affinity = partial(kernels.pooled_affinity, x, x, 4, allow_tf32=allow_tf32)
        yield f"pooled_affinity, {x.shape[1]}", affinity
    attend = partial(kernels.attention_propagate, allow_tf32=allow_tf32)
    v = random.map(128, _KEYS)
    # With a residual, as in the model: without one a kernel has less to hold.
    for queries, rows in ((deep, "many"), (deep_keys, "few")):
        residual = random.map(128, _size(queries))
        yield (
            f"attention_propagate, {rows} deep",
            partial(attend, queries, deep_keys, v, residual),
        )
    for queries in (q, keys):
        logits = random.matrix(1, queries[0, 0].numel(), keys[0, 0].numel())
        size = _size(queries)
        for channels in (128, 512):
            v, residual = random.map(channels, _KEYS), random.map(channels, size)
            yield (
                f"attention_propagate, {size}, {channels}",
                partial(attend, queries, keys, v, residual),
            )
            propagate = partial(kernels.softmax_propagate, logits, v, size, residual)
            yield (
                f"softmax_propagate, {size}, {channels}",
                partial(propagate, allow_tf32=allow_tf32),
            )
    v, grad = random.map(512, _KEYS), random.map(512, _QUERIES)
    backward = kernels.attention_propagate_backward
    yield (
        "attention_propagate_backward",
        partial(backward, grad, q, keys, v, None, None, allow_tf32=allow_tf32),
    )
    blocks = [random.map(128, _QUERIES) for _ in range(4)]
    for side in (1, 3):
        for out_channels in (64, 512):
            weights = [random.matrix(out_channels, 128, side, side) for _ in blocks]
            padding = side // 2
            reduce = partial(kernels.block_sum_reduce, blocks, weights, None, padding, 1, "none")
            yield (
                f"block_sum_reduce, {side}x{side}, {out_channels}",
                partial(reduce, allow_tf32=allow_tf32),
            )
