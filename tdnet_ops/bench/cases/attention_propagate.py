"""attention_propagate: phi(softmax(q k^T / sqrt(d_k)) v) + residual, Eq. 4 and 5.

Operations: 2 N M (d_k + d_v) for the two products, d_k and d_v of all heads together, plus phi over
M pooled keys or N queries, whichever makes the whole cheaper; with heads over N queries. The
exponentials are not counted.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tdnet_ops import folding
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
    product_operations,
    tokens,
    total_bytes,
)

Size = tuple[int, int]

KEY_CHANNELS = 64


def published(
    q: Tensor, k: Tensor, v: Tensor, residual: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    """As TDNet's published code: q, k, v are token matrices, residual is contiguous."""
    affinity = torch.bmm(q, k.transpose(1, 2)) / math.sqrt(q.shape[2])
    out = torch.bmm(affinity.softmax(2), v)
    batch, queries, channels = out.shape
    out = F.conv2d(out.view(batch * queries, channels, 1, 1), weight[:, :, None, None], bias)
    out = out.view(batch, queries, -1).permute(0, 2, 1).contiguous()
    return out.view(residual.shape) + residual


# Below, q, k, v are token matrices split into heads [B, heads, N, d], as views; the residual is
# channels_last. Nothing is permuted. Without a weight there is neither phi nor a residual.


