"""Gradients of every operator against autograd through the definition in float64."""

import sys
import threading
from types import SimpleNamespace

import pytest
import samples
import torch
import torch._dynamo.compiled_autograd
from torch.utils._python_dispatch import TorchDispatchMode

import tdnet_ops
from tdnet_ops import gradients as shared
from tdnet_ops import reference

DIFFERENTIABLE = samples.DIFFERENTIABLE
# Of the others the layouts differ alone. Sizes of tiles: test_cpu_backward.py.
SMALL = samples.select(operators=DIFFERENTIABLE, layouts=("contiguous", "channels_last")) + [
    sample
    for sample in samples.select(operators=DIFFERENTIABLE, dtypes=(torch.float32, torch.float64))
    if sample.layout not in ("contiguous", "channels_last")
]


def leaves(arguments):
    """The arguments with every tensor a leaf that needs a gradient, its strides kept."""
    return samples.convert(arguments, lambda x: x.detach().requires_grad_())


def gradients(call, arguments, upstream):
    """Gradients of all tensors in `arguments` (zeros where unused) for upstream gradients."""
    outputs = samples.tensors([call(*arguments)])
    inputs = samples.tensors(arguments)
    found = torch.autograd.grad(outputs, inputs, upstream, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]


def upstream_like(outputs, layout, dtype):
    """Gradients of the results in float64, laid out as named."""
    generator = torch.Generator().manual_seed(1)
    grads = []
    for out in outputs:
        grad = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(dtype)
        grads.append(
            samples.place(grad, layout) if grad.dim() == 4 else samples.place_other(grad, layout)
        )
    return grads


def check_gradients(sample, call, layout):
    there = sample.arguments()
    arguments = samples.on_cpu(there)  # for the definition
    define = getattr(reference, sample.operator)
    outputs = samples.tensors([define(*samples.widen(arguments))])
    upstream = upstream_like(outputs, layout, sample.dtype)
    found = gradients(call, leaves(there), samples.on_device(upstream))
    assert all(x.device.type == samples.DEVICE.type for x in found)
    actual = samples.on_cpu(found)
    exact = gradients(define, leaves(samples.widen(arguments)), samples.widen(upstream))
    computing = samples.computing_dtype(sample.dtype)
    narrow = samples.convert((arguments, upstream), lambda x: x.to(computing))
    plain = gradients(define, leaves(narrow[0]), narrow[1])
    # Sums over pixels, and over channels, in any order.
    terms = max([64, *(x.shape[0] * x.shape[-2:].numel() for x in outputs)])
    for i, (got, right, low) in enumerate(zip(actual, exact, plain, strict=True)):
        if sample.dtype in (torch.float16, torch.bfloat16):
            # Each of a few terms is rounded to the dtype before the sum.
            largest = max(1.0, right.abs().max().item()) if right.numel() else 1.0
            error = (got.double() - right).abs().max().item() if right.numel() else 0.0
            allowed = 2 * torch.finfo(sample.dtype).eps * largest
            assert error <= allowed, f"{sample}, gradient {i}: {error} > {allowed}"
            assert got.dtype == sample.dtype
        else:
            # Of one key the gradients are 0, as differences of numbers as large as other gradients.
            others = [] if right.any() else [x.abs().max().item() for x in exact if x.numel()]
            what = f"{sample}, gradient {i}"
            samples.assert_near(
                got, right, low, sample.dtype, what, terms, largest=max([1.0, *others])
            )


@pytest.mark.parametrize("sample", SMALL, ids=str)
def test_gradients_are_right(sample):
    check_gradients(sample, getattr(tdnet_ops, sample.operator), sample.layout)


@pytest.mark.parametrize("route", ["torch.ops.tdnet", "torch.ops.tdnet_reference"])
@pytest.mark.parametrize(
    "sample",
    samples.select(["middle"], ["contiguous"], operators=DIFFERENTIABLE),
    ids=str,
)
def test_gradients_by_route(sample, route):
    check_gradients(sample, samples.ROUTES[route](sample.operator), sample.layout)


@pytest.mark.parametrize("layout", samples.LAYOUTS)
@pytest.mark.parametrize(
    "sample",
    samples.select(
        ["middle"], ["contiguous", "channels_last"], [torch.float32], operators=DIFFERENTIABLE
    ),
    ids=str,
)
def test_upstream_gradient_of_any_layout(sample, layout):
    check_gradients(sample, getattr(tdnet_ops, sample.operator), layout)


