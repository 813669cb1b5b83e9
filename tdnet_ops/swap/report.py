"""What was found in a model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """Of one forward pass of a block.

    Attributes:
        seconds: the least of several.
        bytes: at the peak, of the tensors alive that the pass made; a kernel's own scratch memory
            is not seen.
    """

    seconds: float
    bytes: int


@dataclass(frozen=True)
class Entry:
    """A block that computes attention.

    Attributes:
        name: of the module in the model, "" for the model itself.
        block: its class.
        refusal: why it is left as it is; None if it is fused, or can be.
        original, fused: what a forward pass costs, where `explain` was given inputs.
    """

    name: str
    block: str
    refusal: str | None = None
    original: Cost | None = None
    fused: Cost | None = None

    def __str__(self) -> str:
        told = "fused" if self.refusal is None else f"refused: {self.refusal}"
        if self.original and self.fused:
            told += (
                f"; {self.original.seconds * 1e3:.3g} -> {self.fused.seconds * 1e3:.3g} ms, "
                f"{self.original.bytes / 2**20:.3g} -> {self.fused.bytes / 2**20:.3g} MiB"
            )
        return f"{self.name or '(model)'} ({self.block}): {told}"


@dataclass(frozen=True)
class Report:
    """Every block of a model that computes attention, in the model's order."""

    entries: tuple[Entry, ...]

    @property
    def fused(self) -> tuple[Entry, ...]:
        return tuple(entry for entry in self.entries if entry.refusal is None)

    @property
    def refused(self) -> tuple[Entry, ...]:
        return tuple(entry for entry in self.entries if entry.refusal is not None)

    def __str__(self) -> str:
        return "\n".join(map(str, self.entries)) or "no attention found"
