"""Things of the procedural corpus: packages, shoes, tools, games and letters."""

from __future__ import annotations

import numpy as np

from dataset.procedural import shapes as sh
from dataset.procedural.model import Model, ball, limb, outline_any
from dataset.procedural.paint import (
    BLACK,
    GREY,
    WHITE,
    by_height,
    decal,
    edge,
    gradient,
    hsv,
    label,
    mix,
    panel,
    pattern,
    plain,
    wood,
    wrapped,
)  # fmt: skip
from dataset.procedural.shapes import Shape, place
from dataset.procedural.vehicles import windows
from dataset.procedural.vessels import hollow


def package(model: Model) -> None:
    """Boxes, books, cartons, tins, tubes, bags, blister packs, stacks of them, dice and toy blocks."""
    dice, palette = model.dice, model.palette
    kind = dice.weighted(
        {"box": 7, "book": 3, "carton": 1.5, "tin": 3, "bag": 3, "blister": 2, "stack": 2.5, "blocks": 2.5, "crate": 1.5, "house": 2}
    )
    if kind == "box":
        size = np.exp(dice.vector(-1.2, 0)) * [1, dice(0.3, 1), 1.2]
        front = label(dice, palette, size[0] / size[2], 240)
        back = front if dice.chance(0.4) else label(dice, palette, size[0] / size[2], 240)
        side = [panel(label(dice, palette, size[1] / size[2])) if dice.chance(0.6) else pattern(dice, palette, 0.7) for _ in range(2)]
        lid = panel(label(dice, palette, size[0] / size[1])) if dice.chance(0.6) else pattern(dice, palette, 0.7)
        shape = place(sh.box(6), size=size)
        if dice.chance(0.25):
            shape = sh.wobble(sh.taper(shape, dice(-0.2, 0.3)), dice.noise(3), dice(0, 0.06), 2)
        model.add(shape, [panel(front), panel(back), *side, lid, pattern(dice, palette, 0.8)])
        if dice.chance(0.2):  # a ribbon
            for turn in (0, 90):
                model.add(
                    place(sh.box(2), size=(size * [1.02, 0.12, 1.02]) if turn == 0 else (size * [0.12, 1.02, 1.02])), palette.accent()
                )
        if dice.chance(0.35):
            model.parts = [(place(s, turn=(90, 0, 0)), p, m) for s, p, m in model.parts]
    elif kind == "book":
        z = 0.0
        for _ in range(dice.pick(1, 1, dice.whole(2, 4))):
            own, thick, wide, long = (type(palette)(dice), dice(0.05, 0.22), dice(0.5, 0.8), dice(0.8, 1.05))
            turn = dice(-25, 25)
            cover, rear = (panel(label(dice, own, wide / long, 240)) for _ in range(2))
            spine = pattern(dice, own, 0.7)
            for dz, paint in ((thick, cover), (-thick, rear)):
                model.add(
                    place(sh.box(2), (0, 0, z + thick + dz), (wide, long, 0.015), (0, 0, turn)), [spine, spine, spine, spine, paint, paint]
                )
            model.add(place(place(sh.box(2), (-wide, 0, 0), (0.015, long, thick)), (0, 0, z + thick), turn=(0, 0, turn)), spine)
            pages = gradient(dice, [WHITE, WHITE * 0.85, WHITE])
            model.add(
                place(place(sh.box(2), (-0.015, 0, 0), (wide * 0.97, long * 0.97, thick)), (0, 0, z + thick), turn=(0, 0, turn)), pages
            )
            z += 2 * thick + 0.04
        if dice.chance(0.35):
            model.parts = [(place(s, turn=(90, 0, 0)), p, m) for s, p, m in model.parts]
    elif kind == "carton":  # of milk
        wide, high, roof = dice(0.35, 0.5), dice(0.6, 1.1), dice(0.25, 0.45)
        model.add(
            place(sh.box(4), (0, 0, high), (wide, wide, high)),
            [panel(label(dice, palette, wide / high)) for _ in range(4)] + [plain(WHITE)] * 2,
        )
        model.add(
            place(sh.prism(sh.polygon([(-1, -1), (1, -1), (0, 1)], 3)), (0, 0, 2 * high + roof / 2), (wide, roof / 2, wide), (90, 0, 0)),
            pattern(dice, palette, 0.5),
        )
        model.add(place(sh.box(2), (0, 0, 2 * high + roof + 0.06), (0.02, wide, 0.08)), palette.main())
        if dice.chance(0.6):
            model.add(place(sh.prism(bevel=0.1), (wide * 0.5, 0, 2 * high + roof * 0.55), (0.12, 0.12, 0.07), (0, 45, 0)), palette.accent())
    elif kind == "tin":
        high, wide = dice(0.3, 1.8), dice(0.5, 0.8)
        outline = dice.pick(sh.superellipse(2, 34), sh.superellipse(2, 34), sh.superellipse(5, 40), sh.superellipse(2, 34) * [1, 0.6])
        edges = dice.pick(GREY * 1.3, palette.main(), palette.accent())
        body = place(sh.prism(outline, bevel=dice.pick(0, 0.06), rows=6), size=(wide, wide, high))
        model.add(body, wrapped(plain(edges), label(dice, palette, 3, 240), dice(-0.98, -0.8), dice(0.75, 0.98), dice.whole(1, 2)))
        if dice.chance(0.6):
            model.add(
                place(sh.prism(outline, bevel=0.15), (0, 0, high), (wide * 1.04, wide * 1.04, dice(0.04, 0.15))),
                pattern(dice, palette, 0.6),
            )
        if dice.chance(0.2):
            model.parts = [(place(s, turn=(90, 0, 0)), p, m) for s, p, m in model.parts]
    elif kind == "bag":
        wide, thick, high = dice(0.5, 0.9), dice(0.12, 0.4), dice(0.7, 1.1)
        shape = place(sh.superquadric(4, dice(2, 3), 24, 36), size=(wide, thick, high))
        shape = shape.moved(lambda p: p * np.stack([1 + 0 * p[:, 2], 1 - 0.9 * np.abs(p[:, 2] / high) ** 3, 1 + 0 * p[:, 2]], -1))
        shape = sh.wobble(shape, dice.noise(3), dice(0.02, 0.12), dice(2, 5))
        paint = pattern(dice, palette, 0.5)
        picture = label(dice, palette, wide / high, 240)
        paint = decal(
            decal(paint, picture, -1, 1, (-0.9, -0.85, 0.9, 0.85)), label(dice, palette, wide / high), 1, 1, (-0.85, -0.85, 0.85, 0.85)
        )
        model.add(shape, paint)
        for end in (-1, 1):
            model.add(place(sh.box(3), (0, 0, end * high * 0.97), (wide * 0.85, 0.02, 0.07)), palette.main())
    elif kind == "blister":
        wide, high = dice(0.5, 0.8), dice(0.8, 1.0)
        card = [panel(label(dice, palette, wide / high, 240)) for _ in range(2)]
        model.add(place(sh.box(2), (0, 0, 0), (wide, 0.02, high)), [card[0], card[1], *[plain(WHITE)] * 4])
        paint = pattern(dice, palette, 0.1)
        for _ in range(dice.whole(1, 4)):
            at = (dice(-0.5, 0.5) * wide, -0.12, dice(-0.7, 0.1) * high)
            model.add(
                place(sh.superquadric(dice(2, 5), dice(2, 5)), at, dice.vector(0.12, 0.3), (0, dice(0, 90), 0)),
                dice.pick(paint, plain(palette.accent())),
            )
    elif kind == "stack":
        z = 0.0
        for _ in range(dice.whole(2, 5)):
            own = type(palette)(dice)
            size = dice.vector(0.25, 0.7) * [1, 1, 0.7]
            paints = [panel(label(dice, own)) if dice.chance(0.6) else pattern(dice, own, 0.4) for _ in range(6)]
            model.add(place(sh.box(4), (dice(-0.12, 0.12), dice(-0.12, 0.12), z + size[2]), size, (0, 0, dice(-30, 30))), paints)
            z += 2 * size[2]
    elif kind == "blocks":
        colours = [palette.main(), palette.accent(), hsv(dice(), 0.9, 0.9), hsv(dice(), 0.9, 0.8)]
        cell = np.zeros(3, int)
        for _ in range(dice.whole(2, 9)):
            cell = np.clip(cell + dice.pick(1, 1, -1) * np.eye(3, dtype=int)[dice.pick(0, 1, 2, 2)], -1, 2)
            size = dice.pick((0.49, 0.49, 0.49), (0.99, 0.49, 0.49), (0.49, 0.49, 0.25))
            at = cell + [0.5 if size[0] > 0.5 else 0, 0, size[2] - 0.5]
            colour = dice.pick(*colours)
            if dice.chance(0.3):
                model.add(place(sh.box(3), at, size), [panel(label(dice, palette, 1, 96)) for _ in range(6)])
            else:
                model.add(place(sh.superquadric(9, 9, 14, 28), at, size), plain(colour))
            for x in (-0.25, 0.25):
                for y in (-0.25, 0.25):
                    model.add(place(sh.prism(sh.superellipse(2, 12), rows=3), at + [x, y, size[2] + 0.05], (0.14, 0.14, 0.08)), colour)
        low = model.box()[0][2]
        model.add(place(sh.superquadric(9, 9, 14, 28), (0, 0, low - 0.2), (1.2, 1.2, 0.2)), plain(colours[0]))
    elif kind == "crate":
        wide, high, slats = dice(0.5, 0.9), dice(0.3, 0.6), dice.whole(2, 4)
        board = wood(dice, palette.main(), palette.main() * 0.7)
        for k in range(slats):
            z = high * (2 * k + 1) / slats
            for y in (-wide * 0.7, wide * 0.7):
                model.add(place(sh.box(3), (0, y, z), (wide, 0.03, high / slats * 0.75)), board)
            for x in (-wide, wide):
                model.add(place(sh.box(3), (x, 0, z), (0.03, wide * 0.7, high / slats * 0.75)), board)
        model.add(place(sh.box(2), (0, 0, 0.03), (wide, wide * 0.7, 0.03)), board)
        for _ in range(dice.whole(0, 7)):
            size = dice(0.15, 0.3)
            model.add(ball((*dice.vector(-0.6, 0.6, 2) * wide * [1, 0.6], dice(0.3, 2) * high), size), pattern(dice, palette, 0.5))
    else:  # a doll's house
        wide, deep, high, roof = dice(0.5, 0.9), dice(0.4, 0.7), dice(0.4, 0.8), dice(0.3, 0.7)
        wall = windows(dice, pattern(dice, palette, 0.5), dice(-0.3, 0), dice(0.3, 0.6), dice.whole(2, 4), frame=None)
        wall = decal(wall, np.broadcast_to(palette.accent(), (8, 8, 3)), -1, 1, (-0.15, -1, 0.2, 0.1))
        model.add(place(sh.prism(sh.polygon([(-1, -1), (1, -1), (1, 1), (-1, 1)], 8), rows=10), (0, 0, high), (wide, deep, high)), wall)
        model.add(
            place(
                sh.prism(sh.polygon([(-1, -1), (1, -1), (0, 1)], 4), rows=6),
                (0, 0, 2 * high + roof / 2),
                (wide * 1.12, roof / 2, deep * 1.12),
                (90, 0, 0),
            ),
            pattern(dice, palette, 0.3),
        )
        if dice.chance(0.7):
            model.add(place(sh.box(2), (wide * 0.5, deep * 0.4, 2 * high + roof * 0.7), (0.09, 0.09, 0.3)), palette.main())
        if dice.chance(0.5):
            model.add(place(sh.box(2), (0, 0, -0.03), (wide * 1.4, deep * 1.5, 0.03)), hsv(0.3, 0.6, dice(0.3, 0.7)))


