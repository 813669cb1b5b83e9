"""Which kernels attention_propagate takes, of several heads too, and what it copies for them."""

import emulator
import pytest
import torch

from tdnet_ops import reference

HALF = torch.float16


@pytest.fixture(autouse=True)
def settings(operators):
    operators.set(multiprocessors=1)  # keys are whole
    yield
    operators.set()


def channels_last(batch, channels, height, width, dtype=HALF):
    x = torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(1))
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


def example(heads, key_channels=64, value_channels=24, dtype=HALF, size=(4, 5), key_size=(20, 25)):
    """Of the channels of one head."""
    q, k = (channels_last(1, heads * key_channels, *s, dtype) for s in (size, key_size))
    return q, k, channels_last(1, heads * value_channels, *key_size, dtype)


def odd(*shape):
    """Strides that no step takes are odd."""
    x = channels_last(*shape)
    strides = [3 if n == 1 else stride for n, stride in zip(x.shape, x.stride(), strict=True)]
    return x.as_strided(x.shape, strides)


def call(q, k, v, heads, weight=None, scale=None):
    return torch.ops.tdnet_emulator.attention_propagate(q, k, v, None, weight, None, scale, heads)


def first_kernel(operators, *arguments):
    """By the error of a launch that finds too little shared memory, which names it."""
    operators.set(most_shared=1 << 10)
    with pytest.raises(RuntimeError, match="CUDA kernel") as failure:
        call(*arguments)
    return str(failure.value).partition("CUDA kernel ")[2].partition(":")[0]


def launches(operators, q, k, v, heads):
    """Of a call whose result is right."""
    with operators.counting() as counts:
        out = call(q, k, v, heads)
    wide = [x.double() for x in (q, k, v)]
    right = reference.attention_propagate(*wide, heads=heads)
    torch.testing.assert_close(out.double(), right, rtol=1e-2, atol=1e-2)
    return counts.launches


WHOLE = {
    "heads": (example(3), 3),
    "one_head": (example(1), 1),
    "of_other_channels": (example(2, 8, 16), 2),
    "of_16_bytes_in_float32": (example(2, 4, 12, torch.float32), 2),
    "one_column": (example(2, key_size=(9, 1)), 2),
    "one_row": (example(2, key_size=(1, 9)), 2),
    "one_row_of_odd_strides": (
        (channels_last(1, 128, 4, 5), odd(1, 128, 1, 9), odd(1, 48, 1, 9)),
        2,
    ),
    "one_projection": (channels_last(2, 3 * 128, 6, 7).chunk(3, dim=1), 2),
    "one_memory": (
        (
            channels_last(2, 128, 6, 7),
            *(x.expand(2, -1, -1, -1) for x in channels_last(1, 256, 5, 6).chunk(2, dim=1)),
        ),
        2,
    ),
}


@pytest.mark.parametrize("name", WHOLE)
def test_keys_and_values_of_whole_vectors_are_read_in_place(operators, name):
    arguments, heads = WHOLE[name]
    assert launches(operators, *arguments, heads) == 1


def apart(x):
    """Rows with a gap."""
    wide = channels_last(*x.shape[:3], x.shape[3] + 8, x.dtype)
    return wide[..., : x.shape[3]].copy_(x)


@pytest.mark.parametrize("change", [torch.Tensor.contiguous, apart])
def test_others_are_copied(operators, change):
    q, k, v = example(2)
    assert launches(operators, q, change(k), v, 2) == 2
    assert launches(operators, q, k, change(v), 2) == 2
    assert launches(operators, q, change(k), change(v), 2) == 3


@pytest.mark.parametrize(("key_channels", "value_channels"), [(64, 12), (12, 8)])
def test_heads_of_no_whole_vectors_are_copied(operators, key_channels, value_channels):
    assert launches(operators, *example(2, key_channels, value_channels), 2) == 2


@pytest.mark.parametrize("key_channels", [24, 64])
def test_every_head_fills_the_device(operators, key_channels):
    """With as many heads as it has room for blocks, keys are whole."""
    operators.set(multiprocessors=8)
    assert launches(operators, *example(1, key_channels), 1) == 2
    assert launches(operators, *example(16, key_channels), 16) == 1


def test_every_slice_of_channels_fills_the_device(operators):
    """With room for as many blocks as there are slices, keys are whole."""
    operators.set(multiprocessors=2)
    assert launches(operators, *example(1, value_channels=256), 1) == 2
    assert launches(operators, *example(1, value_channels=512), 1) == 1


@pytest.mark.parametrize(
    ("channels", "slices"), [(128, 1), (136, 1), (256, 1), (264, 3), (512, 2), (520, 3)]
)
def test_slices_of_channels_leave_least_to_do(operators, channels, slices):
    with operators.counting() as counts:
        call(*example(1, value_channels=channels), 1)
    assert counts.blocks == slices


def test_parts_have_two_tiles_of_keys(operators):
    """128 keys stay whole."""
    operators.set(multiprocessors=64)
    assert launches(operators, *example(1, key_size=(8, 16)), 1) == 1
    assert launches(operators, *example(1, key_size=(3, 43)), 1) == 2


def test_large_tiles_of_keys_where_shared_memory_has_room(operators):
    """They wait at half as many barriers."""
    barriers = []
    for most_shared in (emulator.MOST_SHARED, emulator.LITTLE_SHARED):
        operators.set(most_shared=most_shared, multiprocessors=1)
        with operators.counting() as counts:
            call(*example(1, value_channels=256), 1)
        barriers.append(counts.barriers)
    assert 1.5 * barriers[0] < barriers[1]


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize(
    ("key_channels", "kernel"),
    [(64, "tensor_core_attention"), (32, "propagate"), (128, "propagate")],
)
def test_64_channels_of_a_head_take_the_tensor_core_kernel(operators, key_channels, kernel, heads):
    assert first_kernel(operators, *example(heads, key_channels), heads) == kernel


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("scale", "kernel"),
    [(1e-27, "tensor_core_attention"), (1e-29, "propagate"), (0.0, "propagate")],
)
def test_next_to_no_scale_takes_the_other_kernel(operators, scale, kernel, sign):
    assert first_kernel(operators, *example(1), 1, None, sign * scale) == kernel


@pytest.mark.parametrize(
    ("queries", "keys", "heads", "kernel"),
    [
        ((20, 25), (4, 5), 1, "convolve"),
        ((4, 5), (20, 25), 1, "tensor_core_attention"),
        ((20, 25), (4, 5), 2, "tensor_core_attention"),
    ],
)
def test_phi_goes_before_where_keys_are_fewer_and_of_one_head(
    operators, queries, keys, heads, kernel
):
    q, k, v = example(heads, size=queries, key_size=keys)
    weight = torch.zeros(v.shape[1], v.shape[1], dtype=HALF)
    assert first_kernel(operators, q, k, v, heads, weight) == kernel
