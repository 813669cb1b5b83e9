"""The C++ kernels on all samples: every instruction set of this CPU, plain and sanitized."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tdnet_ops

SAMPLES = Path(__file__).resolve().parents[1] / "samples"
COMPILED = tdnet_ops.build_info()["cpu"]["compiled"]
# Sets are ordered, and each contains those before it.
SUPPORTED = COMPILED[: COMPILED.index(tdnet_ops.build_info()["cpu"]["in_use"]) + 1]


def run_python(arguments, **environment):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        # Not the root of the source tree: its package would come before that of PYTHONPATH.
        cwd=SAMPLES,
        env={**os.environ, **environment},
    )


def assert_all_right(result, instruction_set):
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-8000:]
    assert re.search(rf"^\d{{3,}} samples on {instruction_set}, 0 failed$", result.stdout, re.M)


def test_this_process_uses_the_widest():
    if "TDNET_CPU_ISA" not in os.environ and "avx512f" in Path("/proc/cpuinfo").read_text():
        assert "avx512" in SUPPORTED


@pytest.mark.parametrize("instruction_set", SUPPORTED)
@pytest.mark.slow
def test_instruction_set(instruction_set):
    assert_all_right(run_python([SAMPLES], TDNET_CPU_ISA=instruction_set), instruction_set)


FOLDER = Path(__file__).parent
WEIGHTS = ["test_small_weights_count", "test_a_mean_of_large_values_is_finite"]
TESTS = [f"{FOLDER}/test_semantics.py::{test}" for test in WEIGHTS]
BACKWARD = f"{FOLDER}/test_cpu_backward.py"


@pytest.mark.parametrize("instruction_set", SUPPORTED[:-1])
@pytest.mark.slow
def test_weights_and_gradients_of_instruction_set(instruction_set):
    """Those of the widest are tested everywhere."""
    arguments = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0", *TESTS, BACKWARD]
    result = run_python(arguments, TDNET_CPU_ISA=instruction_set)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    assert " passed" in result.stdout


@pytest.fixture(scope="module")
def sanitized(request, tmp_path_factory):
    """The environment in which Python loads a copy of the package with a sanitized library."""
    root, folder = request.config.rootpath, tmp_path_factory.mktemp("sanitized")
    shutil.copytree(
        Path(tdnet_ops.__file__).parent,
        folder / "tdnet_ops",
        ignore=shutil.ignore_patterns("*.so", "__pycache__"),
    )
    command = [root / "setup.py", "build_ext", "--build-lib", folder, "--build-temp", folder / "o"]
    built = subprocess.run(
        [sys.executable, *map(str, command)],
        capture_output=True,
        text=True,
        cwd=root,
        env={**os.environ, "TDNET_SANITIZE": "address,undefined", "TDNET_CUDA": "0"},
    )
    assert built.returncode == 0, built.stdout + built.stderr
    preload = re.search(r"run with LD_PRELOAD=(\S+) python", built.stderr)
    assert preload is not None, built.stderr
    return {
        "LD_PRELOAD": preload[1],
        "PYTHONPATH": str(folder),
        # Python and torch keep memory to the end of the process.
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }


@pytest.mark.slow
@pytest.mark.parametrize("instruction_set", SUPPORTED)
def test_sanitizers_find_nothing(sanitized, instruction_set):
    where = "import tdnet_ops; print(tdnet_ops.__file__)"
    found = run_python(["-c", where], **sanitized).stdout.strip()
    assert found.startswith(sanitized["PYTHONPATH"])
    samples = run_python([SAMPLES], TDNET_CPU_ISA=instruction_set, **sanitized)
    # Without conftest.py, which takes this package for a wrong one.
    gradients = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--noconftest", BACKWARD]
    gradients = run_python(gradients, TDNET_CPU_ISA=instruction_set, **sanitized)
    for result in (samples, gradients):
        said = result.stdout[-4000:] + result.stderr[-8000:]
        assert "Sanitizer" not in said, said
        assert "runtime error" not in said, said
    assert_all_right(samples, instruction_set)
    assert gradients.returncode == 0, gradients.stdout[-4000:]
    assert " passed" in gradients.stdout


# A tensor whose memory has been taken away: every kernel reads past its end.
PLANTED = """
import sys, torch
sys.path.append(sys.argv[1])
import samples
arguments = [*samples.example(sys.argv[2]).values()]
samples.tensors(arguments)[0].untyped_storage().resize_(64)
getattr(torch.ops.tdnet, sys.argv[2])(*arguments)
print("survived")
"""


@pytest.mark.slow
@pytest.mark.parametrize("operator", ["spatial_pool", "attention_propagate", "upsample_argmax"])
def test_sanitizers_would_find_an_overflow(sanitized, operator):
    """The test above can fail: a planted read past the end of an input is reported, in our code."""
    result = run_python(["-c", PLANTED, SAMPLES.parent, operator], **sanitized)
    assert result.returncode != 0
    assert "survived" not in result.stdout
    assert "AddressSanitizer: heap-buffer-overflow" in result.stderr, result.stderr[-4000:]
    assert "csrc/cpu/" in result.stderr
