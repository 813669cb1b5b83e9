"""Programs that leave PyTorch, or this process: plain aten, ONNX, files."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import samples
import torch
from torch import nn

import tdnet_ops
from tdnet_ops import backends

test_registration = samples.load(Path(__file__).with_name("test_registration.py"))
Call, SIZES = test_registration.Call, test_registration.SIZES
PAGE = Path(__file__).resolve().parents[2] / "docs" / "export.md"

of_every_operator = pytest.mark.parametrize("name", samples.NAMES)
# The same decompositions and translations, of operators of another name.
on_backends = pytest.mark.parametrize(
    "backend", ["cpu", pytest.param("reference", marks=pytest.mark.slow)]
)


def called(program):
    return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]


def of_ours(program):
    return [target for target in called(program) if target.startswith("tdnet")]


def dynamic_shapes(maps):
    """Batch, pixels, queries and keys: no kernel, weight or bias."""

    def shapes(x):
        pixels = test_registration.dynamic_sizes(x)
        return {0: torch.export.Dim.AUTO, **pixels} if pixels else {}

    return {"maps": {name: samples.convert(value, shapes) for name, value in maps.items()}}


def maps_of(name, size, batch=1):
    """The tensors of a call on maps of this size, by name; `batch` times as many samples."""
    maps, _ = test_registration.export_arguments(name, size)

    def repeated(x):
        return x.repeat_interleave(batch, 0) if test_registration.dynamic_sizes(x) else x

    return {key: samples.convert(value, repeated) for key, value in maps.items()}


def exported(name, backend):
    maps, options = test_registration.export_arguments(name, SIZES[0])
    model = Call(name, options)
    with tdnet_ops.backend(backend):
        return model, torch.export.export(model, (maps,), dynamic_shapes=dynamic_shapes(maps))


def assert_equal(actual, expected):
    for got, right in zip(samples.tensors([actual]), samples.tensors([expected]), strict=True):
        torch.testing.assert_close(got, right, rtol=1e-5, atol=1e-5)
        assert got.stride() == right.stride()


# --- plain aten -----------------------------------------------------------------------------------


def core_aten():
    table = torch.export.default_decompositions()
    table.update(tdnet_ops.decompositions())
    return table


@on_backends
@pytest.mark.parametrize("table", [tdnet_ops.decompositions, core_aten])
@of_every_operator
def test_decomposed_programs_are_plain_aten(name, table, backend):
    model, program = exported(name, backend)
    node = f"{backends.NAME_SPACES[backend]}.{name}.default"
    assert of_ours(program) == of_ours(program.run_decompositions()) == [node]
    plain = program.run_decompositions(table())
    assert not of_ours(plain)
    assert not [target for target in called(plain) if "empty" in target]
    for batch, size in enumerate(SIZES, 1):
        maps = maps_of(name, size, batch)
        assert_equal(plain.module()(maps), model(maps))


@pytest.mark.parametrize("sample", samples.select(["middle", "ones"]), ids=str)
def test_decompositions_compute_the_operators(sample):
    """In every dtype and layout."""
    overload = getattr(torch.ops.tdnet, sample.operator).default
    samples.check(sample, tdnet_ops.decompositions()[overload])


def test_decompositions_of_all_that_is_registered():
    defined = {str(schema.name) for schema in torch._C._jit_get_all_schemas()}
    ours = {name for name in defined if name.partition("::")[0] in backends.NAME_SPACES.values()}
    assert {overload.name() for overload in tdnet_ops.decompositions()} == ours


def test_shapes_come_from_the_fake_kernels_all_the_same(monkeypatch):
    """Torch would run an operator's decomposition to know the shape of its result."""

    def refuse(*_):
        raise AssertionError("the decomposition was run")

    overload = torch.ops.tdnet.spatial_pool.default
    monkeypatch.setitem(torch._decomp.decomposition_table, overload, refuse)
    run = torch.compile(tdnet_ops.spatial_pool, fullgraph=True, dynamic=True, backend="aot_eager")
    assert run(torch.randn(2, 3, 4, 5), 2).shape == (2, 3, 2, 3)


# --- files of torch.export ------------------------------------------------------------------------


