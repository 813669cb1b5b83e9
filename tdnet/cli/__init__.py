"""The command line: `tdnet segment`, `tdnet eval`, ..."""

from tdnet.cli.app import main

__all__ = ["main"]
