"""Bad input to every argument of every operator: the error names the argument and what came."""

import re
import subprocess
import sys

import pytest
import samples
import torch

import tdnet_ops

ERRORS = (ValueError, TypeError, RuntimeError)


def call(route, operator, arguments):
    return samples.ROUTES[route](operator)(*arguments.values())


def shape_text(x):
    return re.escape(str(list(x.shape)))


def more(dim):
    """One more along `dim`."""
    return lambda x: torch.cat([x, x.narrow(dim, 0, 1)], dim)


def first_of(change):
    return lambda tensors: [change(tensors[0]), *tensors[1:]]


def last_of(change):
    return lambda tensors: [*tensors[:-1], change(tensors[-1])]


def ranks_of(operator):
    """Dimensions of every tensor, or of those in a list, by name."""
    found = {name: samples.tensors([x]) for name, x in samples.example(operator).items()}
    return {name: xs[0].dim() for name, xs in found.items() if xs}


RANKS = {operator: ranks_of(operator) for operator in samples.NAMES}
TENSORS = [(operator, name) for operator, ranks in RANKS.items() for name in ranks]


def kinds(*wanted):
    """The arguments of these types in their schema, as (operator, name)."""
    return [
        (operator, name)
        for operator in samples.NAMES
        for name, argument in samples.schema_of(operator).items()
        if str(argument.type) in wanted
    ]


LISTS = kinds("List[Tensor]")
INTEGERS = kinds("int")
# Which one the others are compared with; of a list it is the first, compared with the rest of it.
FIRST = list({operator: (operator, name) for operator, name in reversed(kinds("Tensor"))}.values())
OTHERS = [pair for pair in TENSORS if pair not in FIRST]


def in_list(operator, name):
    """Which tensor of a list is read: all of them but for the replaced partial."""
    return last_of if (operator, name) in LISTS and name != "partials" else first_of


EXTENTS = [
    (operator, name, dim)
    for operator, name in OTHERS
    for dim in range(RANKS[operator][name])
    # The key map may have any size there, and phi any number of output channels.
    if (operator, name, dim)
    not in {
        ("pooled_affinity", "k", 2),
        ("pooled_affinity", "k", 3),
    }
]


NO_FLOATS = [
    (torch.int64, "int64|Long"),
    (torch.uint8, "uint8|Byte"),
    (torch.bool, "bool|Bool"),
    (torch.complex64, "complex64|ComplexFloat"),
]
EMPTY = [
    ("spatial_pool", "x", (2, 5, 0, 6)),
    ("spatial_pool", "x", (2, 5, 6, 0)),
    ("spatial_pool", "x", (2, 0, 5, 6)),
    ("pooled_affinity", "k", (2, 6, 0, 6)),
    ("pooled_affinity", "k", (2, 6, 4, 0)),
    ("pooled_affinity", "q", (2, 0, 5, 4)),
    ("attention_propagate", "k", (2, 6, 0, 4)),
    ("attention_propagate", "q", (2, 0, 5, 6)),
    ("softmax_propagate", "v", (2, 7, 3, 0)),
    ("softmax_propagate", "v", (2, 0, 3, 4)),
    ("block_sum_update", "x", (2, 0, 5, 6)),
    ("winograd_conv2d", "x", (2, 0, 7, 6)),
    ("winograd_conv2d", "x", (2, 5, 0, 6)),
    ("winograd_conv2d", "x", (2, 5, 7, 0)),
    ("winograd_conv2d", "weight", (36, 0, 5)),
    ("winograd_conv2d", "weight", (9, 3, 5)),
    ("upsample_argmax", "logits", (2, 0, 4, 6)),
    ("upsample_argmax", "logits", (2, 5, 0, 6)),
    ("upsample_argmax", "logits", (2, 5, 4, 0)),
]


def changed(operator, name, change):
    wrapped = in_list(operator, name)(change) if (operator, name) in LISTS else change
    return samples.example(operator, **{name: wrapped})


