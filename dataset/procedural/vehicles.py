"""Families of the procedural corpus: vehicles on wheels, and craft of the air and the water."""

from __future__ import annotations

import numpy as np

from dataset.procedural import shapes as sh
from dataset.procedural.model import Model, ball, limb, turned
from dataset.procedural.paint import (
    BLACK,
    GREY,
    WHITE,
    Dice,
    Paint,
    by_height,
    clouds,
    decal,
    edge,
    hsv,
    label,
    mix,
    panel,
    pattern,
    plain,
    wrapped,
)  # fmt: skip
from dataset.procedural.shapes import Shape, place


def windows(dice: Dice, body: Paint, low: float, high: float, count: int, glass=None, frame=None) -> Paint:
    """Panes all around a body between two heights of its box, parted by posts."""
    glass = dice.pick(BLACK, hsv(0.58, dice(0.1, 0.5), dice(0.2, 0.95)), GREY * 0.5, WHITE) if glass is None else glass
    post, ends = dice(0.06, 0.3), dice.whole(1, 2)
    margin, glint = dice(0.82, 1.0), dice(0, 0.25)

    def share(t):
        side = np.abs(t.local[:, 1]) > np.abs(t.local[:, 0])
        along = np.where(side, t.local[:, 0], t.local[:, 1])
        number = np.where(side, count, ends)
        cell = (along / margin * 0.5 + 0.5) * number % 1
        inside = np.minimum(cell, 1 - cell) / np.maximum(number, 1) - post / number.clip(2) / 2
        return edge(inside, 0.02) * edge(margin - np.abs(along), 0.02) * edge(t.local[:, 2] - low, 0.03) * edge(high - t.local[:, 2], 0.03)

    def pane(t):
        return np.clip(glass + glint * np.clip(t.local[:, 2:3] - low, 0, 1), 0, 1)

    if frame is not None:
        body = mix(body, plain(frame), lambda t: edge(t.local[:, 2] - low + 0.08, 0.02) * edge(high + 0.08 - t.local[:, 2], 0.02))
    return mix(body, pane, share)


def _wheels(model: Model, places, radius: float, width: float, half_track: float) -> None:
    """Pairs of wheels at the given x; tyre, rim, hub and perhaps spokes."""
    dice = model.dice
    tyre = plain(BLACK * dice(0.8, 2.2)) if dice.chance(0.8) else plain(model.palette.main())
    rim, hub = (
        plain(dice.pick(GREY, WHITE, model.palette.accent(), model.palette.main())),
        plain(dice.pick(BLACK, GREY, model.palette.accent())),
    )
    share, spokes = dice(0.4, 0.75), dice.pick(0, 0, dice.whole(3, 7))

    def paint(t):
        distance = np.linalg.norm(t.local[:, :2], axis=1)
        inner = rim
        if spokes:
            gap = np.cos(spokes * np.arctan2(t.local[:, 1], t.local[:, 0]))
            inner = mix(rim, hub, lambda s: edge(gap, 0.2) * edge(distance - 0.3, 0.05))
        colour = mix(tyre, inner, lambda s: edge(share - distance, 0.05))
        return mix(colour, hub, lambda s: edge(0.2 - distance, 0.05))(t)

    wheel = place(sh.prism(sh.superellipse(2, 24), bevel=0.15, rows=4), size=(radius, radius, width), turn=(90, 0, 0))
    for x in places:
        model.add(place(wheel, (x, half_track, radius)), paint, mirror=True)


def _side_print(model: Model, paint: Paint, low: float, high: float) -> Paint:
    """Writing or a picture on both sides of a body."""
    dice = model.dice
    if dice.chance(0.55):
        x, w = dice(-0.5, 0.1), dice(0.3, 0.8)
        picture = label(dice, model.palette, dice(1, 3), 128)
        for side in (-1, 1):
            paint = decal(paint, picture, side, 1, (x, low, min(x + w, 0.9), high))
    return paint


