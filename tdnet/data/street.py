"""What stands and moves in the synthetic street, and how it looks.

The street runs along z with its middle at x = 0; traffic keeps to the right.
"""

import numpy as np

from tdnet.data.raycast import (
    BICYCLE,
    BUILDING,
    BUS,
    CAR,
    FENCE,
    MOTORCYCLE,
    PERSON,
    POLE,
    RIDER,
    TRAFFIC_LIGHT,
    TRAFFIC_SIGN,
    TRAIN,
    TRUCK,
    VEGETATION,
    WALL,
    Axes,
    BoxPaint,
    Canvas,
    CutoutPaint,
    Floats,
    Mask,
)

_BLOCK_LENGTH = 15.0
_BLOCKS_AHEAD = 12
_LEFT, _RIGHT = -1, 1

_PLASTER = (
    (0.80, 0.70, 0.55),
    (0.72, 0.48, 0.38),
    (0.78, 0.76, 0.72),
    (0.60, 0.36, 0.30),
    (0.86, 0.80, 0.66),
    (0.55, 0.57, 0.60),
    (0.70, 0.62, 0.58),
)
_LACQUER = (
    (0.72, 0.10, 0.10),
    (0.12, 0.22, 0.50),
    (0.82, 0.83, 0.85),
    (0.10, 0.11, 0.12),
    (0.45, 0.47, 0.50),
    (0.12, 0.36, 0.26),
    (0.80, 0.62, 0.16),
)
_CLOTH = (
    (0.70, 0.16, 0.18),
    (0.16, 0.25, 0.45),
    (0.20, 0.42, 0.30),
    (0.82, 0.80, 0.74),
    (0.22, 0.22, 0.24),
    (0.85, 0.55, 0.20),
)
_SKIN = ((0.86, 0.66, 0.54), (0.55, 0.38, 0.28), (0.72, 0.52, 0.40))
_GLASS = np.array((0.20, 0.27, 0.34), np.float32)
_RUBBER = np.array((0.07, 0.07, 0.08), np.float32)
_STEEL = np.array((0.50, 0.52, 0.54), np.float32)


