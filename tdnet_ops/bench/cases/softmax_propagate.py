"""softmax_propagate: phi(softmax(affinity) v) + residual with the logits given.

Operations: 2 N M d_v, plus phi over M pooled keys or N queries, 2 min(M, N) d_v d_out. The
exponentials are not counted.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tdnet_ops.bench.case import (
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


def published(
    affinity: Tensor, v: Tensor, residual: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    """As the published code: v is a token matrix, residual is contiguous."""
    out = torch.bmm(affinity.softmax(2), v)
    batch, queries, channels = out.shape
    out = F.conv2d(out.view(batch * queries, channels, 1, 1), weight[:, :, None, None], bias)
    out = out.view(batch, queries, -1).permute(0, 2, 1).contiguous()
    return out.view(residual.shape) + residual


def _graph(affinity: Tensor, v: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Graph:
    """phi folded into the values, everything a token matrix."""
    out = empty_tokens(residual)
    return Graph(
        inputs={"logits": affinity, "v": tokens(v), "residual": tokens(residual)},
        constants={"weight": weight.t().contiguous(), "bias": bias},
        nodes=(
            Node("MatMul", ("v", "weight"), "projected"),
            Node("Add", ("projected", "bias"), "values"),
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
    queries, keys = math.prod(size), math.prod(pooled)
    affinity = inputs.tensor(1, queries, keys)
    v = inputs.feature_map(1, channels, *pooled)
    residual = inputs.feature_map(1, channels, *size)
    weight = inputs.tensor(channels, channels, scale=channels**-0.5)
    bias = inputs.tensor(channels)
    products = ((min(keys, queries), channels, channels), (queries, channels, keys))
    return Problem(
        arguments=(affinity, v, size, residual, weight, bias),
        operations=product_operations(products),
        compulsory_bytes=total_bytes(affinity, v, residual, weight, bias, residual),
        forms={
            "published": Form(published, (affinity, tokens(v), residual.contiguous(), weight, bias))
        },
        graph=functools.partial(_graph, affinity, v, residual, weight, bias),
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
        f"{math.prod(pooled):,}, d_v {channels}, phi, residual"
    )
    build = functools.partial(_build, size=size, pooled=pooled, channels=channels)
    return Case("softmax_propagate", name, shapes, build, on_request)


CASES = (
    _case("psp-769x1537", (97, 193), (25, 49), 512),
    _case("psp-769x1537-inner", (25, 49), (25, 49), 512),
    _case("bise-1024x2048", (128, 256), (32, 64), 128),
    _case("psp-360x480", (45, 60), (12, 15), 512),
    _case("tiny", (9, 7), (5, 4), 32, on_request=True),
)
