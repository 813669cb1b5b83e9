"""Gradients through the Triton operators; attention_propagate has backward kernels of its own."""

from pathlib import Path

import pytest
import samples
import torch

shared = samples.load(Path(__file__).resolve().parents[2] / "tdnet_ops" / "test_gradients.py")

FEW = samples.select(
    ["middle", "ones", "no_batch"], ["contiguous", "channels_last"], operators=shared.DIFFERENTIABLE
) + [
    sample
    for sample in samples.select(None, ["channels_last"], [torch.float32], ["attention_propagate"])
    if sample.name != "many_keys"  # a minute by itself
]


@pytest.mark.parametrize("sample", FEW, ids=str)
def test_gradients_are_right(sample):
    call = getattr(torch.ops.tdnet_triton, sample.operator)
    shared.check_gradients(sample, call, sample.layout)
