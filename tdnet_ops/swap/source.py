"""What a method says, whatever its layout, comments, docstrings and annotations."""

from __future__ import annotations

import ast
import hashlib
import inspect
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tdnet_ops.swap.known_block import Refused

# Of no effect on what is computed, or not there on every Python.
_IGNORED = ("annotation", "returns", "type_comment", "type_params", "kind", "ctx")


def digest(cls: type, methods: Sequence[str]) -> str:
    """Twelve hexadecimal digits that change with the code of the methods.

    Raises:
        Refused: a method is missing or has no Python source.
    """
    told = [_normalised(tree) for name in methods for tree in trees(getattr(cls, name, None), name)]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:12]


def trees(method: Any, name: str) -> Iterator[ast.AST]:
    """The syntax of a method, and if it wraps another one, of that too."""
    while method is not None:
        yield _parsed(method, name)
        method = getattr(method, "__wrapped__", None)


def _parsed(method: Callable[..., Any], name: str) -> ast.AST:
    code = getattr(method, "__code__", None)
    try:
        # Of the code: for a function that wraps another one, inspect would show the other one.
        return ast.parse(textwrap.dedent(inspect.getsource(code)))  # type: ignore[arg-type]
    except (OSError, TypeError, SyntaxError):
        raise Refused(f"the source of its {name} is not to be had") from None


def _normalised(node: Any) -> str:
    if isinstance(node, list):
        return "[" + ",".join(map(_normalised, _without_docstring(node))) + "]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = (
        f"{name}={_normalised(value)}"
        for name, value in ast.iter_fields(node)
        if name not in _IGNORED and value not in (None, [])
    )
    return f"{type(node).__name__}({','.join(fields)})"


def _without_docstring(statements: list[Any]) -> list[Any]:
    return [
        statement
        for statement in statements
        if not (
            isinstance(statement, ast.Expr)
            and isinstance(statement.value, ast.Constant)
            and isinstance(statement.value.value, str)
        )
    ]
