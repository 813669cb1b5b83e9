"""NYUDv2 (Silberman et al., ECCV 2012), 40 classes.

    ROOT/train/bedroom_0001/images/000101.jpg   frames of a video, by their numbers in it
    ROOT/train/bedroom_0001/labels/000120.png   8 bits a pixel: 0 unlabelled, 1 to 40

and so on for test. The labels are the 795 and 654 label maps of the 40-class task (Gupta et al.,
CVPR 2013; 1 is wall, 40 otherprop) as they come, each in its scene's folder and named as its frame;
the images are the frames before it in the raw recording, rectified and cropped as the labelled
frame was. A scene of which only labelled frames are at hand has windows of one frame.
"""

from __future__ import annotations

import re
from pathlib import Path

from tdnet.data.clips import LabelledFrame, LabelledVideos, cut
from tdnet.data.folder import clip_folders, labelled_frames

CLASS_NAMES = (
    "wall",
    "floor",
    "cabinet",
    "bed",
    "chair",
    "sofa",
    "table",
    "door",
    "window",
    "bookshelf",
    "picture",
    "counter",
    "blinds",
    "desk",
    "shelves",
    "curtain",
    "dresser",
    "pillow",
    "mirror",
    "floor mat",
    "clothes",
    "ceiling",
    "books",
    "refrigerator",
    "television",
    "paper",
    "towel",
    "shower curtain",
    "box",
    "whiteboard",
    "person",
    "night stand",
    "toilet",
    "sink",
    "lamp",
    "bathtub",
    "bag",
    "otherstructure",
    "otherfurniture",
    "otherprop",
)
# Frames that lie further apart, a second of the recording, are two shots.
MOST_APART = 30


def nyud(root: Path | str, split: str) -> LabelledVideos:
    """The scenes of a split, cut where a recording has a gap.

    Args:
        root: the folder of train and test.
        split: "train" or "test".

    Raises:
        ValueError: a folder is missing or empty, labels have no image, or a name has no number.
    """
    scenes = [_numbered(path) for path in clip_folders(Path(root) / split)]
    clips = [clip for frames in scenes for clip in cut(frames, MOST_APART)]
    classes = {index + 1: index for index in range(len(CLASS_NAMES))}
    return LabelledVideos(tuple(clips), CLASS_NAMES, classes)


def _numbered(path: Path) -> list[tuple[int, LabelledFrame]]:
    frames = []
    for frame in labelled_frames(path):
        match = re.search(r"\d+$", frame.image.stem)
        if match is None:
            raise ValueError(f"{path}: expected names such as 000101.jpg, got {frame.image.name}")
        frames.append((int(match[0]), frame))
    return frames