def assert_refused(route, operator, arguments, name, value, errors=ERRORS):
    """`value`: a pattern of what the text must hold beside the name."""
    with pytest.raises(errors) as caught:
        call(route, operator, arguments)
    text = str(caught.value)
    assert re.search(rf"\b{name}\b", text), f"{name} is not named: {text}"
    assert re.search(value, text), f"{value} is not shown: {text}"


@pytest.mark.parametrize("route", samples.ROUTES)
@pytest.mark.parametrize(("operator", "name"), TENSORS)
def test_wrong_rank(route, operator, name):
    arguments = changed(operator, name, lambda x: x[None])
    one_more = RANKS[operator][name] + 1
    assert_refused(route, operator, arguments, name, rf"got shape \[(\d+(, )?){{{one_more}}}\]")
    arguments = changed(operator, name, lambda x: x.new_zeros(()))
    assert_refused(route, operator, arguments, name, r"got shape \[\]")


@pytest.mark.parametrize("route", samples.ROUTES)
@pytest.mark.parametrize(("operator", "name"), TENSORS)
@pytest.mark.parametrize(("dtype", "text"), NO_FLOATS)
def test_wrong_dtype(route, operator, name, dtype, text):
    arguments = changed(operator, name, lambda x: torch.ones(x.shape, dtype=dtype))
    assert_refused(route, operator, arguments, name, text)


@pytest.mark.parametrize("route", samples.ROUTES)
@pytest.mark.parametrize(("operator", "name"), TENSORS)
def test_not_a_tensor(route, operator, name):
    for value, text in ((3, "int|list"), ("map", "str|list"), (object(), "object|list")):
        arguments = changed(operator, name, lambda x, value=value: value)
        assert_refused(route, operator, arguments, name, text)


@pytest.mark.parametrize("route", samples.ROUTES)
@pytest.mark.parametrize(("operator", "name"), kinds("Tensor", "List[Tensor]"))
def test_missing(route, operator, name):
    """That optional ones may be missing is in the samples."""
    arguments = samples.example(operator, **{name: None})
    assert_refused(route, operator, arguments, name, "None")


@pytest.mark.parametrize("route", samples.ROUTES)
@pytest.mark.parametrize(("operator", "name"), OTHERS)
def test_mixed_dtypes(route, operator, name):
    arguments = changed(operator, name, torch.Tensor.double)
    assert_refused(route, operator, arguments, name, "float64|Double")
    arguments = changed(operator, name, torch.Tensor.half)
    assert_refused(route, operator, arguments, name, "float16|Half")


@pytest.mark.parametrize("route", samples.ROUTES)
@pytest.mark.parametrize(("operator", "name"), OTHERS)
def test_mixed_devices(route, operator, name):
    arguments = changed(operator, name, lambda x: x.to("meta"))
    assert_refused(route, operator, arguments, name, "meta")


@pytest.mark.parametrize("route", samples.ROUTES)
@pytest.mark.parametrize(("operator", "name"), sorted(FIRST))
def test_mixed_devices_by_the_first(route, operator, name):
    if len(samples.tensors(list(samples.example(operator).values()))) == 1:
        return  # Nothing to differ from.
    arguments = samples.example(operator, **{name: lambda x: x.to("meta")})
    with pytest.raises(ERRORS, match=r"expected .*device"):
        call(route, operator, arguments)


@pytest.mark.parametrize("route", samples.ROUTES)
@pytest.mark.parametrize(("operator", "name", "dim"), EXTENTS)
def test_mismatched_extent(route, operator, name, dim):
    if name == "weight" and operator.endswith("_propagate") and dim == 0:
        arguments = samples.example(operator, weight=more(0), residual=None)
        assert_refused(route, operator, arguments, "bias", r"got shape \[5\]")
        return
    if (operator, name, dim) in (
        ("block_sum_update", "weight", 0),
        ("winograd_conv2d", "weight", 1),
    ):
        # The bias or a partial does not fit then.
        wide = samples.example(operator, weight=more(dim))
        assert_refused(route, operator, wide, r"(bias|partials)", r"got shape \[(2, )?3")
        return
    arguments = changed(operator, name, more(dim))
    bad = samples.tensors(arguments[name])[-1 if name in ("blocks", "weights") else 0]
    # The mismatch may be told of the partner that it does not fit.
    text = rf"{shape_text(bad)}|expected size {bad.shape[dim]} |kernel|pixels of v"
    with pytest.raises(ERRORS) as caught:
        call(route, operator, arguments)
    assert re.search(rf"\b{name}\b", str(caught.value)), str(caught.value)
    assert re.search(text, str(caught.value)), str(caught.value)


