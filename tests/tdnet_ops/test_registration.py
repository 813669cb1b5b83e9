"""What torch asks of a custom operator: opcheck, modes, autocast, compile and export."""

import inspect

import pytest
import samples
import torch
import torch._dynamo.testing
import torch._inductor

import tdnet_ops
from tdnet_ops import reference

DIFFERENTIABLE = samples.DIFFERENTIABLE
REGISTERED = ["tdnet", "tdnet_reference"]
if samples.DEVICE.type != "cpu":
    REGISTERED.append("tdnet_triton")
FEW = samples.select(
    ["middle", "ones", "no_batch"], ["contiguous", "channels_last"], [torch.float32]
) + samples.select(["middle"], ["transposed", "expanded_batch"], [torch.float32, torch.bfloat16])
MIDDLE = samples.select(["middle"], ["contiguous"], [torch.float32])


def needing_gradients(sample):
    arguments = sample.arguments()
    if sample.operator == "upsample_argmax":
        return arguments
    return samples.convert(arguments, lambda x: x.detach().requires_grad_())


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("sample", "name_space"),
    [
        # The registrations are alike, and dtypes see no layouts: this is enough for every day.
        pytest.param(
            *(sample, name_space),
            id=f"{sample}-{name_space}",
            marks=[pytest.mark.slow]
            * (
                sample.layout != "contiguous"
                and (name_space != "tdnet" or sample.dtype != torch.float32)
            ),
        )
        for sample in FEW
        for name_space in REGISTERED
    ],
)
def test_opcheck(sample, name_space):
    overload = getattr(getattr(torch.ops, name_space), sample.operator).default
    torch.library.opcheck(overload, needing_gradients(sample))


@pytest.mark.parametrize("name_space", REGISTERED)
@pytest.mark.parametrize("weighted", [False, True])
def test_opcheck_of_the_backward_operator(name_space, weighted):
    sample = samples.select(["middle"], ["contiguous"], [torch.float32], ["attention_propagate"])[0]
    q, k, v, residual, weight, _, scale, heads = sample.arguments()
    grad = residual if weighted else torch.randn(2, v.shape[1], *q.shape[2:]).to(q)
    log_sum_exp = torch.ops.tdnet.attention_propagate_forward(q, k, v, scale=scale)[1]
    overload = getattr(torch.ops, name_space).attention_propagate_backward.default
    more = (weight if weighted else None, log_sum_exp, scale, heads)
    for grad_log_sum_exp in (None, torch.randn_like(log_sum_exp)):
        arguments = (grad, grad_log_sum_exp, q, k, v, *more)
        torch.library.opcheck(overload, arguments)


@pytest.mark.parametrize("sample", MIDDLE, ids=str)
def test_meta_tensors_give_the_shape(sample):
    arguments = samples.convert(sample.arguments(), lambda x: x.to("meta"))
    expected = samples.tensors([getattr(tdnet_ops, sample.operator)(*sample.arguments())])
    actual = samples.tensors([getattr(torch.ops.tdnet, sample.operator)(*arguments)])
    for got, right in zip(actual, expected, strict=True):
        assert got.device.type == "meta"
        assert (got.shape, got.dtype, got.stride()) == (right.shape, right.dtype, right.stride())


@pytest.mark.parametrize("route", samples.ROUTES)
@pytest.mark.parametrize("sample", FEW, ids=str)
def test_inference_mode(sample, route):
    with torch.inference_mode():
        samples.check(sample, samples.ROUTES[route](sample.operator))


@pytest.mark.parametrize("sample", MIDDLE, ids=str)
def test_no_grad_builds_no_graph(sample):
    with torch.no_grad():
        outputs = getattr(tdnet_ops, sample.operator)(*needing_gradients(sample))
    assert not any(out.requires_grad for out in samples.tensors([outputs]))


def test_labels_need_no_gradient():
    logits = torch.randn(1, 3, 4, 5, requires_grad=True)
    assert not tdnet_ops.upsample_argmax(logits, (8, 10)).requires_grad


# --- autocast -------------------------------------------------------------------------------------

