"""Who is measured: our chosen backend, our other backends, and the peers."""

from __future__ import annotations

import functools
import importlib.metadata
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

import tdnet_ops
from tdnet_ops import backends
from tdnet_ops.bench import attention, engines
from tdnet_ops.bench.case import Case, Form, Problem, Result, Setting
from tdnet_ops.bench.engines import Refusal
from tdnet_ops.operators import OPERATORS

Call = Callable[[], Result]

_ENGINES = {"openvino": engines.openvino, "onnxruntime": engines.onnxruntime}
_FORMS = ("published", "sdpa", "sdpa-linear", "argmax")
# Their first call compiles, for seconds to a minute.
COMPILED = ("compile", "flex")
# They hold their memory from call to call.
KEEP_MEMORY = tuple(_ENGINES)
_FORWARD_ONLY = (*_ENGINES, "flashinfer")

# Peers first, then every backend of this package.
NAMES = (*_FORMS, *attention.KERNELS, "compile", *_ENGINES, *backends.NAMES)


def usual(device: torch.device, seconds: float) -> list[str]:
    """The peers of a run whose user names none: those that the device has.

    Engines are compared on CPUs, attention kernels on GPUs; what compiles is left out of a run that
    asks for one round only.
    """
    elsewhere = attention.KERNELS if device.type == "cpu" else _ENGINES
    left_out = () if seconds else COMPILED
    return [name for name in NAMES if name not in elsewhere and name not in left_out]


def slow(device: torch.device) -> list[str]:
    """What `usual` leaves out of a single round."""
    return [name for name in usual(device, 1.0) if name in COMPILED]


def ours(case: Case, setting: Setting, arguments: Sequence[Any] = ()) -> str:
    """The backend that a user gets, the one that ratios refer to.

    Args:
        arguments: of the operator; without them what a kernel refuses of a call is not known.
    """
    if not arguments:
        return backends.first_available(case.operator, setting.device, setting.dtype)
    like = torch.empty(0, device=setting.device, dtype=setting.dtype)
    return backends.choose(OPERATORS[case.operator], like, arguments, None)


def exists(name: str, problem: Problem) -> bool:
    """Whether a peer has a form of this problem at all."""
    if name in attention.KERNELS:
        return "sdpa" in problem.forms
    return name not in _FORMS or name in problem.forms


def build(name: str, case: Case, problems: Sequence[Problem], setting: Setting) -> list[Form]:
    """Readies a peer for each set of tensors.

    Args:
        problems: of the case, one a set.

    Raises:
        Refusal: it cannot run here, with the reason.
    """
    if setting.backward and name in _FORWARD_ONLY:
        raise Refusal("it has no backward pass")
    try:
        if name in _ENGINES:
            if setting.device.type != "cpu":
                raise Refusal("compared on CPUs only")
            return [Form(_ENGINES[name](problem.graph(), setting), ()) for problem in problems]
        if name == "compile":
            return _compiled(problems)
        if name in attention.KERNELS:
            attend = attention.KERNELS[name](setting.dtype)
            return _forms("sdpa", problems, attend=attend)
        if name in backends.NAMES:
            return _backend(name, case, problems, setting)
        return _forms(name, problems)
    except Refusal:
        raise
    except Exception as error:  # Whatever a peer's library raises must not end the run.
        raise Refusal(first_line(error)) from error


def run_once(call: Call) -> Result:
    """The first call, which may still compile.

    Raises:
        Refusal: it failed, with the reason, and what it had warned of: scaled_dot_product_attention
            tells so why a kernel does not take a shape.
    """
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            return call()
        except Refusal:
            raise
        except Exception as error:  # As above.
            reasons = dict.fromkeys(_warning_text(warning) for warning in warned)
            raise Refusal("; ".join([first_line(error), *reasons])) from error


def version(name: str) -> str:
    """The version of the package behind a peer."""
    if name in backends.NAMES:
        return tdnet_ops.__version__
    distributions = {**dict.fromkeys(_ENGINES), **attention.DISTRIBUTIONS}
    if name not in distributions:
        return str(torch.__version__)
    try:
        return importlib.metadata.version(distributions[name] or name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _forms(name: str, problems: Sequence[Problem], **options: object) -> list[Form]:
    forms = [problem.forms[name] for problem in problems]
    return [Form(functools.partial(form.function, **options), form.tensors) for form in forms]


def _compiled(problems: Sequence[Problem]) -> list[Form]:
    torch._dynamo.reset()
    forms = [problem.forms["published"] for problem in problems]
    function = torch.compile(forms[0].function, dynamic=False)
    return [Form(function, form.tensors) for form in forms]


def _backend(name: str, case: Case, problems: Sequence[Problem], setting: Setting) -> list[Form]:
    reason = backends.why_unavailable(name, case.operator, setting.device, setting.dtype)
    if reason is not None:
        raise Refusal(reason)
    operator = functools.partial(getattr(tdnet_ops, case.operator), backend=name)
    return [Form(operator, problem.arguments) for problem in problems]


def first_line(error: Exception) -> str:
    """The kind of an error and the first line of its text."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}".rstrip(": ")


def _warning_text(warning: warnings.WarningMessage) -> str:
    """Without the place in torch's sources that ends the first line."""
    return str(warning.message).strip().splitlines()[0].partition(" (Triggered")[0]