@pytest.mark.parametrize("route", samples.ROUTES)
@pytest.mark.parametrize(("operator", "name", "shape"), EMPTY)
def test_empty_maps(route, operator, name, shape):
    arguments = samples.example(operator, **{name: torch.zeros(shape)})
    assert_refused(route, operator, arguments, name, re.escape(str(list(shape))))


HUGE = 2**63 - 1
NUMBERS = [
    ("spatial_pool", "stride", 0, "0"),
    ("spatial_pool", "stride", -1, "-1"),
    ("spatial_pool", "stride", -HUGE, str(-HUGE)),
    ("spatial_pool", "stride", 2**70, ""),
    ("spatial_pool", "stride", 1.5, "float|1.5"),
    ("spatial_pool", "stride", "2", "str|'2'"),
    ("spatial_pool", "stride", None, "None"),
    ("spatial_pool", "mode", "mean", "'mean'"),
    ("spatial_pool", "mode", 3, "int|3"),
    ("pooled_affinity", "stride", 0, "0"),
    ("pooled_affinity", "stride", -1, "-1"),
    ("pooled_affinity", "mode", "", "''"),
    ("pooled_affinity", "scale", "large", "str|'large'"),
    ("softmax_propagate", "size", [5], "5|1"),
    ("softmax_propagate", "size", [], r"0|\(\)"),
    ("softmax_propagate", "size", [5, 6, 1], "3|5, 6, 1"),
    ("softmax_propagate", "size", [6, 6], "6, 6"),
    ("softmax_propagate", "size", [0, 30], "0"),
    ("softmax_propagate", "size", [-5, -6], "-5"),
    ("softmax_propagate", "size", "56", "str|'56'"),
    ("softmax_propagate", "size", [5.0, 6.0], "float|5.0"),
    ("softmax_propagate", "size", [2**62, 2**62], str(2**62)),
    ("attention_propagate", "scale", "large", "str|'large'"),
    ("block_sum_reduce", "padding", -1, "-1"),
    ("block_sum_reduce", "dilation", 0, "0"),
    ("block_sum_reduce", "dilation", -1, "-1"),
    ("block_sum_reduce", "dilation", 9, "9"),
    ("block_sum_reduce", "dilation", HUGE, str(HUGE)),
    ("block_sum_reduce", "padding", HUGE, ""),
    ("block_sum_reduce", "padding", 2**62, ""),
    ("block_sum_reduce", "activation", "gelu", "'gelu'"),
    ("block_sum_reduce", "blocks", [], "empty"),
    ("block_sum_reduce", "weights", [], "0"),
    ("block_sum_update", "index", -1, "-1"),
    ("block_sum_update", "index", 2, "2"),
    ("block_sum_update", "index", HUGE, str(HUGE)),
    ("block_sum_update", "index", None, "None"),
    ("block_sum_update", "padding", -1, "-1"),
    ("block_sum_update", "dilation", 0, "0"),
    ("block_sum_update", "dilation", HUGE, str(HUGE)),
    ("block_sum_update", "activation", "gelu", "'gelu'"),
    ("winograd_conv2d", "dilation", 0, "0"),
    ("winograd_conv2d", "dilation", -1, "-1"),
    ("winograd_conv2d", "dilation", HUGE, str(HUGE)),
    ("winograd_conv2d", "activation", "gelu", "'gelu'"),
    ("upsample_argmax", "size", [8], "8|1"),
    ("upsample_argmax", "size", [8, 0], "0"),
    ("upsample_argmax", "size", [-8, 8], "-8"),
    ("upsample_argmax", "size", [8, 8, 8], "3|8, 8, 8"),
    ("upsample_argmax", "size", None, "None"),
    ("upsample_argmax", "size", 8, "int|8"),
    ("upsample_argmax", "dtype", torch.float32, "float32|Float"),
    ("upsample_argmax", "dtype", torch.int32, "int32|Int"),
    ("upsample_argmax", "dtype", "uint8", "str|'uint8'"),
]


