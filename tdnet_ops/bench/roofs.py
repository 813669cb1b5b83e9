"""What this machine can do, measured in the same rounds as everything else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from tdnet_ops.bench.case import Problem, Setting, product_operations, total_bytes

SQUARE = 2048
# Two buffers of this size are larger together than most last-level caches.
COPY_BYTES = 256 * 2**20

MM = "torch.mm"
MM_SHAPES = "torch.mm, shapes"
COPY = "copy"


@dataclass(frozen=True)
class Roof:
    """A call and the work it does."""

    call: Callable[[], object]
    operations: int
    moved_bytes: int


def measured_roofs(problem: Problem, setting: Setting) -> dict[str, Roof]:
    """torch.mm on a large square, torch.mm at the case's own shapes if it has any, and a copy.

    On a CPU the products of half precision run in float32, which is what the kernels there
    multiply in.
    """
    half = setting.dtype in (torch.float16, torch.bfloat16)
    dtype = torch.float32 if half and setting.device.type == "cpu" else setting.dtype
    roofs = {MM: _products([(SQUARE, SQUARE, SQUARE)], dtype, setting.device)}
    if problem.products:
        roofs[MM_SHAPES] = _products(problem.products, dtype, setting.device)
    return {**roofs, COPY: _copy(setting.device)}


def _products(
    shapes: Sequence[tuple[int, int, int]], dtype: torch.dtype, device: torch.device
) -> Roof:
    generator = torch.Generator().manual_seed(0)
    made: dict[tuple[int, int, int], tuple[torch.Tensor, ...]] = {}
    for rows, columns, depth in shapes:
        if (rows, columns, depth) not in made:
            left = torch.randn(rows, depth, generator=generator).to(device, dtype)
            right = torch.randn(depth, columns, generator=generator).to(device, dtype)
            out = torch.zeros(rows, columns, dtype=dtype, device=device)
            made[rows, columns, depth] = left, right, out
    operands = [made[shape] for shape in shapes]

    def call() -> None:
        for left, right, out in operands:
            torch.mm(left, right, out=out)

    return Roof(call, product_operations(shapes), sum(total_bytes(*three) for three in operands))


def _copy(device: torch.device) -> Roof:
    source, target = torch.zeros(2, COPY_BYTES // 4, device=device)
    return Roof(lambda: target.copy_(source), 0, 2 * COPY_BYTES)
