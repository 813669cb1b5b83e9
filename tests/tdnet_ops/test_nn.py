"""Modules of tdnet_ops.nn against the same in plain PyTorch."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tdnet_ops
from tdnet_ops.nn import AttentionPropagation, BlockSumConv2d, MemoryRead, NonLocal2d

POOLS = {
    "max": lambda x, n: F.max_pool2d(x, n, ceil_mode=True),
    "subsample": lambda x, n: x[:, :, ::n, ::n],
    "floor_max": F.max_pool2d,
    "average": F.avg_pool2d,
}


def plain(module, x, context=None):
    """The equation of AttentionPropagation, each submodule called as it is."""
    context = x if context is None else context

    def split(y):  # [B, heads * C, H, W] -> [B, heads, C, N]
        return y.flatten(2).unflatten(1, (module.heads, -1))

    q = split(module.query(x))
    k, v = (
        split(POOLS[module.pooling](project(context), module.stride))
        for project in (module.key, module.value)
    )
    scale = q.shape[2] ** -0.5 if module.scale is None else module.scale
    affinity = (q.transpose(2, 3) @ k * scale).softmax(-1)
    out = (v @ affinity.transpose(2, 3)).flatten(1, 2).unflatten(2, x.shape[2:])
    out = module.phi(out)
    out = out if module.norm is None else module.norm(out)
    return x + (out if module.residual_scale is None else out * module.residual_scale)


def randomised(module):
    """Parameters and running statistics that hide nothing, as zeros and ones would."""
    for x in [*module.parameters(), *module.buffers()]:
        if x.is_floating_point():
            nn.init.uniform_(x, 0.2, 1.2)
            x.data *= 1 - 2 * torch.bernoulli(torch.full_like(x, 0.5))
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d) and part.running_var is not None:
            part.running_var.abs_()
    return module


class Doubled(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


def make(**options):
    return randomised(AttentionPropagation(8, 6, 10, dtype=torch.float64, **options))


def batch_norm(**options):
    return nn.BatchNorm2d(8, dtype=torch.float64, **options)


def assert_same(module, right, call, inputs, **tolerance):
    """Outputs, gradients of inputs and parameters, and buffers of two modules."""
    leaves = [x for x in inputs if x.requires_grad]
    out, expected = call(module), right(*inputs)
    torch.testing.assert_close(out, expected, **tolerance)
    grad = torch.randn_like(out)
    wanted = dict(right.module.named_parameters())
    found = torch.autograd.grad(out, [*leaves, *module.parameters()], grad)
    for got, of in zip(
        found, torch.autograd.grad(expected, [*leaves, *wanted.values()], grad), strict=True
    ):
        torch.testing.assert_close(got, of, **tolerance)
    for (name, got), (_, of) in zip(
        module.named_buffers(), right.module.named_buffers(), strict=True
    ):
        torch.testing.assert_close(got, of, **tolerance, msg=lambda text, name=name: name + text)


class Plain:
    """The equation with a copy of the module's parts."""

    def __init__(self, module):
        self.module = copy.deepcopy(module)

    def __call__(self, *inputs):
        return plain(self.module, *inputs)


def check(module, *inputs, **tolerance):
    assert_same(module, Plain(module), lambda m: m(*inputs), inputs, **tolerance)


def maps(*shape, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, requires_grad=True)