@pytest.mark.parametrize("route", samples.ROUTES)
@pytest.mark.parametrize(("operator", "name", "value", "text"), NUMBERS)
def test_bad_numbers(route, operator, name, value, text):
    assert_refused(route, operator, samples.example(operator, **{name: value}), name, text)


@pytest.mark.parametrize("route", samples.ROUTES)
def test_block_sum_update_names_what_does_not_fit(route):
    empty = samples.example("block_sum_update", partials=[])
    with pytest.raises(ERRORS, match=r"index|partials"):
        call(route, "block_sum_update", empty)
    uneven = samples.example("block_sum_reduce", weights=lambda weights: weights[:1])
    assert_refused(route, "block_sum_reduce", uneven, "weights", "1")
    five = samples.example("block_sum_update", weight=torch.zeros(3, 5, 5, 5))
    assert_refused(route, "block_sum_update", five, "weight", r"\[3, 5, 5, 5\]")
    flat = samples.example("block_sum_update", weight=torch.zeros(3, 5, 3, 1))
    assert_refused(route, "block_sum_update", flat, "weight", r"\[3, 5, 3, 1\]")
    none = samples.example("block_sum_update", weight=torch.zeros(0, 5, 3, 3))
    assert_refused(route, "block_sum_update", none, "weight", r"\[0, 5, 3, 3\]")


@pytest.mark.parametrize("route", samples.ROUTES)
@pytest.mark.parametrize("operator", ["softmax_propagate", "attention_propagate"])
def test_no_output_channels(route, operator):
    arguments = samples.example(operator, weight=torch.zeros(0, 7), bias=None, residual=None)
    assert_refused(route, operator, arguments, "weight", r"\[0, 7\]")


@pytest.mark.parametrize("route", samples.ROUTES)
@pytest.mark.parametrize("placeholder", ["empty", "integer", "meta", "float64", "rank"])
def test_the_replaced_partial_may_be_anything(route, placeholder):
    """`partials[index]` is not read; whatever stands there must not change the result."""
    anything = {
        "empty": torch.empty(0),
        "integer": torch.zeros(2, dtype=torch.int64),
        "meta": torch.empty(2, 3, device="meta"),
        "float64": torch.zeros(1, dtype=torch.float64),
        "rank": torch.zeros(1, 1, 1, 1, 1),
    }[placeholder]
    if placeholder == "meta" and route != "tdnet_ops":
        return  # torch itself dispatches by it before any of our code.
    right = call(route, "block_sum_update", samples.example("block_sum_update"))
    arguments = samples.example(
        "block_sum_update", partials=lambda partials: [partials[0], anything]
    )
    for got, expected in zip(call(route, "block_sum_update", arguments), right, strict=True):
        assert got.device.type == "cpu"
        assert torch.equal(got, expected)


@pytest.mark.parametrize("route", samples.ROUTES)
@pytest.mark.parametrize("mode", ["max", "subsample"])
@pytest.mark.parametrize("stride", [1000, 2**31 - 1, 2**31, 2**62, HUGE])
def test_a_stride_over_the_map_is_one_window(route, mode, stride):
    x = torch.randn(1, 2, 3, 4)
    arguments = {"x": x, "stride": stride, "mode": mode}
    if stride >= 2**31:
        with pytest.raises(ERRORS, match="stride"):
            call(route, "spatial_pool", arguments)
        return
    out = call(route, "spatial_pool", arguments)
    right = x.amax((2, 3), keepdim=True) if mode == "max" else x[:, :, :1, :1]
    assert torch.equal(out, right)


@pytest.mark.parametrize("name", samples.NAMES)
def test_results_are_new_memory(name):
    """No result is an input, or a view of one, or of another result, under any backend."""
    for sample in samples.select(None, ["contiguous"], [torch.float32, torch.float64], [name]):
        for route in samples.ROUTES:
            arguments = sample.arguments()
            found = samples.tensors([samples.ROUTES[route](name)(*arguments)])
            places = [
                x.untyped_storage().data_ptr()
                for x in [*found, *samples.tensors(arguments)]
                if x.numel()
            ]
            outputs = [x.untyped_storage().data_ptr() for x in found if x.numel()]
            assert all(places.count(place) == 1 for place in outputs), f"{sample} by {route}"


