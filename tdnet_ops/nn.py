"""Modules with parameters around the operators, to be used as those of torch.nn.

Any float dtype, device, autocast and memory format (channels_last is the fast path) do, as for the
operators; `device` and `dtype` are of the parameters that a module makes. Bad arguments raise
TypeError or ValueError: the argument, what was expected, what came.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tdnet_ops import checks
from tdnet_ops.extra_channels import with_l2_similarity
from tdnet_ops.gradients import wide
from tdnet_ops.operators.attention_propagate import attention_propagate
from tdnet_ops.operators.block_sum_reduce import block_sum_reduce
from tdnet_ops.pooling import POOLING_MODES, pool
from tdnet_ops.top_k import top_k_propagate

__all__ = ["AttentionPropagation", "BlockSumConv2d", "MemoryRead", "NonLocal2d"]


class AttentionPropagation(nn.Module):
    """x + a norm(phi(softmax(q(x) pool(k(y))^T * scale) pool(v(y)))), y the context or x itself.

    The softmax is over the keys, in each head; an affinity is never stored. phi runs inside of the
    operator where it is a bare 1x1 convolution without hooks. In eval mode, and only there, a
    BatchNorm with running statistics and `a` are folded into such a phi; in training they are
    applied as they are.

    Shapes:
        x: [B, channels, H, W].
        context: [B, C, h, w]; C is `channels` unless `key` and `value` are given.
        result: [B, channels, H, W].

    Args:
        channels: of x.
        key_channels: of q and k, of all heads together.
        value_channels: of v, of all heads together.
        heads: each attends with its own channels; phi mixes them.
        stride: n of the pooling of keys and values; 1: none.
        pooling: see `tdnet_ops.pool`.
        query, key, value: modules, maps to maps; 1x1 convolutions if None.
        phi: module, value_channels to channels; a 1x1 convolution if None, none if nn.Identity().
        norm: module after phi, such as nn.BatchNorm2d(channels).
        residual_scale: the first value of a learned `a`; without one, if None.
        scale: 1 / sqrt(key_channels / heads) if None.

    Attributes:
        residual_scale: `a`, a parameter of shape [1], or None.
    """

    def __init__(
        self,
        channels: int,
        key_channels: int,
        value_channels: int,
        *,
        heads: int = 1,
        stride: int = 1,
        pooling: str = "max",
        query: nn.Module | None = None,
        key: nn.Module | None = None,
        value: nn.Module | None = None,
        phi: nn.Module | None = None,
        norm: nn.Module | None = None,
        residual_scale: float | None = None,
        scale: float | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.channels = _positive("channels", channels)
        self.heads = _positive("heads", heads)
        self.key_channels = _of_heads("key_channels", key_channels, heads)
        self.value_channels = _of_heads("value_channels", value_channels, heads)
        self.stride = _positive("stride", stride)
        checks.check_choice("pooling", pooling, POOLING_MODES)
        self.pooling = pooling
        self.scale = checks.optional_number("scale", scale)
        self.first_residual_scale = checks.optional_number("residual_scale", residual_scale)

        given = {"query": query, "key": key, "value": value, "phi": phi}
        self._built = [name for name, module in given.items() if module is None]

        def built(name: str, inputs: int, outputs: int) -> nn.Module:
            if name in self._built:
                return nn.Conv2d(inputs, outputs, 1, device=device, dtype=dtype)
            return _module(name, given[name])

        self.query = built("query", channels, key_channels)
        self.key = built("key", channels, key_channels)
        self.value = built("value", channels, value_channels)
        self.phi = built("phi", value_channels, channels)
        self.norm = None if norm is None else _module("norm", norm)
        self.residual_scale: nn.Parameter | None = None
        if residual_scale is not None:
            self.residual_scale = nn.Parameter(torch.empty(1, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As at construction; modules that were given stay as they are."""
        for name in self._built:
            self.get_submodule(name).reset_parameters()  # type: ignore[operator]
        if self.residual_scale is not None:
            nn.init.constant_(self.residual_scale, self.first_residual_scale)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        context = x if context is None else context
        q = self.query(x)
        k, v = self._pooled(self.key, context), self._pooled(self.value, context)
        weight, bias, after, residual_scale = self._projection()
        # Under autocast x may be wider than what is projected, and the sum with it is then too.
        fused = not after and residual_scale is None and q.dtype == v.dtype == x.dtype
        out = attention_propagate(
            q, k, v, x if fused else None, weight, bias, self.scale, self.heads
        )
        for module in after:
            out = module(out)
        if residual_scale is not None:
            out = out * residual_scale.to(out.dtype)
        return out if fused else x + out

    def _pooled(self, projection: nn.Module, context: Tensor) -> Tensor:
        if self.stride == 1:
            return projection(context)
        if self.pooling in ("subsample", "average") and _is_pointwise(projection):
            # These commute: 1 / n^2 of the products.
            return projection(pool(context, self.stride, self.pooling))
        return pool(projection(context), self.stride, self.pooling)

    def _projection(
        self,
    ) -> tuple[Tensor | None, Tensor | None, list[nn.Module], Tensor | None]:
        """Weight and bias for the operator; the modules and the scale to be applied after it."""
        after = [] if self.norm is None else [self.norm]
        phi: Any = self.phi
        if isinstance(phi, nn.Identity):
            return None, None, after, self.residual_scale
        if not _is_pointwise(phi):
            return None, None, [phi, *after], self.residual_scale
        weight, bias = phi.weight[:, :, 0, 0], phi.bias
        if not self.training and after and _is_constant_norm(after[0]):
            weight, bias = _fold_norm(weight, bias, after.pop(0))
        if self.training or after or self.residual_scale is None:
            return weight, bias, after, self.residual_scale
        bias = None if bias is None else bias * self.residual_scale
        return weight * self.residual_scale, bias, after, None

    def extra_repr(self) -> str:
        return (
            f"{self.channels}, {self.key_channels}, {self.value_channels}, heads={self.heads}, "
            f"stride={self.stride}, pooling={self.pooling!r}, "
            f"residual_scale={self.first_residual_scale}, scale={self.scale}"
        )


