"""Descriptions that need no model: the class prompt alone, or with properties measured in the images."""

import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from geodistill.descriptions.captions import Description
from geodistill.descriptions.indices import index_phrase, measured_indices
from geodistill.descriptions.prompts import PREFIX, UNNAMED, class_prompt
from geodistill.scenes.reading import PLAIN, Reading
from geodistill.scenes.views import as_rgb

# All images are measured at this size, so that the words do not depend on the resolution of the files.
SIDE = 64
CHUNK = 256


class TemplateDescriber:
    """Describer that returns the class prompt alone."""

    name = "template"

    def __call__(self, images: Tensor, class_name: str) -> Description:
        """Return the class prompt; the images are ignored."""
        return Description(class_prompt(class_name))

    def each(self, images: Tensor, class_names: Sequence[str]) -> list[str]:
        """Return the class prompt of each name."""
        return [class_prompt(name) for name in class_names]


class MeasuredDescriber:
    """The class prompt, followed by measured properties: land cover, colours, light, texture, orientation.

    At most 23 words of the prompt are measured ones, all of them in `VOCABULARY`. Images whose infrared bands the
    `reading` knows get at most six words more, on spectral indices.
    """

    name = "measured"

    def __init__(self, reading: Reading = PLAIN) -> None:
        self._reading = reading

    def __call__(self, images: Tensor, class_name: str) -> Description:
        """Return the prompt for the averages over `images`; raises ValueError if they are not uint8 images."""
        measures = measure(as_rgb(images)).mean(dim=0)
        indices = {name: float(values.mean()) for name, values in measured_indices(images, self._reading).items()}
        return Description(_joined(class_prompt(class_name), sentence(measures), index_phrase(indices)))

    def each(self, images: Tensor, class_names: Sequence[str]) -> list[str]:
        """Return a separate prompt for each image; raises ValueError if they are not uint8 images."""
        return [
            _joined(class_prompt(name), words) for name, words in zip(class_names, self._words(images), strict=True)
        ]

    def unnamed(self, images: Tensor) -> list[str]:
        """Return a prompt for each image without a class name; raises ValueError if they are not uint8 images."""
        return [_joined(UNNAMED, words) for words in self._words(images)]

    def _words(self, images: Tensor) -> list[str]:
        indices = measured_indices(images, self._reading)
        phrases = [
            index_phrase({name: float(values[k]) for name, values in indices.items()}) for k in range(len(images))
        ]
        return [_joined(sentence(one), phrase) for one, phrase in zip(measure(as_rgb(images)), phrases, strict=True)]


def _joined(*phrases: str) -> str:
    return ", ".join(phrase for phrase in phrases if phrase)


# --- measuring

# Typical colours of overhead images in sRGB; several may share a name.
COLOURS: tuple[tuple[str, tuple[int, int, int]], ...] = (
    ("black", (10, 10, 12)),
    ("grey", (70, 70, 72)),
    ("grey", (120, 120, 120)),
    ("grey", (170, 170, 168)),
    ("white", (235, 235, 232)),
    ("brown", (70, 52, 40)),
    ("brown", (120, 88, 62)),
    ("tan", (165, 140, 108)),
    ("tan", (205, 185, 150)),
    ("red", (180, 45, 40)),
    ("orange", (215, 130, 60)),
    ("yellow", (220, 205, 70)),
    ("olive", (95, 95, 55)),
    ("olive", (140, 140, 85)),
    ("green", (35, 55, 35)),
    ("green", (65, 100, 60)),
    ("green", (90, 150, 75)),
    ("green", (40, 180, 60)),
    ("teal", (40, 85, 85)),
    ("teal", (70, 150, 145)),
    ("blue", (25, 45, 80)),
    ("blue", (60, 95, 150)),
    ("blue", (40, 70, 220)),
    ("blue", (140, 175, 215)),
    ("purple", (120, 60, 130)),
    ("pink", (220, 150, 165)),
)
NAMES = tuple(dict.fromkeys(name for name, _ in COLOURS))
# Columns of `measure` that encode the direction.
DIRECTION = slice(4, 6)
COVERS = ("vegetation", "water", "built-up land", "bare ground")


