"""Write the table of default configurations, defaults.json.

    python -m tdnet_ops.triton.tune                      # this GPU: by timing
    python -m tdnet_ops.triton.tune --target cuda-90     # a GPU that is not here: by compiling

By timing, triton.autotune times every candidate of every kernel; a stop keeps what is timed. By
compiling, each kernel keeps the configuration of the table if it spills no registers, fits and uses
matrix instructions, else goes on to the first later candidate that does: a prediction, and marked
so. The table names the Tritons under which all configurations of a target are clean. To make it
hold for several, run this under each in turn until it names them all; `--anew` begins with the
largest candidates.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import triton

from tdnet_ops import backends
from tdnet_ops.triton import launch, targets
from tdnet_ops.triton.compiled import flaw
from tdnet_ops.triton.workloads import workloads

DEFAULTS = Path(__file__).with_name("defaults.json")

Configurations = dict[str, dict[str, launch.Configuration]]


def _run_all(device: torch.device) -> Iterator[Configurations]:
    """After every workload, the choices so far, by kernel and shape class."""
    for name, workload in workloads(device):
        print(name, flush=True)
        workload()
        chosen: Configurations = {}
        for (device_class, kernel, shape_class), choice in launch.choices.items():
            if device_class == launch.device_class(device):
                chosen.setdefault(kernel, {})[shape_class] = choice.left[0]
        yield chosen


def tune() -> Iterator[tuple[str, Configurations]]:
    """Times every candidate on this machine's GPU; after every workload, what is found so far.

    Raises:
        RuntimeError: Triton cannot run here, with the reason.
    """
    device = torch.device("xpu" if torch.xpu.is_available() else "cuda")
    reason = backends.refusal("triton", device, torch.float32)
    if reason is not None:
        raise RuntimeError(f"nothing can be timed: {reason}")
    name = launch.device_class(device)
    launch.table().configurations.pop(name, None)
    launch.choices.clear()
    for configurations in _run_all(device):
        yield name, configurations


def predict(target: str, anew: bool = False) -> Configurations:
    """Compiles for a GPU that need not be here.

    Raises:
        RuntimeError: no candidate of a kernel is clean.
    """
    if anew:
        launch.table().configurations.pop(target, None)
    with targets.compiling_for(target) as launched:
        *_, configurations = _run_all(torch.device("cpu"))
    for compiled, shape_class in launched:
        reason = flaw(compiled)
        if reason is not None:
            name = compiled.metadata.name
            raise RuntimeError(
                f"{name}, {shape_class}: every candidate is flawed, the best {reason}"
            )
    return configurations


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code: 1 if nothing can be timed here, or nothing fits."""
    parser = argparse.ArgumentParser(prog="python -m tdnet_ops.triton.tune", description=__doc__)
    parser.add_argument("--target", nargs="+", choices=targets.NAMES, default=[])
    parser.add_argument("--anew", action="store_true", help="begin with the largest candidates")
    parser.add_argument("--output", type=Path, default=DEFAULTS, help="table to update")
    options = parser.parse_args(arguments)
    if not options.output.parent.is_dir():
        parser.error(f"argument --output: {options.output.parent} is no folder")
    if options.output.exists():  # What is clean there stays, whatever the shipped table has.
        written = launch.Table.read(options.output.read_text())
        launch.table().configurations.update(written.configurations)
    try:
        for target in options.target:
            before, configurations = _read(options.output), predict(target, options.anew)
            _write(options.output, before, target, configurations, "predicted")
        if not options.target:
            before = _read(options.output)
            for target, configurations in tune():  # A stop keeps what is timed.
                _write(options.output, before, target, configurations, "timed")
    except RuntimeError as error:
        print(f"tune: {error}", file=sys.stderr)
        return 1
    return 0


def _read(path: Path) -> launch.Table:
    """The table at `path`, the shipped one if there is none yet."""
    return launch.Table.read((path if path.exists() else DEFAULTS).read_text())


def _write(
    path: Path, before: launch.Table, target: str, configurations: Configurations, how: str
) -> None:
    """Writes the table `before` with the configurations of one target in place of its own."""
    known = before.sources.get(target)
    versions = {triton.__version__}
    if known and known.how == how and before.configurations.get(target) == configurations:
        versions.update(known.triton)
    table = launch.Table(
        {**before.configurations, target: configurations},
        {**before.sources, target: launch.Source(how, sorted(versions))},
    )
    new = path.with_suffix(".new")
    new.write_text(json.dumps(dataclasses.asdict(table), indent=1, sort_keys=True) + "\n")
    new.replace(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
