"""Compile the kernels for samples of the list: `python compile_samples.py cuda-80 ones one_key`.

Triton compiles sizes and strides of 1 into a kernel, so that small maps give kernels of their own,
which the interpreter does not see. Nothing runs; the exit code is 1 if a sample does not compile.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))
import samples

from tdnet_ops.backends import has_kernel
from tdnet_ops.operators import OPERATORS
from tdnet_ops.triton.run import run
from tdnet_ops.triton.tuning import targets


def main() -> int:
    target, *patterns = sys.argv[1:]
    chosen = [
        sample
        for sample in samples.SAMPLES
        if sample.dtype != torch.float64
        and has_kernel("triton", sample.operator)
        and any(part in str(sample) for part in patterns)
    ]
    failed = 0
    with targets.compiling_for(target):
        for sample in chosen:
            try:
                run(OPERATORS[sample.operator], *sample.arguments())
            except Exception as error:
                failed += 1
                print(f"{sample}: {type(error).__name__}: {error}", flush=True)
    print(f"{len(chosen)} samples, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
