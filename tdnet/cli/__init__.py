"""The command line: `tdnet segment`."""

from tdnet.cli.app import main

__all__ = ["main"]
