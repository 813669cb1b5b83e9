"""The tests of every route, here for the Triton kernels: semantics, bad input."""

from pathlib import Path

import pytest
import samples
import torch

TESTS = Path(__file__).resolve().parents[2] / "tdnet_ops"
ROUTE = {"torch.ops.tdnet_triton": lambda name: getattr(torch.ops.tdnet_triton, name)}


@pytest.fixture(autouse=True)
def _routes(monkeypatch):
    monkeypatch.setattr(samples, "ROUTES", ROUTE)


globals().update(samples.tests_by_route(TESTS / "test_semantics.py", ROUTE))
globals().update(samples.tests_by_route(TESTS / "test_checks.py", ROUTE))
