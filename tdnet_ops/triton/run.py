"""Runs an operator's kernels: allocates its results, which they fill in."""

from __future__ import annotations

import importlib
from typing import Any

from tdnet_ops.operators.operator import Operator, named


def run(operator: Operator, *arguments: Any, **keywords: Any) -> Any:
    """The result or results of a call, on whatever device its tensors are.

    tdnet_ops/triton/<operator>.py, imported here since that takes a while, has a function of the
    operator's name: it takes arguments of the schema by name, and `out`.

    Raises:
        TypeError, ValueError: a bad call.
    """
    kernels = importlib.import_module(f".{operator.name}", __package__)
    fill_in = getattr(kernels, operator.name)
    bound = operator.bind(arguments, keywords)
    out = operator.result(*bound)
    named(fill_in, bound, out=out)
    return out
