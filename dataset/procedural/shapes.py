"""Shapes of the procedural objects: every surface is a grid of points, (rows, columns, 3), made of few general families.

``loft`` (lathe work, prisms, stars), ``tube`` (wires, limbs, handles), ``superquadric``, ``box`` and ``hull`` (a body of
superellipse sections along x: shoes, cars, fish) make a ``Shape``; ``taper``, ``twist``, ``bend`` and ``wobble`` deform one;
``place`` moves it. A shape remembers the points of its own frame, by which it is painted whatever happens to it later.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

TAU = 2 * np.pi


@dataclass(frozen=True)
class Shape:
    """Grids in the object's frame, and the same grids in the shape's own box, -1 .. 1 on every axis."""

    grids: tuple[np.ndarray, ...]
    local: tuple[np.ndarray, ...]

    def moved(self, change) -> Shape:
        """The shape with its points changed by a function of (n, 3) arrays."""
        return replace(self, grids=tuple(change(grid.reshape(-1, 3)).reshape(grid.shape) for grid in self.grids))

    def box(self) -> tuple[np.ndarray, np.ndarray]:
        points = np.concatenate([grid.reshape(-1, 3) for grid in self.grids])
        return points.min(0), points.max(0)


def shape_of(*grids: np.ndarray) -> Shape:
    points = np.concatenate([grid.reshape(-1, 3) for grid in grids])
    low, high = points.min(0), points.max(0)
    centre, half = (low + high) / 2, np.maximum((high - low) / 2, 1e-9)
    return Shape(tuple(grids), tuple((grid - centre) / half for grid in grids))


# --- outlines: closed curves, (n + 1, 2), about the origin, radius about 1 ----------------------------------------------


def superellipse(exponent: float = 2.0, count: int = 24) -> np.ndarray:
    """Exponent 2 is a circle, 4 and more a rounded square, 1 a diamond."""
    angle = np.linspace(0, TAU, count + 1)
    direction = np.stack([np.cos(angle), np.sin(angle)], -1)
    return direction / (np.abs(direction) ** exponent).sum(-1, keepdims=True) ** (1 / exponent)


def polygon(corners, between: int = 3) -> np.ndarray:
    """The closed line through the corners, each side cut into ``between`` pieces."""
    corners = np.asarray(corners, float)
    following = np.roll(corners, -1, axis=0)
    share = np.arange(between)[None, :, None] / between
    points = (corners[:, None] * (1 - share) + following[:, None] * share).reshape(-1, 2)
    return np.concatenate([points, points[:1]])


def star(points: int, inner: float, turn: float = 0.0) -> np.ndarray:
    """A star; with ``inner`` 1 a regular polygon of twice as many corners."""
    angle = turn + np.arange(2 * points) * np.pi / points
    return polygon(np.stack([np.cos(angle), np.sin(angle)], -1) * np.where(np.arange(2 * points) % 2, inner, 1.0)[:, None])


def flower(petals: int, depth: float, count: int = 48) -> np.ndarray:
    angle = np.linspace(0, TAU, count + 1)
    return np.stack([np.cos(angle), np.sin(angle)], -1) * (1 - depth * (0.5 - 0.5 * np.cos(petals * angle)))[:, None]


def gear(teeth: int, depth: float) -> np.ndarray:
    angle = (np.arange(4 * teeth) + 0.25 * (-1.0) ** np.arange(4 * teeth)) * TAU / (4 * teeth)
    radius = np.where(np.arange(4 * teeth) // 2 % 2, 1 - depth, 1.0)
    return polygon(np.stack([np.cos(angle), np.sin(angle)], -1) * radius[:, None], 1)


def heart(count: int = 36) -> np.ndarray:
    angle = np.linspace(0, TAU, count + 1)
    x = np.sin(angle) ** 3
    y = (13 * np.cos(angle) - 5 * np.cos(2 * angle) - 2 * np.cos(3 * angle) - np.cos(4 * angle)) / 16
    return np.stack([x, y + 0.1], -1)


# --- curves --------------------------------------------------------------------------------------------------------------


def curve(points, count: int, closed: bool = False) -> np.ndarray:
    """A Catmull-Rom curve through the points (n, d), at ``count`` + 1 places."""
    points = np.asarray(points, float)
    ring = np.concatenate(
        [points[-1:], points, points[:2]] if closed else [points[:1] * 2 - points[1:2], points, points[-1:] * 2 - points[-2:-1]]
    )
    position = np.linspace(0, len(points) - (0 if closed else 1), count + 1)
    left = np.minimum(position.astype(int), len(ring) - 4)
    t = (position - left)[:, None]
    a, b, c, d = (ring[left + k] for k in range(4))
    return 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)


def between(values, count: int) -> np.ndarray:
    """``count`` smooth values through a few given at even distances, never outside of their range."""
    values = np.asarray(values, float)
    return np.clip(curve(values[:, None], count - 1)[:, 0], values.min(), values.max())


# --- surfaces ------------------------------------------------------------------------------------------------------------


def loft(profile, outline: np.ndarray | None = None) -> Shape:
    """The outline, scaled by the profile's radius at its height: profile (m, 2) of radius and z. Radius 0 closes an end."""
    outline = superellipse() if outline is None else outline
    radius, z = np.asarray(profile, float).T
    grid = np.empty((len(radius), len(outline), 3))
    grid[..., :2] = radius[:, None, None] * outline[None]
    grid[..., 2] = z[:, None]
    return shape_of(grid)