def test_compiled_calls_refuse_as_eager_ones():
    run = torch.compile(tdnet_ops.attention_propagate, backend="aot_eager")
    q = torch.randn(1, 4, 3, 3)
    with pytest.raises(Exception, match=r"k: expected size 4"):
        run(q, torch.randn(1, 5, 2, 2), torch.randn(1, 5, 2, 2))


# --- what torch's dispatcher would convert in silence ---------------------------------------------

CONVERTED = [
    (operator, name, value, text)
    for operator, name in INTEGERS
    for value, text in [
        (True, "True"),
        (torch.tensor(1), "a tensor of torch.int64"),
        (torch.tensor(1.7), "a tensor of torch.float32"),
        (1.0, "1.0"),
    ]
] + [
    (operator, name, value, text)
    for operator, name, value, text in [
        ("pooled_affinity", "scale", True, "True"),
        ("pooled_affinity", "scale", torch.nn.Parameter(torch.tensor(0.5)), "a tensor .*multiply"),
        ("attention_propagate", "scale", False, "False"),
        ("attention_propagate", "scale", torch.tensor(0.5), "a tensor of torch.float32"),
        ("attention_propagate", "scale", 1j, "1j"),
        ("softmax_propagate", "size", (torch.tensor(5), 6), "a tensor of torch.int64"),
        ("softmax_propagate", "size", torch.tensor([5, 6]), "a tensor of torch.int64"),
        ("upsample_argmax", "size", (True, 8), "True"),
        ("upsample_argmax", "size", (8.0, 8), "8.0"),
        ("upsample_argmax", "align_corners", 2, "2"),
        ("upsample_argmax", "align_corners", 0, "0"),
        ("upsample_argmax", "align_corners", None, "None"),
        ("upsample_argmax", "align_corners", torch.tensor(True), "a tensor of torch.bool"),
        ("upsample_argmax", "dtype", 4, "4"),
        ("upsample_argmax", "dtype", True, "True"),
        ("upsample_argmax", "dtype", None, "None"),
        ("spatial_pool", "mode", b"max", "b'max'"),
        ("pooled_affinity", "mode", b"max", "b'max'"),
        ("block_sum_reduce", "activation", b"relu", "b'relu'"),
        ("block_sum_update", "activation", None, "None"),
    ]
]


@pytest.mark.parametrize(("operator", "name", "value", "text"), CONVERTED, ids=str)
def test_public_functions_convert_nothing(operator, name, value, text):
    arguments = samples.example(operator, **{name: value})
    assert_refused("tdnet_ops", operator, arguments, name, text, TypeError)


@pytest.mark.parametrize(
    ("operator", "name", "value"),
    [(operator, name, 2**63) for operator, name in INTEGERS]
    + [
        ("spatial_pool", "stride", -(2**70)),
        ("upsample_argmax", "size", (2**70, 8)),
        ("pooled_affinity", "scale", 10**400),
        ("attention_propagate", "scale", -(10**400)),
    ],
)
def test_numbers_that_do_not_fit(operator, name, value):
    arguments = samples.example(operator, **{name: value})
    assert_refused(
        "tdnet_ops", operator, arguments, name, "expected a.* of 64 bits|fits a float", ValueError
    )


def test_numbers_of_numpy_are_numbers():
    numpy = pytest.importorskip("numpy")
    x = torch.randn(1, 2, 4, 6)
    pooled = tdnet_ops.spatial_pool(x, numpy.int64(2))
    assert torch.equal(pooled, tdnet_ops.spatial_pool(x, 2))
    scaled = tdnet_ops.pooled_affinity(x, x, scale=numpy.float32(0.5))
    assert torch.equal(scaled, tdnet_ops.pooled_affinity(x, x, scale=0.5))
    labels = tdnet_ops.upsample_argmax(x, (numpy.int32(8), 8))
    assert torch.equal(labels, tdnet_ops.upsample_argmax(x, (8, 8)))