def written_out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention as most packages write it."""
    affinity = (q @ k.transpose(2, 3)) * q.shape[3] ** -0.5
    return affinity.softmax(3) @ v


def sdpa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    size: Size,
    attend: Attend = F.scaled_dot_product_attention,
) -> Tensor:
    """phi as a convolution."""
    out = as_map(_join_heads(attend(q, k, v)), size)
    if weight is None or residual is None:
        return out
    return F.conv2d(out, weight[:, :, None, None], bias) + residual


def linear(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    size: Size,
    attend: Attend,
) -> Tensor:
    """phi as a linear layer on token matrices, which CPUs run faster than the convolution."""
    out = _join_heads(attend(q, k, v))
    if weight is not None and residual is not None:
        out = F.linear(out, weight, bias) + residual.flatten(2).transpose(1, 2)
    return as_map(out, size)


def _split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, N, heads * d] -> [B, heads, N, d]."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def _join_heads(x: Tensor) -> Tensor:
    """[B, heads, N, d] -> [B, N, heads * d]."""
    return x.transpose(1, 2).flatten(2)


def _graph(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    heads: int,
    folded: bool,
) -> Graph:
    """Everything a token matrix; phi folded into the values or after them."""
    inputs = {"q": tokens(q), "k": tokens(k), "v": tokens(v)}
    constants = {"scale": torch.tensor((q.shape[1] // heads) ** -0.5, dtype=q.dtype)}
    attended = "out" if weight is None else "attended"
    values = "values" if folded else "v"
    nodes = _nodes_of_heads(attended) if heads > 1 else _nodes_of_one_head(values, attended)
    if heads > 1:
        constants |= {"split": torch.tensor([0, 0, heads, -1]), "join": torch.tensor([0, 0, -1])}
    if weight is not None:
        assert residual is not None
        assert bias is not None
        inputs["residual"] = tokens(residual)
        constants |= {"weight": weight.t().contiguous(), "bias": bias}
        source, target = ("v", "values") if folded else ("attended", "projected")
        phi = (
            Node("MatMul", (source, "weight"), "product"),
            Node("Add", ("product", "bias"), target),
        )
        last = Node("Add", ("attended" if folded else "projected", "residual"), "out")
        nodes = (*phi, *nodes, last) if folded else (*nodes, *phi, last)
    channels = v.shape[1] if weight is None else weight.shape[0]
    out = torch.empty(q.shape[0], inputs["q"].shape[1], channels, dtype=q.dtype)
    return Graph(inputs, constants, nodes, {"out": out}, as_map(out, q.shape[2:]))


def _nodes_of_one_head(values: str, attended: str) -> tuple[Node, ...]:
    return (
        Node("Mul", ("k", "scale"), "scaled"),
        Node("Transpose", ("scaled",), "keys", {"perm": [0, 2, 1]}),
        Node("MatMul", ("q", "keys"), "logits"),
        Node("Softmax", ("logits",), "affinity", {"axis": -1}),
        Node("MatMul", ("affinity", values), attended),
    )


def _nodes_of_heads(attended: str) -> tuple[Node, ...]:
    return (
        Node("Mul", ("k", "scale"), "scaled"),
        Node("Reshape", ("q", "split"), "q_split"),
        Node("Reshape", ("scaled", "split"), "k_split"),
        Node("Reshape", ("v", "split"), "v_split"),
        Node("Transpose", ("q_split",), "q_heads", {"perm": [0, 2, 1, 3]}),
        Node("Transpose", ("k_split",), "keys", {"perm": [0, 2, 3, 1]}),
        Node("Transpose", ("v_split",), "v_heads", {"perm": [0, 2, 1, 3]}),
        Node("MatMul", ("q_heads", "keys"), "logits"),
        Node("Softmax", ("logits",), "affinity", {"axis": -1}),
        Node("MatMul", ("affinity", "v_heads"), "out_heads"),
        Node("Transpose", ("out_heads",), "out_split", {"perm": [0, 2, 1, 3]}),
        Node("Reshape", ("out_split", "join"), attended),
    )


def _build(
    setting: Setting,
    batch: int,
    key_channels: int,
    channels: int,
    out_channels: int | None,
    size: Size,
    pooled: Size,
    heads: int,
    of_tdnet: bool,
) -> Problem:
    inputs = Inputs(setting)
    q = inputs.feature_map(batch, key_channels, *size)
    k = inputs.feature_map(batch, key_channels, *pooled)
    v = inputs.feature_map(batch, channels, *pooled)
    residual = weight = bias = None
    if out_channels is not None:
        residual = inputs.feature_map(batch, out_channels, *size)
        weight = inputs.tensor(out_channels, channels, scale=channels**-0.5)
        bias = inputs.tensor(out_channels)
    maps = (q, k, v, residual, weight, bias)
    given = [x for x in maps if x is not None]
    queries, keys = math.prod(size), math.prod(pooled)
    products, folded = _products(batch, key_channels, channels, out_channels, queries, keys, heads)
    return Problem(
        arguments=(*maps, None, heads),
        operations=product_operations(products),
        compulsory_bytes=total_bytes(*given)
        + batch * queries * (out_channels or channels) * q.element_size(),
        forms=_forms(*maps, heads=heads, of_tdnet=of_tdnet),
        graph=functools.partial(_graph, *maps, heads=heads, folded=folded),
        products=products,
    )


def _products(
    batch: int,
    key_channels: int,
    channels: int,
    out_channels: int | None,
    queries: int,
    keys: int,
    heads: int,
) -> tuple[tuple[tuple[int, int, int], ...], bool]:
    """The products (rows, columns, depth) of a case, and whether phi is folded into the values."""
    logits = ((queries, keys, key_channels // heads),) * heads
    attended = ((queries, channels // heads, keys),) * heads
    if out_channels is None:
        return (logits + attended) * batch, False
    after = (*logits, *attended, (queries, out_channels, channels))
    before = ((keys, out_channels, channels), *logits, (queries, out_channels, keys))
    folded = heads == 1 and folding.is_cheaper(queries, keys, channels, out_channels)
    return (before if folded else after) * batch, folded


def _forms(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    heads: int,
    of_tdnet: bool,
) -> dict[str, Form]:
    size = (q.shape[2], q.shape[3])
    matrices = tuple(map(tokens, (q, k, v)))
    last = None if residual is None else residual.contiguous(memory_format=torch.channels_last)
    split = (*(_split_heads(x, heads) for x in matrices), last, weight, bias)
    if of_tdnet:
        assert residual is not None
        first = Form(published, (*matrices, residual.contiguous(), weight, bias))
    else:
        first = Form(functools.partial(linear, size=size, attend=written_out), split)
    forms = {"published": first, "sdpa": Form(functools.partial(sdpa, size=size), split)}
    if weight is not None:
        attend = F.scaled_dot_product_attention
        forms["sdpa-linear"] = Form(functools.partial(linear, size=size, attend=attend), split)
    return forms


def attention_case(
    name: str,
    size: Size,
    pooled: Size,
    channels: int,
    key_channels: int = KEY_CHANNELS,
    *,
    out_channels: int | None = None,
    batch: int = 1,
    heads: int = 1,
    of_tdnet: bool = False,
    on_request: bool = False,
    group: str = "",
) -> Case:
    """A case of attention_propagate.

    Args:
        size: of the query map.
        pooled: of the map of keys and values.
        channels: of the values, all heads together.
        key_channels: of queries and keys, all heads together.
        out_channels: of the result, with phi and a residual; None: neither of them.
        of_tdnet: whether `published` is TDNet's code.
    """
    several = [f"B {batch}"] * (batch > 1) + [f"{heads} heads"] * (heads > 1)
    parts = [
        *several,
        f"N {size[0]}x{size[1]} = {math.prod(size):,}",
        f"M {pooled[0]}x{pooled[1]} = {math.prod(pooled):,}",
        f"d_k {key_channels}",
        f"d_v {channels}",
    ]
    if out_channels is not None:
        parts += ["phi" if out_channels == channels else f"phi to {out_channels}", "residual"]
    build = functools.partial(
        _build,
        batch=batch,
        key_channels=key_channels,
        channels=channels,
        out_channels=out_channels,
        size=size,
        pooled=pooled,
        heads=heads,
        of_tdnet=of_tdnet,
    )
    return Case("attention_propagate", name, ", ".join(parts), build, on_request, group)


def _case(name: str, size: Size, pooled: Size, channels: int, on_request: bool = False) -> Case:
    return attention_case(
        name, size, pooled, channels, out_channels=channels, of_tdnet=True, on_request=on_request
    )


CASES = (
    _case("psp-769x1537", (97, 193), (25, 49), 512),
    _case("psp-769x1537-inner", (25, 49), (25, 49), 512),
    _case("fanet-769x1537", (97, 193), (25, 49), 256),
    _case("bise-1024x2048", (128, 256), (32, 64), 128),
    _case("psp-360x480", (45, 60), (12, 15), 512),
    _case("tiny", (9, 7), (5, 4), 32, on_request=True),
)