def vehicle(model: Model) -> None:
    """Cars, buses, vans, lorries, locomotives, tractors."""
    dice, palette = model.dice, model.palette
    kind = dice.weighted({"car": 5, "bus": 3, "lorry": 3, "loco": 2, "tractor": 2, "racer": 1})
    radius = dice(0.16, 0.3)
    first, second = palette.pair()
    base = plain(first) if dice.chance(0.5) else by_height([dice(-0.5, 0.5)], [plain(second), plain(first)], softness=0.02)
    if dice.chance(0.2):
        base = pattern(dice, palette, 0)
    light, rear = dice.pick(WHITE, hsv(0.14, 0.6, 1)), hsv(0.0, 0.9, 0.8)
    floor = radius * dice(0.7, 1.1)
    if kind in ("car", "racer"):
        long, wide, high = dice(0.9, 1.3), dice(0.38, 0.58), dice(0.18, 0.3)
        if kind == "racer":
            wide, high = wide * 0.7, high * 0.7
        nose = dice.vector(0.6, 1.0, 5)
        nose[1:3] = dice(0.85, 1.0)
        body = sh.hull(
            [-long, long],
            wide * np.array([0.75, 1, 1, 0.97, dice(0.5, 0.85)]),
            np.full(5, floor),
            floor + 2 * high * nose,
            dice(3.5, 7),
            30,
        )
        paint = base
        if dice.chance(0.3):  # racing stripe along the middle
            half, colour = dice(0.1, 0.3), plain(palette.accent())
            paint = mix(base, colour, lambda t: edge(half - np.abs(t.local[:, 1]), 0.03) * (t.local[:, 2] > 0))
        model.add(body, _side_print(model, paint, -0.5, 0.5))
        if kind == "car":
            start, end, roof = dice(-0.95, -0.45) * long, dice(0.1, 0.5) * long, dice(0.25, 0.5)
            slope = np.array([dice(0.1, 0.8), 1, 1, dice(0.1, 0.5)])
            top = floor + 2 * high * nose[1:4].mean() - 0.06
            cabin = sh.hull(
                [start, end], wide * np.array([0.85, 0.9, 0.9, 0.82]), np.full(4, top - 0.1), top + roof * slope, dice(3, 5), 26
            )
            cabin = sh.taper(place(cabin, (0, 0, -top + 0.1)), dice(0.05, 0.3))
            model.add(
                place(cabin, (0, 0, top - 0.1)), windows(dice, plain(dice.pick(first, second)), -0.55, dice(0.5, 0.75), dice.whole(1, 3))
            )
        else:
            model.add(ball((-0.1 * long, 0, floor + 2 * high), (0.16, 0.15, 0.2)), pattern(dice, palette, 0.5))
            model.add(place(sh.box(2), (-long, 0, floor + 2 * high + 0.2), (0.14, wide * 1.3, 0.03)), palette.accent())
            model.add(place(sh.box(2), (long, 0, floor + 0.05), (0.14, wide * 1.3, 0.03)), palette.accent())
        _wheels(model, (-0.62 * long, 0.62 * long), radius, dice(0.07, 0.14), wide * dice(0.9, 1.15) + (0.12 if kind == "racer" else 0))
        front = long * 0.93
        if dice.chance(0.6):
            model.add(place(sh.box(2), (long * 0.98, 0, floor + 0.3 * high), (0.05, wide * 0.75, 0.05)), dice.pick(GREY, BLACK))
    elif kind == "bus":
        long, wide, high = dice(0.9, 1.5), dice(0.33, 0.5), dice(0.35, 0.65)
        shell = place(sh.prism(sh.superellipse(dice(6, 16), 48), bevel=dice(0.05, 0.25), rows=8), (0, 0, floor + high), (long, wide, high))
        low = dice(-0.1, 0.3)
        paint = _side_print(model, base, -0.75, low - 0.1)
        model.add(
            shell,
            windows(dice, paint, low, min(0.8, low + dice(0.35, 0.6)), dice.whole(3, 8), frame=dice.pick(None, BLACK, second, WHITE)),
        )
        if dice.chance(0.4):  # a bonnet, as school buses have
            model.add(place(sh.superquadric(6, 6, 14, 26), (long + 0.22, 0, floor + 0.35 * high), (0.3, wide * 0.88, 0.45 * high)), base)
            front = long + 0.5
        else:
            front = long
        _wheels(
            model, (-0.6 * long, 0.62 * long) if dice.chance(0.7) else (-0.7 * long, -0.4 * long, 0.62 * long), radius, 0.1, wide * 0.95
        )
        if dice.chance(0.5):
            model.add(place(sh.box(2), (0, 0, floor + 0.3 * high), (long * 1.01, wide * 1.02, 0.03)), dice.pick(BLACK, palette.accent()))
        if dice.chance(0.3):
            model.add(
                place(sh.superquadric(5, 5), (dice(-0.5, 0.5) * long, 0, floor + 2 * high + 0.05), (dice(0.1, 0.5), wide * 0.5, 0.07)),
                palette.accent(),
            )
    elif kind == "lorry":
        long, wide, high = dice(0.9, 1.4), dice(0.32, 0.48), dice(0.3, 0.5)
        cab = dice(0.22, 0.4)
        model.add(place(sh.box(2), (0, 0, floor + 0.06), (long, wide * 0.8, 0.06)), BLACK * 2)
        model.add(
            place(sh.taper(sh.superquadric(6, 6, 18, 30), dice(0, 0.25)), (long - cab, 0, floor + high), (cab, wide, high)),
            windows(dice, base, 0.05, 0.7, 1),
        )
        rest = long - cab
        load = dice.pick("box", "tank", "tipper", "mixer", "logs", "ladder")
        middle = -cab + 0.0
        if load == "box":
            tall = dice(0.7, 1.5) * high
            prints = [panel(label(dice, palette, rest / tall)) if dice.chance(0.7) else plain(second) for _ in range(2)]
            model.add(
                place(sh.box(4), (middle, 0, floor + tall + 0.1), (rest * 0.97, wide, tall)),
                [prints[0], prints[1], plain(second), prints[0], plain(second), plain(second)],
            )
        elif load == "tank":
            model.add(
                place(
                    sh.prism(sh.superellipse(2, 26), bevel=0.2, rows=8),
                    (middle, 0, floor + 0.1 + wide * 0.9),
                    (wide * 0.9, wide, rest * 0.95),
                    (0, 90, 0),
                ),
                wrapped(plain(second), label(dice, palette, 2), -0.6, 0.6, 2),
            )
        elif load == "mixer":
            model.add(
                place(turned(dice), (middle, 0, floor + 0.15 + wide), (wide * 1.1, wide * 1.1, rest * 0.9), (0, 80, 0)),
                pattern(dice, palette, 0.2),
            )
        elif load == "tipper":
            for at, size in (
                ((middle, 0, floor + 0.2), (rest, wide, 0.05)),
                ((middle, wide, floor + 0.35), (rest, 0.04, 0.2)),
                ((middle, -wide, floor + 0.35), (rest, 0.04, 0.2)),
                ((middle - rest, 0, floor + 0.35), (0.04, wide, 0.2)),
                ((middle + rest, 0, floor + 0.4), (0.04, wide, 0.26)),
            ):
                model.add(place(sh.box(3), at, size), plain(second))
            noise = dice.noise(3)
            model.add(
                sh.wobble(ball((middle, 0, floor + 0.35), (rest * 0.85, wide * 0.85, 0.25)), noise, 0.12, 5),
                clouds(dice, [palette.main(), hsv(0.09, 0.5, 0.4)]),
            )
        else:
            for k in range(5):
                model.add(
                    place(
                        sh.prism(sh.superellipse(2, 14)),
                        (middle, wide * (0.36 * (k % 3) - 0.36 + 0.18 * (k > 2)), floor + 0.25 + 0.22 * (k > 2)),
                        (0.13, 0.13, rest * 0.95),
                        (0, 90, 0),
                    ),
                    pattern(dice, palette, 0.4),
                )
        _wheels(model, (-0.75 * long, -0.45 * long, 0.7 * long), radius, 0.1, wide * 0.95)
        front = long
    elif kind == "loco":
        long, wide = dice(0.8, 1.2), dice(0.28, 0.4)
        boiler = place(
            sh.prism(sh.superellipse(2, 26), bevel=0.15, rows=8),
            (0.25 * long, 0, floor + 0.15 + wide),
            (wide * 0.85, wide * 0.85, long * 0.7),
            (0, 90, 0),
        )
        model.add(boiler, pattern(dice, palette, 0.4))
        model.add(
            place(sh.superquadric(7, 7, 16, 28), (-0.68 * long, 0, floor + 0.15 + wide * 1.2), (0.3 * long, wide * 1.1, wide * 1.35)),
            windows(dice, base, 0.1, 0.75, 2),
        )
        model.add(place(sh.box(2), (-0.68 * long, 0, floor + 0.15 + wide * 2.6), (0.36 * long, wide * 1.2, 0.05)), palette.accent())
        model.add(place(sh.box(2), (0, 0, floor + 0.08), (long, wide, 0.08)), second)
        for x in (0.75 * long, dice(0, 0.4) * long):
            model.add(
                place(turned(dice), (x, 0, floor + 2.1 * wide + 0.15), (wide * 0.4, wide * 0.4, dice(0.12, 0.3))), plain(palette.accent())
            )
        _wheels(model, np.linspace(-0.75, 0.75, dice.whole(2, 4)) * long, radius, 0.06, wide)
        front = 0.96 * long
    else:  # tractor or digger
        long, wide = dice(0.6, 0.9), dice(0.22, 0.35)
        big = radius * dice(1.6, 2.4)
        model.add(place(sh.superquadric(5, 5, 14, 26), (0.4 * long, 0, big * 1.1), (0.65 * long, wide, 0.25)), base)
        model.add(
            place(sh.superquadric(7, 7, 16, 28), (-0.4 * long, 0, big * 1.5), (0.35 * long, wide * 1.2, dice(0.35, 0.55))),
            windows(dice, base, -0.1, 0.75, 1),
        )
        _wheels(model, (-0.5 * long,), big, 0.14, wide * 1.5)
        _wheels(model, (0.8 * long,), radius, 0.1, wide * 1.2)
        reach, colour = dice(0.4, 1.0), plain(second)
        if dice.chance(0.6):
            arm = [(0.6 * long, 0, big), (long + reach * 0.5, 0, big + dice(0.2, 0.9)), (long + reach, 0, dice(0.2, 0.8))]
            for a, b in zip(arm, arm[1:]):
                model.add(sh.tube([a, b], 0.07, sh.superellipse(6, 16), caps="flat"), colour)
            model.add(
                place(
                    sh.prism(sh.polygon([(-1, -1), (1, -0.6), (-1, 1)], 3)),
                    arm[2],
                    (0.2, 0.2, wide * dice(0.8, 1.4)),
                    (90, dice(-60, 60), 0),
                ),
                plain(palette.accent()),
            )
        model.add(limb([(0.7 * long, 0, big), (0.7 * long, 0, big * 1.1 + dice(0.4, 0.7))], [0.05, 0.05], 4), BLACK)
        front = long * 1.02
    if kind != "tractor":
        model.add(ball((front, 0.25, floor + 0.22), (0.05, 0.08, 0.08), fine=False), light, mirror=True)
        model.add(ball((-long, 0.25, floor + 0.25), (0.04, 0.08, 0.06), fine=False), rear, mirror=True)