@pytest.mark.parametrize(
    "sample",
    samples.select(["middle"], ["contiguous", "channels_last"], operators=DIFFERENTIABLE),
    ids=str,
)
def test_sum_backward(sample):
    """sum().backward() hands down one number with strides of zero."""
    arguments = leaves(sample.arguments())
    outputs = samples.tensors([getattr(tdnet_ops, sample.operator)(*arguments)])
    sum(out.sum() for out in outputs).backward()
    wide = leaves(samples.widen(sample.arguments()))
    define = getattr(reference, sample.operator)
    sum(out.sum() for out in samples.tensors([define(*wide)])).backward()
    for x, right in zip(samples.tensors(arguments), samples.tensors(wide), strict=True):
        if right.grad is None:
            assert x.grad is None or not x.grad.any()
            continue
        tolerance = 4 * torch.finfo(sample.dtype).eps * max(1.0, right.grad.abs().max().item())
        torch.testing.assert_close(x.grad.double(), right.grad, rtol=0, atol=4 * tolerance)


# Other routes' gradients are compared with these numbers above.
@pytest.mark.parametrize(
    "route",
    [
        pytest.param(route, marks=[] if route == "tdnet_ops" else [pytest.mark.slow])
        for route in samples.ROUTES
    ],
)
@pytest.mark.parametrize(
    "sample",
    samples.select(None, ["contiguous"], [torch.float64], DIFFERENTIABLE),
    ids=str,
)
def test_gradcheck(sample, route):
    call = samples.ROUTES[route](sample.operator)
    arguments = leaves(sample.arguments())
    inputs = [x for x in samples.tensors(arguments) if x.numel()]

    def closed(*values):
        rest = iter(values)
        return call(*samples.convert(arguments, lambda x: next(rest) if x.numel() else x))

    assert torch.autograd.gradcheck(closed, inputs, check_undefined_grad=True)


