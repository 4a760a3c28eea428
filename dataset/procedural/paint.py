"""Paint of the procedural objects: functions from texels to colours, baked into one small texture a surface.

A paint takes ``Texels`` and gives (n, 3) colours in 0 .. 1. It may use the place in the object (patterns that run on over
several parts), the place in the part's own box (wheels, windows, labels) or the surface's parameters.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from typing import Callable

import numpy as np
from PIL import Image, ImageDraw

from dataset.procedural.shapes import TAU, Noise, rotation


@dataclass
class Texels:
    """(n, 3) in the object, whose longest side is about 1; (n, 3) in the part's box, -1 .. 1; (n, 2) parameters, 0 .. 1."""

    world: np.ndarray
    local: np.ndarray
    uv: np.ndarray


Paint = Callable[[Texels], np.ndarray]


class Dice:
    """Random draws with short names."""

    def __init__(self, seed: int):
        self.generator = np.random.default_rng(seed)

    def __call__(self, low: float = 0.0, high: float = 1.0) -> float:
        return float(self.generator.uniform(low, high))

    def chance(self, probability: float) -> bool:
        return bool(self.generator.uniform() < probability)

    def whole(self, low: int, high: int) -> int:
        """Both ends included."""
        return int(self.generator.integers(low, high + 1))

    def pick(self, *options):
        return options[int(self.generator.integers(len(options)))]

    def weighted(self, options: dict):
        keys, weights = list(options), np.array(list(options.values()), float)
        return keys[int(np.searchsorted(np.cumsum(weights / weights.sum()), self.generator.uniform() * 0.999999))]

    def vector(self, low: float, high: float, count: int = 3) -> np.ndarray:
        return self.generator.uniform(low, high, count)

    def noise(self, channels: int = 1) -> Noise:
        return Noise(self.generator, channels)


# --- colours -------------------------------------------------------------------------------------------------------------

BLACK, WHITE, GREY = np.array([0.07, 0.07, 0.08]), np.array([0.95, 0.95, 0.93]), np.array([0.55, 0.56, 0.57])
_STYLES = {"saturated": 44, "natural": 14, "pastel": 12, "dark": 6, "light": 10, "any": 14}


def hsv(hue: float, saturation: float, value: float) -> np.ndarray:
    return np.array(colorsys.hsv_to_rgb(hue % 1, min(max(saturation, 0), 1), min(max(value, 0), 1)))


def printable(share: float, saturation: float, value: float) -> np.ndarray:
    """A colour as inks and plastics have it: share 0 .. 1 of a wheel with more reds, oranges and blues than greens and
    magentas, which are also less bright than a screen's."""
    hue = np.interp(share % 1, [0, 0.14, 0.3, 0.44, 0.55, 0.77, 0.89, 1], [0, 0.06, 0.16, 0.36, 0.52, 0.66, 0.83, 1])
    neon = max(0.0, 1 - abs(hue - 0.36) / 0.14, 1 - abs(hue - 0.83) / 0.08) * saturation
    return 0.03 + 0.94 * hsv(hue, saturation * (1 - 0.12 * neon), value * (1 - 0.25 * neon))


