"""A short check of an installed wheel without pytest: `python smoke.py`, beside samples/.

Every operator runs forward and backward once against `tdnet_ops.reference`. The last line counts.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import samples
import torch

import tdnet_ops
from tdnet_ops import reference


def results(function: Callable, arguments: dict[str, Any]) -> list[torch.Tensor | None]:
    """Return the outputs of `function` and the gradients of all its inputs."""
    values = samples.convert([*arguments.values()], lambda x: x.detach().requires_grad_())
    outputs = samples.tensors([function(**dict(zip(arguments, values, strict=True)))])
    if not any(part.requires_grad for part in outputs):
        return outputs
    # A cosine gives every output element a gradient of its own.
    loss = sum(part.cos().sum() for part in outputs)
    return outputs + list(torch.autograd.grad(loss, samples.tensors(values), allow_unused=True))


def check(name: str) -> None:
    ours = results(getattr(tdnet_ops, name), samples.example(name))
    expected = results(getattr(reference, name), samples.example(name))
    assert len(ours) == len(expected)
    for value, definition in zip(ours, expected, strict=True):
        if definition is None or value is None:
            # A gradient that is always zero may be left out by one of the two.
            present = value if definition is None else definition
            assert present is None or not present.any()
        else:
            torch.testing.assert_close(value, definition, rtol=1e-4, atol=1e-5)


def main() -> int:
    print(f"torch {torch.__version__}, CUDA {torch.version.cuda}, {tdnet_ops.__file__}")
    for key, value in tdnet_ops.build_info().items():
        print(f"  {key}: {value}")
    failed = 0
    for name in samples.NAMES:
        try:
            check(name)
            print(f"{name}: passed")
        except Exception as error:
            failed += 1
            print(f"{name}: FAILED: {type(error).__name__}: {error}")
    print(f"{len(samples.NAMES) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
