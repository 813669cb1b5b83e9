"""Floating-point operations of every operator, for torch.utils.flop_counter.FlopCounterMode.

As torch counts, 2 operations for a product and its sum, by shapes alone; as python -m
tdnet_ops.bench does, phi folded into the values where that is cheaper (softmax rows sum to one:
phi(A v) + b = A (phi v) + b), so that the numbers agree; where gradients are wanted, as it is then
computed. Exponentials, scaling, biases and residuals are not counted. Heads share channels out and
change no count, but phi mixes them: it is not folded.

A backward pass is made of operators that are counted themselves: torch's, and
attention_propagate_backward.

A function here has an operator's name and takes arguments of its schema by name, and `out`, its
result or results.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Any

from torch import Tensor

from tdnet_ops import backends, folding, winograd
from tdnet_ops.operators import OPERATORS
from tdnet_ops.operators.operator import Operator, named

_COUNTER = "torch.utils.flop_counter"


def spatial_pool(x: Tensor, mode: str, *, out: Tensor) -> int:
    """A comparison for each number of a window."""
    return x.numel() if mode == "max" else 0


def pooled_affinity(q: Tensor, *, out: Tensor) -> int:
    return 2 * out.numel() * q.shape[1]


def _attended(queries: int, keys: int, v: Tensor, weight: Tensor | None, heads: int = 1) -> int:
    """A v and phi of one sample: whichever order of the two products is cheaper."""
    channels = v.shape[1]
    if weight is None:
        return 2 * queries * keys * channels
    folded, apart = folding.operations(queries, keys, channels, weight.shape[0])
    return 2 * (min(folded, apart) if heads == 1 else apart)


def softmax_propagate(affinity: Tensor, v: Tensor, weight: Tensor | None, *, out: Tensor) -> int:
    batch, queries, keys = affinity.shape
    return batch * _attended(queries, keys, v, weight)


def attention_propagate(
    q: Tensor, k: Tensor, v: Tensor, weight: Tensor | None, heads: int, *, out: Any
) -> int:
    queries, keys = q.shape[2:].numel(), k.shape[2:].numel()
    logits = 2 * queries * keys * q.shape[1]
    return q.shape[0] * (logits + _attended(queries, keys, v, weight, heads))


attention_propagate_forward = attention_propagate


def attention_propagate_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, weight: Tensor | None, *, out: Any
) -> int:
    """The logits again, gradients of q and k; of weights and values; phi, and its two gradients."""
    queries, keys = q.shape[2:].numel(), k.shape[2:].numel()
    attention = queries * keys * (3 * q.shape[1] + 2 * grad.shape[1])
    phi = 0 if weight is None else 3 * keys * weight.numel()
    return 2 * q.shape[0] * (attention + phi)


def block_sum_reduce(weights: Sequence[Tensor], *, out: Tensor) -> int:
    pixels = out.shape[0] * out.shape[2:].numel()
    return 2 * pixels * sum(weight.numel() for weight in weights)


def block_sum_update(
    partials: Sequence[Tensor], weight: Tensor, *, out: tuple[Tensor, Tensor]
) -> int:
    """The convolution, and an addition for each partial and number."""
    return block_sum_reduce([weight], out=out[1]) + len(partials) * out[1].numel()


def winograd_conv2d(x: Tensor, weight: Tensor, dilation: int, *, out: Tensor) -> int:
    """The 36 products; a direct convolution has up to four times as many operations."""
    height, width = (winograd.tiles_along(length, dilation) for length in x.shape[2:])
    return 2 * x.shape[0] * height * width * weight.numel()


def upsample_argmax(logits: Tensor, *, out: Tensor) -> int:
    """Four products, three sums and a comparison for each class and label."""
    return 8 * logits.shape[1] * out.numel()


def count(operator: Operator, *arguments: Any, out_val: Any, **keywords: Any) -> int:
    """Operations of a call whose result or results are `out_val`; 0 without a formula here."""
    formula = globals().get(operator.name)
    return named(formula, operator.bind(arguments, keywords), out=out_val) if formula else 0


def _register() -> None:
    for operator in OPERATORS.values():
        packets = [getattr(ops, operator.name) for ops in backends.all_operators()]
        register = sys.modules[_COUNTER].register_flop_formula(packets, get_raw=True)
        register(functools.partial(count, operator))


class _WhenImported(MetaPathFinder):
    """Registers the formulas as soon as torch's counter is there; to import it imports Triton."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != _COUNTER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        loader: Any = spec.loader
        run = loader.exec_module

        def run_and_register(module: Any) -> None:
            run(module)
            _register()

        loader.exec_module = run_and_register
        return spec


def give_to_torch() -> None:
    """Registers the formulas: now if torch's counter is there, else when it comes."""
    if _COUNTER in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _WhenImported())
