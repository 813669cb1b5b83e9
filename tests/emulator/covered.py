"""Which lines of csrc/cuda, and which instances of its templates, no sample runs.

As a program it runs the samples and prints what they leave out. gcc's counters (gcov) tell.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import emulator

# What run_samples.py is told, so that together the runs reach everything.
ATTENTION = ("attention_propagate", "softmax_propagate")
RUNS = (
    ("--multiprocessors", "8", "--"),
    ("--multiprocessors", "1", "--", *ATTENTION, "pooled_affinity"),
    ("--multiprocessors", "1", "8", "--little-shared", "--", "attention_propagate"),
    ("--tf32", "--multiprocessors", "1", "8", "--"),
)
# Lines that no sample can reach: what is refused, and what a launcher asks of a broken device.
UNREACHED = (
    "return cudaErrorInvalidConfiguration;",
    "throw std::runtime_error(",
    "return otherwise;",
    "}",  # of a constructor or destructor: memory is given back where an exception passes
)


@dataclass
class Coverage:
    """Counts by place; an instance of a template is a function of its own."""

    lines: dict[tuple[str, int], int] = field(default_factory=lambda: defaultdict(int))
    functions: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def missing_lines(self) -> list[str]:
        return [
            f"{file}:{number}: {text}"
            for (file, number), count in sorted(self.lines.items())
            if count == 0 and not (text := line_text(file, number)).startswith(UNREACHED)
        ]

    def missing_functions(self) -> list[str]:
        return sorted(name for name, count in self.functions.items() if count == 0)


def line_text(file: str, number: int) -> str:
    return (emulator.ROOT / file).read_text().splitlines()[number - 1].strip()


def reports(folder: Path) -> Iterator[dict[str, Any]]:
    """gcov's account of every source file in every object of csrc/cuda."""
    for counts in sorted(folder.rglob("csrc/cuda/**/*.gcda")):
        done = subprocess.run(
            ["gcov", "--json-format", "--stdout", counts],
            capture_output=True,
            text=True,
            check=True,
        )
        for text in done.stdout.splitlines():
            yield from json.loads(text)["files"]


def measure(folder: Path) -> Coverage:
    found = Coverage()
    for report in reports(folder):
        path = Path(report["file"])
        if not path.is_relative_to(emulator.ROOT / "csrc" / "cuda"):
            continue
        file = str(path.relative_to(emulator.ROOT))
        for line in report["lines"]:
            found.lines[file, line["line_number"]] += line["count"]
        for function in report["functions"]:
            found.functions[function["demangled_name"]] += function["execution_count"]
    return found


def run() -> Coverage:
    """Run the samples and say what they executed.

    Raises:
        RuntimeError: a sample failed.
    """
    folder = emulator.build("operators", "coverage").parents[1]
    for old in folder.rglob("*.gcda"):
        old.unlink()
    for arguments in RUNS:
        program = emulator.FOLDER / "run_samples.py"
        done = emulator.run_python(program, "--kind", "coverage", *arguments)
        if done.returncode != 0:
            raise RuntimeError(f"{arguments}: {done.stdout[-4000:]}{done.stderr[-4000:]}")
    return measure(folder)


def main() -> int:
    found = run()
    missing = found.missing_lines() + found.missing_functions()
    print(*missing, sep="\n")
    print(f"{len(found.lines)} lines, {len(found.functions)} functions, {len(missing)} never run")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
