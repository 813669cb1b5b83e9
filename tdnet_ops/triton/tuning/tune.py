"""Write the table of default configurations, defaults.json.

    python -m tdnet_ops.triton.tuning.tune                      # by timing, on a GPU
    python -m tdnet_ops.triton.tuning.tune --target cuda-90     # by compiling, anywhere

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
from tdnet_ops.triton.shared.choices import Choices
from tdnet_ops.triton.shared.compiled import flaw
from tdnet_ops.triton.shared.launch import choosing_from
from tdnet_ops.triton.tuning import targets
from tdnet_ops.triton.tuning.table import DEFAULTS, Configuration, Source, Table
from tdnet_ops.triton.tuning.workloads import workloads

Configurations = dict[str, dict[str, Configuration]]  # by kernel and shape class


def _run_all(device: torch.device) -> Iterator[None]:
    """Pauses after every workload."""
    for name, workload in workloads(device):
        print(name, flush=True)
        workload()
        yield


def tune() -> Iterator[tuple[str, Configurations]]:
    """Times every candidate on this machine's GPU; after every workload, what is found so far.

    Raises:
        RuntimeError: Triton cannot run here, with the reason.
    """
    device = torch.device("xpu" if torch.xpu.is_available() else "cuda")
    reason = backends.why_unavailable("triton", "spatial_pool", device, torch.float32)
    if reason is not None:
        raise RuntimeError(f"nothing can be timed: {reason}")
    choices = Choices(Table({}, {}))
    name = choices.device_class(device)
    with choosing_from(choices):
        for _ in _run_all(device):
            yield name, choices.configurations(name)


def predict(target: str, table: Table) -> Configurations:
    """Compiles for a GPU that need not be here, beginning with what `table` has for it.

    Raises:
        RuntimeError: no candidate of a kernel is clean.
    """
    with targets.compiling_for(target, table) as compilation:
        for _ in _run_all(torch.device("cpu")):
            pass
    for compiled, shape_class in compilation.launched:
        reason = flaw(compiled)
        if reason is not None:
            name = compiled.metadata.name
            raise RuntimeError(
                f"{name}, {shape_class}: every candidate is flawed, the best {reason}"
            )
    return compilation.choices.configurations(target)


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code: 1 if nothing can be timed here, or nothing fits."""
    command = "python -m tdnet_ops.triton.tuning.tune"
    parser = argparse.ArgumentParser(prog=command, description=__doc__)
    parser.add_argument("--target", nargs="+", choices=targets.NAMES, default=[])
    parser.add_argument("--anew", action="store_true", help="begin with the largest candidates")
    parser.add_argument("--output", type=Path, default=DEFAULTS, help="table to update")
    options = parser.parse_args(arguments)
    if not options.output.parent.is_dir():
        parser.error(f"argument --output: {options.output.parent} is no folder")
    try:
        for target in options.target:
            before = _read(options.output)  # What is clean there stays.
            begin = Table({}, {}) if options.anew else before
            _write(options.output, before, target, predict(target, begin), "predicted")
        if not options.target:
            before = _read(options.output)
            for target, configurations in tune():  # A stop keeps what is timed.
                _write(options.output, before, target, configurations, "timed")
    except RuntimeError as error:
        print(f"tune: {error}", file=sys.stderr)
        return 1
    return 0


def _read(path: Path) -> Table:
    """The table at `path`, the shipped one if there is none yet."""
    return Table.read(path if path.exists() else DEFAULTS)


def _write(
    path: Path, before: Table, target: str, configurations: Configurations, how: str
) -> None:
    """Writes the table `before` with the configurations of one target in place of its own."""
    known = before.sources.get(target)
    versions = {triton.__version__}
    if known and known.how == how and before.configurations.get(target) == configurations:
        versions.update(known.triton)
    table = Table(
        {**before.configurations, target: configurations},
        {**before.sources, target: Source(how, sorted(versions))},
    )
    new = path.with_suffix(".new")
    new.write_text(json.dumps(dataclasses.asdict(table), indent=1, sort_keys=True) + "\n")
    new.replace(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
