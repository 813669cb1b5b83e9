"""Write the table of default configurations, defaults.json.

    python -m tdnet_ops.triton.tune                      # this GPU: by timing
    python -m tdnet_ops.triton.tune --target cuda-90     # a GPU that is not here: by compiling

By timing, triton.autotune times every candidate of every kernel. By compiling, the first candidate
is taken that spills no registers and fits into shared memory: a prediction, and marked so.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import triton

from tdnet_ops import backends
from tdnet_ops.triton import launch, targets
from tdnet_ops.triton.workloads import workloads

DEFAULTS = Path(__file__).with_name("defaults.json")


def _compiled(
    kernel: Any,
    candidates: Sequence[launch.Configuration],
    programs: Callable[[launch.Configuration], int],
    arguments: Mapping[str, Any],
) -> launch.Configuration:
    """The first candidate that spills nothing and fits."""
    for candidate in candidates:
        try:
            compiled = launch.run(kernel, candidate, programs, arguments)
        except triton.OutOfResources:
            continue
        if targets.resources(compiled).spilled == 0:
            return candidate
    raise RuntimeError(f"{kernel.__name__}: every candidate spills or is too large")


def _run_all(device: torch.device) -> dict[str, dict[str, launch.Configuration]]:
    """The choices for every workload, by kernel and shape class."""
    known = launch.table()[launch.device_class(device)] = {}
    for name, workload in workloads(device):
        print(name, flush=True)
        workload()
    return known


def tune() -> tuple[str, dict[str, dict[str, launch.Configuration]]]:
    """Times every candidate on this machine's GPU.

    Raises:
        RuntimeError: Triton cannot run here, with the reason.
    """
    device = torch.device("xpu" if torch.xpu.is_available() else "cuda")
    reason = backends.refusal("triton", device, torch.float32)
    if reason is not None:
        raise RuntimeError(f"nothing can be timed: {reason}")
    return launch.device_class(device), _run_all(device)


def predict(target: str) -> dict[str, dict[str, launch.Configuration]]:
    """Compiles for a GPU that need not be here."""
    usual, launch.choose = launch.choose, _compiled
    try:
        with targets.compiling_for(target):
            return _run_all(torch.device("cpu"))
    finally:
        launch.choose = usual


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code: 1 if nothing can be timed here, or nothing fits."""
    parser = argparse.ArgumentParser(prog="python -m tdnet_ops.triton.tune", description=__doc__)
    parser.add_argument("--target", nargs="+", choices=targets.NAMES, default=[])
    parser.add_argument("--output", type=Path, default=DEFAULTS, help="table to update")
    options = parser.parse_args(arguments)
    try:
        for target in options.target:
            _write(options.output, target, predict(target), "predicted")
        if not options.target:
            _write(options.output, *tune(), "timed")
    except RuntimeError as error:
        print(f"tune: {error}", file=sys.stderr)
        return 1
    return 0


def _write(
    path: Path, target: str, configurations: dict[str, dict[str, launch.Configuration]], source: str
) -> None:
    """Enters one target into the table at `path`, a copy of the shipped one at first."""
    table = json.loads((path if path.exists() else DEFAULTS).read_text())
    table["configurations"][target] = configurations
    table["sources"][target] = f"{source}, triton {triton.__version__}"
    new = path.with_suffix(".new")
    new.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")
    new.replace(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
