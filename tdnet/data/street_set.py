"""The synthetic street as a data set: `python -m tdnet.data.street_set OUT`.

It is written in the layout that `tdnet.data.folder` reads: every frame with its labels, the 19
classes of Cityscapes, and every frame but a clip's first with its exact optical flow.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image

from tdnet.data.flow import Flow, write_flow
from tdnet.data.palette import CLASS_NAMES
from tdnet.data.synthetic import SyntheticFrame, street_clip_with_flow


def write_street_set(
    root: Path | str,
    num_clips: int = 8,
    num_frames: int = 24,
    size: tuple[int, int] = (256, 512),
    seed: int = 0,
) -> None:
    """Write clips of as many streets; the same arguments always give the same files.

    Args:
        root: a folder that is new or empty.
        num_clips: in ROOT/train, 1 or more. ROOT/val gets a quarter as many, of other streets.
        num_frames: of each clip, 2 or more.
        size: height and width of the frames, at least 32 each.
        seed: of the first street, from 0; the others follow.

    Raises:
        ValueError: an argument is out of its range, or root holds something.
        ImportError: OpenCV, which writes the flow, is not installed.
    """
    root = Path(root)
    for name, value, least in (("num_clips", num_clips, 1), ("num_frames", num_frames, 2)):
        if value < least:
            raise ValueError(f"{name}: expected at least {least}, got {value}")
    if root.is_dir() and any(root.iterdir()):
        raise ValueError(f"{root}: expected a new or an empty folder, got one that holds files")
    clips = {}  # before anything is written: it refuses bad arguments
    for street in range(seed, seed + num_clips + -(-num_clips // 4)):
        split = "train" if street < seed + num_clips else "val"
        clips[root / split / f"street{street:04d}"] = street_clip_with_flow(
            num_frames, size, street
        )
    root.mkdir(parents=True, exist_ok=True)
    (root / "classes.txt").write_text("\n".join(CLASS_NAMES) + "\n", encoding="utf-8")
    for path, clip in clips.items():
        _write_clip(path, clip)


def _write_clip(path: Path, clip: Iterator[tuple[SyntheticFrame, Flow | None]]) -> None:
    for kind in ("images", "labels", "flow"):
        (path / kind).mkdir(parents=True)
    for index, (frame, flow) in enumerate(clip):
        name = f"{index:06d}.png"
        Image.fromarray(frame.image).save(path / "images" / name)
        Image.fromarray(frame.labels).save(path / "labels" / name)
        if flow is not None:
            write_flow(path / "flow" / name, flow)


def _main(
    out: Annotated[Path, typer.Argument(help="A folder that is new or empty.")],
    clips: Annotated[int, typer.Option(help="Of train; val gets a quarter as many.")] = 8,
    frames: Annotated[int, typer.Option(help="Of each clip.")] = 24,
    size: Annotated[str, typer.Option(metavar="HxW", help="Height and width.")] = "256x512",
    seed: Annotated[int, typer.Option(help="Of the first street; the others follow.")] = 0,
) -> None:
    """Write clips of the synthetic street with labels and optical flow."""
    sides = re.fullmatch(r"(\d{1,5})x(\d{1,5})", size)
    if sides is None:
        raise typer.BadParameter(f"--size: expected HEIGHTxWIDTH such as 256x512, got {size!r}")
    try:
        write_street_set(out, clips, frames, (int(sides[1]), int(sides[2])), seed)
    except (ValueError, ImportError, OSError) as error:
        raise typer.BadParameter(str(error)) from error


if __name__ == "__main__":
    typer.run(_main)
