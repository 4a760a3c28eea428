"""A procedural object in the making: painted parts, baked into one ``RenderMesh``; and the family of free compositions."""

from __future__ import annotations

import numpy as np

from dataset.procedural import shapes as sh
from dataset.procedural.paint import Dice, Paint, Palette, Texels, decal, label, panel, pattern, plain, wrapped
from dataset.procedural.shapes import Shape, place
from sap3d.mesh_load import RenderMesh, normalise_vertices

TEXELS_PER_UNIT = 130  # a view of 128 pixels shows the longest side with about 95
LARGEST_TEXTURE = 256


class Model:
    """Parts are added in any units, z up, the front toward +x; ``mirror`` adds the part's image in the plane y = 0 too."""

    def __init__(self, dice: Dice):
        self.dice, self.palette = dice, Palette(dice)
        self.parts: list[tuple[Shape, list[Paint], bool]] = []

    def add(self, shape: Shape, paint: Paint | list[Paint] | np.ndarray, mirror: bool = False) -> Shape:
        """``paint``: a paint, one a surface of the shape (panels of a box), or a colour."""
        if isinstance(paint, np.ndarray):
            paint = plain(paint)
        self.parts.append((shape, paint if isinstance(paint, list) else [paint] * len(shape.grids), mirror))
        return shape

    def box(self) -> tuple[np.ndarray, np.ndarray]:
        lows, highs = zip(*(shape.box() for shape, _, _ in self.parts))
        return np.min(lows, axis=0), np.max(highs, axis=0)

    def finish(self, turn: np.ndarray, shade: float) -> RenderMesh:
        """Bake and normalise; ``turn`` rotates the object, ``shade`` darkens its lower parts as contact with a floor does."""
        low, high = self.box()
        middle, scale = (low + high) / 2, 1 / max(float((high - low).max()), 1e-9)
        vertices, faces, uvs, materials, textures, count = [], [], [], [], [], 0
        for shape, paints, mirror in self.parts:
            for grid, local, paint in zip(shape.grids, shape.local, paints):
                grid = (grid - middle) * scale
                textures.append(bake(grid, local, paint))
                triangles, uv = quads(grid.shape, textures[-1].shape)
                for sign in (1, -1) if mirror else (1,):
                    # the plane y = 0 of the part's units, not of the centred object
                    points = grid if sign > 0 else grid * [1, -1, 1] - [0, 2 * middle[1] * scale, 0]
                    vertices.append(points.reshape(-1, 3))
                    faces.append(triangles[:, ::sign] + count)
                    uvs.append(uv[:, ::sign])
                    materials.append(np.full(len(triangles), len(textures) - 1, np.int32))
                    count += len(vertices[-1])
        vertices, faces = np.concatenate(vertices) @ turn.T, np.concatenate(faces)
        corners = vertices[faces]
        area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
        keep = area > 1e-9  # poles of spheres, closed ends
        faces = faces[keep]
        vertices, _, _ = normalise_vertices(vertices, faces)
        height = vertices[faces][..., 2]
        height = (height - height.min()) / max(float(np.ptp(height)), 1e-9)
        light = np.broadcast_to((1 - shade * (1 - height))[..., None], (*height.shape, 3)).astype(np.float32)
        return RenderMesh(
            vertices, faces.astype(np.int32), np.concatenate(uvs)[keep].astype(np.float32), np.concatenate(materials)[keep],
            textures, np.ascontiguousarray(light),
        )  # fmt: skip


def bake(grid: np.ndarray, local: np.ndarray, paint: Paint) -> np.ndarray:
    """The paint on a surface as a texture (H, W, 4) uint8, row 0 at the last row of the grid; one texel if it is plain."""
    lengths = [np.linalg.norm(np.diff(grid, axis=axis), axis=-1).sum(axis).max() for axis in (0, 1)]
    height, width = (int(np.clip(2 ** np.ceil(np.log2(max(length, 1e-3) * TEXELS_PER_UNIT)), 8, LARGEST_TEXTURE)) for length in lengths)
    v, u = np.linspace(1, 0, height), np.linspace(0, 1, width)

    def refined(points: np.ndarray) -> np.ndarray:
        for axis, at in ((0, v), (1, u)):
            position = at * (points.shape[axis] - 1)
            first = np.minimum(position.astype(int), points.shape[axis] - 2)
            share = (position - first).reshape(-1, 1, 1) if axis == 0 else (position - first).reshape(1, -1, 1)
            points = np.take(points, first, axis) * (1 - share) + np.take(points, first + 1, axis) * share
        return points.reshape(-1, 3)

    uv = np.stack(np.meshgrid(u, v), -1).reshape(-1, 2)
    colour = np.asarray(paint(Texels(refined(grid), refined(local), uv)))
    texels = np.full((height * width, 4), 255, np.uint8)
    texels[:, :3] = np.round(np.clip(colour, 0, 1) * 255)
    if (texels == texels[0]).all():
        return texels[:1].reshape(1, 1, 4)
    return texels.reshape(height, width, 4)


