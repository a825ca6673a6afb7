"""The built-in scenes: drawn images of ten classes of overhead imagery, so that everything runs without any data.

Classes share their objects (trees, houses, roads, cars, water, soil), colours depend on season and light, and each
scene is rotated at random. Colour alone therefore does not separate the classes; layout does.
"""

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from geodistill.errors import SceneError
from geodistill.scenes.canvas import ASPHALTS, CARS, ROOFS, SHADOW, SOILS, WHITE, Canvas, Points, box_points, turned
from geodistill.seeding import derive_seed

if TYPE_CHECKING:
    from geodistill.scenes.scenes import SceneData, Scenes

CROPS = ((126, 142, 74), (94, 124, 62), (176, 160, 98), (150, 124, 88), (196, 178, 120), (70, 100, 54), (136, 108, 82))
SANDS = ((214, 194, 154), (196, 176, 140), (226, 212, 182), (182, 166, 138))


def draw_scene(class_name: str, seed: int, size: int = 64) -> NDArray[np.uint8]:
    """Return one scene of the class, uint8 RGB [size, size, 3]; the same arguments give the same scene."""
    if class_name not in PAINTERS:
        raise SceneError(f"no built-in class {class_name!r}: choose one of {', '.join(PAINTERS)}")
    canvas = Canvas(size, derive_seed(seed, f"scene {class_name}"))
    PAINTERS[class_name](canvas)
    return canvas.photograph()


def builtin_scenes(train_per_class: int = 60, test_per_class: int = 30, size: int = 64, seed: int = 0) -> "SceneData":
    """Return in memory the same built-in scenes that `write_scenes` writes."""
    # Not above: writing the scenes does without torch.
    from geodistill.scenes.scenes import SceneData

    parts = [_draw_split(split, count, size, seed) for split, count in _counts(train_per_class, test_per_class)]
    return SceneData(parts[0], parts[1])


def write_scenes(
    folder: Path, train_per_class: int = 60, test_per_class: int = 30, size: int = 64, seed: int = 0
) -> None:
    """Write the built-in scenes as PNG files: FOLDER/<split>/<class>/<class>_<n>.png."""
    for split, count in _counts(train_per_class, test_per_class):
        for name in CLASSES:
            target = Path(folder) / split / name
            target.mkdir(parents=True, exist_ok=True)
            for n in range(count):
                Image.fromarray(draw_scene(name, _seed_of(seed, split, n), size)).save(target / f"{name}_{n:04d}.png")


def _counts(train: int, test: int) -> tuple[tuple[str, int], tuple[str, int]]:
    if train < 1 or test < 1:
        raise SceneError(f"{train} training and {test} test scenes per class asked for: ask for at least 1 of each")
    return ("train", train), ("test", test)


def _seed_of(seed: int, split: str, index: int) -> int:
    return derive_seed(seed, f"built-in {split}", index)


def _draw_split(split: str, count: int, size: int, seed: int) -> "Scenes":
    from geodistill.scenes.scenes import Scenes

    images = [draw_scene(name, _seed_of(seed, split, n), size) for name in CLASSES for n in range(count)]
    labels = [label for label in range(len(CLASSES)) for _ in range(count)]
    return Scenes.from_arrays(images, labels, CLASSES)


# One painter per class. Lengths are in units of 1/64 of the scene's side.


def _farmland(c: Canvas) -> None:
    c.ground(c.soil, 0.05)
    for x, y, width, height in _parcels(c, -c.reach, -c.reach, 2 * c.reach, 2 * c.reach, c.uniform(16, 30)):
        _field(c, x, y, width, height)
    if c.chance(0.4):
        x = c.uniform(-20, 20)
        c.road([(x, -c.reach), (x, c.reach)], c.uniform(1.5, 3), c.vary(c.soil), marked=False)
    if c.chance(0.4):
        _hedge(c, c.uniform(-20, 20))
    if c.chance(0.35):
        _farmyard(c, c.uniform(-20, 20), c.uniform(-20, 20))