def _wing(long: float, chord: float, sweep: float, thick: float = 0.04, tip: float = 0.5) -> Shape:
    """A wing from the origin toward +y."""
    shape = sh.taper(place(sh.prism(sh.superellipse(2.5, 20), rows=6), size=(chord, thick, long / 2), at=(0, 0, long / 2)), 1 - tip)
    shape = shape.moved(lambda p: p - np.stack([sweep * p[:, 2], 0 * p[:, 0], 0 * p[:, 0]], -1))
    return place(shape, turn=(-90, 0, 0))


def craft(model: Model) -> None:
    """Aeroplanes, helicopters, rockets, boats, saucers."""
    dice, palette = model.dice, model.palette
    paint = pattern(dice, palette, 0.4)
    first, second = palette.pair()
    kind = dice.weighted({"plane": 5, "helicopter": 2, "rocket": 2, "boat": 3, "saucer": 1})
    if kind == "plane":
        wide, profile = dice(0.12, 0.3), dice.vector(0.6, 1.0, 5) * [0.5, 0.8, 1, 1, 0.7]
        body = sh.hull([-1, 1], wide * profile, -wide * profile, wide * profile * dice(0.9, 1.3), dice(2, 3))
        model.add(body, _side_print(model, windows(dice, paint, 0.1, 0.45, dice.whole(4, 12)) if dice.chance(0.5) else paint, -0.3, 0.4))
        span, chord, sweep, wing = dice(0.6, 1.4), dice(0.12, 0.35), dice(-0.1, 0.7), pattern(dice, palette, 0.4)
        for level in (-0.6 * wide, 1.4 * wide) if dice.chance(0.3) else (dice(-0.8, 0.9) * wide,):
            model.add(
                place(_wing(span, chord, sweep, tip=dice(0.3, 1)), (dice(0, 0.3), 0, level), turn=(dice(-4, 10), 0, 0)), wing, mirror=True
            )
        model.add(place(_wing(span * 0.35, chord * 0.6, sweep), (-0.85, 0, 0.05)), wing, mirror=True)
        model.add(place(_wing(dice(0.3, 0.5), chord * 0.8, dice(0.2, 0.8)), (-0.82, 0, 0), turn=(90, 0, 0)), plain(second))
        if dice.chance(0.55):
            model.add(ball((1.0, 0, 0.02), (0.12, 0.07, 0.07), fine=False), palette.accent())
            for k in range(blades := dice.whole(2, 4)):
                model.add(
                    place(ball((0, 0, 0.22), (0.02, 0.05, 0.24), fine=False), (1.05, 0, 0), turn=(360 * k / blades + 20, 0, 0)),
                    dice.pick(BLACK, palette.accent(), GREY),
                )
        else:
            model.add(
                place(
                    sh.prism(sh.superellipse(2, 18), bevel=0.2, top=0.8),
                    (dice(-0.1, 0.3), span * 0.4, -wide * 0.6),
                    (0.09, 0.09, 0.2),
                    (0, -90, 0),
                ),
                palette.accent(),
                mirror=True,
            )
        if dice.chance(0.7):
            model.add(
                ball((dice(0.2, 0.5), 0, wide * profile[3]), (0.25, wide * 0.55, wide * 0.6)), dice.pick(BLACK, hsv(0.55, 0.4, 0.8), GREY)
            )
        if dice.chance(0.5):
            _wheels(model, (dice(0.2, 0.5),), 0.09, 0.04, wide)
            model.parts[-1] = (place(model.parts[-1][0], (0, 0, -wide * 1.3 - 0.12)), *model.parts[-1][1:])
    elif kind == "helicopter":
        size = dice(0.3, 0.45)
        model.add(
            ball((0.2, 0, 0), (size * dice(1.1, 1.7), size, size), exponent=dice(2, 3)),
            mix(paint, plain(dice.pick(BLACK, hsv(0.55, 0.5, 0.9))), lambda t: edge(t.local[:, 0] + 0.6 * t.local[:, 2] - 0.55, 0.03)),
        )
        model.add(limb([(0, 0, 0.05), (-0.6, 0, 0.12), (-1.2, 0, 0.2)], [size * 0.6, 0.12, 0.06]), plain(first))
        model.add(place(_wing(0.35, 0.15, 0.3), (-1.15, 0, 0.15), turn=(90, 0, 0)), plain(second))
        model.add(limb([(0.1, 0, 0), (0.1, 0, size + 0.18)], [0.06, 0.05], 4, 8), BLACK * 3)
        for k in range(blades := dice.whole(2, 5)):
            model.add(
                place(place(sh.box(2), (0.45, 0, 0), (0.5, 0.05, 0.012)), (0.1, 0, size + 0.18), turn=(0, 0, 360 * k / blades)),
                dice.pick(BLACK, GREY),
            )
        for x in (-0.1, 0.45):
            model.add(limb([(x, 0.1, -size * 0.7), (x, size * 0.9, -size - 0.15)], [0.03, 0.03], 3, 8), GREY, mirror=True)
        model.add(
            limb(
                [(-0.4, size * 0.9, -size - 0.17), (0.7, size * 0.9, -size - 0.17), (0.85, size * 0.9, -size - 0.08)], [0.035, 0.035], 8, 8
            ),
            palette.main(),
            mirror=True,
        )
    elif kind == "rocket":
        wide = dice(0.18, 0.4)
        radius = sh.between([dice(0.5, 0.9), 1, dice(0.8, 1), 0.05], 24) * wide
        profile = np.concatenate([[[0, -1]], np.stack([radius, np.linspace(-1, 1, 24)], -1)])
        body = sh.loft(profile, sh.superellipse(2, 28))
        model.add(
            body,
            wrapped(
                by_height([-0.6, 0.55], [plain(second), paint, plain(palette.accent())], softness=0.02),
                label(dice, palette, 2),
                -0.45,
                0.3,
                2,
            )
            if dice.chance(0.6)
            else by_height([0.5], [paint, plain(second)]),
        )
        for k in range(fins := dice.whole(3, 4)):
            model.add(
                place(place(_wing(dice(0.3, 0.5), 0.3, dice(0.3, 1)), turn=(0, 90, 0)), (0, 0, -0.75), turn=(0, 0, 360 * k / fins)),
                palette.accent(),
            )
        model.add(ball((wide * 0.85, 0, 0.3), (0.06, wide * 0.4, wide * 0.4)), hsv(0.55, 0.5, 0.9))
    elif kind == "boat":
        wide, high = dice(0.25, 0.5), dice(0.2, 0.4)
        shape = sh.hull(
            [-1, 1],
            wide * np.array([dice(0.6, 0.9), 1, 0.95, 0.6, 0.03]),
            -high * np.array([0.8, 1, 1, 0.8, -0.1]),
            np.array([0.1, 0.05, 0.05, 0.12, 0.25]),
            3,
        )
        model.add(shape, by_height([dice(-0.4, 0.2), dice(0.3, 0.6)], [plain(first), plain(second), plain(palette.main())], softness=0.02))
        for k in range(dice.whole(1, 3)):
            scale = 1 - 0.25 * k
            model.add(
                place(
                    sh.superquadric(6, 6, 14, 26), (-0.25 + dice(-0.1, 0.1), 0, 0.2 + 0.26 * k), (0.4 * scale, wide * 0.65 * scale, 0.16)
                ),
                windows(dice, plain(palette.main()), -0.2, 0.6, dice.whole(2, 5)),
            )
        if dice.chance(0.5):
            model.add(limb([(0.2, 0, 0), (0.2, 0, 1.3)], [0.03, 0.03], 4, 8), hsv(0.08, 0.5, 0.4))
            sail = place(sh.prism(sh.polygon([(-1, -1), (0.9, -1), (0.9, 1.4)], 4)), (-0.15, 0, 0.7), (0.35, 0.4, 0.012), (90, 0, 0))
            model.add(sail, pattern(dice, palette, 0.4))
        for k in range(dice.whole(0, 3)):
            model.add(
                place(sh.prism(sh.superellipse(2, 18), rows=6), (-0.4 + 0.2 * k, 0, 0.6), (0.07, 0.09, dice(0.15, 0.3)), (0, -8, 0)),
                by_height([0.5], [plain(second), plain(BLACK)], softness=0.02),
            )
    else:
        model.add(sh.loft([(0, -0.2), (0.4, -0.18), (1, 0), (0.95, 0.05), (0.45, 0.18), (0, 0.2)], sh.superellipse(2, 36)), paint)
        model.add(ball((0, 0, 0.15), (0.45, 0.45, dice(0.2, 0.5))), hsv(dice(), 0.4, 0.9))
        for k in range(lamps := dice.whole(5, 10)):
            angle = sh.TAU * k / lamps
            model.add(
                ball((0.75 * np.cos(angle), 0.75 * np.sin(angle), 0.09), 0.07, fine=False), palette.accent() if k % 2 else palette.main()
            )
        for k in range(3):
            angle = sh.TAU * k / 3
            model.add(
                limb(
                    [(0.4 * np.cos(angle), 0.4 * np.sin(angle), -0.1), (0.7 * np.cos(angle), 0.7 * np.sin(angle), -0.55)],
                    [0.05, 0.04],
                    3,
                    8,
                ),
                GREY,
            )