def quads(shape: tuple, texture_shape: tuple) -> tuple[np.ndarray, np.ndarray]:
    """Triangles of a grid and their texture coordinates, which meet the centres of the outermost texels."""
    rows, columns = shape[:2]
    index = np.arange(rows * columns).reshape(rows, columns)
    a, b, c, d = index[:-1, :-1].ravel(), index[:-1, 1:].ravel(), index[1:, 1:].ravel(), index[1:, :-1].ravel()
    triangles = np.concatenate([np.stack([a, b, c], -1), np.stack([a, c, d], -1)])
    height, width = texture_shape[:2]
    u = (np.linspace(0, 1, columns) * (width - 1) + 0.5) / width
    v = (np.linspace(0, 1, rows) * (height - 1) + 0.5) / height
    uv = np.stack(np.meshgrid(u, v), -1).reshape(-1, 2)
    return triangles, uv[triangles]


# --- helpers of all families ------------------------------------------------------------------------------------------------


def ball(at, size, turn=(0, 0, 0), exponent: float = 2.0, fine: bool = True) -> Shape:
    return place(sh.superquadric(exponent, exponent, *((14, 22) if fine else (8, 12))), at, size, turn)


def limb(points, radii, count: int = 10, columns: int = 12) -> Shape:
    return sh.tube(sh.curve(points, count), sh.between(radii, count + 1), sh.superellipse(2, columns))


def outline_any(dice: Dice) -> np.ndarray:
    kind = dice.pick("round", "square", "polygon", "star", "flower", "gear", "heart", "cross", "corner", "tall")
    if kind == "round":
        return sh.superellipse(dice.pick(2, 2.5, 1.3))
    if kind == "square":
        return sh.superellipse(dice.pick(4, 8), 32)
    if kind == "polygon":
        return sh.star(dice.whole(3, 6), 1.0) if dice.chance(0.3) else sh.polygon(sh.superellipse(2, dice.whole(3, 8))[:-1])
    if kind == "star":
        return sh.star(dice.whole(3, 8), dice(0.35, 0.75))
    if kind == "flower":
        return sh.flower(dice.whole(3, 8), dice(0.15, 0.5))
    if kind == "gear":
        return sh.gear(dice.whole(6, 14), dice(0.12, 0.3))
    if kind == "heart":
        return sh.heart()
    w = dice(0.25, 0.45)
    if kind == "cross":
        return sh.polygon([(1, -w), (1, w), (w, w), (w, 1), (-w, 1), (-w, w), (-1, w), (-1, -w), (-w, -w), (-w, -1), (w, -1), (w, -w)], 2)
    if kind == "corner":
        return sh.polygon([(-0.4, -0.4), (1, -0.4), (1, w - 0.4), (w - 0.4, w - 0.4), (w - 0.4, 1), (-0.4, 1)], 3)
    return sh.polygon([(-0.5, -1), (0.5, -1), (0.7, 0.2), (0, 1), (-0.7, 0.2)], 3)


def turned(dice: Dice, count: int = 26) -> Shape:
    """Lathe work: a smooth or stepped profile, closed at both ends, height 2."""
    radii = dice.vector(0.25, 1.0, dice.whole(3, 6))
    radius = sh.between(radii, count) if dice.chance(0.7) else np.repeat(radii, 6)[:count]
    z = np.linspace(-1, 1, len(radius))
    profile = np.concatenate([[[0, -1]], np.stack([radius, z], -1), [[0, 1]]])
    return sh.loft(profile, sh.superellipse(2, 26))


def primitive(dice: Dice) -> tuple[str, Shape]:
    """One of the elementary shapes, about as large as a cube of side 2, before scaling."""
    kind = dice.weighted({
        "box": 14, "rounded": 12, "ball": 13, "cylinder": 10, "cone": 8, "capsule": 7, "torus": 7, "wedge": 5, "turned": 9,
        "prism": 12, "wire": 5, "hull": 7, "octahedron": 2,
    })  # fmt: skip
    if kind == "box":
        shape = sh.box(6)
    elif kind == "rounded":
        shape = sh.superquadric(dice(3, 8), dice(3, 8), 18, 30)
    elif kind == "ball":
        shape = sh.superquadric(dice(1.6, 2.6), dice(1.6, 2.6))
    elif kind == "cylinder":
        shape = sh.prism(sh.superellipse(2, 26), bevel=dice.pick(0, 0.05, 0.2), rows=8)
    elif kind == "cone":
        shape = sh.prism(
            dice.pick(sh.superellipse(2, 26), sh.polygon(sh.superellipse(2, dice.whole(3, 6))[:-1])), top=dice.pick(0.01, 0.2, 0.5), rows=8
        )
    elif kind == "capsule":
        shape = limb([(0, 0, -1), (0, 0, 1)], [dice(0.3, 0.6), dice(0.3, 0.6)])
    elif kind == "torus":
        angle = np.linspace(0, sh.TAU, 29)
        ring = np.stack([np.cos(angle), np.sin(angle), 0 * angle], -1)
        shape = sh.tube(ring, dice(0.12, 0.45), sh.superellipse(dice.pick(2, 2, 5), 12), closed=True)
    elif kind == "wedge":
        shape = place(sh.prism(sh.polygon([(-1, -1), (1, -1), (1 - 2 * dice(), 1)], 4), rows=6), turn=(90, 0, 0))
    elif kind == "turned":
        shape = turned(dice)
    elif kind == "prism":
        shape = sh.prism(outline_any(dice), top=dice.pick(1, 1, dice(0.3, 1)), bevel=dice.pick(0, 0.12), rows=7)
        shape = place(shape, size=(1, 1, dice(0.15, 1)))
        if dice.chance(0.5):
            shape = place(shape, turn=(90, 0, 0))
    elif kind == "wire":
        shape = limb(dice.generator.uniform(-1, 1, (dice.whole(3, 6), 3)), [dice(0.07, 0.25)] * 2, 28, 10)
    elif kind == "octahedron":
        shape = sh.superquadric(1, 1)
    else:
        shape = sh.hull([-1, 1], dice.vector(0.2, 1, 4), -dice.vector(0.1, 0.8, 4), dice.vector(0.1, 0.8, 4), dice(1.6, 6))
    return kind, shape


