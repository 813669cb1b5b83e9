"""The Triton kernels' numbers: the tests of interpreted/ in processes with TRITON_INTERPRET=1."""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy
import pytest
import triton

FOLDER = Path(__file__).resolve().parent / "interpreted"
# Of each file, how many tests there are at least, and how many more that are slow: none may be
# lost in silence.
FILES = {
    "test_samples.py": (480, 620),
    "test_rules.py": (440, 0),
    "test_ranges.py": (70, 0),
    "test_gradients.py": (55, 71),
    "test_log_sum_exp.py": (30, 0),
    "test_bench.py": (7, 0),
}


def release(package):
    return tuple(int(number) for number in package.__version__.split(".")[:2])


# Loops of kernels count with arrays of one number, which NumPy no longer takes for integers.
pytestmark = pytest.mark.skipif(
    release(triton) < (3, 7) and release(numpy) >= (2, 4),
    reason=f"the interpreter of Triton {triton.__version__} needs a NumPy before 2.4",
)


def run(file, marks):
    # The interpreter is NumPy, which several threads slow down.
    single = dict.fromkeys(["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"], "1")
    return subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", marks),
            str(FOLDER / file),
        ],
        capture_output=True,
        text=True,
        cwd=FOLDER,  # not where the sources of the package are
        env={**os.environ, **single, "TRITON_INTERPRET": "1"},
    )


def check(result, least):
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-4000:]
    passed = int(re.search(r"(\d+) passed", result.stdout)[1])
    assert passed >= least
    assert "skipped" not in result.stdout


@pytest.fixture(scope="module")
def results(request):
    """The processes of the tests that were asked for, side by side."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {
            item.callspec.id: pool.submit(run, *item.callspec.params.values())
            for item in request.session.items
            if item.path == Path(__file__)
        }


FAST = [pytest.param(file, "not slow", id=file) for file in FILES]
SLOW = [
    pytest.param(file, "slow", id=f"slow {file}", marks=pytest.mark.slow)
    for file, (_, slow) in FILES.items()
    if slow
]


@pytest.mark.parametrize(("file", "marks"), FAST + SLOW)
def test_interpreted(results, request, file, marks):
    check(results[request.node.callspec.id].result(), FILES[file][marks == "slow"])
