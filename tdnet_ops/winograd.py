"""Winograd's F(4x4, 3x3): 3x3 convolutions by tiles, with 36 products in place of 16 * 9.

A dilation splits a map into phases, whose pixels are `dilation` apart; each is convolved as a map
of its own. Tiles of the result are 4x4 pixels of a phase, those of the input 6x6: one pixel more on
every side. Everything is separable, so each step here works along one side of the map.

Letters: L pixels along a side; T tiles along it, of all phases; S positions along the side of a
tile: 4 of the result, 6 of the input and of what is transformed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tdnet_ops import checks

POSITIONS = 36  # of a transformed tile

_SIDE = 4  # of a tile of the result, in pixels
_OVERLAP = 2  # pixels that two neighbouring tiles of the input share

Matrix = tuple[tuple[float, ...], ...]

# At the points 0, 1, -1, 2, -2 and infinity.
_KERNEL: Matrix = (  # G
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
_INPUT: Matrix = (  # B^T
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
_RESULT: Matrix = (  # A^T
    (1, 1, 1, 1, 1, 0),
    (0, 1, -1, 2, -2, 0),
    (0, 1, 1, 4, 4, 0),
    (0, 1, -1, 8, -8, 1),
)


def winograd_transform(kernels: Tensor) -> Tensor:
    """G g G^T of each 3x3 kernel g: the weight of `winograd_conv2d`.

    Transform once and keep the result: it is what costs nothing at inference.

    Args:
        kernels: [C_out, C, 3, 3].

    Returns:
        [36, C_out, C], position 6 * row + column, in the dtype of the kernels, computed in float64;
        differentiable.

    Raises:
        TypeError, ValueError: no tensor of this shape.
    """
    checks.check_tensor("kernels", kernels, 4)
    checks.check_size("kernels", kernels, 2, 3, "a 3x3 kernel")
    checks.check_size("kernels", kernels, 3, 3, "a 3x3 kernel")
    columns = _times(_KERNEL, kernels.double().movedim(3, 0))  # [6, C_out, C, 3]
    rows = _times(_KERNEL, columns.movedim(3, 0))  # [6, 6, C_out, C]
    return rows.flatten(0, 1).to(kernels.dtype)


def tiles_along(length: int, dilation: int) -> int:
    """T: of all phases, which count as long as the longest."""
    phases = _phases(length, dilation)
    return phases * _tiles(length, phases)


def input_tiles(x: Tensor, dilation: int) -> Tensor:
    """V = B^T tile B: a map [B, C, H, W] -> [36, B, C, T]."""
    return _of_both_sides(_INPUT, x, dilation, _OVERLAP)


def products(weight: Tensor, tiles: Tensor) -> Tensor:
    """M: weight [36, C_out, C], tiles [36, B, C, T] -> [36, B, C_out, T]."""
    return torch.einsum("skc,sbct->sbkt", weight, tiles)


def products_of_weight(grad: Tensor, tiles: Tensor) -> Tensor:
    """From the gradient [36, B, C_out, T] of M to that of the weight, [36, C_out, C]."""
    return torch.einsum("sbkt,sbct->skc", grad, tiles)


def result(sums: Tensor, height: int, width: int, dilation: int) -> Tensor:
    """A^T M A: [36, B, C_out, T] -> a map [B, C_out, H, W]."""
    return _to_both_sides(_RESULT, sums, height, width, dilation)


def input_tiles_transposed(grad: Tensor, height: int, width: int, dilation: int) -> Tensor:
    """From the gradient [36, B, C, T] of V to that of the map, [B, C, H, W]."""
    return _to_both_sides(_transposed(_INPUT), grad, height, width, dilation)


def result_transposed(grad: Tensor, dilation: int) -> Tensor:
    """From the gradient of the map, [B, C_out, H, W], to that of M, [36, B, C_out, T]."""
    return _of_both_sides(_transposed(_RESULT), grad, dilation, 0)


def _of_both_sides(matrix: Matrix, x: Tensor, dilation: int, overlap: int) -> Tensor:
    """[B, C, H, W] -> [36, B, C, T]."""
    columns = _times(matrix, _cut(x, dilation, overlap))  # [6, B, C, H, T]
    both = _times(matrix, _cut(columns.transpose(3, 4), dilation, overlap))  # [6, 6, B, C, T, T]
    return both.flatten(0, 1).flatten(3)


def _to_both_sides(matrix: Matrix, tiles: Tensor, height: int, width: int, dilation: int) -> Tensor:
    """[36, B, C, T] -> [B, C, H, W]."""
    sides = tiles_along(width, dilation), tiles_along(height, dilation)
    both = tiles.unflatten(3, sides).unflatten(0, (6, 6))
    rows = _joined(_times(matrix, both), height, dilation)  # [6, B, C, T, H]
    return _joined(_times(matrix, rows.transpose(3, 4)), width, dilation)


def _times(matrix: Matrix, x: Tensor) -> Tensor:
    """The product with the first dimension of x, [n, ...] -> [m, ...]."""
    # No matrix product: TF32 would round the numbers once more.
    parts = x.unbind(0)
    return torch.stack([_weighted_sum(row, parts) for row in matrix])


def _weighted_sum(weights: tuple[float, ...], parts: tuple[Tensor, ...]) -> Tensor:
    (first, part), *others = [pair for pair in zip(weights, parts, strict=True) if pair[0] != 0]
    total = part * first
    for weight, part in others:
        total = torch.add(total, part, alpha=weight)
    return total


def _transposed(matrix: Matrix) -> Matrix:
    return tuple(zip(*matrix, strict=True))


def _phases(length: int, dilation: int) -> int:
    """Not more than pixels where these are known: a phase of one has no neighbours anyhow."""
    return dilation if isinstance(length, torch.SymInt) else min(dilation, length)


def _tiles(length: int, phases: int) -> int:
    """Of the longest phase."""
    step = _SIDE * phases
    return (length + step - 1) // step


def _cut(x: Tensor, dilation: int, overlap: int) -> Tensor:
    """Tiles along the last dimension: [..., L] -> [4 + overlap, ..., T]."""
    length = x.shape[-1]
    phases = _phases(length, dilation)
    # One more than there are tiles: a dimension of that size would be 1 for small maps alone, and
    # torch.compile would compile once more for these.
    blocks = _tiles(length, phases) + 1
    before = phases if overlap else 0
    whole = F.pad(x, (before, _SIDE * blocks * phases - before - length))
    cut = whole.unflatten(-1, (blocks, _SIDE, phases)).movedim(-2, 0).flatten(-2)
    own = cut[..., :-phases]
    # A tile that begins a pixel earlier ends with the first two pixels of the next block.
    return torch.cat([own, cut[:overlap, ..., phases:]]) if overlap else own


def _joined(tiles: Tensor, length: int, dilation: int) -> Tensor:
    """The transposed of `_cut`, pixels of several tiles added: [S, ..., T] -> [..., L]."""
    phases = _phases(length, dilation)
    blocks = F.pad(tiles[:_SIDE], (0, phases))
    overlap = tiles.shape[0] - _SIDE
    if overlap:
        following = F.pad(tiles[_SIDE:], (phases, 0))
        blocks = torch.cat([blocks[:overlap] + following, blocks[overlap:]])
    sizes = _tiles(length, phases) + 1, phases
    pixels = blocks.unflatten(-1, sizes).movedim(0, -2).flatten(-3)
    before = phases if overlap else 0
    return pixels[..., before : before + length]