def prism(outline: np.ndarray | None = None, top: float = 1.0, bevel: float = 0.0, rows: int = 4) -> Shape:
    """An upright prism of height 2 and radius 1, its top scaled by ``top``, its edges rounded by ``bevel``."""
    turn = np.linspace(0, np.pi / 2, 4 if bevel else 1)
    side = np.stack([1 - bevel * (1 - np.sin(turn)), -1 + bevel * (1 - np.cos(turn))], -1) if bevel else np.array([[1.0, -1.0]])
    rise = np.linspace(side[-1, 1], -side[-1, 1], rows)[1:-1]
    wall = np.stack([np.ones_like(rise), rise], -1)
    lid = side[::-1] * [1, -1]
    profile = np.concatenate([[[0, -1]], side, wall, lid, [[0, 1]]])
    profile[:, 0] *= 1 + (top - 1) * (profile[:, 1] + 1) / 2
    return loft(profile, outline)


def superquadric(vertical: float = 2.0, horizontal: float = 2.0, rows: int = 14, columns: int = 22) -> Shape:
    """Exponents 2, 2: a sphere; 5, 5: a rounded box; 5, 2: a rounded cylinder; 1, 1: an octahedron."""
    angle = np.linspace(-np.pi / 2, np.pi / 2, rows + 1)
    section = np.stack([np.cos(angle).clip(0), np.sin(angle)], -1)
    section = section / (np.abs(section) ** vertical).sum(-1, keepdims=True) ** (1 / vertical)
    return loft(section, superellipse(horizontal, columns))


def box(cuts: int = 4) -> Shape:
    """A cube of side 2 as six panels with sharp edges: front -y, back +y, right +x, left -x, top, bottom."""
    a, b = np.meshgrid(np.linspace(-1, 1, cuts + 1), np.linspace(-1, 1, cuts + 1))
    one = np.ones_like(a)
    sides = [(a, -one, b), (-a, one, b), (one, a, b), (-one, -a, b), (a, b, one), (a, -b, -one)]
    return shape_of(*(np.stack(side, -1) for side in sides))


def tube(path, radius, outline: np.ndarray | None = None, closed: bool = False, caps: str = "round") -> Shape:
    """The outline swept along the path (m, 3); ``radius`` is a number or one a point; ends "round" or "flat"."""
    outline = superellipse(2, 12) if outline is None else outline
    path = np.asarray(path, float)
    radius = np.broadcast_to(np.asarray(radius, float), len(path)).copy()
    tangent = np.gradient(path, axis=0)
    if closed:
        tangent[0] = tangent[-1] = path[1] - path[-2]
    tangent /= np.maximum(np.linalg.norm(tangent, axis=1, keepdims=True), 1e-9)
    frame = np.empty((len(path), 2, 3))
    helper = np.eye(3)[np.argmin(np.abs(tangent[0]))]
    for k, axis in enumerate(tangent):  # the first direction is carried along, so that the tube does not twist
        first = helper - axis * (helper @ axis)
        first /= np.linalg.norm(first)
        frame[k], helper = (first, np.cross(axis, first)), first
    if closed:  # what the frame has turned on the way round is given back evenly
        turn = np.arctan2(frame[-1, 0] @ frame[0, 1], frame[-1, 0] @ frame[0, 0])
        angle = -np.linspace(0, 1, len(path)) * turn
        cosine, sine = np.cos(angle)[:, None], np.sin(angle)[:, None]
        frame = np.stack([frame[:, 0] * cosine + frame[:, 1] * sine, frame[:, 1] * cosine - frame[:, 0] * sine], 1)
    else:
        angle = np.linspace(0, np.pi / 2, 4)[:-1] if caps == "round" else np.zeros(1)
        size, shift = (np.sin(angle), np.cos(angle)) if caps == "round" else (np.zeros(1), np.zeros(1))
        path = np.concatenate([
            path[:1] - tangent[:1] * radius[0] * shift[:, None], path, path[-1:] + tangent[-1:] * radius[-1] * shift[::-1, None],
        ])  # fmt: skip
        frame = np.concatenate([frame[:1]] * len(size) + [frame] + [frame[-1:]] * len(size))
        radius = np.concatenate([radius[0] * size, radius, radius[-1] * size[::-1]])
    ring = np.einsum("ca,mad->mcd", outline, frame) * radius[:, None, None]
    return shape_of(path[:, None] + ring)


