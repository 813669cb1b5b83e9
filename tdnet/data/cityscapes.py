"""Cityscapes (Cordts et al., CVPR 2016), 19 classes, in its own layout.

    ROOT/leftImg8bit_sequence/train/aachen/aachen_000000_000000_leftImg8bit.png   0 to 29
    ROOT/gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png

Without leftImg8bit_sequence the labelled frames alone, of leftImg8bit, are clips of one frame.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from tdnet.data.clips import LabelledFrame, LabelledVideos, cut
from tdnet.data.palette import CLASS_NAMES

# Numbers in labelIds files of the 19 classes, in their order. All others are ignored.
LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)


def cityscapes(root: Path | str, split: str) -> LabelledVideos:
    """The snippets of a split.

    Args:
        root: the folder of gtFine.
        split: "train", "val" or "test" (whose label maps are blank).

    Raises:
        ValueError: a folder is missing or empty, or a labelled frame has no image.
    """
    root = Path(root)
    labels = {_key(path): path for path in _files(root / "gtFine" / split, "gtFine_labelIds")}
    sequence = root / "leftImg8bit_sequence" / split
    folder = sequence if sequence.is_dir() else root / "leftImg8bit" / split
    snippets = defaultdict(list)
    for image in _files(folder, "leftImg8bit"):
        city, snippet, number = _key(image)
        frame = LabelledFrame(image, labels.pop((city, snippet, number), None))
        snippets[city, snippet].append((number, frame))
    if labels:
        raise ValueError(f"{next(iter(labels.values()))}: no image of this frame in {folder}")
    clips = [clip for frames in snippets.values() for clip in cut(frames, 1)]
    classes = {number: index for index, number in enumerate(LABEL_IDS)}
    return LabelledVideos(tuple(clips), CLASS_NAMES, classes)


def _files(folder: Path, kind: str) -> list[Path]:
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    found = sorted(folder.glob(f"*/*_{kind}.png"))
    if not found:
        raise ValueError(f"{folder}: no files CITY/*_{kind}.png")
    return found


def _key(path: Path) -> tuple[str, int, int]:
    """City, snippet and frame. Of some cities a snippet is the whole recording: cut() parts it."""
    match = re.match(r"(.+)_(\d{6})_(\d{6})_", path.name)
    if match is None:
        raise ValueError(
            f"{path.parent}: expected names such as aachen_000000_000019_*.png, got {path.name}"
        )
    return match[1], int(match[2]), int(match[3])
