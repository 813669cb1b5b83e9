"""attention_propagate_backward on a CPU: whole and ragged tiles, panels, strips and parts."""

import pytest
import torch

import tdnet_ops  # noqa: F401  # registers the operators

# Batch, heads, channels of a head of keys and of values, sizes of queries and of keys. A tile is 64
# to 96 queries, a panel 8 to 48 columns, a strip 4 to 8 rows, a product 128 or 256 deep.
SIZES = [
    (1, 1, 1, 1, (1, 1), (1, 1)),
    (1, 1, 6, 8, (8, 8), (4, 4)),
    (1, 1, 7, 9, (5, 13), (7, 7)),
    (2, 1, 64, 5, (7, 9), (1, 49)),
    (1, 3, 16, 33, (16, 12), (6, 8)),
    (2, 5, 5, 12, (3, 67), (9, 11)),
    (1, 1, 130, 300, (21, 10), (3, 5)),
    (1, 1, 3, 260, (2, 300), (29, 2)),
    (9, 1, 4, 4, (1, 2), (1, 3)),
]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def arguments(size, layout, out_channels=None):
    """In float64, with a gradient of the log-sum-exp; phi is [out_channels, value_channels]."""
    batch, heads, key_channels, value_channels, of_queries, of_keys = size
    generator = torch.Generator().manual_seed(sum(of_queries) + value_channels)

    def random(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def of_map(channels, pixels):
        return random(batch, heads * channels, *pixels).contiguous(memory_format=layout)

    q, k = of_map(key_channels, of_queries), of_map(key_channels, of_keys)
    v = of_map(value_channels, of_keys)
    weight = None if out_channels is None else random(out_channels, value_channels)
    grad = of_map(out_channels or value_channels, of_queries)
    rows = torch.ops.tdnet_reference.attention_propagate_forward(q, k, v, heads=heads)[1]
    return [grad, random(*rows.shape), q, k, v, weight, rows, None, heads]


def narrowed(values):
    return [x.float() if isinstance(x, torch.Tensor) else x for x in values]


def check(values):
    found = torch.ops.tdnet.attention_propagate_backward(*narrowed(values))
    exact = torch.ops.tdnet_reference.attention_propagate_backward(*values)
    # A gradient may be 0 as the difference of numbers as large as the others.
    largest = max(x.abs().max() for x in exact if x.numel())
    for got, right in zip(found, exact, strict=True):
        assert got.stride() == right.stride()
        torch.testing.assert_close(got.double(), right, rtol=0, atol=3e-6 * largest.item())


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_gradients_are_right(size, layout, threads):
    values = arguments(size, layout)
    check(values)
    values[1] = None  # no gradient of the log-sum-exp
    check(values)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("size", [size for size in SIZES if size[1] == 1], ids=str)
def test_gradients_through_folded_values_are_right(size, layout, threads):
    check(arguments(size, layout, out_channels=11))


@pytest.mark.parametrize("size", SIZES[4:7], ids=str)
def test_the_same_bits_come_every_time(size, threads):
    values = narrowed(arguments(size, torch.channels_last))
    first = torch.ops.tdnet.attention_propagate_backward(*values)
    for _ in range(20):
        again = torch.ops.tdnet.attention_propagate_backward(*values)
        assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))


@pytest.mark.parametrize("out_channels", [None, 11])
def test_no_queries_give_gradients_of_zero(out_channels):
    size = (2, 1, 4, 5, (0, 3), (2, 3))
    values = arguments(size, torch.channels_last, out_channels)
    found = torch.ops.tdnet.attention_propagate_backward(*narrowed(values))
    for grad, x in zip(found, [*values[2:5], values[5]], strict=True):
        assert grad.shape == (x.shape if x is not None else (0,))
        assert not grad.any()


def test_layouts_are_those_of_the_arguments():
    """A float32 copy of every other channel has adjacent ones."""
    size = (1, 1, 8, 6, (5, 6), (3, 4))
    values = [
        x.bfloat16() if i < 6 and x is not None else x
        for i, x in enumerate(narrowed(arguments(size, torch.channels_last)))
    ]
    values[1], values[2], values[3] = None, values[2][:, ::2], values[3][:, ::2]
    values[4] = values[4].repeat(1, 2, 1, 1).contiguous(memory_format=torch.channels_last)[:, ::2]
    found = torch.ops.tdnet.attention_propagate_backward(*values)
    right = torch.ops.tdnet_reference.attention_propagate_backward(*values)
    assert [x.stride() for x in found] == [x.stride() for x in right]


@pytest.mark.parametrize("bad", ["grad", "log_sum_exp", "grad_log_sum_exp"])
def test_tensors_of_another_size_are_refused(bad):
    values = narrowed(arguments(SIZES[1], torch.contiguous_format))
    place = {"grad": 0, "grad_log_sum_exp": 1, "log_sum_exp": 6}[bad]
    values[place] = values[place][..., 1:]
    with pytest.raises(RuntimeError, match=f"^{bad}: expected size 8 .* in dimension 3"):
        torch.ops.tdnet.attention_propagate_backward(*values)


def test_phi_of_several_heads_is_refused():
    values = narrowed(arguments(SIZES[4], torch.contiguous_format))
    values[5] = torch.ones(4, values[4].shape[1])
    with pytest.raises(
        RuntimeError, match=r"^weight: expected None beside several heads, .*, got shape \[4, 99\]"
    ):
        torch.ops.tdnet.attention_propagate_backward(*values)