def _parcels(c: Canvas, x: float, y: float, w: float, h: float, limit: float) -> list[tuple[float, ...]]:
    """Divide a rectangle (corner, size) in two repeatedly until the parts are about `limit` wide; return the parts."""
    if max(w, h) < limit * c.uniform(1.0, 1.8):
        return [(x, y, w, h)]
    cut = c.uniform(0.35, 0.65)
    if w > h:
        return _parcels(c, x, y, w * cut, h, limit) + _parcels(c, x + w * cut, y, w * (1 - cut), h, limit)
    return _parcels(c, x, y, w, h * cut, limit) + _parcels(c, x, y + h * cut, w, h * (1 - cut), limit)


def _field(c: Canvas, x: float, y: float, width: float, height: float) -> None:
    """Draw a parcel with a lane around it and, usually, crop rows parallel to one of its sides."""
    colour = c.vary(c.pick(CROPS) if c.chance(0.8) else c.grass)
    c.box(x + width / 2, y + height / 2, width - 0.7, height - 0.7, colour)
    if c.chance(0.25):
        return
    row = tuple(int(v * c.uniform(0.78, 0.92)) for v in colour)
    step, along = c.uniform(1.6, 3.6), c.chance(0.5)
    for k in np.arange(step, (height if along else width) - 0.7, step):
        ends = [(x + 0.6, y + k), (x + width - 0.6, y + k)] if along else [(x + k, y + 0.6), (x + k, y + height - 0.6)]
        c.line(ends, step * 0.35, row)


def _hedge(c: Canvas, x: float) -> None:
    for y in np.arange(-c.reach, c.reach, 2.2):
        c.tree(x + c.uniform(-0.5, 0.5), float(y), c.uniform(0.9, 1.6))


def _farmyard(c: Canvas, x: float, y: float) -> None:
    c.box(x, y, 12, 9, c.vary(c.soil))
    for _ in range(3):
        c.house(x + c.uniform(-4, 4), y + c.uniform(-3, 3), c.uniform(3, 6), 2.6, c.vary(c.pick(ROOFS)))
    for _ in range(4):
        c.tree(x + c.uniform(-7, 7), y + c.uniform(-6, 6), 1.5)


def _forest(c: Canvas) -> None:
    c.ground(tuple(int(v * 0.7) for v in c.crowns[0]), 0.15)
    size = c.uniform(1.6, 2.8)
    clearing: Points = ()
    if c.chance(0.45):
        clearing = _curve(c, c.uniform(-15, 15), 6, 30)
        c.line(clearing, c.uniform(1.5, 4), c.pick((c.soil, c.water, c.grass)))
    gap = size + 1.5 if clearing else 0.0
    if c.chance(0.3):
        x, y = c.uniform(-20, 20), c.uniform(-20, 20)
        c.area(_blob(c, x, y, c.uniform(6, 11)), c.grass)
        clearing = [*clearing, (x, y)]
        gap = 6.0
    c.trees(int(2.2 * (c.reach / size) ** 2), size * 0.7, size * 1.3, clearing, gap)


def _river(c: Canvas) -> None:
    _countryside(c)
    course = _curve(c, c.uniform(-8, 8), c.uniform(5, 13))
    width = c.uniform(7, 17)
    c.line(course, width + c.uniform(2, 5), c.vary(c.pick((*SOILS, c.grass))))
    c.area(_ribbon(course, width), c.water, 0.05)
    if c.chance(0.35):
        _sandbar(c, course, width)
    for x, y in course[::2]:
        for side in (-1, 1):
            if c.chance(0.5):
                c.tree(x + side * (width / 2 + c.uniform(1, 4)), y + c.uniform(-2, 2), c.uniform(1.2, 2.2))
    if c.chance(0.25):
        y = c.uniform(-15, 15)
        c.line([(-c.reach, y - 0.8), (c.reach, y - 0.8)], 3.2, SHADOW)
        c.road([(-c.reach, y), (c.reach, y)], 3)


