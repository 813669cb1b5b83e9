"""attention_propagate: phi(softmax(q k^T / sqrt(d_k)) v) + residual, Eq. 4 and 5.

Operations: 2 N M (d_k + d_v) for the two products, plus phi over M pooled keys or N queries,
2 min(M, N) d_v d_out. The exponentials are not counted.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tdnet_ops.bench.case import (
    Attend,
    Case,
    Form,
    Graph,
    Inputs,
    Node,
    Problem,
    Setting,
    as_map,
    empty_tokens,
    product_operations,
    tokens,
    total_bytes,
)

KEY_CHANNELS = 64


def published(
    q: Tensor, k: Tensor, v: Tensor, residual: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    """As the published code: q, k, v are token matrices, residual is contiguous."""
    affinity = torch.bmm(q, k.transpose(1, 2)) / math.sqrt(q.shape[2])
    out = torch.bmm(affinity.softmax(2), v)
    batch, queries, channels = out.shape
    out = F.conv2d(out.view(batch * queries, channels, 1, 1), weight[:, :, None, None], bias)
    out = out.view(batch, queries, -1).permute(0, 2, 1).contiguous()
    return out.view(residual.shape) + residual


def sdpa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    attend: Attend = F.scaled_dot_product_attention,
) -> Tensor:
    """q, k, v are token matrices with a head dimension; residual is channels_last: no permutes."""
    out = attend(q, k, v).squeeze(1)
    return F.conv2d(as_map(out, residual.shape[2:]), weight[:, :, None, None], bias) + residual


def sdpa_linear(
    q: Tensor, k: Tensor, v: Tensor, residual: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    """As sdpa with phi as a linear layer on token matrices, which CPUs run faster than the conv."""
    out = F.linear(F.scaled_dot_product_attention(q, k, v).squeeze(1), weight, bias)
    return as_map(out + residual.flatten(2).transpose(1, 2), residual.shape[2:])


def _graph(
    q: Tensor, k: Tensor, v: Tensor, residual: Tensor, weight: Tensor, bias: Tensor
) -> Graph:
    """phi folded into the values, everything a token matrix."""
    scale = torch.tensor(1 / math.sqrt(q.shape[1]), dtype=q.dtype)
    out = empty_tokens(residual)
    return Graph(
        inputs={"q": tokens(q), "k": tokens(k), "v": tokens(v), "residual": tokens(residual)},
        constants={"weight": weight.t().contiguous(), "bias": bias, "scale": scale},
        nodes=(
            Node("MatMul", ("v", "weight"), "projected"),
            Node("Add", ("projected", "bias"), "values"),
            Node("Mul", ("k", "scale"), "scaled"),
            Node("Transpose", ("scaled",), "keys", {"perm": [0, 2, 1]}),
            Node("MatMul", ("q", "keys"), "logits"),
            Node("Softmax", ("logits",), "affinity", {"axis": -1}),
            Node("MatMul", ("affinity", "values"), "attended"),
            Node("Add", ("attended", "residual"), "out"),
        ),
        outputs={"out": out},
        result=as_map(out, residual.shape[2:]),
    )


def _build(
    setting: Setting, size: tuple[int, int], pooled: tuple[int, int], channels: int
) -> Problem:
    inputs = Inputs(setting)
    q = inputs.feature_map(1, KEY_CHANNELS, *size)
    k = inputs.feature_map(1, KEY_CHANNELS, *pooled)
    v = inputs.feature_map(1, channels, *pooled)
    residual = inputs.feature_map(1, channels, *size)
    weight = inputs.tensor(channels, channels, scale=channels**-0.5)
    bias = inputs.tensor(channels)
    arguments = (q, k, v, residual, weight, bias)
    queries, keys = math.prod(size), math.prod(pooled)
    products = (
        (min(keys, queries), channels, channels),
        (queries, keys, KEY_CHANNELS),
        (queries, channels, keys),
    )
    q_tokens, k_tokens, v_tokens = tokens(q), tokens(k), tokens(v)
    heads = (q_tokens[:, None], k_tokens[:, None], v_tokens[:, None])
    last = residual.contiguous(memory_format=torch.channels_last)
    return Problem(
        arguments=arguments,
        operations=product_operations(products),
        compulsory_bytes=total_bytes(*arguments, residual),
        forms={
            "published": Form(
                published, (q_tokens, k_tokens, v_tokens, residual.contiguous(), weight, bias)
            ),
            "sdpa": Form(sdpa, (*heads, last, weight, bias)),
            "sdpa-linear": Form(sdpa_linear, (*heads, last, weight, bias)),
        },
        graph=functools.partial(_graph, *arguments),
        products=products,
    )


def _case(
    name: str,
    size: tuple[int, int],
    pooled: tuple[int, int],
    channels: int,
    on_request: bool = False,
) -> Case:
    shapes = (
        f"N {size[0]}x{size[1]} = {math.prod(size):,}, M {pooled[0]}x{pooled[1]} = "
        f"{math.prod(pooled):,}, d_k {KEY_CHANNELS}, d_v {channels}, phi, residual"
    )
    build = functools.partial(_build, size=size, pooled=pooled, channels=channels)
    return Case("attention_propagate", name, shapes, build, on_request)


CASES = (
    _case("psp-769x1537", (97, 193), (25, 49), 512),
    _case("psp-769x1537-inner", (25, 49), (25, 49), 512),
    _case("fanet-769x1537", (97, 193), (25, 49), 256),
    _case("bise-1024x2048", (128, 256), (32, 64), 128),
    _case("psp-360x480", (45, 60), (12, 15), 512),
    _case("tiny", (9, 7), (5, 4), 32, on_request=True),
)