class NonLocal2d(AttentionPropagation):
    """x + norm(phi(softmax(theta(x) pool(k(x))^T * scale) pool(g(x)))), arXiv 1711.07971, Eq. 6.

    theta, k and g of that paper are `query`, `key` and `value` here, its W_z is `phi`. It begins as
    the identity: the norm's weight, or phi where there is none, is zero.

    Shapes:
        x, result: [B, channels, H, W].

    Args:
        channels: of x.
        inner_channels: of the embeddings; half of `channels` if None.
        mode: "embedded_gaussian", or "gaussian": x is its own query and key.
        sub_sample: pools keys and values by max over 2 x 2, floor mode.
        norm: a BatchNorm2d after phi.
        scale: 1 as in the paper; None: 1 / sqrt(channels of a query), as mmcv's `use_scale`.
    """

    def __init__(
        self,
        channels: int,
        inner_channels: int | None = None,
        mode: str = "embedded_gaussian",
        *,
        sub_sample: bool = False,
        norm: bool = True,
        scale: float | None = 1.0,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        checks.check_choice("mode", mode, ("embedded_gaussian", "gaussian"))
        checks.boolean("sub_sample", sub_sample)
        checks.boolean("norm", norm)
        _positive("channels", channels)
        inner = max(1, channels // 2) if inner_channels is None else inner_channels
        inner = _positive("inner_channels", inner)
        embedded = mode == "embedded_gaussian"
        super().__init__(
            channels,
            inner if embedded else channels,
            inner,
            stride=2 if sub_sample else 1,
            pooling="floor_max",
            query=None if embedded else nn.Identity(),
            key=None if embedded else nn.Identity(),
            norm=nn.BatchNorm2d(channels, device=device, dtype=dtype) if norm else None,
            scale=scale,
            device=device,
            dtype=dtype,
        )

    def reset_parameters(self) -> None:
        super().reset_parameters()
        last: Any = self.phi if self.norm is None else self.norm
        last.reset_parameters()
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)


class MemoryRead(nn.Module):
    """softmax(similarity(q, k) * scale) v, over all keys or each query's best. No parameters.

    The reading of space-time memories: STM (arXiv 1904.00607) is "dot" with a scale of 1, STCN
    (arXiv 2106.05210) "l2", -|q - k|^2. No affinity is stored.

    Shapes:
        query: [B, d_k, H, W].
        keys: [B, d_k, T, h, w] of T frames, or [B, d_k, h, w].
        values: as keys, of d_v channels.
        result: [B, d_v, H, W].
        A batch of 1 goes with any: one query reads the memories of several objects.

    Args:
        similarity: "dot" or "l2".
        top_k: the softmax is over so many of the largest logits of a query; over all if None.
        scale: 1 / sqrt(d_k) if None.
    """

    def __init__(
        self, similarity: str = "dot", top_k: int | None = None, scale: float | None = None
    ) -> None:
        super().__init__()
        checks.check_choice("similarity", similarity, ("dot", "l2"))
        self.similarity = similarity
        self.top_k = None if top_k is None else _positive("top_k", top_k)
        self.scale = checks.optional_number("scale", scale)

    def forward(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        scale = self.scale
        if self.similarity == "l2":
            query, keys, scale = with_l2_similarity(query, keys, scale)
        if self.top_k is None:
            return attention_propagate(query, keys, values, scale=scale)
        return top_k_propagate(query, keys, values, self.top_k, scale)

    def extra_repr(self) -> str:
        return f"{self.similarity!r}, top_k={self.top_k}, scale={self.scale}"


class BlockSumConv2d(nn.Module):
    """act(conv(concatenation of the blocks)), the blocks never concatenated: sum_i conv_i(x_i).

    The dimension reduction of Sec. 3.1. Parameters, names and first values are those of
    `nn.Conv2d(sum(in_channels), ...)`, whose state_dict loads.

    Shapes:
        blocks: a list of [B, in_channels[i], H, W].
        result: [B, out_channels, H', W'], H' = H + 2*padding - dilation*(kernel_size-1).

    Args:
        in_channels: of every block.
        out_channels: of the result.
        kernel_size: 1 or 3.
        padding: zeros around the map, in pixels.
        dilation: in pixels.
        bias: whether there is one.
        activation: "none" or "relu".
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        kernel_size: int = 1,
        *,
        padding: int = 0,
        dilation: int = 1,
        bias: bool = True,
        activation: str = "none",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(in_channels, (list, tuple)):
            raise TypeError(f"in_channels: expected a list of integers, got {in_channels!r}")
        if not in_channels:
            raise ValueError("in_channels: expected those of at least one block, got none")
        self.in_channels = [_positive("in_channels", channels) for channels in in_channels]
        self.out_channels = _positive("out_channels", out_channels)
        checks.check_choice("kernel_size", kernel_size, (1, 3))
        self.kernel_size = kernel_size
        self.padding = checks.integer("padding", padding)
        if padding < 0:
            raise ValueError(f"padding: expected at least 0, got {padding}")
        self.dilation = _positive("dilation", dilation)
        checks.boolean("bias", bias)
        checks.check_activation(activation)
        self.activation = activation
        shape = out_channels, sum(self.in_channels), kernel_size, kernel_size
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.bias: nn.Parameter | None = None
        if bias:
            self.bias = nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As nn.Conv2d."""
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        if self.bias is not None:
            bound = self.weight[0].numel() ** -0.5
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, blocks: Sequence[Tensor]) -> Tensor:
        checks.tensor_list("blocks", blocks)
        channels = [x.shape[1] if x.dim() > 1 else None for x in blocks]
        if channels != self.in_channels:
            raise ValueError(f"blocks: expected channels {self.in_channels}, got {channels}")
        weights = self.weight.split(self.in_channels, 1)
        return block_sum_reduce(
            blocks, weights, self.bias, self.padding, self.dilation, self.activation
        )

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, {self.kernel_size}, "
            f"padding={self.padding}, dilation={self.dilation}, bias={self.bias is not None}, "
            f"activation={self.activation!r}"
        )


