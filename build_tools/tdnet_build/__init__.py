"""Way into `CMakeLists.txt`, the native build: what it needs to know is decided here."""


class BuildError(Exception):
    """A reason, in one line, why the build cannot go on."""