def _countryside(c: Canvas) -> None:
    """Draw fields, woods, a village or open grass: the surroundings of rivers and shores."""
    kind = c.dice.randrange(4)
    c.ground(c.grass, 0.12)
    if kind == 0:
        for x, y, width, height in _parcels(c, -c.reach, -c.reach, 2 * c.reach, 2 * c.reach, 24):
            _field(c, x, y, width, height)
    elif kind == 1:
        c.trees(380, 1.5, 2.6)
    elif kind == 2:
        for _ in range(45):
            x, y = c.uniform(-c.reach, c.reach), c.uniform(-c.reach, c.reach)
            c.house(x, y, c.uniform(3, 5), c.uniform(2.4, 3.4), c.vary(c.pick(ROOFS)), c.uniform(0, 3))
    c.trees(int(c.uniform(10, 60)))


def _curve(c: Canvas, x: float, swing: float, points: int = 60) -> list[tuple[float, float]]:
    """Return a line from top to bottom that swings by about `swing` to either side."""
    ys = np.linspace(-c.reach * 1.05, c.reach * 1.05, points)
    first, second, wave = c.uniform(0, 6.3), c.uniform(0, 6.3), c.uniform(55, 110)
    xs = x + swing * (np.sin(2 * math.pi * ys / wave + first) + 0.25 * np.sin(2 * math.pi * ys / wave * 2.1 + second))
    return list(zip(xs.tolist(), ys.tolist(), strict=True))


def _ribbon(course: Points, width: float) -> list[tuple[float, float]]:
    """Return the outline of a band along a course, somewhat wider in places."""
    middle = np.array(course)
    step = np.gradient(middle, axis=0)
    normal = np.stack([step[:, 1], -step[:, 0]], 1) / np.linalg.norm(step, axis=1, keepdims=True)
    half = width / 2 * (1 + 0.15 * np.sin(np.arange(len(middle)) / 6))[:, None]
    outline = np.concatenate([middle + normal * half, (middle - normal * half)[::-1]])
    return [(float(x), float(y)) for x, y in outline]


def _sandbar(c: Canvas, course: Points, width: float) -> None:
    x, y = course[c.dice.randrange(20, 40)]
    c.area(_blob(c, x + c.uniform(-0.3, 0.3) * width, y, width * 0.22, 2.2), c.vary(c.pick(SANDS)))


def _blob(c: Canvas, x: float, y: float, radius: float, stretch: float = 1.0) -> list[tuple[float, float]]:
    """Return a round outline with random bumps, longer along y by the factor `stretch`."""
    turn = np.linspace(0, 2 * math.pi, 24, endpoint=False)
    size = radius * (1 + 0.2 * np.sin(2 * turn + c.uniform(0, 6)) + 0.12 * np.sin(3 * turn + c.uniform(0, 6)))
    return [(x + float(r * math.cos(t)), y + float(r * math.sin(t)) * stretch) for r, t in zip(size, turn, strict=True)]


def _beach(c: Canvas) -> None:
    _countryside(c)
    shore = _curve(c, c.uniform(-8, 10), c.uniform(1, 5))
    sand, width = c.vary(c.pick(SANDS)), c.uniform(8, 17)
    c.area(_right_of(c, _shifted(shore, -width)), sand)
    c.area(_right_of(c, shore), tuple(int(v * 0.8) for v in sand), 0.04)
    shallow = tuple(int(0.55 * w + 0.45 * s) for w, s in zip(c.water, (150, 205, 200), strict=True))
    c.area(_right_of(c, _shifted(shore, 1.5)), shallow, 0.05)
    c.area(_right_of(c, _shifted(shore, c.uniform(8, 14))), c.water, 0.06)
    for k in range(c.dice.randrange(1, 4)):
        _breaker(c, _shifted(shore, 1.2 + 4.5 * k), 1.6 / (1 + 0.4 * k))
    for _ in range(int(c.uniform(0, 30))):
        x, y = c.pick(shore)
        c.disc(x - c.uniform(2, width * 0.7), y, 0.6, c.vary(c.pick(CARS), 20))


