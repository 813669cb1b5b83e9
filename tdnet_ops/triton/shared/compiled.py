"""What the compiler made of a kernel, on a GPU or for one that is not here (targets.py)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

# By the code that each maker's compiler leaves as text.
_MATRIX_INSTRUCTIONS = {
    "ptx": re.compile(r"\b(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma)\b"),
    "amdgcn": re.compile(r"\bv_(?:mfma|wmma|swmmac)_"),
}
_PRODUCT = re.compile(r"\btt\.dot\b.*")


@dataclass(frozen=True)
class Resources:
    """Of one compiled kernel."""

    kernel: str
    registers: int  # of a thread
    spilled: int  # of these, to memory
    shared: int  # bytes of a block
    matrix_instructions: int | None  # None: not to be seen
    threads: int  # of a block


def resources(compiled: Any) -> Resources:
    """Loads a triton.compiler.CompiledKernel.

    Raises:
        triton.OutOfResources: it needs more than the GPU has.
    """
    compiled._init_handles()
    metadata = compiled.metadata
    return Resources(
        kernel=metadata.name,
        registers=compiled.n_regs,
        spilled=compiled.n_spills,
        shared=metadata.shared,
        matrix_instructions=_matrix_instructions(compiled.asm),
        threads=metadata.num_warps * metadata.target.warp_size,
    )


def _matrix_instructions(asm: Any) -> int | None:
    counts = [
        len(code.findall(asm[name])) for name, code in _MATRIX_INSTRUCTIONS.items() if name in asm
    ]
    return counts[0] if counts else None


def _wants_matrix_instructions(asm: Any) -> bool:
    """Whether it multiplies in less than full precision, which every matrix unit does."""
    products = _PRODUCT.findall(asm["ttir"])
    return any("xf32> *" not in product or "= tf32" in product for product in products)


def flaw(compiled: Any) -> str | None:
    """Why a kernel would run badly; None if it would not.

    Raises:
        triton.OutOfResources: it would not run at all.
    """
    found = resources(compiled)
    if found.spilled:
        return f"spills {found.spilled} registers"
    if found.matrix_instructions == 0 and _wants_matrix_instructions(compiled.asm):
        return "multiplies without matrix instructions"
    return None
