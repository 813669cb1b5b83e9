"""csrc/checks.h and the checks in Python say the same about the same mistake, word for word."""

import re
import warnings
from pathlib import Path

import pytest
import samples
import torch

import tdnet_ops
from tdnet_ops import backends
from tdnet_ops.operators import OPERATORS

test_checks = samples.load(Path(__file__).with_name("test_checks.py"))
RANKS, TENSORS = test_checks.RANKS, test_checks.TENSORS
changed, more = test_checks.changed, test_checks.more

BAD_CALLS = {}


def bad(name, operator, arguments):
    BAD_CALLS[f"{operator}-{name}"] = (operator, arguments)


def all_dtypes():
    """Those that a tensor on the CPU can have, the stable ABI's or not."""
    found = []
    for dtype in sorted({x for x in vars(torch).values() if isinstance(x, torch.dtype)}, key=str):
        try:
            with warnings.catch_warnings():  # some are experiments of torch
                warnings.simplefilter("ignore")
                torch.empty(1, dtype=dtype)
        except (RuntimeError, TypeError, NotImplementedError):
            continue
        found.append(dtype)
    return found


ALL_DTYPES = all_dtypes()


def change_each_tensor():
    for operator, name in TENSORS:
        rank = RANKS[operator][name]
        bad(f"{name}-missing", operator, samples.example(operator, **{name: None}))
        bad(f"{name}-rank", operator, changed(operator, name, lambda x: x[None]))
        bad(f"{name}-scalar", operator, changed(operator, name, lambda x: x.new_zeros(())))
        for dim in range(rank):
            bad(f"{name}-more-{dim}", operator, changed(operator, name, more(dim)))
            empty = changed(operator, name, lambda x, dim=dim: x.narrow(dim, 0, 0))
            bad(f"{name}-none-{dim}", operator, empty)
        few = (torch.uint8, torch.bool, torch.complex64, torch.float64, torch.float16)
        for dtype in ALL_DTYPES if operator == "spatial_pool" else few:
            of_dtype = changed(operator, name, lambda x, d=dtype: torch.empty(x.shape, dtype=d))
            bad(f"{name}-{dtype}", operator, of_dtype)


change_each_tensor()
for operator, name, value, _ in test_checks.NUMBERS + test_checks.CONVERTED:
    bad(f"{name}-{value}", operator, samples.example(operator, **{name: value}))


def example(operator):
    """A call that is right, by name; those that differentiate attention_propagate have its maps."""
    if operator in samples.NAMES:
        return samples.example(operator)
    maps = samples.example("attention_propagate")
    if operator == "attention_propagate_forward":
        return maps
    result, rows = torch.ops.tdnet_reference.attention_propagate_forward(*maps.values())
    others = {"grad": result, "grad_log_sum_exp": torch.ones_like(rows), "log_sum_exp": rows}
    known = {**maps, **others}
    return {name: known[name] for name in samples.schema_of(operator) if name in known}


def change_each_integer():
    for operator, record in OPERATORS.items():
        for argument in record.schema.arguments:
            for value in (0, -1, test_checks.HUGE) if str(argument.type) == "int" else ():
                name = argument.name
                bad(f"{name}-{value}", operator, {**example(operator), name: value})


change_each_integer()
bad(
    "many-classes",
    "upsample_argmax",
    samples.example("upsample_argmax", logits=torch.zeros(1, 257, 2, 2)),
)
for shape in ((3, 5, 5, 5), (3, 5, 3, 1), (0, 5, 3, 3), (3, 5, 1, 3)):
    wrong = samples.example("block_sum_update", weight=torch.zeros(shape))
    bad(f"weight-{shape}", "block_sum_update", wrong)
for padding, dilation in ((0, 2), (0, 3), (1, 9), (2**31 - 1, 2**31 - 1), (2**31, 1), (0, 2**31)):
    wrong = samples.example("block_sum_update", padding=padding, dilation=dilation)
    bad(f"{padding}-{dilation}", "block_sum_update", wrong)


def told(name_space, operator, arguments):
    with pytest.raises((RuntimeError, TypeError, ValueError)) as caught:
        getattr(getattr(torch.ops, name_space), operator)(*arguments.values())
    return re.sub(r"tdnet(_reference)?::?", "", str(caught.value))


def accepted_by(function, arguments):
    try:
        function(**arguments)
    except (RuntimeError, TypeError, ValueError):
        return False
    return True


@pytest.mark.parametrize("operator", OPERATORS)
def test_what_is_changed_was_right(operator):
    for name_space in ("tdnet", "tdnet_reference"):
        getattr(getattr(torch.ops, name_space), operator)(*example(operator).values())


@pytest.mark.parametrize("call", BAD_CALLS)
def test_both_say_the_same(call):
    operator, arguments = BAD_CALLS[call]
    if accepted_by(getattr(torch.ops.tdnet_reference, operator), arguments):
        getattr(torch.ops.tdnet, operator)(*arguments.values())
        return
    in_cpp, in_python = (told(space, operator, arguments) for space in ("tdnet", "tdnet_reference"))
    assert in_cpp == in_python


def error_of(function, arguments, **named):
    with pytest.raises((RuntimeError, TypeError, ValueError)) as caught:
        function(**arguments, **named)
    return type(caught.value), str(caught.value)


@pytest.mark.parametrize("call", [x for x, told in BAD_CALLS.items() if told[0] in samples.NAMES])
def test_public_functions_refuse_alike_on_every_backend(call):
    """One type and one text; memory that does not suffice and the like come later."""
    operator, arguments = BAD_CALLS[call]
    function = getattr(tdnet_ops, operator)
    if accepted_by(function, arguments):
        return
    right = error_of(function, arguments, backend="reference")
    assert right[0] is not RuntimeError
    assert ": expected " in right[1]
    assert error_of(function, arguments) == right
    for backend in backends.preference(samples.DEVICE.type):
        if backends.has_kernel(backend, operator):
            reason = "its kernels compute in float32, got float64"
            refused = (RuntimeError, f"backend {backend!r} cannot run {operator}: {reason}")
            assert error_of(function, arguments, backend=backend) in (right, refused)