OPTIONS = {
    "bare": lambda: make(),
    "heads": lambda: make(heads=2),
    "scale": lambda: make(scale=0.3),
    "norm": lambda: make(norm=batch_norm()),
    "norm without affine": lambda: make(norm=batch_norm(affine=False)),
    "norm without statistics": lambda: make(norm=batch_norm(track_running_stats=False)),
    "other norm": lambda: make(norm=nn.GroupNorm(2, 8, dtype=torch.float64)),
    "learned scale": lambda: make(residual_scale=0.0),
    "norm and scale": lambda: make(norm=batch_norm(), residual_scale=0.5, heads=2),
    "other norm and scale": lambda: make(
        norm=nn.GroupNorm(2, 8, dtype=torch.float64), residual_scale=1
    ),
    "phi without bias": lambda: make(
        phi=nn.Conv2d(10, 8, 1, bias=False, dtype=torch.float64),
        norm=batch_norm(),
        residual_scale=1.0,
    ),
    "phi of 3x3": lambda: make(
        phi=nn.Conv2d(10, 8, 3, padding=1, dtype=torch.float64), norm=batch_norm()
    ),
    "grouped phi": lambda: make(phi=nn.Conv2d(10, 8, 1, groups=2, dtype=torch.float64)),
    "several layers": lambda: make(
        phi=nn.Sequential(nn.Conv2d(10, 8, 1, dtype=torch.float64), nn.ReLU())
    ),
    "no phi": lambda: randomised(
        AttentionPropagation(
            8,
            6,
            8,
            phi=nn.Identity(),
            norm=batch_norm(),
            residual_scale=0.5,
            dtype=torch.float64,
        )
    ),
    "given projections": lambda: make(
        query=nn.Conv2d(8, 6, 3, padding=1, dtype=torch.float64),
        key=nn.Sequential(nn.Conv2d(8, 6, 1, dtype=torch.float64), nn.BatchNorm2d(6).double()),
        value=nn.Conv2d(8, 10, 1, bias=False, dtype=torch.float64),
        norm=batch_norm(),
    ),
    **{f"{mode} pooling": lambda mode=mode: make(stride=2, pooling=mode) for mode in POOLS},
    "pooling of 3x3": lambda: make(
        stride=2,
        pooling="subsample",
        key=nn.Conv2d(8, 6, 3, dtype=torch.float64),
        value=nn.Conv2d(8, 10, 3, dtype=torch.float64),
    ),
    "pooling of strides": lambda: make(
        stride=2,
        pooling="average",
        key=nn.Conv2d(8, 6, 1, stride=2, dtype=torch.float64),
        value=nn.Conv2d(8, 10, 1, stride=2, dtype=torch.float64),
    ),
    "phi of another kind": lambda: make(phi=Doubled(10, 8, 1, dtype=torch.float64)),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", OPTIONS)
def test_attention_propagation(name, training):
    module = OPTIONS[name]().train(training)
    check(module, maps(2, 8, 5, 7))
    check(module, maps(1, 8, 3, 4), maps(1, 8, 5, 6))


def test_a_frozen_norm_in_training():
    module = make(norm=batch_norm(), residual_scale=0.5).train()
    module.norm.eval()
    before = module.norm.running_mean.clone()
    check(module, maps(2, 8, 5, 7))
    torch.testing.assert_close(module.norm.running_mean, before, rtol=0, atol=0)


def test_a_norm_in_training_within_eval():
    module = make(norm=batch_norm(), residual_scale=0.5).eval()
    module.norm.train()
    check(module, maps(2, 8, 5, 7))


@pytest.mark.parametrize("norm", [None, "batch norm"])
def test_folded_in_eval_alone(norm, monkeypatch):
    """What the operator gets: in training phi's own weight, a frozen norm or not; no residual."""
    seen = []

    def attention_propagate(q, k, v, residual, weight, *others):
        seen.append((residual is x, torch.equal(weight, module.phi.weight[:, :, 0, 0])))
        return tdnet_ops.attention_propagate(q, k, v, residual, weight, *others)

    monkeypatch.setattr(tdnet_ops.nn, "attention_propagate", attention_propagate)
    module, x = make(norm=norm and batch_norm(), residual_scale=0.5), maps(2, 8, 5, 7)
    module.train()(x)
    if norm:
        module.norm.eval()
        module(x)
        assert seen.pop() == (False, True)
    module.eval()(x)
    assert seen == [(False, True), (True, False)]


def test_hooks_on_phi_run():
    for training in (True, False):
        module = make(norm=batch_norm()).train(training)
        called = []
        for part in (module.norm, module.phi):
            part.register_forward_hook(lambda m, *_, to=called: to.append(type(m).__name__))
        module(maps(2, 8, 5, 7))
        assert called == ["Conv2d", "BatchNorm2d"]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "spectral_norm", [nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm]
)
@pytest.mark.parametrize("training", [True, False])
def test_spectral_norm(spectral_norm, training):
    """Whose weight is computed anew in every call, once."""

    def made():
        torch.manual_seed(1)
        module = make(residual_scale=0.5).train(training)
        for name in ("query", "key", "value", "phi"):
            setattr(module, name, spectral_norm(getattr(module, name)))
        return module

    module, twin, x = made(), made(), torch.randn(2, 8, 5, 7, dtype=torch.float64)
    for _ in range(2):
        torch.testing.assert_close(module(x), plain(twin, x))
        torch.testing.assert_close(module.state_dict(), twin.state_dict())
        for parameter in [*module.parameters(), *twin.parameters()]:
            parameter.data[0] += 0.3


