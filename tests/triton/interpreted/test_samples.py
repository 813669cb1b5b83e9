"""Every sample through the Triton kernels, by the interpreter."""

import pytest
import samples
import torch
from samples.marks import sample_param

import tdnet_ops

# A second and more of loops each, by the interpreter.
LONG = ("many_keys", "wide_window", "large_window", "many_classes", "last_class", "most_bytes")
LONG += ("more_than_bytes", "many_patches", "heads_in_groups")


def marked(sample):
    """Each layout in float32 and each dtype in one layout is enough for every day.

    Where a kernel reads and writes (maps.py), strides make addresses, whatever the dtype; what it
    computes from then on, in a dtype, sees no strides.
    """
    slow = sample.dtype != torch.float32 and sample.layout != "channels_last"
    slow = slow or sample.name in LONG
    return sample_param(sample, slow)


@pytest.mark.parametrize("sample", [marked(sample) for sample in samples.SAMPLES])
def test_sample_is_right(sample):
    call = getattr(torch.ops.tdnet_triton, sample.operator)
    samples.check(sample, call, samples.GPU_ROUNDINGS.get(sample.operator, 0))


@pytest.mark.parametrize("name", samples.NAMES)
def test_a_forced_backend_runs_the_kernels(name):
    """tdnet_ops' own functions reach the interpreter, and it the same numbers every time."""
    (sample,) = samples.select(["middle"], ["contiguous"], [torch.float32], [name])
    call = getattr(torch.ops.tdnet_triton, name)
    with tdnet_ops.backend("triton"):
        forced = samples.tensors([getattr(tdnet_ops, name)(*sample.arguments())])
    for x, y in zip(forced, samples.tensors([call(*sample.arguments())]), strict=True):
        assert torch.equal(x, y)


MIDDLE = samples.select(["middle"], ["contiguous", "channels_last"], [torch.float32])


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("sample", MIDDLE, ids=str)
def test_opcheck(sample):
    """Schema, fake kernel, autograd and tracing of the operators of this name space."""
    arguments = sample.arguments()
    if sample.operator != "upsample_argmax":
        arguments = samples.convert(arguments, lambda x: x.detach().requires_grad_())
    torch.library.opcheck(getattr(torch.ops.tdnet_triton, sample.operator).default, arguments)


def test_more_blocks_than_one_launch_takes():
    blocks = [torch.randn(1, 3, 4, 5) for _ in range(19)]
    weights = [torch.randn(2, 3, 3, 3) for _ in blocks]
    arguments = (blocks, weights, torch.randn(2), 1, 1, "relu")
    actual = torch.ops.tdnet_triton.block_sum_reduce(*arguments)
    torch.testing.assert_close(actual, tdnet_ops.reference.block_sum_reduce(*arguments))


@pytest.mark.parametrize("name", ["attention_propagate", "block_sum_reduce"])
def test_compiled_code_reaches_the_kernels(name):
    (sample,) = samples.select(["middle"], ["contiguous"], [torch.float32], [name])
    compiled = torch.compile(getattr(tdnet_ops, name), fullgraph=True, backend="aot_eager")
    with tdnet_ops.backend("triton"):
        actual = compiled(*sample.arguments())
    call = getattr(torch.ops.tdnet_triton, name)
    assert torch.equal(actual, call(*sample.arguments()))
