"""Anybody's own videos with labels.

    ROOT/classes.txt                     a name a line: the first is class 0
    ROOT/train/CLIP/images/000001.png    or .jpg; frames in the order of the numbers in their names
    ROOT/train/CLIP/labels/000001.png    8 bits a pixel, classes; 255 where nobody knows
    ROOT/train/CLIP/flow/000002.png      KITTI's 16 bits, to the frame before; not needed

A clip is one shot. Any of its frames may be without labels or flow, the others have those of their
name.
"""

from __future__ import annotations

from pathlib import Path

from tdnet.data.clips import Clip, LabelledFrame, LabelledVideos, image_files


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
    clips = tuple(labelled_frames(path) for path in clip_folders(root / split))
    return LabelledVideos(clips, names, {index: index for index in range(len(names))})


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


def clip_folders(path: Path) -> list[Path]:
    """The folders CLIP of a split, by name.

    Raises:
        ValueError: there is no such split, or no folder in it.
    """
    if not path.is_dir():
        raise ValueError(f"{path}: no such folder")
    folders = [folder for folder in sorted(path.iterdir()) if folder.is_dir()]
    if not folders:
        raise ValueError(f"{path}: no clip in it, CLIP/images and CLIP/labels")
    return folders


def labelled_frames(path: Path) -> Clip:
    """The frames of CLIP/images in the order of their numbers, with what CLIP knows of them.

    Raises:
        ValueError: images or labels is missing or empty, or labels or flow have no image.
    """
    images = image_files(path / "images")
    labels = _by_name(path / "labels")
    flow = _by_name(path / "flow") if (path / "flow").is_dir() else {}
    frames = tuple(
        LabelledFrame(image, labels.pop(image.stem, None), flow.pop(image.stem, None))
        for image in images
    )
    for left in (*labels.values(), *flow.values()):
        raise ValueError(f"{left}: no image of this name")
    return frames


def _by_name(folder: Path) -> dict[str, Path]:
    return {path.stem: path for path in image_files(folder)}
