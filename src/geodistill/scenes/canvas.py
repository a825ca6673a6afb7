"""Painting tools of the built-in scenes: ground textures, roads, trees, houses, cars, water."""

import itertools
import math
import random
from collections.abc import Sequence
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Colour: TypeAlias = tuple[int, ...]
Points: TypeAlias = Sequence[tuple[float, float]]

SUPERSAMPLING = 2
FINE, COARSE = 7.0, 18.0  # grain of textures, in units
T = TypeVar("T")
# (grass, tree crown) of a green spring, a summer, a dry summer, an autumn and a late winter.
SEASONS = (
    ((112, 142, 78), (58, 96, 48)),
    ((96, 120, 68), (44, 76, 42)),
    ((158, 148, 104), (76, 94, 56)),
    ((134, 126, 80), (120, 92, 50)),
    ((120, 112, 88), (82, 80, 60)),
)
SOILS = ((164, 138, 106), (142, 112, 84), (184, 164, 130), (128, 108, 90))
WATERS = ((48, 78, 92), (62, 96, 88), (40, 66, 104), (92, 104, 82), (34, 58, 70), (112, 116, 96))
ASPHALTS = ((112, 112, 114), (92, 94, 98), (136, 134, 130), (152, 148, 142))
ROOFS = ((168, 92, 72), (142, 76, 62), (128, 122, 118), (96, 98, 106), (184, 172, 156), (206, 202, 198), (154, 116, 88))
CARS = ((238, 238, 238), (214, 216, 220), (40, 42, 48), (70, 74, 84), (158, 42, 40), (46, 70, 132), (150, 152, 156))
WHITE = (232, 232, 226)
SHADOW = (16, 20, 28, 130)