MATRIX_PRODUCTS = [name for name in samples.NAMES if "allow_tf32" in samples.schema_of(name)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("route", samples.ROUTES)
@pytest.mark.parametrize(
    "sample", samples.select(["middle"], ["contiguous"], [torch.float32]), ids=str
)
def test_autocast(sample, route, dtype):
    """Matrix products run in the autocast dtype, the others in that of their input."""
    arguments = needing_gradients(sample)
    with torch.autocast(samples.DEVICE.type, dtype):
        outputs = samples.tensors([samples.ROUTES[route](sample.operator)(*arguments)])
    if sample.operator == "upsample_argmax":
        samples.assert_labels(outputs[0], arguments, str(sample))
        return
    wanted = dtype if sample.operator in MATRIX_PRODUCTS else torch.float32
    rounded = samples.convert(sample.arguments(), lambda x: x.to(wanted))
    exact = samples.tensors([getattr(reference, sample.operator)(*samples.widen(rounded))])
    for out, right in zip(outputs, exact, strict=True):
        file = f"tdnet_ops/operators/{sample.operator}.py"
        told = f"{file}: expected {wanted}, got {out.dtype}: see autocast in its record"
        assert out.dtype == wanted, told
        atol = 2 * torch.finfo(wanted).eps * max(1, right.abs().max().item())
        torch.testing.assert_close(out.double(), right, rtol=0, atol=atol)
    sum(out.float().sum() for out in outputs).backward()
    for leaf in samples.tensors(arguments):
        if leaf.numel() and leaf.grad is not None:
            assert leaf.grad.dtype == torch.float32
    assert samples.tensors(arguments)[0].grad is not None
    assert samples.tensors(arguments)[0].grad.abs().sum() > 0


@pytest.mark.parametrize("route", samples.ROUTES)
@pytest.mark.parametrize("name", samples.DIFFERENTIABLE)
def test_backward_inside_autocast_is_the_one_outside(name, route):
    sample = samples.select(["middle"], ["contiguous"], [torch.float32], [name])[0]
    found = []
    for inside in (True, False):
        arguments = needing_gradients(sample)
        with torch.autocast(samples.DEVICE.type, torch.bfloat16):
            outputs = samples.tensors([samples.ROUTES[route](name)(*arguments)])
            loss = sum(out.float().square().sum() for out in outputs)
        with torch.autocast(samples.DEVICE.type, torch.bfloat16, enabled=inside):
            loss.backward()
        found.append([x.grad for x in samples.tensors(arguments)])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("name", MATRIX_PRODUCTS)
def test_autocast_mixes_and_keywords(name):
    """Mixed dtypes are cast to one, also those given by keyword; float64 is left alone."""
    sample = samples.select(["middle"], ["contiguous"], [torch.float32], [name])[0]
    call = getattr(tdnet_ops, name)
    by_name = dict(zip(inspect.signature(call).parameters, sample.arguments(), strict=False))
    first = next(iter(by_name))
    by_name[first] = samples.convert(by_name[first], torch.Tensor.bfloat16)
    with torch.autocast(samples.DEVICE.type, torch.bfloat16):
        outputs = samples.tensors([call(**by_name)])
        wide = samples.tensors([call(*samples.widen(sample.arguments()))])
    assert all(out.dtype == torch.bfloat16 for out in outputs)
    assert all(out.dtype == torch.float64 for out in wide)


# --- repeatability --------------------------------------------------------------------------------


@pytest.mark.parametrize("route", samples.ROUTES)
@pytest.mark.parametrize("name", samples.NAMES)
def test_bitwise_the_same_every_time(name, route):
    """Across runs; the compiled kernels also for any number of threads."""
    counts = (2, 2, 2) if route == "torch.ops.tdnet_reference" else (1, 2, 2, 1)
    for sample in samples.select(None, ["contiguous", "channels_last"], [torch.float32], [name]):
        results = []
        for threads in counts:
            torch.set_num_threads(threads)
            results.append(samples.tensors([samples.ROUTES[route](name)(*sample.arguments())]))
        for again in results[1:]:
            for got, first in zip(again, results[0], strict=True):
                assert torch.equal(got, first), str(sample)


@pytest.mark.parametrize("sample", samples.select(["middle"], operators=DIFFERENTIABLE), ids=str)
def test_backward_is_bitwise_the_same_every_time(sample):
    results = []
    torch.set_num_threads(2)
    for _ in range(3):
        arguments = needing_gradients(sample)
        outputs = samples.tensors([getattr(tdnet_ops, sample.operator)(*arguments)])
        sum(out.cos().sum() for out in outputs).backward()
        results.append([x.grad for x in samples.tensors(arguments) if x.grad is not None])
    for again in results[1:]:
        assert len(again) == len(results[0]) > 0
        assert all(torch.equal(a, b) for a, b in zip(again, results[0], strict=True))


# --- compile and export ---------------------------------------------------------------------------


def compare_compiled(run, name, arguments):
    actual = samples.tensors([run(*arguments)])
    expected = samples.tensors([getattr(tdnet_ops, name)(*arguments)])
    for got, right in zip(actual, expected, strict=True):
        torch.testing.assert_close(got, right, rtol=1e-5, atol=1e-5)
        assert got.stride() == right.stride()
    inputs = [x for x in samples.tensors(arguments) if x.requires_grad and x.numel()]
    if not inputs:
        return
    grads = [
        torch.autograd.grad(sum(out.cos().sum() for out in outputs), inputs, allow_unused=True)
        for outputs in (actual, expected)
    ]
    for got, right in zip(*grads, strict=True):
        torch.testing.assert_close(got, right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "sample",
    samples.select(["middle", "no_batch"], ["contiguous", "channels_last"], [torch.float32])
    + samples.select(["middle"], ["transposed"], [torch.bfloat16]),
    ids=str,
)
def test_compile_without_graph_breaks(sample):
    function = getattr(tdnet_ops, sample.operator)
    run = torch.compile(function, fullgraph=True, backend="aot_eager")
    compare_compiled(run, sample.operator, needing_gradients(sample))


@pytest.mark.parametrize("name", samples.NAMES)
def test_compile_by_inductor(name, monkeypatch):
    """With CI set Inductor refuses an operator that it calls although torch has a decomposition."""
    monkeypatch.setenv("CI", "true")
    sample = samples.select(["middle"], ["contiguous"], [torch.float32], [name])[0]

    def function(*arguments):
        # Something to fuse on either side.
        outputs = getattr(tdnet_ops, name)(*samples.convert(arguments, lambda x: x * 1.0))
        return [out + 0 for out in samples.tensors([outputs])]

    run = torch.compile(function, fullgraph=True)
    with torch._inductor.config.patch(fx_graph_cache=False):
        compare_compiled(run, name, needing_gradients(sample))


# Different also from the channel counts: torch takes equal sizes of a first call for the same.
SIZES = [(9, 11, 8, 13), (13, 8, 12, 10), (21, 17, 14, 4), (16, 25, 12, 15), (30, 9, 19, 23)]


@pytest.mark.parametrize("name", samples.NAMES)
@pytest.mark.parametrize("dynamic", [True, None])
def test_new_sizes_do_not_recompile(name, dynamic):
    """dynamic=True compiles once; left to itself, torch compiles again at the second size only."""
    function = getattr(tdnet_ops, name)
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    allowed = 1 if dynamic else 2
    limit = {"recompile_limit": allowed, "fail_on_recompile_limit_hit": True}
    with torch._dynamo.config.patch(**limit):
        run = torch.compile(function, fullgraph=True, dynamic=dynamic, backend=counter)
        for size in SIZES:
            arguments = samples.convert(
                samples.resized(name, size[:2], size[2:]), lambda x: x.detach()
            )
            compare_compiled(run, name, arguments)
    assert counter.frame_count <= allowed


def torch_recompiles_pooling():
    """Say whether this torch compiles its own pooling again where size % stride changes."""
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")

    def pool(x):
        return torch.nn.functional.max_pool2d(x, 2, ceil_mode=True)

    run = torch.compile(pool, fullgraph=True, dynamic=True, backend=counter)
    for height, width in [(9, 11), (14, 16)]:
        run(torch.ones(2, 3, height, width, requires_grad=True))
    return counter.frame_count > 1


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_new_sizes_do_not_recompile_with_gradients(name):
    if name in ("spatial_pool", "pooled_affinity") and torch_recompiles_pooling():
        pytest.skip(
            f"torch {torch.__version__} compiles max_pool2d again, which the gradient calls"
        )
    function = getattr(tdnet_ops, name)
    with torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True):
        run = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
        for size in SIZES[:3]:
            arguments = samples.convert(
                samples.resized(name, size[:2], size[2:]), lambda x: x.detach().requires_grad_()
            )
            compare_compiled(run, name, arguments)


