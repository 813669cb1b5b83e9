"""The linters of pre-commit are those that .ci/run installs."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def pins(text):
    """Names and versions in a text such as "ruff==0.17.6"."""
    return set(re.findall(r"([a-z-]+)==([0-9][0-9.]*)", text))


def test_pre_commit_has_the_versions_of_the_lint_extra():
    extra = re.search(r"^lint = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(), re.M | re.S)
    config = (ROOT / ".pre-commit-config.yaml").read_text()
    ours, theirs = pins(extra[1]), pins(config)
    assert {name for name, _ in ours} == {"clang-format", "mypy", "ruff"}
    # mypy is the environment's own.
    assert theirs == {(name, version) for name, version in ours if name != "mypy"}
    assert "entry: python -m mypy\n        language: system" in config
