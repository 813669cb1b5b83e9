"""Gradients through the Triton operators; attention_propagate has backward kernels of its own."""

from pathlib import Path

import pytest
import samples
import torch
from samples.marks import sample_param

shared = samples.load(Path(__file__).resolve().parents[2] / "tdnet_ops" / "test_gradients.py")

FEW = samples.select(
    ["middle", "ones", "no_batch"], ["contiguous", "channels_last"], operators=shared.DIFFERENTIABLE
) + [
    sample
    for sample in samples.select(None, ["channels_last"], [torch.float32], ["attention_propagate"])
    if sample.name not in ("middle", "ones", "no_batch", "many_keys")  # a minute by itself
]
# Many tiles, by the interpreter: "wide" has several in every direction, too.
LONG = ("more_out_channels", "fewer_out_channels", "many_tiles", "deep", "heads_in_groups")


def marked(sample):
    """Only attention_propagate has a backward pass of its own here: once is enough for the others.

    Theirs is gradients.py, which the other routes test in every dtype.
    """
    slow = sample.operator != "attention_propagate" and sample.dtype != torch.float32
    slow = slow or sample.name in LONG
    return sample_param(sample, slow)


@pytest.mark.parametrize("sample", [marked(sample) for sample in FEW])
def test_gradients_are_right(sample):
    call = getattr(torch.ops.tdnet_triton, sample.operator)
    shared.check_gradients(sample, call, sample.layout)
