"""Frames that are image files."""

import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from tdnet.video.errors import VideoError
from tdnet.video.frames import Frame

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")

# What Pillow converts to RGB as it looks. Float and 32-bit pixels have no known white, and would
# be clipped.
_DISPLAYABLE_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")


class ImageFiles:
    """Image files at a constant rate, EXIF orientation applied."""

    def __init__(self, paths: Sequence[Path], frame_rate: Fraction, label: str):
        """Take the files in the order in which they are shown, frame_rate a second."""
        self.label = label
        self.frame_rate = frame_rate
        self.time_base = 1 / frame_rate
        self.frame_count: int | None = len(paths)
        self._paths = paths

    def __iter__(self) -> Iterator[Frame]:
        stems_differ = len({path.stem for path in self._paths}) == len(self._paths)
        for index, path in enumerate(self._paths):
            name = path.stem if stems_differ else path.name
            yield Frame(read_image(path), index * self.time_base, self.time_base, name)


class ImageFolder(ImageFiles):
    """The images of a folder in natural order."""

    def __init__(self, folder: Path, frame_rate: Fraction):
        """List the folder.

        Raises:
            VideoError: it holds no image or cannot be listed.
        """
        try:
            paths = image_paths(folder)
        except OSError as error:
            raise VideoError(f"{folder}: {error.strerror}") from error
        if not paths:
            raise VideoError(
                f"{folder}: the folder holds no PNG or JPEG images ({', '.join(IMAGE_SUFFIXES)})"
            )
        super().__init__(paths, frame_rate, str(folder))


def image_paths(folder: Path) -> list[Path]:
    """The images of a folder in natural order. Raises OSError if it cannot be listed."""
    # Hidden files are no frames: copies between systems leave "._name.png" beside images.
    found = [
        path
        for path in folder.iterdir()
        if is_image_name(path) and not path.name.startswith(".") and not path.is_dir()
    ]
    return sorted(found, key=lambda path: natural_key(path.name))


def is_image_name(path: Path) -> bool:
    """Whether a name ends as those of images do."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def is_animation(path: Path) -> bool:
    """Whether a file that is named like an image is a video: an animated PNG or WebP."""
    try:
        with Image.open(path) as image:
            return image.format in ("PNG", "WEBP") and getattr(image, "is_animated", False)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sort key under which frame2 comes before frame10."""
    parts = re.split(r"([0-9]+)", name)
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts]


def read_image(path: Path) -> NDArray[np.uint8]:
    """An image as uint8 [H, W, 3] RGB, upright; what is transparent keeps its colour.

    Raises:
        VideoError: it cannot be read, or its pixels are of a kind with no known white.
    """
    if path.exists() and not path.is_file():
        raise VideoError(f"{path}: not a regular file")
    try:
        with Image.open(path) as image:
            # Older versions of Pillow read 16-bit gray PNGs as 32-bit integers.
            is_16_bit = image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PNG")
            if not is_16_bit and image.mode not in _DISPLAYABLE_MODES:
                raise VideoError(
                    f"{path}: expected pixels of 8 or 16 bits a colour, got mode {image.mode!r}"
                )
            turned = ImageOps.exif_transpose(image)
            return _gray_16_bit(turned) if is_16_bit else np.array(turned.convert("RGB"))
    except UnidentifiedImageError as error:
        raise VideoError(f"{path}: not a readable image") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise VideoError(f"{path}: {error}") from error


def _gray_16_bit(image: Image.Image) -> NDArray[np.uint8]:
    """Scaled, where Pillow's own conversion clips all above 255 to white."""
    wide = np.asarray(image).astype(np.uint32)
    gray = ((wide * 255 + 32767) // 65535).astype(np.uint8)
    return np.repeat(gray[..., None], 3, axis=2)
