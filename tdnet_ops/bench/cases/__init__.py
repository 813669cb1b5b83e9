"""The table of cases: one file an operator, found by walking, each with a tuple `CASES`."""

import importlib
import pkgutil

from tdnet_ops.bench.case import Case

CASES: tuple[Case, ...] = tuple(
    case
    for found in pkgutil.iter_modules(__path__)
    for case in importlib.import_module(f"{__name__}.{found.name}").CASES
)