def deformed(dice: Dice, shape: Shape, amount: float = 1.0) -> Shape:
    if dice.chance(0.3 * amount):
        shape = sh.taper(shape, dice(-0.6, 0.7), dice.pick(2, 2, 0))
    if dice.chance(0.15 * amount):
        shape = sh.twist(shape, dice(-70, 70))
    if dice.chance(0.2 * amount):
        shape = sh.bend(shape, dice(-45, 45))
    if dice.chance(0.3 * amount):
        shape = sh.wobble(shape, dice.noise(3), dice(0.05, 0.28), dice(0.5, 1.8))
    return shape


def printed(dice: Dice, palette: Palette, kind: str, shape: Shape, base: Paint) -> Paint | list[Paint]:
    """The paint with printed pictures where the shape suits them."""
    if kind == "box" and dice.chance(0.6):
        pictures = [panel(label(dice, palette)) for _ in range(dice.whole(1, 3))]
        return [dice.pick(base, *pictures) for _ in shape.grids]
    if kind in ("cylinder", "turned", "cone", "capsule") and dice.chance(0.45):
        low = dice(-0.8, 0.2)
        return wrapped(base, label(dice, palette, 2.5), low, min(0.95, low + dice(0.4, 1.2)), dice.whole(1, 3))
    if kind in ("rounded", "ball", "hull", "wedge", "prism") and dice.chance(0.5):
        for _ in range(dice.whole(1, 2)):
            a, b = dice(0.35, 0.75), dice(0.35, 0.75)
            base = decal(base, label(dice, palette), dice.pick(-1, 1), dice.whole(0, 2), (-a, -b, a, b), dice.chance(0.4))
    return base


def composite(model: Model) -> None:
    """Two to nine elementary shapes, stacked, stuck to one another, in pairs or in rings."""
    dice, palette = model.dice, model.palette
    paints = [pattern(dice, palette, 0.35) for _ in range(dice.whole(2, 4))]
    style = dice.pick("stuck", "stuck", "mirrored", "stacked", "ring")
    count = dice.whole(2, 9) if style != "ring" else dice.whole(2, 4)
    placed: list[Shape] = []
    top = 0.0
    for k in range(count):
        kind, shape = primitive(dice)
        shape = deformed(dice, shape)
        size = np.exp(dice.vector(-0.75, 0.45)) * (1.0 if k == 0 else dice(0.3, 0.85))
        if dice.chance(0.12):
            size[dice.whole(0, 2)] *= dice(0.12, 0.4)  # a plate or a blade
        shape = place(shape, size=size)
        paint = printed(dice, palette, kind, shape, dice.pick(*paints))
        if style == "stacked":
            shape = place(shape, turn=(0, 0, dice(0, 360)))
            low, high = shape.box()
            middle = (low + high) / 2
            shape = place(shape, at=(dice(-0.15, 0.15) - middle[0], dice(-0.15, 0.15) - middle[1], top - low[2]))
            top += (high - low)[2] * dice(0.8, 1.0)
        elif k:
            turn = dice.pick((0, 0, 0), (0, 0, 90), (90, 0, 0), (0, 90, 0), tuple(dice.vector(0, 360)))
            parent = dice.pick(*placed)
            grid = dice.pick(*parent.grids).reshape(-1, 3)
            at = grid[dice.whole(0, len(grid) - 1)]
            shape = place(shape, at, turn=turn)
        if style == "ring" and k:
            copies = dice.whole(3, 8)
            for copy in range(copies):
                model.add(place(shape, turn=(0, 0, 360 * copy / copies)), paint)
        else:
            model.add(shape, paint, mirror=style == "mirrored" and k > 0 and dice.chance(0.8))
        placed.append(shape)
