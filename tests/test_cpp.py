"""libtdnet_ops.so in C++ programs without Python: the example, and what is said to be missing."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import tdnet_ops

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "build_tools"))

from tdnet_build.native import CMAKE, NINJA  # noqa: E402
from tdnet_build.plan import find_cxx  # noqa: E402

pytestmark = pytest.mark.slow
LIBRARY = Path(tdnet_ops.build_info()["library"])
TORCH = Path(torch.__file__).parent


def run(*command, folder, **environ):
    result = subprocess.run(
        [*map(str, command)], cwd=folder, capture_output=True, text=True, **environ
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """A folder with the package, the image and the program of examples/cpp, and its labels."""
    folder, sources = tmp_path_factory.mktemp("cpp"), ROOT / "examples" / "cpp"
    labels = run(sys.executable, sources / "export.py", "labels.pt2", "street.ppm", folder=folder)
    configure = [CMAKE.found(), "-S", sources, "-B", "build", "-G", "Ninja"]
    configure += [f"-DCMAKE_MAKE_PROGRAM={NINJA.found()}", f"-DPython_EXECUTABLE={sys.executable}"]
    run(*configure, folder=folder)
    run(CMAKE.found(), "--build", "build", folder=folder)
    return folder, labels.stdout


def test_the_example_labels_an_image(example):
    """As Python does, without its environment."""
    folder, labels = example
    labelled = run("build/labels", "labels.pt2", "street.ppm", folder=folder, env={})
    assert labelled.stdout == labels
    assert len(set(labels)) > 3
    assert [len(line) for line in labels.splitlines()] == [64] * 16


def test_the_example_takes_other_sizes(example):
    folder, _ = example
    Image.new("RGB", (40, 96)).save(folder / "black.ppm")
    labelled = run("build/labels", "labels.pt2", "black.ppm", folder=folder, env={})
    assert [len(line) for line in labelled.stdout.splitlines()] == [20] * 24


def test_the_example_needs_no_python(example):
    folder, _ = example
    assert "libpython" not in run("ldd", "build/labels", folder=folder).stdout


def test_what_is_missing_without_python_is_said(tmp_path):
    command = [*shlex.split(find_cxx()), "-std=c++20", f"-I{TORCH / 'include'}"]
    command += [f"-I{TORCH / 'include/torch/csrc/api/include'}", "-o", "program"]
    command += [ROOT / "tests" / "cpp" / "without_python.cpp"]
    folders = [LIBRARY.parent, TORCH / "lib"]
    command += [f"-L{folder}" for folder in folders]
    command += [f"-Wl,-rpath,{folder}" for folder in folders]
    run(*command, "-Wl,--no-as-needed", "-ltdnet_ops", "-ltorch_cpu", "-lc10", folder=tmp_path)
    result = run("./program", folder=tmp_path, env={"PATH": os.defpath})
    pooled, double, gradient, refused = result.stdout.splitlines()
    assert pooled == str(5 + 7 + 13 + 15)
    assert double == (
        "float64: spatial_pool: expected float32, float16 or bfloat16, got float64, which the "
        "definition in Python computes: convert the tensors, or call it where tdnet_ops is imported"
    )
    assert gradient == "gradient: done"
    assert "tdnet::spatial_pool: an autograd kernel was not registered" in result.stderr
    assert refused == "refused gradient: derivative for tdnet::pooled_affinity is not implemented"