def _positive(name: str, value: int) -> int:
    checks.check_positive(name, checks.integer(name, value))
    return value


def _module(name: str, module: Any) -> nn.Module:
    if not isinstance(module, nn.Module):
        raise TypeError(f"{name}: expected a module or None, got {type(module).__name__}")
    return module


def _of_heads(name: str, channels: int, heads: int) -> int:
    if _positive(name, channels) % heads != 0:
        raise ValueError(f"{name}: expected a multiple of {heads} heads, got {channels}")
    return channels


def has_hooks(module: nn.Module) -> bool:
    """Which run only where the module itself is called; older spectral norm is one."""
    kinds = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
    return any(getattr(module, kind) for kind in kinds)


def _is_pointwise(module: nn.Module) -> bool:
    """Whether it is a bare 1x1 convolution."""
    return (
        isinstance(module, nn.Conv2d)
        and type(module).forward is nn.Conv2d.forward
        and (module.kernel_size, module.stride) == ((1, 1), (1, 1))
        and module.padding in ((0, 0), "same", "valid")
        and module.groups == 1
        and not has_hooks(module)
    )


def _is_constant_norm(module: nn.Module) -> bool:
    """Whether it is a BatchNorm that normalises by its running statistics."""
    return (
        isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm))
        and not module.training
        and module.running_mean is not None
        and not has_hooks(module)
    )


def _fold_norm(weight: Tensor, bias: Tensor | None, norm: Any) -> tuple[Tensor, Tensor]:
    """norm(W x + b) = s W x + s (b - mean) + beta, s = gamma / sqrt(variance + eps)."""
    factor = torch.rsqrt(wide(norm.running_var) + norm.eps)
    if norm.weight is not None:
        factor = factor * norm.weight
    shift = -wide(norm.running_mean) if bias is None else bias - wide(norm.running_mean)
    shift = shift * factor
    if norm.bias is not None:
        shift = shift + norm.bias
    return (factor[:, None] * weight).to(weight.dtype), shift.to(weight.dtype)