def _breaker(c: Canvas, line: Points, width: float) -> None:
    """Draw a line of foam, broken in places."""
    for start, end in itertools.pairwise(line):
        if c.chance(0.8):
            c.line([start, end], width * c.uniform(0.4, 1.2), (244, 246, 244, 210))


def _right_of(c: Canvas, line: Points) -> list[tuple[float, float]]:
    return [*line, (2 * c.reach, 2 * c.reach), (2 * c.reach, -2 * c.reach)]


def _shifted(line: Points, distance: float) -> list[tuple[float, float]]:
    return [(x + distance, y) for x, y in line]


def _runway(c: Canvas) -> None:
    c.ground(c.pick((c.grass, c.grass, c.soil)), 0.1)
    for _ in range(c.dice.randrange(4)):
        c.area(_blob(c, c.uniform(-30, 30), c.uniform(-30, 30), c.uniform(5, 14)), c.vary(c.pick((c.grass, c.soil))))
    surface, x, width = c.vary(c.pick(ASPHALTS)), c.uniform(-12, 8), c.uniform(9, 14)
    if c.chance(0.7):
        _taxiway(c, x, x + c.uniform(17, 24), surface)
    c.area(box_points(x, 0, width + 2, 3 * c.reach), c.vary(surface, 8))
    c.area(box_points(x, 0, width, 3 * c.reach), surface)
    for side in (-1, 1):
        c.line([(x + side * width * 0.44, -c.reach), (x + side * width * 0.44, c.reach)], 0.4, WHITE)
    end = c.uniform(-22, 6) if c.chance(0.6) else -2 * c.reach
    c.dashes((x, end + 10), (x, end + 10 + 7 * 12), 0.7, 3.0)
    for side in (-1, 1):
        c.line([(x + side * 0.9, end + 12), (x + side * 1.2, end + 38)], 1.4, (30, 30, 32, 70))
        c.box(x + side * width * 0.22, end + 16, 1.4, 5, WHITE)
    _threshold(c, x, end, width)
    if c.chance(0.4):
        c.trees(25, 1, 2, [(x, float(y)) for y in np.arange(-45, 46, 4)], width + 9)


def _threshold(c: Canvas, x: float, y: float, width: float) -> None:
    """Draw the threshold markings of a runway and the ground before it."""
    for k in range(8):
        c.box(x + (k - 3.5) * width * 0.105, y + 4, width * 0.055, 6, WHITE)
    c.box(x, y - 1 - c.reach, width + 3, 2 * c.reach, c.vary(c.pick((c.grass, c.soil)), 8))


def _taxiway(c: Canvas, runway: float, x: float, surface: tuple[int, ...]) -> None:
    c.line([(x, -c.reach), (x, c.reach)], 5, surface)
    for y in (c.uniform(-25, -5), c.uniform(5, 25)):
        c.line([(runway, y), (x, y + c.uniform(-9, 9))], 4.5, surface)
    c.line([(x, -c.reach), (x, c.reach)], 0.4, (206, 176, 70))
    if c.chance(0.5):
        _aeroplane(c, x, c.uniform(-20, 20))


def _aeroplane(c: Canvas, x: float, y: float) -> None:
    size, white = c.uniform(0.7, 1.1), c.vary((236, 236, 238), 6)
    for dx, dy, colour in ((-c.sun[0], -c.sun[1], SHADOW), (0.0, 0.0, white)):
        px, py = x + dx, y + dy
        c.box(px, py, 1.1 * size, 9 * size, colour)
        c.polygon([(px, py - 2 * size), (px + 5 * size, py + 1.5 * size), (px - 5 * size, py + 1.5 * size)], colour)
        c.polygon([(px, py + 2.8 * size), (px + 2 * size, py + 4.6 * size), (px - 2 * size, py + 4.6 * size)], colour)


