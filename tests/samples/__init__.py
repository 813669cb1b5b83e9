"""The sample inputs of every operator, and what "right" means for each.

They drive the tests of correctness, gradients, registration, compilation and the sanitizer, on
every backend. operators/<name>.py holds those of one operator and is all that a new one needs.
As a program, `python tests/samples`, they are checked once, without pytest.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from samples import operators, routes
from samples.layouts import DENSE, LAYOUTS, SPACED_LAYOUTS, place, place_other
from samples.routes import load, tests_by_route
from samples.sample import Arguments, Numbers, OperatorSamples, Sample, Size
from samples.tolerances import (
    assert_labels,
    assert_near,
    check,
    check_result,
    computing_dtype,
)
from samples.trees import convert, moved, on_cpu, on_device, tensors, widen
from tdnet_ops.operators import OPERATORS as records

__all__ = [
    "DENSE",
    "LAYOUTS",
    "SPACED_LAYOUTS",
    "Numbers",
    "OperatorSamples",
    "Sample",
    "assert_labels",
    "assert_near",
    "check",
    "check_result",
    "computing_dtype",
    "convert",
    "load",
    "moved",
    "on_cpu",
    "on_device",
    "place",
    "place_other",
    "routes",
    "tensors",
    "tests_by_route",
    "widen",
]

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

# Where samples live and routes run; set by `use_device`, for pytest's option --device.
DEVICE = torch.device("cpu")
# Every way to call an operator.
ROUTES = {
    "tdnet_ops": routes.public,
    "torch.ops.tdnet": routes.compiled,
    "torch.ops.tdnet_reference": routes.plain_python,
}


def use_device(device: torch.device) -> None:
    """Makes samples and runs routes there from now on; GPUs have the route of Triton too."""
    global DEVICE
    DEVICE = device
    if device.type != "cpu":
        ROUTES["torch.ops.tdnet_triton"] = routes.triton


OPERATORS: dict[str, OperatorSamples] = {
    found.name: importlib.import_module(f"samples.operators.{found.name}").SAMPLES
    for found in pkgutil.iter_modules(operators.__path__)
}
NAMES = tuple(OPERATORS)
DIFFERENTIABLE = tuple(name for name in NAMES if records[name].differentiable)
# What the emulator can run, whether or not CUDA was compiled in.
_LAUNCHERS = Path(__file__).resolve().parents[2] / "csrc" / "cuda" / "launchers"
DECLARED_BY_CUDA = frozenset(
    name
    for path in _LAUNCHERS.glob("*.cpp")
    for name in re.findall(r'm\.impl\("(\w+)"', path.read_text())
)
GPU_ROUNDINGS = {name: told.gpu_roundings for name, told in OPERATORS.items()}


def _samples(operator: str) -> Iterator[Sample]:
    """Every size in both common layouts; the first two sizes in every layout and dtype."""
    told = OPERATORS[operator]
    thorough = list(told.shapes)[:2]
    for name, shape in told.shapes.items():
        for layout in LAYOUTS if name in thorough else DENSE:
            for dtype in DTYPES:
                common = layout in DENSE and dtype != torch.float64
                if name in thorough or dtype == torch.float32 or common:
                    yield Sample(operator, name, layout, dtype, told.build(*shape))


def _tile_samples(operator: str) -> Iterator[Sample]:
    told = OPERATORS[operator]
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    for name, shape in told.tiles.items():
        for layout in DENSE:
            for dtype in dtypes:
                yield Sample(operator, name, layout, dtype, told.build(*shape))
    for name, shape in told.vectors.items():
        for layout in (*DENSE, *SPACED_LAYOUTS):
            for dtype in dtypes if layout in DENSE else dtypes[:2]:
                yield Sample(operator, name, layout, dtype, told.build(*shape))


SAMPLES: list[Sample] = [sample for name in NAMES for sample in _samples(name)]
# For the kernels of GPUs.
TILE_SAMPLES: list[Sample] = [sample for name in NAMES for sample in _tile_samples(name)]


def select(
    names: Sequence[str] | None = None,
    layouts: Sequence[str] = LAYOUTS + SPACED_LAYOUTS,
    dtypes: Sequence[torch.dtype] = DTYPES,
    operators: Sequence[str] = NAMES,
    among: Sequence[Sample] = SAMPLES,
) -> list[Sample]:
    """The samples with these properties; names None: all."""
    return [
        sample
        for sample in among
        if (names is None or sample.name in names)
        and sample.layout in layouts
        and sample.dtype in dtypes
        and sample.operator in operators
    ]


def schema_of(operator: str) -> dict[str, torch.Argument]:
    """The arguments of torch.ops.tdnet's schema, by name."""
    schema = getattr(torch.ops.tdnet, operator).default._schema
    return {argument.name: argument for argument in schema.arguments}


def example(operator: str, **changes: Any) -> dict[str, Any]:
    """One small, complete call: the arguments of "middle" by name, every optional tensor given.

    Args:
        changes: other values of arguments, or functions from the value to another.
    """
    (sample,) = select(["middle"], ["contiguous"], [torch.float32], [operator])
    arguments = dict(zip(schema_of(operator), sample.arguments(), strict=False))
    for name, change in changes.items():
        arguments[name] = change(arguments[name]) if callable(change) else change
    return arguments


def resized(operator: str, size: Size, key_size: Size) -> Arguments:
    """The arguments of a call on maps of these sizes."""
    told = OPERATORS[operator]
    build = told.build(*told.resized(size, key_size))
    return Sample(operator, "resized", "contiguous", torch.float32, build).arguments()
