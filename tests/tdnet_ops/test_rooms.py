"""Every operator has its file in every room; whatever is forgotten fails by the operator's name."""

import importlib
import inspect
import re
from pathlib import Path

import pytest
import samples
import torch

import tdnet_ops
from tdnet_ops import backends, reference
from tdnet_ops.bench.cases import CASES
from tdnet_ops.operators import OPERATORS

ROOT = Path(__file__).resolve().parents[2]
PUBLIC = [name for name, record in OPERATORS.items() if record.public]
of_every_operator = pytest.mark.parametrize("name", OPERATORS)
of_every_public_operator = pytest.mark.parametrize("name", PUBLIC)


# Kernels that are missing on purpose: the next backend in the order runs what one lacks.
LACKING = {
    "attention_propagate_backward": {"cuda"},
    "winograd_conv2d": {"cuda", "triton"},
}
FILES = {
    "cpu": "csrc/cpu/{}.cpp",
    "cuda": "csrc/cuda/launchers/{}.cpp",
    "triton": "tdnet_ops/triton/{}.py",
}


def declared(backend, name):
    """Whether the sources have a kernel, in a file of the operator's name or another."""
    if backend == "triton":
        return backends.has_kernel(backend, name)
    sources = (ROOT / f"csrc/{backend}").rglob("*.cpp")
    return any(f'm.impl("{name}"' in path.read_text() for path in sources)


def test_every_schema_has_a_record_and_every_record_a_schema():
    schemas = (str(schema.name) for schema in torch._C._jit_get_all_schemas())
    defined = {name.partition("::")[2] for name in schemas if name.startswith("tdnet::")}
    missing, unknown = defined - set(OPERATORS), set(OPERATORS) - defined
    assert not missing, f"tdnet_ops/operators/: no record of {sorted(missing)}"
    assert not unknown, f"csrc/schemas.h: no schema of {sorted(unknown)}"


def test_nothing_is_kept_of_an_operator_that_is_gone():
    for folder, names in (
        ("tests/samples/operators/", samples.NAMES),
        ("tdnet_ops/bench/cases/", {case.operator for case in CASES}),
    ):
        left = set(names) - set(PUBLIC)
        assert not left, f"{folder}: {sorted(left)} are no public operators"
    assert set(LACKING) <= set(OPERATORS), "LACKING in test_rooms.py"


@of_every_public_operator
def test_it_has_samples(name):
    assert name in samples.NAMES, f"tests/samples/operators/{name}.py is missing"
    file = f"tests/samples/operators/{name}.py"
    told = samples.OPERATORS[name]
    assert next(iter(told.shapes), None) == "middle", f'{file}: the first of shapes is not "middle"'
    assert told.several_blocks in told.shapes, f"{file}: several_blocks is none of shapes"
    assert told.tiles or told.vectors, f"{file}: no shapes for kernels that work by tiles"


@of_every_public_operator
def test_its_example_is_complete(name):
    """Smoke tests, examples and bad calls are made of it: every tensor is given."""
    example = samples.example(name)
    for argument, told in samples.schema_of(name).items():
        if "Tensor" in str(told.type):
            given = samples.tensors([example.get(argument)])
            file = f"tests/samples/operators/{name}.py"
            assert given, f'{file}: "middle" gives no {argument}'


@of_every_public_operator
def test_it_has_cases_in_the_benchmarks(name):
    file = f"tdnet_ops/bench/cases/{name}.py"
    names = [case.name for case in CASES if case.operator == name]
    assert names, f"{file} is missing"
    assert "tiny" in names, f'{file}: no case "tiny"'
    assert any("769x1537" in case for case in names), f"{file}: no case at 769x1537"


@of_every_public_operator
def test_it_is_exported_and_documented(name):
    exporting = "tdnet_ops/operators/__init__.py"
    assert name in tdnet_ops.__all__, f"{exporting} does not export {name}"
    function = getattr(tdnet_ops, name, None)
    assert callable(function), f"{exporting} does not import {name}"
    text = function.__doc__ or ""
    file = f"tdnet_ops/operators/{name}.py"
    assert re.search(r"Returns:\s.*\[B, ", text, re.S), f"{file}: no shape of the result of {name}"
    for argument, told in samples.schema_of(name).items():
        if argument != "allow_tf32":
            entry = re.search(rf"^\s+{argument}: (.*)$", text, re.M)
            assert entry, f"{file}: {argument} is not documented"
            of_tensor = "Tensor" in str(told.type)
            assert not of_tensor or "[" in text[entry.start() :], f"{file}: no shape of {argument}"


@of_every_public_operator
def test_python_repeats_the_defaults_of_the_schema(name):
    """The public function and the definition; a list of tensors or a dtype leaves it none."""
    told = samples.schema_of(name)
    for function in (getattr(tdnet_ops, name), getattr(reference, name, None)):
        for parameter in inspect.signature(function).parameters.values() if function else ():
            argument = told.get(parameter.name)
            if argument is None or not argument.has_default_value() or parameter.name == "dtype":
                continue
            where = f"{function.__module__}.{name}: {parameter.name}"
            assert parameter.default == argument.default_value, where


@of_every_public_operator
def test_it_is_defined_in_plain_pytorch(name):
    defined = OPERATORS[name].definition or getattr(reference, name, None)
    assert defined is not None, f"tdnet_ops/reference.py does not define {name}"


@of_every_operator
@pytest.mark.parametrize("backend", FILES)
def test_no_kernel_is_missing_but_on_purpose(name, backend):
    file, found = FILES[backend].format(name), declared(backend, name)
    if backend in LACKING.get(name, ()):
        gone = not found and not (ROOT / file).exists()
        assert gone, f"{file}: expected none, as LACKING in test_rooms.py says"
    else:
        registered = f'm.impl("{name}", ...)' if file.endswith(".cpp") else "the file"
        assert found, f"{file}: expected {registered}, or {name} in LACKING of test_rooms.py"


@of_every_operator
def test_what_triton_declares_it_can_run_and_tune(name):
    if not backends.has_kernel("triton", name):
        return  # The next backend runs it.
    pytest.importorskip("triton")
    module = importlib.import_module(f"tdnet_ops.triton.{name}")
    file = f"tdnet_ops/triton/{name}.py"
    assert callable(getattr(module, name, None)), f"{file}: no function {name}"
    assert callable(getattr(module, "workloads", None)), f"{file}: no function workloads"


@of_every_operator
@pytest.mark.parametrize("backend", ["cpu", "cuda"])
def test_what_is_compiled_is_what_the_sources_declare(name, backend):
    """The emulator compiles the sources of CUDA: what they declare, it runs on all samples."""
    if backend == "cuda" and not tdnet_ops.build_info()["cuda"]["architectures"]:
        return  # Not compiled in.
    found = backends.has_kernel(backend, name)
    assert found == declared(backend, name), f"csrc/{backend} and {name} differ"


@of_every_public_operator
def test_build_info_tells_who_has_kernels(name):
    expected = [backend for backend in backends.NAMES if backends.has_kernel(backend, name)]
    assert tdnet_ops.build_info()["kernels"][name] == expected
