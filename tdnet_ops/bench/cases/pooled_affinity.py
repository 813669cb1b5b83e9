"""pooled_affinity: the logits of Eq. 1 against max-pooled keys.

Operations: 2 N M d_k. The maxima of the pooling are not counted.
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
    product_operations,
    tokens,
    total_bytes,
)

KEY_CHANNELS = 64


def published(q: Tensor, k: Tensor, stride: int) -> Tensor:
    """q is a token matrix, k a map; the pooled map is made a token matrix as the model does."""
    k = F.max_pool2d(k, stride, ceil_mode=True)
    k_tokens = k.permute(0, 2, 3, 1).contiguous().view(k.shape[0], -1, k.shape[1])
    return torch.bmm(q, k_tokens.transpose(1, 2)) / math.sqrt(q.shape[2])


def _graph(q: Tensor, k: Tensor, stride: int, keys: int) -> Graph:
    scale = torch.tensor(1 / math.sqrt(q.shape[1]), dtype=q.dtype)
    pool = {"kernel_shape": [stride, stride], "strides": [stride, stride], "ceil_mode": 1}
    out = torch.empty(q.shape[0], q.shape[2] * q.shape[3], keys, dtype=q.dtype)
    return Graph(
        inputs={"q": tokens(q), "k": k.contiguous()},
        constants={"scale": scale, "shape": torch.tensor([q.shape[0], q.shape[1], keys])},
        nodes=(
            Node("MaxPool", ("k",), "pooled", pool),
            Node("Mul", ("pooled", "scale"), "scaled"),
            Node("Reshape", ("scaled", "shape"), "keys"),
            Node("MatMul", ("q", "keys"), "out"),
        ),
        outputs={"out": out},
        result=out,
    )


def _build(setting: Setting, size: tuple[int, int], stride: int) -> Problem:
    inputs = Inputs(setting)
    q = inputs.feature_map(1, KEY_CHANNELS, *size)
    k = inputs.feature_map(1, KEY_CHANNELS, *size)
    queries, keys = math.prod(size), math.prod(-(-pixels // stride) for pixels in size)
    products = ((queries, keys, KEY_CHANNELS),)
    return Problem(
        arguments=(q, k, stride),
        operations=product_operations(products),
        compulsory_bytes=total_bytes(q, k) + queries * keys * q.element_size(),
        forms={"published": Form(published, (tokens(q), k, stride))},
        graph=functools.partial(_graph, q, k, stride, keys),
        products=products,
    )


def _case(name: str, size: tuple[int, int], stride: int, on_request: bool = False) -> Case:
    keys = math.prod(-(-pixels // stride) for pixels in size)
    shapes = (
        f"q and k {KEY_CHANNELS}x{size[0]}x{size[1]}, stride {stride}: "
        f"N {math.prod(size):,}, M {keys:,}"
    )
    build = functools.partial(_build, size=size, stride=stride)
    return Case("pooled_affinity", name, shapes, build, on_request)


CASES = (
    _case("psp-769x1537", (97, 193), 4),
    _case("psp-769x1537-inner", (25, 49), 1),
    _case("bise-1024x2048", (128, 256), 4),
    _case("psp-360x480", (45, 60), 4),
    _case("tiny", (9, 7), 2, on_request=True),
)
