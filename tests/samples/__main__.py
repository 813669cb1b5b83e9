"""Checks every sample once on the CPU kernels: `python tests/samples`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import tdnet_ops

sys.path.append(str(Path(__file__).resolve().parents[1]))
import samples


def main() -> int:
    wanted = os.environ.get("TDNET_CPU_ISA")
    in_use = tdnet_ops.build_info()["cpu"]["in_use"]
    if wanted not in (None, in_use):
        print(f"TDNET_CPU_ISA={wanted} asked, {in_use} in use")
        return 2
    failures = 0
    for sample in samples.SAMPLES:
        try:
            samples.check(sample, samples.routes.compiled(sample.operator))
        except Exception as error:
            failures += 1
            print(f"{sample}: {type(error).__name__}: {error}")
    print(f"{len(samples.SAMPLES)} samples on {in_use}, {failures} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
