"""What documents say is true: links lead somewhere, code runs, numbers agree, commands exist."""

import csv
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("tests/**/*.md")],
    key=lambda path: path.relative_to(ROOT),
)
RESULTS = ROOT / "benchmarks" / "results" / "attention_propagate_cpu.csv"


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def fenced(text, language=""):
    """The blocks of code of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def anchors(text):
    """The names that GitHub gives to the headings of a document."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def dead_links(document, text):
    """Relative links of a text that lead to no file, or to no heading of it."""
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        place, _, anchor = link.partition("#")
        target = document.parent / place if place else document
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            dead.append(link)
    return dead


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_relative_links_lead_somewhere(document):
    assert not dead_links(document, document.read_text())


def test_dead_links_are_found():
    document = ROOT / "docs" / "README.md"
    text = "[a](../README.md) [b](../README.md#install) [c](nothing.md) [d](../README.md#nowhere)"
    assert dead_links(document, text) == ["nothing.md", "../README.md#nowhere"]


def test_every_document_is_found_from_the_readme():
    """By links, however many."""
    found, left = set(), [ROOT / "README.md"]
    while left:
        document = left.pop()
        found.add(document)
        for link in re.findall(r"\]\(([^)#\s]+\.md)", document.read_text()):
            target = (document.parent / link).resolve()
            left += [target] if target not in found else []
    assert not [name_of(document) for document in DOCUMENTS if document not in found]


def test_the_code_of_the_readme_runs(tmp_path):
    blocks = fenced((ROOT / "README.md").read_text(), "python")
    assert len(blocks) == 2
    for block in blocks:
        result = subprocess.run(
            [sys.executable, "-c", block], capture_output=True, text=True, cwd=tmp_path
        )
        assert result.returncode == 0, result.stderr


def table(text, first_cell):
    """The table whose head begins with a cell: its rows as dicts."""
    lines = text[text.index(f"| {first_cell} |") :].partition("\n\n")[0].splitlines()
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(head, row, strict=True)) for row in rows]


def results():
    with RESULTS.open(newline="") as file:
        return list(csv.DictReader(file))


BLOCKS = RESULTS.parent / "blocks"
STREAMS = RESULTS.parent / "streams"


@pytest.mark.parametrize(
    ("document", "arguments"),
    [
        ("performance.md", sorted(RESULTS.parent.glob("*.csv"))),
        ("performance.md", ["--streams", STREAMS / "cpu.csv"]),
        ("performance.md", [STREAMS / "winograd_conv2d.csv"]),
        ("swap.md", ["--blocks", BLOCKS / "forward.csv", BLOCKS / "training.csv"]),
    ],
)
def test_the_tables_of_results_are_those_of_the_csv(document, arguments):
    printed = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "tables.py", *arguments],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert printed.strip() in (ROOT / "docs" / document).read_text()


def test_the_numbers_of_the_readme_are_those_of_the_csv():
    first = next(row["case"] for row in results())
    peers = {row["peer"]: row for row in results() if row["case"] == first}
    ours = peers["cpu"]
    timed = {peer: row for peer, row in peers.items() if row["ratio_of_rounds"]}
    ratio = {peer: f"{float(row['ratio_of_rounds']):.2f}" for peer, row in timed.items()}
    expected = [
        f"{float(ours['median_ms']):.3g} ms, {float(ours['gflops']):.3g} GFLOP/s",
        f"{ratio['onnxruntime']}, {ratio['openvino']} times that",
        f"{ratio['sdpa-linear']}, {ratio['compile']} times",
        f"{ratio['published']} times",
    ]
    readme = (ROOT / "README.md").read_text()
    shown = table(readme, "the call above, channels_last")
    assert [row["time"] for row in shown] == expected
    assert ours["command"] in readme


def test_the_chart_is_drawn_from_the_csv(tmp_path):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "chart.png"
    command = [sys.executable, ROOT / "benchmarks" / "chart.py", RESULTS, picture]
    subprocess.run(command, check=True)
    assert picture.read_bytes().startswith(b"\x89PNG")
    result = subprocess.run([*command, "--case", "none"], capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr == f"{RESULTS}: expected a timed case none\n"


# --- Commands ------------------------------------------------------------------------------------

PROGRAM = re.compile(
    r"^(?:[A-Z_]+=\S+ )*(python -m tdnet\S*|python \S+\.py|tdnet \w+|\S+\.sh|pytest)(?![\w-])"
)


def commands(text):
    """Commands of a document that run something of ours: program, and the names of options."""
    lines = [line.strip() for block in fenced(text) for line in block.splitlines()]
    lines += [line.strip() for line in re.findall(r"^    (.+)$", text, re.MULTILINE)]
    lines += re.findall(r"`([^`\n]+)`", text)
    for line in lines:
        for part in line.split("&&"):
            match = PROGRAM.match(part.strip())
            if match:
                words = shlex.split(part.strip()[match.end() :], comments=True)
                yield match[1], [word.partition("=")[0] for word in words if word.startswith("--")]


def sources(program):
    """The files that a program of ours reads its options in; [] if there is no such program."""
    name = program.split()[-1]
    if program == "tdnet segment":
        return [ROOT / "tdnet" / "cli" / "app.py"]
    if program.startswith("tdnet "):
        place = ROOT / "tdnet" / "cli" / f"{name}.py"
        return [place] if place.is_file() else []
    if program == "pytest":
        return [ROOT / "tests" / "conftest.py"]
    if program.startswith("python -m"):
        place = ROOT / name.replace(".", "/")
        module = place.with_suffix(".py")
        return sorted(place.glob("*.py")) or [path for path in [module] if path.is_file()]
    # A script may be named without its folder.
    places = [ROOT / folder / name for folder in ("", "benchmarks")]
    return [place for place in places if place.is_file()]


def has_option(text, option):
    """Whether a program's text names an option, also as typer does: by a parameter."""
    return (
        option == "--help"
        or option in text
        or f" {option[2:].replace('-', '_')}: Annotated[" in text
    )


# Options of programs that are not ours.
FOREIGN = {"python setup.py": {"--inplace"}}


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_commands_exist_and_have_the_options(document):
    for program, options in commands(document.read_text()):
        files = sources(program)
        assert files, f"there is no {program}"
        text = "\n".join(path.read_text() for path in files)
        foreign = FOREIGN.get(program, set())
        lacking = [x for x in options if x not in foreign and not has_option(text, x)]
        assert not lacking, (program, lacking)


def test_commands_are_found():
    text = (
        "Run `python -m tdnet_ops.nothing --seconds 3`, or\n\n    pytest --device cuda  # tests\n\n"
        "```\npip install . && TDNET_CUDA=0 python tests/smoke.py --x=1\n```\n"
    )
    assert list(commands(text)) == [
        ("python tests/smoke.py", ["--x"]),
        ("pytest", ["--device"]),
        ("python -m tdnet_ops.nothing", ["--seconds"]),
    ]
