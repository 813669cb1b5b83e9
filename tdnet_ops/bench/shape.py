"""Cases of attention_propagate from the command line."""

from __future__ import annotations

import re

from tdnet_ops.bench.case import Case
from tdnet_ops.bench.cases.attention_propagate import attention_case

FORM = "B,dk,dv,HxW,hxw[,heads]"
_NUMBER = r"([1-9]\d*)"
_PATTERN = rf"{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}x{_NUMBER},{_NUMBER}x{_NUMBER}(?:,{_NUMBER})?"


def case_of_shape(text: str) -> Case:
    """Attention alone, without phi and residual, named by its text.

    Args:
        text: as `FORM`: batch, channels of the keys and of the values of all heads together, the
            sizes of the query map and of the key map, heads.

    Raises:
        ValueError: it is none.
    """
    match = re.fullmatch(_PATTERN, text, re.ASCII)
    if match is None:
        raise ValueError(f"expected {FORM}, whole numbers from 1, got {text!r}")
    batch, key_channels, channels, *sizes, heads = (int(part or 1) for part in match.groups())
    if key_channels % heads or channels % heads:
        raise ValueError(f"expected dk and dv to be multiples of the {heads} heads, got {text!r}")
    height, width, pooled_height, pooled_width = sizes
    return attention_case(
        *(text, (height, width), (pooled_height, pooled_width), channels, key_channels),
        batch=batch,
        heads=heads,
    )
