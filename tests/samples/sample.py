"""One call of an operator, and what the file of an operator tells of all its calls."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from samples.layouts import place, place_other
from samples.trees import on_device, tensors

Shape = tuple[Any, ...]  # of a call: what `build` of its operator takes
Size = tuple[int, int]  # of a map: height and width
Arguments = tuple[Any, ...]  # positional, in the order of the schema


@dataclass(frozen=True)
class Sample:
    """One call: `arguments()` gives its positional arguments, in the order of the schema."""

    operator: str
    name: str
    layout: str
    dtype: torch.dtype
    build: Build = field(repr=False)

    def __str__(self) -> str:
        return f"{self.operator}-{self.name}-{self.layout}-{str(self.dtype).removeprefix('torch.')}"

    def arguments(self) -> Arguments:
        return on_device(self.build(Numbers(self)))


class Numbers:
    """Makes the tensors of one sample, the same in every process."""

    def __init__(self, sample: Sample) -> None:
        self._layout, self._dtype = sample.layout, sample.dtype
        seed = zlib.crc32(f"{sample.operator} {sample.name}".encode())
        self._generator = torch.Generator().manual_seed(seed)

    def _normal(self, shape: Sequence[int], scale: float) -> Tensor:
        numbers = torch.randn(tuple(shape), generator=self._generator, dtype=torch.float64)
        return (numbers * scale).to(self._dtype)

    def feature_map(self, *shape: int, edit: Callable[[Tensor], None] | None = None) -> Tensor:
        """`edit` changes numbers of the map in place."""
        numbers = self._normal(shape, 1.0)
        if edit is not None:
            edit(numbers)
        return place(numbers, self._layout)

    def make_huge(self, x: Tensor) -> None:
        """Positive numbers up to a quarter of the largest of the dtype."""
        x.copy_((x.abs() + 1) / (x.abs().max() + 1) * torch.finfo(self._dtype).max / 4)

    def other(
        self, *shape: int, scale: float = 1.0, edit: Callable[[Tensor], None] | None = None
    ) -> Tensor:
        numbers = self._normal(shape, scale)
        if edit is not None:
            edit(numbers)
        return place_other(numbers, self._layout)


Build = Callable[[Numbers], Arguments]


@dataclass(frozen=True)
class OperatorSamples:
    """What the file of an operator tells.

    Attributes:
        build: `build(*shape)` makes the arguments of a sample.
        shapes: of its samples, by name. "middle" is small and gives every optional tensor; the
            first two run in every layout and dtype.
        tiles: what has a path of its own in kernels that work by tiles and 16-byte vectors: the
            emulator and GPUs run these besides. Numbers of queries, keys and channels are about
            multiples of 64 and 128.
        vectors: sizes of multiples of 8, run in every spaced layout.
        resized: the shape of a call on maps of a size and keys of another.
        several_blocks: the one of `shapes` that a GPU runs in several blocks.
        longest_sum: how many terms the longest sum behind one number of the result has.
        like: the tensor whose layout the results take.
        gpu_roundings: how many numbers behind a result the GPU kernels may round to half precision:
            the softmax weights, and phi(v) or what was attended before phi.
        exact: every bit of the result is that of the definition.
        compare: `compare(result, arguments, what)` judges a result, in place of the definition.
        sizes: the arguments that follow from sizes of others, from the tensors by name.
    """

    build: Callable[..., Build]
    shapes: Mapping[str, Shape]
    tiles: Mapping[str, Shape]
    vectors: Mapping[str, Shape]
    resized: Callable[[Size, Size], Shape]
    several_blocks: str
    longest_sum: Callable[[Arguments], int] = lambda arguments: arguments[0].shape[1]
    like: Callable[[Arguments], Tensor] = lambda arguments: tensors(arguments)[0]
    gpu_roundings: int = 0
    exact: bool = False
    compare: Callable[[Tensor, Arguments, str], None] | None = None
    sizes: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda named: {}
