"""The build itself: its switches, what it asks pip for, and the standalone CMake build."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "build_tools"))

from tdnet_build import backend, cuda, extension, find_torch  # noqa: E402


def write_script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def fake_toolkit(root: Path, release: str = "13.0", compiles: bool = True) -> Path:
    """Write a CUDA toolkit whose nvcc answers the build's questions but generates nothing."""
    (root / "lib64").mkdir(parents=True)
    (root / "lib64" / "libcudart_static.a").touch()
    outcome = "exit 0" if compiles else "echo 'error: unsupported GNU version' >&2; exit 1"
    write_script(
        root / "bin" / "nvcc",
        f"""case "$1" in
--dryrun) echo '#$ TOP={root}/bin/..' >&2 ;;
--version) echo 'Cuda compilation tools, release {release}, V{release}.1' ;;
--list-gpu-code) echo sm_80; echo sm_86; echo sm_90 ;;
*) {outcome} ;;
esac""",
    )
    return root


def fake_torch(site: Path, version: str) -> Path:
    (site / "torch").mkdir(parents=True)
    (site / "torch" / "version.py").write_text(f"__version__ = '{version}'\ndebug = False\n")
    return site


@pytest.fixture
def no_toolkit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "find_toolkit", lambda environ: None)


# --- TDNET_CUDA ----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["", "2", "on", "AUTO"])
def test_unknown_cuda_switch_is_refused(value):
    with pytest.raises(cuda.BuildError, match=rf"TDNET_CUDA='{value}' is not one of auto, 0, 1"):
        cuda.plan_cuda({"TDNET_CUDA": value})


def test_cuda_off_says_so():
    plan = cuda.plan_cuda({"TDNET_CUDA": "0"})
    assert plan.toolkit is None
    assert plan.architectures == ""
    assert plan.status == "not compiled in: switched off by TDNET_CUDA=0"


def test_cuda_auto_without_nvcc_goes_on_and_says_why(no_toolkit):
    plan = cuda.plan_cuda({})
    assert plan.toolkit is None
    assert plan.status.startswith("not compiled in: no nvcc")


def test_cuda_forced_without_nvcc_is_refused(no_toolkit):
    with pytest.raises(cuda.BuildError, match="TDNET_CUDA=1 cannot be met: no nvcc"):
        cuda.plan_cuda({"TDNET_CUDA": "1"})


@pytest.mark.parametrize(
    ("toolkit", "reason"),
    [
        ({"release": "11.8"}, "is release 11.8, C\\+\\+20 needs 12.0"),
        ({"compiles": False}, "cannot compile an empty kernel: error: unsupported GNU version"),
    ],
)
def test_unusable_nvcc_is_left_out_or_refused(tmp_path, toolkit, reason):
    environ = {"CUDA_HOME": str(fake_toolkit(tmp_path / "cuda", **toolkit)), "PATH": os.defpath}
    plan = cuda.plan_cuda(environ)
    assert plan.toolkit is None
    with pytest.raises(cuda.BuildError, match=reason):
        cuda.plan_cuda({**environ, "TDNET_CUDA": "1"})


def test_usable_nvcc_is_taken(tmp_path):
    toolkit = fake_toolkit(tmp_path / "cuda")
    plan = cuda.plan_cuda({"CUDA_HOME": str(toolkit), "PATH": os.defpath})
    assert plan.nvcc == toolkit / "bin" / "nvcc"
    assert plan.architectures == "8.0;8.6;9.0+PTX"
    assert plan.status == "compiled in by nvcc 13.0 for 8.0;8.6;9.0+PTX"


def test_nvcc_wrapper_script_leads_to_its_toolkit(tmp_path):
    toolkit = fake_toolkit(tmp_path / "cuda")
    wrapper = write_script(tmp_path / "bin" / "nvcc", f'exec {toolkit}/bin/nvcc "$@"')
    environ = {"PATH": os.pathsep.join([str(wrapper.parent), os.defpath])}
    assert cuda.find_toolkit(environ) == toolkit


def test_failing_cuda_sources_stop_a_forced_build_only(monkeypatch):
    failure = cuda.BuildError("nvcc failed with status 2 of: nvcc -c kernel.cu")
    monkeypatch.setenv("TDNET_CUDA", "auto")
    plan = extension.without_failed_cuda(failure)
    assert plan.toolkit is None
    assert plan.status == "not compiled in: nvcc failed with status 2"
    monkeypatch.setenv("TDNET_CUDA", "1")
    with pytest.raises(cuda.BuildError, match=r"nvcc failed with status 2 of: nvcc -c kernel\.cu"):
        extension.without_failed_cuda(failure)