def measure(images: Tensor) -> Tensor:
    """Return float64 [n, measures], one row for each image of uint8 RGB [n, 3, s, s].

    Columns: brightness 0..1; chroma 0..1 (largest minus smallest channel); edges: mean luma gradient, per pixel at
    64 px; fineness: ratio of that gradient to the one after smoothing; cosine and sine of twice the angle of the
    gradient's main direction, times its coherence (structure tensor, Bigun and Granlund, 1987); then the shares of
    the `COVERS` and of the colour `NAMES`. Raises ValueError if `images` have another type or shape.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or not len(images):
        raise ValueError(f"images are {images.dtype} {tuple(images.shape)}, they have to be uint8 [n >= 1, 3, s, s]")
    return torch.cat([_measure(chunk) for chunk in images.cpu().split(CHUNK)])


def _measure(images: Tensor) -> Tensor:
    rgb = _resized(images)
    red, green, blue = rgb.unbind(dim=1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    chroma = rgb.amax(dim=1) - rgb.amin(dim=1)
    east, south = _gradient(luma)
    strength = (east.square() + south.square()).sqrt()
    smoothed = _blur(luma, 5)
    columns = [luma.mean((1, 2)), chroma.mean((1, 2)), strength.mean((1, 2)), _fineness(smoothed, strength)]
    parts = [_orientation(east, south), _covers(rgb, luma, strength), _colours(rgb)]
    return torch.cat([torch.stack(columns, dim=1).double(), *(part.double() for part in parts)], dim=1)


def _resized(images: Tensor) -> Tensor:
    """Return float32 [n, 3, 64, 64] in 0..1."""
    scaled = images.float() / 255
    if images.shape[-2:] == (SIDE, SIDE):
        return scaled
    return F.interpolate(scaled, (SIDE, SIDE), mode="bilinear", antialias=True).clamp(0, 1)


def _gradient(luma: Tensor) -> tuple[Tensor, Tensor]:
    """Return the central differences [n, s, s] of [n, s, s] to the right (east) and downwards (south)."""
    padded = F.pad(luma[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    return (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]) / 2, (padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]) / 2


def _blur(plane: Tensor, width: int) -> Tensor:
    """Return the mean over `width` x `width` pixels around each pixel of [n, s, s]."""
    return F.avg_pool2d(plane[:, None], width, stride=1, padding=width // 2, count_include_pad=False)[:, 0]


def _fineness(smoothed: Tensor, strength: Tensor) -> Tensor:
    east, south = _gradient(smoothed)
    left = (east.square() + south.square()).sqrt().mean((1, 2))
    return strength.mean((1, 2)) / (left + 1e-3)


def _orientation(east: Tensor, south: Tensor) -> Tensor:
    """Return [n, 2]: cosine and sine of twice the gradient's angle, times the coherence (0: none, 1: one direction)."""
    horizontal, vertical = east.square().mean((1, 2)), south.square().mean((1, 2))
    crossed = (east * south).mean((1, 2))
    # The constant equals a gradient of about one grey level: noise on a plain image then has no direction.
    return torch.stack([horizontal - vertical, 2 * crossed], dim=1) / (horizontal + vertical + 1e-5)[:, None]


def _covers(rgb: Tensor, luma: Tensor, strength: Tensor) -> Tensor:
    """Return [n, 4]: the shares of pixels that look like each of the `COVERS`."""
    red, green, blue = (rgb / (rgb.sum(dim=1, keepdim=True) + 1e-3)).unbind(dim=1)
    busy = _blur(strength, 7)
    # Excess green (Woebbecke et al., 1995); a pixel that is far bluer than red is water, even if it is green.
    vegetation = (2 * green - red - blue > 0.04) & (blue - red < 0.08)
    water = ~vegetation & (busy < 0.04) & ((blue - red > 0.04) | ((luma < 0.25) & (blue >= red)))
    built_up = ~vegetation & ~water & (busy > 0.05)
    bare = ~vegetation & ~water & ~built_up & (red - blue > 0.02)
    return torch.stack([vegetation, water, built_up, bare], dim=1).double().mean((2, 3))


def _colours(rgb: Tensor) -> Tensor:
    """Return [n, names]: the share of pixels nearest to each named colour."""
    red, green, blue = (rgb * 255).round().long().bitwise_right_shift(3).unbind(dim=1)
    named = _colour_table()[(red << 10) | (green << 5) | blue].flatten(1)  # [n, s * s]
    return F.one_hot(named, len(NAMES)).double().mean(dim=1)


@cache
def _colour_table() -> Tensor:
    """Return int64 [32768]: the colour name nearest in CIELAB to each RGB value of 5 bits per channel."""
    levels = (torch.arange(32).double() * 8 + 4) / 255
    cells = torch.cartesian_prod(levels, levels, levels)  # [32768, 3]
    anchors = torch.tensor([rgb for _, rgb in COLOURS]).double() / 255
    # Hue and chroma count double: otherwise haze would make most overhead images grey.
    weights = torch.tensor([1.0, 2.0, 2.0]).double()
    nearest = torch.cdist(_lab(cells) * weights, _lab(anchors) * weights).argmin(dim=1)
    return torch.tensor([NAMES.index(name) for name, _ in COLOURS])[nearest]


