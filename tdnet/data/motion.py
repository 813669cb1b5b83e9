"""A labelled still as a window of frames: as a moving camera would see a flat picture."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tdnet.data.palette import IGNORE_LABEL
from tdnet.data.warp import pixel_places, read_at

# Largest speeds, a frame: of pan and perspective in halves of the longer side, of turning in
# radians, of zoom in its logarithm. At 960 x 720, 14 pixels of pan.
_LARGEST_SPEEDS = (0.03, 0.03, 0.02, 0.03, 0.01, 0.01)
# Speeds change by up to this share of the largest, a frame.
_LARGEST_CHANGE = 0.25
_MOST_EXPOSURES = 6


@dataclass(frozen=True)
class CameraPath:
    """Pan, turn, zoom and perspective of a camera as they change; the last frame is the still.

    Attributes:
        length: m, frames.
        speed: float64 ``[6]``: right, down, turn, zoom and two of perspective, a frame, as the
            last frame is taken.
        change: float64 ``[6]``: of the speed, a frame.
        shutter: share of the time between frames that the shutter is open: motion blur. 0: none.
    """

    length: int
    speed: Tensor
    change: Tensor
    shutter: float = 0.0

    @staticmethod
    def random(length: int, most_shutter: float = 0.5) -> CameraPath:
        """A path drawn from torch's global generator.

        Args:
            length: m, frames, 1 or more.
            most_shutter: the longest that the shutter may be open.

        Raises:
            ValueError: length is below 1, or most_shutter outside 0 to 1.
        """
        if length < 1:
            raise ValueError(f"length: expected at least 1, got {length}")
        if not 0 <= most_shutter <= 1:
            raise ValueError(f"most_shutter: expected a number from 0 to 1, got {most_shutter}")
        largest = torch.tensor(_LARGEST_SPEEDS, dtype=torch.float64)
        speed, change = (2 * torch.rand(2, 6, dtype=torch.float64) - 1) * largest
        shutter = most_shutter * torch.rand(()).item()
        return CameraPath(length, speed, _LARGEST_CHANGE * change, shutter)

    def images(self, still: Tensor) -> Tensor:
        """The frames, mirrored at the border of the still where they see beyond it.

        Args:
            still: uint8 ``[3, H, W]``.

        Returns:
            uint8 ``[m, 3, H, W]``.
        """
        pixels = still[None].float()
        frames = [self._exposed(pixels, time) for time in self._times()]
        return torch.cat(frames).round_().clamp_(0, 255).to(torch.uint8)

    def labels(self, still: Tensor) -> Tensor:
        """The frames' label maps, without motion blur; IGNORE_LABEL beyond the border of the still.

        Args:
            still: uint8 ``[H, W]``.

        Returns:
            uint8 ``[m, H, W]``.
        """
        # Zeros come from beyond the border, so that labels are shifted by one meanwhile.
        shifted = (still.float() + 1)[None, None]
        places = (self._places(time, still.shape) for time in self._times())
        maps = torch.cat([read_at(shifted, place[None], "nearest")[0] for place in places])
        return torch.where(maps == 0, IGNORE_LABEL, maps - 1).to(torch.uint8)

    def flow(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """The exact flow of each frame but the first to the one before.

        Args:
            height: of the still.
            width: of the still.

        Returns:
            Pixels to the right and down where a pixel's point was in the frame before, float32
            ``[m-1, 2, H, W]``; bool ``[m-1, H, W]``, where that is in the frame before and both
            see the still.
        """
        here = pixel_places(height, width)
        flows, valid = [], []
        for time in self._times()[1:]:
            to_still = self._homography(time, height, width)
            from_still = torch.linalg.inv(self._homography(time - 1, height, width))
            before = _mapped(from_still @ to_still, here)
            flows.append(before - here)
            valid.append(_inside(before) & _inside(_mapped(to_still, here)))
        if not flows:
            return torch.empty(0, 2, height, width), torch.empty(0, height, width, dtype=torch.bool)
        return torch.stack(flows).float(), torch.stack(valid)

    def _times(self) -> range:
        """Of the frames: 0 is that of the still."""
        return range(1 - self.length, 1)

    def _exposed(self, pixels: Tensor, time: float) -> Tensor:
        """The mean of what is seen while the shutter is open: as long before the time as after."""
        size = pixels.shape[-2:]
        first, last = time - self.shutter / 2, time + self.shutter / 2
        exposures = min(1 + math.floor(self._farthest(first, last, size)), _MOST_EXPOSURES)
        times = torch.linspace(first, last, exposures).tolist() if exposures > 1 else [time]
        seen = torch.zeros_like(pixels)
        for moment in times:
            seen += read_at(pixels, self._places(moment, size)[None], outside="reflection")
        return seen / exposures

    def _farthest(self, first: float, last: float, size: torch.Size) -> float:
        """How many pixels a corner moves from one time to the other."""
        height, width = size
        corners = pixel_places(2, 2) * torch.tensor((width - 1, height - 1)).view(2, 1, 1)
        ends = [_mapped(self._homography(end, height, width), corners) for end in (first, last)]
        return (ends[1] - ends[0]).abs().amax().item()

    def _places(self, time: float, size: torch.Size) -> Tensor:
        """Where in the still the pixels of a frame look, float32 ``[2, H, W]``."""
        height, width = size
        return _mapped(self._homography(time, height, width), pixel_places(height, width).float())

    def _homography(self, time: float, height: int, width: int) -> Tensor:
        """From pixels of the frame at a time to pixels of the still, ``[3, 3]``."""
        travelled = time * self.speed + time**2 / 2 * self.change
        right, down, turn, zoom, lean_x, lean_y = travelled.tolist()
        cosine, sine = (math.exp(-zoom) * value for value in (math.cos(turn), math.sin(turn)))
        moved = [[cosine, -sine, right], [sine, cosine, down], [lean_x, lean_y, 1.0]]
        half = max(height, width) / 2
        pixels = torch.tensor(
            [[half, 0, (width - 1) / 2], [0, half, (height - 1) / 2], [0, 0, 1]],
            dtype=torch.float64,
        )
        return pixels @ torch.tensor(moved, dtype=torch.float64) @ torch.linalg.inv(pixels)


def _mapped(homography: Tensor, places: Tensor) -> Tensor:
    """Places ``[2, H, W]`` by a homography."""
    columns, rows, scale = (a * places[0] + b * places[1] + c for a, b, c in homography.tolist())
    return torch.stack([columns / scale, rows / scale])


def _inside(places: Tensor) -> Tensor:
    """Which places ``[2, H, W]`` lie between the middles of the outermost pixels."""
    height, width = places.shape[-2:]
    return (
        (places[0] >= 0) & (places[0] <= width - 1) & (places[1] >= 0) & (places[1] <= height - 1)
    )
