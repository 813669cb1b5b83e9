"""What this machine can do, measured in the same rounds as everything else."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from tdnet_ops.bench.case import Problem, Setting, product_operations, total_bytes

SQUARE = 2048
# A smaller one does not fill a large GPU.
GPU_SQUARE = 8192
# Two buffers of this size are larger together than most last-level caches.
COPY_BYTES = 256 * 2**20
# torch.ops.tdnet_bench.multiply_adds takes blocks of so many numbers, and keeps them in registers.
PEAK_BLOCK = 384
PEAK_BLOCKS_A_THREAD = 4
PEAK_STEPS = 100_000

PEAK = "peak"
MM = "torch.mm"
MM_SHAPES = "torch.mm, shapes"
COPY = "copy"
# Those that the operators are held against; the others are products that torch computes.
LIMITS = (PEAK, COPY)


@dataclass(frozen=True)
class Roof:
    """A call and the work it does."""

    call: Callable[[], object]
    operations: int
    moved_bytes: int


# Kept tensors serve runs with and without a backward pass.
@torch.inference_mode(False)
def measured_roofs(problem: Problem, setting: Setting) -> dict[str, Roof]:
    """The peak, torch.mm on a square and at the case's own shapes if it has any, and a copy.

    On a CPU the peak is that of multiply-adds in registers, of the instruction set in use. On a GPU
    it is a product of large squares, which runs on the matrix units where the dtype has them, and
    torch.mm is no row of its own. On a CPU the products of half precision run in float32, which is
    what the kernels there multiply in.
    """
    device = setting.device
    half = setting.dtype in (torch.float16, torch.bfloat16)
    dtype = torch.float32 if half and device.type == "cpu" else setting.dtype
    if device.type == "cpu":
        peak = _multiply_adds(dtype, setting.threads, PEAK_STEPS)
        roofs = {PEAK: peak, MM: _square(SQUARE, dtype, device)}
    else:
        roofs = {PEAK: _square(GPU_SQUARE, dtype, device)}
    if problem.products:
        roofs[MM_SHAPES] = _products(problem.products, dtype, device)
    return {**roofs, COPY: _copy(COPY_BYTES, device)}


def _multiply_adds(dtype: torch.dtype, threads: int, steps: int) -> Roof:
    numbers = torch.ones(PEAK_BLOCK * PEAK_BLOCKS_A_THREAD * threads)
    # A register holds half as many float64.
    operations = 2 * numbers.numel() * steps // (2 if dtype == torch.float64 else 1)
    return Roof(lambda: torch.ops.tdnet_bench.multiply_adds(numbers, steps), operations, 0)


# Kept from case to case: fresh memory costs more than the call.
@functools.lru_cache(maxsize=1)
def _square(size: int, dtype: torch.dtype, device: torch.device) -> Roof:
    return _products([(size, size, size)], dtype, device)


def _products(
    shapes: Sequence[tuple[int, int, int]], dtype: torch.dtype, device: torch.device
) -> Roof:
    generator = torch.Generator(device).manual_seed(0)
    made: dict[tuple[int, int, int], tuple[torch.Tensor, ...]] = {}
    for rows, columns, depth in shapes:
        if (rows, columns, depth) not in made:
            left = torch.randn(rows, depth, generator=generator, device=device).to(dtype)
            right = torch.randn(depth, columns, generator=generator, device=device).to(dtype)
            out = torch.zeros(rows, columns, dtype=dtype, device=device)
            made[rows, columns, depth] = left, right, out
    operands = [made[shape] for shape in shapes]

    def call() -> None:
        for left, right, out in operands:
            torch.mm(left, right, out=out)

    return Roof(call, product_operations(shapes), sum(total_bytes(*three) for three in operands))


@functools.lru_cache(maxsize=1)
def _copy(count: int, device: torch.device) -> Roof:
    source, target = torch.zeros(2, count // 4, device=device)
    return Roof(lambda: target.copy_(source), 0, 2 * count)
