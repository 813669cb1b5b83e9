"""torch.utils.flop_counter.FlopCounterMode counts the operators, as the benchmarks do."""

import subprocess
import sys

import pytest
import samples
import torch
from torch.utils.flop_counter import FlopCounterMode

import tdnet_ops
from tdnet_ops import flop_counts, reference
from tdnet_ops.bench.case import Setting
from tdnet_ops.bench.cases import CASES
from tdnet_ops.operators import OPERATORS

TINY = [case for case in CASES if case.name == "tiny"]
PUBLIC = [name for name, operator in OPERATORS.items() if operator.public]
on_backends = pytest.mark.parametrize("backend", ["cpu", "reference"])


def counted(function, *arguments, **keywords):
    with FlopCounterMode(display=False) as mode:
        function(*arguments, **keywords)
    return mode.get_total_flops()


@on_backends
@pytest.mark.parametrize("case", TINY, ids=str)
def test_counts_are_those_of_the_benchmarks(case, backend):
    problem = case.build(Setting("channels_last", torch.float32, 1))
    function = getattr(tdnet_ops, case.operator)
    assert counted(function, *problem.arguments, backend=backend) == problem.operations


def attention(weight, keys=(2, 3)):
    """Arguments of attention_propagate of 20 queries."""
    q, k, v = (torch.randn(2, c, *size) for c, size in ((8, (4, 5)), (8, keys), (12, keys)))
    return q, k, v, None, weight, None


# Where nothing is folded, the definition runs the same products, which torch counts.
UNFOLDED = {
    "pooled_affinity": (torch.randn(2, 8, 4, 5), torch.randn(2, 8, 5, 7), 2),
    "softmax_propagate": (torch.randn(2, 20, 6), torch.randn(2, 12, 2, 3), (4, 5)),
    "attention_propagate": attention(None),
    "block_sum_reduce": samples.select(["middle"], operators=["block_sum_reduce"])[0].arguments(),
    "winograd_conv2d": samples.select(["dilated"], operators=["winograd_conv2d"])[0].arguments(),
}


@pytest.mark.parametrize("name", UNFOLDED)
def test_counts_are_those_of_the_definition(name):
    arguments = UNFOLDED[name]
    expected = counted(getattr(reference, name), *arguments)
    assert counted(getattr(tdnet_ops, name), *arguments) == expected > 0


@pytest.mark.parametrize("weight", [None, torch.randn(9, 12)])
def test_heads_are_not_folded_and_change_nothing_else(weight):
    arguments = attention(weight)
    expected = counted(reference.attention_propagate, *arguments, heads=2)
    assert counted(tdnet_ops.attention_propagate, *arguments, heads=2) == expected > 0


@pytest.mark.parametrize(
    ("channels", "keys", "products"),
    [
        (9, (2, 3), 6 * 12 * 9 + 20 * 6 * 9),  # phi(v), then attention of its channels
        (9, (4, 5), 20 * 12 * 9 + 20 * 20 * 9),
        (15, (4, 5), 20 * 20 * 12 + 20 * 12 * 15),  # attention, then phi
    ],
)
def test_phi_is_folded_where_that_is_cheaper(channels, keys, products):
    arguments = attention(torch.randn(channels, 12), keys)
    logits = 20 * keys[0] * keys[1] * 8
    assert counted(tdnet_ops.attention_propagate, *arguments) == 2 * 2 * (logits + products)


@on_backends
@pytest.mark.parametrize("heads", [1, 2])
def test_backward_recomputes_the_logits(heads, backend):
    def forward_and_backward(function, **backend):
        arguments = [x if x is None else x.clone().requires_grad_() for x in attention(None)]
        return counted(lambda: function(*arguments, heads=heads, **backend).sum().backward())

    expected = forward_and_backward(reference.attention_propagate)
    logits = 2 * 2 * 20 * 6 * 8
    assert forward_and_backward(tdnet_ops.attention_propagate, backend=backend) == expected + logits


def test_backward_with_phi():
    """phi of the values again, and its two gradients, beside what attention counts."""

    def forward_and_backward(weight):
        arguments = [x if x is None else x.clone().requires_grad_() for x in attention(weight)]
        return counted(lambda: tdnet_ops.attention_propagate(*arguments).sum().backward())

    phi = 2 * 2 * 6 * 12 * 12
    assert forward_and_backward(torch.randn(12, 12)) == forward_and_backward(None) + 4 * phi


@pytest.mark.parametrize("name", PUBLIC)
def test_every_operator_that_computes_has_a_formula(name):
    (case,) = [case for case in TINY if case.operator == name]
    operations = case.build(Setting("channels_last", torch.float32, 1)).operations
    assert operations == 0 or hasattr(flop_counts, name), f"tdnet_ops/flop_counts.py has no {name}"


@pytest.mark.parametrize("first", ["tdnet_ops", "torch.utils.flop_counter"])
def test_the_order_of_imports_does_not_matter(first, tmp_path):
    program = f"""
import {first}
import tdnet_ops, torch
from torch.utils.flop_counter import FlopCounterMode
with FlopCounterMode(display=False) as mode:
    tdnet_ops.spatial_pool(torch.ones(1, 1, 4, 4), 2)
print(mode.get_total_flops())
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert result.stdout == "16\n"
