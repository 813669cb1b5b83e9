"""A forward and a backward pass in one call, for --backward.

A call returns the results and then the gradients, so that both are compared with the reference's.
The incoming gradient is the same for everybody, in the layout of the peer's own result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tdnet_ops.bench.case import Form, Problem, Result, as_tuple, product_operations


def counted(problem: Problem) -> Problem:
    """The problem with the work of its gradients.

    A product has two in its gradient; what a backward pass computes again is no work of the
    problem. As many bytes again: the gradient of the result is read, those of the inputs written.
    """
    products = tuple(
        product
        for rows, columns, depth in problem.products
        for product in ((rows, columns, depth), (rows, depth, columns), (depth, columns, rows))
    )
    return replace(
        problem,
        operations=problem.operations + 2 * product_operations(problem.products),
        compulsory_bytes=2 * problem.compulsory_bytes,
        products=products,
    )


def checked_call(form: Form, arguments: Sequence[Any]) -> _Step:
    """With the gradients of our operator's arguments, to which the form's tensors lead back."""
    return _Step(form.function, form.tensors, arguments)


def timed_call(form: Form) -> _Step:
    """With the gradients of the form's own tensors: nobody's layout is changed in the call."""
    tensors = [_leaf(x) for x in form.tensors]
    return _Step(form.function, tensors, tensors)


class _Step:
    """Forward, then backward to those of `wanted` that need a gradient."""

    def __init__(
        self, function: Callable[..., Result], tensors: Sequence[Any], wanted: Sequence[Any]
    ) -> None:
        self._function, self._tensors = function, tensors
        self._wanted = [x for x in _tensors(wanted) if x.requires_grad]
        self._incoming: list[Tensor] | None = None

    def __call__(self) -> tuple[Tensor, ...]:
        results = as_tuple(self._function(*self._tensors))
        if self._incoming is None:
            self._incoming = _incoming(results)
        # A partial sum that is replaced has no part in the result: its gradient is zero.
        gradients = torch.autograd.grad(
            results, self._wanted, self._incoming, materialize_grads=True
        )
        return (*(x.detach() for x in results), *gradients)


def _incoming(results: Sequence[Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    numbers = [torch.randn(x.shape, generator=generator) for x in results]
    return [torch.empty_like(x).copy_(y) for x, y in zip(results, numbers, strict=True)]


def _tensors(values: Sequence[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _leaf(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().requires_grad_(value.requires_grad)
    return [_leaf(x) for x in value] if isinstance(value, list) else value
