"""The one exception that reading and writing of frames raises for bad input or output."""


class VideoError(RuntimeError):
    """A source cannot be read or a result cannot be written; the message is one line."""
