"""The build itself: its switches, what it asks pip for, and what comes out."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from setuptools import Distribution, Extension

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "build_tools"))

from tdnet_build import BuildError, backend, command, cuda, find_torch, native  # noqa: E402
from tdnet_build.plan import Plan  # noqa: E402

LIBRARY = "libtdnet_ops.so"


def write_script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def fake_toolkit(root: Path, release: str = "13.0", compiles: bool = True) -> Path:
    """Write a CUDA toolkit whose nvcc answers the build's questions but generates nothing."""
    outcome = "exit 0" if compiles else "echo 'error: unsupported GNU version' >&2; exit 1"
    write_script(
        root / "bin" / "nvcc",
        f"""case "$1" in
--dryrun) echo '#$ TOP={root}/bin/..' >&2 ;;
--version) echo 'Cuda compilation tools, release {release}, V{release}.1' ;;
--list-gpu-code) echo sm_80; echo sm_86; echo sm_90; echo sm_100 ;;
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


@pytest.mark.parametrize("value", ["2", "on", "AUTO"])
def test_unknown_cuda_switch_is_refused(value):
    with pytest.raises(BuildError, match=rf"TDNET_CUDA='{value}' is not one of auto, 0, 1"):
        cuda.plan_cuda({"TDNET_CUDA": value})


def test_cuda_off_says_so():
    plan = cuda.plan_cuda({"TDNET_CUDA": "0"})
    assert plan.nvcc is None
    assert plan.architectures == ""
    assert plan.status == "not compiled in: switched off by TDNET_CUDA=0"


def test_cuda_auto_without_nvcc_goes_on_and_says_why(no_toolkit):
    plan = cuda.plan_cuda({})
    assert plan.nvcc is None
    assert plan.status.startswith("not compiled in: no nvcc")


def test_cuda_forced_without_nvcc_is_refused(no_toolkit):
    with pytest.raises(BuildError, match="TDNET_CUDA=1 cannot be met: no nvcc"):
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
    assert plan.nvcc is None
    with pytest.raises(BuildError, match=reason):
        cuda.plan_cuda({**environ, "TDNET_CUDA": "1"})


def test_usable_nvcc_is_taken(tmp_path):
    toolkit = fake_toolkit(tmp_path / "cuda")
    plan = cuda.plan_cuda({"CUDA_HOME": str(toolkit), "PATH": os.defpath})
    assert plan.nvcc == toolkit / "bin" / "nvcc"
    assert plan.architectures == "8.0;9.0;10.0+PTX"
    assert plan.status == "compiled in by nvcc 13.0 for 8.0;9.0;10.0+PTX"


def test_nvcc_wrapper_script_leads_to_its_toolkit(tmp_path):
    toolkit = fake_toolkit(tmp_path / "cuda")
    wrapper = write_script(tmp_path / "bin" / "nvcc", f'exec {toolkit}/bin/nvcc "$@"')
    environ = {"PATH": os.pathsep.join([str(wrapper.parent), os.defpath])}
    assert cuda.find_toolkit(environ) == toolkit


# --- TORCH_CUDA_ARCH_LIST and the other switches -------------------------------------------------


@pytest.mark.parametrize("asked", ["8.0;9.0a+PTX", "8.0 9.0a+PTX", "8.0,9.0a+PTX"])
def test_architecture_list_is_split(asked):
    assert cuda.choose_architectures(asked, ["sm_80", "sm_90"]) == "8.0;9.0a+PTX"


@pytest.mark.parametrize("asked", ["Ampere", "80", "8.0+ptx", "sm_80"])
def test_malformed_architecture_is_refused(asked):
    with pytest.raises(BuildError, match=r"expected entries like 8\.0"):
        cuda.choose_architectures(asked, ["sm_80"])


def test_asked_architecture_unknown_to_nvcc_is_refused():
    with pytest.raises(BuildError, match=r"has 10\.0; this nvcc knows sm_80 sm_90"):
        cuda.choose_architectures("8.0;10.0", ["sm_80", "sm_90"])


def test_architecture_flags():
    assert cuda.architecture_flags("8.0;12.0+PTX") == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_120,code=sm_120",
        "-gencode=arch=compute_120,code=compute_120",
    ]


def fake_driver(folder: Path, *capabilities: str) -> str:
    """Write an nvidia-smi that sees GPUs of these capabilities; return its folder."""
    write_script(
        folder / "nvidia-smi",
        f"""[ "$*" = "--query-gpu=compute_cap --format=csv,noheader" ] || exit 2
printf '%s\\n' {" ".join(capabilities)}""",
    )
    return str(folder)


@pytest.mark.parametrize(
    ("seen", "asked", "architectures"),
    [
        (["8.6"], "", "8.6"),
        (["9.0", "8.0", "9.0"], "", "8.0;9.0"),
        (["8.6"], "8.0", "8.0"),
        (["7.5"], "", "8.0;9.0;10.0+PTX"),  # too old for the kernels
        (["12.0"], "", "8.0;9.0;10.0+PTX"),  # too new for this nvcc
        (["No devices were found"], "", "8.0;9.0;10.0+PTX"),
    ],
)
def test_visible_gpu_alone_is_built_for(tmp_path, seen, asked, architectures):
    path = os.pathsep.join([fake_driver(tmp_path / "bin", *map(repr, seen)), os.defpath])
    environ = {"CUDA_HOME": str(fake_toolkit(tmp_path / "cuda")), "PATH": path}
    plan = cuda.plan_cuda({**environ, "TORCH_CUDA_ARCH_LIST": asked})
    assert plan.architectures == architectures
    alone = not asked and "PTX" not in architectures
    assert (f"for {architectures}, the GPU found here" in plan.status) == alone


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MAX_JOBS", "0"),
        ("MAX_JOBS", "many"),
        ("TDNET_SANITIZE", "thread"),
        ("TDNET_SANITIZE", "address,"),
        ("TDNET_WERROR", "yes"),
        ("TDNET_TORCH_DIR", "/no/such/folder"),
        ("TDNET_NAME_SPACE", "tdnet-2"),
        ("CXX", "no-such-compiler"),
    ],
)
def test_bad_setting_is_refused_with_its_name_and_value(name, value):
    environ = {"PATH": os.environ["PATH"], "TDNET_CUDA": "0", name: value}
    with pytest.raises(BuildError, match=value) as caught:
        native.count_jobs(environ) if name == "MAX_JOBS" else Plan.from_environment(environ)
    assert name in str(caught.value) or name == "CXX"


def test_sanitized_build_says_what_to_preload():
    plan = Plan.from_environment({**os.environ, "TDNET_CUDA": "0", "TDNET_SANITIZE": "address"})
    assert re.fullmatch(r"LD_PRELOAD=/\S*/libasan\.so\S*", plan.preload())


def test_setup_refuses_with_one_line_and_no_traceback(tmp_path):
    environ = {**os.environ, "TDNET_CUDA": "maybe"}
    command = [sys.executable, "setup.py", "build_ext", "--build-lib", str(tmp_path / "lib")]
    command += ["--build-temp", str(tmp_path / "objects")]
    result = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert result.returncode != 0
    assert "tdnet build failed: TDNET_CUDA='maybe' is not one of auto, 0, 1" in result.stderr
    assert "Traceback" not in result.stderr


# --- what the build asks pip for -----------------------------------------------------------------


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
    monkeypatch.setattr(native.Tool, "find", lambda tool: Path(tool.name))
    assert hook() == ["torch>=2.10"]
    fake_torch(sites[0], "2.10.0")
    assert hook() == []
    monkeypatch.setattr(native.Tool, "find", lambda tool: None)
    assert hook() == ["cmake>=3.22", "ninja"]


@pytest.mark.parametrize("said", ["echo cmake version 3.21.9", "echo cmake version 4.1; exit 1"])
def test_unusable_cmake_is_passed_over(tmp_path, monkeypatch, said):
    """As pip's build environment makes of a cmake that is a Python script."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    old = write_script(tmp_path / "old" / "cmake", said).parent
    assert native.CMAKE.find({"PATH": str(old)}) is None
    good = write_script(tmp_path / "new" / "cmake", "echo cmake version 3.22.1")
    assert native.CMAKE.find({"PATH": f"{old}:{good.parent}"}) == good


def test_missing_cmake_and_ninja_are_named(monkeypatch):
    monkeypatch.setattr(native.Tool, "find", lambda tool: None)
    for tool in (native.CMAKE, native.NINJA):
        with pytest.raises(BuildError, match=rf"^no {tool.name}.*pip install '{tool.name}"):
            tool.found()


def test_torch_of_this_environment_is_the_first_found():
    found = find_torch.find_torch()
    assert found is not None
    assert found.folder.resolve() == Path(torch.__file__).resolve().parent
    assert found.version == torch.__version__
    assert (found.include / "torch/csrc/stable/library.h").is_file()
    assert found.library.is_file()


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
    assert f"torch>={find_torch.TORCH_TARGET}" == find_torch.TORCH_REQUIREMENT


# --- the source distribution and the checkout ----------------------------------------------------

FOLDERS = [
    *(".ci", "benchmarks", "build_tools", "configs", "csrc", "docs", "examples", "hub"),
    *("tdnet", "tdnet_ops", "tests"),
]
FILES = {
    *(".clang-format", ".editorconfig", ".pre-commit-config.yaml", "CHANGELOG.md"),
    *("CMakeLists.txt", "CONTRIBUTING.md", "LICENSE", "README.md", "pyproject.toml", "setup.py"),
}


@pytest.fixture
def checkout(tmp_path) -> Path:
    return copy_sources(tmp_path / "checkout")


def copy_sources(folder: Path) -> Path:
    """Copy the sources, nothing compiled."""
    ignored = shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info")
    for name in FOLDERS:
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
        for name in FOLDERS
        for path in (checkout / name).rglob("*")
        if path.is_file() and not {"__pycache__", "tdnet.egg-info"} & set(path.parts)
    }
    assert not (sources | FILES) - packed


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no checkout of git")
def test_the_lists_above_have_all_that_is_tracked():
    command = ["git", "-c", "safe.directory=*", "ls-files"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    tracked = {line.partition("/")[0] for line in result.stdout.splitlines()}
    assert tracked == {*FOLDERS, *FILES, "MANIFEST.in", ".gitattributes", ".gitignore"}


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


def dynamic_entries(library: object, kind: str) -> list[str]:
    """What a library says of NEEDED, RUNPATH, ..."""
    command = ["readelf", "-d", str(library)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return re.findall(rf"\({kind}\).*\[(.*)\]$", said, re.MULTILINE)


def test_library_needs_no_particular_torch_build():
    from tdnet_ops import _C, _library

    needed = dynamic_entries(_library.LIBRARY, "NEEDED")
    assert [name for name in needed if re.search("torch|c10|cu", name)] == ["libtorch_cpu.so"]
    assert dynamic_entries(_library.LIBRARY, "SONAME") == ["libtdnet_ops.so"]
    assert not dynamic_entries(_library.LIBRARY, "R(UN)?PATH")
    # The module loads the library beside it, and nothing of torch by itself.
    assert _C.__file__.endswith("_C.abi3.so")
    needed = dynamic_entries(_C.__file__, "NEEDED")
    assert [name for name in needed if re.search("torch|c10|cu|tdnet", name)] == ["libtdnet_ops.so"]
    assert dynamic_entries(_C.__file__, "RUNPATH") == ["$ORIGIN"]
    assert not dynamic_entries(_C.__file__, "RPATH")


def test_library_has_no_symbol_of_python():
    from tdnet_ops import _C, _library

    def of_python(library: object) -> list[str]:
        command = ["nm", "--dynamic", str(library)]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return [name for name in re.findall(r"(\S+)$", said, re.M) if re.match("_?Py", name)]

    assert "PyInit__C" in of_python(_C.__file__)
    assert not of_python(_library.LIBRARY)


def test_streams_of_torch_are_found_by_name():
    """csrc/cuda/launchers/device.h asks libtorch_cuda, which torch has loaded if it has CUDA."""
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


# --- building ------------------------------------------------------------------------------------


@dataclass
class Checkout:
    """A copy of the sources, and the folder in which the native build of its wheels goes on."""

    folder: Path
    native: Path

    def run(self, *command: object, **environ: str) -> str:
        """Run a program in the checkout, return what it said."""
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        switches = {"TDNET_CUDA": "0", "TDNET_WERROR": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        result = subprocess.run(
            [*map(str, command)],
            cwd=self.folder,
            env={**os.environ, "PATH": path, **switches, **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if result.returncode != 0:
            raise RuntimeError(result.stdout)
        return result.stdout

    def hook(self, name: str, out: Path, **environ: str) -> tuple[Path, str]:
        """Call a hook of the pip backend, return the file that it made and what it said."""
        program = (
            "import sys; sys.path.insert(0, 'build_tools'); from tdnet_build import backend; "
            f"print('made', backend.{name}({str(out)!r}))"
        )
        environ = {"TDNET_BUILD_DIR": str(self.native), **environ}
        said = self.run(sys.executable, "-c", program, **environ)
        return out / re.findall(r"^made (\S+)$", said, re.MULTILINE)[-1], said

    def files(self) -> dict[Path, int]:
        return {path: path.lstat().st_mtime_ns for path in self.folder.rglob("*")}


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Checkout:
    """A checkout whose wheel was made while it was read-only."""
    root = tmp_path_factory.mktemp("built")
    checkout = Checkout(copy_sources(root / "checkout"), root / "native")
    paths = [checkout.folder, *checkout.folder.rglob("*")]
    for path in paths:
        path.chmod(path.stat().st_mode & ~0o222)
    before = checkout.files()
    checkout.hook("build_wheel", root / "first")
    assert checkout.files() == before  # root may write anywhere
    for path in paths:
        path.chmod(path.stat().st_mode | 0o200)
    return checkout


def compiled_in(said: str) -> set[str]:
    return set(re.findall(r"Building \w+ object \S*\.dir/(\S+)\.o", said))


@pytest.mark.slow
def test_one_changed_source_is_compiled(built, tmp_path):
    (built.folder / "csrc/library.cpp").touch()
    _, said = built.hook("build_wheel", tmp_path)
    assert compiled_in(said) == {"csrc/library.cpp"}


@pytest.mark.slow
def test_deleted_module_leaves_no_trace(built, tmp_path):
    module = built.folder / "tdnet_ops" / "short_lived.py"
    module.touch()
    first, _ = built.hook("build_wheel", tmp_path / "first")
    module.unlink()
    second, said = built.hook("build_wheel", tmp_path / "second")
    assert not compiled_in(said)
    names = [set(zipfile.ZipFile(wheel).namelist()) for wheel in (first, second)]
    assert names[0] - names[1] == {"tdnet_ops/short_lived.py"}
    compiled = {"tdnet_ops/_C.abi3.so", "tdnet_ops/libtdnet_ops.so"}
    assert compiled | {"tdnet_ops/cmake/tdnet_opsConfig.cmake"} <= names[1]
    assert re.fullmatch(r"tdnet-[\d.]+-cp310-abi3-linux_\w+\.whl", second.name)


@pytest.mark.parametrize("how", ["inplace", "editable_mode"])
def test_builds_in_place_go_on_in_one_folder(how):
    build = command.BuildLibrary(Distribution({"ext_modules": [Extension("a", [])]}))
    setattr(build, how, True)
    build.finalize_options()
    assert build.build_temp == str(ROOT / "build" / "native")


def test_a_folder_keeps_to_the_tools_that_it_began_with(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(native, "run", lambda command: ran.append(Path(command[0])))
    plan = Plan.from_environment({**os.environ, "TDNET_CUDA": "0"})
    path = os.environ["PATH"]

    def build_with(*tools):
        ran.clear()
        monkeypatch.setenv("PATH", ":".join([*(str(tool.parent) for tool in tools), path]))
        native.configure(plan, tmp_path / "native")
        (tmp_path / "native" / "build.ninja").touch()
        native.build(tmp_path / "native", "_C")

    cmake, ninja, other_cmake, other_ninja = (
        write_script(tmp_path / folder / name, f"echo {name} version 4.0")
        for folder in ("first", "other")
        for name in ("cmake", "ninja")
    )
    build_with(cmake, ninja)
    assert ran == [cmake, ninja]
    build_with(other_cmake, other_ninja)
    assert ran == [ninja]
    cmake.unlink()
    build_with(other_cmake, other_ninja)
    assert ran == [other_cmake, ninja]


@pytest.mark.slow
def test_builds_in_place_and_editable_take_what_is_compiled(built, tmp_path):
    environ = {"TDNET_BUILD_DIR": str(built.native)}
    for build in (
        lambda: built.run(sys.executable, "setup.py", "build_ext", "--inplace", **environ),
        lambda: built.hook("build_editable", tmp_path)[1],
    ):
        said = build()
        assert "tdnet build: CUDA kernels not compiled in: switched off by TDNET_CUDA=0" in said
        assert not compiled_in(said)
        for name in (native.MODULE, LIBRARY):
            library = built.folder / "tdnet_ops" / name
            assert library.read_bytes() == (built.native / name).read_bytes()
            library.unlink()


@pytest.mark.slow
@pytest.mark.parametrize("name", [native.MODULE, LIBRARY])
def test_built_library_registers_the_operators(built, name):
    program = (
        f"import torch; torch.ops.load_library({str(built.native / name)!r}); "
        "print(torch.ops.tdnet.attention_propagate.default)"
    )
    said = built.run(sys.executable, "-c", program)
    assert said.strip() == "tdnet.attention_propagate.default"


@pytest.mark.slow
def test_compile_commands_are_there_for_editors(built):
    assert '"file": ' in (built.native / "compile_commands.json").read_text()


def configure_standalone(built: Checkout, folder: Path, *options: str) -> str:
    command = ["cmake", "-S", built.folder, "-B", folder, "-G", "Ninja"]
    return built.run(*command, f"-DPython_EXECUTABLE={sys.executable}", *options)


@pytest.mark.slow
def test_standalone_build_compiles_as_the_wheel_does(built, tmp_path):
    said = configure_standalone(built, tmp_path)
    assert f"tdnet build: torch {torch.__version__} in " in said
    assert "tdnet build: CUDA kernels not compiled in: switched off by TDNET_CUDA=0" in said
    commands = [
        (folder / "compile_commands.json").read_text().replace(str(folder), "")
        for folder in (tmp_path, built.native)
    ]
    assert commands[0] == commands[1]
    assert "-Werror" in commands[0]


@pytest.mark.slow
def test_standalone_build_refuses_with_one_line(built, tmp_path):
    with pytest.raises(RuntimeError) as caught:
        configure_standalone(built, tmp_path, "-DTDNET_CUDA=maybe")
    assert "tdnet build failed: TDNET_CUDA='maybe' is not one of auto, 0, 1" in str(caught.value)
    assert "Traceback" not in str(caught.value)


NVCC = cuda.plan_cuda({**os.environ, "TDNET_CUDA": "auto"}).nvcc


@pytest.mark.slow
@pytest.mark.skipif(NVCC is None, reason="no nvcc that works")
def test_failing_cuda_sources_stop_a_forced_build_only(built, tmp_path):
    """The CPU library is built all the same; a few lines stand for its sources."""
    checkout = Checkout(tmp_path / "checkout", tmp_path / "native")
    shutil.copytree(built.folder, checkout.folder)
    for path in checkout.folder.glob("csrc/cuda/**/*.c*"):
        path.unlink()
    (checkout.folder / "csrc/cuda/broken.cu").write_text("__global__ void broken() { oops; }\n")
    for path in checkout.folder.glob("csrc/cpu/*.cpp"):
        if path.name != "instruction_sets.cpp":
            path.unlink()
    build = [sys.executable, "setup.py", "build_ext", "--build-lib", tmp_path, "--build-temp"]
    with pytest.raises(RuntimeError) as caught:
        checkout.run(*build, checkout.native, TDNET_CUDA="1", TORCH_CUDA_ARCH_LIST="9.0")
    reason = "csrc/cuda/broken.cu does not compile"
    assert str(caught.value).strip().splitlines()[-1].endswith(f"tdnet build failed: {reason}")
    said = checkout.run(*build, checkout.native, TDNET_CUDA="auto", TORCH_CUDA_ARCH_LIST="9.0")
    assert f"tdnet build: CUDA kernels not compiled in: {reason}\n" in said
    assert reason in (tmp_path / "tdnet_ops" / LIBRARY).read_bytes().decode(errors="replace")


@pytest.mark.slow
def test_source_distribution_builds_the_same_wheel(built, tmp_path):
    with tarfile.open(built.hook("build_sdist", tmp_path)[0]) as archive:
        archive.extractall(tmp_path, filter="data")
    unpacked = Checkout(next(path for path in tmp_path.iterdir() if path.is_dir()), tmp_path / "n")
    wheels = [
        checkout.hook("build_wheel", tmp_path)[0].rename(tmp_path / f"{number}.whl")
        for number, checkout in enumerate((built, unpacked))
    ]
    contents = []
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            contents.append({name: archive.read(name) for name in archive.namelist()})
    assert contents[0] == contents[1]


AUDITWHEEL = shutil.which("auditwheel", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")


@pytest.mark.slow
@pytest.mark.skipif(AUDITWHEEL is None, reason="auditwheel is not installed")
def test_wheel_can_be_handed_to_others(built, tmp_path):
    wheel, _ = built.hook("build_wheel", tmp_path)
    said = built.run(AUDITWHEEL, "show", wheel)
    assert re.search(r'constrains the platform tag\s+to\s+"manylinux_2_\d+_\w+"', said), said
    built.run(AUDITWHEEL, "repair", "--exclude", "libtorch_cpu.so", "-w", tmp_path / "out", wheel)
    (repaired,) = (tmp_path / "out").iterdir()
    assert re.search(r"-cp310-abi3-manylinux_2_\d+_\w+\.whl$", repaired.name)
    names = zipfile.ZipFile(repaired).namelist()
    libraries = {name for name in names if ".so" in name}
    assert libraries == {"tdnet_ops/_C.abi3.so", "tdnet_ops/libtdnet_ops.so"}
