"""Every known block, swapped, computes and learns what the original does."""

import copy

import paper_blocks
import pytest
import torch
from blocks import MAKERS, randomise
from torch.utils._pytree import tree_leaves, tree_map

from tdnet_ops.swap import restore, swap

paper_blocks.register_all()
of_every_block = pytest.mark.parametrize("name", MAKERS)


def swapped(block):
    fused, report = swap(copy.deepcopy(block), strict=True)
    assert len(report.fused) == 1, report
    assert type(fused) is not type(block)
    return fused


def step(block, inputs):
    """Outputs, gradients of inputs and parameters, buffers."""
    torch.manual_seed(1)
    inputs = tree_map(
        lambda x: x.clone().requires_grad_() if isinstance(x, torch.Tensor) else x, inputs
    )
    outputs = [x for x in tree_leaves(block(*inputs)) if isinstance(x, torch.Tensor)]
    sum((x * torch.arange(x.numel()).view(x.shape).sin()).sum() for x in outputs).backward()
    gradients = [x.grad for x in inputs if isinstance(x, torch.Tensor)]
    gradients += [parameter.grad for parameter in block.parameters()]
    return outputs, gradients, list(block.buffers())


@of_every_block
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("batch", [1, 3])
def test_it_computes_and_learns_the_same(name, training, batch):
    block, inputs = MAKERS[name]()
    original, given = randomise(block), inputs(batch)
    with torch.no_grad():
        original(*given)  # A spectral norm estimates the new weights.
    fused = swapped(original.train(training))
    for expected, came in zip(step(original, given), step(fused, given), strict=True):
        largest = max((float(x.detach().abs().max()) for x in expected), default=0)
        for x, y in zip(expected, came, strict=True):
            torch.testing.assert_close(y, x, rtol=0, atol=3e-5 * largest)


@of_every_block
def test_a_state_dict_loads_both_ways(name):
    block, inputs = MAKERS[name]()
    original = randomise(block).eval()
    fused = swapped(block)
    assert list(fused.state_dict()) == list(original.state_dict())
    other = randomise(copy.deepcopy(original))
    fused.load_state_dict(other.state_dict())
    original.load_state_dict(fused.state_dict())
    given = inputs(1)
    assert_same(original(*given), other(*given))
    assert_same(restore(fused)(*given), other(*given))


def assert_same(came, expected):
    for x, y in zip(tree_leaves(came), tree_leaves(expected), strict=True):
        torch.testing.assert_close(x, y)


@of_every_block
def test_it_is_fused_by_one_call(name):
    """And no softmax is left."""
    block, inputs = MAKERS[name]()
    fused, calls = swapped(block.eval()), []
    with torch.no_grad(), Recorded(calls):
        fused(*inputs(1))
    assert any("attention_propagate" in call for call in calls)
    assert not any("softmax" in call for call in calls)


class Recorded(torch.utils._python_dispatch.TorchDispatchMode):
    def __init__(self, calls):
        super().__init__()
        self.calls = calls

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls.append(str(func))
        return func(*args, **(kwargs or {}))
