"""Choosing a backend by device, argument or context; in backward passes, threads, compiled code."""

import shutil
import subprocess
import sys
import threading
import types

import pytest
import samples
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import tdnet_ops
from tdnet_ops import _library, backends
from tdnet_ops.operators import OPERATORS

DIFFERENTIABLE = samples.DIFFERENTIABLE


@pytest.fixture(autouse=True)
def _samples_on_the_cpu(monkeypatch):
    """What CPU tensors get, whatever --device says; tests/device/ asks the like of a GPU."""
    monkeypatch.setattr(samples, "DEVICE", torch.device("cpu"))


class Called(TorchDispatchMode):
    """Records which of our operators run, by name space."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace.startswith("tdnet"):
            self.names.append(f"{func.namespace}.{func._opname}")
        return func(*args, **(kwargs or {}))


def sample_of(name, dtype=torch.float32):
    return samples.select(["middle"], ["contiguous"], [dtype], [name])[0]


def space_of(backend, operator):
    """Where an operator runs under a backend, which may lack a kernel of a backward pass."""
    has = backend == "cpu" and backends.has_kernel(backend, operator)
    return "tdnet" if has else "tdnet_reference"


def called(function):
    with Called() as record:
        function()
    return record.names


def test_the_device_chooses():
    q = torch.randn(1, 4, 5, 6)
    assert called(lambda: tdnet_ops.spatial_pool(q, 2)) == ["tdnet.spatial_pool"]
    wide = called(lambda: tdnet_ops.spatial_pool(q.double(), 2))
    assert wide == ["tdnet_reference.spatial_pool"]
    meta = called(lambda: tdnet_ops.spatial_pool(q.to("meta"), 2))
    assert meta == ["tdnet_reference.spatial_pool"]


@pytest.mark.parametrize("name", samples.NAMES)
def test_argument_and_context_force(name):
    arguments = sample_of(name).arguments()
    function = getattr(tdnet_ops, name)

    def within(context, **named):
        with tdnet_ops.backend(context):
            function(*arguments, **named)

    ours, plain = [f"tdnet.{name}"], [f"tdnet_reference.{name}"]
    assert called(lambda: function(*arguments)) == ours
    assert called(lambda: function(*arguments, backend="cpu")) == ours
    assert called(lambda: function(*arguments, backend="reference")) == plain
    assert called(lambda: within("reference")) == plain
    assert called(lambda: within("cpu")) == ours
    # The nearer one wins.
    assert called(lambda: within("reference", backend="cpu")) == ours
    assert called(lambda: within("cpu", backend="reference")) == plain


def test_contexts_nest_and_end_on_errors():
    x = torch.randn(1, 1, 2, 2)
    call = lambda: tdnet_ops.spatial_pool(x, 1)  # noqa: E731
    with tdnet_ops.backend("reference"):
        with tdnet_ops.backend("cpu"):
            assert called(call) == ["tdnet.spatial_pool"]
        assert called(call) == ["tdnet_reference.spatial_pool"]
    with pytest.raises(KeyError), tdnet_ops.backend("reference"):
        raise KeyError
    assert called(call) == ["tdnet.spatial_pool"]


@pytest.mark.parametrize("forced", ["cpu", "reference"])
def test_forced_backend_holds_in_the_backward_pass(forced):
    """The backward pass runs after the context has ended; attention's is an operator of its own."""
    space = space_of(forced, "attention_propagate_backward")
    arguments = samples.convert(
        sample_of("attention_propagate").arguments(), lambda x: x.requires_grad_()
    )
    with tdnet_ops.backend(forced):
        loss = tdnet_ops.attention_propagate(*arguments).sum()
    # A forced backend of the thread that runs the backward pass must not matter either.
    other = "reference" if forced == "cpu" else "cpu"
    with tdnet_ops.backend(other), Called() as record:
        loss.backward()
    assert record.names == [f"{space}.attention_propagate_backward"]