def shoe(model: Model) -> None:
    """Trainers, boots, sandals, shoes with heels; one or a pair."""
    dice, palette = model.dice, model.palette
    kind = dice.weighted({"low": 5, "boot": 3, "sandal": 2, "heel": 2})
    sole_high, lift = dice(0.06, 0.2), dice(0.3, 0.7) if kind == "heel" else 0.0
    widths = np.array([0.26, 0.32, dice(0.24, 0.31), dice(0.32, 0.4), dice(0.3, 0.4), dice(0.1, 0.22)]) * dice(0.85, 1.15)
    upper, first, second = pattern(dice, palette, 0.35), *palette.pair()

    def raised(shape: Shape) -> Shape:
        """Follow the foot: the heel is lifted, the toe springs a little."""
        return shape.moved(
            lambda p: (
                p + np.stack([0 * p[:, 0], 0 * p[:, 0], lift / (1 + np.exp(5 * p[:, 0])) + 0.12 * np.clip(p[:, 0] - 0.5, 0, 1) ** 2], -1)
            )
        )

    sole = sh.hull([-1, 1], widths * 1.06, np.zeros(6), np.full(6, sole_high), 4, 26, 30, 0.16)
    band = by_height(
        [dice(-0.4, 0.3)],
        [plain(dice.pick(first, second, BLACK, palette.accent())), plain(dice.pick(WHITE, second, palette.main()))],
        softness=0.05,
    )
    model.add(raised(sole), band)
    if kind == "heel":
        model.add(
            place(sh.prism(sh.superellipse(3, 20), top=1.6), (-0.75, 0, lift / 2), (dice(0.05, 0.15), dice(0.06, 0.15), lift / 2 + 0.03)),
            plain(first),
        )
    if kind == "sandal":
        for x in [0.45, dice(0.0, 0.2), -0.55][: dice.whole(1, 3)] if dice.chance(0.7) else [0.4]:
            half = np.interp(x, np.linspace(-1, 1, 6), widths)
            arc = sh.curve(
                [(x, -half, 0.05), (x - 0.05, -half * 0.8, 0.3), (x - 0.08, 0, 0.42), (x - 0.05, half * 0.8, 0.3), (x, half, 0.05)], 20
            )
            model.add(raised(sh.tube(arc, 0.07, sh.superellipse(3, 10) * [dice(0.6, 2), 0.35])), upper)
        model.add(raised(place(sh.prism(sh.superellipse(2.4, 24)), (0, 0, sole_high), (0.85, 0.24, 0.015))), plain(second))
    else:
        heights = sole_high + np.array([dice(0.45, 0.6), 0.55, dice(0.42, 0.55), dice(0.32, 0.42), dice(0.22, 0.3), dice(0.1, 0.18)]) * (
            0.75 if kind == "heel" else 1
        )
        if dice.chance(0.45):
            upper = by_height([dice(0.35, 0.7)], [upper, plain(second)], 0, 0.03)
        if dice.chance(0.3):
            upper = by_height([dice(-0.85, -0.5)], [plain(palette.accent()), upper], 0, 0.03)
        if dice.chance(0.6):
            picture = label(dice, palette, 1.5, 96) if dice.chance(0.5) else np.broadcast_to(palette.accent(), (8, 8, 3))
            x = dice(-0.4, 0)
            for side in (-1, 1):
                upper = decal(upper, picture, side, 1, (x, dice(-0.7, -0.3), x + dice(0.2, 0.6), 0.4), dice.chance(0.3))
        body = sh.hull([-0.98, 0.98], widths, np.full(6, sole_high * 0.5), heights, dice(2, 2.8), 28, 30, 0.16)
        model.add(raised(body), upper)
        rise, half = (dice(0.5, 1.4) if kind == "boot" else dice(0.1, 0.3)), widths[1] * dice(0.75, 0.95)
        collar = place(
            hollow([1, dice(0.92, 1.0), dice(0.95, 1.25)], 1, 0.14),
            (-0.5, 0, heights[0] - 0.3),
            (0.42 if kind == "boot" else 0.47, half, rise + 0.3),
            (0, -dice(0, 6), 0),
        )
        lining = plain(dice.pick(BLACK, second * 0.6, WHITE * 0.8, palette.main()))
        model.add(raised(collar), mix(upper if dice.chance(0.6) else plain(first), lining, lambda t: edge(t.uv[:, 1] - 0.48, 0.01)))
        if dice.chance(0.7) and kind != "heel":  # laces on a tongue
            lace = plain(dice.pick(WHITE, BLACK, palette.accent()))
            model.add(
                raised(
                    limb(
                        [(0.35, 0, heights[3] - 0.06), (0.1, 0, heights[2] - 0.03), (-0.15, 0, heights[1] + dice(0.1, 0.25))],
                        [0.1, 0.13, 0.12],
                        8,
                    )
                ),
                plain(second),
            )
            for k in range(dice.whole(3, 6)):
                x = 0.35 - 0.1 * k
                z = np.interp(x, np.linspace(-0.98, 0.98, 6), heights) + 0.02
                model.add(raised(limb([(x, -0.15, z - 0.05), (x - 0.02, 0, z + 0.05), (x, 0.15, z - 0.05)], [0.025, 0.025], 6, 6)), lace)
        elif dice.chance(0.5):
            model.add(ball((0.35, 0, heights[3] + lift * 0.2), (0.1, 0.14, 0.06)), palette.accent())
    if dice.chance(0.15):  # a pair
        side, gap = model.parts, dice(0.38, 0.5)
        model.parts = [(place(shape, (0, gap, 0)), paint, True) for shape, paint, _ in side]


