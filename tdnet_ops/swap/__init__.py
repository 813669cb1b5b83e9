"""The fused attention in other people's models: docs/swap.md."""

from tdnet_ops.swap.explanation import explain
from tdnet_ops.swap.fused_class import original_forward
from tdnet_ops.swap.known_block import Refused
from tdnet_ops.swap.registry import register
from tdnet_ops.swap.replacement import restore, swap
from tdnet_ops.swap.report import Entry, Report

__all__ = [
    "Entry",
    "Refused",
    "Report",
    "explain",
    "original_forward",
    "register",
    "restore",
    "swap",
]
