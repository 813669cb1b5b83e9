"""Files: temporary names, whole writing, and how to show a name or a text to a person."""

import os
import secrets
from pathlib import Path

# A name may have 255 bytes; this leaves room for what makes a temporary one unique.
_MOST_BYTES_OF_THE_NAME = 200


def temporary_beside(path: Path) -> Path:
    """A new name in the folder of path that no reader takes for a result."""
    name = os.fsdecode(os.fsencode(path.name)[:_MOST_BYTES_OF_THE_NAME])
    return path.with_name(f".{name}.{secrets.token_hex(4)}.part")


def replace_text(path: Path, text: str) -> None:
    """Write a file that is whole under its name, or as it was before.

    Raises:
        OSError: it cannot be written.
    """
    temporary = temporary_beside(path)
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def printable(text: str, limit: int | None = None) -> str:
    """One line of visible characters: others are escaped, and what exceeds the limit left out.

    Names of files may hold newlines, commands to the terminal, and bytes that are no UTF-8.
    """
    cut = text if limit is None or len(text) <= limit else text[:limit] + "..."
    return "".join(c if c.isprintable() else _escaped(c) for c in cut)


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte that is no UTF-8, as Python keeps it in names
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


def shown(value: object) -> str:
    """A value that a file or a caller gave, in a message: short, whatever it is."""
    if isinstance(value, (str, int, float, bool, tuple, type(None))):
        return printable(repr(value), 60)
    return f"a {type(value).__name__}"
