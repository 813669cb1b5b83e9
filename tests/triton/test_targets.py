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
# The one with the widest choice of matrix instructions.
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
    asked = [item.callspec.id for item in request.session.items if is_target(item)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {name: pool.submit(run, "check_target.py", *CHECKS[name]) for name in asked}


def is_target(item):
    return item.path == Path(__file__) and item.originalname == "test_shipped_configurations"


# A whole table takes minutes: a part of the first one every day, half of it with what is slow, and
# of the others, whose kernels are the same, a part. `check_target.py` checks the whole of any.
FEW, HALF, PART = "12", "2", "8"
CHECKS = {f"{FIRST} few": [FIRST, "--every", FEW], FIRST: [FIRST, "--every", HALF]}
CHECKS |= {name: [name, "--every", PART] for name in targets.NAMES if name != FIRST}
DAILY, *SLOW = CHECKS


@pytest.mark.parametrize(
    "check", [pytest.param(name, id=name, marks=pytest.mark.slow) for name in SLOW] + [DAILY]
)
def test_shipped_configurations(results, check):
    result = results[check].result()
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    least = 100 // int(CHECKS[check][-1])
    assert int(re.search(r"(\d+) kernels, 0 failed", result.stdout)[1]) > least


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