class Palette:
    """Two to five main colours that go together and accents; ``main()`` draws one, ``pair()`` two that differ."""

    def __init__(self, dice: Dice):
        self.dice, self.style = dice, dice.weighted(_STYLES)
        hue = dice()
        scheme = dice.pick((0, 0.03, -0.04), (0, 0.5), (0, 0.33, 0.66), (0, 0.08, 0.5), (0, dice(), dice(), dice()), (0,))
        self.colours = [self._colour(hue + shift + dice(-0.02, 0.02)) for shift in scheme]
        if len(self.colours) < 2 and dice.chance(0.6):
            self.colours.append(self._colour(hue + dice(0.2, 0.8)))
        self.neutral = [extra * dice(0.85, 1.0) for extra, share in ((WHITE, 0.5), (BLACK, 0.25), (GREY, 0.15)) if dice.chance(share)]

    def _colour(self, hue: float) -> np.ndarray:
        dice = self.dice
        if self.style == "saturated":
            return printable(hue, dice(0.7, 1), dice(0.65, 1))
        if self.style == "natural":  # browns, tans, olive, leather, wood
            return hsv(dice(0.02, 0.2), dice(0.25, 0.75), dice(0.25, 0.85))
        if self.style == "pastel":
            return printable(hue, dice(0.15, 0.45), dice(0.8, 1))
        if self.style == "dark":
            return printable(hue, dice(0.2, 0.9), dice(0.1, 0.4))
        if self.style == "light":
            return hsv(hue, dice(0, 0.12), dice(0.75, 0.98))
        return printable(hue, dice(0, 1), dice(0.15, 1))

    def main(self) -> np.ndarray:
        if self.neutral and self.dice.chance(0.27):
            return self.dice.pick(*self.neutral)
        return self.dice.pick(*self.colours)

    def pair(self) -> tuple[np.ndarray, np.ndarray]:
        """Two colours of the palette that can be told apart."""
        first = self.main()
        for _ in range(6):
            second = self.main()
            if np.abs(first - second).max() > 0.25:
                return first, second
        return first, (WHITE if first.mean() < 0.5 else BLACK)

    def accent(self) -> np.ndarray:
        """Any strong colour, black or white."""
        return self.dice.pick(
            *(printable(self.dice(), self.dice(0.75, 1), self.dice(0.7, 1)) for _ in range(4)), BLACK, WHITE, self.main(), self.main()
        )


# --- patterns ------------------------------------------------------------------------------------------------------------


def plain(colour) -> Paint:
    colour = np.asarray(colour, float)
    return lambda t: np.broadcast_to(colour, (len(t.world), 3))


def mix(first: Paint, second: Paint, share: Callable[[Texels], np.ndarray]) -> Paint:
    """``second`` where ``share`` (n,) is 1."""

    def paint(t: Texels) -> np.ndarray:
        weight = np.clip(share(t), 0, 1)[:, None]
        return first(t) * (1 - weight) + second(t) * weight

    return paint


def edge(value: np.ndarray, softness: float = 0.012) -> np.ndarray:
    """0 below zero and 1 above, with a ramp."""
    return np.clip(value / softness + 0.5, 0, 1)


def by_height(levels: list[float], paints: list[Paint], axis: int = 2, softness: float = 0.04) -> Paint:
    """Bands of the part's own box along one axis; one level fewer than paints."""
    result = paints[0]
    for level, paint in zip(levels, paints[1:]):
        result = mix(result, paint, lambda t, level=level: edge(t.local[:, axis] - level, softness))
    return result


def stripes(dice: Dice, colours: list, direction=None) -> Paint:
    direction = rotation(dice(0, 360), dice(0, 360), 0)[0] if direction is None else np.asarray(direction, float)
    count, shift, waves = dice(3, 14), dice(), dice.pick(0, 0, 0, dice(0.01, 0.04))
    pace, colours = dice(8, 30), np.array(colours)
    widths = np.cumsum(dice.vector(0.4, 1.6, len(colours)))
    widths /= widths[-1]
    across = np.roll(direction, 1)

    def paint(t: Texels) -> np.ndarray:
        position = t.world @ direction + waves * np.sin(pace * (t.world @ across))
        return colours[np.searchsorted(widths, (position * count + shift) % 1).clip(0, len(colours) - 1)]

    return paint


def checks(dice: Dice, first, second) -> Paint:
    count, turn = dice(4, 12), rotation(0, 0, dice.pick(0, 45, dice(0, 90)))
    plaid, shift = dice.chance(0.35), dice.vector(0, 1)

    def paint(t: Texels) -> np.ndarray:
        cell = np.floor((t.world @ turn) * count + shift).astype(int) % 2
        share = cell.mean(1) if plaid else cell.sum(1) % 2
        return first * (1 - share[:, None]) + second * share[:, None]

    return paint


def dots(dice: Dice, first, second) -> Paint:
    """Balls in a grid of cells, each at a place of its own, cut by the surface."""
    count, size, jitter = dice(4, 11), dice(0.25, 0.5), dice.pick(0, 0.3)
    shifts = dice.generator.uniform(-jitter, jitter, (8, 8, 8, 3))
    radii = size * dice.generator.uniform(1 - jitter, 1 + jitter, (8, 8, 8))

    def paint(t: Texels) -> np.ndarray:
        position = t.world * count + 0.37
        cell = np.floor(position).astype(int)
        a, b, c = (cell % 8).T
        distance = np.linalg.norm(position - cell - 0.5 - shifts[a, b, c], axis=1)
        share = edge(radii[a, b, c] - distance, 0.1)[:, None]
        return first * (1 - share) + second * share

    return paint


