"""The table of configurations that ships, defaults.json.

A configuration is a dictionary: tile sizes (constants of the kernel), num_warps, num_stages.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

DEFAULTS = Path(__file__).with_name("defaults.json")

Configuration = Mapping[str, int]


@dataclass(frozen=True)
class Source:
    """Where a device class of the table comes from."""

    how: str  # "timed" on such a device, or "predicted" by compiling
    triton: Sequence[str]  # versions under which every configuration is clean


@dataclass(frozen=True)
class Table:
    configurations: dict[str, dict[str, dict[str, Configuration]]]
    """Device class -> kernel -> shape class -> configuration."""
    sources: dict[str, Source]
    """By device class."""

    @classmethod
    def read(cls, path: Path = DEFAULTS) -> Table:
        """From a file, by default the one that ships."""
        table = json.loads(path.read_text())
        sources = {name: Source(**source) for name, source in table["sources"].items()}
        return cls(table["configurations"], sources)

    def find(self, device: str, kernel: str, shape_class: str) -> Configuration | None:
        return self.configurations.get(device, {}).get(kernel, {}).get(shape_class)