# --- TORCH_CUDA_ARCH_LIST and the other switches -------------------------------------------------


@pytest.mark.parametrize("asked", ["8.0;9.0a+PTX", "8.0 9.0a+PTX", "8.0,9.0a+PTX"])
def test_architecture_list_is_split(asked):
    assert cuda.choose_architectures(asked, ["sm_80", "sm_90"]) == "8.0;9.0a+PTX"


@pytest.mark.parametrize("asked", ["Ampere", "80", "8.0+ptx", "sm_80"])
def test_malformed_architecture_is_refused(asked):
    with pytest.raises(cuda.BuildError, match=r"expected entries like 8\.0"):
        cuda.choose_architectures(asked, ["sm_80"])


def test_asked_architecture_unknown_to_nvcc_is_refused():
    with pytest.raises(cuda.BuildError, match=r"has 10\.0; this nvcc knows sm_80 sm_90"):
        cuda.choose_architectures("8.0;10.0", ["sm_80", "sm_90"])


def test_architecture_flags():
    assert cuda.architecture_flags("8.0;12.0+PTX") == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_120,code=sm_120",
        "-gencode=arch=compute_120,code=compute_120",
    ]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MAX_JOBS", "0"),
        ("MAX_JOBS", "many"),
        ("TDNET_SANITIZE", "thread"),
        ("TDNET_SANITIZE", "address,"),
        ("TDNET_WERROR", "yes"),
        ("CXX", "no-such-compiler"),
    ],
)
def test_bad_setting_is_refused_with_its_name_and_value(name, value):
    environ = {"PATH": os.environ["PATH"], name: value}
    with pytest.raises(cuda.BuildError, match=value) as caught:
        extension.Settings.from_environment(environ)
    assert name in str(caught.value) or name == "CXX"


def test_setup_refuses_with_one_line_and_no_traceback(tmp_path):
    environ = {**os.environ, "TDNET_CUDA": "maybe"}
    command = [sys.executable, "setup.py", "build_ext", "--build-lib", str(tmp_path / "lib")]
    command += ["--build-temp", str(tmp_path / "objects")]
    result = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert result.returncode != 0
    assert "tdnet build failed: TDNET_CUDA='maybe' is not one of auto, 0, 1" in result.stderr
    assert "Traceback" not in result.stderr


def test_object_is_current_only_while_newer_than_its_sources(tmp_path):
    source, target, dependencies = (tmp_path / name for name in ("a.cpp", "a.o", "a.d"))
    source.touch()
    dependencies.write_text(f"{target}: \\\n {source}\n")
    assert not extension.is_current(target, dependencies)
    target.touch()
    later = source.stat().st_mtime_ns + 10**9
    os.utime(target, ns=(later, later))
    assert extension.is_current(target, dependencies)
    os.utime(source, ns=(later + 10**9, later + 10**9))
    assert not extension.is_current(target, dependencies)


# --- torch as a build requirement ----------------------------------------------------------------


def test_torch_is_found_where_new_enough(tmp_path):
    old = fake_torch(tmp_path / "old", "2.9.1")
    empty = tmp_path / "empty"
    new = fake_torch(tmp_path / "new", "2.13.0+cpu")
    assert find_torch.find_torch([empty, old]) is None
    found = find_torch.find_torch([empty, old, new])
    assert found == find_torch.Torch(new / "torch", "2.13.0+cpu")


@pytest.mark.parametrize(
    "hook", [backend.get_requires_for_build_wheel, backend.get_requires_for_build_editable]
)
def test_backend_asks_for_torch_only_where_there_is_none(tmp_path, monkeypatch, hook):
    monkeypatch.chdir(ROOT)
    sites = [tmp_path / "site-packages"]
    monkeypatch.setattr(find_torch, "site_folders", lambda: sites)
    assert hook() == ["torch>=2.10"]
    fake_torch(sites[0], "2.10.0")
    assert hook() == []


def test_torch_of_this_environment_is_the_first_found():
    found = find_torch.find_torch()
    assert found is not None
    assert found.folder.resolve() == Path(torch.__file__).resolve().parent
    assert found.version == torch.__version__
    assert (found.include / "torch/csrc/stable/library.h").is_file()
    assert (found.lib / "libtorch_cpu.so").is_file()


@pytest.mark.parametrize("variable", ["VIRTUAL_ENV", "CONDA_PREFIX", "PATH"])
def test_activated_environment_is_searched(tmp_path, variable):
    site = tmp_path / "lib/python3.12/site-packages"
    site.mkdir(parents=True)
    value = str(tmp_path / "bin") if variable == "PATH" else str(tmp_path)
    assert site in find_torch.site_folders({variable: value})


