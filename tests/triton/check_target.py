"""Compile what runs of every kernel on one GPU: `python check_target.py cuda-90`.

Prints a line a kernel. The exit code is 1 if what runs is flawed (spills, multiplies without matrix
instructions) although a candidate was left to fail over to; if a shipped configuration is not what
runs under a Triton that the table names; if small weights would be flushed to zero; or if the table
and the kernels' shape classes differ. With `--every 4` every fourth call alone that the table was
made from, and no comparison of classes.
"""

from __future__ import annotations

import argparse
import itertools
import re
import sys
from typing import Any

import torch
import triton

from tdnet_ops.triton.shared.choices import Choices
from tdnet_ops.triton.shared.compiled import flaw, resources
from tdnet_ops.triton.tuning import targets
from tdnet_ops.triton.tuning.workloads import workloads

# What an exponential and the products around it become; the fma.rn.ftz of a logarithm is CUDA's own
# polynomial, of totals that are 1 at least.
_FLUSHES = re.compile(r"\b(?:ex2\.approx|mul(?:\.rn)?|add(?:\.rn)?)\.ftz")


def _wrong(target: str, choices: Choices, compiled: Any, shape_class: str) -> list[str]:
    """What is wrong with a kernel that was launched."""
    key = (target, compiled.metadata.name, shape_class)
    choice, shipped = choices.by_key[key], choices.table.find(*key)
    named = triton.__version__ in choices.table.sources[target].triton
    wrong = []
    reason = flaw(compiled)
    # Under another Triton every candidate may be flawed: that is the compiler's business.
    if reason is not None and (named or len(choice.left) > 1):
        wrong.append(reason)
    if shipped is None:
        wrong.append("not in the table")
    elif named and choice.left[0] != shipped:
        wrong.append(f"the table's {shipped} failed over")
    # The matrix units of AMD's GPUs take float32 too.
    if "hip" in target and "float32" in shape_class and not resources(compiled).matrix_instructions:
        wrong.append("no matrix instructions")
    if _FLUSHES.search(compiled.asm.get("ptx", "")):
        wrong.append("flushes small numbers to zero")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("target", choices=targets.NAMES)
    parser.add_argument("--every", type=int, default=1)
    target, every = vars(parser.parse_args()).values()
    failures, used, seen = 0, set(), set()
    with targets.compiling_for(target) as (launched, choices):
        for _, workload in itertools.islice(workloads(torch.device("cpu")), 0, None, every):
            workload()
        for compiled, shape_class in launched:
            if (compiled, shape_class) in seen:
                continue
            seen.add((compiled, shape_class))
            used.add((compiled.metadata.name, shape_class))
            wrong = _wrong(target, choices, compiled, shape_class)
            failures += bool(wrong)
            print(resources(compiled), shape_class, *wrong, flush=True)
    for kernel, classes in choices.table.configurations.get(target, {}).items():
        for shape_class in classes:
            if every == 1 and (kernel, shape_class) not in used:
                failures += 1
                print(f"{kernel} {shape_class}: in the table alone")
    print(f"{len(seen)} kernels, {failures} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
