"""Finds modules that compute attention, by what their code calls."""

from __future__ import annotations

import ast
import functools
from typing import Any

from torch import nn

from tdnet_ops.swap import source
from tdnet_ops.swap.known_block import Refused

_SOFTMAX = {"softmax", "Softmax"}
_PRODUCTS = {"bmm", "baddbmm", "matmul", "einsum", "@"}
_ATTENTION = {"scaled_dot_product_attention", "multi_head_attention_forward", "attention_interface"}


def reason(block: nn.Module) -> str | None:
    """Why a block that computes attention is not fused; None if it computes none."""
    cls: Any = type(block)
    called = _called(cls, getattr(cls, "forward", None))
    softmax = called & _SOFTMAX or any(isinstance(part, nn.Softmax) for part in block.children())
    if called & _ATTENTION or (softmax and called & _PRODUCTS):
        return "it computes attention, but its class is not known"
    return None


@functools.lru_cache(maxsize=1024)
def _called(cls: type, forward: object) -> set[str]:
    """Names of functions that forward calls, and those that methods of the class call in turn."""
    called: set[str] = set()
    left = ["forward"]
    while left:
        name = left.pop()
        new = _called_by(cls, name) - called
        called |= new
        left += [one for one in new if hasattr(cls, one) and not hasattr(nn.Module, one)]
    return called


def _called_by(cls: type, name: str) -> set[str]:
    try:
        found = list(source.trees(getattr(cls, name, None), name))
    except Refused:
        return set()
    return {word for tree in found for node in ast.walk(tree) for word in _words(node)}


def _words(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Call):
        return {getattr(node.func, "attr", getattr(node.func, "id", ""))}
    return {"@"} if isinstance(getattr(node, "op", None), ast.MatMult) else set()
