"""top_k_propagate against STCN's reading of a whole affinity, and what it holds at once."""

import pytest
import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import tdnet_ops
from tdnet_ops import top_k as module

NAN = float("nan")


def plain(q, k, v, top_k, scale):
    """As STCN: all logits [B, M, N], their largest, a sparse affinity, one product."""
    q, k, v = q.flatten(2), k.flatten(2), v.flatten(2)
    logits = k.transpose(1, 2) @ q * scale
    values, indices = logits.topk(top_k, dim=1)
    affinity = torch.zeros_like(logits).scatter(1, indices, values.softmax(1))
    return v @ affinity


def inputs(batches=(2, 2, 2), frames=None, dtype=torch.float64):
    key_size = (4, 6) if frames is None else (frames, 4, 6)
    shapes = (batches[0], 6, 5, 7), (batches[1], 6, *key_size), (batches[2], 9, *key_size)
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


@pytest.fixture(params=["one chunk", "chunks of a few queries", "one query a chunk"])
def chunks(request, monkeypatch):
    numbers = {"one chunk": 1 << 22, "chunks of a few queries": 700, "one query a chunk": 1}
    monkeypatch.setattr(module, "_CHUNK_NUMBERS", numbers[request.param])


@pytest.mark.parametrize("batches", [(2, 2, 2), (1, 1, 3), (1, 3, 3), (3, 1, 1), (3, 1, 3)])
@pytest.mark.parametrize("frames", [None, 3])
@pytest.mark.parametrize("top_k", [1, 5, 24])
@pytest.mark.parametrize("scale", [None, -0.7])
def test_outputs_and_gradients(chunks, batches, frames, top_k, scale):
    leaves = inputs(batches, frames)
    out = tdnet_ops.top_k_propagate(*leaves, top_k, scale)
    right = plain(*leaves, top_k, 6**-0.5 if scale is None else scale).unflatten(2, (5, 7))
    torch.testing.assert_close(out, right.expand_as(out))
    grad = torch.randn_like(out)
    found = torch.autograd.grad(out, leaves, grad)
    expected = torch.autograd.grad(right.expand_as(out), leaves, grad)
    for got, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(got, wanted)