_LETTERS = {
    "A": [[(0, 0), (1, 2), (2, 0)], [(0.5, 0.8), (1.5, 0.8)]], "E": [[(2, 0), (0, 0), (0, 2), (2, 2)], [(0, 1), (1.5, 1)]],
    "H": [[(0, 0), (0, 2)], [(2, 0), (2, 2)], [(0, 1), (2, 1)]], "K": [[(0, 0), (0, 2)], [(2, 2), (0, 1), (2, 0)]],
    "M": [[(0, 0), (0, 2), (1, 1), (2, 2), (2, 0)]], "N": [[(0, 0), (0, 2), (2, 0), (2, 2)]], "O": [[(0, 0), (0, 2), (2, 2), (2, 0), (0, 0)]],
    "S": [[(0, 0), (2, 0), (2, 1), (0, 1), (0, 2), (2, 2)]], "T": [[(1, 0), (1, 2)], [(0, 2), (2, 2)]], "X": [[(0, 0), (2, 2)], [(0, 2), (2, 0)]],
    "Y": [[(1, 0), (1, 1), (0, 2)], [(1, 1), (2, 2)]], "4": [[(1.5, 0), (1.5, 2), (0, 0.7), (2, 0.7)]], "7": [[(0, 2), (2, 2), (0.7, 0)]],
}  # fmt: skip