@pytest.mark.parametrize("forced", ["cpu", "reference"])
def test_forced_backend_holds_in_the_pooling_of_the_backward_pass(forced):
    space = {"cpu": "tdnet", "reference": "tdnet_reference"}[forced]
    q, k = torch.randn(1, 3, 4, 5, requires_grad=True), torch.randn(1, 3, 4, 5, requires_grad=True)
    loss = tdnet_ops.pooled_affinity(q, k, 2, backend=forced).sum()
    assert called(loss.backward) == [f"{space}.spatial_pool"]


def test_forced_backend_holds_in_a_backward_pass_of_another_thread():
    q = torch.randn(1, 3, 4, 5, requires_grad=True)
    with tdnet_ops.backend("reference"):
        loss = tdnet_ops.attention_propagate(q, q, q).sum()
    names = []
    thread = threading.Thread(target=lambda: names.extend(called(loss.backward)))
    thread.start()
    thread.join()
    assert names == ["tdnet_reference.attention_propagate_backward"]
    assert q.grad is not None


def test_one_thread_does_not_force_another():
    x = torch.randn(1, 1, 2, 2)
    inside, done = threading.Event(), threading.Event()
    seen = {}

    def forcing():
        with tdnet_ops.backend("reference"):
            inside.set()
            done.wait()
            seen["forcing"] = called(lambda: tdnet_ops.spatial_pool(x, 1))

    thread = threading.Thread(target=forcing)
    thread.start()
    inside.wait()
    seen["other"] = called(lambda: tdnet_ops.spatial_pool(x, 1))
    done.set()
    thread.join()
    assert seen == {"forcing": ["tdnet_reference.spatial_pool"], "other": ["tdnet.spatial_pool"]}

    def starting():
        seen["started"] = called(lambda: tdnet_ops.spatial_pool(x, 1))

    with tdnet_ops.backend("reference"):
        thread = threading.Thread(target=starting)
        thread.start()
        thread.join()
    assert seen["started"] == ["tdnet.spatial_pool"]


class Graphs:
    """A torch.compile backend that keeps the operators of the forward and backward graphs."""

    def __init__(self):
        self.names = []

    def __call__(self, graph, inputs):
        from functorch.compile import make_boxed_func
        from torch._dynamo.backends.common import aot_autograd

        def keep(aot_graph, _):
            self.names += [
                str(node.target).removesuffix(".default")
                for node in aot_graph.graph.nodes
                if node.op == "call_function" and str(node.target).startswith("tdnet")
            ]
            return make_boxed_func(aot_graph.forward)

        return aot_autograd(fw_compiler=keep, bw_compiler=keep)(graph, inputs)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_forcing_after_compiling_takes_effect(name):
    graphs = Graphs()
    run = torch.compile(getattr(tdnet_ops, name), fullgraph=True, backend=graphs)
    arguments = samples.convert(sample_of(name).arguments(), lambda x: x.detach().requires_grad_())

    def names(forced):
        graphs.names.clear()
        if forced is None:
            outputs = run(*arguments)
        else:
            with tdnet_ops.backend(forced):
                outputs = run(*arguments)
        sum(out.sum() for out in samples.tensors([outputs])).backward()
        # Of a backward operator the backend may have no kernel.
        forward = [name for name in graphs.names if not name.endswith("_backward")]
        return {name.partition(".")[0] for name in forward}

    assert names(None) == {"tdnet"}
    assert names("reference") == {"tdnet_reference"}
    # Both are compiled by now: nothing new is.
    assert names(None) == set()
    assert names("reference") == set()
    assert names("cpu") == {"tdnet"}


def test_what_a_compiled_function_runs_follows_the_context():
    """By the operators that run, not by the graphs that were compiled."""
    q = torch.randn(1, 3, 4, 5)
    run = torch.compile(tdnet_ops.attention_propagate, fullgraph=True, backend="eager")
    run(q, q, q)
    with tdnet_ops.backend("reference"):
        run(q, q, q)
    seen = []
    for forced in ("cpu", "reference", "cpu", "reference"):
        with tdnet_ops.backend(forced):
            kernel = run(q, q, q)
            exact = tdnet_ops.attention_propagate(q, q, q, backend=forced)
        seen.append(kernel)
        assert torch.equal(kernel, exact)
    # The two sum in another order, so their results tell which one ran.
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[2])


