import importlib.metadata
import importlib.util
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Processes of pytest-xdist share the cores: more threads would spin waiting for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def use_installed_package() -> None:
    """Import what is installed, not the sources, although `python -m pytest` puts them first.

    Sources that were compiled in place are as good as installed, here and in programs that tests
    start elsewhere.
    """
    if any(ROOT.glob("tdnet_ops/_C*.so")):
        folders = [str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        if _comes_from_sources():
            os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, folders))
    else:
        sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
    if importlib.util.find_spec("tdnet_ops") is None:
        pytest.exit(
            f'tdnet is not installed beside {sys.executable}: run pip install ".[test]" in {ROOT}',
            returncode=pytest.ExitCode.USAGE_ERROR,
        )


def _comes_from_sources() -> bool:
    spec = importlib.util.find_spec("tdnet_ops")
    return spec is not None and Path(spec.origin or "").resolve().parents[1] == ROOT


use_installed_package()

# What a shell runs in the background ignores Ctrl-C, and programs that tests start inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

import torch  # noqa: E402

import tdnet_ops  # noqa: E402
from tdnet_ops.backends import has_kernel  # noqa: E402

# So that this file and all tests can import the samples. Not for longer: where Triton is not
# installed, `import triton` would find tests/triton.
sys.path.append(str(Path(__file__).resolve().parent))

import samples  # noqa: E402

sys.path.pop()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device",
        default="cpu",
        metavar="NAME",
        help="where operators and models are tested: cpu, cuda, cuda:1, xpu, ...; default: cpu",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Stop when the source tree would be tested in place of the installed package."""
    if os.environ.get("TDNET_TEST_INSTALLED") == "1" and _comes_from_sources():
        raise pytest.UsageError(f"tdnet_ops comes from the source tree: {ROOT}")
    config.addinivalue_line(
        "markers",
        "needs_cuda(devices=1, memory_gb=0): skipped without that many CUDA devices, or that much "
        "free memory on the first; fails instead if TDNET_REQUIRE_GPU names as many devices",
    )
    samples.use_device(_asked_device(config.getoption("--device")))
    # pytest-xdist would put files of few tests last, however long these take.
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what a backend declares missing; the longest files come first.

    At the end one core would be busy with them alone.
    """
    missing = {item for item in items if _declared_missing(item)}
    config.hook.pytest_deselected(items=list(missing))
    longest = ROOT / "tests" / "triton"
    items[:] = sorted(
        (item for item in items if item not in missing),
        key=lambda item: longest not in item.path.parents,
    )


def _declared_missing(item: pytest.Item) -> bool:
    """Whether it asks the emulator or Triton for an operator that csrc/cuda or Triton lacks."""
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    told = [getattr(value, "operator", value) for value in parameters]
    names = [name for name in told if isinstance(name, str) and name in samples.NAMES]
    folders = {folder.name for folder in item.path.parents}
    if "emulator" in folders:
        return any(name not in samples.DECLARED_BY_CUDA for name in names)
    return "triton" in folders and any(not has_kernel("triton", name) for name in names)


def pytest_report_header() -> str:
    """Say what is tested, and beside which versions."""
    try:
        triton = f"Triton {importlib.metadata.version('triton')}"
    except importlib.metadata.PackageNotFoundError:
        triton = "no Triton"
    return f"tested: {Path(tdnet_ops.__file__).parent}, torch {torch.__version__}, {triton}"


def _asked_device(name: str) -> torch.device:
    """The device of --device, if torch finds it."""
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda", "xpu"):
        raise pytest.UsageError(f"--device: expected cpu, cuda or xpu, got {name!r}")
    if device.type == "cpu":
        return torch.device("cpu")
    found = torch.get_device_module(device).device_count()
    if (device.index or 0) >= found:
        kind = device.type.upper()
        raise pytest.UsageError(
            f"--device {name}: torch {torch.__version__} finds {found} {kind} devices"
        )
    return torch.device(device.type, device.index or 0)


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where operators and models are to be tested."""
    return samples.DEVICE


@pytest.fixture(autouse=True)
def _in_full_precision() -> Iterator[None]:
    """No TF32 in the definitions, cuDNN's convolutions included, which would use it by default.

    By cuDNN's older flag: torch.compile and torch.export read it, and raise where the newer one
    was set to something else.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    usual = matmul.fp32_precision, cudnn.allow_tf32
    cudnn.allow_tf32 = False
    yield
    matmul.fp32_precision, cudnn.allow_tf32 = usual


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs another GPU than there is, or fail where one is promised."""
    marker = item.get_closest_marker("needs_cuda")
    if marker is None:
        return
    devices, memory_gb = marker.kwargs.get("devices", 1), marker.kwargs.get("memory_gb", 0)
    lack = _lack_of_cuda(devices, memory_gb)
    if lack is None:
        return
    if int(os.environ.get("TDNET_REQUIRE_GPU") or 0) >= devices:
        pytest.fail(f"{lack}, but TDNET_REQUIRE_GPU is set", pytrace=False)
    pytest.skip(lack)


def pytest_runtest_teardown(item: pytest.Item) -> None:
    """What a large test took must not be missing in the processes beside this one."""
    marker = item.get_closest_marker("needs_cuda")
    if marker is not None and marker.kwargs.get("memory_gb"):
        torch.cuda.empty_cache()


def _lack_of_cuda(devices: int, memory_gb: float) -> str | None:
    found = torch.cuda.device_count()
    if found < devices:
        return f"needs {devices} CUDA device{'s' * (devices > 1)}, torch finds {found}"
    if memory_gb:
        torch.cuda.empty_cache()  # what earlier tests left there is free too
    free_gb = torch.cuda.mem_get_info(0)[0] / 1e9
    if free_gb < memory_gb:
        return f"needs {memory_gb} GB of free GPU memory, there are {free_gb:.1f}"
    return None