def hull(x, width, low, high, exponent: float = 2.5, columns: int = 22, rows: int = 26, ends: float = 0.07) -> Shape:
    """A closed body along x: half width, lower and upper height at the places ``x``; sections are superellipses.

    ``ends``: the share of the length that is rounded at either end.
    """
    place = np.linspace(0, 1, rows)
    place = 0.5 - 0.5 * np.cos(np.pi * place) * (0.75 + 0.25 * np.abs(np.cos(np.pi * place)))  # denser at the ends
    place = (place - place[0]) / (place[-1] - place[0])
    grid_at = np.linspace(0, 1, 200)
    along, half, bottom, top = (np.interp(place, grid_at, between(values, 200)) for values in (x, width, low, high))
    distance = np.clip(np.minimum(place, 1 - place) / max(ends, 1e-6), 0, 1)
    rounding = 0.35 + 0.65 * np.sqrt(1 - (1 - distance) ** 2)
    half, middle, height = half * rounding, (bottom + top) / 2, (top - bottom) / 2 * rounding
    ring = superellipse(exponent, columns)
    y = half[:, None] * ring[None, :, 0]
    z = middle[:, None] + height[:, None] * ring[None, :, 1]
    grid = np.stack([np.broadcast_to(along[:, None], y.shape), y, z], -1)
    caps = [np.broadcast_to(grid[k].mean(0), grid[k].shape)[None] for k in (0, -1)]
    return shape_of(np.concatenate([caps[0], grid, caps[1]]))


# --- deformations and placement --------------------------------------------------------------------------------------------


def rotation(x_deg: float = 0, y_deg: float = 0, z_deg: float = 0) -> np.ndarray:
    """About x, then y, then z."""
    result = np.eye(3)
    for axis, angle in enumerate(np.deg2rad([x_deg, y_deg, z_deg])):
        a, b = [(1, 2), (2, 0), (0, 1)][axis]
        turn = np.eye(3)
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[b, a], turn[a, b] = np.sin(angle), -np.sin(angle)
        result = turn @ result
    return result


def place(shape: Shape, at=(0, 0, 0), size=1.0, turn=(0, 0, 0)) -> Shape:
    """Scaled, then rotated about x, y, z (degrees), then moved."""
    matrix = rotation(*turn) * np.broadcast_to(np.asarray(size, float), 3)
    return shape.moved(lambda points: points @ matrix.T + np.asarray(at, float))


def taper(shape: Shape, amount: float, axis: int = 2) -> Shape:
    """The sides shrink by ``amount`` toward the upper end of the axis."""
    low, high = (corner[axis] for corner in shape.box())

    def change(points):
        scale = np.ones_like(points) * (1 - amount * (points[:, axis : axis + 1] - low) / max(high - low, 1e-9))
        scale[:, axis] = 1
        return points * scale

    return shape.moved(change)


def twist(shape: Shape, degrees: float) -> Shape:
    """About z, by so many degrees a unit of height."""

    def change(points):
        angle = np.deg2rad(degrees) * points[:, 2]
        x, y = points[:, 0] * np.cos(angle) - points[:, 1] * np.sin(angle), points[:, 0] * np.sin(angle) + points[:, 1] * np.cos(angle)
        return np.stack([x, y, points[:, 2]], -1)

    return shape.moved(change)


def bend(shape: Shape, degrees: float) -> Shape:
    """The z axis becomes an arc in the xz plane that turns by so many degrees a unit of height."""
    if abs(degrees) < 1:
        return shape
    rate = np.deg2rad(degrees)

    def change(points):
        angle, radius = rate * points[:, 2], 1 / rate - points[:, 0]
        return np.stack([1 / rate - radius * np.cos(angle), points[:, 1], radius * np.sin(angle)], -1)

    return shape.moved(change)


class Noise:
    """Smooth noise of space, values about 0 +- 0.5: ``noise(points, frequency, octaves)`` -> (n, channels)."""

    def __init__(self, generator: np.random.Generator, channels: int = 1):
        self._table = generator.uniform(-1, 1, (16, 16, 16, channels)).astype(np.float32).reshape(4096, channels)
        self._shift = generator.uniform(0, 16, 3)

    def __call__(self, points, frequency: float = 1.0, octaves: int = 1) -> np.ndarray:
        total, strength = 0.0, 1.0
        for _ in range(octaves):
            position = np.asarray(points) * frequency + self._shift
            cell = np.floor(position).astype(np.int32)
            t = (position - cell).astype(np.float32)
            t = t * t * (3 - 2 * t)
            low, high = cell & 15, (cell + 1) & 15
            value = 0.0
            for corner in range(8):
                index, weight = 0, 1.0
                for axis in range(3):
                    upper = corner >> axis & 1
                    index = index * 16 + (high if upper else low)[:, axis]
                    weight = weight * (t[:, axis] if upper else 1 - t[:, axis])
                value = value + self._table[index] * weight[:, None]
            total = total + strength * value
            frequency, strength = frequency * 2.03, strength * 0.5
        return total


def wobble(shape: Shape, noise: Noise, amount: float, frequency: float = 1.0) -> Shape:
    """Points moved by three channels of smooth noise."""
    return shape.moved(lambda points: points + amount * noise(points, frequency))