def draw_street(canvas: Canvas, time: float, seed: int) -> None:
    """Draw everything that stands on the ground, as it is time seconds into the drive."""
    first = int(canvas.camera.z // _BLOCK_LENGTH) - 1
    blocks = [
        _Block(canvas, time, index * _BLOCK_LENGTH, np.random.default_rng((seed, 3, index + 1)))
        for index in range(max(first, -1), first + _BLOCKS_AHEAD)
    ]
    for block in blocks:
        for side in (_LEFT, _RIGHT):
            block.draw_houses(side)
            block.draw_sidewalk(side)
            block.draw_kerb(side)
    _draw_traffic(canvas, time, seed)


def _draw_traffic(canvas: Canvas, time: float, seed: int) -> None:
    """Vehicles that drive, ahead in our lane and towards us in the other."""
    random = np.random.default_rng((seed, 4))
    car, bicycle, truck, others = 7.6, 5.6, 7.2, -6.0  # metres a second
    _draw_vehicle(canvas, "car", (1.75, 15.0 + car * time), random, car)
    _draw_cyclist(canvas, (3.2, 9.5 + bicycle * time), time, random, bicycle)
    _draw_vehicle(canvas, "truck", (1.7, 46.0 + truck * time), random, truck)
    oncoming = ("car", "bus", "car", "tram", "car", "truck", "car", "bus")
    for order, kind in enumerate(oncoming):
        # The column of oncoming traffic repeats, so that it never ends.
        spacing = 26.0
        start = 24.0 + spacing * order
        period = spacing * len(oncoming)
        travelled = start + others * time - canvas.camera.z
        z = canvas.camera.z + (travelled + 14.0) % period - 14.0
        _draw_vehicle(canvas, kind, (-1.85, z), np.random.default_rng((seed, 5, order)), others)


class _Block:
    """One stretch of the street with what stands on it, the same whenever it is drawn."""

    def __init__(self, canvas: Canvas, time: float, start: float, random: np.random.Generator):
        self._canvas = canvas
        self._time = time
        self._start = start
        self._random = random

    def draw_houses(self, side: int) -> None:
        random = self._random
        kind = random.choice(["house", "house", "house", "park"])
        if kind == "park":
            self._draw_park(side)
            return
        position = self._start
        for share in (random.uniform(0.4, 0.6), 1.0):
            end = self._start + share * _BLOCK_LENGTH
            front = 9.5 + random.uniform(0, 0.7)
            height = random.uniform(8, 17)
            low, high = _sided(side, front, front + 16), (0.0, height)
            paint = _house_paint(self._canvas, side, height, random)
            self._canvas.draw_box(
                _vector(low[0], high[0], position),
                _vector(low[1], high[1], end - random.choice([0.0, 0.0, 1.5])),
                BUILDING,
                paint,
            )
            position = end

    def _draw_park(self, side: int) -> None:
        random, canvas = self._random, self._canvas
        low, high = _sided(side, 9.5, 9.75)
        end = self._start + _BLOCK_LENGTH
        if random.random() < 0.5:
            canvas.draw_box(
                _vector(low, 0, self._start), _vector(high, 1.5, end), WALL, _wall_paint(canvas)
            )
        else:
            canvas.draw_box(
                _vector(low, 0, self._start), _vector(high, 1.4, end), FENCE, _fence_paint
            )
        for step in range(4):
            z = self._start + (step + random.uniform(0.2, 0.8)) * _BLOCK_LENGTH / 4
            x = side * (12.5 + 9 * random.random())
            _draw_tree(canvas, (x, z), random.uniform(5.5, 9.5), random)

    def draw_sidewalk(self, side: int) -> None:
        random, canvas = self._random, self._canvas
        if random.random() < 0.55:
            z = self._start + random.uniform(2, 5)
            _draw_tree(canvas, (side * 8.4, z), random.uniform(4.5, 6.5), random)
        if random.random() < 0.75:
            self._draw_pole(side, random.choice(["lamp", "sign", "signal"]))
        for _ in range(random.integers(0, 4)):
            speed = random.choice([-1.3, 1.2, 1.4])
            z = self._start + random.uniform(0, _BLOCK_LENGTH) + speed * self._time
            x = side * random.uniform(6.5, 8.2)
            _draw_pedestrian(canvas, (x, z), self._time, random, speed)
        if random.random() < 0.4:
            z = self._start + random.uniform(6, 12)
            _draw_two_wheeler(canvas, (side * 6.4, z), random.random() < 0.5, random)

    def draw_kerb(self, side: int) -> None:
        random, canvas = self._random, self._canvas
        for place in (0.27, 0.73):
            if random.random() < 0.42:
                kind = random.choice(["car", "car", "car", "van"])
                z = self._start + place * _BLOCK_LENGTH
                _draw_vehicle(canvas, kind, (side * 4.85, z), random)

    def _draw_pole(self, side: int, kind: str) -> None:
        canvas, x, z = self._canvas, side * 6.15, self._start + self._random.uniform(5, 10)
        height = {"lamp": 6.5, "sign": 2.9, "signal": 3.6}[kind]
        radius = 0.07
        canvas.draw_box(
            _vector(x - radius, 0, z - radius),
            _vector(x + radius, height, z + radius),
            POLE,
            _plain(_STEEL * (0.75 if kind == "lamp" else 1.0)),
        )
        if kind == "lamp":
            inner, outer = sorted((x, x - side * 1.8))
            canvas.draw_box(
                _vector(inner, height - 0.1, z - 0.08),
                _vector(outer, height + 0.03, z + 0.08),
                POLE,
                _plain(_STEEL * 0.75),
            )
        elif kind == "sign":
            canvas.draw_cutout((x, z - 0.1), 0.42, height, TRAFFIC_SIGN, _sign_paint(self._random))
        else:
            canvas.draw_box(
                _vector(x - 0.19, height - 0.9, z - 0.3),
                _vector(x + 0.19, height + 0.1, z - 0.05),
                TRAFFIC_LIGHT,
                _signal_paint(int(self._random.integers(3))),
            )


def _vector(x: float, y: float, z: float) -> Floats:
    return np.array((x, y, z), np.float32)


def _sided(side: int, near: float, far: float) -> tuple[float, float]:
    """Least and greatest x of what lies from near to far off the middle of the street."""
    return (near, far) if side == _RIGHT else (-far, -near)


def _pick(colors: tuple[tuple[float, float, float], ...], random: np.random.Generator) -> Floats:
    color = np.array(colors[random.integers(len(colors))], np.float32)
    return np.clip(color * random.uniform(0.85, 1.1), 0, 1).astype(np.float32)


def _plain(color: Floats) -> BoxPaint:
    def paint(x: Floats, y: Floats, z: Floats, axis: Axes) -> tuple[Floats, Mask]:
        return np.tile(color, (x.size, 1)), np.ones(x.size, bool)

    return paint


def _house_paint(canvas: Canvas, side: int, height: float, random: np.random.Generator) -> BoxPaint:
    """A plastered or brick front with rows of windows, a shop floor and a cornice."""
    plaster = _pick(_PLASTER, random)
    spacing = random.uniform(1.9, 2.6)
    storey = random.uniform(2.8, 3.3)
    shop = _pick(_LACQUER, random)
    bricks = random.random() < 0.4
    curtain = random.integers(1, 1000)

    def paint(x: Floats, y: Floats, z: Floats, axis: Axes) -> tuple[Floats, Mask]:
        along = np.where(axis == 0, z, x)
        stain = 0.90 + 0.20 * canvas.clouds(0.6 * along, 0.4 * y)
        color = plaster * stain[:, None]
        if bricks:
            shift = np.floor(y / 0.16) % 2 * 0.2
            mortar = (y % 0.16 < 0.03) | ((along + shift) % 0.4 < 0.04)
            color = color * np.where(mortar, 1.13, 0.97)[:, None]
        column, row = along / spacing, y / storey
        in_column, in_row = column % 1 - 0.5, row % 1 - 0.5
        upper = (y > storey) & (y < height - 0.7)
        frame = upper & (np.abs(in_column) < 0.27) & (np.abs(in_row) < 0.31)
        glass = upper & (np.abs(in_column) < 0.23) & (np.abs(in_row) < 0.27)
        glass &= (np.abs(in_column) > 0.015) & (np.abs(in_row - 0.08) > 0.012)
        ledge = upper & (np.abs(in_column) < 0.31) & (np.abs(in_row + 0.34) < 0.025)
        room = canvas.noise(3.7 * np.floor(column) + curtain, 5.3 * np.floor(row))
        color[frame] = 0.86
        glow = (0.7 + 0.9 * room + 0.5 * in_row)[:, None]
        color[glass] = (_GLASS * glow)[glass]
        color[ledge] = plaster * 0.7
        window = (y < storey - 0.8) & (y > 0.5) & (np.abs(column / 2 % 1 - 0.5) < 0.42)
        color[(y < storey - 0.2)] = (shop * 0.6 + plaster * 0.4) * 0.85
        color[window] = (_GLASS * (0.6 + 1.1 * canvas.noise(0.9 * along, 0.7 * y))[:, None])[window]
        color[(y > storey - 0.75) & (y < storey - 0.25)] = shop
        color[y > height - 0.45] = plaster * 1.12
        color[axis == 1] = 0.42
        return color.astype(np.float32), np.ones(x.size, bool)

    return paint


def _wall_paint(canvas: Canvas) -> BoxPaint:
    def paint(x: Floats, y: Floats, z: Floats, axis: Axes) -> tuple[Floats, Mask]:
        along = np.where(axis == 0, z, x)
        shift = np.floor(y / 0.3) % 2 * 0.3
        joint = (y % 0.3 < 0.035) | ((along + shift) % 0.6 < 0.035)
        stone = 0.52 + 0.16 * canvas.clouds(1.7 * along, 1.7 * y) - 0.14 * joint
        color = stone[:, None] * np.array((1.0, 0.95, 0.86), np.float32)
        return color.astype(np.float32), np.ones(x.size, bool)

    return paint


def _fence_paint(x: Floats, y: Floats, z: Floats, axis: Axes) -> tuple[Floats, Mask]:
    along = np.where(axis == 0, z, x)
    board = along % 0.24 < 0.19
    rail = (np.abs(y - 0.3) < 0.06) | (np.abs(y - 1.1) < 0.06)
    shade = 0.42 + 0.10 * np.sin(17.0 * np.floor(along / 0.24)) - 0.08 * (rail & ~board)
    color = shade[:, None] * np.array((1.15, 0.86, 0.62), np.float32)
    return color.astype(np.float32), board | rail


def _sign_paint(random: np.random.Generator) -> CutoutPaint:
    kind = random.integers(3)

    def paint(right: Floats, up: Floats) -> tuple[Floats, Mask]:
        center = 2.5
        rise = up - center
        color = np.tile(np.array((0.93, 0.93, 0.92), np.float32), (right.size, 1))
        distance = np.hypot(right, rise)
        if kind == 0:  # prohibition: red ring
            inside = distance < 0.38
            color[distance > 0.27] = (0.80, 0.08, 0.10)
            color[(np.abs(rise) < 0.06) & (np.abs(right) < 0.16)] = 0.12
        elif kind == 1:  # warning: red triangle
            edge = np.maximum(1.73 * np.abs(right) + rise - 0.36, -rise - 0.27)
            inside = edge < 0
            color[edge > -0.13] = (0.80, 0.08, 0.10)
            color[(np.abs(right) < 0.03) & (rise < 0.08) & (rise > -0.14)] = 0.12
        else:  # direction: blue square
            inside = np.maximum(np.abs(right), np.abs(rise)) < 0.36
            color[:] = (0.10, 0.30, 0.68)
            color[(np.abs(right) < 0.06) & (np.abs(rise) < 0.22)] = 0.94
            color[(rise > 0.02) & (np.abs(right) < 0.24 - rise)] = 0.94
        return color, inside

    return paint


def _signal_paint(lit: int) -> BoxPaint:
    lamps = np.array(((0.15, 0.95, 0.45), (1.0, 0.75, 0.15), (1.0, 0.15, 0.12)), np.float32)

    def paint(x: Floats, y: Floats, z: Floats, axis: Axes) -> tuple[Floats, Mask]:
        color = np.full((x.size, 3), 0.09, np.float32)
        for number, lamp in enumerate(lamps):
            disc = np.hypot(x - 0.19, y - 0.2 - 0.3 * number) < 0.12
            color[disc & (axis == 2)] = lamp * (1.0 if number == lit else 0.22)
        return color, np.ones(x.size, bool)

    return paint


_VEHICLES = {
    # label, width, length, height of the body, height of the top, where the cabin begins and ends
    "car": (CAR, 1.78, 4.3, 0.92, 1.46, 0.55, 3.3),
    "van": (CAR, 1.92, 4.9, 1.05, 2.05, 0.15, 3.9),
    "truck": (TRUCK, 2.35, 7.2, 1.0, 3.2, 0.1, 5.1),
    "bus": (BUS, 2.5, 10.5, 1.1, 3.05, 0.0, 10.5),
    "tram": (TRAIN, 2.5, 17.0, 1.1, 3.4, 0.0, 17.0),
}


def _draw_vehicle(
    canvas: Canvas,
    kind: str,
    place: tuple[float, float],
    random: np.random.Generator,
    speed: float = 0.0,
) -> None:
    """A vehicle as two boxes; place is the x of its middle and the z of its nearer end."""
    label, width, length, waist, top, cabin_start, cabin_end = _VEHICLES[kind]
    lacquer = _pick(_LACQUER, random)
    x, z = place
    towards_us = x < 0
    if towards_us:
        cabin_start, cabin_end = length - cabin_end, length - cabin_start
    canvas.draw_shadow(x, z + length / 2, width * 0.62, length * 0.55)
    clearance = 0.22
    body = _body_paint(lacquer, width, length, towards_us)
    canvas.draw_box(
        _vector(x - width / 2, clearance if kind != "tram" else 0.12, z),
        _vector(x + width / 2, waist, z + length),
        label,
        body,
        speed,
    )
    for wheel in (0.18, 0.80):
        center, radius = z + wheel * length, 0.31 if width < 2 else 0.46
        if kind != "tram":
            canvas.draw_box(
                _vector(x - width / 2 - 0.01, 0, center - radius),
                _vector(x + width / 2 + 0.01, 2 * radius, center + radius),
                label,
                _wheel_paint(radius),
                speed,
            )
    narrowing = 0.12 if width < 2 else 0.0
    load = kind == "truck"
    canvas.draw_box(
        _vector(x - width / 2 + narrowing, waist, z + cabin_start),
        _vector(x + width / 2 - narrowing, top, z + cabin_end),
        label,
        _load_paint(lacquer)
        if load
        else _cabin_paint(lacquer, cabin_end - cabin_start, top - waist),
        speed,
    )
    if load:
        canvas.draw_box(
            _vector(x - width / 2, waist, z + (0.1 if towards_us else cabin_end + 0.15)),
            _vector(x + width / 2, 2.6, z + (cabin_start - 0.1 if towards_us else length)),
            label,
            _cabin_paint(lacquer, 1.9, 1.6),
            speed,
        )


def _body_paint(lacquer: Floats, width: float, length: float, towards_us: bool) -> BoxPaint:
    def paint(x: Floats, y: Floats, z: Floats, axis: Axes) -> tuple[Floats, Mask]:
        color = np.tile(lacquer, (x.size, 1)) * (0.78 + 0.35 * np.clip(y, 0, 1))[:, None]
        end = axis == 2
        from_side = np.minimum(x, width - x)
        lamp = end & (from_side > 0.06) & (from_side < 0.42) & (y > 0.36) & (y < 0.54)
        color[lamp] = (0.96, 0.95, 0.86) if towards_us else (0.78, 0.05, 0.06)
        plate = end & (np.abs(x - width / 2) < 0.27) & (y > 0.18) & (y < 0.30)
        color[end & (y < 0.14)] *= 0.5
        color[plate] = 0.88
        if towards_us:
            color[end & (np.abs(x - width / 2) < 0.4) & (y > 0.34) & (y < 0.5)] = 0.10
        doors = (axis == 0) & (np.abs(z % (length / 3) - 0.02) < 0.02)
        color[doors] *= 0.6
        return color.astype(np.float32), np.ones(x.size, bool)

    return paint


def _cabin_paint(lacquer: Floats, length: float, height: float) -> BoxPaint:
    """Glass all round with pillars, under a roof of lacquer; the windscreens lean inwards."""
    panes = max(2, round(length / 1.4))

    def paint(x: Floats, y: Floats, z: Floats, axis: Axes) -> tuple[Floats, Mask]:
        share = y / height
        color = _GLASS * (0.75 + 0.9 * share)[:, None]
        pillar = (axis == 0) & (np.abs(z / length * panes % 1 - 0.5) > 0.46)
        color[pillar | (share > 0.88) | (share < 0.06)] = lacquer * 0.95
        color[axis == 1] = lacquer * 1.05
        return color.astype(np.float32), np.ones(x.size, bool)

    return paint


def _load_paint(lacquer: Floats) -> BoxPaint:
    def paint(x: Floats, y: Floats, z: Floats, axis: Axes) -> tuple[Floats, Mask]:
        along = np.where(axis == 0, z, x)
        ribs = 0.80 + 0.06 * np.sign(np.sin(14 * along))
        color = np.repeat(ribs[:, None], 3, axis=1)
        color[(y > 0.9) & (y < 1.25)] = lacquer
        return color.astype(np.float32), np.ones(x.size, bool)

    return paint


def _wheel_paint(radius: float) -> BoxPaint:
    def paint(x: Floats, y: Floats, z: Floats, axis: Axes) -> tuple[Floats, Mask]:
        distance = np.hypot(y - radius, z - radius)
        color = np.tile(_RUBBER, (x.size, 1))
        color[(axis == 0) & (distance < 0.6 * radius)] = _STEEL
        color[(axis == 0) & (distance < 0.15 * radius)] = 0.2
        side = (axis == 0) & (distance < radius)
        # Seen from an end, the two tyres stand at the outer quarters of the axle.
        tyre = (axis == 2) & (np.minimum(x, x.max(initial=0) - x) < 0.22) & (y < radius)
        return color, side | tyre

    return paint


def _draw_tree(
    canvas: Canvas, place: tuple[float, float], height: float, random: np.random.Generator
) -> None:
    crown = 0.30 * height
    middle = 0.66 * height
    lobes = [
        (random.uniform(-0.6, 0.6) * crown, middle + random.uniform(-0.55, 0.6) * crown)
        for _ in range(7)
    ]
    leaf = np.array((0.24, 0.42, 0.15), np.float32) * random.uniform(0.8, 1.25)
    leaf[0] *= random.uniform(0.8, 1.5)
    offset = random.uniform(0, 200)

    def paint(right: Floats, up: Floats) -> tuple[Floats, Mask]:
        rough = canvas.clouds(2.3 * right + offset, 2.3 * up) - 0.5
        distance = np.full(right.shape, np.inf, np.float32)
        for lobe_right, lobe_up in lobes:
            distance = np.minimum(distance, np.hypot(right - lobe_right, up - lobe_up))
        leaves = distance + 0.9 * rough < 0.62 * crown
        trunk = (np.abs(right + 0.03 * np.sin(2 * up)) < 0.035 * height * (1.1 - up / height)) & (
            up < middle
        )
        light = 0.55 + 0.55 * (up - middle + crown) / (2 * crown) + 0.15 * right / crown
        light += 1.1 * (canvas.noise(7 * right + offset, 7 * up) - 0.5)
        color = leaf * np.clip(light, 0.25, 1.7)[:, None]
        bark = 0.26 + 0.12 * canvas.noise(14 * right, 4 * up + offset)
        wood = trunk & ~leaves
        color[wood] = (bark[:, None] * np.array((1.1, 0.9, 0.72), np.float32))[wood]
        return color.astype(np.float32), leaves | trunk

    canvas.draw_shadow(place[0], place[1], 1.1 * crown, 1.1 * crown)
    canvas.draw_cutout(place, 1.7 * crown, height * 1.1, VEGETATION, paint)


def _capsule(
    right: Floats,
    up: Floats,
    start: tuple[float, float],
    end: tuple[float, float],
    radius: float,
) -> Mask:
    """Points within radius of the segment from start to end."""
    along_right, along_up = end[0] - start[0], end[1] - start[1]
    length = along_right**2 + along_up**2
    share = ((right - start[0]) * along_right + (up - start[1]) * along_up) / max(length, 1e-6)
    share = np.clip(share, 0, 1)
    return (
        np.hypot(right - start[0] - share * along_right, up - start[1] - share * along_up) < radius
    )


def _draw_pedestrian(
    canvas: Canvas,
    place: tuple[float, float],
    time: float,
    random: np.random.Generator,
    speed: float,
) -> None:
    scale = random.uniform(0.92, 1.08)
    coat, trousers = _pick(_CLOTH, random), _pick(_CLOTH, random) * 0.6
    skin, hair = _pick(_SKIN, random), random.uniform(0.08, 0.3)
    swing = 0.2 * np.sin(6.5 * time + random.uniform(0, 6))

    def paint(right: Floats, up: Floats) -> tuple[Floats, Mask]:
        right, up = right / scale, up / scale
        left_leg = _capsule(right, up, (-0.07, 0.85), (-0.08 - swing, 0.06), 0.085)
        right_leg = _capsule(right, up, (0.07, 0.85), (0.08 + swing, 0.06), 0.085)
        left_arm = _capsule(right, up, (-0.2, 1.38), (-0.27 + swing, 0.88), 0.06)
        right_arm = _capsule(right, up, (0.2, 1.38), (0.27 - swing, 0.88), 0.06)
        torso = _capsule(right, up, (0.0, 0.98), (0.0, 1.32), 0.19)
        head = np.hypot(right, (up - 1.64) * 0.85) < 0.115
        color = np.tile(coat, (right.size, 1)) * (0.85 + 0.5 * right)[:, None]
        color[(left_leg | right_leg) & ~torso] = trousers
        color[(left_leg | right_leg) & (up < 0.1)] = 0.08
        color[(left_arm | right_arm) & (up < 0.93)] = skin
        color[(left_arm | right_arm) & ~torso] *= 0.85
        color[head] = skin
        color[head & (up > 1.66)] = hair
        inside = left_leg | right_leg | left_arm | right_arm | torso | head
        return color.astype(np.float32), inside

    canvas.draw_shadow(place[0], place[1], 0.4, 0.3)
    canvas.draw_cutout(place, 0.6, 1.95, PERSON, paint, speed)


def _draw_cyclist(
    canvas: Canvas,
    place: tuple[float, float],
    time: float,
    random: np.random.Generator,
    speed: float,
) -> None:
    """A cyclist seen from behind: a bicycle and a rider are two things."""
    jacket, skin = _pick(_CLOTH, random), _pick(_SKIN, random)
    pedal = 0.16 * np.sin(8 * time)

    def paint_bicycle(right: Floats, up: Floats) -> tuple[Floats, Mask]:
        tyre = _capsule(right, up, (0.0, 0.05), (0.0, 0.62), 0.045)
        fork = _capsule(right, up, (0.0, 0.6), (0.0, 0.95), 0.03)
        bars = _capsule(right, up, (-0.27, 1.02), (0.27, 1.02), 0.028)
        pedals = _capsule(right, up, (-0.16, 0.33 + pedal), (0.16, 0.33 - pedal), 0.03)
        color = np.tile(_RUBBER, (right.size, 1))
        color[fork | bars] = _STEEL
        color[np.hypot(right, up - 0.72) < 0.06] = (0.9, 0.1, 0.08)
        return color, tyre | fork | bars | pedals

    def paint_rider(right: Floats, up: Floats) -> tuple[Floats, Mask]:
        torso = _capsule(right, up, (0.0, 1.02), (0.0, 1.38), 0.19)
        arms = _capsule(right, up, (-0.17, 1.42), (-0.28, 1.05), 0.055)
        arms |= _capsule(right, up, (0.17, 1.42), (0.28, 1.05), 0.055)
        legs = _capsule(right, up, (-0.1, 0.95), (-0.15, 0.38 + pedal), 0.08)
        legs |= _capsule(right, up, (0.1, 0.95), (0.15, 0.38 - pedal), 0.08)
        head = np.hypot(right, (up - 1.68) * 0.9) < 0.12
        color = np.tile(jacket, (right.size, 1))
        color[legs & ~torso] = (0.15, 0.17, 0.22)
        color[head] = skin
        color[head & (up > 1.66)] = (0.85, 0.85, 0.82)
        return color, torso | arms | legs | head

    x, z = place
    canvas.draw_shadow(x, z, 0.4, 0.9)
    canvas.draw_cutout((x, z + 0.05), 0.4, 1.1, BICYCLE, paint_bicycle, speed)
    canvas.draw_cutout((x, z), 0.5, 1.9, RIDER, paint_rider, speed)


def _draw_two_wheeler(
    canvas: Canvas, place: tuple[float, float], motor: bool, random: np.random.Generator
) -> None:
    """A parked bicycle or motorcycle, seen from its side."""
    lacquer = _pick(_LACQUER, random)
    radius, tyre_width = (0.30, 0.075) if motor else (0.34, 0.03)

    def paint(right: Floats, up: Floats) -> tuple[Floats, Mask]:
        rear = np.hypot(right + 0.52, up - radius)
        front = np.hypot(right - 0.52, up - radius)
        near = np.minimum(rear, front)
        wheels = np.abs(near - radius + tyre_width) < tyre_width
        spokes = (near < radius) & (
            np.sin(9 * np.arctan2(up - radius, np.abs(right) - 0.52)) > 0.93
        )
        hub, saddle, head = (-0.1, 0.34), (-0.2, 0.86), (0.38, 0.86)
        thick = 0.05 if motor else 0.028
        frame = _capsule(right, up, hub, saddle, thick)
        frame |= _capsule(right, up, hub, head, thick)
        frame |= _capsule(right, up, saddle, head, thick)
        frame |= _capsule(right, up, (-0.52, radius), hub, thick)
        frame |= _capsule(right, up, (0.52, radius), (0.36, 0.98), thick)
        if motor:
            frame |= _capsule(right, up, (-0.15, 0.45), (0.2, 0.5), 0.18)
            frame |= _capsule(right, up, (0.05, 0.78), (0.25, 0.8), 0.13)
        seat = _capsule(right, up, (-0.42 if motor else -0.28, 0.9), (-0.1, 0.9), 0.06)
        bars = _capsule(right, up, (0.36, 0.98), (0.24, 1.06), 0.035)
        color = np.tile(lacquer, (right.size, 1))
        color[wheels | seat | bars] = _RUBBER
        color[spokes & ~frame] = _STEEL
        return color, wheels | spokes | frame | seat | bars

    canvas.draw_shadow(place[0], place[1], 0.9, 0.3)
    canvas.draw_cutout(place, 0.95, 1.15, MOTORCYCLE if motor else BICYCLE, paint)