def test_the_residual_keeps_its_precision_under_autocast():
    """A sum in float32 where x is float32, as in plain PyTorch; bfloat16 where x is."""
    module = AttentionPropagation(8, 6, 10, residual_scale=0.5)
    nn.init.zeros_(module.phi.weight)
    nn.init.zeros_(module.phi.bias)
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(2, 8, 5, 7).to(dtype)
        for training in (True, False):
            with torch.autocast("cpu", torch.bfloat16):
                out = module.train(training)(x)
            torch.testing.assert_close(out, x, rtol=0, atol=0)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["bare", "norm and scale", "no phi", "max pooling"])
def test_autocast(name, training):
    """As near to float64 as plain PyTorch is, twice."""
    module = OPTIONS[name]().train(training)
    x = maps(2, 8, 5, 7)
    exact, low = copy.deepcopy(module), copy.deepcopy(module).float()
    leaves = [x.detach().float().requires_grad_() for _ in range(2)]
    twin = copy.deepcopy(low)
    with torch.autocast("cpu", torch.bfloat16):
        out, rough = low(leaves[0]), plain(twin, leaves[1])
    right = plain(exact, x)
    assert out.dtype == rough.dtype
    grad = torch.randn_like(right)
    results = []
    for result, leaf, m in ((out, leaves[0], low), (rough, leaves[1], twin), (right, x, exact)):
        found = torch.autograd.grad(result, [leaf, *m.parameters()], grad.to(result.dtype))
        results.append([y.double() for y in (result, *found)])
    for got, plain_one, of in zip(*results, strict=True):
        allowed = 2 * (plain_one - of).abs().max() + 0.02 * of.abs().max() + 1e-3
        assert (got - of).abs().max() <= allowed


@pytest.mark.parametrize("training", [True, False])
def test_half_precision_modules(training):
    module = make(norm=batch_norm(), residual_scale=0.5).train(training)
    x = torch.randn(2, 8, 5, 7, dtype=torch.float64)
    right = plain(copy.deepcopy(module), x)
    out = module.to(torch.bfloat16)(x.to(torch.bfloat16))
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), right, rtol=0.05, atol=0.05 * right.abs().max().item())


def test_channels_last():
    module = make(norm=batch_norm(), residual_scale=0.5, stride=2)
    module = module.to(memory_format=torch.channels_last)
    x = maps(2, 8, 5, 7).contiguous(memory_format=torch.channels_last)
    for training in (True, False):
        out = module.train(training)(x)
        assert out.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(out, plain(copy.deepcopy(module), x))


# --- NonLocal2d -----------------------------------------------------------------------------------


def non_local(module, x, mode, sub_sample, scale):
    """Wang et al. with PyTorch's own pooling."""
    theta, k = (x, x) if mode == "gaussian" else (module.query(x), module.key(x))
    g = module.value(x)
    if sub_sample:
        k, g = F.max_pool2d(k, 2), F.max_pool2d(g, 2)
    scale = theta.shape[1] ** -0.5 if scale is None else scale
    weights = (theta.flatten(2).transpose(1, 2) @ k.flatten(2) * scale).softmax(-1)
    y = (weights @ g.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, x.shape[2:])
    y = module.phi(y)
    return x + (y if module.norm is None else module.norm(y))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mode", ["embedded_gaussian", "gaussian"])
