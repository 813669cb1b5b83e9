"""What is added to the logits of an attention: [queries, keys]."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Logits = Callable[[int, int], Tensor]  # queries and keys -> [queries, keys], added to the logits


def growing(largest: float) -> Logits:
    """From 0 at the first key to `largest` at the last."""
    return lambda queries, keys: torch.linspace(0, largest, keys).expand(queries, keys)


def step(first: int, height: float) -> Logits:
    """`height` from key `first` on, 0 before it."""
    return lambda queries, keys: ((torch.arange(keys) >= first) * height).expand(queries, keys)


def spike(query: int, key: int, height: float) -> Logits:
    """Of one query and key."""

    def logits(queries: int, keys: int) -> Tensor:
        added = torch.zeros(queries, keys)
        added[query, key] = height
        return added

    return logits


def without(*keys: slice) -> Logits:
    """Every other query sees nothing of these keys: -inf."""

    def logits(queries: int, key_count: int) -> Tensor:
        added = torch.zeros(queries, key_count)
        for some in keys:
            added[::2, some] = -torch.inf
        return added

    return logits


def low(queries: int, keys: int) -> Tensor:
    """Far below 0, where the numbers beside the keys stand."""
    return torch.full((queries, keys), -2000.0)


def unseen(keys: slice) -> Logits:
    """No query sees anything of these keys: -inf."""

    def logits(queries: int, key_count: int) -> Tensor:
        added = torch.zeros(queries, key_count)
        added[:, keys] = -torch.inf
        return added

    return logits