@pytest.mark.parametrize(
    "sample", samples.select(["middle"], ["contiguous"], [torch.float32], DIFFERENTIABLE), ids=str
)
def test_only_the_wanted_gradients_come(sample):
    """Every tensor argument alone: the others need no gradient."""
    define = getattr(reference, sample.operator)
    for wanted in range(len(samples.tensors(sample.arguments()))):
        results = []
        for call, arguments in (
            (getattr(tdnet_ops, sample.operator), sample.arguments()),
            (define, samples.widen(sample.arguments())),
        ):
            leaf = samples.tensors(arguments)[wanted].requires_grad_()
            outputs = samples.tensors([call(*arguments)])
            # block_sum_update does not read the partial that it replaces.
            if not any(out.requires_grad for out in outputs) or leaf.numel() == 0:
                results.append(None)
                continue
            loss = sum(out.cos().sum() for out in outputs)
            results.append(torch.autograd.grad(loss, leaf)[0])
        if results[0] is None:
            assert samples.tensors(sample.arguments())[wanted].numel() == 0
        else:
            torch.testing.assert_close(results[0].double(), results[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("route", samples.ROUTES)
@pytest.mark.parametrize(
    "sample", samples.select(["middle"], ["contiguous"], [torch.float64], DIFFERENTIABLE), ids=str
)
def test_second_derivative_is_right_or_refused(sample, route):
    """A wrong second derivative must never pass in silence."""
    arguments = leaves(sample.arguments())
    define = getattr(reference, sample.operator)
    results = []
    for call in (define, samples.ROUTES[route](sample.operator)):
        outputs = samples.tensors([call(*arguments)])
        inputs = [x for x in samples.tensors(arguments) if x.numel()]
        loss = sum((out**3).sum() for out in outputs)
        try:
            first = torch.autograd.grad(loss, inputs, create_graph=True)
            second = torch.autograd.grad(sum((g**2).sum() for g in first), inputs)
        except RuntimeError as error:
            assert call is not define
            text = str(error)
            assert "second" in text or "double" in text or "differentiable" in text, text
            return
        results.append(second)
    for got, right in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(got, right)


# --- torch.func -----------------------------------------------------------------------------------

SMALL_SAMPLES = samples.select(["middle"], ["contiguous"], [torch.float64], DIFFERENTIABLE)


def of_tensors(call, sample):
    """`call` on the sample as a function of all its tensors; the tuple of results."""
    arguments = sample.arguments()

    def function(*values):
        rest = iter(values)
        return tuple(samples.tensors([call(*samples.convert(arguments, lambda _: next(rest)))]))

    return function


def loss_of(function):
    return lambda *values: sum((out**2).sum() for out in function(*values))


def twice(values):
    """Each tensor and its double, mapped over."""
    return [torch.stack([x, 2 * x]) for x in values]


def vmap_of_the_first(function, values):
    dims = (1, *[None] * (len(values) - 1))
    first = torch.stack([values[0], 2 * values[0]], 1)
    return torch.func.vmap(function, dims)(first, *values[1:])


def all_of(values):
    return tuple(range(len(values)))


TRANSFORMS = {
    "grad": lambda f, x: torch.func.grad(loss_of(f), all_of(x))(*x),
    "vjp": lambda f, x: torch.func.vjp(f, *x)[1](f(*x)),
    "jacrev": lambda f, x: torch.func.jacrev(f, all_of(x))(*x),
    "vmap": lambda f, x: torch.func.vmap(f)(*twice(x)),
    "vmap of the first": lambda f, x: vmap_of_the_first(f, x),
    "vmap of vmap": lambda f, x: torch.func.vmap(torch.func.vmap(f))(*twice(twice(x))),
    "vmap of grad": lambda f, x: torch.func.vmap(torch.func.grad(loss_of(f), all_of(x)))(*twice(x)),
    "grad of vmap": lambda f, x: torch.func.grad(
        lambda *v: torch.func.vmap(loss_of(f))(*v).sum(), all_of(x)
    )(*twice(x)),
}


@pytest.mark.parametrize("route", samples.ROUTES)
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("sample", SMALL_SAMPLES, ids=str)
def test_transforms_of_torch_func(sample, transform, route):
    apply = TRANSFORMS[transform]
    values = samples.tensors(sample.arguments())
    actual = apply(of_tensors(samples.ROUTES[route](sample.operator), sample), values)
    exact = apply(of_tensors(getattr(reference, sample.operator), sample), values)
    torch.testing.assert_close(actual, exact)


@pytest.mark.parametrize("sample", SMALL_SAMPLES, ids=str)
def test_grad_of_grad(sample):
    def second(call):
        loss = loss_of(of_tensors(call, sample))
        first = torch.func.grad(loss, all_of(values))
        return torch.func.grad(lambda *v: sum((g**2).sum() for g in first(*v)), all_of(v))(*v)

    v = values = samples.tensors(sample.arguments())
    if sample.operator == "attention_propagate":
        with pytest.raises(NotImplementedError, match="second derivatives"):
            second(tdnet_ops.attention_propagate)
        return
    actual = second(getattr(tdnet_ops, sample.operator))
    torch.testing.assert_close(actual, second(getattr(reference, sample.operator)))


@pytest.mark.parametrize("sample", SMALL_SAMPLES, ids=str)
def test_compiled_torch_func(sample):
    values = samples.tensors(sample.arguments())
    gradient = torch.func.grad(
        loss_of(of_tensors(getattr(tdnet_ops, sample.operator), sample)), all_of(values)
    )
    run = torch.compile(gradient, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(run(*values), gradient(*values))


@pytest.mark.parametrize("route", samples.ROUTES)
def test_vmap_of_labels(route):
    call = samples.ROUTES[route]("upsample_argmax")
    logits = torch.randn(3, 2, 5, 4, 6)
    labels = torch.func.vmap(lambda x: call(x, (7, 9)), 1)(logits)
    assert torch.equal(labels, torch.stack([call(logits[:, i], (7, 9)) for i in range(2)]))


def forward_ad(function, values):
    with torch.autograd.forward_ad.dual_level():
        function(*(torch.autograd.forward_ad.make_dual(x, x) for x in values))


FORWARD_MODE = {
    "forward_ad": forward_ad,
    "jvp": lambda f, x: torch.func.jvp(f, tuple(x), tuple(x)),
    "jacfwd": lambda f, x: torch.func.jacfwd(f)(*x),
    "hessian": lambda f, x: torch.func.hessian(loss_of(f))(*x),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch's own, in setting up forward mode
@pytest.mark.parametrize("route", samples.ROUTES)
@pytest.mark.parametrize("way", FORWARD_MODE)
@pytest.mark.parametrize("sample", SMALL_SAMPLES, ids=str)
def test_forward_mode_is_refused(sample, way, route):
    """Left alone, torch drops the tangents of a custom operator in silence."""
    function = of_tensors(samples.ROUTES[route](sample.operator), sample)
    values = samples.tensors(sample.arguments())
    for x in (values, [x.requires_grad_() for x in samples.tensors(sample.arguments())]):
        with pytest.raises(NotImplementedError, match=rf"{sample.operator}: forward-mode"):
            FORWARD_MODE[way](function, x)


def test_a_dual_level_without_tangents_changes_nothing():
    x = torch.randn(1, 2, 4, 5)
    with torch.autograd.forward_ad.dual_level():
        assert torch.equal(tdnet_ops.spatial_pool(x, 2), tdnet_ops.spatial_pool(x.clone(), 2))


# --- convolutions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("route", samples.ROUTES)
def test_relu_passes_gradients_as_torch(route):
    """[5, inf] from above [NaN, 0] gives [5, 0]; the weight is one."""
    x = torch.tensor([float("nan"), 0.0, 2.0]).reshape(1, 1, 1, 3).requires_grad_()
    one, upstream = (
        torch.ones(1, 1, 1, 1),
        torch.tensor([5.0, float("inf"), 3.0]).reshape(1, 1, 1, 3),
    )
    right = torch.tensor([5.0, 0.0, 3.0]).reshape(1, 1, 1, 3)
    (grad,) = torch.autograd.grad(torch.relu(x), x, upstream)
    torch.testing.assert_close(grad, right, rtol=0, atol=0)
    out = samples.ROUTES[route]("block_sum_reduce")([x], [one], None, 0, 1, "relu")
    (grad,) = torch.autograd.grad(out, x, upstream)
    torch.testing.assert_close(grad, right, rtol=0, atol=0)
    other = torch.zeros(1, 1, 1, 3, requires_grad=True)
    update = samples.ROUTES[route]("block_sum_update")([other, x], 1, x, one, None, 0, 1, "relu")
    for grad in torch.autograd.grad(update[1], [x, other], upstream):
        torch.testing.assert_close(grad, right, rtol=0, atol=0)


@pytest.mark.parametrize("route", samples.ROUTES)
@pytest.mark.parametrize("dtype", samples.DTYPES)
@pytest.mark.parametrize("kernel", [1, 3])
def test_weights_of_odd_strides(route, dtype, kernel):
    x = torch.randn(2, 5, 6, 7, dtype=dtype)
    wide = torch.randn(kernel, 2 * 5, kernel, 4, dtype=dtype).permute(3, 1, 0, 2)[:, ::2]
    out_size = 6 if kernel == 1 else 4
    grads = []
    for weight in (wide, wide.contiguous()):
        weight = weight.detach().requires_grad_()
        out = samples.ROUTES[route]("block_sum_reduce")([x], [weight], None, 0, 1, "relu")
        total = samples.ROUTES[route]("block_sum_update")([out], 0, x, weight, None, 0, 1, "none")[
            1
        ]
        assert out.shape[2] == out_size
        grads.append(torch.autograd.grad((out + total).float().sum(), weight)[0])
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_of_half_precision_convolutions_are_widened(dtype):
    x = torch.ones(1, 1, 1, 1, dtype=dtype, requires_grad=True)
    weight = torch.ones(1, 1, 1, 1, dtype=dtype, requires_grad=True)
    partial, total = tdnet_ops.block_sum_update([x.detach()], 0, x, weight)
    ones = torch.ones_like(total)
    with Convolutions() as record:
        grads = torch.autograd.grad([partial, total], [x, weight], [ones, ones])
    assert record.dtypes == [torch.float32]
    assert [grad.dtype for grad in grads] == [dtype, dtype]


class Convolutions(TorchDispatchMode):
    """Records the dtype of the gradient that convolution_backward gets."""

    def __init__(self):
        super().__init__()
        self.dtypes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution_backward.default:
            self.dtypes.append(args[0].dtype)
        return func(*args, **(kwargs or {}))


# --- precision of products ------------------------------------------------------------------------

ON_CUDA = SimpleNamespace(is_cuda=True)


@pytest.mark.parametrize("usual", ["none", "ieee", "tf32"])
@pytest.mark.parametrize("allow_tf32", [False, True])
def test_products_have_the_precision_of_the_forward_pass(usual, allow_tf32):
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    matmul.fp32_precision = usual  # conftest.py restores it
    of_convolutions = conv.fp32_precision
    with shared.products_in(ON_CUDA, allow_tf32):
        assert (matmul.fp32_precision == "tf32") == allow_tf32
        assert conv.fp32_precision == of_convolutions
        if (usual == "tf32") == allow_tf32:  # "none" follows torch.backends.fp32_precision
            assert matmul.fp32_precision == usual
    assert matmul.fp32_precision == usual


def test_backward_passes_of_two_threads_leave_the_precision_alone():
    matmul = torch.backends.cuda.matmul
    before, found = matmul.fp32_precision, []

    def passes(allow_tf32):
        for _ in range(2000):
            with shared.products_in(ON_CUDA, allow_tf32):
                found.append((matmul.fp32_precision == "tf32") == allow_tf32)

    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=passes, args=(allow,)) for allow in (False, True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(usual)
    assert all(found)
    assert matmul.fp32_precision == before


# --- compiled autograd and profiles ---------------------------------------------------------------


@pytest.mark.parametrize("sample", SMALL_SAMPLES, ids=str)
def test_compiled_autograd(sample):
    function = of_tensors(getattr(tdnet_ops, sample.operator), sample)
    values = [x.requires_grad_() for x in samples.tensors(sample.arguments())]
    right = torch.autograd.grad(function(*values)[-1].cos().sum(), values, allow_unused=True)
    loss = function(*values)[-1].cos().sum()
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):
        loss.backward()
    for x, grad in zip(values, right, strict=True):
        if grad is not None:
            torch.testing.assert_close(x.grad, grad)


@pytest.mark.parametrize("sample", SMALL_SAMPLES, ids=str)
def test_nodes_are_named_after_their_operator(sample):
    arguments = leaves(sample.arguments())
    out = samples.tensors([getattr(tdnet_ops, sample.operator)(*arguments)])[-1]
    assert type(out.grad_fn).__name__ == f"{sample.operator}_backward"


@pytest.mark.parametrize("sample", SMALL_SAMPLES, ids=str)
def test_vmap_over_nothing(sample):
    function = of_tensors(getattr(tdnet_ops, sample.operator), sample)
    values = samples.tensors(sample.arguments())
    mapped = torch.func.vmap(function)(*(x.new_zeros(0, *x.shape) for x in values))
    assert [x.shape for x in mapped] == [(0, *x.shape) for x in function(*values)]


@pytest.mark.parametrize("name", ["heads_phi", "more_out_channels", "middle"])
def test_a_backward_pass_inside_autocast_is_that_of_the_forward_pass(name):
    """Which was outside: nothing is rounded to half precision, of phi apart from A v neither."""
    (sample,) = samples.select([name], ["contiguous"], [torch.float32], ["attention_propagate"])
    found = []
    for inside in (True, False):
        arguments = leaves(sample.arguments())
        out = tdnet_ops.attention_propagate(*arguments)
        with torch.autocast(samples.DEVICE.type, torch.bfloat16, enabled=inside):
            out.backward(torch.ones_like(out))
        found.append([x.grad for x in samples.tensors(arguments)])
    torch.testing.assert_close(*found, rtol=0, atol=0)


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("shape", [(), (3,), (3, 4, 1), (0, 4), (3, 5)])
def test_a_bad_phi_is_refused_where_gradients_are_wanted(shape, heads):
    q, k, v = (torch.ones(1, 4, 2, 2, requires_grad=True) for _ in range(3))
    with pytest.raises(ValueError, match=r"^weight: expected "):
        tdnet_ops.attention_propagate(q, k, v, None, torch.ones(shape), heads=heads)


def test_half_precision_is_rounded_once_in_training_too():
    """phi alone is above what float16 can hold, with the residual it is not."""
    q, k = torch.zeros(1, 2, 1, 1), torch.zeros(1, 2, 1, 1)
    v, weight = torch.full((1, 2, 1, 1), 200.0), torch.full((2, 2), 175.0)
    residual = torch.full((1, 2, 1, 1), -1e4)
    values = [x.half().requires_grad_() for x in (q, k, v, residual, weight)]
    out = tdnet_ops.attention_propagate(*values, heads=2)
    assert out.requires_grad
    assert out.flatten().tolist() == [6e4, 6e4]


@pytest.mark.parametrize("route", samples.ROUTES)
def test_a_row_with_plus_infinity_has_no_gradients(route):
    """As torch's softmax, which is NaN there: the weights of its finite keys are no zeros."""
    q = torch.zeros(1, 1, 1, 2)
    q[..., 0] = 1e20
    k = torch.tensor([1e20, 0.0, 0.0]).view(1, 1, 1, 3)
    arguments = [x.requires_grad_() for x in (q, k, torch.ones(1, 2, 1, 3))]
    ours = torch.autograd.grad(
        samples.ROUTES[route]("attention_propagate")(*arguments).sum(), arguments
    )
    right = torch.autograd.grad(reference.attention_propagate(*arguments).sum(), arguments)
    for grad, expected in zip(ours, right, strict=True):
        assert torch.equal(grad.isnan().cpu(), expected.isnan())
