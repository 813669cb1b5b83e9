"""winograd_conv2d is the convolution of the kernels that winograd_transform took."""

import pytest
import samples
import torch
import torch.nn.functional as F

import tdnet_ops

ROUTES = list(samples.ROUTES)


def direct(x, kernels, bias=None, residual=None, dilation=1, activation="none"):
    out = F.conv2d(x, kernels, bias, padding=dilation, dilation=dilation)
    out = out if residual is None else out + residual
    return F.relu(out) if activation == "relu" else out


def by_winograd(x, kernels, *others):
    return tdnet_ops.winograd_conv2d(x, tdnet_ops.winograd_transform(kernels), *others)


def tensors(channels, out_channels, size, dtype=torch.float64, batch=1):
    """x, kernels, bias and residual, of results near 1."""
    generator = torch.Generator().manual_seed(7)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    return [
        normal(batch, channels, *size),
        normal(out_channels, channels, 3, 3) / (9 * channels) ** 0.5,
        normal(out_channels),
        normal(batch, out_channels, *size),
    ]


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("dilation", [1, 2, 3, 4, 7, 30])
@pytest.mark.parametrize("size", [(1, 1), (4, 8), (5, 6), (23, 18), (2, 31)])
def test_it_is_the_convolution(route, dilation, size):
    x, kernels, bias, residual = tensors(5, 4, size, batch=2)
    call = samples.ROUTES[route]("winograd_conv2d")
    weight = tdnet_ops.winograd_transform(kernels)
    for activation in ("none", "relu"):
        out = call(x, weight, bias, residual, dilation, activation)
        right = direct(x, kernels, bias, residual, dilation, activation)
        torch.testing.assert_close(out, right, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize(("channels", "dilation"), [(64, 1), (256, 2), (512, 4)])
def test_float32_is_near_float64(backend, channels, dilation):
    """Of the largest result; a direct convolution errs by 5e-7 of it."""
    x, kernels, bias, residual = tensors(channels, 64, (21, 26))
    right = direct(x, kernels, bias, residual, dilation)
    narrow = [x.float() for x in (x, tdnet_ops.winograd_transform(kernels), bias, residual)]
    out = tdnet_ops.winograd_conv2d(*narrow, dilation, backend=backend)
    assert (out - right).abs().max() < BOUND * right.abs().max()


BOUND = 1e-5


@pytest.mark.parametrize("dilation", [1, 2, 9])
@pytest.mark.parametrize("activation", ["none", "relu"])
def test_gradients_are_those_of_the_convolution(dilation, activation):
    leaves = [x.requires_grad_() for x in tensors(5, 4, (11, 7), batch=2)]
    upstream = torch.randn(2, 4, 11, 7, dtype=torch.float64)
    found, right = (
        torch.autograd.grad(call(*leaves, dilation, activation), leaves, upstream)
        for call in (by_winograd, direct)
    )
    for got, expected in zip(found, right, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("size", [(3, 5), (9, 2)])
@pytest.mark.parametrize("dilation", [1, 3])
@pytest.mark.parametrize("activation", ["none", "relu"])
def test_gradcheck(size, dilation, activation):
    """Second derivatives too, and of a weight that is not transformed kernels."""
    x, _, bias, residual = tensors(2, 3, size)
    weight = torch.randn(36, 3, 2, dtype=torch.float64) / 400
    leaves = [x.requires_grad_() for x in (x, weight, bias, residual)]

    def call(*values):
        return tdnet_ops.winograd_conv2d(*values, dilation, activation)

    assert torch.autograd.gradcheck(call, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, leaves, fast_mode=True)


def test_nothing_but_what_needs_gradients_has_them():
    x, kernels, *_ = tensors(2, 3, (4, 5))
    weight = tdnet_ops.winograd_transform(kernels).requires_grad_()
    tdnet_ops.winograd_conv2d(x, weight).sum().backward()
    assert x.grad is None
    assert weight.grad is not None


# --- winograd_transform ---------------------------------------------------------------------------


def test_positions_are_rows_and_columns():
    """A kernel of its centre alone is weighed by the middle column of G twice."""
    kernels = torch.zeros(2, 3, 3, 3)
    kernels[1, 2, 1, 1] = 144
    centre = torch.tensor([0, -2, 2, 1, -1, 0])
    weight = tdnet_ops.winograd_transform(kernels)
    torch.testing.assert_close(weight[:, 1, 2].view(6, 6), torch.outer(centre, centre).float())
    assert weight.count_nonzero() == 16
    kernels = torch.zeros(1, 1, 3, 3)
    kernels[0, 0, 0, 2] = 1
    row = torch.tensor([1 / 4, -1 / 6, -1 / 6, 1 / 24, 1 / 24, 0])
    column = torch.tensor([0, -1 / 6, -1 / 6, 1 / 6, 1 / 6, 1])
    weight = tdnet_ops.winograd_transform(kernels)
    torch.testing.assert_close(weight.view(6, 6), torch.outer(row, column))


@pytest.mark.parametrize("dtype", samples.DTYPES)
def test_it_is_rounded_once(dtype):
    _, kernels, *_ = tensors(3, 4, (1, 1), dtype)
    kernels = kernels.contiguous(memory_format=torch.channels_last)
    weight = tdnet_ops.winograd_transform(kernels)
    assert weight.dtype == dtype
    assert weight.shape == (36, 4, 3)
    assert weight.is_contiguous()
    exact = tdnet_ops.winograd_transform(kernels.double())
    assert torch.equal(weight, exact.to(dtype))


@pytest.mark.parametrize(
    ("kernels", "text"),
    [
        (torch.ones(4, 3, 3), r"kernels: expected 4 dimensions, got shape \[4, 3, 3\]"),
        (torch.ones(4, 3, 1, 3), r"kernels: expected size 3 .* got shape \[4, 3, 1, 3\]"),
        (torch.ones(4, 3, 3, 5), r"kernels: expected size 3 .* got shape \[4, 3, 3, 5\]"),
        (torch.ones(4, 3, 3, 3, dtype=torch.int64), "kernels: expected .*, got torch.int64"),
        (None, "kernels: expected a tensor, got NoneType"),
    ],
)
def test_bad_kernels(kernels, text):
    with pytest.raises((TypeError, ValueError), match=f"^{text}$"):
        tdnet_ops.winograd_transform(kernels)


def test_it_compiles_with_the_operator():
    x, kernels, bias, residual = tensors(3, 4, (9, 6), torch.float32)
    run = torch.compile(by_winograd, fullgraph=True, backend="aot_eager")
    arguments = (x, kernels, bias, residual, 2, "relu")
    torch.testing.assert_close(run(*arguments), by_winograd(*arguments))