@pytest.mark.parametrize("sub_sample", [False, True])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("scale", [1.0, None])
def test_non_local(mode, sub_sample, norm, scale, training):
    options = {"sub_sample": sub_sample, "norm": norm, "scale": scale}
    module = NonLocal2d(8, None, mode, **options, dtype=torch.float64).train(training)
    x = maps(2, 8, 5, 7)
    torch.testing.assert_close(module(x), x)  # it begins as the identity
    randomised(module)
    right = Plain(module)

    def written_out(x):
        return non_local(right.module, x, mode, sub_sample, scale)

    written_out.module = right.module
    assert_same(module, written_out, lambda m: m(x), [x])


# --- MemoryRead -----------------------------------------------------------------------------------


@pytest.mark.parametrize("similarity", ["dot", "l2"])
@pytest.mark.parametrize("top_k", [None, 7])
@pytest.mark.parametrize("scale", [None, 0.8])
@pytest.mark.parametrize("objects", [1, 3])
def test_memory_read(similarity, top_k, scale, objects):
    """As STCN: one query and one memory of keys, values of each object."""
    leaves = [maps(1, 6, 4, 5), maps(1, 6, 3, 2, 5), maps(objects, 9, 3, 2, 5)]
    q, k, v = (x.flatten(2) for x in leaves)
    logits = k.transpose(1, 2) @ q  # [B, M, N]
    if similarity == "l2":
        logits = -(k[:, :, :, None] - q[:, :, None]).square().sum(1)
    logits = logits * (6**-0.5 if scale is None else scale)
    if top_k is not None:
        values, indices = logits.topk(top_k, 1)
        logits = torch.full_like(logits, -float("inf")).scatter(1, indices, values)
    right = (v @ logits.softmax(1)).unflatten(2, (4, 5))
    out = MemoryRead(similarity, top_k, scale)(*leaves)
    torch.testing.assert_close(out, right)
    grad = torch.randn_like(out)
    found = torch.autograd.grad(out, leaves, grad)
    for got, wanted in zip(found, torch.autograd.grad(right, leaves, grad), strict=True):
        torch.testing.assert_close(got, wanted)


# --- BlockSumConv2d -------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"padding": 2, "dilation": 2}, {"bias": False}], ids=str)
@pytest.mark.parametrize("kernel_size", [1, 3])
@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_block_sum(kernel_size, options, activation, channels_last):
    """nn.Conv2d of the concatenation, with whose first values it begins."""
    torch.manual_seed(3)
    conv = nn.Conv2d(9, 7, kernel_size, **options, dtype=torch.float64)
    torch.manual_seed(3)
    module = BlockSumConv2d(
        [2, 3, 4], 7, kernel_size, activation=activation, **options, dtype=torch.float64
    )
    torch.testing.assert_close(module.state_dict(), conv.state_dict(), rtol=0, atol=0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    module = module.to(memory_format=layout)
    blocks = [maps(2, c, 5, 7) for c in (2, 3, 4)]
    given = [x.to(memory_format=layout) for x in blocks]
    right, out = conv(torch.cat(given, 1)), module(given)
    right = right.relu() if activation == "relu" else right
    torch.testing.assert_close(out, right)
    assert out.is_contiguous(memory_format=layout)
    grad = torch.randn_like(out)
    found = torch.autograd.grad(out, [*blocks, *module.parameters()], grad)
    wanted = torch.autograd.grad(right, [*blocks, *conv.parameters()], grad)
    for got, of in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, of)


def test_block_sum_under_autocast():
    module, blocks = BlockSumConv2d([2, 3], 7), [torch.randn(2, c, 5, 7) for c in (2, 3)]
    with torch.autocast("cpu", torch.bfloat16):
        out = module(blocks)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), module(blocks), rtol=0.05, atol=0.05)


# --- as users of torch.nn expect ------------------------------------------------------------------


def small(shape, dtype=torch.float32):
    return torch.randn(shape, dtype=dtype, requires_grad=True)


MODULES = {
    "AttentionPropagation": (
        lambda **where: AttentionPropagation(
            8,
            6,
            10,
            heads=2,
            stride=2,
            norm=nn.BatchNorm2d(8, **where),
            residual_scale=0.5,
            **where,
        ),
        lambda: (small((2, 8, 5, 7)),),
    ),
    "NonLocal2d": (
        lambda **where: NonLocal2d(8, sub_sample=True, **where),
        lambda: (small((2, 8, 5, 7)),),
    ),
    "MemoryRead": (
        lambda **_: MemoryRead("l2", 3),
        lambda: (small((1, 6, 3, 4)), small((1, 6, 2, 3, 2)), small((2, 5, 2, 3, 2))),
    ),
    "BlockSumConv2d": (
        lambda **where: BlockSumConv2d([2, 3], 7, 3, padding=1, activation="relu", **where),
        lambda: ([small((2, 2, 5, 7)), small((2, 3, 5, 7))],),
    ),
}
of_every_module = pytest.mark.parametrize("name", MODULES)


