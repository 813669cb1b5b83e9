"""Every shipped configuration compiles for every GPU, on a machine without one."""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tdnet_ops.triton import targets

PROGRAM = Path(__file__).resolve().parent / "check_target.py"


@pytest.fixture(scope="module")
def results():
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}

    def run(target):
        command = [sys.executable, str(PROGRAM), target]
        return subprocess.run(command, capture_output=True, text=True, env=environment)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {target: pool.submit(run, target) for target in targets.NAMES}


@pytest.mark.parametrize("target", targets.NAMES)
def test_shipped_configurations(results, target):
    result = results[target].result()
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    assert int(re.search(r"(\d+) kernels, 0 failed", result.stdout)[1]) > 30
