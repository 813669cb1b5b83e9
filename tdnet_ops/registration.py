"""Gives every operator to torch: fakes, autograd, autocast, vmap, definitions, decompositions.

Three name spaces have the same schemas: `tdnet` (compiled kernels, the definition for other devices
and for what has no kernel), `tdnet_triton` and `tdnet_reference`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._decomp import register_decomposition
from torch.utils import _pytree as pytree

from tdnet_ops import autograd, backends, definitions, flop_counts
from tdnet_ops.operators import OPERATORS
from tdnet_ops.operators.operator import Operator
from tdnet_ops.triton.run import run

_AUTOCAST_KEYS = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA", "xpu": "AutocastXPU"}


def _triton_kernel(operator: Operator, definition: Callable[..., Any]) -> Callable[..., Any]:
    def kernel(*arguments: Any, **keywords: Any) -> Any:
        tensors = (x for x in pytree.tree_leaves(arguments) if isinstance(x, Tensor))
        like = next(tensors, None)
        if like is None or like.dtype == torch.float64:
            return definition(*arguments, **keywords)
        backends.require("triton", operator, like, arguments)
        return run(operator, *arguments, **keywords)

    return kernel


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return (
            value.to(dtype) if value.is_floating_point() and value.dtype != torch.float64 else value
        )
    if isinstance(value, (list, tuple)):
        return type(value)(_cast(item, dtype) for item in value)
    return value


def _autocast_kernel(overload: Any, device_type: str) -> Callable[..., Any]:
    """As torch's own matrix products: casts to the autocast dtype, and leaves float64 alone."""
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, _AUTOCAST_KEYS[device_type]))

    def kernel(*args: Any, **kwargs: Any) -> Any:
        dtype = torch.get_autocast_dtype(device_type)
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return overload(*_cast(args, dtype), **kwargs)

    return kernel


@functools.cache  # An operator that differentiates another is asked for twice.
def _autograd_kernel(name_space: str, operator: Operator, overload: Any) -> Callable[..., Any]:
    if operator.differentiated_by is not None:
        by = getattr(getattr(torch.ops, name_space), operator.differentiated_by).default
        other = _autograd_kernel(name_space, OPERATORS[operator.differentiated_by], by)
        return autograd.first_result_of(other, overload)

    def another(name: str, *arguments: Any, **keywords: Any) -> Any:
        ops = backends.operators_like(name_space, OPERATORS[name], arguments)
        return getattr(ops, name)(*arguments, **keywords)

    assert operator.gradient is not None
    gradient = functools.partial(operator.gradient, another)
    # Of the public operator that it differentiates, if it does.
    differentiated = (o.name for o in OPERATORS.values() if o.differentiated_by == operator.name)
    shown_name = next(differentiated, operator.name)
    return autograd.autograd_kernel(operator, overload, gradient, shown_name)


def _register(operator: Operator, name_space: str, library: torch.library.Library) -> None:
    name = operator.name
    definition = definitions.reference_kernel(operator)
    triton = name_space == backends.NAME_SPACES["triton"]
    kernel = _triton_kernel(operator, definition) if triton else definition
    library.impl(name, kernel, "CompositeExplicitAutograd")
    for key in ("NestedTensorCPU", "NestedTensorCUDA"):
        library.impl(name, definition, key)  # whose checks name the argument
    qualified = f"{name_space}::{name}"
    overload = getattr(getattr(torch.ops, name_space), name).default
    fake = definitions.fake_kernel(operator, overload)
    torch.library.register_fake(qualified, fake, lib=library)
    # Torch would take the shapes of definitions.give_to_torch() before those of the fake kernel.
    register_decomposition(overload, type="meta")(fake)
    rule = autograd.vmap_rule(overload, operator.per_sample)
    torch.library.register_vmap(qualified, rule, lib=library)
    if operator.differentiable:
        kernel = _autograd_kernel(name_space, operator, overload)
        library.impl(name, kernel, "Autograd", with_keyset=True)
    if operator.autocast:
        for device_type, key in _AUTOCAST_KEYS.items():
            library.impl(name, _autocast_kernel(overload, device_type), key)


def _register_all() -> list[torch.library.Library]:
    """Returns the libraries: what they register lives as long as they do."""
    libraries, compiled = [], backends.NAME_SPACES["cpu"]
    for name_space in dict.fromkeys(backends.NAME_SPACES.values()):
        library = torch.library.Library(name_space, "FRAGMENT")
        if name_space != compiled:
            for operator in OPERATORS.values():
                library.define(str(operator.schema).removeprefix(f"{compiled}::"))
        for operator in OPERATORS.values():
            _register(operator, name_space, library)
        libraries.append(library)
    definitions.give_to_torch()
    flop_counts.give_to_torch()
    return libraries


_libraries = _register_all()