def test_context_inside_a_compiled_function():
    graphs = Graphs()

    def function(x):
        with tdnet_ops.backend("reference"):
            inner = tdnet_ops.spatial_pool(x, 2)
        return inner, tdnet_ops.spatial_pool(x, 3)

    run = torch.compile(function, fullgraph=True, backend=graphs)
    x = torch.randn(1, 2, 5, 6)
    for got, right in zip(run(x), function(x), strict=True):
        assert torch.equal(got, right)
    assert graphs.names == ["tdnet_reference.spatial_pool", "tdnet.spatial_pool"]
    assert called(lambda: tdnet_ops.spatial_pool(x, 2)) == ["tdnet.spatial_pool"]


def test_threads_share_a_compiled_function():
    q = torch.randn(1, 3, 4, 5)
    run = torch.compile(tdnet_ops.attention_propagate, fullgraph=True, backend="eager")
    run(q, q, q)
    results = {}
    with tdnet_ops.backend("reference"):
        results["here"] = run(q, q, q)
        thread = threading.Thread(target=lambda: results.update(there=run(q, q, q)))
        thread.start()
        thread.join()
    assert torch.equal(results["here"], tdnet_ops.attention_propagate(q, q, q, backend="reference"))
    assert torch.equal(results["there"], tdnet_ops.attention_propagate(q, q, q))


@pytest.mark.parametrize("name", samples.NAMES)
def test_refusal_names_the_reason(name):
    function = getattr(tdnet_ops, name)
    wide = sample_of(name, torch.float64).arguments()
    with pytest.raises(RuntimeError, match=rf"'cpu' cannot run {name}.*float64"):
        function(*wide, backend="cpu")
    with (
        pytest.raises(RuntimeError, match=rf"'cpu' cannot run {name}.*float64"),
        tdnet_ops.backend("cpu"),
    ):
        function(*wide)
    narrow = sample_of(name).arguments()
    with pytest.raises(RuntimeError, match=rf"'cuda' cannot run {name}.*(CUDA|cuda)"):
        function(*narrow, backend="cuda")
    with pytest.raises(RuntimeError, match=rf"'cpu' cannot run {name}.*meta"):
        function(*samples.convert(narrow, lambda x: x.to("meta")), backend="cpu")
    with pytest.raises(ValueError, match=r"backend.*'fastest'"):
        function(*narrow, backend="fastest")


def test_unknown_backend_in_a_context():
    with pytest.raises(ValueError, match=r"backend.*'fastest'"), tdnet_ops.backend("fastest"):
        pass
    with pytest.raises((ValueError, TypeError), match=r"backend.*3"), tdnet_ops.backend(3):
        pass


@pytest.mark.parametrize(
    ("architectures", "capability", "expected"),
    [
        ("8.0;9.0", (8, 0), True),
        ("8.0;9.0", (8, 6), True),
        ("8.6", (8, 0), False),
        ("8.0;9.0", (7, 5), False),
        ("8.0;9.0", (10, 0), False),
        ("8.0;9.0+PTX", (12, 0), True),
        ("9.0a", (9, 0), True),
        ("9.0a+PTX", (10, 0), False),
        ("10.0f", (10, 3), True),
        ("", (9, 0), False),
    ],
)
def test_which_gpus_the_compiled_architectures_serve(architectures, capability, expected):
    assert backends.serves(architectures, capability) is expected


def look_again():
    """Forgets what was found on the machine, because a test has changed it."""
    backends._why_not.cache_clear()
    backends._first.cache_clear()


def set_capability(monkeypatch, capability):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    look_again()


def test_an_older_gpu_is_refused_with_the_ways_that_remain(gpu):
    gpu.setattr(_library, "CUDA_ARCHITECTURES", "8.0;9.0+PTX")
    set_capability(gpu, (7, 5))
    reason = why_not("cuda")
    assert reason is not None
    assert all(part in reason for part in ("8.0;9.0+PTX", "7.5", "Triton", "reference"))
    set_capability(gpu, (8, 9))
    assert why_not("cuda") is None


