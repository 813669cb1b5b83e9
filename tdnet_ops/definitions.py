"""The definitions as kernels: of the reference backend, and as decompositions into plain aten.

Torch takes the decompositions from its own table wherever a program leaves it for a runtime that
has none of our kernels (torch.onnx.export does), and from `decompositions()` where a user asks.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._decomp import register_decomposition
from torch._library.utils import get_layout_constraint_tag
from torch.utils import _pytree as pytree

from tdnet_ops import backends, gradients, reference
from tdnet_ops.layouts import layout
from tdnet_ops.operators import OPERATORS
from tdnet_ops.operators.operator import Operator, named


def _widened(value: Any) -> Any:
    return gradients.wide(value) if isinstance(value, Tensor) else value


def _defined(operator: Operator, bound: Any) -> Any:
    """The result or results by the definition, half precision widened."""
    definition = operator.definition or getattr(reference, operator.name)
    return named(definition, type(bound)(*(pytree.tree_map(_widened, value) for value in bound)))


def reference_kernel(operator: Operator) -> Callable[..., Any]:
    """Checks a call and fills in its results, which are laid out as those of every backend."""

    def kernel(*arguments: Any, **keywords: Any) -> Any:
        results = operator.result(*arguments, **keywords)
        # Copies: results never alias each other or an argument.
        values = _defined(operator, operator.bind(arguments, keywords))
        pytree.tree_map(lambda to, value: to.copy_(value), results, values)
        return results

    return kernel


def _decomposition(operator: Operator) -> Callable[..., Any]:
    """As the reference kernel, without writing in place. Layouts are those of the fake kernel."""

    def as_result(like: Tensor, value: Tensor) -> Tensor:
        memory_format = layout(like) if like.dim() == 4 else torch.contiguous_format
        return value.to(like.dtype).clone(memory_format=memory_format)

    def decomposition(*arguments: Any, **keywords: Any) -> Any:
        likes = operator.result(*arguments, **keywords)
        values = _defined(operator, operator.bind(arguments, keywords))
        return pytree.tree_map(as_result, likes, values)

    return decomposition


def _overloads(operator: Operator) -> list[torch._ops.OpOverload]:
    """One in each name space."""
    return [getattr(ops, operator.name).default for ops in backends.all_operators()]


def decompositions() -> dict[torch._ops.OpOverload, Callable[..., Any]]:
    """A table for `ExportedProgram.run_decompositions` after which a graph is plain aten.

        program = program.run_decompositions(tdnet_ops.decompositions())

    Update `torch.export.default_decompositions()` with it for the operators of core aten alone.
    Left alone, exported and compiled graphs keep each operator as one node.

    Returns:
        Every operator in every name space (torch.ops.tdnet, tdnet_triton, tdnet_reference) and its
        definition in tdnet_ops/reference.py.
    """
    return {
        overload: decomposition
        for operator in OPERATORS.values()
        for decomposition in [_decomposition(operator)]
        for overload in _overloads(operator)
    }


def fake_kernel(operator: Operator, overload: torch._ops.OpOverload) -> Callable[..., Any]:
    """Checks a call and says what its results would be, without their numbers."""

    def kernel(*arguments: Any, **keywords: Any) -> Any:
        _lower_as_one_node(overload)
        return operator.result(*arguments, **keywords)

    return kernel


def _lower_as_one_node(overload: torch._ops.OpOverload) -> None:
    """Has Inductor call an operator, if it is there, as it does on its own outside of CI.

    Where the environment variable CI is set it refuses operators in the table of give_to_torch().
    """
    inductor: Any = sys.modules.get("torch._inductor.lowering")
    # Another thread may still be importing it.
    if hasattr(inductor, "make_fallback") and overload not in inductor.lowerings:
        constraint = inductor.tag_to_layout_constraint(get_layout_constraint_tag(overload))
        inductor.make_fallback(overload, constraint, warn=False)


def give_to_torch() -> None:
    """Enters the decompositions in torch's table, from which torch.onnx.export takes its own."""
    for overload, decomposition in decompositions().items():
        register_decomposition(overload)(decomposition)
