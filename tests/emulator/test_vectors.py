"""What may be read in vectors of 16 bytes, and looks like it but for one stride or its start.

Layouts that no sample has, since a gap there shows in no other dimension.
"""

import pytest
import samples
import torch

DTYPES = [torch.float32, torch.float16]


def normal(*size, dtype):
    return torch.randn(size, generator=torch.Generator().manual_seed(len(size))).to(dtype)


def assert_as_defined(operator, arguments, operators):
    operators.set()
    ours = getattr(torch.ops.tdnet_emulator, operator)(*arguments)
    right = getattr(torch.ops.tdnet_reference, operator)(*arguments)
    for out, expected in zip(samples.tensors([ours]), samples.tensors([right]), strict=True):
        torch.testing.assert_close(out, expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_addends_of_one_row_whose_columns_are_apart(operators, dtype):
    partials = [normal(1, 8, 1, 32, dtype=dtype)[..., ::2] for _ in range(3)]
    x, weight = normal(1, 8, 1, 16, dtype=dtype), normal(8, 8, 1, 1, dtype=dtype)
    arguments = (partials, 1, x, weight, None, 0, 1, "none")
    assert_as_defined("block_sum_update", arguments, operators)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_weight_of_one_output_channel_whose_rows_are_apart(operators, dtype):
    channels = 16
    storage = torch.full((3 * (3 * channels + 1),), float("nan"), dtype=dtype)
    strides = (storage.numel(), 1, 3 * channels + 1, channels)
    weight = storage.as_strided((1, channels, 3, 3), strides)
    weight.copy_(normal(1, channels, 3, 3, dtype=dtype))
    x = normal(1, channels, 5, 6, dtype=dtype).contiguous(memory_format=torch.channels_last)
    assert_as_defined("block_sum_reduce", ([x], [weight], None, 1, 1, "none"), operators)


def at_8_bytes(x):
    """The same map in channels_last, from the middle of 16 bytes on."""
    x, start = x.contiguous(memory_format=torch.channels_last), 8 // x.element_size()
    storage = torch.full((start + x.numel(),), float("nan"), dtype=x.dtype)
    return storage.as_strided(x.shape, x.stride(), start).copy_(x)


@pytest.mark.parametrize("place", range(4), ids=["q", "k", "v", "residual"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_map_that_starts_at_8_bytes(operators, dtype, place):
    q, k, v, residual = (normal(1, channels, 4, 6, dtype=dtype) for channels in (64, 64, 16, 16))
    maps = [x.contiguous(memory_format=torch.channels_last) for x in (q, k, v, residual)]
    maps[place] = at_8_bytes(maps[place])
    assert_as_defined("attention_propagate", (*maps, None, None), operators)
