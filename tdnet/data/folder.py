"""Anybody's own videos with labels.

    ROOT/classes.txt                     a name a line: the first is class 0
    ROOT/train/CLIP/images/000001.png    or .jpg; frames in the order of the numbers in their names
    ROOT/train/CLIP/labels/000001.png    8 bits a pixel, classes; 255 where nobody knows

A clip is one shot. Any of its frames may be without labels, the others have those of their name.
"""

from __future__ import annotations

from pathlib import Path

from tdnet.data.clips import LabelledFrame, LabelledVideos, image_files


def folder(root: Path | str, split: str) -> LabelledVideos:
    """The clips of a split.

    Args:
        root: the folder of classes.txt.
        split: the name of a folder in it.

    Raises:
        ValueError: a file or folder is missing or empty, a name stands twice in classes.txt, or
            labels have no image.
    """
    root = Path(root)
    names = _class_names(root / "classes.txt")
    if not (root / split).is_dir():
        raise ValueError(f"{root / split}: no such folder")
    clips = [_clip(path) for path in sorted((root / split).iterdir()) if path.is_dir()]
    if not clips:
        raise ValueError(f"{root / split}: no clip in it, CLIP/images and CLIP/labels")
    return LabelledVideos(tuple(clips), names, {index: index for index in range(len(names))})


def _class_names(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    names = tuple(line for line in lines if line)
    if not 1 <= len(names) <= 255 or len(set(names)) < len(names):
        raise ValueError(
            f"{path}: expected 1 to 255 names, a line each and none twice, got {len(names)}, "
            f"{len(set(names))} of them different"
        )
    return names


def _clip(path: Path) -> tuple[LabelledFrame, ...]:
    images = image_files(path / "images")
    labels = {label.stem: label for label in image_files(path / "labels")}
    frames = tuple(LabelledFrame(image, labels.pop(image.stem, None)) for image in images)
    if labels:
        raise ValueError(f"{next(iter(labels.values()))}: no image of this name")
    return frames
