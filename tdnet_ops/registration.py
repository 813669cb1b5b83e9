"""Fake kernels, autograd, autocast and the Python backends of every operator.

The schemas stand in csrc/library.cpp, once. For an operator `name` this file holds `_name_fake`
(shape, dtype and layout of the result), `_name_setup` and `_name_backward` (autograd), and one row
in `_OPERATORS`; the row is registered for each name space: `tdnet` (compiled, with the reference
for other devices), `tdnet_triton` and `tdnet_reference`.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

# _library defines the schemas.
from tdnet_ops import _library, autograd, backends, checks, gradients, reference  # noqa: F401
from tdnet_ops.layouts import empty_map, layout

NAME_SPACES = ("tdnet", "tdnet_triton", "tdnet_reference")


def _wide_or_none(
    residual: Tensor | None, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    wide = gradients.wide
    return (
        None if residual is None else wide(residual),
        None if weight is None else wide(weight),
        None if bias is None else wide(bias),
    )


# --- spatial_pool ---------------------------------------------------------------------------------


def _spatial_pool_fake(x: Tensor, stride: int, mode: str = "max") -> Tensor:
    checks.spatial_pool(x, stride, mode)
    height, width = (-(-pixels // stride) for pixels in x.shape[2:])
    return empty_map(x, [x.shape[0], x.shape[1], height, width])


def _spatial_pool_reference(x: Tensor, stride: int, mode: str = "max") -> Tensor:
    checks.spatial_pool(x, stride, mode)
    return reference.spatial_pool(x, stride, mode).contiguous(memory_format=layout(x))


def _spatial_pool_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.stride, ctx.mode = inputs
    ctx.save_for_backward(x)


def _spatial_pool_backward(ops: Any, ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    (x,) = ctx.saved_tensors
    return gradients.spatial_pool(grad, x, ctx.stride, ctx.mode), None, None


# --- pooled_affinity ------------------------------------------------------------------------------


def _pooled_affinity_fake(
    q: Tensor,
    k: Tensor,
    stride: int = 1,
    mode: str = "max",
    scale: float | None = None,
    *,
    allow_tf32: bool = False,
) -> Tensor:
    checks.pooled_affinity(q, k, stride, mode)
    height, width = (-(-pixels // stride) for pixels in k.shape[2:])
    return q.new_empty([q.shape[0], q.shape[2] * q.shape[3], height * width])


def _pooled_affinity_reference(
    q: Tensor,
    k: Tensor,
    stride: int = 1,
    mode: str = "max",
    scale: float | None = None,
    *,
    allow_tf32: bool = False,
) -> Tensor:
    checks.pooled_affinity(q, k, stride, mode)
    affinity = reference.pooled_affinity(gradients.wide(q), gradients.wide(k), stride, mode, scale)
    return affinity.to(q.dtype).contiguous()


def _pooled_affinity_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    q, k, ctx.stride, ctx.mode, ctx.scale = inputs
    ctx.save_for_backward(q, k)


def _pooled_affinity_backward(ops: Any, ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    q, k = ctx.saved_tensors
    pooled = ops.spatial_pool(k, ctx.stride, ctx.mode)
    return (
        *gradients.pooled_affinity(grad, q, k, pooled, ctx.stride, ctx.mode, ctx.scale),
        None,
        None,
        None,
    )


# --- softmax_propagate ----------------------------------------------------------------------------


def _softmax_propagate_fake(
    affinity: Tensor,
    v: Tensor,
    size: Sequence[int],
    residual: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    allow_tf32: bool = False,
) -> Tensor:
    checks.softmax_propagate(affinity, v, size, residual, weight, bias)
    channels = v.shape[1] if weight is None else weight.shape[0]
    return empty_map(v if residual is None else residual, [v.shape[0], channels, size[0], size[1]])


def _softmax_propagate_reference(
    affinity: Tensor,
    v: Tensor,
    size: Sequence[int],
    residual: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    allow_tf32: bool = False,
) -> Tensor:
    checks.softmax_propagate(affinity, v, size, residual, weight, bias)
    out = reference.softmax_propagate(
        gradients.wide(affinity), gradients.wide(v), size, *_wide_or_none(residual, weight, bias)
    )
    like = v if residual is None else residual
    return out.to(v.dtype).contiguous(memory_format=layout(like))


def _softmax_propagate_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    affinity, v, _, residual, weight, bias = inputs
    ctx.save_for_backward(affinity, v, weight, bias)
    ctx.has_residual = residual is not None


def _softmax_propagate_backward(ops: Any, ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    affinity, v, weight, bias = ctx.saved_tensors
    grad_affinity, grad_v, grad_weight = gradients.softmax_propagate(grad, affinity, v, weight)
    grad_residual = grad if ctx.has_residual else None
    return grad_affinity, grad_v, None, grad_residual, grad_weight, gradients.bias(grad, bias)


# --- attention_propagate --------------------------------------------------------------------------


def _attention_propagate_fake(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    residual: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    scale: float | None = None,
    *,
    allow_tf32: bool = False,
) -> Tensor:
    checks.attention_propagate(q, k, v, residual, weight, bias)
    channels = v.shape[1] if weight is None else weight.shape[0]
    return empty_map(q, [q.shape[0], channels, q.shape[2], q.shape[3]])


def _attention_propagate_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    residual: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    scale: float | None = None,
    *,
    allow_tf32: bool = False,
) -> Tensor:
    checks.attention_propagate(q, k, v, residual, weight, bias)
    projection = _wide_or_none(residual, weight, bias)
    out = reference.attention_propagate(
        gradients.wide(q), gradients.wide(k), gradients.wide(v), *projection, scale
    )
    return out.to(q.dtype).contiguous(memory_format=layout(q))


def _attention_propagate_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    q, k, v, residual, weight, bias, ctx.scale = inputs
    ctx.save_for_backward(q, k, v, weight, bias)
    ctx.has_residual = residual is not None


def _attention_propagate_backward(ops: Any, ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    q, k, v, weight, bias = ctx.saved_tensors
    _, log_sum_exp = ops.attention_propagate_forward(q, k, v, None, weight, bias, ctx.scale)
    grads = ops.attention_propagate_backward(grad, q, k, v, weight, log_sum_exp, ctx.scale)
    grad_residual = grad if ctx.has_residual else None
    grad_weight = None if weight is None else grads[3]
    return *grads[:3], grad_residual, grad_weight, gradients.bias(grad, bias), None


def _forward_fake(q: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    rows = q.new_empty([q.shape[0], q.shape[2] * q.shape[3]], dtype=wide)
    return _attention_propagate_fake(q, *args, **kwargs), rows


def _forward_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    residual: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    scale: float | None = None,
    *,
    allow_tf32: bool = False,
) -> tuple[Tensor, Tensor]:
    out = _attention_propagate_reference(q, k, v, residual, weight, bias, scale)
    logits = reference.pooled_affinity(gradients.wide(q), gradients.wide(k), scale=scale)
    return out, logits.logsumexp(-1)


def _backward_reference(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    weight: Tensor | None,
    log_sum_exp: Tensor,
    scale: float | None,
    *,
    allow_tf32: bool = False,
) -> tuple[Tensor, ...]:
    return gradients.attention_propagate(grad, q, k, v, weight, scale)


def _attention_propagate_backward_fake(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    weight: Tensor | None,
    log_sum_exp: Tensor,
    scale: float | None,
    *,
    allow_tf32: bool = False,
) -> tuple[Tensor, ...]:
    grad_weight = q.new_empty(0) if weight is None else weight.new_empty(weight.shape)
    return *(x.new_empty(x.shape) for x in (q, k, v)), grad_weight


def _attention_propagate_backward_backward(ops: Any, ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
    raise NotImplementedError(
        "attention_propagate: second derivatives are not implemented; "
        "tdnet_ops.reference.attention_propagate has them"
    )


# --- block_sum_reduce and block_sum_update --------------------------------------------------------


def _block_sum_reduce_fake(
    blocks: Sequence[Tensor],
    weights: Sequence[Tensor],
    bias: Tensor | None,
    padding: int,
    dilation: int,
    activation: str,
    *,
    allow_tf32: bool = False,
) -> Tensor:
    checks.block_sum_reduce(blocks, weights, bias, padding, dilation, activation)
    return empty_map(blocks[0], checks.convolved_shape(blocks[0], weights[0], padding, dilation))


def _block_sum_reduce_reference(
    blocks: Sequence[Tensor],
    weights: Sequence[Tensor],
    bias: Tensor | None,
    padding: int,
    dilation: int,
    activation: str,
    *,
    allow_tf32: bool = False,
) -> Tensor:
    checks.block_sum_reduce(blocks, weights, bias, padding, dilation, activation)
    out = reference.block_sum_reduce(
        [gradients.wide(x) for x in blocks],
        [gradients.wide(weight) for weight in weights],
        None if bias is None else gradients.wide(bias),
        padding,
        dilation,
        activation,
    )
    return out.to(blocks[0].dtype).contiguous(memory_format=layout(blocks[0]))


def _block_sum_reduce_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    blocks, weights, bias, ctx.padding, ctx.dilation, ctx.activation = inputs
    ctx.count = len(blocks)
    ctx.save_for_backward(*blocks, *weights, bias, output)


def _block_sum_reduce_backward(ops: Any, ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    saved, n = ctx.saved_tensors, ctx.count
    grad = gradients.activation(grad, saved[-1], ctx.activation)
    pairs = [
        gradients.convolution(grad, x, weight, ctx.padding, ctx.dilation)
        for x, weight in zip(saved[:n], saved[n : 2 * n], strict=True)
    ]
    grad_blocks, grad_weights = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    return grad_blocks, grad_weights, gradients.bias(grad, saved[-2]), None, None, None


def _block_sum_update_fake(
    partials: Sequence[Tensor],
    index: int,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: int,
    dilation: int,
    activation: str,
    *,
    allow_tf32: bool = False,
) -> tuple[Tensor, Tensor]:
    checks.block_sum_update(partials, index, x, weight, bias, padding, dilation, activation)
    shape = checks.convolved_shape(x, weight, padding, dilation)
    return empty_map(x, shape), empty_map(x, shape)


def _block_sum_update_reference(
    partials: Sequence[Tensor],
    index: int,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: int,
    dilation: int,
    activation: str,
    *,
    allow_tf32: bool = False,
) -> tuple[Tensor, Tensor]:
    checks.block_sum_update(partials, index, x, weight, bias, padding, dilation, activation)
    partial, total = reference.block_sum_update(
        [gradients.wide(p) for p in partials],
        index,
        gradients.wide(x),
        gradients.wide(weight),
        None if bias is None else gradients.wide(bias),
        padding,
        dilation,
        activation,
    )
    # A copy where the sum is the partial itself (one block, no bias): results never alias.
    total = total.clone() if total is partial else total
    return (
        partial.to(x.dtype).contiguous(memory_format=layout(x)),
        total.to(x.dtype).contiguous(memory_format=layout(x)),
    )


def _block_sum_update_setup(
    ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]
) -> None:
    partials, ctx.index, x, weight, bias, ctx.padding, ctx.dilation, ctx.activation = inputs
    ctx.count = len(partials)
    ctx.save_for_backward(x, weight, bias, output[1])
    # No zeros for the result that nobody uses; compiled autograd makes none in any case.
    ctx.set_materialize_grads(False)


def _block_sum_update_backward(
    ops: Any, ctx: Any, grad_partial: Tensor | None, grad_total: Tensor | None
) -> tuple[Any, ...]:
    x, weight, bias, total = ctx.saved_tensors
    grad_bias = None
    if grad_total is not None:
        grad_total = gradients.activation(grad_total, total, ctx.activation)
        grad_bias = gradients.bias(grad_total, bias)
    grad_partials = [None if i == ctx.index else grad_total for i in range(ctx.count)]
    grads = [gradients.wide(grad) for grad in (grad_partial, grad_total) if grad is not None]
    if not grads:
        return grad_partials, *[None] * 7
    grad_x, grad_weight = gradients.convolution(
        sum(grads[1:], grads[0]), x, weight, ctx.padding, ctx.dilation
    )
    return grad_partials, None, grad_x, grad_weight, grad_bias, None, None, None


# --- upsample_argmax ------------------------------------------------------------------------------


def _upsample_argmax_fake(
    logits: Tensor,
    size: Sequence[int],
    align_corners: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    dtype = checks.upsample_argmax(logits, size, dtype)
    return logits.new_empty([logits.shape[0], size[0], size[1]], dtype=dtype)


def _upsample_argmax_reference(
    logits: Tensor,
    size: Sequence[int],
    align_corners: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    dtype = checks.upsample_argmax(logits, size, dtype)
    return reference.upsample_argmax(gradients.wide(logits), size, align_corners, dtype)


# --- the table ------------------------------------------------------------------------------------


def _save_nothing(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    pass


@dataclass(frozen=True)
class _Operator:
    fake: Callable[..., Any]
    reference: Callable[..., Any]
    # The arguments whose first dimension is the batch.
    per_sample: tuple[str, ...]
    setup: Callable[..., None] = _save_nothing
    # Takes the operators of its name space first, so that forward and backward share a backend.
    backward: Callable[..., tuple[Any, ...]] | None = None
    autocast: bool = True


_OPERATORS = {
    "spatial_pool": _Operator(
        _spatial_pool_fake,
        _spatial_pool_reference,
        ("x",),
        _spatial_pool_setup,
        _spatial_pool_backward,
        autocast=False,
    ),
    "pooled_affinity": _Operator(
        _pooled_affinity_fake,
        _pooled_affinity_reference,
        ("q", "k"),
        _pooled_affinity_setup,
        _pooled_affinity_backward,
    ),
    "softmax_propagate": _Operator(
        _softmax_propagate_fake,
        _softmax_propagate_reference,
        ("affinity", "v", "residual"),
        _softmax_propagate_setup,
        _softmax_propagate_backward,
    ),
    "attention_propagate": _Operator(
        _attention_propagate_fake,
        _attention_propagate_reference,
        ("q", "k", "v", "residual"),
        _attention_propagate_setup,
        _attention_propagate_backward,
    ),
    "attention_propagate_forward": _Operator(
        _forward_fake,
        _forward_reference,
        ("q", "k", "v", "residual"),
        backward=_attention_propagate_backward_backward,
        autocast=False,
    ),
    "attention_propagate_backward": _Operator(
        _attention_propagate_backward_fake,
        _backward_reference,
        (),  # the gradient of the weight is one for the whole batch
        backward=_attention_propagate_backward_backward,
        autocast=False,
    ),
    "block_sum_reduce": _Operator(
        _block_sum_reduce_fake,
        _block_sum_reduce_reference,
        ("blocks",),
        _block_sum_reduce_setup,
        _block_sum_reduce_backward,
    ),
    "block_sum_update": _Operator(
        _block_sum_update_fake,
        _block_sum_update_reference,
        ("partials", "x"),
        _block_sum_update_setup,
        _block_sum_update_backward,
    ),
    "upsample_argmax": _Operator(
        _upsample_argmax_fake, _upsample_argmax_reference, ("logits",), autocast=False
    ),
}

_AUTOCAST_KEYS = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA", "xpu": "AutocastXPU"}


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


def _triton_kernel(name: str, operator: _Operator) -> Callable[..., Any]:
    """The operator of tdnet_ops.triton, imported in the first call: that takes a while."""

    def kernel(*args: Any, **kwargs: Any) -> Any:
        like = next((x for x in pytree.tree_leaves(args) if isinstance(x, Tensor)), None)
        if like is None or like.dtype == torch.float64:
            return operator.reference(*args, **kwargs)
        reason = backends.refusal("triton", like.device, like.dtype)
        if reason is not None:
            raise RuntimeError(f"backend 'triton' cannot run {name}: {reason}")
        module = importlib.import_module(f"tdnet_ops.triton.{name}")
        return getattr(module, name)(*args, **kwargs)

    return kernel


def _register(
    name: str, operator: _Operator, name_space: str, library: torch.library.Library
) -> None:
    triton = name_space == "tdnet_triton"
    kernel = _triton_kernel(name, operator) if triton else operator.reference
    library.impl(name, kernel, "CompositeExplicitAutograd")
    for key in ("NestedTensorCPU", "NestedTensorCUDA"):
        library.impl(name, operator.reference, key)  # whose checks name the argument
    qualified = f"{name_space}::{name}"
    torch.library.register_fake(qualified, operator.fake, lib=library)
    ops = getattr(torch.ops, name_space)
    overload = getattr(ops, name).default
    rule = autograd.vmap_rule(overload, operator.per_sample)
    torch.library.register_vmap(qualified, rule, lib=library)
    if operator.backward is not None:
        backward = functools.partial(operator.backward, ops)
        differentiable = autograd.autograd_kernel(overload, operator.setup, backward)
        library.impl(name, differentiable, "Autograd", with_keyset=True)
    if operator.autocast:
        for device_type, key in _AUTOCAST_KEYS.items():
            library.impl(name, _autocast_kernel(overload, device_type), key)


def _register_all() -> list[torch.library.Library]:
    """Returns the libraries: what they register lives as long as they do."""
    libraries = []
    for name_space in NAME_SPACES:
        library = torch.library.Library(name_space, "FRAGMENT")
        for name, operator in _OPERATORS.items():
            if name_space != "tdnet":
                schema = str(getattr(torch.ops.tdnet, name).default._schema)
                library.define(schema.removeprefix("tdnet::"))
            _register(name, operator, name_space, library)
        libraries.append(library)
    return libraries


_libraries = _register_all()