def test_all_keys_are_attention():
    q, k, v = inputs(dtype=torch.float32)
    out, right = tdnet_ops.top_k_propagate(q, k, v, 24), tdnet_ops.attention_propagate(q, k, v)
    torch.testing.assert_close(out, right, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels_last", [False, True])
def test_layouts_and_tokens(channels_last):
    q, k, v = inputs()
    if channels_last:
        q, k, v = (x.contiguous(memory_format=torch.channels_last) for x in (q, k, v))
    out = tdnet_ops.top_k_propagate(q, k, v, 5)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert out.is_contiguous(memory_format=layout)
    tokens = (x.flatten(2).transpose(1, 2) for x in (q, k, v))
    of_tokens = tdnet_ops.top_k_propagate(*tokens, 5)
    torch.testing.assert_close(of_tokens, out.flatten(2).transpose(1, 2))


@pytest.mark.parametrize("top_k", [1, 2, 7, 23])
def test_ties_are_those_of_topk(chunks, top_k):
    """Small whole numbers: many equal logits, and none is rounded."""
    q = torch.randint(0, 2, (2, 6, 5, 7)).double()
    k = torch.randint(0, 2, (2, 6, 4, 6)).double()
    v = torch.randn(2, 9, 4, 6, dtype=torch.float64)
    logits = q.flatten(2).transpose(1, 2) @ k.flatten(2)
    assert logits[0, 0].unique().numel() < 7
    values, indices = logits.topk(top_k, -1)
    affinity = torch.zeros_like(logits).scatter(-1, indices, values.softmax(-1))
    right = (affinity @ v.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, (5, 7))
    torch.testing.assert_close(tdnet_ops.top_k_propagate(q, k, v, top_k, 1.0), right)


def test_a_nan_stays_in_its_row():
    q, k, v = inputs()
    q = q.detach().clone()
    q[0, 2, 1, 3] = NAN
    out = tdnet_ops.top_k_propagate(q, k, v, 5)
    assert out.isnan().any(1).nonzero().tolist() == [[0, 1, 3]]


def test_second_derivatives():
    q, k, v = inputs()
    leaves = q[:1, :, :1, :3], k[:1, :, :2, :3], v[:1, :2, :2, :3]
    leaves = [x.detach().clone().requires_grad_() for x in leaves]
    assert torch.autograd.gradgradcheck(lambda *x: tdnet_ops.top_k_propagate(*x, 3), leaves)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    leaves = [x.detach().to(dtype) for x in inputs()]
    out = tdnet_ops.top_k_propagate(*leaves, 5)
    right = tdnet_ops.top_k_propagate(*(x.float() for x in leaves), 5)
    assert out.dtype == dtype
    torch.testing.assert_close(out, right.to(dtype))


def test_autocast_chooses_the_same_keys():
    leaves = inputs(dtype=torch.float32)
    right = tdnet_ops.top_k_propagate(*leaves, 5)
    with torch.autocast("cpu", torch.bfloat16):
        out = tdnet_ops.top_k_propagate(*leaves, 5)
    found = torch.autograd.grad(out.sum(), leaves)
    torch.testing.assert_close(out, right)
    for got, wanted in zip(found, torch.autograd.grad(right.sum(), leaves), strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_in_one_graph(dynamic, monkeypatch):
    if not dynamic:
        monkeypatch.setattr(module, "_CHUNK_NUMBERS", 200)
    q, k, v = (x.detach()[:, :, :3, :4].requires_grad_() for x in inputs(dtype=torch.float32))

    def run(q, k, v):
        return tdnet_ops.top_k_propagate(q, k, v, 5)

    compiled = torch.compile(run, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    out, right = compiled(q, k, v), run(q, k, v)
    torch.testing.assert_close(out, right)
    found = torch.autograd.grad(out.sum(), [q, k, v])
    for got, wanted in zip(found, torch.autograd.grad(right.sum(), [q, k, v]), strict=True):
        torch.testing.assert_close(got, wanted)


# --- memory ---------------------------------------------------------------------------------------


class Largest(TorchDispatchMode):
    """The most numbers that a result of any operator had, forward and backward."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [x for x in pytree.tree_leaves(result) if isinstance(x, torch.Tensor)]
        # What is expanded takes no more memory than it did.
        held = [x.untyped_storage().nbytes() // x.element_size() for x in tensors]
        self.numbers = max(self.numbers, *held, 0)
        return result


def largest(function):
    q = torch.randn(1, 4, 20, 30, requires_grad=True)
    k, v = (torch.randn(1, channels, 25, 20, requires_grad=True) for channels in (4, 8))
    with Largest() as seen:
        function(q, k, v, 10, 0.5).sum().backward()
    return seen.numbers


def test_the_affinity_is_never_stored(monkeypatch):
    """600 queries by 500 keys; of 20,000 numbers at once. Of the chosen, all would be 72,000."""
    monkeypatch.setattr(module, "_CHUNK_NUMBERS", 20_000)
    assert largest(tdnet_ops.top_k_propagate) <= 20_000


def test_a_stored_affinity_would_be_seen():
    assert largest(plain) >= 600 * 500


def test_nothing_of_a_chunk_is_kept_for_the_backward_pass():
    """The arguments and the indices are, of 10 keys for each of 600 queries."""
    kept = []
    q = torch.randn(1, 4, 20, 30, requires_grad=True)
    k, v = (torch.randn(1, channels, 25, 20, requires_grad=True) for channels in (4, 8))
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, id):
        tdnet_ops.top_k_propagate(q, k, v, 10)
    assert sum(kept) == q.numel() + k.numel() + v.numel() + 600 * 10


Q, K, V = torch.ones(2, 6, 3, 4), torch.ones(2, 6, 2, 5), torch.ones(2, 7, 2, 5)
BAD = {
    "no keys": ((Q, K, V, 0), "top_k: expected at least 1, got 0"),
    "too many keys": ((Q, K, V, 11), "top_k: expected at most 10, the number of keys, got 11"),
    "keys that are no number": ((Q, K, V, 2.0), "top_k: expected an integer, got 2.0"),
    "frames of queries": ((Q[:, :, None], K, V, 1), "q: expected 4 dimensions, got shape"),
    "channels": ((Q, K[:, :5], V, 1), "k: expected size 6 .channels of q. in dimension 1"),
    "dtype": ((Q, K, V.half(), 1), "v: expected torch.float32 as q, got torch.float16"),
    "sizes": ((Q, K, V[..., :4], 1), r"v: expected the sizes of k, \[2, 5\], got shape \[2, 7,"),
    "batch": ((Q, K, V.repeat(2, 1, 1, 1), 1), r"q: expected a batch of 1 or 4, got shape \[2, 6"),
    "scale": ((Q, K, V, 1, torch.ones(())), "scale: expected a number or None, got a tensor"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_calls(name):
    arguments, text = BAD[name]
    with pytest.raises((TypeError, ValueError), match=f"^{text}"):
        tdnet_ops.top_k_propagate(*arguments)
