"""null_operator.patch, the worked example of docs/development.md: a new operator with a CPU kernel.

It touches what the table there names and nothing else, and every generated test takes it up.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PATCH = ROOT / "tests" / "null_operator.patch"
TREE = ("CMakeLists.txt", "build_tools", "csrc", "pyproject.toml", "setup.py", "tdnet_ops", "tests")
GENERATED = (
    "backends",
    "check_twins",
    "checks",
    "correctness",
    "gradients",
    "registration",
    "rooms",
)


def run(folder, *command, **environ):
    ours = ("PYTEST_", "TDNET_TEST_INSTALLED")  # of the tests that run this one
    here = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        env={**here, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", **environ},
    )


def run_tests(folder, *arguments, **environ):
    options = ("-q", "-n", "0", "-p", "no:cacheprovider")
    return run(folder, sys.executable, "-m", "pytest", *options, *arguments, **environ)


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """The sources with the null operator, compiled in place."""
    folder = tmp_path_factory.mktemp("house")
    ignored = shutil.ignore_patterns("__pycache__", "*.so")
    for name in TREE:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, folder / name)
    patched = run(folder, "patch", "-p1", "--batch", "-i", str(PATCH))
    assert patched.returncode == 0, patched.stdout + patched.stderr
    built = run(folder, sys.executable, "setup.py", "build_ext", "--inplace", TDNET_CUDA="0")
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def test_it_touches_one_file_in_each_room():
    touched = set(re.findall(r"^\+\+\+ b/(.*)$", PATCH.read_text(), re.M))
    text = (ROOT / "docs" / "development.md").read_text().partition("## Adding an operator")[2]
    rows = [row for row in text.splitlines() if row.startswith("| `")]
    rooms = {name for row in rows for name in re.findall(r"`([^`]*)`", row.split("|")[1])}
    optional = {name for name in rooms if re.search("cuda/|triton/|flop_counts", name)}
    expected = {name.replace("<name>", "null") for name in rooms - optional}
    # Where Python exports it by name, and where it is told what is lacking on purpose.
    by_name = {"tdnet_ops/operators/__init__.py", "tests/tdnet_ops/test_rooms.py"}
    assert touched == expected | by_name


@pytest.mark.slow
def test_the_generated_tests_take_it_up(house):
    files = [f"tests/tdnet_ops/test_{name}.py" for name in GENERATED]
    result = run_tests(house, "-k", "null", *files)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    assert int(re.search(r"(\d+) passed", result.stdout)[1]) > 300, result.stdout[-4000:]


@pytest.mark.slow
@pytest.mark.parametrize("tests", ["emulator/test_kernels.py", "triton/interpreted"])
def test_backends_without_a_kernel_are_not_asked(house, tests):
    result = run_tests(
        house, "-k", "null", "--collect-only", f"tests/{tests}", TRITON_INTERPRET="1"
    )
    assert result.returncode == pytest.ExitCode.NO_TESTS_COLLECTED, result.stdout + result.stderr
    assert "deselected" in result.stdout


@pytest.mark.slow
def test_backends_without_a_kernel_say_so(house):
    program = (
        "import tdnet_ops, torch; "
        "print(tdnet_ops.build_info()['kernels']['null']); "
        "tdnet_ops.null(torch.ones(1, 2, 3, 4), backend='triton')"
    )
    result = run(house, sys.executable, "-c", program, TRITON_INTERPRET="1")
    assert "['cpu', 'reference']" in result.stdout, result.stderr
    assert "backend 'triton' cannot run null: it has no kernel of this operator" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "file", ["tests/samples/operators/null.py", "tdnet_ops/bench/cases/null.py"]
)
def test_a_forgotten_file_fails_by_name(house, file):
    kept = (house / file).read_text()
    (house / file).unlink()
    try:
        result = run_tests(house, "tests/tdnet_ops/test_rooms.py")
    finally:
        (house / file).write_text(kept)
    assert result.returncode == 1
    assert f"{file} is missing" in result.stdout