# --- who is blamed --------------------------------------------------------------------------------


def assert_last_block_is_blamed(route, change):
    arguments = changed("block_sum_reduce", "blocks", change)
    with pytest.raises(ERRORS) as caught:
        call(route, "block_sum_reduce", arguments)
    last = len(arguments["blocks"]) - 1
    assert str(caught.value).startswith(f"blocks[{last}]: "), str(caught.value)


@pytest.mark.parametrize("route", samples.ROUTES)
@pytest.mark.parametrize(
    "change", [torch.Tensor.double, lambda x: x[:, :, 1:], lambda x: x[..., :-1]]
)
def test_a_block_that_differs_is_blamed_not_its_weight(route, change):
    assert_last_block_is_blamed(route, change)


@pytest.mark.parametrize("route", samples.ROUTES)
def test_a_block_of_another_device_is_blamed_not_its_weight(route):
    assert_last_block_is_blamed(route, lambda x: x.to("meta"))


@pytest.mark.parametrize("route", samples.ROUTES)
def test_no_partials(route):
    arguments = samples.example("block_sum_update", partials=[])
    with pytest.raises(ERRORS, match=r"^partials: expected at least one"):
        call(route, "block_sum_update", arguments)


@pytest.mark.parametrize("route", samples.ROUTES)
@pytest.mark.parametrize(("operator", "name"), TENSORS)
@pytest.mark.parametrize("layout", ["sparse_coo", "_mkldnn"])
def test_layouts_of_other_kinds(route, operator, name, layout):
    def convert(x):
        return x.to_sparse() if layout == "sparse_coo" else x.to_mkldnn()

    if layout == "_mkldnn" and RANKS[operator][name] < 3:
        return  # torch cannot make one
    arguments = changed(operator, name, convert)
    assert_refused(route, operator, arguments, name, f"dense.*got layout torch.{layout}", TypeError)


@pytest.mark.filterwarnings("ignore::UserWarning")  # nested tensors are a prototype
@pytest.mark.parametrize(("operator", "name"), [*sorted(FIRST), ("block_sum_reduce", "blocks")])
def test_nested_tensors(operator, name):
    arguments = samples.example(operator)
    nested = torch.nested.nested_tensor([torch.zeros(2, 3, 4), torch.zeros(2, 3, 4)])
    arguments[name] = [nested] if isinstance(arguments[name], list) else nested
    assert_refused("tdnet_ops", operator, arguments, name, "nested", TypeError)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("route", samples.ROUTES)
def test_nested_values(route):
    arguments = changed("attention_propagate", "v", lambda x: torch.nested.nested_tensor(list(x)))
    assert_refused(route, "attention_propagate", arguments, "v", "nested", TypeError)


@pytest.mark.parametrize("route", samples.ROUTES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(2, 5, 0, 6), (2, 5, 6, 0)])
def test_convolutions_of_no_pixels(route, dtype, shape):
    """As torch's convolution, whatever the padding."""
    x, weight = torch.zeros(shape, dtype=dtype), torch.zeros(3, 5, 1, 1, dtype=dtype)
    partial = torch.zeros(2, 3, shape[2] + 2, shape[3] + 2, dtype=dtype)
    shape_in_text = re.escape(str(list(shape)))
    with pytest.raises(ERRORS, match=rf"^blocks\[0\]: .*{shape_in_text}"):
        samples.ROUTES[route]("block_sum_reduce")([x], [weight], None, 1, 1, "none")
    with pytest.raises(ERRORS, match=rf"^x: .*{shape_in_text}"):
        samples.ROUTES[route]("block_sum_update")([partial], 0, x, weight, None, 1, 1, "none")


# --- memory ---------------------------------------------------------------------------------------

