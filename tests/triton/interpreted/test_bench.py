"""The benchmark suite has a column for Triton."""

import pytest
import torch

from tdnet_ops.bench import measure, roofs, suite
from tdnet_ops.bench.case import Setting
from tdnet_ops.bench.cases import CASES


@pytest.mark.parametrize("case", [x for x in CASES if x.name == "tiny"], ids=str)
def test_triton_is_measured(case, monkeypatch):
    monkeypatch.setattr(roofs, "SQUARE", 16)
    monkeypatch.setattr(measure, "BURST_SECONDS", 0.0)
    rows = suite.run_case(case, Setting("channels_last", torch.float32, 1), ["triton"], 0.0)
    (row,) = [row for row in rows if row.peer == "triton"]
    assert row.status == "timed", row.note