def gradient(dice: Dice, colours: list) -> Paint:
    direction = dice.pick(np.array([0, 0, 1.0]), np.array([1.0, 0, 0]), rotation(dice(0, 360), dice(0, 360), 0)[0])
    colours = np.array(colours)

    def paint(t: Texels) -> np.ndarray:
        position = np.clip(t.world @ direction + 0.5, 0, 1) * (len(colours) - 1)
        return np.stack([np.interp(position, np.arange(len(colours)), colours[:, k]) for k in range(3)], -1)

    return paint


def clouds(dice: Dice, colours: list, hard: bool | None = None) -> Paint:
    """Fractal noise mapped to colours: soft clouds and marble, or hard blotches and camouflage."""
    noise, frequency, hard = dice.noise(), dice(3, 12), dice.chance(0.5) if hard is None else hard
    octaves, stretch, colours = dice.pick(1, 2, 4), dice.pick(np.ones(3), np.exp(dice.vector(-1, 1))), np.array(colours)

    def paint(t: Texels) -> np.ndarray:
        value = np.clip(noise(t.world * stretch, frequency, octaves)[:, 0] * 0.9 + 0.5, 0, 0.999) * len(colours)
        if hard:
            return colours[value.astype(int)]
        value = np.clip(value - 0.5, 0, len(colours) - 1)
        return np.stack([np.interp(value, np.arange(len(colours)), colours[:, k]) for k in range(3)], -1)

    return paint


def wood(dice: Dice, first, second) -> Paint:
    noise, frequency, turn = dice.noise(), dice(10, 30), rotation(dice(0, 360), dice(0, 360), 0)

    def paint(t: Texels) -> np.ndarray:
        position = t.world @ turn
        ring = np.linalg.norm(position[:, :2] + 0.3, axis=1) + 0.1 * noise(position * [1, 1, 0.2], 5)[:, 0]
        share = (0.5 + 0.5 * np.sin(TAU * frequency * ring))[:, None] ** 2
        return first * (1 - share) + second * share

    return paint


def cells(dice: Dice, colours: list) -> Paint:
    """Patchwork: every texel has the colour of the nearest of some random points."""
    points = dice.generator.uniform(-0.55, 0.55, (dice.whole(8, 40), 3))
    colours = np.array(colours)[dice.generator.integers(0, len(colours), len(points))]
    return lambda t: colours[np.argmin(((t.world[:, None] - points) ** 2).sum(-1), axis=1)]


def mottled(dice: Dice, paint: Paint, amount: float) -> Paint:
    """Uneven brightness, as of worn or hand-painted things."""
    noise, frequency = dice.noise(), dice(4, 20)
    return lambda t: paint(t) * (1 + amount * noise(t.world, frequency, 3))


def pattern(dice: Dice, palette: Palette, plainness: float = 0.4) -> Paint:
    """Any paint of the palette's colours; ``plainness`` is the probability of a single colour."""
    first, second = palette.pair()
    if dice.chance(plainness):
        paint = plain(first)
    else:
        kind = dice.weighted(
            {"stripes": 5, "checks": 3, "dots": 3, "gradient": 3, "clouds": 4, "cells": 1, "split": 3, "wood": 1, "ring": 3}
        )
        many = [first, second] + [palette.main() for _ in range(dice.whole(0, 2))]
        if kind == "stripes":
            paint = stripes(dice, many, dice.pick((0, 0, 1), (1, 0, 0), (0, 1, 0), None))
        elif kind == "checks":
            paint = checks(dice, first, second)
        elif kind == "dots":
            paint = dots(dice, first, second)
        elif kind == "gradient":
            paint = gradient(dice, many)
        elif kind == "clouds":
            paint = clouds(dice, many)
        elif kind == "cells":
            paint = cells(dice, many)
        elif kind == "wood":
            paint = wood(dice, first, second)
        elif kind == "split":
            paint = by_height([dice(-0.6, 0.6)], [plain(first), plain(second)], dice.whole(0, 2))
        else:
            low = dice(-0.7, 0.5)
            paint = by_height([low, low + dice(0.1, 0.6)], [plain(first), plain(second), plain(first)], dice.pick(2, 2, 0, 1))
    return mottled(dice, paint, dice(0.03, 0.2)) if dice.chance(0.4) else paint