class Canvas:
    """A square ground seen from above, in units of 1/64 of the finished scene's side; (0, 0) is its centre.

    It is larger than the scene, so that it can be rotated by any angle; `reach` is half its side, in units.
    """

    def __init__(self, size: int, seed: int) -> None:
        # Two generators: Python's is ten times faster for single numbers, numpy's for whole fields of noise.
        self.size, self.dice, self.rng = size, random.Random(seed), np.random.default_rng(seed)
        self.scale = SUPERSAMPLING * size / 64 * self.uniform(0.8, 1.25)
        self.side = math.ceil(SUPERSAMPLING * size * math.sqrt(2)) + 2
        self.reach = self.side / 2 / self.scale
        self.grass, crown = (self.vary(colour) for colour in self.pick(SEASONS))
        self.crowns = [self.vary(crown, 12) for _ in range(16)]
        self.fields: dict[float, Image.Image] = {}
        self.soil, self.water = self.vary(self.pick(SOILS)), self.vary(self.pick(WATERS))
        self.asphalt = self.vary(self.pick(ASPHALTS))
        turn = self.uniform(0, 2 * math.pi)
        self.sun = (math.cos(turn), math.sin(turn))
        self.image = Image.new("RGB", (self.side, self.side), self.grass)
        self.pen = ImageDraw.Draw(self.image, "RGBA")

    # Chance.

    def uniform(self, low: float, high: float) -> float:
        """Return a number between `low` and `high`."""
        return self.dice.uniform(low, high)

    def chance(self, probability: float) -> bool:
        """Return True with this probability."""
        return self.dice.random() < probability

    def pick(self, choices: Sequence[T]) -> T:
        """Return one of `choices`."""
        return self.dice.choice(choices)

    def vary(self, colour: Colour, spread: float = 14) -> Colour:
        """Return `colour`, slightly lighter or darker and with a slightly different tint."""
        shift = self.dice.gauss(0, spread)
        return tuple(min(255, max(0, int(c + shift + self.dice.gauss(0, spread / 4)))) for c in colour)

    def noise(self, grain: float) -> Image.Image:
        """Return value noise, mean 128, deviation 42, of three octaves; its coarsest blobs are `grain` units wide."""
        total = np.zeros((self.side, self.side), np.float32)
        for octave in range(3):
            cells = int(np.clip(2 * self.reach / grain * 2**octave, 2, self.side))
            grid = Image.fromarray(self.rng.standard_normal((cells, cells), np.float32) * 0.6**octave)
            total += np.asarray(grid.resize((self.side, self.side), Image.Resampling.BILINEAR))
        total = 128 + 42 * (total - total.mean()) / (total.std() + 1e-6)
        return Image.fromarray(np.clip(total, 0, 255).astype(np.uint8))

    # Painting.

    def texture(self, colour: Colour, contrast: float, grain: float) -> Image.Image:
        """Return a ground of this colour whose brightness varies by `contrast` (a fraction)."""
        if grain not in self.fields:
            self.fields[grain] = self.noise(grain)
        # The field is computed once; flips and rotations make each ground look different.
        field = self.fields[grain].transpose(self.pick(tuple(Image.Transpose)))
        light = [1 + contrast * (level - 128) / 42 for level in range(256)]
        return Image.merge("RGB", [field.point([min(255, int(c * f)) for f in light]) for c in colour])

    def ground(self, colour: Colour, contrast: float = 0.08, grain: float = COARSE) -> None:
        """Cover the whole canvas."""
        self.image.paste(self.texture(colour, contrast, grain))

    def area(self, points: Points, colour: Colour, contrast: float = 0.06, grain: float = FINE) -> None:
        """Cover a polygon with a textured ground."""
        mask = Image.new("L", (self.side, self.side))
        ImageDraw.Draw(mask).polygon(self._pixels(points), fill=255)
        self.image.paste(self.texture(colour, contrast, grain), mask=mask)

    def polygon(self, points: Points, colour: Colour) -> None:
        """Fill a polygon; a fourth value of `colour` is its opacity."""
        self.pen.polygon(self._pixels(points), fill=colour)

    def line(self, points: Points, width: float, colour: Colour) -> None:
        """Draw a line of this width."""
        self.pen.line(self._pixels(points), fill=colour, width=max(1, round(width * self.scale)), joint="curve")

    def dashes(self, start: tuple[float, float], end: tuple[float, float], width: float, dash: float) -> None:
        """Draw a dashed white line."""
        count = max(1, int(math.dist(start, end) / (2 * dash)))
        for k in range(count):
            near, far = ((k + part) / count for part in (0.25, 0.75))
            self.line([_between(start, end, near), _between(start, end, far)], width, WHITE)

    def disc(self, x: float, y: float, radius: float, colour: Colour) -> None:
        """Fill a circle."""
        (left, top), (right, bottom) = self._pixels([(x - radius, y - radius), (x + radius, y + radius)])
        self.pen.ellipse((left, top, right, bottom), fill=colour)

    def box(self, x: float, y: float, width: float, height: float, colour: Colour, angle: float = 0.0) -> None:
        """Fill a rectangle centred at (x, y), turned by `angle` (radians)."""
        # Nothing beyond the circle of radius `reach` is visible, however the scene is rotated.
        if math.hypot(x, y) < self.reach + max(width, height):
            self.polygon(box_points(x, y, width, height, angle), colour)

    def _pixels(self, points: Points) -> list[tuple[float, float]]:
        middle = self.side / 2
        return [(middle + x * self.scale, middle + y * self.scale) for x, y in points]

    # Things that stand on the ground.

    def tree(self, x: float, y: float, radius: float) -> None:
        """Draw a tree crown, lit from the sun's side, with its shadow."""
        colour, (dx, dy) = self.pick(self.crowns), self.sun
        self.disc(x - dx * radius * 0.7, y - dy * radius * 0.7, radius, SHADOW)
        self.disc(x, y, radius, colour)
        light = tuple(min(255, int(c * 1.25) + 6) for c in colour)
        self.disc(x + dx * radius * 0.3, y + dy * radius * 0.3, radius * 0.55, light)

    def house(self, x: float, y: float, width: float, depth: float, roof: Colour, angle: float = 0.0) -> None:
        """Draw a gable roof with two differently lit sides, and its shadow."""
        dx, dy = self.sun
        self.box(x - dx * 1.3, y - dy * 1.3, width, depth, SHADOW, angle)
        bright, dark = (tuple(min(255, int(c * f)) for c in roof) for f in (1.12, 0.8))
        self.box(x, y, width, depth, bright, angle)
        ox, oy = -math.sin(angle) * depth / 4, math.cos(angle) * depth / 4
        self.box(x + ox, y + oy, width, depth / 2, dark, angle)

    def hall(self, x: float, y: float, width: float, depth: float, angle: float = 0.0) -> None:
        """Draw a large flat roof with a parapet and some machinery on it."""
        dx, dy = self.sun
        roof = self.vary(self.pick(ROOFS[2:6]))
        self.box(x - dx * 2, y - dy * 2, width, depth, SHADOW, angle)
        self.box(x, y, width, depth, tuple(int(c * 0.85) for c in roof), angle)
        self.box(x, y, width - 0.8, depth - 0.8, roof, angle)
        for _ in range(int(self.rng.integers(1, 5))):
            px, py = self.uniform(-0.35, 0.35) * width, self.uniform(-0.35, 0.35) * depth
            self.box(*turned(x, y, px, py, angle), 1.6, 1.2, self.vary((150, 150, 152)), angle)

    def car(self, x: float, y: float, angle: float, size: float = 1.0) -> None:
        """Draw a car along `angle`, with its shadow and windows."""
        if math.hypot(x, y) > self.reach + 2:
            return
        dx, dy = self.sun
        self.box(x - dx * 0.35, y - dy * 0.35, 2.5 * size, 1.15 * size, SHADOW, angle)
        self.box(x, y, 2.4 * size, 1.1 * size, self.vary(self.pick(CARS), 8), angle)
        self.box(x, y, 1.1 * size, 0.9 * size, (40, 46, 56, 120), angle)

    def boat(self, x: float, y: float, angle: float, length: float) -> None:
        """Draw a hull pointed at one end, with a deck."""
        if math.hypot(x, y) > self.reach + length:
            return
        hull = [(-0.5, -0.17), (0.2, -0.18), (0.5, 0.0), (0.2, 0.18), (-0.5, 0.17)]
        points = [turned(x, y, u * length, v * length, angle) for u, v in hull]
        self.polygon([(px - self.sun[0] * 0.5, py - self.sun[1] * 0.5) for px, py in points], SHADOW)
        self.polygon(points, self.vary((232, 232, 230), 10))
        deck = self.vary(self.pick(((170, 140, 100), (60, 90, 140), (120, 124, 130), (200, 200, 196))))
        self.box(*turned(x, y, -0.12 * length, 0, angle), 0.4 * length, 0.2 * length, deck, angle)

    def road(self, points: Points, width: float, colour: Colour | None = None, marked: bool = True) -> None:
        """Draw a road along a polyline, with verges in the colour of soil and, if `marked`, a dashed centre line."""
        self.line(points, width + 1.4, self.vary(self.soil))
        self.line(points, width, colour or self.asphalt)
        if marked:
            for start, end in itertools.pairwise(points):
                self.dashes(start, end, 0.35, 2.0)

    def trees(self, count: int, low: float = 1.2, high: float = 2.6, clear: Points = (), gap: float = 0.0) -> None:
        """Scatter trees, none of them closer than `gap` to the points of `clear`."""
        for _ in range(count):
            x, y = turned(0, 0, self.reach * math.sqrt(self.dice.random()), 0, self.uniform(0, 2 * math.pi))
            if all(math.hypot(x - cx, y - cy) > gap for cx, cy in clear):
                self.tree(x, y, self.uniform(low, high))

    # The photograph.

    def photograph(self) -> NDArray[np.uint8]:
        """Return uint8 [size, size, 3]: the ground rotated by a random angle, in random light, with sensor noise."""
        image = self.image.rotate(self.uniform(0, 360), Image.Resampling.BILINEAR)
        edge = SUPERSAMPLING * self.size
        start = (self.side - edge) // 2
        image = image.crop((start, start, start + edge, start + edge))
        image = image.resize((self.size, self.size), Image.Resampling.BOX)
        return self._exposed(np.asarray(image, np.float32))

    def _exposed(self, pixels: NDArray[np.float32]) -> NDArray[np.uint8]:
        tint = self.rng.normal(1, 0.03, 3)
        contrast, brightness, haze = self.uniform(0.75, 1.25), self.uniform(0.75, 1.2), self.uniform(0, 0.2)
        lit = ((pixels - 115) * contrast + 115) * brightness * tint * (1 - haze) + 190 * haze
        lit += self.rng.normal(0, self.uniform(1, 5), pixels.shape)
        return np.clip(lit, 0, 255).round().astype(np.uint8)


def turned(x: float, y: float, along: float, across: float, angle: float) -> tuple[float, float]:
    """Return the point at offset (`along`, `across`) from (x, y) in axes rotated by `angle`."""
    cos, sin = math.cos(angle), math.sin(angle)
    return x + along * cos - across * sin, y + along * sin + across * cos


def box_points(x: float, y: float, width: float, height: float, angle: float = 0.0) -> list[tuple[float, float]]:
    """Return the corners of a rectangle centred at (x, y)."""
    corners = ((-1, -1), (1, -1), (1, 1), (-1, 1))
    return [turned(x, y, u * width / 2, v * height / 2, angle) for u, v in corners]


def _between(start: tuple[float, float], end: tuple[float, float], part: float) -> tuple[float, float]:
    return start[0] + (end[0] - start[0]) * part, start[1] + (end[1] - start[1]) * part