def _storage_tanks(c: Canvas) -> None:
    c.ground(c.pick((c.soil, c.grass, c.asphalt)), 0.08)
    step = c.uniform(12, 19)
    yard = c.vary(c.pick((*SOILS, *ASPHALTS)))
    cells = np.arange(-c.reach + c.uniform(0, step), c.reach, step)
    empty = c.uniform(0.05, 0.35)
    for x in cells.tolist():
        for y in cells.tolist():
            c.box(x, y, step - 1, step - 1, tuple(int(v * 1.12) for v in yard))
            c.box(x, y, step - 2, step - 2, yard)
            if not c.chance(empty):
                _tank(c, x, y, step * c.uniform(0.3, 0.42))
            elif c.chance(0.5):
                _small_tanks(c, x, y, step)
    c.road([(float(cells[1]) - step / 2, -c.reach), (float(cells[1]) - step / 2, c.reach)], 2.2, marked=False)
    if c.chance(0.5):
        c.hall(c.uniform(-25, 25), c.uniform(-25, 25), c.uniform(8, 14), c.uniform(5, 8))
    c.trees(int(c.uniform(0, 14)))


def _tank(c: Canvas, x: float, y: float, radius: float) -> None:
    """Draw a cylinder: shadow, wall, roof with its rim, and either a cone's sheen or a sunken floating roof."""
    dx, dy = c.sun
    roof = c.vary(c.pick(((226, 226, 222), (204, 206, 204), (176, 178, 178), (166, 130, 104), (196, 200, 186))), 8)
    for k in range(5):
        c.disc(x - dx * radius * 0.11 * k, y - dy * radius * 0.11 * k, radius, (*SHADOW[:3], 70))
    c.disc(x, y, radius, tuple(int(v * 0.72) for v in roof))
    c.disc(x, y, radius * 0.92, roof)
    if c.chance(0.4):
        c.disc(x, y, radius * 0.82, tuple(int(v * 0.55) for v in roof))
        c.disc(x - dx * radius * 0.16, y - dy * radius * 0.16, radius * 0.66, tuple(int(v * 0.85) for v in roof))
    else:
        c.disc(x + dx * radius * 0.3, y + dy * radius * 0.3, radius * 0.5, tuple(min(255, int(v * 1.1)) for v in roof))
    c.disc(x, y, radius * 0.1, (90, 92, 96))


def _small_tanks(c: Canvas, x: float, y: float, step: float) -> None:
    for dx in (-0.22, 0.22):
        for dy in (-0.22, 0.22):
            _tank(c, x + dx * step, y + dy * step, step * 0.16)


def _parking_lot(c: Canvas) -> None:
    c.ground(c.asphalt, 0.05)
    filled, bay, size = c.uniform(0.45, 0.95), c.uniform(1.7, 2.1), c.uniform(1.05, 1.3)
    pitch = 13.0 * size
    for x in np.arange(-c.reach - c.uniform(0, pitch), c.reach + pitch, pitch).tolist():
        _double_row(c, x, bay * size, size, filled)
    if c.chance(0.55):
        x, width = c.pick((-1, 1)) * c.uniform(20, 30), c.uniform(14, 22)
        c.area(box_points(x, 0, width + 4, 3 * c.reach), c.pick((c.grass, c.soil, c.asphalt)))
        for y in np.arange(-c.reach, c.reach, 26).tolist():
            c.hall(x, y, width - 3, c.uniform(14, 23))
    if c.chance(0.4):
        y = c.uniform(-26, 26)
        c.line([(-c.reach, y), (c.reach, y)], 6, c.grass)
        for x in np.arange(-c.reach, c.reach, 5).tolist():
            c.tree(x, y, c.uniform(1.2, 2.2))


