"""What every operator of this package is made of, and how one is called.

A module `tdnet_ops/operators/<name>.py` holds an operator's public function, its checks, what its
backward pass keeps and its gradient, in one record. tdnet_ops/registration.py gives the records to
torch; the schema of an operator, its defaults too, stands in csrc/schemas.h alone.
"""

from __future__ import annotations

import collections
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

# _library defines the schemas.
from tdnet_ops import _library, backends, reference  # noqa: F401


@dataclass(frozen=True, eq=False)
class Operator:
    """One operator.

    Functions take the arguments of the schema: `check` and `definition` those that they name, the
    others all of them as one named tuple.

    Attributes:
        name: as in the schema.
        check: raises TypeError or ValueError for a bad call; returns the shape of the result.
        empty: `empty(arguments, shape)`, the result or results, not filled: dtype and layout.
        per_sample: the arguments whose first dimension is the batch, as in every result.
        definition: plain PyTorch; of tdnet_ops.reference if None.
        compute: `compute(kernel, arguments)`, the results where gradients are wanted, and after
            them what `save` alone sees; if None, those of the kernel.
        save: `save(ctx, arguments, output)` keeps what `gradient` needs.
        gradient: `gradient(ops, ctx, *grads)`, gradients by the names of arguments. `ops(name)` is
            another operator, on the backend of the forward pass where that has it.
        differentiated_by: an operator whose first result this one returns where gradients are
            wanted.
        limits: by backend, what its kernel refuses of a call that is right: a reason, or None.
        autocast: whether torch.autocast casts its tensors.
        public: whether tdnet_ops exports a function of this name.
    """

    name: str
    check: Callable[..., Any]
    empty: Callable[[Any, Any], Any]
    per_sample: tuple[str, ...]
    definition: Callable[..., Any] | None = None
    compute: Callable[[Callable[..., Any], Any], tuple[Any, ...]] | None = None
    save: Callable[[Any, Any, Any], None] | None = None
    gradient: Callable[..., dict[str, Any]] | None = None
    differentiated_by: str | None = None
    limits: Mapping[str, Callable[..., str | None]] = field(
        default_factory=lambda: MappingProxyType({})
    )
    autocast: bool = True
    public: bool = True

    def __post_init__(self) -> None:
        arguments = self.schema.arguments
        names = [argument.name for argument in arguments]
        defaults = [a.default_value for a in arguments if a.has_default_value()]
        make_type: Any = collections.namedtuple
        tuple_type = make_type(f"{self.name}_arguments", names, defaults=defaults)
        object.__setattr__(self, "_arguments", tuple_type)
        object.__setattr__(self, "takes_tf32", "allow_tf32" in names)

    takes_tf32: bool = field(init=False)

    @property
    def schema(self) -> Any:
        return getattr(backends.operators("cpu"), self.name).default._schema

    @property
    def differentiable(self) -> bool:
        return self.gradient is not None or self.differentiated_by is not None

    def bind(self, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> Any:
        """All arguments of a call by name; torch leaves out those that equal their default."""
        return self._arguments(*arguments, **keywords)  # type: ignore[attr-defined]

    def result(self, *arguments: Any, **keywords: Any) -> Any:
        """Checks a call; its result or results, not filled.

        Raises:
            TypeError, ValueError: see `check`.
        """
        bound = self.bind(arguments, keywords)
        return self.empty(bound, named(self.check, bound))


def named(function: Callable[..., Any], arguments: Any, **others: Any) -> Any:
    """Calls a function with those of the arguments that its parameters name, and with `others`."""
    return function(*(getattr(arguments, name) for name in _parameters(function)), **others)


@functools.cache
def _parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    """All that are not given by keyword alone."""
    parameters = inspect.signature(function).parameters.values()
    return tuple(x.name for x in parameters if x.kind is not inspect.Parameter.KEYWORD_ONLY)


def call(
    operator: Operator, backend: str | None, like: tuple[str, object], arguments: Sequence[Any]
) -> Any:
    """Runs an operator on the first backend that can, or on a forced one.

    Args:
        backend: the forced one; else `tdnet_ops.backend` decides, else the device.
        like: the name and the value of the argument whose device and dtype decide.
        arguments: of the schema, all positional ones.

    Raises:
        TypeError, ValueError: a bad call, whichever backend would have run it.
        RuntimeError: the forced backend cannot run it, with the reason; memory does not suffice.
    """
    tensor = backends.deciding_tensor(*like)
    if torch.compiler.is_compiling():
        return _run(operator, backend, tensor, arguments)
    try:
        return _run(operator, backend, tensor, arguments)
    except RuntimeError:
        # What compiled code throws is a RuntimeError to Python: its twin says which mistake it is.
        named(operator.check, operator.bind(arguments, {}))
        raise


def _run(operator: Operator, backend: str | None, like: Tensor, arguments: Sequence[Any]) -> Any:
    chosen = backends.choose(operator, like, arguments, backend)
    keywords = {"allow_tf32": backends.allow_tf32(like)} if operator.takes_tf32 else {}
    return getattr(backends.operators(chosen), operator.name)(*arguments, **keywords)
