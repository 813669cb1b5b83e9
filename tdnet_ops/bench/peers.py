"""Who is measured: our chosen backend, our other backends, and the peers."""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Callable

import torch

import tdnet_ops
from tdnet_ops import backends
from tdnet_ops.bench import engines
from tdnet_ops.bench.case import Case, Problem, Result, Setting
from tdnet_ops.bench.engines import Refusal

Call = Callable[[], Result]

_ENGINES = {"openvino": engines.openvino, "onnxruntime": engines.onnxruntime}
_FORMS = ("published", "sdpa", "sdpa-linear", "argmax")

# Peers first, then every backend of this package.
NAMES = (*_FORMS, "compile", *_ENGINES, *backends.NAMES)


def ours(case: Case, setting: Setting) -> str:
    """The backend that a user gets, the one that ratios refer to."""
    return backends.choose(case.operator, setting.device, setting.dtype, None)


def exists(name: str, problem: Problem) -> bool:
    """Whether a peer has a form of this problem at all."""
    return name not in _FORMS or name in problem.forms


def build(name: str, case: Case, problem: Problem, setting: Setting) -> Call:
    """Readies a peer's call.

    Raises:
        Refusal: it cannot run here, with the reason.
    """
    try:
        if name in _ENGINES:
            if setting.device.type != "cpu":
                raise Refusal("compared on CPUs only")
            return _ENGINES[name](problem.graph(), setting)
        if name == "compile":
            return _compiled(problem)
        if name in backends.NAMES:
            return _backend(name, case, problem, setting)
    except Refusal:
        raise
    except Exception as error:  # Whatever a peer's library raises must not end the run.
        raise Refusal(_first_line(error)) from error
    form = problem.forms[name]
    return functools.partial(form.function, *form.tensors)


def run_once(call: Call) -> Result:
    """The first call, which may still compile.

    Raises:
        Refusal: it failed, with the reason.
    """
    try:
        return call()
    except Exception as error:  # As above.
        raise Refusal(_first_line(error)) from error


def version(name: str) -> str:
    """The version of the package behind a peer."""
    if name in backends.NAMES:
        return tdnet_ops.__version__
    if name not in _ENGINES:
        return str(torch.__version__)
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _compiled(problem: Problem) -> Call:
    form = problem.forms["published"]
    torch._dynamo.reset()
    return functools.partial(torch.compile(form.function, dynamic=False), *form.tensors)


def _backend(name: str, case: Case, problem: Problem, setting: Setting) -> Call:
    reason = backends.refusal(name, setting.device, setting.dtype)
    if reason is not None:
        raise Refusal(reason)
    operator = getattr(tdnet_ops, case.operator)
    return functools.partial(operator, *problem.arguments, backend=name)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}".rstrip(": ")
