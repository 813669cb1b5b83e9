"""The ways to call an operator."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

import samples
import tdnet_ops
from samples.trees import convert, moved, on_cpu, tensors


def there_and_back(call: Callable[..., Any]) -> Callable[..., Any]:
    """`call` on DEVICE also for tensors of the CPU, whose results come back to it."""
    if samples.DEVICE.type == "cpu":
        return call

    def carried(*arguments: Any, **named: Any) -> Any:
        at_home = [x for x in tensors((*arguments, *named.values())) if x.device.type == "cpu"]
        if not at_home:
            return call(*arguments, **named)
        there = convert([arguments, list(named.values())], carried_tensor)
        out = call(*there[0], **dict(zip(named, there[1], strict=True)))
        return on_cpu(out)

    return carried


def carried_tensor(x: Tensor) -> Tensor:
    """As `moved`, but differentiable where a gradient is asked for."""
    if x.device.type != "cpu":
        return x
    return x.to(samples.DEVICE) if x.requires_grad else moved(x, samples.DEVICE)


def public(name: str) -> Callable[..., Any]:
    return there_and_back(getattr(tdnet_ops, name))


def compiled(name: str) -> Callable[..., Any]:
    return there_and_back(getattr(torch.ops.tdnet, name))


def triton(name: str) -> Callable[..., Any]:
    return there_and_back(getattr(torch.ops.tdnet_triton, name))


def plain_python(name: str) -> Callable[..., Any]:
    return there_and_back(getattr(torch.ops.tdnet_reference, name))


def load(path: Path) -> ModuleType:
    """A test file as a module of its own."""
    spec = importlib.util.spec_from_file_location(f"loaded_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def tests_by_route(path: Path, routes: dict[str, Callable[[str], Any]]) -> dict[str, Any]:
    """The tests of a file that take a route, with these routes instead of ROUTES."""
    usual, samples.ROUTES = samples.ROUTES, routes
    try:
        module = load(path)
    finally:
        samples.ROUTES = usual
    return {
        name: test
        for name, test in vars(module).items()
        if name.startswith("test_") and "route" in inspect.signature(test).parameters
    }