# Before, torch's headers did not pass on why an allocation failed.
TOLD = "out of memory: " if torch.torch_version.TorchVersion(torch.__version__) >= (2, 13) else ""
PLENTY = torch.zeros(1).expand(1, 1, 10**5, 10**2)  # of pixels, in four bytes
OUT_OF_MEMORY = {
    "spatial_pool": (lambda op: op(torch.zeros(1).expand(1, 10**7, 10**3, 10**3), 1), 4 * 10**13),
    "pooled_affinity": (lambda op: op(PLENTY, PLENTY), 4 * 10**14),
    "block_sum_reduce": (
        lambda op: op(
            [torch.zeros(1).expand(1, 1, 10**7, 10**6)],
            [torch.ones(1, 1, 1, 1)],
            None,
            0,
            1,
            "none",
        ),
        4 * 10**13,
    ),
    "upsample_argmax": (lambda op: op(torch.zeros(1, 2, 3, 4), (10**7, 10**7)), 10**14),
}


@pytest.mark.parametrize("operator", OUT_OF_MEMORY)
def test_out_of_memory_says_how_much_for_what(operator):
    run, size = OUT_OF_MEMORY[operator]
    with pytest.raises(
        RuntimeError, match=rf"^{TOLD}cannot allocate the result \[.* {size} bytes$"
    ):
        run(getattr(torch.ops.tdnet, operator))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_out_of_memory_for_a_copy_in_float32(dtype):
    x = torch.zeros(1, dtype=dtype).expand(1, 10**7, 10**3, 10**3)
    with pytest.raises(
        RuntimeError, match=rf"^{TOLD}cannot allocate a float32 copy .* {4 * 10**13} bytes$"
    ):
        torch.ops.tdnet.spatial_pool(x, 1000)


# What a thread needs is allocated before the threads start: an error in one loses its text.
WORKSPACES = {
    "rows of logits as wide as the result": lambda: torch.ops.tdnet.upsample_argmax(
        torch.zeros(1).expand(1, 10**9, 2, 2), (3, 4096), dtype=torch.int64
    ),
    "maxima of a row": lambda: torch.ops.tdnet.spatial_pool(
        torch.zeros(1).expand(1, 1, 2, 10**13), 2**31 - 1
    ),
    "packed values": lambda: torch.ops.tdnet.attention_propagate(
        torch.zeros(1, 1, 1, 1), *[torch.zeros(1).expand(1, 1, 10**6, 10**7)] * 2
    ),
}


@pytest.mark.parametrize("what", WORKSPACES)
def test_out_of_memory_for_a_workspace(what):
    with pytest.raises(RuntimeError, match=rf"^out of memory: cannot allocate {what}, \d+ bytes$"):
        WORKSPACES[what]()


def test_more_classes_than_are_counted():
    logits = torch.zeros(1).expand(1, 2**31, 1, 1)
    with pytest.raises(RuntimeError, match=r"^logits: expected at most 2147483647 channels, got"):
        torch.ops.tdnet.upsample_argmax(logits, (1, 1), dtype=torch.int64)


def test_a_size_that_overflows_is_not_called_out_of_memory():
    x = torch.zeros(1, 1, 1, 1)
    with pytest.raises(
        RuntimeError, match=r"^cannot allocate the result \[1, 1099511627776, .*bytes"
    ) as caught:
        torch.ops.tdnet.upsample_argmax(x, (2**40, 2**40))
    assert "out of memory" not in str(caught.value)
    assert ("overflow" in str(caught.value)) == bool(TOLD)


def test_labels_of_no_maps_take_no_memory(tmp_path):
    """Tables of 24 bytes a row took 3.4 GB."""
    program = """
import resource, torch, tdnet_ops
x = torch.zeros(0, 2, 3, 4)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for size in ((2**27, 1), (1, 2**27)):
    assert tdnet_ops.upsample_argmax(x, size).shape == (0, *size)
wide = tdnet_ops.upsample_argmax(torch.randn(1, 2, 3, 4), (1, 2**22))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert float(result.stdout) < 40


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("width", [4095, 4096, 4097, 9000])
def test_labels_of_wide_maps(width, align_corners):
    """The columns are computed 4096 at a time."""
    logits = torch.randn(2, 5, 3, 70)
    labels = tdnet_ops.upsample_argmax(logits, (7, width), align_corners)
    samples.assert_labels(labels, (logits, (7, width), align_corners, torch.uint8), str(width))
