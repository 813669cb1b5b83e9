"""Random numbers that depend on some numbers alone, such as the seed and the step."""

from __future__ import annotations

import numpy as np


def seed_of(*numbers: int) -> int:
    """A seed, 0 to 2^63 - 1, that depends on these numbers (0 or more) alone."""
    low, high = np.random.SeedSequence(numbers).generate_state(2, np.uint32)
    return (int(high) << 32 | int(low)) >> 1