def test_the_recompile_limit_would_be_hit():
    """The two tests above can fail: without dynamic sizes the same calls hit the limit."""
    with torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True):
        run = torch.compile(tdnet_ops.spatial_pool, fullgraph=True, dynamic=False, backend="eager")
        run(*samples.resized("spatial_pool", (9, 11), (8, 13)))
        with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
            run(*samples.resized("spatial_pool", (13, 8), (12, 10)))


class Call(torch.nn.Module):
    """An operator on its tensors by name; what follows from their sizes is computed within."""

    def __init__(self, name, options):
        super().__init__()
        self.name, self.options = name, options

    def forward(self, maps):
        sizes = samples.OPERATORS[self.name].sizes(maps)
        return getattr(tdnet_ops, self.name)(**{**self.options, **maps, **sizes})


def export_arguments(name, size):
    """The tensors that `Call.forward` takes, and all else."""
    arguments = samples.resized(name, size[:2], size[2:])
    named = dict(zip(samples.schema_of(name), arguments, strict=False))
    maps = {key: value for key, value in named.items() if samples.tensors([value])}
    return maps, {key: value for key, value in named.items() if key not in maps}


def dynamic_sizes(x):
    """Pixels, queries and keys: no kernel, weight or placeholder."""
    if x.dim() < 3 or tuple(x.shape[2:]) == (3, 3) or (x.dim() == 3 and x.shape[0] == 36):
        return {}
    return {x.dim() - 2: torch.export.Dim.AUTO, x.dim() - 1: torch.export.Dim.AUTO}


