"""A short check of an installed wheel without pytest: `python smoke.py`.

Every operator runs forward and backward once against `tdnet_ops.reference`. The last line counts.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch

import tdnet_ops
from tdnet_ops import reference

Case = tuple[str, tuple, dict]


def features(*shape: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).requires_grad_()


def cases() -> list[Case]:
    q, k = features(2, 8, 7, 9, seed=0), features(2, 8, 3, 4, seed=1)
    v, residual = features(2, 6, 3, 4, seed=2), features(2, 5, 7, 9, seed=3)
    weight, bias = features(5, 6, seed=4), features(5, seed=5)
    affinity = features(2, 63, 12, seed=6)
    blocks = [features(1, 4, 6, 5, seed=seed) for seed in (7, 8)]
    kernels = [features(3, 4, 3, 3, seed=seed) for seed in (9, 10)]
    partials = [features(1, 3, 6, 5, seed=seed) for seed in (11, 12)]
    offset = features(3, seed=13)
    epilogue = {"residual": residual, "weight": weight, "bias": bias}
    return [
        ("spatial_pool", (q, 2, "max"), {}),
        ("pooled_affinity", (q, k), {"stride": 2}),
        ("softmax_propagate", (affinity, v, (7, 9)), epilogue),
        ("attention_propagate", (q, k, v), epilogue),
        ("block_sum_reduce", (blocks, kernels, offset), {"padding": 1, "activation": "relu"}),
        ("block_sum_update", (partials, 1, blocks[0], kernels[0], offset), {"padding": 1}),
        ("upsample_argmax", (q.detach(), (21, 30)), {}),
    ]


def leaves(arguments: object) -> list[torch.Tensor]:
    """Return the tensors that need a gradient in nested tuples, lists and dicts."""
    if isinstance(arguments, torch.Tensor):
        return [arguments] if arguments.requires_grad else []
    if isinstance(arguments, dict):
        arguments = list(arguments.values())
    if isinstance(arguments, (list, tuple)):
        return [leaf for item in arguments for leaf in leaves(item)]
    return []


def results(function: Callable, positional: tuple, named: dict) -> list[torch.Tensor | None]:
    """Return the outputs of `function` and the gradients of all its inputs."""
    output = function(*positional, **named)
    outputs = list(output) if isinstance(output, tuple) else [output]
    inputs = leaves((positional, named))
    if not inputs:
        return outputs
    # A cosine gives every output element a gradient of its own.
    loss = sum(part.cos().sum() for part in outputs)
    return outputs + list(torch.autograd.grad(loss, inputs, allow_unused=True))


def check(name: str, positional: tuple, named: dict) -> None:
    ours = results(getattr(tdnet_ops, name), positional, named)
    expected = results(getattr(reference, name), positional, named)
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
    all_cases = cases()
    for name, positional, named in all_cases:
        try:
            check(name, positional, named)
            print(f"{name}: passed")
        except Exception as error:
            failed += 1
            print(f"{name}: FAILED: {type(error).__name__}: {error}")
    print(f"{len(all_cases) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
