"""Every sample through the Triton kernels, by the interpreter."""

import pytest
import samples
import torch

import tdnet_ops

# The kernels round phi(v), or what was attended before phi, and the weights to half precision.
ROUNDINGS = {"softmax_propagate": 2, "attention_propagate": 2}


@pytest.mark.parametrize("sample", samples.SAMPLES, ids=str)
def test_sample_is_right(sample):
    call = getattr(torch.ops.tdnet_triton, sample.operator)
    samples.check(sample, call, ROUNDINGS.get(sample.operator, 0))


@pytest.mark.parametrize("name", samples.NAMES)
def test_a_forced_backend_runs_the_kernels(name):
    """tdnet_ops' own functions reach the interpreter, and it the same numbers every time."""
    (sample,) = samples.select(["middle"], ["contiguous"], [torch.float32], [name])
    call = getattr(torch.ops.tdnet_triton, name)
    with tdnet_ops.backend("triton"):
        forced = samples.tensors([getattr(tdnet_ops, name)(*sample.arguments())])
    for x, y in zip(forced, samples.tensors([call(*sample.arguments())]), strict=True):
        assert torch.equal(x, y)
