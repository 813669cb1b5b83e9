"""The public operators. Each takes feature maps [B, C, H, W] of any strides; channels_last is the
fast path.

Letters in all shapes: B batch; C channels; H x W the query map, N = H*W queries; h x w the pooled
key map, M = h*w keys; d_k query and key channels; d_v value channels; d_out output channels. Sizes
are in pixels of the map.

dtypes: float32 and float64; float16 and bfloat16 accumulate in float32. All tensors of one call
share dtype and device. A returned map is channels_last exactly where the channels of the first map
given are adjacent in memory.

Every function takes `backend`: None chooses by device, a name (`tdnet_ops.backends.NAMES`) forces
one.

TF32: float32 on CUDA computes in full precision unless
`torch.backends.cuda.matmul.fp32_precision` is "tf32"; the convolutions here follow that flag too,
where PyTorch's, and the backward pass of ours, follow `torch.backends.cudnn.conv.fp32_precision`.

Gradients: reverse mode, also by torch.func (grad, vjp, jacrev, vmap); second derivatives of all but
attention_propagate. Forward mode (jvp, jacfwd) is refused; `tdnet_ops.reference` has it.

Numbers are Python's (or symbolic sizes), never tensors: a tensor would lose its gradient. Only the
functions here refuse one; `torch.ops.tdnet` takes what torch's dispatcher converts.

Errors, everywhere: ValueError, TypeError or RuntimeError that names the argument, what came and
what was expected; RuntimeError with the reason where a forced backend cannot run.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# registration gives the operators to torch.
from tdnet_ops import backends, checks, registration  # noqa: F401


def spatial_pool(
    x: Tensor, stride: int, mode: str = "max", *, backend: str | None = None
) -> Tensor:
    """gamma_n of Eq. 3: pools every n x n window, n = stride, ceil mode.

    Args:
        x: [B, C, H, W].
        stride: n >= 1, the window's side and step.
        mode: "max", the maximum of the window (NaN if it holds one), or "subsample", its top-left
            pixel.

    Returns:
        [B, C, ceil(H/n), ceil(W/n)], differentiable in x.
    """
    run = backends.operator("spatial_pool", "x", x, backend)
    stride = checks.integer("stride", stride)
    checks.string("mode", mode)
    return run(x, stride, mode)


def pooled_affinity(
    q: Tensor,
    k: Tensor,
    stride: int = 1,
    mode: str = "max",
    scale: float | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """The logits of Eq. 1 against pooled keys: q gamma_n(k)^T * scale.

    Args:
        q: [B, d_k, H, W].
        k: [B, d_k, H_k, W_k], not yet pooled.
        stride: n >= 1 of the pooling; 1 leaves k as it is.
        mode: "max" or "subsample", see `spatial_pool`.
        scale: 1 / sqrt(d_k) if None.

    Returns:
        [B, N, M] with M = ceil(H_k/n) * ceil(W_k/n), contiguous, differentiable in q and k.
    """
    run = backends.operator("pooled_affinity", "q", q, backend)
    stride = checks.integer("stride", stride)
    checks.string("mode", mode)
    scale = checks.optional_number("scale", scale)
    return run(q, k, stride, mode, scale, allow_tf32=backends.allow_tf32(q))


def softmax_propagate(
    affinity: Tensor,
    v: Tensor,
    size: Sequence[int],
    residual: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """phi(softmax(affinity) v) + residual, Eq. 4 and 5 with the logits given.

    As torch's softmax: a -inf logit weighs 0, a row of -inf gives NaN, NaN propagates.

    Args:
        affinity: [B, N, M] logits.
        v: [B, d_v, h, w].
        size: (H, W) with H * W = N.
        residual: [B, d_out, H, W], added last.
        weight: [d_out, d_v] of phi, a bare 1x1 convolution; the identity if None.
        bias: [d_out] of phi.

    Returns:
        [B, d_out, H, W] in the layout of residual, else of v; differentiable in all tensors.
    """
    run = backends.operator("softmax_propagate", "affinity", affinity, backend)
    size = checks.two_integers("size", size)
    return run(affinity, v, size, residual, weight, bias, allow_tf32=backends.allow_tf32(affinity))


def attention_propagate(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    residual: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    scale: float | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """phi(softmax(q k^T * scale) v) + residual in one pass, Eq. 4 and 5.

    The affinity is never stored.

    phi is folded into the values where that costs fewer operations (rows of a softmax sum to one).
    The backward pass recomputes the affinity in chunks.

    Args:
        q: [B, d_k, H, W].
        k: [B, d_k, h, w], already pooled.
        v: [B, d_v, h, w], already pooled.
        residual: [B, d_out, H, W], added last.
        weight: [d_out, d_v] of phi, a bare 1x1 convolution; the identity if None.
        bias: [d_out] of phi.
        scale: 1 / sqrt(d_k) if None.

    Returns:
        [B, d_out, H, W] in the layout of q, differentiable in all tensors.
    """
    run = backends.operator("attention_propagate", "q", q, backend)
    scale = checks.optional_number("scale", scale)
    return run(q, k, v, residual, weight, bias, scale, allow_tf32=backends.allow_tf32(q))


def block_sum_reduce(
    blocks: Sequence[Tensor],
    weights: Sequence[Tensor],
    bias: Tensor | None = None,
    padding: int = 0,
    dilation: int = 1,
    activation: str = "none",
    *,
    backend: str | None = None,
) -> Tensor:
    """The dimension reduction of Sec. 3.1: act(sum_i conv_i(x_i) + bias).

    The blocks are never concatenated.

    Args:
        blocks: maps [B, C_i, H, W].
        weights: one [C_out, C_i, k, k] a block, k = 1 or 3.
        bias: [C_out].
        padding: zeros around the map, >= 0, in pixels.
        dilation: >= 1, in pixels.
        activation: "none" or "relu".

    Returns:
        [B, C_out, H', W'] with H' = H + 2*padding - dilation*(k-1), differentiable in all tensors.
    """
    checks.tensor_list("blocks", blocks)
    checks.tensor_list("weights", weights)
    if len(blocks) == 0:
        raise ValueError("blocks: expected at least one block, got an empty list")
    run = backends.operator("block_sum_reduce", "blocks[0]", blocks[0], backend)
    padding = checks.integer("padding", padding)
    dilation = checks.integer("dilation", dilation)
    checks.string("activation", activation)
    tf32 = backends.allow_tf32(blocks[0])
    return run(blocks, weights, bias, padding, dilation, activation, allow_tf32=tf32)


def block_sum_update(
    partials: Sequence[Tensor],
    index: int,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    padding: int = 0,
    dilation: int = 1,
    activation: str = "none",
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Sec. 3.1 in a stream: one block is new, the others' partial results are kept.

    The partials are summed in the order of the list each time, so nothing drifts over a long
    stream.

    Args:
        partials: maps [B, C_out, H', W'], one a block; partials[index] is not read and may be any
            tensor.
        index: which block is new.
        x: its input [B, C_i, H, W].
        weight: its weights [C_out, C_i, k, k], k = 1 or 3.
        bias: [C_out], added to the sum.
        padding: zeros around the map, >= 0, in pixels.
        dilation: >= 1, in pixels.
        activation: "none" or "relu", applied to the sum.

    Returns:
        The new partial (no bias, no activation) and the sum, both [B, C_out, H', W'],
        differentiable in all tensors.
    """
    run = backends.operator("block_sum_update", "x", x, backend)
    tf32 = backends.allow_tf32(x)
    checks.tensor_list("partials", partials)
    index = checks.integer("index", index)
    padding = checks.integer("padding", padding)
    dilation = checks.integer("dilation", dilation)
    checks.string("activation", activation)
    # The dispatcher looks at every tensor: one of another device in the place that is not read
    # would mislead it. Detached, since compiled autograd fails to add a gradient that is None.
    partials = [x.detach() if i == index else partial for i, partial in enumerate(partials)]
    return run(partials, index, x, weight, bias, padding, dilation, activation, allow_tf32=tf32)


def upsample_argmax(
    logits: Tensor,
    size: Sequence[int],
    align_corners: bool = False,
    dtype: torch.dtype = torch.uint8,
    *,
    backend: str | None = None,
) -> Tensor:
    """Bilinear upsampling, then arg max over the classes; the full-size logits never exist.

    The lowest class wins a tie; NaN is larger than any number (as torch.argmax). Not
    differentiable.

    Args:
        logits: [B, K, H, W].
        size: (H', W') of the result, larger or smaller than the map.
        align_corners: as in torch.nn.functional.interpolate.
        dtype: torch.uint8 (K <= 256) or torch.int64.

    Returns:
        [B, H', W'] labels.
    """
    run = backends.operator("upsample_argmax", "logits", logits, backend)
    size = checks.two_integers("size", size)
    checks.boolean("align_corners", align_corners)
    checks.label_dtype("dtype", dtype)
    return run(logits, size, align_corners, dtype)