def test_every_module_is_listed():
    assert sorted(MODULES) == sorted(tdnet_ops.nn.__all__)


@of_every_module
@pytest.mark.parametrize("training", [True, False])
def test_compiled_in_one_graph(name, training):
    made, inputs = MODULES[name]
    module, inputs = randomised(made()).train(training), inputs()
    twin = copy.deepcopy(module)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    out, right = compiled(*inputs), module(*inputs)
    torch.testing.assert_close(out, right)
    leaves = torch.utils._pytree.tree_leaves(inputs)
    found = torch.autograd.grad(out.sum(), [*leaves, *twin.parameters()])
    wanted = torch.autograd.grad(right.sum(), [*leaves, *module.parameters()])
    for got, of in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, of, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(twin.state_dict(), module.state_dict())


def pickled(module):
    return pickle.loads(pickle.dumps(module))


def saved(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def from_state_dict(module):
    other = next(made for made, _ in MODULES.values() if type(made()) is type(module))()
    other.load_state_dict(module.state_dict())
    return other


@of_every_module
@pytest.mark.parametrize("copied", [copy.deepcopy, pickled, saved, from_state_dict])
def test_copies(name, copied):
    made, inputs = MODULES[name]
    module, inputs = randomised(made()).eval(), inputs()
    other = copied(module).eval()
    torch.testing.assert_close(other(*inputs), module(*inputs), rtol=0, atol=0)
    ours = {x.data_ptr() for x in module.parameters()}
    assert ours.isdisjoint(x.data_ptr() for x in other.parameters())
    assert repr(other) == repr(module)


@of_every_module
def test_device_and_dtype_of_parameters(name):
    made, _ = MODULES[name]
    for x in made(device="meta", dtype=torch.float16).parameters():
        assert (x.device.type, x.dtype) == ("meta", torch.float16)


@of_every_module
def test_parameters_made_on_meta_are_reset(name):
    """What deferred initialisation does: every module, after to_empty."""
    made, inputs = MODULES[name]
    module = made(device="meta").to_empty(device="cpu")
    for x in module.parameters():
        nn.init.constant_(x, float("nan"))
    for part in module.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    assert module.eval()(*inputs()).isfinite().all()


def test_what_was_given_is_not_reset():
    value, norm = nn.Conv2d(8, 10, 1), randomised(nn.BatchNorm2d(8))
    module = AttentionPropagation(8, 6, 10, value=value, norm=norm, residual_scale=0.25)
    given = copy.deepcopy([value.state_dict(), norm.state_dict()])
    query = module.query.weight.clone()
    nn.init.zeros_(module.residual_scale)
    module.reset_parameters()
    torch.testing.assert_close([value.state_dict(), norm.state_dict()], given, rtol=0, atol=0)
    assert module.residual_scale.item() == 0.25
    assert not torch.equal(module.query.weight, query)


@pytest.mark.parametrize("norm", [False, True])
def test_a_reset_non_local_is_the_identity(norm):
    module, x = randomised(NonLocal2d(8, norm=norm)), torch.randn(2, 8, 3, 4)
    assert not torch.equal(module(x), x)
    module.reset_parameters()
    assert not norm or module.norm.num_batches_tracked == 0
    torch.testing.assert_close(module(x), x, rtol=0, atol=0)


REPRS = {
    "AttentionPropagation": "8, 6, 10, heads=2, stride=2, pooling='max', residual_scale=0.5, "
    "scale=None",
    "NonLocal2d": "8, 4, 4, heads=1, stride=2, pooling='floor_max', residual_scale=None, scale=1.0",
    "MemoryRead": "'l2', top_k=3, scale=None",
    "BlockSumConv2d": "[2, 3], 7, 3, padding=1, dilation=1, bias=True, activation='relu'",
}


@of_every_module
def test_extra_repr(name):
    assert MODULES[name][0]().extra_repr() == REPRS[name]


BAD = {
    "channels": (lambda: AttentionPropagation(0, 6, 10), "channels: expected at least 1, got 0"),
    "heads": (lambda: AttentionPropagation(8, 6, 10, heads=0), "heads: expected at least 1, got 0"),
    "key_channels": (
        lambda: AttentionPropagation(8, 6, 8, heads=4),
        "key_channels: expected a multiple of 4 heads, got 6",
    ),
    "value_channels": (
        lambda: AttentionPropagation(8, 8, 10, heads=4),
        "value_channels: expected a multiple of 4 heads, got 10",
    ),
    "stride": (lambda: AttentionPropagation(8, 6, 10, stride=1.5), "stride: expected an integer"),
    "pooling": (
        lambda: AttentionPropagation(8, 6, 10, pooling="mean"),
        r"pooling: expected one of \['max', 'subsample', 'floor_max', 'average'\], got 'mean'",
    ),
    "query": (
        lambda: AttentionPropagation(8, 6, 10, query=F.relu),
        "query: expected a module or None, got function",
    ),
    "norm": (
        lambda: AttentionPropagation(8, 6, 10, norm=True),
        "norm: expected a module or None, got bool",
    ),
    "residual_scale": (
        lambda: AttentionPropagation(8, 6, 10, residual_scale=torch.ones(1)),
        "residual_scale: expected a number or None, got a tensor",
    ),
    "scale": (
        lambda: AttentionPropagation(8, 6, 10, scale="1"),
        "scale: expected a number or None, got '1'",
    ),
    "mode": (
        lambda: NonLocal2d(8, mode="dot_product"),
        r"mode: expected one of \['embedded_gaussian', 'gaussian'\], got 'dot_product'",
    ),
    "inner_channels": (lambda: NonLocal2d(8, 0), "inner_channels: expected at least 1, got 0"),
    "sub_sample": (
        lambda: NonLocal2d(8, sub_sample=2),
        "sub_sample: expected True or False, got 2",
    ),
    "norm of NonLocal2d": (
        lambda: NonLocal2d(8, norm=nn.BatchNorm2d(8)),
        "norm: expected True or False, got BatchNorm2d",
    ),
    "similarity": (lambda: MemoryRead("l1"), r"similarity: expected one of \['dot', 'l2'\]"),
    "top_k": (lambda: MemoryRead(top_k=0), "top_k: expected at least 1, got 0"),
    "no blocks": (lambda: BlockSumConv2d([], 7), "in_channels: expected those of at least one"),
    "in_channels": (
        lambda: BlockSumConv2d(5, 7),
        "in_channels: expected a list of integers, got 5",
    ),
    "out_channels": (lambda: BlockSumConv2d([2], 0), "out_channels: expected at least 1, got 0"),
    "kernel_size": (
        lambda: BlockSumConv2d([2], 7, 5),
        r"kernel_size: expected one of \[1, 3\], got 5",
    ),
    "padding": (
        lambda: BlockSumConv2d([2], 7, padding=-1),
        "padding: expected at least 0, got -1",
    ),
    "dilation": (lambda: BlockSumConv2d([2], 7, dilation=0), "dilation: expected at least 1"),
    "bias": (lambda: BlockSumConv2d([2], 7, bias=1), "bias: expected True or False, got 1"),
    "activation": (
        lambda: BlockSumConv2d([2], 7, activation="gelu"),
        r"activation: expected one of \['none', 'relu'\], got 'gelu'",
    ),
    "channels of blocks": (
        lambda: BlockSumConv2d([2, 3], 7)([torch.ones(1, 2, 3, 3), torch.ones(1, 4, 3, 3)]),
        r"blocks: expected channels \[2, 3\], got \[2, 4\]",
    ),
    "blocks": (lambda: BlockSumConv2d([2], 7)(torch.ones(1, 2, 3, 3)), "blocks: expected a list"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name):
    call, text = BAD[name]
    with pytest.raises((TypeError, ValueError), match=f"^{text}"):
        call()
