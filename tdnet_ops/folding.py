"""phi folds into the values: softmax rows sum to one, so phi(A v) + b = A (phi(v) + b), Eq. 4.

Of one head: phi mixes several. csrc/folding.h is the twin.
"""

from __future__ import annotations


def operations(queries: int, keys: int, value_channels: int, out_channels: int) -> tuple[int, int]:
    """Multiply-adds of A v and phi: folded, so that phi runs over the keys; one after the other."""
    folded = keys * (value_channels + queries) * out_channels
    apart = queries * (out_channels + keys) * value_channels
    return folded, apart


def is_cheaper(queries: int, keys: int, value_channels: int, out_channels: int) -> bool:
    folded, apart = operations(queries, keys, value_channels, out_channels)
    return folded <= apart


def leaves_no_more_channels(heads: int, value_channels: int, out_channels: int) -> bool:
    """Where gradients are wanted, phi folds where this holds.

    Whether it is cheaper depends on the sizes of the maps too: to ask for them would bind a graph
    of dynamic sizes to the answer.
    """
    return heads == 1 and out_channels <= value_channels
