"""What every device must keep, the CPU too: repeatable, at any address, from poisoned memory."""

import subprocess
import sys
from pathlib import Path

import device_checks as checks
import pytest
import samples

FEW = checks.typical(["channels_last"])
PROGRAM = Path(__file__).with_name("first_call.py")


@pytest.mark.parametrize("sample", FEW, ids=str)
def test_the_same_bits_every_time(sample, backend, device):
    times = 5 if device.type == "cpu" else 50
    checks.check_repeats(checks.by_backend(sample.operator, backend), sample.arguments(), times)


@pytest.mark.parametrize("sample", samples.select(["middle"], dtypes=checks.DTYPES), ids=str)
def test_any_start_in_memory(sample, backend):
    if sample.layout in ("contiguous", "channels_last"):
        checks.check_misaligned(sample, checks.by_backend(sample.operator, backend))


@pytest.mark.parametrize(
    "sample", checks.typical() + samples.select(["middle"], ["contiguous"], checks.DTYPES), ids=str
)
def test_everything_is_written(sample, backend):
    checks.check_written(sample, checks.by_backend(sample.operator, backend))


@pytest.mark.parametrize("dtype", checks.DTYPES)
def test_one_hot_queries_give_exact_logits(dtype, backend):
    checks.check_one_hot(checks.by_backend("pooled_affinity", backend), dtype)


@pytest.mark.parametrize("how", ["plain", "thread", "stream", "graph"])
def test_first_call_of_a_process(how, backend, device, tmp_path):
    """The first call of each operator may come in a thread, on a side stream, before a capture."""
    if device.type != "cuda" and how in ("stream", "graph"):
        return  # No such thing there.
    command = [sys.executable, str(PROGRAM), str(device), backend, how]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.split() == [f"{name}:right" for name in samples.NAMES]


def test_a_wrong_first_call_would_be_seen(device, tmp_path):
    """The test above can fail: CPU tensors are refused by the CUDA kernels."""
    command = [sys.executable, str(PROGRAM), "cpu", "cuda", "plain"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 1
    assert "cuda" in result.stderr
