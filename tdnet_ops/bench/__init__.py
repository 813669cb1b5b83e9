"""Micro-benchmarks: every operator beside its peers in one process.

`python -m tdnet_ops.bench --help` tells how to run them, docs/performance.md what they measure.
A new operator is one file in `tdnet_ops/bench/cases`, a new peer one function in `peers.py`.
"""