def _double_row(c: Canvas, x: float, bay: float, size: float, filled: float) -> None:
    """Draw two rows of bays, nose to nose, in places with grass or trees between them."""
    depth = 2.9 * size
    if c.chance(0.35):
        c.line([(x, -c.reach), (x, c.reach)], 1.2, c.grass)
    for y in np.arange(-c.reach, c.reach, bay).tolist():
        c.line([(x - depth, y), (x + depth, y)], 0.22, (228, 228, 224, 200))
        for side in (-1, 1):
            if c.chance(filled):
                c.car(x + side * depth * 0.54, y + bay / 2, c.uniform(-0.05, 0.05), size)
        if c.chance(0.02):
            c.tree(x, y, 1.8)


def _dense_residential(c: Canvas) -> None:
    c.ground(c.pick((c.grass, c.soil, c.asphalt)), 0.1)
    plot, block = c.uniform(4.6, 6.2), c.uniform(11, 14)
    roofs = [c.vary(c.pick(ROOFS)) for _ in range(3)]
    road = c.uniform(2.2, 3.4)
    for y in np.arange(-c.reach - c.uniform(0, block), c.reach + block, block + road).tolist():
        c.road([(-c.reach, y - road / 2), (c.reach, y - road / 2)], road, marked=False)
        for row in (0.27, 0.75):
            _terrace(c, y + block * row, plot, block * 0.36, roofs)
    for x in np.arange(-c.reach + c.uniform(0, 30), c.reach, c.uniform(28, 40)).tolist():
        c.road([(x, -c.reach), (x, c.reach)], road, marked=False)
    c.trees(int(c.uniform(20, 90)), 0.8, 1.6)


def _terrace(c: Canvas, y: float, plot: float, depth: float, roofs: list[tuple[int, ...]]) -> None:
    """Draw a row of houses along a street, each with its own roof."""
    for x in np.arange(-c.reach, c.reach, plot).tolist():
        if c.chance(0.93):
            across = math.pi / 2 if c.chance(0.2) else 0.0
            width = plot * c.uniform(0.72, 0.95)
            c.house(x, y + c.uniform(-0.6, 0.6), width, depth * c.uniform(0.8, 1.1), c.vary(c.pick(roofs), 10), across)
        if c.chance(0.25):
            c.car(x + plot / 2, y + depth * 0.9, 0.0, 0.8)


def _intersection(c: Canvas) -> None:
    c.ground(c.pick((c.grass, c.soil, c.asphalt)), 0.1)
    x, y, lean = c.uniform(-7, 7), c.uniform(-7, 7), c.uniform(-0.25, 0.25)
    first, second = c.uniform(8, 12), c.uniform(7, 12)
    arms = [(0.0, first), (math.pi, first), (math.pi / 2 + lean, second)]
    if c.chance(0.75):
        arms.append((-math.pi / 2 + lean, second))
    _corners(c, x, y, max(first, second))
    for widen, colour in ((3.0, c.vary((176, 172, 164))), (0.0, c.asphalt)):
        for angle, width in arms:
            c.line([(x, y), turned(x, y, 99, 0, angle)], width + widen, colour)
    if c.chance(0.2):
        _roundabout(c, x, y, max(first, second))
    for k, (angle, width) in enumerate(arms):
        _arm(c, x, y, angle, width, arms[k - 2 if len(arms) == 4 else 0][1])


def _corners(c: Canvas, x: float, y: float, road: float) -> None:
    """Draw the four corners: buildings, trees, paved areas."""
    for sx in (-1, 1):
        for sy in (-1, 1):
            cx, cy, kind = x + sx * (road / 2 + 17), y + sy * (road / 2 + 17), c.dice.randrange(4)
            c.area(box_points(cx, cy, 30, 30), c.pick((c.grass, c.soil, c.vary(c.asphalt))))
            for _ in range(7 if kind else 0):
                px, py = cx + c.uniform(-11, 11), cy + c.uniform(-11, 11)
                if kind == 1:
                    c.house(px, py, c.uniform(4, 7), c.uniform(3, 5), c.vary(c.pick(ROOFS)))
                else:
                    c.tree(px, py, c.uniform(1.3, 2.8))
            if kind in (0, 3):
                c.hall(cx, cy, c.uniform(10, 20), c.uniform(10, 20))


