"""Every shipped configuration compiles for every GPU, on a machine without one."""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tdnet_ops.triton.tuning import targets

FOLDER = Path(__file__).resolve().parent
# The one with the widest choice of matrix instructions; the others take as long each.
FIRST = "cuda-90"


def run(program, *arguments):
    return subprocess.run(
        [sys.executable, str(FOLDER / program), *arguments],
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"},
    )


@pytest.fixture(scope="module")
def results(request):
    """The processes of the tests that were asked for, side by side."""
    asked = [item.callspec.params["target"] for item in request.session.items if is_target(item)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {target: pool.submit(run, "check_target.py", target) for target in asked}


def is_target(item):
    return item.path == Path(__file__) and item.originalname == "test_shipped_configurations"


@pytest.mark.parametrize(
    "target",
    [FIRST] + [pytest.param(x, marks=pytest.mark.slow) for x in targets.NAMES if x != FIRST],
)
def test_shipped_configurations(results, target):
    result = results[target].result()
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    assert int(re.search(r"(\d+) kernels, 0 failed", result.stdout)[1]) > 100


@pytest.mark.parametrize(
    ("names", "least"),
    [
        (["ones-contiguous-float32", "middle-every_other-float16"], 10),
        pytest.param(
            ["ones-", "one_key-contiguous-float16", "odd_channels-contiguous-float16"],
            50,
            marks=pytest.mark.slow,
        ),
    ],
    ids=["few", "all"],
)
def test_samples_compile(names, least):
    """Awkward sizes and layouts, of which Triton makes kernels of their own."""
    result = run("compile_samples.py", FIRST, *names)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    assert int(re.search(r"(\d+) samples, 0 failed", result.stdout)[1]) > least