# --- Triton, as far as a machine without a GPU can tell -------------------------------------------


@pytest.fixture
def gpu(monkeypatch):
    """A machine with GPUs of all kinds and a C compiler, and a library for no CUDA device."""
    monkeypatch.setattr(_library, "CUDA_ARCHITECTURES", "")
    monkeypatch.setattr(backends, "has_kernel", lambda name, operator: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.xpu, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.delenv("CC", raising=False)
    look_again()
    yield monkeypatch
    look_again()


def chosen(device, dtype=torch.float32, forced=None):
    like = types.SimpleNamespace(device=torch.device(device), dtype=dtype)
    return backends.choose(OPERATORS["spatial_pool"], like, (), forced)


def why_not(name, device="cuda"):
    return backends.why_unavailable(name, "spatial_pool", torch.device(device), torch.float32)


def test_compiled_cuda_comes_before_triton(gpu):
    gpu.setattr(_library, "CUDA_ARCHITECTURES", "8.0")
    set_capability(gpu, (8, 0))
    assert chosen("cuda") == "cuda"
    with tdnet_ops.backend("triton"):
        assert chosen("cuda") == "triton"
    set_capability(gpu, (7, 5))
    assert chosen("cuda") == "triton"


def test_the_machine_is_asked_once(gpu):
    """Each question costs microseconds on a GPU."""
    asked = []
    gpu.setattr(_library, "CUDA_ARCHITECTURES", "8.0")
    gpu.setattr(torch.cuda, "is_available", lambda: asked.append("available") or True)
    gpu.setattr(
        torch.cuda, "get_device_capability", lambda device: asked.append(str(device)) or (8, 0)
    )
    for forced in (None, "cuda"):
        for device in ("cuda:0", "cuda:1", "cuda:0"):
            chosen(device, forced=forced)
    assert asked == ["available", "cuda:0", "available", "cuda:1"]


def test_without_compiled_kernels_triton_serves_the_gpu(gpu):
    """As from a wheel built with TDNET_CUDA=0, on a machine without nvcc."""
    assert chosen("cuda") == "triton"
    assert chosen("cuda", torch.float64) == "reference"
    assert chosen("cpu") == "cpu"
    assert tdnet_ops.build_info()["backends"]["triton"] == "ready"


def test_triton_is_first_on_rocm_and_xpu(gpu):
    gpu.setattr(_library, "CUDA_ARCHITECTURES", "8.0;9.0+PTX")
    gpu.setattr(torch.version, "hip", "7.0")
    assert backends.preference("cuda") == ("triton", "reference")
    assert chosen("cuda") == "triton"
    assert chosen("xpu") == "triton"


def test_what_cuda_lacks_runs_on_triton_in_the_backward_pass_too(gpu):
    """By the same predicate: the forward pass on the compiled kernels, the backward on Triton's."""
    lacking = {"attention_propagate_backward"}
    gpu.setattr(_library, "CUDA_ARCHITECTURES", "8.0;9.0+PTX")
    gpu.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    gpu.setattr(backends, "has_kernel", lambda name, op: name != "cuda" or op not in lacking)
    look_again()
    device = torch.device("cuda")
    with FakeTensorMode():
        grad = torch.empty(1, 2, 3, 4, device=device)
        backward = OPERATORS["attention_propagate_backward"]
        assert backends.operators_like("tdnet", backward, [grad]) is torch.ops.tdnet_triton
        pool = OPERATORS["spatial_pool"]
        assert backends.operators_like("tdnet", pool, [grad]) is torch.ops.tdnet
        wide = grad.double()
        assert backends.operators_like("tdnet", backward, [wide]) is torch.ops.tdnet_reference
        with pytest.raises(RuntimeError, match="cannot run attention_propagate_backward: it has"):
            backends.choose(backward, grad, (), "cuda")


def test_a_limit_of_a_kernel_is_a_refusal(gpu):
    gpu.setattr(_library, "CUDA_ARCHITECTURES", "8.0;9.0+PTX")
    gpu.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    look_again()
    update, most = OPERATORS["block_sum_update"], _library.CUDA_MOST_PARTIALS
    with FakeTensorMode():
        x = torch.empty(1, 2, 3, 4, device="cuda")
        call = lambda count: ([x] * count, 0, x, x, None, 0, 1, "none")  # noqa: E731
        assert backends.choose(update, x, call(most), None) == "cuda"
        assert backends.choose(update, x, call(most + 1), None) == "triton"
        with pytest.raises(RuntimeError, match=f"at most {most}, as many .*, got {most + 1}"):
            backends.choose(update, x, call(most + 1), "cuda")


def test_what_kernels_cannot_count_is_refused(gpu):
    gpu.setattr(_library, "CUDA_ARCHITECTURES", "8.0;9.0+PTX")
    gpu.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    look_again()
    pool = OPERATORS["spatial_pool"]
    with FakeTensorMode():
        for size, expected in (
            ((1, 8, 2**15, 2**15), "cuda"),  # many numbers, fewer pixels
            ((1, 1, 2**15, 2**16), "triton"),
            ((1, 2**31, 1, 1), "triton"),
        ):
            x = torch.empty(size, dtype=torch.float16, device="cuda")
            assert backends.choose(pool, x, (x, 2, "max"), None) == expected
        with pytest.raises(RuntimeError, match=r"cannot run spatial_pool: its kernels count to"):
            backends.choose(pool, x, (x, 2, "max"), "cuda")


def test_triton_without_a_c_compiler_is_refused(gpu):
    gpu.setattr(shutil, "which", lambda name: None)
    assert chosen("cuda") == "reference"
    with pytest.raises(RuntimeError, match=r"'triton' cannot run spatial_pool: .*C compiler.*gcc"):
        chosen("cuda", forced="triton")
    look_again()
    gpu.setenv("CC", "nowhere-cc")
    reason = why_not("triton")
    assert "CC=nowhere-cc" in reason


def test_triton_refuses_what_it_cannot_run(gpu):
    refused = {
        "cpu": "cuda or xpu tensors, got cpu",
        "meta": "cuda or xpu tensors, got meta",
    }
    for device, reason in refused.items():
        assert reason in why_not("triton", device)
    x = torch.randn(1, 2, 3, 4)
    with pytest.raises(RuntimeError, match=r"'triton' cannot run spatial_pool: .*got cpu"):
        torch.ops.tdnet_triton.spatial_pool(x, 2)
    with pytest.raises(RuntimeError, match=r"'triton' cannot run spatial_pool: .*got cpu"):
        tdnet_ops.spatial_pool(x, 2, backend="triton")
    look_again()
    gpu.setitem(sys.modules, "triton", None)
    assert "cannot be imported" in why_not("triton")


def test_build_info_says_what_can_run():
    info = tdnet_ops.build_info()
    assert info["backends"]["reference"] == "ready"
    assert info["backends"]["cpu"] == "ready"
    if not torch.cuda.is_available():
        assert info["backends"]["cuda"] != "ready"
    assert info["cpu"]["in_use"] in info["cpu"]["compiled"]
    assert info["version"] == tdnet_ops.__version__
    assert info["torch"] == torch.__version__


def test_importing_loads_nothing_slow(tmp_path):
    """Each of these costs from a tenth of a second to more than torch itself."""
    program = """
import sys, torch
before = set(sys.modules)
import tdnet_ops
slow = {"torch._dynamo", "torch._inductor", "torch.onnx", "sympy", "triton", "numpy"}
print(sorted(slow & (set(sys.modules) - before)))
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("version", "found"), [("3.2.0", "3.2.0"), (None, "a folder of that name")]
)
def test_a_triton_that_is_too_old_is_no_backend(monkeypatch, version, found):
    old = types.ModuleType("triton")
    if version is not None:
        old.__version__ = version
    monkeypatch.setitem(sys.modules, "triton", old)
    assert backends._why_not_triton("cuda") == f"a newer Triton is needed, found {found}"
