"""The Triton kernels' numbers: the tests of interpreted/ in processes with TRITON_INTERPRET=1."""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent / "interpreted"
# Of each file, how many tests there are at least: none may be lost in silence.
FILES = {
    "test_samples.py": 1050,
    "test_rules.py": 400,
    "test_gradients.py": 120,
    "test_bench.py": 7,
}


def run(file):
    # The interpreter is NumPy, which several threads slow down.
    single = dict.fromkeys(["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"], "1")
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(FOLDER / file)],
        capture_output=True,
        text=True,
        cwd=FOLDER,  # not where the sources of the package are
        env={**os.environ, **single, "TRITON_INTERPRET": "1"},
    )


@pytest.fixture(scope="module")
def results():
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {file: pool.submit(run, file) for file in FILES}


@pytest.mark.parametrize("file", FILES)
def test_interpreted(results, file):
    result = results[file].result()
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-4000:]
    passed = int(re.search(r"(\d+) passed", result.stdout)[1])
    assert passed >= FILES[file]
    assert "skipped" not in result.stdout
