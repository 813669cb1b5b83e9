"""Every shipped configuration compiles for every GPU, on a machine without one."""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tdnet_ops.triton import targets

FOLDER = Path(__file__).resolve().parent


def run(program, *arguments):
    return subprocess.run(
        [sys.executable, str(FOLDER / program), *arguments],
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"},
    )


@pytest.fixture(scope="module")
def results():
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {target: pool.submit(run, "check_target.py", target) for target in targets.NAMES}


@pytest.mark.parametrize("target", targets.NAMES)
def test_shipped_configurations(results, target):
    result = results[target].result()
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    assert int(re.search(r"(\d+) kernels, 0 failed", result.stdout)[1]) > 100


def test_samples_compile():
    """Awkward sizes and layouts, of which Triton makes kernels of their own."""
    names = ["ones-", "one_key-contiguous-float16", "odd_channels-contiguous-float16"]
    result = run("compile_samples.py", "cuda-90", *names, "middle-every_other-float16")
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    assert int(re.search(r"(\d+) samples, 0 failed", result.stdout)[1]) > 50