# --- printed pictures ------------------------------------------------------------------------------------------------------


def _ink(colour) -> tuple[int, int, int]:
    return tuple(int(round(255 * min(max(float(c), 0), 1))) for c in colour)


def _glyphs(draw: ImageDraw.ImageDraw, dice: Dice, left: int, top: int, height: int, right: int, colour) -> None:
    """One row of signs made of strokes between the points of a 3 x 3 grid: it looks like writing and says nothing."""
    width, x = max(2, int(height * dice(0.5, 0.8))), left
    stroke = max(1, int(height * dice(0.14, 0.26)))
    while x + width <= right:
        if dice.chance(0.87):
            at = [(x + column * (width - 1) // 2, top + row * (height - 1) // 2) for row in range(3) for column in range(3)]
            order = dice.generator.permutation(9)[: dice.whole(3, 5)]
            draw.line([at[k] for k in order], fill=_ink(colour), width=stroke)
            if height > 9 and dice.chance(0.3):
                draw.ellipse([at[0], at[8]], outline=_ink(colour), width=stroke)
        x += width + max(1, height // 4)


def label(dice: Dice, palette: Palette, aspect: float = 1.0, size: int = 192) -> np.ndarray:
    """A printed picture, (H, W, 3): ground, large shapes, a title, rows of small signs, perhaps a frame and a bar code."""
    height = int(np.clip(size / np.sqrt(aspect), 48, 256))
    width = int(np.clip(size * np.sqrt(aspect), 48, 256))
    ground, second = palette.pair()
    ramp = np.linspace(0, 1, height)[:, None, None] if dice.chance(0.3) else np.zeros((height, 1, 1))
    array = np.broadcast_to(ground * (1 - ramp) + second * ramp, (height, width, 3))
    image = Image.fromarray(np.round(array * 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    unit = min(width, height)
    for _ in range(dice.pick(0, 0, 1)):  # something like a photograph
        box = np.sort(dice.vector(0, 1, 4).reshape(2, 2), axis=0) * [width, height]
        (x0, y0), (x1, y1) = box.astype(int)
        colours = np.array([[dice.pick(palette.main(), palette.accent()) for _ in range(5)] for _ in range(5)]) * dice.generator.uniform(
            0.6, 1, (5, 5, 1)
        )
        tile = Image.fromarray(np.round(colours * 255).astype(np.uint8)).resize((max(x1 - x0, 8), max(y1 - y0, 8)), Image.BICUBIC)
        image.paste(tile, (x0, y0))
    for _ in range(dice.whole(2, 7)):
        x, y, w, h = dice(0, width), dice(0, height), dice(0.15, 0.9) * unit, dice(0.1, 0.8) * unit
        colour, kind = _ink(dice.pick(palette.main(), palette.accent())), dice.pick("box", "oval", "star", "band", "ring", "disc", "band")
        corners = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
        if kind == "box":
            draw.rounded_rectangle(corners, radius=dice.pick(0, 0.2) * min(w, h), fill=colour)
        elif kind == "oval":
            draw.ellipse(corners, fill=colour)
        elif kind == "disc":
            draw.ellipse([x - w / 2, y - w / 2, x + w / 2, y + w / 2], fill=colour)
        elif kind == "ring":
            draw.ellipse([x - w / 2, y - w / 2, x + w / 2, y + w / 2], outline=colour, width=max(2, int(0.08 * w)))
        elif kind == "star":
            angle = np.arange(10) * np.pi / 5 + dice(0, 6)
            radius = np.where(np.arange(10) % 2, dice(0.2, 0.45), 0.5) * w
            draw.polygon([(x + r * np.cos(a), y + r * np.sin(a)) for a, r in zip(angle, radius)], fill=colour)
        elif dice.chance(0.5):
            draw.rectangle([0, y - h / 5, width, y + h / 5], fill=colour)
        else:
            draw.polygon(
                [(x, 0), (x + w / 2, 0), (x + w / 2 + dice(-1, 1) * width, height), (x + dice(-1, 1) * width, height)], fill=colour
            )
    ink = BLACK if ground.mean() > 0.5 else WHITE
    y = dice(0.05, 0.3) * height
    for row in range(dice.whole(0, 2)):  # titles
        tall = int(dice(0.1, 0.24) * height)
        left = dice(0.03, 0.3) * width
        _glyphs(draw, dice, int(left), int(y), max(6, tall), int(width - dice(0.03, 0.3) * width), dice.pick(ink, palette.accent()))
        y += tall * 1.4
    if dice.chance(0.6):
        y = max(y, dice(0.4, 0.7) * height)
        tall, left, right = max(4, int(height * dice(0.035, 0.06))), dice(0.05, 0.4) * width, width * dice(0.6, 0.95)
        for _ in range(dice.whole(2, 7)):
            _glyphs(draw, dice, int(left), int(y), tall, int(right - dice(0, 0.2) * width), ink)
            y += tall * 1.6
    if dice.chance(0.25):
        x, y = int(dice(0.05, 0.6) * width), int(dice(0.7, 0.8) * height)
        draw.rectangle([x, y, x + 0.3 * width, y + 0.15 * height], fill=_ink(WHITE))
        for k in range(0, int(0.28 * width), 3):
            if dice.chance(0.6):
                draw.rectangle([x + 2 + k, y + 2, x + 2 + k + dice.whole(0, 1), y + 0.13 * height], fill=_ink(BLACK))
    if dice.chance(0.3):
        inset = int(dice(0, 0.05) * unit)
        draw.rectangle(
            [inset, inset, width - 1 - inset, height - 1 - inset],
            outline=_ink(palette.accent()),
            width=max(2, int(dice(0.02, 0.06) * unit)),
        )
    return np.asarray(image, np.float32) / 255


def sample(image: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Bilinear; x to the right and y upwards, both 0 .. 1."""
    column, row = np.clip(x, 0, 1) * (image.shape[1] - 1), (1 - np.clip(y, 0, 1)) * (image.shape[0] - 1)
    c, r = column.astype(int).clip(0, image.shape[1] - 2), row.astype(int).clip(0, image.shape[0] - 2)
    fc, fr = (column - c)[:, None], (row - r)[:, None]
    top = image[r, c] * (1 - fc) + image[r, c + 1] * fc
    return top * (1 - fr) + (image[r + 1, c] * (1 - fc) + image[r + 1, c + 1] * fc) * fr


def panel(image: np.ndarray) -> Paint:
    """The picture fills the surface."""
    return lambda t: sample(image, t.uv[:, 0], t.uv[:, 1])


def wrapped(paint: Paint, image: np.ndarray, low: float, high: float, repeats: int = 1) -> Paint:
    """The picture around a turned part, between two heights of its box."""

    def share(t: Texels) -> np.ndarray:
        return edge(t.local[:, 2] - low, 0.02) * edge(high - t.local[:, 2], 0.02)

    return mix(paint, lambda t: sample(image, t.uv[:, 0] * repeats % 1, (t.local[:, 2] - low) / (high - low)), share)


def decal(paint: Paint, image: np.ndarray, side: int, axis: int, rectangle, oval: bool = False) -> Paint:
    """The picture projected along an axis onto the half of the part on that side; rectangle: low and high of both others."""
    x0, y0, x1, y1 = rectangle
    across, up = [(1, 2), (0, 2), (0, 1)][axis]
    mirror = side * (1, -1, 1)[axis]

    def where(t: Texels):
        x, y = (t.local[:, across] - x0) / (x1 - x0), (t.local[:, up] - y0) / (y1 - y0)
        return (x if mirror > 0 else 1 - x), y

    def share(t: Texels) -> np.ndarray:
        x, y = where(t)
        inside = 0.25 - (x - 0.5) ** 2 - (y - 0.5) ** 2 if oval else np.minimum(0.5 - np.abs(x - 0.5), 0.5 - np.abs(y - 0.5))
        return edge(inside, 0.04) * (side * t.local[:, axis] > 0)

    return mix(paint, lambda t: sample(image, *where(t)), share)