@pytest.mark.parametrize("present", ["setuptools.command.bdist_wheel", "wheel"])
def test_backend_makes_wheels_by_either_package(monkeypatch, present):
    monkeypatch.setattr(backend, "find_spec", lambda name: True if name == present else None)
    backend.require_wheel_command()


@pytest.mark.parametrize(
    "hook",
    [
        backend.prepare_metadata_for_build_wheel,
        backend.prepare_metadata_for_build_editable,
        backend.build_wheel,
        backend.build_editable,
    ],
)
def test_backend_without_a_wheel_command_says_what_to_do(tmp_path, monkeypatch, hook):
    monkeypatch.setattr(backend, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"makes wheels only with the package `wheel`.* build_ext"):
        hook(str(tmp_path))


def test_requirement_agrees_with_the_metadata_and_the_abi_target():
    requirements = importlib.metadata.requires("tdnet") or []
    assert find_torch.TORCH_REQUIREMENT in requirements
    assert f"torch>={extension.TORCH_TARGET}" == find_torch.TORCH_REQUIREMENT


# --- the source distribution and the checkout ----------------------------------------------------

PACKAGES = ["build_tools", "csrc", "tdnet", "tdnet_ops", "tests"]


@pytest.fixture
def checkout(tmp_path) -> Path:
    """Return a copy of the sources in which nothing is compiled."""
    folder = tmp_path / "checkout"
    ignored = shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, folder)
    return folder


def test_source_distribution_has_all_to_build_and_test_with(tmp_path, checkout):
    program = (
        "import sys; sys.path.insert(0, 'build_tools'); from tdnet_build import backend; "
        f"print(backend.build_sdist({str(tmp_path)!r}))"
    )
    command = [sys.executable, "-W", "error::DeprecationWarning:setuptools", "-c", program]
    result = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    with tarfile.open(next(tmp_path.glob("tdnet-*.tar.gz"))) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
        metadata = archive.extractfile(next(n for n in archive.getnames() if "PKG-INFO" in n))
        assert b"\nLicense: MIT\n" in metadata.read()
    sources = {
        path.relative_to(checkout).as_posix()
        for name in PACKAGES
        for path in (checkout / name).rglob("*")
        if path.is_file() and not {"__pycache__", "tdnet.egg-info"} & set(path.parts)
    }
    expected = sources | {"CMakeLists.txt", "LICENSE", "README.md", "pyproject.toml", "setup.py"}
    assert not expected - packed


def test_bare_checkout_says_how_to_build_it(checkout):
    command = [sys.executable, "-c", "import tdnet_ops"]
    environ = {**os.environ, "PYTHONPATH": str(checkout)}
    result = subprocess.run(command, cwd=checkout, env=environ, capture_output=True, text=True)
    reason = result.stderr.strip().splitlines()[-1]
    assert reason.startswith(f"ImportError: tdnet_ops: {checkout / 'tdnet_ops'} has no compiled")
    assert "run pip install . and start Python elsewhere, or python setup.py build_ext" in reason


def test_nothing_advises_to_install_by_our_name():
    """Whoever registers the name in an index would be installed."""
    files = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("tests/**/*.md")]
    files += [
        path
        for name in ("tdnet", "tdnet_ops", "build_tools")
        for path in ROOT.glob(f"{name}/**/*.py")
    ]
    advice = re.compile(r"pip install[^\n`&;]*[ \"']tdnet(_ops)?\b(?!/)")
    assert advice.search('pip install --no-deps "tdnet[test]"')
    assert not [path for path in files if advice.search(path.read_text())]


def run_pytest(checkout, *arguments):
    """Run `python -m pytest` in the checkout on a test that prints where tdnet_ops comes from."""
    test = checkout / "tests" / "test_origin.py"
    test.write_text(
        "import tdnet_ops\ndef test_origin():\n    print('origin', tdnet_ops.__file__, 'end')\n"
    )
    environ = {name: os.environ[name] for name in os.environ if name != "TDNET_TEST_INSTALLED"}
    command = [sys.executable, "-m", "pytest", "-s", "-n", "0", *arguments, str(test)]
    return subprocess.run(command, cwd=checkout, env=environ, capture_output=True, text=True)


def test_pytest_as_a_module_tests_the_installed_package(checkout):
    import tdnet_ops

    result = run_pytest(checkout)
    assert f"origin {tdnet_ops.__file__} end" in result.stdout, result.stdout + result.stderr


