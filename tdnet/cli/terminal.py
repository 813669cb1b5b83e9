"""Lines of text, whatever the terminal can show."""

import os
import sys
from typing import TextIO

from tdnet.files import printable


def say(text: str, stream: TextIO | None = None) -> None:
    """Print a line (on stdout if no stream is given), escaped where the terminal lacks characters.

    A terminal that was closed is no reason to fail.
    """
    stream = stream or sys.stdout
    encoding = stream.encoding or "utf-8"
    line = printable(text).encode(encoding, "backslashreplace").decode(encoding)
    try:
        print(line, file=stream, flush=True)
    except OSError:
        discard(stream)


def discard(stream: TextIO) -> None:
    """Let what is written to a stream vanish from now on, also what waits in its buffer.

    Otherwise Python's own attempt to write it at the end would replace the exit code.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