def test_loading_without_the_import_says_so(tmp_path):
    """With the words that docs/export.md quotes."""
    _, program = exported("spatial_pool", "cpu")
    path = tmp_path / "program.pt2"
    torch.export.save(program, path)
    load = f"import torch; torch.export.load({str(path)!r})"
    alone = subprocess.run([sys.executable, "-c", load], capture_output=True, text=True)
    assert alone.returncode != 0
    (quoted,) = re.findall(r"^> (.*)$", PAGE.read_text(), re.M)
    for part in quoted.replace("attention_propagate", "spatial_pool").split(" ... "):
        assert part in alone.stderr, part
    told = subprocess.run([sys.executable, "-c", f"import tdnet_ops; {load}"], cwd=tmp_path)
    assert told.returncode == 0


# --- ONNX -----------------------------------------------------------------------------------------


class Model(nn.Module):
    """Convolutions and most operators; 4 classes."""

    def __init__(self):
        super().__init__()
        self.encode = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU())
        self.query, self.key = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)
        self.phi = nn.Linear(8, 8)
        self.reduce = nn.ModuleList(nn.Conv2d(8, 4, 3, bias=False) for _ in range(2))

    def forward(self, image):
        x = self.encode(image)
        k, v = (tdnet_ops.spatial_pool(y, 2) for y in (self.key(x), x))
        phi = self.phi.weight, self.phi.bias
        x = tdnet_ops.attention_propagate(self.query(x), k, v, x, *phi, heads=2)
        affinity = tdnet_ops.pooled_affinity(self.query(x), self.key(x), 3, "subsample")
        v = tdnet_ops.spatial_pool(x, 3, "subsample")
        y = tdnet_ops.softmax_propagate(affinity, v, x.shape[2:])
        weights = [conv.weight for conv in self.reduce]
        logits = tdnet_ops.block_sum_reduce([x, y], weights, padding=1, activation="relu")
        return logits, tdnet_ops.upsample_argmax(logits, image.shape[2:])


def run_onnx(program, path, inputs):
    """The results of ONNX Runtime, and the file."""
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    program.save(path)
    session = runtime.InferenceSession(path)
    names = [argument.name for argument in session.get_inputs()]
    results = [
        session.run(None, dict(zip(names, (x.numpy() for x in tensors), strict=True)))
        for tensors in inputs
    ]
    return [[torch.from_numpy(x) for x in result] for result in results], onnx.load(path)


def opset(file):
    (ours,) = [entry.version for entry in file.opset_import if entry.domain == ""]
    return ours


@on_backends
@of_every_operator
def test_onnx_of_an_operator(name, backend, tmp_path):
    pytest.importorskip("onnxscript")
    model, program = exported(name, backend)
    calls = [maps_of(name, size, batch) for batch, size in enumerate(SIZES, 1)]
    results, file = run_onnx(
        torch.onnx.export(program, dynamo=True, verbose=False),
        tmp_path / "operator.onnx",
        [samples.tensors(list(maps.values())) for maps in calls],
    )
    assert not file.functions
    for result, maps in zip(results, calls, strict=True):
        for got, right in zip(result, samples.tensors([model(maps)]), strict=True):
            torch.testing.assert_close(got, right, rtol=1e-5, atol=1e-5)


def opsets_of_the_page():
    return [int(x) for x in re.search(r"opsets ([\d, ]+)", PAGE.read_text())[1].split(",")]


@on_backends
@pytest.mark.parametrize(
    "version",
    [None, *(pytest.param(told, marks=pytest.mark.slow) for told in opsets_of_the_page())],
)
def test_onnx_of_a_model(version, backend, tmp_path):
    """In one call, with parameters that want gradients."""
    pytest.importorskip("onnxscript")
    model, image = Model().eval(), torch.randn(2, 3, 22, 30)
    auto = torch.export.Dim.AUTO
    with tdnet_ops.backend(backend):
        program = torch.onnx.export(
            model,
            (image,),
            dynamo=True,
            dynamic_shapes={"image": {0: auto, 2: auto, 3: auto}},
            opset_version=version,
            verbose=False,
        )
    images = [image, torch.randn(1, 3, 35, 41), torch.randn(3, 3, 64, 18)]
    results, file = run_onnx(program, tmp_path / "model.onnx", [[x] for x in images])
    assert opset(file) in opsets_of_the_page()
    assert version in (None, opset(file))
    assert not {node.domain for node in file.graph.node} - {""}
    for (logits, labels), image in zip(results, images, strict=True):
        right, right_labels = model(image)
        torch.testing.assert_close(logits, right, rtol=1e-5, atol=1e-5)
        assert labels.dtype == torch.uint8
        assert (labels == right_labels).float().mean() > 0.99  # others are ties within rounding