def _lab(rgb: Tensor) -> Tensor:
    """Return CIELAB [n, 3] of sRGB [n, 3] in 0..1 (IEC 61966-2-1, white point D65)."""
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = torch.tensor([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]).double()
    xyz = linear @ to_xyz.T / to_xyz.sum(dim=1)
    root = torch.where(xyz > (6 / 29) ** 3, xyz.clamp(min=1e-9) ** (1 / 3), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = root.unbind(dim=1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)


# --- words

# Each scale lists lower limits and the word used from each limit on; "" adds no word. The limits divide AID's training
# scenes into useful groups: the middle half of the scenes falls into the middle group.
Scale = tuple[tuple[float, str], ...]
LIGHT: Scale = ((0, "dark"), (0.3, ""), (0.5, "bright"))
PURITY: Scale = ((0, "muted"), (0.045, ""), (0.11, "vivid"))
AMOUNT: Scale = ((0, ""), (0.08, "a little"), (0.25, "partly"), (0.55, "mostly"), (0.9, "nearly all"))
CONTRAST: Scale = ((0, "smooth"), (0.025, ""), (0.08, "strong"))
GRAIN: Scale = ((0, "coarse"), (2.2, "medium"), (2.7, "fine"))
COHERENCE: Scale = ((0, ""), (0.18, "faint lines"), (0.3, "lines"))
# By quarter turns of the gradient's doubled angle; lines are perpendicular to their gradient.
DIRECTIONS = ("north-south", "northeast-southwest", "east-west", "northwest-southeast")
NEUTRAL = ("black", "grey", "white")
SECOND_COLOUR = 0.15
UNSURE_COVER, UNSURE_DIRECTION = "mixed ground", "no single direction"


def _word(scale: Scale, value: float) -> str:
    return [word for limit, word in scale if value >= limit][-1]


def sentence(row: Tensor) -> str:
    """Return one row of `measure`, or the mean of several rows, in words."""
    brightness, chroma, edges, fineness, cosine, sine = row[:6].tolist()
    cover, colours = row[6 : 6 + len(COVERS)].tolist(), row[6 + len(COVERS) :].tolist()
    phrases = (
        _cover_phrase(cover),
        _colour_phrase(colours, _word(LIGHT, brightness), _word(PURITY, chroma)),
        _texture_phrase(edges, fineness),
        _direction_phrase(cosine, sine),
    )
    return ", ".join(phrases)


def _cover_phrase(shares: list[float]) -> str:
    """Return a phrase such as "mostly vegetation with a little water": the three largest covers, large ones first."""
    ranked = sorted(zip(shares, COVERS, strict=True), key=lambda one: -one[0])[:3]
    worded = [(_word(AMOUNT, share), cover) for share, cover in ranked]
    large = " and ".join(f"{amount} {cover}" for amount, cover in worded if amount not in ("", "a little"))
    small = " and ".join(cover for amount, cover in worded if amount == "a little")
    return " with ".join(part for part in (large, small and f"a little {small}") if part) or UNSURE_COVER


def _colour_phrase(shares: list[float], light: str, purity: str) -> str:
    """Return a phrase such as "dark vivid green and brown": the largest colour, and the second if large enough."""
    ranked = sorted(zip(shares, NAMES, strict=True), key=lambda one: -one[0])[:2]
    first, second = (name for _, name in ranked)
    named = f"{first} and {second}" if ranked[1][0] >= SECOND_COLOUR else first
    # "dark black" and "vivid grey" carry no information.
    light = "" if first in ("black", "white") else light
    purity = "" if first in NEUTRAL else purity
    return " ".join(word for word in (light, purity, named) if word)


def _texture_phrase(edges: float, fineness: float) -> str:
    contrast = _word(CONTRAST, edges)
    words = (contrast,) if contrast == "smooth" else (contrast, _word(GRAIN, fineness))
    return " ".join(word for word in (*words, "texture") if word)


def _direction_phrase(cosine: float, sine: float) -> str:
    lines = _word(COHERENCE, math.hypot(cosine, sine))
    quarter = round(math.atan2(sine, cosine) / (math.pi / 2)) % 4
    return f"{lines} running {DIRECTIONS[quarter]}" if lines else UNSURE_DIRECTION


def _vocabulary() -> tuple[str, ...]:
    scales = (LIGHT, PURITY, AMOUNT, CONTRAST, GRAIN, COHERENCE)
    phrases = [PREFIX, "and with texture running", UNSURE_COVER, UNSURE_DIRECTION, *COVERS, *NAMES, *DIRECTIONS]
    phrases += [word for scale in scales for _, word in scale]
    return tuple(sorted({word for phrase in phrases for word in phrase.split()}))


# Every word of a measured prompt except those of the class, without commas: for building a tokenizer.
VOCABULARY = _vocabulary()
