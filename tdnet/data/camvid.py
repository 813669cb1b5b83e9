"""CamVid (Brostow et al., ECCV 2008), 11 classes, in the layout of the SegNet tutorial.

    ROOT/train/0001TP_006690.png   ROOT/trainannot/0001TP_006690.png   and so on for val and test

Names are those of a recording and a frame, 30 frames a second. 480x360 and 960x720 images do alike.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from tdnet.data.clips import LabelledFrame, LabelledVideos, cut, image_files

CLASS_NAMES = (
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "sign",
    "fence",
    "car",
    "pedestrian",
    "bicyclist",
)
# Frames are labelled once a second, give or take one; what lies further apart are two shots.
MOST_APART = 31


def camvid(root: Path | str, split: str) -> LabelledVideos:
    """The frames of a split, all of them labelled, cut where a recording has a gap.

    Args:
        root: the folder of train and trainannot.
        split: "train", "val" or "test".

    Raises:
        ValueError: a folder, a label map or an image is missing, or a name is none of CamVid's.
    """
    images = image_files(Path(root) / split)
    labels = {path.stem: path for path in image_files(Path(root) / f"{split}annot")}
    recordings = defaultdict(list)
    for image in images:
        match = re.fullmatch(r"(.+)_f?(\d+)", image.stem)
        if match is None:
            raise ValueError(f"{split}: expected names such as 0001TP_006690.png, got {image.name}")
        if image.stem not in labels:
            raise ValueError(f"{image}: no label map of this name in {split}annot")
        recordings[match[1]].append((int(match[2]), LabelledFrame(image, labels[image.stem])))
    clips = [clip for frames in recordings.values() for clip in cut(frames, MOST_APART)]
    return LabelledVideos(tuple(clips), CLASS_NAMES, {number: number for number in range(11)})
