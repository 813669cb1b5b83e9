"""The data sets by name."""

from __future__ import annotations

from pathlib import Path

from tdnet.data.camvid import camvid
from tdnet.data.cityscapes import cityscapes
from tdnet.data.clips import LabelledVideos
from tdnet.data.folder import folder
from tdnet.data.nyud import nyud

DATA_SETS = {
    "camvid": camvid,
    "cityscapes": cityscapes,
    "folder": folder,
    "nyud": nyud,
}


def labelled_videos(name: str, root: Path | str, split: str) -> LabelledVideos:
    """A part of a data set.

    Args:
        name: a key of DATA_SETS.
        root: its folder; each data set's module shows the layout, and docs/data.md all of them.
        split: "train", "val" or another part that it has.

    Raises:
        ValueError: there is no data set of this name, or its files are not as they should be.
    """
    if name not in DATA_SETS:
        raise ValueError(f"data set: expected one of {', '.join(DATA_SETS)}, got {name!r}")
    return DATA_SETS[name](root, split)
