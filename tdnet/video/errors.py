"""The one exception that reading and writing of frames raises for bad input or output."""

from collections.abc import Iterator
from contextlib import contextmanager


class VideoError(RuntimeError):
    """A source cannot be read or a result cannot be written; the message is one line."""


def reason(error: Exception) -> str:
    """The message of an error without number and file name."""
    return getattr(error, "strerror", None) or str(error)


@contextmanager
def needs_pyav(what: str) -> Iterator[None]:
    """Around an import of PyAV, which machines may lack: a VideoError says what to install."""
    try:
        yield
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "av":
            raise
        raise VideoError(
            f"{what} needs the Python package PyAV (pip install av), which cannot be imported "
            f"here: {error}; folders of images are read and written without it"
        ) from error
