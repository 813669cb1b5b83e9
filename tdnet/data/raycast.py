"""A small ray caster for the synthetic street.

Every pixel's ray meets the sky and ground, boxes (buildings, vehicles, poles) and upright cut-outs
(trees, people, bicycles); a depth buffer keeps the nearest.

World axes: x to the right, y up, z along the street, in metres; the ground is y = 0.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]
Axes = NDArray[np.int64]
# Points of a surface in, their colours [n, 3] (0 to 1) and which of them are there out.
BoxPaint = Callable[[Floats, Floats, Floats, Axes], tuple[Floats, Mask]]
CutoutPaint = Callable[[Floats, Floats], tuple[Floats, Mask]]

ROAD, SIDEWALK, BUILDING, WALL, FENCE, POLE, TRAFFIC_LIGHT, TRAFFIC_SIGN, VEGETATION, TERRAIN = (
    range(10)
)
SKY, PERSON, RIDER, CAR, TRUCK, BUS, TRAIN, MOTORCYCLE, BICYCLE = range(10, 19)

ROAD_EDGE = 5.8
SIDEWALK_EDGE = 9.4
HAZE_COLOR = np.array((0.80, 0.85, 0.91), np.float32)
_CAMERA_HEIGHT = 1.45
_CAMERA_X = 1.9
CAMERA_SPEED = 8.0
NEAR = 0.4
_NOISE_SIDE = 256  # a power of two, so that coordinates wrap around by a mask


@dataclass(frozen=True)
class Camera:
    """A pinhole camera looking along z, turned a little by yaw (right) and pitch (down)."""

    x: float
    y: float
    z: float
    yaw: float
    pitch: float
    height: int
    width: int

    @staticmethod
    def driving(time: float, height: int, width: int) -> "Camera":
        sway = np.sin(0.9 * time)
        return Camera(
            x=_CAMERA_X + 0.15 * sway,
            y=_CAMERA_HEIGHT + 0.02 * np.sin(5.1 * time),
            z=CAMERA_SPEED * time,
            yaw=0.012 * np.cos(0.9 * time) - 0.03,
            pitch=0.01 + 0.003 * np.sin(4.3 * time),
            height=height,
            width=width,
        )

    @property
    def focal(self) -> float:
        """Focal length in pixels: 65 degrees across the wider side."""
        return 0.78 * max(self.width, self.height)

    def rays(self) -> tuple[Floats, Floats, Floats]:
        """World direction of every pixel, scaled so that the multiple is the depth."""
        columns = (np.arange(self.width, dtype=np.float32) + 0.5 - self.width / 2) / self.focal
        rows = (self.height * 0.46 - np.arange(self.height, dtype=np.float32) - 0.5) / self.focal
        x, y = np.meshgrid(columns, rows)
        forward = np.cos(self.pitch) + y * np.sin(self.pitch)
        up = y * np.cos(self.pitch) - np.sin(self.pitch)
        return (
            (x * np.cos(self.yaw) + forward * np.sin(self.yaw)).astype(np.float32),
            up.astype(np.float32),
            (forward * np.cos(self.yaw) - x * np.sin(self.yaw)).astype(np.float32),
        )

    def window(self, corners: Floats) -> tuple[slice, slice] | None:
        """Rows and columns that may show a convex body with these corners [n, 3]."""
        side, up, depth = self._coordinates(corners)
        if depth.max() < NEAR:
            return None
        if depth.min() < NEAR:
            return slice(0, self.height), slice(0, self.width)
        columns, rows = self._pixels(side, up, depth)
        window = (
            slice(max(0, int(rows.min()) - 1), min(self.height, int(rows.max()) + 2)),
            slice(max(0, int(columns.min()) - 1), min(self.width, int(columns.max()) + 2)),
        )
        empty = window[0].start >= window[0].stop or window[1].start >= window[1].stop
        return None if empty else window

    def project(self, points: Floats) -> tuple[Floats, Floats, Floats]:
        """Where points [n, 3] are seen: columns and rows (the middle of pixel 0 is 0.5), depths.

        Those that lie behind the camera have a depth below `NEAR` and a meaningless place.
        """
        side, up, depth = self._coordinates(points)
        return *self._pixels(side, up, np.maximum(depth, NEAR)), depth

    def _coordinates(self, points: Floats) -> tuple[Floats, Floats, Floats]:
        """Metres to the side of points [n, 3], up and ahead, as the camera is turned."""
        x, y, z = (points - np.array((self.x, self.y, self.z))).T
        forward = z * np.cos(self.yaw) + x * np.sin(self.yaw)
        side = x * np.cos(self.yaw) - z * np.sin(self.yaw)
        depth = forward * np.cos(self.pitch) - y * np.sin(self.pitch)
        return side, y * np.cos(self.pitch) + forward * np.sin(self.pitch), depth

    def _pixels(self, side: Floats, up: Floats, depth: Floats) -> tuple[Floats, Floats]:
        """Columns and rows."""
        columns = self.focal * side / depth + self.width / 2
        return columns, self.height * 0.46 - self.focal * up / depth


class Canvas:
    """Every pixel's colour (linear in 0 to 1), label, depth and speed, and ways to draw into them.

    The speed is that of the thing seen, along z, in metres a second.
    """

    def __init__(self, camera: Camera, random: np.random.Generator):
        self.camera = camera
        self.ray_x, self.ray_y, self.ray_z = camera.rays()
        self.color = np.zeros((camera.height, camera.width, 3), np.float32)
        self.labels = np.full((camera.height, camera.width), SKY, np.uint8)
        self.depth = np.full((camera.height, camera.width), 1e6, np.float32)
        self.speed = np.zeros((camera.height, camera.width), np.float32)
        self._lattice = random.random(_NOISE_SIDE * _NOISE_SIDE, np.float32)

    def noise(self, u: Floats, v: Floats) -> Floats:
        """Smooth noise in 0 to 1 with features of size 1."""
        floor_u, floor_v = np.floor(u), np.floor(v)
        fraction_u, fraction_v = u - floor_u, v - floor_v
        column, row = floor_u.astype(np.int32), floor_v.astype(np.int32)
        left, right = column & (_NOISE_SIDE - 1), (column + 1) & (_NOISE_SIDE - 1)
        low, high = (
            (row & (_NOISE_SIDE - 1)) * _NOISE_SIDE,
            ((row + 1) & (_NOISE_SIDE - 1)) * _NOISE_SIDE,
        )
        low_left, high_left = self._lattice[low + left], self._lattice[high + left]
        low_value = low_left + (self._lattice[low + right] - low_left) * fraction_u
        high_value = high_left + (self._lattice[high + right] - high_left) * fraction_u
        return low_value + (high_value - low_value) * fraction_v

    def clouds(self, u: Floats, v: Floats) -> Floats:
        """Noise of several scales, 0 to 1."""
        return (
            0.55 * self.noise(u, v)
            + 0.28 * self.noise(2.1 * u + 7, 2.1 * v)
            + 0.17 * self.noise(4.3 * u, 4.3 * v + 5)
        )

    def draw_sky_and_ground(self) -> None:
        rise = np.maximum(self.ray_y / self.ray_z, 0.012)
        height = np.clip(1.6 * rise, 0, 1)[..., None]
        zenith = np.array((0.33, 0.53, 0.82), np.float32)
        self.color[:] = HAZE_COLOR + height * (zenith - HAZE_COLOR)
        cover = self.clouds(self.ray_x / rise + 3, self.ray_z / rise * 1.7)
        cover = (np.clip((cover - 0.5) * 4, 0, 1) * np.clip(6 * rise, 0, 1))[..., None]
        self.color += 0.75 * cover * (np.float32(0.97) - self.color)

        rows, columns = np.nonzero(self.ray_y < -0.004)
        depth = -self.camera.y / self.ray_y[rows, columns]
        x = self.camera.x + depth * self.ray_x[rows, columns]
        z = self.camera.z + depth * self.ray_z[rows, columns]
        self.depth[rows, columns] = depth
        self.color[rows, columns], self.labels[rows, columns] = self._ground(x, z, depth)

    def _ground(self, x: Floats, z: Floats, depth: Floats) -> tuple[Floats, NDArray[np.uint8]]:
        """Colour and label of points of the ground."""
        aside = np.abs(x)
        fine = self.noise(19 * x, 19 * z) * np.clip(14 / depth, 0, 1)
        asphalt = 0.30 + 0.05 * self.clouds(0.7 * x, 0.25 * z) + 0.07 * fine
        # Two darker tracks a lane, where the tyres run.
        asphalt -= 0.02 * np.exp(-(((np.abs(aside - 2.0) - 0.8) / 0.3) ** 2))
        color = asphalt[:, None] * np.array((1.0, 1.0, 1.04), np.float32)
        worn = 0.75 + 0.25 * self.noise(5 * x, 5 * z)
        dashes = (aside < 0.08) & (z % 6 < 3)
        edges = np.abs(aside - 3.6) < 0.06
        zebra = (z % 60 > 41) & (z % 60 < 44.5) & (x % 1.1 < 0.55)
        color[dashes | edges | zebra] = 0.82
        color *= np.where(dashes | edges | zebra, worn, 1.0)[:, None]

        labels = np.full(x.shape, ROAD, np.uint8)
        walk = (aside > ROAD_EDGE) & (aside <= SIDEWALK_EDGE)
        labels[walk] = SIDEWALK
        seams = (aside % 0.8 < 0.05) | (z % 0.8 < 0.05)
        slab = 0.05 * self.noise(np.floor(aside / 0.8) * 3.7, np.floor(z / 0.8) * 5.3)
        stone = 0.60 + slab + 0.06 * fine - 0.10 * seams * np.clip(9 / depth, 0, 1)
        color[walk] = stone[walk, None] * np.array((1.0, 0.96, 0.91), np.float32)
        color[walk & (aside < ROAD_EDGE + 0.28)] *= 1.14

        grass = aside > SIDEWALK_EDGE
        labels[grass] = TERRAIN
        blades = 0.55 + 0.35 * self.clouds(0.8 * x, 0.8 * z) + 0.5 * (fine - 0.25)
        color[grass] = blades[grass, None] * np.array((0.42, 0.62, 0.24), np.float32)
        # The houses on the left keep the sun off a strip of the street.
        shaded = x < -5.0 + 1.4 * self.noise(0.11 * z, 0 * z)
        color[shaded] *= np.array((0.66, 0.69, 0.76), np.float32)
        return color, labels

    def draw_shadow(self, x: float, z: float, half_x: float, half_z: float) -> None:
        """Darken the ground under a thing that stands at (x, z)."""
        corners = [(x + a, 0.0, z + b) for a in (-half_x, half_x) for b in (-half_z, half_z)]
        window = self.camera.window(np.array(corners) + 0.0)
        if window is None:
            return
        depth = self.depth[window]
        hit_x = self.camera.x + depth * self.ray_x[window] - x
        hit_z = self.camera.z + depth * self.ray_z[window] - z
        hit_y = self.camera.y + depth * self.ray_y[window]
        spread = np.maximum((hit_x / half_x) ** 4 + (hit_z / half_z) ** 4, 0)
        strength = np.where(np.abs(hit_y) < 0.02, 0.62 * np.clip(1.5 * (1 - spread), 0, 1), 0)
        self.color[window] *= (1 - strength)[..., None]

    def draw_box(
        self, low: Floats, high: Floats, label: int, paint: BoxPaint, speed: float = 0.0
    ) -> None:
        """Draw an axis-aligned box.

        Args:
            low: its least x, y, z.
            high: its greatest x, y, z.
            label: train id.
            paint: called with the hit points x, y, z relative to low and the axis (0, 1, 2) of
                the face, each [n]; gives colours [n, 3] and which of the points are there.
            speed: along z, in metres a second.
        """
        ends = np.stack([low, high])
        corners = np.array(
            [(ends[i, 0], ends[j, 1], ends[k, 2]) for i, j, k in np.ndindex(2, 2, 2)]
        )
        window = self.camera.window(corners)
        if window is None:
            return
        origin = (self.camera.x, self.camera.y, self.camera.z)
        rays = (self.ray_x[window], self.ray_y[window], self.ray_z[window])
        entries = []
        leave = np.full(rays[0].shape, np.inf, np.float32)
        for axis, ray in enumerate(rays):
            ray = np.where(np.abs(ray) < 1e-7, np.float32(1e-7), ray)
            one, other = (low[axis] - origin[axis]) / ray, (high[axis] - origin[axis]) / ray
            entries.append(np.minimum(one, other))
            leave = np.minimum(leave, np.maximum(one, other))
        enter = np.maximum(np.maximum(entries[0], entries[1]), entries[2])
        rows, columns = np.nonzero((enter < leave) & (enter > NEAR) & (enter < self.depth[window]))
        if rows.size == 0:
            return
        depth = enter[rows, columns]
        axis = np.argmax(np.stack([entry[rows, columns] for entry in entries]), axis=0)
        points = [origin[i] + depth * rays[i][rows, columns] - np.float32(low[i]) for i in range(3)]
        color, there = paint(points[0], points[1], points[2], axis)
        # Sun from the right, behind the camera: tops bright, right sides lit, left sides dark.
        lit = np.array((0.84 if low[0] > self.camera.x else 1.02, 1.12, 0.92), np.float32)
        self._put(window, rows, columns, depth, color * lit[axis][:, None], there, label, speed)

    def draw_cutout(
        self,
        center: tuple[float, float],
        half_width: float,
        height: float,
        label: int,
        paint: CutoutPaint,
        speed: float = 0.0,
    ) -> None:
        """Draw a flat upright shape that faces the camera.

        Args:
            center: x and z of its foot.
            half_width: from its middle to a side.
            height: from the ground to its top.
            label: train id.
            paint: called with the metres to the right of the middle and above the ground, each
                [n]; gives colours [n, 3] and which of the points belong to the shape.
            speed: along z, in metres a second.
        """
        x, z = center
        corners = [(x + a, y, z) for a in (-half_width, half_width) for y in (0.0, height)]
        window = self.camera.window(np.array(corners))
        if window is None or z - self.camera.z < 1.0:
            return
        depth = (z - self.camera.z) / self.ray_z[window]
        rows, columns = np.nonzero((depth > NEAR) & (depth < self.depth[window]))
        depth = depth[rows, columns]
        right = self.camera.x + depth * self.ray_x[window][rows, columns] - x
        up = self.camera.y + depth * self.ray_y[window][rows, columns]
        color, inside = paint(right, up)
        self._put(window, rows, columns, depth, color, inside & (up > 0), label, speed)

    def _put(
        self,
        window: tuple[slice, slice],
        rows: NDArray[np.int64],
        columns: NDArray[np.int64],
        depth: Floats,
        color: Floats,
        there: NDArray[np.bool_],
        label: int,
        speed: float,
    ) -> None:
        rows, columns = rows[there] + window[0].start, columns[there] + window[1].start
        self.depth[rows, columns] = depth[there]
        self.color[rows, columns] = color[there]
        self.labels[rows, columns] = label
        self.speed[rows, columns] = speed
