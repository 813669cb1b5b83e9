"""Tell from a file's own size fields whether its end is missing."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_TRANSPORT_PACKET = 188
_TRANSPORT_SYNC = b"\x47"
_EBML_HEADER = b"\x1a\x45\xdf\xa3"
_MATROSKA_SEGMENT = b"\x18\x53\x80\x67"
_TOP_LEVEL_BOXES = {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"moof", b"sidx"}
_UNKNOWN_RIFF_SIZES = (0, 0xFFFFFFFF)  # of a recording that could not go back to its start


def declared_size(path: Path) -> int | None:
    """Bytes that the container says the file has, None where it does not say.

    Understands MP4 / QuickTime, Matroska / WebM, AVI and MPEG transport streams (a whole number
    of packets). More than the real size means that the file was cut off; less, that something
    follows the video.
    """
    actual = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(12)
        if head[4:8] in _TOP_LEVEL_BOXES:
            return _boxes_end(file, actual)
        if head[:4] == _EBML_HEADER:
            return _matroska_end(file)
        if head[:4] == b"RIFF":
            return _riff_end(int.from_bytes(head[4:8], "little"), actual)
        if head[:1] == _TRANSPORT_SYNC and _is_transport_stream(file):
            return _transport_stream_end(file, actual)
    return None


def cut_after_last_fragment(path: Path) -> None:
    """Shorten a fragmented MP4 whose writing broke off to its last whole media data box."""
    actual = path.stat().st_size
    keep = 0
    with path.open("r+b") as file:
        for kind, end in _boxes(file, actual):
            if kind == b"mdat" and end <= actual:
                keep = end
        file.truncate(keep)


def _boxes_end(file: BinaryIO, actual: int) -> int:
    return max((end for _, end in _boxes(file, actual)), default=0)


def _boxes(file: BinaryIO, actual: int) -> Iterator[tuple[bytes, int]]:
    """Kind and declared end of the top-level boxes of an MP4 file (ISO/IEC 14496-12, 4.2).

    A last one that is of no known kind and not whole is none: other bytes follow the video.
    """
    end = 0
    while end < actual:
        file.seek(end)
        header = file.read(16)
        size = int.from_bytes(header[:4], "big")
        if size == 1:
            size = int.from_bytes(header[8:16], "big")
        # Size 0 means that the box runs to the end of the file.
        end = actual if size == 0 else end + max(size, 8)
        if end > actual and header[4:8] not in _TOP_LEVEL_BOXES:
            return
        yield header[4:8], end


def _riff_end(size: int, actual: int) -> int | None:
    if size in _UNKNOWN_RIFF_SIZES:
        return None
    # Some programs count the header, 8 bytes, too; so few are missing in an index, if at all.
    return actual if size <= actual else 8 + size


def _matroska_end(file: BinaryIO) -> int | None:
    """End of the segment of a Matroska file (RFC 8794: id and size are variable-length)."""
    file.seek(len(_EBML_HEADER))
    header_size = _read_ebml_size(file)
    if header_size is None:
        return None
    file.seek(header_size, os.SEEK_CUR)
    if file.read(4) != _MATROSKA_SEGMENT:
        return None
    segment_size = _read_ebml_size(file)
    return None if segment_size is None else file.tell() + segment_size


def _read_ebml_size(file: BinaryIO) -> int | None:
    """A variable-length size; None if it is missing or "unknown" (a live recording)."""
    first = file.read(1)
    if not first or first[0] == 0:
        return None
    length = 9 - first[0].bit_length()
    rest = file.read(length - 1)
    value = int.from_bytes(bytes([first[0] & (0xFF >> length)]) + rest, "big")
    unknown = (1 << (7 * length)) - 1
    return None if value == unknown or len(rest) < length - 1 else value


def _is_transport_stream(file: BinaryIO) -> bool:
    file.seek(_TRANSPORT_PACKET)
    return file.read(1) == _TRANSPORT_SYNC


def _transport_stream_end(file: BinaryIO, actual: int) -> int:
    whole = actual - actual % _TRANSPORT_PACKET
    file.seek(whole)
    return whole + _TRANSPORT_PACKET if file.read(1) == _TRANSPORT_SYNC else whole
