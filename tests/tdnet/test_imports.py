"""What the command imports, and what it does on machines that lack a package."""

import ast
import re
import subprocess
import sys
import textwrap
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from PIL import Image

import tdnet
import tdnet_ops
from tdnet.cli.app import app


def run_python(code, folder):
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, cwd=folder
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["segment", "--help"],
        ["eval", "--help"],
        ["report", "--help"],
        ["sweep", "--help"],
        ["attention", "--help"],
        ["--version"],
        [],
    ],
)
def test_help_and_version_import_nothing_slow(tmp_path, arguments):
    code = f"""
        import sys
        from tdnet.cli import main

        sys.argv = ["tdnet", *{arguments}]
        try:
            main()
        except SystemExit as end:
            assert end.code in (0, 2), end.code
        slow = {{"torch", "av", "numpy", "PIL", "rich.progress", "safetensors"}} & set(sys.modules)
        assert not slow, slow
    """
    assert "tdnet" in run_python(code, tmp_path)


def test_the_version_is_that_of_the_operators(tmp_path):
    shown = run_python(
        "import sys; from tdnet.cli import main; sys.argv[1:] = ['--version']; main()", tmp_path
    )
    assert shown in (f"tdnet {tdnet_ops.__version__}\n", "tdnet (not installed, a source tree)\n")


def test_every_public_name_is_found():
    for name in tdnet.__all__:
        assert getattr(tdnet, name) is not None
        assert name in dir(tdnet)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        tdnet.nothing  # noqa: B018


def test_the_help_lists_every_model():
    from tdnet.models import model_names

    (option,) = app.registered_commands[0].callback.__annotations__["model"].__metadata__
    assert all(name in option.help for name in model_names())


WITHOUT = """
    import sys
    sys.modules[{package!r}] = None
    from tdnet.cli import main
    sys.argv = ["tdnet", "segment", *{arguments}, "--size", "33x49", "--device", "cpu"]
    main()
"""


def without(package, arguments, folder):
    code = WITHOUT.format(package=package, arguments=arguments)
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, cwd=folder
    )


@pytest.fixture
def images(tmp_path):
    (tmp_path / "in").mkdir()
    for index in range(2):
        Image.new("RGB", (49, 33), (90 * index, 10, 20)).save(tmp_path / "in" / f"{index}.png")
    return "in"


def test_images_need_no_pyav(tmp_path, images):
    result = without("av", [images, "-o", "out/"], tmp_path)
    assert result.returncode == 0, result.stderr
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_without_pyav_videos_say_what_to_install(tmp_path, images):
    (tmp_path / "in.mp4").write_bytes(b"a video")
    for arguments in (["in.mp4", "-o", "out/"], [images, "-o", "out.mp4"]):
        result = without("av", arguments, tmp_path)
        assert result.returncode == 1
        (line,) = result.stderr.splitlines()
        assert "pip install av" in line
        assert "folders of images" in line


def test_without_rich_there_is_no_progress_bar(tmp_path, images):
    result = without("rich.progress", [images, "-o", "out/"], tmp_path)
    assert result.returncode == 0, result.stderr
    assert "2 frames in out" in result.stdout


def sources():
    """Every module of the package by name, parsed."""
    root = Path(tdnet.__file__).parent
    for path in root.rglob("*.py"):
        name = ".".join(path.relative_to(root.parent).with_suffix("").parts)
        yield name.removesuffix(".__init__"), ast.parse(path.read_text())


def imports(tree):
    """Modules of the package that a module imports, at its top or later, but for type hints."""
    hints = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for part in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and id(node) not in hints:
            yield node.module
        elif isinstance(node, ast.Import) and id(node) not in hints:
            yield from (alias.name for alias in node.names)


def test_no_modules_import_each_other():
    graph = {name: set(imports(tree)) for name, tree in sources()}
    assert "tdnet.cli.terminal" in graph["tdnet.cli.rich_progress"]
    graph = {name: found & graph.keys() for name, found in graph.items()}
    with pytest.raises(CycleError):
        TopologicalSorter(graph | {"tdnet.cli.terminal": {"tdnet.cli.rich_progress"}}).prepare()
    TopologicalSorter(graph).prepare()


def literal_text(tree):
    """The text of an expression, whatever is filled into it."""
    parts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    return "".join(part for part in parts if isinstance(part, str))


OTHER_DIALECT = re.compile(r"\b(is|has|holds|was|were)\b[^:;]*, expected ")


def test_errors_say_what_was_expected_before_what_came():
    """name: expected ..., got ..."""
    assert OTHER_DIALECT.search("size is , expected two integers")
    messages = [
        (name, literal_text(node.exc))
        for name, tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.Raise) and node.exc is not None
    ]
    assert len(messages) > 50
    wrong = [
        (name, text)
        for name, text in messages
        if OTHER_DIALECT.search(text) or ("expected" in text and "got" not in text)
    ]
    assert not wrong