def _arm(c: Canvas, x: float, y: float, angle: float, width: float, crossing: float) -> None:
    """Draw one road into the crossing: centre line, lanes, cars, zebra crossing."""
    start = crossing / 2 + 3.5
    c.line([turned(x, y, start + 2, 0, angle), turned(x, y, 99, 0, angle)], 0.45, c.pick((WHITE, (216, 184, 80))))
    for side in (-1, 1):
        near, far = (turned(x, y, along, side * width / 4, angle) for along in (start + 2, 62))
        c.dashes(near, far, 0.35, 1.5)
        for along in np.arange(start + 3, 50, 4).tolist():
            if c.chance(0.22):
                c.car(*turned(x, y, along, side * width * c.pick((0.13, 0.37)), angle), angle)
    for across in np.arange(-width / 2 + 0.7, width / 2, 1.3).tolist():
        c.box(*turned(x, y, start, across, angle), 2.2, 0.6, WHITE, angle)


def _roundabout(c: Canvas, x: float, y: float, road: float) -> None:
    c.disc(x, y, road * 1.15, c.asphalt)
    c.disc(x, y, road * 0.55, WHITE)
    c.disc(x, y, road * 0.5, c.grass)
    c.tree(x, y, road * 0.2)


def _harbour(c: Canvas) -> None:
    c.ground(c.water, 0.06)
    quay = c.uniform(-20, -6)
    c.area(box_points(quay - 50, 0, 100, 3 * c.reach), c.pick((c.soil, c.asphalt, c.grass)))
    c.line([(quay, -c.reach), (quay, c.reach)], 1.6, c.vary((178, 174, 164)))
    _waterfront(c, quay)
    pitch, length = c.uniform(12, 17), c.uniform(4, 5.8)
    reach = quay + c.uniform(24, 46)
    for y in np.arange(-c.reach + c.uniform(0, pitch), c.reach, pitch).tolist():
        _pier(c, quay, reach, y, length, c.uniform(0.5, 0.95))
    for _ in range(c.dice.randrange(3)):
        c.boat(c.uniform(reach, reach + 15), c.uniform(-25, 25), c.uniform(0, 6), c.uniform(4, 7))


def _waterfront(c: Canvas, quay: float) -> None:
    c.road([(quay - 5, -c.reach), (quay - 5, c.reach)], 2.6, c.vary(c.asphalt), marked=False)
    for y in np.arange(-c.reach, c.reach, c.uniform(9, 16)).tolist():
        if c.chance(0.6):
            c.hall(quay - c.uniform(13, 18), y, c.uniform(6, 11), c.uniform(5, 9))
        else:
            c.tree(quay - c.uniform(9, 16), y, c.uniform(1.3, 2.4))
        if c.chance(0.5):
            c.car(quay - 5, y + 2, math.pi / 2)


def _pier(c: Canvas, start: float, end: float, y: float, length: float, filled: float) -> None:
    """Draw a jetty with boats moored on both sides."""
    c.line([(start, y + 0.6), (end, y + 0.6)], 1.1, SHADOW)
    c.line([(start, y), (end, y)], 1.1, c.vary((190, 178, 156), 8))
    for x in np.arange(start + 2.5, end, length * 0.46).tolist():
        for side in (-1, 1):
            if c.chance(filled):
                size = length * c.uniform(0.8, 1.05)
                c.boat(x, y + side * (size / 2 + 0.6), side * math.pi / 2 + c.uniform(-0.05, 0.05), size)


PAINTERS: dict[str, Callable[[Canvas], None]] = {
    "Beach": _beach,
    "DenseResidential": _dense_residential,
    "Farmland": _farmland,
    "Forest": _forest,
    "Harbour": _harbour,
    "Intersection": _intersection,
    "ParkingLot": _parking_lot,
    "River": _river,
    "Runway": _runway,
    "StorageTanks": _storage_tanks,
}
CLASSES = tuple(PAINTERS)
