"""Run the example kernels of kernels/, right or with a planted bug, and say what came of it.

As a program, for the sanitizers: `python examples.py KIND BUG SEED COPIES`. Imports no torch.
"""

from __future__ import annotations

import re
import sys
from types import ModuleType

import emulator
import numpy as np

# As in planted.h, without the k.
_BUGS = re.findall(r"^  k(\w+),", (emulator.FOLDER / "kernels" / "planted.h").read_text(), re.M)
MISUSE = _BUGS[_BUGS.index("BarrierInBranch") :]
BUGS = {name: number for number, name in enumerate(_BUGS)}


def to_bfloat16(x: np.ndarray) -> np.ndarray:
    """Of numbers that bfloat16 can hold: their upper halves."""
    return (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def judge(*pairs: tuple[np.ndarray, np.ndarray]) -> str:
    right = all(np.array_equal(actual, expected) for actual, expected in pairs)
    return "right" if right else "wrong"


def product(loaded: ModuleType, bug: str = "None", half: bool = True) -> str:
    """c = a b^T of small integers, so that every order of addition is exact."""
    rows, columns, depth = 70, 40, 104
    generator = np.random.default_rng(1)
    a = generator.integers(-4, 5, (rows, depth)).astype(np.float32)
    b = generator.integers(-4, 5, (columns, depth)).astype(np.float32)
    stored = (x.astype(np.float16).view(np.uint16) if half else to_bfloat16(x) for x in (a, b))
    c, row_sums = np.full((rows, columns), np.nan, np.float32), np.zeros(rows, np.float32)
    run = loaded.product_half if half else loaded.product_bfloat16
    run(*stored, c, row_sums, BUGS[bug])
    return judge((c, a @ b.T), (row_sums, (a @ b.T).sum(1)))


def misuse(loaded: ModuleType, bug: str = "None") -> str:
    """Threads pass numbers to the right, in the warp and then in the block, and are counted."""
    blocks = 3
    numbers = np.arange(blocks * 64, dtype=np.float32).reshape(blocks, 64)
    out, counter = np.full_like(numbers, np.nan), np.zeros(1, np.int32)
    loaded.misuse(numbers, out, counter, BUGS[bug])
    passed = np.roll(numbers.reshape(blocks, 2, 32), 1, 2).reshape(blocks, 64)
    return judge((out, np.roll(passed, 1, 1)), (counter, np.array([numbers.size])))


def run(loaded: ModuleType, bug: str) -> str:
    try:
        return misuse(loaded, bug) if bug in MISUSE else product(loaded, bug)
    except RuntimeError as error:
        return f"error: {error}"


def main() -> None:
    kind, bug, seed, copies = sys.argv[1:]
    loaded = emulator.load_examples(kind)
    loaded.set(int(seed), copies)
    print(run(loaded, bug), flush=True)
    if bug == "None":
        print(misuse(loaded), flush=True)


if __name__ == "__main__":
    main()
