"""What a call costs before any kernel runs: `python tests/triton/overhead.py`.

Triton compiles for an A100 and its launches go nowhere, so that what is left is Python, Triton's
and ours. Beside it: the same operators by torch.ops.tdnet, whose C++ kernels do run, on maps of
one pixel. Microseconds a call, the least of several rounds in turn.
"""

from __future__ import annotations

import time
from functools import partial

import torch

from tdnet_ops.operators import OPERATORS
from tdnet_ops.triton.run import run
from tdnet_ops.triton.shared.choices import Choices
from tdnet_ops.triton.shared.launch import choosing_from
from tdnet_ops.triton.tuning import targets
from tdnet_ops.triton.tuning.table import Table

_ROUNDS, _CALLS = 15, 200


def _calls() -> dict[str, tuple]:
    one = torch.randn(1, 64, 1, 1)
    weight = torch.randn(64, 64)
    return {
        "spatial_pool": (one, 2),
        "pooled_affinity": (one, one),
        "softmax_propagate": (torch.randn(1, 1, 1), one, [1, 1]),
        "attention_propagate": (one, one, one),
        "attention_propagate with phi": (one, one, one, one, weight, weight[0]),
        "block_sum_reduce": ([one], [weight[:, :, None, None]], None, 0, 1, "none"),
        "upsample_argmax": (one, [1, 1]),
    }


def _microseconds(call, arguments) -> float:
    start = time.perf_counter()
    for _ in range(_CALLS):
        call(*arguments)
    return (time.perf_counter() - start) / _CALLS * 1e6


def main() -> None:
    torch.set_num_threads(1)
    unobserved = Choices(Table.read())
    with targets.compiling_for("cuda-80"), choosing_from(unobserved), torch.inference_mode():
        print(f"{'call':32} {'triton, us':>12} {'torch.ops.tdnet, us':>20}")
        for name, arguments in _calls().items():
            operator = name.split()[0]
            paths = partial(run, OPERATORS[operator]), getattr(torch.ops.tdnet, operator)
            rounds = [[_microseconds(path, arguments) for path in paths] for _ in range(_ROUNDS)]
            least = [min(times) for times in zip(*rounds, strict=True)]
            print(f"{name:32} {least[0]:12.1f} {least[1]:20.1f}")


if __name__ == "__main__":
    main()