def test_pytest_without_an_installed_package_says_what_to_do(checkout):
    hide = "import sys\nsys.modules['tdnet_ops'] = None\n"
    (checkout / "hide.py").write_text(hide)
    result = run_pytest(checkout, "-p", "hide")
    assert result.returncode == pytest.ExitCode.USAGE_ERROR
    assert f'run pip install ".[test]" in {checkout}' in result.stdout + result.stderr
    assert "Traceback" not in result.stdout + result.stderr


@pytest.mark.parametrize("file", ["tdnet/test_video.py", "tdnet/test_cli.py"])
def test_files_that_need_pyav_are_skipped_by_name_without_it(checkout, file):
    (checkout / "hide.py").write_text("import sys\nsys.modules['av'] = None\n")
    result = run_pytest(checkout, "-p", "hide", str(checkout / "tests" / file))
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(rf"SKIPPED .*{file}.*not installed", result.stdout), result.stdout


# --- the library ---------------------------------------------------------------------------------


def test_versions_agree():
    import tdnet_ops
    from tdnet_ops import _C
    from tdnet_ops.version import __version__

    assert importlib.metadata.version("tdnet") == __version__
    assert _C.version == __version__
    assert tdnet_ops.build_info()["version"] == __version__


def test_library_needs_no_particular_torch_build():
    from tdnet_ops import _C

    assert _C.__file__.endswith("_C.abi3.so")
    dynamic = subprocess.run(
        ["readelf", "-d", _C.__file__], capture_output=True, text=True, check=True
    ).stdout
    needed = {line.split("[")[1].rstrip("]") for line in dynamic.splitlines() if "NEEDED" in line}
    assert "libtorch_cpu.so" in needed
    assert {name for name in needed if "torch" in name or "c10" in name or "cu" in name} == {
        "libtorch_cpu.so"
    }


def test_streams_of_torch_are_found_by_name():
    """csrc/cuda/launchers/device.h asks libtorch_cuda for them, which torch has loaded if it has CUDA."""
    program = (
        "import ctypes, os, torch; "
        "ctypes.CDLL('libtorch_cuda.so', mode=os.RTLD_NOLOAD | os.RTLD_LAZY)"
        ".aoti_torch_get_current_cuda_stream"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    if torch.version.cuda is None:
        assert "libtorch_cuda.so: cannot open shared object" in result.stderr
    else:
        assert result.returncode == 0, result.stderr


@pytest.fixture
def cmake() -> Callable[..., subprocess.CompletedProcess]:
    """Return a function that runs cmake, of the environment's own or the system's."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    program = shutil.which("cmake", path=path)
    assert program, "cmake is missing: it comes with the extra `test`"

    def run(*arguments: str | Path) -> subprocess.CompletedProcess:
        environ = {**os.environ, "PATH": path}
        return subprocess.run([program, *arguments], env=environ, capture_output=True, text=True)

    return run


def test_cmake_builds_a_library_that_registers_the_operators(tmp_path, cmake):
    interpreter = f"-DPython_EXECUTABLE={sys.executable}"
    flags = ["-G", "Ninja", "-DTDNET_CUDA=OFF", "-DCMAKE_CXX_FLAGS=-Werror", interpreter]
    configured = cmake("-S", ROOT, "-B", tmp_path, *flags)
    assert configured.returncode == 0, configured.stderr
    built = cmake("--build", tmp_path, "--parallel", "2")
    assert built.returncode == 0, built.stdout
    library = tmp_path / "_C.abi3.so"
    program = (
        f"import torch; torch.ops.load_library({str(library)!r}); "
        "print(torch.ops.tdnet.attention_propagate.default)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.stdout.strip() == "tdnet.attention_propagate.default", result.stderr


def test_cmake_refuses_an_unknown_switch(tmp_path, cmake):
    result = cmake("-S", ROOT, "-B", tmp_path, "-G", "Ninja", "-DTDNET_CUDA=1")
    assert result.returncode != 0
    assert "TDNET_CUDA=1 is not one of AUTO, ON, OFF" in result.stderr


def test_cmake_forced_cuda_without_nvcc_is_refused(tmp_path, cmake):
    flags = ["-G", "Ninja", "-DTDNET_CUDA=ON", f"-DPython_EXECUTABLE={sys.executable}"]
    result = cmake("-S", ROOT, "-B", tmp_path, *flags, "-DCMAKE_CUDA_COMPILER=NOTFOUND")
    assert result.returncode != 0
    assert "TDNET_CUDA=ON cannot be met" in result.stderr
