"""Samples of softmax_propagate."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from samples.logits import growing, low, without
from samples.operators import attention_propagate
from samples.sample import Arguments, Build, Numbers, OperatorSamples, Shape


def build(*shape: Any) -> Build:
    batch, _, _, _, size, key_size, *rest = shape
    logits = rest[2] if len(rest) >= 3 else None

    def build(numbers: Numbers) -> Arguments:
        _, _, v, residual, weight, bias, *_ = attention_propagate.build(*shape[:7])(numbers)
        queries, keys = size[0] * size[1], key_size[0] * key_size[1]

        def edit(affinity: Tensor) -> None:
            if logits is not None:
                affinity += logits(queries, keys)

        affinity = numbers.other(batch, queries, keys, scale=2.0, edit=edit)
        return affinity, v, list(size), residual, weight, bias

    return build


TILES: dict[str, Shape] = {
    "tiles": (2, 1, 264, None, (9, 19), (10, 32), "rb", None, growing(20.0)),
    "huge": (1, 1, 16, None, (3, 45), (10, 32), "h"),
    "falling": (1, 1, 40, None, (8, 17), (9, 21), "r", None, growing(-40.0)),
    "first_keys_unseen": (1, 1, 16, None, (4, 33), (5, 52), "", None, without(slice(0, 130))),
    "last_keys_unseen": (1, 1, 16, None, (4, 33), (5, 52), "", None, without(slice(60, None))),
    "low": (1, 1, 16, None, (4, 33), (5, 53), "", None, low),
    "nothing_seen": (1, 1, 16, None, (4, 33), (5, 52), "", None, without(slice(None))),
    "one_key_seen": (
        *(1, 1, 16, None, (4, 33), (5, 52), "b", None),
        without(slice(0, 140), slice(141, None)),
    ),
}

VECTORS: dict[str, Shape] = {"vectors": (2, 64, 24, None, (4, 8), (2, 8), "rb")}

SAMPLES = OperatorSamples(
    build=build,
    shapes={
        name: shape
        for name, shape in attention_propagate.SHAPES.items()
        if not name.startswith("heads")
    },
    tiles=TILES,
    vectors=VECTORS,
    resized=attention_propagate.SAMPLES.resized,
    several_blocks="wide",
    longest_sum=attention_propagate.longest_sum,
    gpu_roundings=2,
    like=lambda arguments: arguments[1] if arguments[3] is None else arguments[3],
    sizes=lambda named: {"size": named["residual"].shape[2:]},
)