@pytest.mark.parametrize("name", samples.NAMES)
def test_export_with_dynamic_sizes(name):
    maps, options = export_arguments(name, SIZES[0])
    dynamic = {key: samples.convert(value, dynamic_sizes) for key, value in maps.items()}
    program = torch.export.export(Call(name, options), (maps,), dynamic_shapes={"maps": dynamic})
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert f"tdnet.{name}.default" in called
    for size in SIZES:
        maps, _ = export_arguments(name, size)
        actual = samples.tensors([program.module()(maps)])
        expected = samples.tensors([Call(name, options)(maps)])
        for got, right in zip(actual, expected, strict=True):
            torch.testing.assert_close(got, right, rtol=0, atol=0)


# --- tracing and ahead-of-time packages -----------------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # torch.jit is deprecated; a size becomes a number
def test_jit_trace_of_a_size():
    def function(logits, affinity, v):
        labels = tdnet_ops.upsample_argmax(logits, (2 * logits.shape[2], 2 * logits.shape[3]))
        return labels, tdnet_ops.softmax_propagate(affinity, v, logits.shape[2:])

    arguments = torch.randn(1, 3, 4, 5), torch.randn(1, 20, 6), torch.randn(1, 2, 2, 3)
    traced = torch.jit.trace(function, arguments)
    for got, right in zip(traced(*arguments), function(*arguments), strict=True):
        torch.testing.assert_close(got, right)


class Labels(torch.nn.Module):
    def forward(self, logits):
        return tdnet_ops.upsample_argmax(logits, (8, 12)), torch.ops.tdnet.upsample_argmax(
            logits, (8, 12), True, torch.int64
        )


@pytest.mark.slow
def test_labels_in_an_ahead_of_time_package(tmp_path):
    """A default dtype in the schema was stored as an integer, which no package could read again."""
    model, logits = Labels(), torch.randn(1, 3, 4, 5)
    program = torch.export.export(model, (logits,))
    path = torch._inductor.aoti_compile_and_package(
        program, package_path=str(tmp_path / "labels.pt2")
    )
    run = torch._inductor.aoti_load_package(path)
    for labels, right in zip(run(logits), model(logits), strict=True):
        assert torch.equal(labels, right)