def gadget(model: Model) -> None:
    """Tools, controllers, phones, brushes, spectacles, letters, frames of sticks, furniture of toys."""
    dice, palette = model.dice, model.palette
    kind = dice.weighted(
        {
            "hammer": 2,
            "controller": 3,
            "phone": 2,
            "brush": 2,
            "letters": 2,
            "spectacles": 1,
            "frame": 3,
            "torch": 2,
            "camera": 2,
            "seat": 2,
            "scissors": 1,
            "hat": 2,
            "ball": 2,
        }
    )
    grip, first, second = pattern(dice, palette, 0.4), *palette.pair()
    if kind == "hammer":
        long = dice(0.9, 1.3)
        model.add(
            limb([(-long, 0, 0), (dice(-0.2, 0.2), dice(-0.1, 0.1), 0), (long, 0, 0)], [dice(0.1, 0.18), 0.09, 0.07], 16),
            by_height([dice(-0.5, 0.1)], [grip, plain(second)], 0, 0.02),
        )
        for _ in range(dice.whole(1, 3)):
            shape = place(
                sh.prism(outline_any(dice), bevel=0.1, top=dice(0.4, 1)),
                (long + dice(-0.1, 0.1), 0, 0),
                (dice(0.12, 0.35), dice(0.08, 0.2), dice(0.2, 0.5)),
                (dice.pick(90, 0), dice.pick(0, 90), 0),
            )
            model.add(shape, plain(dice.pick(GREY, BLACK * 3, palette.accent(), first)))
    elif kind == "controller":
        wide, thick = dice(0.5, 1), dice(0.12, 0.25)
        body = sh.superquadric(dice(2.5, 6), dice(2.2, 5), 16, 30)
        body = sh.wobble(place(body, size=(dice(0.35, 0.7), wide, thick)), dice.noise(3), dice(0, 0.08), 1.2)
        model.add(body, decal(grip, label(dice, palette, 1, 128), 1, 2, (-0.5, -0.4, 0.5, 0.4)) if dice.chance(0.5) else grip)
        for _ in range(dice.whole(2, 9)):
            x, y, r = dice(-0.25, 0.25), dice(0.05, 0.8) * wide, dice(0.04, 0.12)
            model.add(
                place(sh.prism(dice.pick(sh.superellipse(2, 14), sh.superellipse(5, 16)), bevel=0.25, rows=3), (x, y, thick), (r, r, 0.05)),
                palette.accent(),
                mirror=dice.chance(0.6),
            )
        if dice.chance(0.4):
            model.add(limb([(-0.2, wide * 0.7, 0), (-0.6, wide * 0.95, -0.05)], [thick * 1.1, thick * 0.9]), grip, mirror=True)
        if dice.chance(0.4):
            model.add(limb([(0.3, 0, 0), (0.6, 0.1, -0.1), (0.8, -0.3, -0.1), (1.2, 0.2, -0.1)], [0.03, 0.03], 26, 8), BLACK)
    elif kind == "phone":
        wide, high, thick = dice(0.35, 0.9), dice(0.5, 1), dice(0.03, 0.2)
        shape = place(sh.prism(sh.superellipse(dice(5, 12), 40), bevel=dice(0, 0.06), rows=4), size=(wide, high, thick))
        screen = decal(grip, label(dice, type(palette)(dice), wide / high, 200), 1, 2, (-0.85, dice(-0.8, -0.1), 0.85, 0.85))
        model.add(shape, screen)
        for k in range(dice.whole(0, 9)):
            model.add(ball(((k % 3 - 1) * wide * 0.5, -high * (0.3 + 0.22 * (k // 3)), thick), (0.08, 0.06, 0.04), fine=False), second)
        if dice.chance(0.4):
            model.parts = [(place(s, turn=(90, 0, 0)), p, m) for s, p, m in model.parts]
    elif kind == "brush":
        long = dice(0.7, 1.3)
        model.add(
            limb([(-long, 0, 0), (0, dice(-0.1, 0.1), dice(-0.1, 0.1)), (0.5, 0, 0)], [dice(0.05, 0.15), dice(0.06, 0.12), 0.08], 16), grip
        )
        head = dice.pick("paint", "hair", "broom")
        if head == "hair":
            model.add(place(sh.superquadric(3, 3), (0.75, 0, 0), (0.4, 0.2, 0.06)), grip)
            for x in np.linspace(0.5, 1, 6):
                for y in (-0.12, 0, 0.12):
                    model.add(limb([(x, y, 0), (x, y, 0.22)], [0.02, 0.02], 2, 6), second)
        else:
            model.add(
                place(sh.prism(sh.superellipse(3, 20), top=dice(0.6, 1.6)), (0.75, 0, 0), (0.15, dice(0.15, 0.3), 0.25), (0, 90, 0)),
                by_height([-0.3], [plain(GREY), pattern(dice, palette, 0.3)], softness=0.02),
            )
        if dice.chance(0.5):
            model.parts = [(place(s, turn=(0, 90, 0)), p, m) for s, p, m in model.parts]
    elif kind == "letters":
        word = [dice.pick(*_LETTERS) for _ in range(dice.whole(1, 4))]
        thick, outline, same = dice(0.18, 0.4), dice.pick(sh.superellipse(8, 16), sh.superellipse(2, 12)), dice.chance(0.3)
        for k, letter in enumerate(word):
            paint = grip if same else pattern(dice, palette, 0.5)
            for stroke in _LETTERS[letter]:
                for a, b in zip(stroke, stroke[1:]):
                    model.add(sh.tube([(2.9 * k + a[0], 0, a[1] * 1.3), (2.9 * k + b[0], 0, b[1] * 1.3)], thick, outline), paint)
        if dice.chance(0.5):
            model.add(
                place(sh.box(2), (1.45 * len(word) - 0.45, 0, -thick - 0.1), (1.45 * len(word), 0.6, 0.12)), pattern(dice, palette, 0.5)
            )
    elif kind == "spectacles":
        angle = np.linspace(0, sh.TAU, 29)
        outline = dice.pick(
            sh.superellipse(2, 28), sh.superellipse(4, 28), sh.superellipse(2, 28) * [1, 0.7], sh.star(5, 0.6), sh.heart(28)
        )
        ring = np.stack([0 * outline[:, 0], 0.45 * outline[:, 0] + 0.6, 0.45 * outline[:, 1]], -1)
        model.add(sh.tube(ring, dice(0.04, 0.1), sh.superellipse(2, 8), closed=True), grip, mirror=True)
        model.add(
            place(sh.prism(outline), (0, 0.6, 0), (0.44, 0.44, 0.01), (90, 0, 90)),
            dice.pick(BLACK, hsv(dice(), 0.5, 0.7), GREY),
            mirror=True,
        )
        model.add(limb([(0, -0.2, 0.1), (0.03, 0, 0.15), (0, 0.2, 0.1)], [0.05, 0.05], 6, 8), grip)
        model.add(limb([(0, 1.05, 0.1), (-1.1, 1.05, 0.1), (-1.5, 1.0, -0.2)], [0.05, 0.05], 10, 8), grip, mirror=True)
    elif kind == "frame":  # sticks: ladders, climbing frames, racks
        nx, nz, thick = dice.whole(1, 3), dice.whole(1, 4), dice(0.04, 0.1)
        colours = [plain(palette.main()), plain(palette.accent()), grip]
        for x in range(nx + 1):
            for y in (-0.5, 0.5):
                model.add(
                    limb([(x, y * dice.pick(1, 1, 0.6), 0), (x, y * dice.pick(1, 1, 0.4), nz * 0.7 + 0.2)], [thick, thick], 3, 8),
                    colours[0],
                )
        for z in range(nz + 1):
            for y in (-0.5, 0.5):
                model.add(limb([(0, y, z * 0.7 + 0.1), (nx, y, z * 0.7 + 0.1)], [thick, thick], 3, 8), colours[1])
            for x in range(nx + 1):
                model.add(limb([(x, -0.5, z * 0.7 + 0.1), (x, 0.5, z * 0.7 + 0.1)], [thick, thick], 3, 8), colours[2])
                if dice.chance(0.3):
                    model.add(ball((x, dice(-0.4, 0.4), z * 0.7 + 0.1), dice(0.1, 0.25)), hsv(dice(), 0.9, 0.9))
            if dice.chance(0.35):
                model.add(place(sh.box(3), (nx / 2, 0, z * 0.7 + 0.1), (nx / 2, 0.5, 0.03)), pattern(dice, palette, 0.3))
    elif kind == "torch":
        model.add(
            place(sh.prism(sh.superellipse(2, 24), rows=10, bevel=0.1), (0, 0, 0), (0.2, 0.2, dice(0.5, 1)), (0, 90, 0)),
            pattern(dice, palette, 0.2),
        )
        model.add(
            place(sh.prism(sh.superellipse(2, 26), top=dice(1.2, 2)), (dice(0.8, 1), 0, 0), (0.22, 0.22, 0.2), (0, 90, 0)),
            mix(plain(second), plain(WHITE), lambda t: edge(t.local[:, 2] - 0.95, 0.02)),
        )
        if dice.chance(0.5):
            model.add(sh.tube(sh.curve([(-0.4, 0, 0.15), (-0.35, 0, 0.5), (0.4, 0, 0.5), (0.5, 0, 0.15)], 16), 0.06), plain(first))
    elif kind == "camera":
        size = dice.vector(0.3, 0.9) * [0.6, 1.1, 0.8]
        model.add(
            place(sh.superquadric(dice(5, 9), dice(5, 9), 18, 30), size=size),
            decal(grip, label(dice, palette, 1.5, 128), -1, 0, (-0.7, -0.6, 0.7, 0.6)),
        )
        radius = min(size[1:]) * dice(0.5, 0.85)
        dark = by_height([0.85], [plain(palette.main()), plain(BLACK)], softness=0.02)
        model.add(
            place(
                sh.prism(sh.superellipse(2, 28), top=dice(0.7, 1.1), bevel=0.1),
                (size[0] + 0.1, 0, 0),
                (radius, radius, dice(0.1, 0.4)),
                (0, 90, 0),
            ),
            dark,
        )
        for _ in range(dice.whole(1, 5)):
            model.add(
                place(
                    sh.prism(sh.superellipse(2, 16), bevel=0.2),
                    (dice(-0.5, 0.5) * size[0], dice(-0.8, 0.8) * size[1], size[2]),
                    (0.09, 0.09, dice(0.05, 0.2)),
                ),
                palette.accent(),
            )
    elif kind == "seat":
        wide, high, thick = dice(0.4, 0.7), dice(0.2, 0.8), dice(0.05, 0.3)
        model.add(place(sh.superquadric(dice(3, 8), dice(3, 8), 14, 26), (0, 0, high + thick), (wide, wide * dice(0.8, 1.5), thick)), grip)
        if dice.chance(0.7):
            model.add(
                place(
                    sh.superquadric(dice(3, 8), dice(3, 8), 14, 26),
                    (-wide, 0, high + 0.6),
                    (thick * 0.8, wide, dice(0.4, 0.8)),
                    (0, -dice(0, 15), 0),
                ),
                pattern(dice, palette, 0.3),
            )
        for x in (-0.8, 0.8):
            model.add(
                limb([(x * wide, wide * 0.7, high + 0.05), (x * wide * dice(0.9, 1.2), wide * 0.75, 0)], [dice(0.04, 0.1), 0.05], 4, 8),
                plain(first),
                mirror=True,
            )
        if dice.chance(0.4):
            model.add(
                limb([(-wide, wide, high + 0.3), (0, wide * 1.1, high + 0.45), (wide * 0.7, wide, high + thick)], [0.07, 0.07], 12),
                plain(second),
                mirror=True,
            )
    elif kind == "scissors":
        for sign in (1, -1):
            angle = np.linspace(0, sh.TAU, 25)
            ring = np.stack([0.28 * np.cos(angle) - 0.75, 0.2 * np.sin(angle) + sign * 0.3, 0 * angle], -1)
            model.add(sh.tube(ring, 0.06, sh.superellipse(2, 8), closed=True), grip)
            model.add(limb([(-0.5, sign * 0.22, 0), (0, 0, 0)], [0.07, 0.07], 4, 8), grip)
            model.add(
                place(
                    sh.prism(sh.polygon([(0, -0.3), (1.1, 0.05), (0, 0.3)], 4)),
                    (0, 0, sign * 0.02),
                    (1, 0.3, 0.02),
                    (0, 0, -sign * dice(5, 18)),
                ),
                GREY * 1.3,
            )
        model.add(ball((0, 0, 0), 0.08, fine=False), second)
    elif kind == "hat":
        model.add(
            place(
                sh.loft([(1, 0), (dice(0.9, 1), 0.3), (dice(0.5, 0.9), dice(0.6, 0.9)), (0, 1)], sh.superellipse(2, 30)),
                size=(0.6, 0.55, dice(0.4, 0.8)),
            ),
            grip,
        )
        brim = place(sh.prism(sh.superellipse(2, 30), bevel=0.3, rows=3), (dice(0, 0.5), 0, 0.02), (dice(0.6, 1), dice(0.55, 0.9), 0.03))
        model.add(brim, plain(dice.pick(first, second)))
        model.add(place(sh.prism(sh.superellipse(2, 30), rows=3), (0, 0, 0.1), (0.61, 0.57, dice(0.03, 0.1))), palette.accent())
        if dice.chance(0.4):
            model.add(ball((0, 0, dice(0.5, 0.8)), dice(0.06, 0.2)), palette.accent())
    else:  # balls, planets, cushions
        for k in range(dice.pick(1, 1, 3)):
            size = dice(0.5, 1)
            shape = place(
                sh.superquadric(dice(1.8, 2.5), 2, 18, 32), (1.5 * k, dice(-0.3, 0.3), size), size * np.array([1, 1, dice(0.55, 1)])
            )
            paint = (
                decal(pattern(dice, palette, 0), label(dice, palette), dice.pick(-1, 1), dice.whole(0, 2), (-0.6, -0.6, 0.6, 0.6), True)
                if dice.chance(0.4)
                else pattern(dice, palette, 0)
            )
            model.add(sh.wobble(shape, dice.noise(3), dice(0, 0.12), dice(1, 3)), paint)
