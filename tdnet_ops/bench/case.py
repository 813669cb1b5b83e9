"""What a case is made of: its inputs, its costs, and the forms in which peers compute it.

Letters as in `tdnet_ops.operators`: N queries, M keys, d_k, d_v and d_out channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

CPU = torch.device("cpu")
LAYOUTS = {"channels_last": torch.channels_last, "nchw": torch.contiguous_format}
DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}

# A peer may be this far from the reference: max|a - b| / max|b|.
TOLERANCES = {
    torch.float32: 1e-4,
    torch.float64: 1e-9,
    torch.float16: 1e-2,
    torch.bfloat16: 5e-2,
}

Result = Tensor | tuple[Tensor, ...]
# q [B, heads, N, d_k], k [B, heads, M, d_k], v [B, heads, M, d_v] -> [B, heads, N, d_v]
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Setting:
    """What the command line fixes for a whole run.

    Attributes:
        layout: of the maps given to our operators, a key of `LAYOUTS`.
        dtype: of all tensors.
        threads: of our operators and of every peer.
        device: of all tensors.
        cache_bytes: that the sets of tensors which calls rotate among outgrow; 0: one set.
        backward: whether a call is a forward and a backward pass.
    """

    layout: str
    dtype: torch.dtype
    threads: int
    device: torch.device = CPU
    cache_bytes: int = 0
    backward: bool = False


class Inputs:
    """Makes the tensors of one problem, the same in every process."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._generator = torch.Generator().manual_seed(0)

    def tensor(self, *shape: int, scale: float = 1.0) -> Tensor:
        """Normal numbers, contiguous."""
        return self._make(shape, torch.contiguous_format, scale)

    def feature_map(self, *shape: int) -> Tensor:
        """A map [B, C, H, W] in the layout of the setting."""
        return self._make(shape, LAYOUTS[self._setting.layout])

    def _make(
        self, shape: Sequence[int], layout: torch.memory_format, scale: float = 1.0
    ) -> Tensor:
        numbers = torch.randn(shape, generator=self._generator) * scale
        x = numbers.to(self._setting.device, self._setting.dtype)
        return x.contiguous(memory_format=layout).requires_grad_(self._setting.backward)


def tokens(x: Tensor) -> Tensor:
    """A map [B, C, H, W] as its token matrix [B, H*W, C], contiguous."""
    return x.flatten(2).transpose(1, 2).contiguous()


def as_map(matrix: Tensor, size: Sequence[int]) -> Tensor:
    """A token matrix [B, H*W, C] as a view [B, C, H, W]."""
    return matrix.transpose(1, 2).unflatten(2, (size[0], size[1]))


def empty_tokens(like: Tensor) -> Tensor:
    """A contiguous token matrix [B, H*W, C] for a map such as `like` [B, C, H, W]."""
    batch, channels, height, width = like.shape
    return torch.empty(batch, height * width, channels, dtype=like.dtype)


class Form(NamedTuple):
    """One PyTorch way to compute the case: function(*tensors).

    The tensors lead back to the arguments of our operator, for their gradients.
    """

    function: Callable[..., Result]
    tensors: tuple[Any, ...]


class Node(NamedTuple):
    """An ONNX node with one output."""

    kind: str
    inputs: tuple[str, ...]
    output: str
    attributes: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Graph:
    """The case as an inference engine runs it: ONNX nodes over tensors that it reads in place.

    Attributes:
        inputs: contiguous tensors by name.
        constants: weights and shapes by name, known to the engine when it compiles.
        nodes: in order of execution.
        outputs: the contiguous buffers that the engine writes, by name.
        result: views of these buffers, shaped as our operator returns them.
    """

    inputs: Mapping[str, Tensor]
    constants: Mapping[str, Tensor]
    nodes: tuple[Node, ...]
    outputs: Mapping[str, Tensor]
    result: Result


def relative_error(result: Result, expected: Result) -> float:
    """max|a - b| / max|b| over all tensors; infinite where a shape differs or a number is NaN."""
    results, expecteds = as_tuple(result), as_tuple(expected)
    if [x.shape for x in results] != [x.shape for x in expecteds]:
        return float("inf")
    return max(_relative_error(a, b) for a, b in zip(results, expecteds, strict=True))


def _relative_error(x: Tensor, expected: Tensor) -> float:
    error = float((x - expected).abs().max() / expected.abs().max())
    if error == error:
        return error
    # A gradient may be nothing but zeros.
    return 0.0 if torch.equal(x, expected) else float("inf")


def as_tuple(result: Result) -> tuple[Tensor, ...]:
    """The tensors of a result."""
    return (result,) if isinstance(result, Tensor) else result


@dataclass(frozen=True)
class Problem:
    """A case with its tensors.

    Attributes:
        arguments: positional arguments of our operator.
        operations: floating-point operations, counted once however a peer computes the case; phi
            is counted folded into the values where that costs fewer.
        compulsory_bytes: every input read once and every output written once.
        forms: what peers run, by peer name; "published" is there always.
        graph: the same for inference engines.
        products: the matrix products (rows, columns, depth) inside, for the rate of torch.mm at
            the shapes at hand; empty where there are none.
        error: of a result against the reference's, compared with `TOLERANCES`.
    """

    arguments: tuple[Any, ...]
    operations: int
    compulsory_bytes: int
    forms: Mapping[str, Form]
    graph: Callable[[], Graph]
    products: tuple[tuple[int, int, int], ...] = ()
    error: Callable[[Result, Result], float] = field(default=relative_error)


@dataclass(frozen=True)
class Case:
    """One operator at one size.

    Attributes:
        operator: public function of `tdnet_ops`.
        name: unique within the operator.
        shapes: for people.
        build: makes the tensors.
        on_request: runs only if named by --case.
        group: another name for --case, of several cases; empty if there is none.
    """

    operator: str
    name: str
    shapes: str
    build: Callable[[Setting], Problem]
    on_request: bool = False
    group: str = ""

    def __str__(self) -> str:
        return f"{self.operator} {self.name}"


def total_bytes(*tensors: Tensor) -> int:
    """Bytes of the numbers in all tensors."""
    return sum(x.numel() * x.element_size() for x in tensors)


def product_operations(products: Sequence[tuple[int, int, int]]) -> int:
    """2 * rows * columns * depth, summed."""
    return sum(2 * rows * columns * depth for rows, columns, depth in products)
