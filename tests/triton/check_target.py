"""Compile every shipped configuration for one GPU: `python check_target.py cuda-90`.

Prints a line a kernel; the exit code is 1 if one spills, does not fit, multiplies without tensor
cores where it should use them, or if the table and the kernels' shape classes differ.
"""

from __future__ import annotations

import sys

import torch

from tdnet_ops.triton import launch, targets
from tdnet_ops.triton.workloads import workloads

# What multiplies nothing.
_NO_PRODUCTS = ("pool", "upsample")


def _wrong(target: str, resources: targets.Resources, shape_class: str) -> list[str]:
    wrong = []
    if resources.spilled:
        wrong.append(f"spills {resources.spilled}")
    if resources.shared > targets.MOST_SHARED[target]:
        wrong.append("too much shared memory")
    full_precision = shape_class.startswith("float32") and target.startswith("cuda")
    if not resources.matrix_instructions and not (
        full_precision or resources.kernel in _NO_PRODUCTS
    ):
        wrong.append("no matrix instructions")
    return wrong


def main() -> int:
    target = sys.argv[1]
    shipped = {
        (kernel, shape_class)
        for kernel, classes in launch.table().get(target, {}).items()
        for shape_class in classes
    }
    failures, used = 0, set()
    with targets.compiling_for(target) as launched:
        for _, workload in workloads(torch.device("cpu")):
            workload()
        for compiled, shape_class in launched:
            resources = targets.resources(compiled)
            if (resources.kernel, shape_class) in used:
                continue
            used.add((resources.kernel, shape_class))
            wrong = _wrong(target, resources, shape_class)
            failures += bool(wrong)
            print(resources, shape_class, *wrong, flush=True)
    for kernel, shape_class in shipped ^ used:
        failures += 1
        print(f"{kernel} {shape_class}: in the table or in the kernels alone")
    print(f"{len(used)} kernels, {failures} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
