"""The programs of examples/ run as their readers would run them, in a folder of their own."""

import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

# The arguments of each, where its own defaults would take long or it asks for a name.
ARGUMENTS = {
    "operators.py": [],
    "stream.py": ["street.png", "--size", "64", "128", "--frames", "5"],
    "compile_and_export.py": ["attention.pt2"],
}
LARGEST_DIFFERENCE = 1e-4  # between float32 results that add in another order


@pytest.fixture
def example(pytestconfig, tmp_path):
    """Runs a program in an empty folder and returns what it printed."""

    def run(name):
        program = pytestconfig.rootpath / "examples" / name
        result = subprocess.run(
            [sys.executable, program, *ARGUMENTS[name]],
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    return run


def differences(printed):
    """The numbers after "difference: " and "difference of something: "."""
    found = [float(x) for x in re.findall(r"difference[^:\n]*: (\S+)", printed)]
    assert found
    return found


def test_every_example_is_run(pytestconfig):
    folder = pytestconfig.rootpath / "examples"
    assert sorted(ARGUMENTS) == sorted(path.name for path in folder.glob("*.py"))


def test_operators(example):
    printed = example("operators.py")
    assert "result: [1, 128, 48, 96], channels_last: True" in printed
    assert len(differences(printed)) == 5
    assert max(differences(printed)) < LARGEST_DIFFERENCE
    assert "\nreference: ready" in printed


def test_stream(example, tmp_path):
    printed = example("stream.py")
    assert printed.count("labels after") == 5
    frame, labels, exact = np.split(np.array(Image.open(tmp_path / "street.png")), 3)
    assert frame.shape == (64, 128, 3)
    # Each overlay is half the frame, half colours.
    for overlay in (labels, exact):
        colors = 2.0 * overlay - frame
        assert np.abs(colors - np.clip(colors, 0, 255)).max() <= 1
        assert len(np.unique(overlay.reshape(-1, 3), axis=0)) > 100
    assert (labels != exact).any()


def test_compile_and_export(example, tmp_path):
    printed = example("compile_and_export.py")
    assert len(differences(printed)) == 2
    assert max(differences(printed)) < LARGEST_DIFFERENCE
    program = torch.export.load(tmp_path / "attention.pt2")
    called = {str(node.target) for node in program.graph.nodes}
    assert {"tdnet.attention_propagate.default", "tdnet.spatial_pool.default"} <= called
