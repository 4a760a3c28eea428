"""Animals of the procedural corpus: on four legs, sitting soft toys, birds, fish, insects."""

from __future__ import annotations

import numpy as np

from dataset.procedural import shapes as sh
from dataset.procedural.model import Model, ball, limb
from dataset.procedural.paint import (
    BLACK,
    WHITE,
    Paint,
    by_height,
    cells,
    clouds,
    decal,
    dots,
    edge,
    gradient,
    hsv,
    mix,
    mottled,
    pattern,
    plain,
    stripes,
)  # fmt: skip
from dataset.procedural.shapes import place


def eyes(model: Model, at, radius: float) -> None:
    """A pair of eyes at the sides of the face: beads, or white with an iris and a pupil, looking to the front."""
    dice, at = model.dice, np.asarray(at, float)
    if dice.chance(0.45):
        model.add(ball(at, radius, fine=False), BLACK, mirror=True)
        return
    iris = hsv(dice(), dice(0.4, 1), dice(0.3, 0.9))
    outward = np.array([0.8, 0.5 if at[1] > 0 else -0.5, 0.15])
    outward /= np.linalg.norm(outward)
    size = dice(0.25, 0.6)

    def paint(t):
        height = t.local @ outward
        seen = mix(plain(WHITE), plain(iris), lambda s: edge(height - size, 0.1))
        return mix(seen, plain(BLACK), lambda s: edge(height - size - 0.55 * (1 - size), 0.08))(t)

    model.add(ball(at, radius), paint, mirror=True)


def _coat(model: Model) -> tuple[Paint, np.ndarray]:
    """The paint of an animal's body and the colour of its lighter parts."""
    dice, palette = model.dice, model.palette
    first, second = palette.pair()
    kind = dice.weighted({"plain": 4, "spots": 2, "stripes": 2, "blotches": 3, "gradient": 1, "pattern": 2, "cells": 1})
    if kind == "plain":
        coat = plain(first)
    elif kind == "spots":
        coat = dots(dice, first, second)
    elif kind == "stripes":
        coat = stripes(dice, [first, second], dice.pick((1, 0, 0), (1, 0, 0.3), (0, 0, 1)))
    elif kind == "blotches":
        coat = clouds(dice, [first, second, first], hard=True)
    elif kind == "gradient":
        coat = gradient(dice, [first, second])
    elif kind == "cells":
        coat = cells(dice, [first, second, palette.main()])
    else:
        coat = pattern(dice, palette, 0.1)
    belly = second if dice.chance(0.5) else first * 0.5 + 0.5 * WHITE
    if dice.chance(0.5):
        coat = mottled(dice, coat, dice(0.05, 0.25))
    return coat, belly


def _with_belly(dice, coat: Paint, belly) -> Paint:
    return by_height([dice(-0.6, -0.1)], [plain(belly), coat], softness=0.3) if dice.chance(0.45) else coat


def _head(model: Model, at, size: float, coat: Paint, belly) -> None:
    """A head with muzzle, ears or horns and eyes, looking to +x."""
    dice, at = model.dice, np.asarray(at, float)
    long, wide, high = size * dice(0.85, 1.3), size * dice(0.75, 1.05), size * dice(0.8, 1.15)
    model.add(ball(at, (long, wide, high), exponent=dice(1.9, 2.8)), coat)
    kind = dice.pick("muzzle", "muzzle", "beak", "snout", "flat", "trunk")
    front = at + [long * 0.8, 0, -0.2 * high]
    if kind == "muzzle":
        reach = size * dice(0.3, 0.75)
        model.add(ball(front, (reach, wide * dice(0.4, 0.7), high * dice(0.35, 0.55))), plain(belly) if dice.chance(0.6) else coat)
        model.add(
            ball(front + [reach * 0.95, 0, high * 0.15], size * dice(0.1, 0.2), fine=False),
            BLACK if dice.chance(0.7) else model.palette.accent(),
        )
    elif kind == "beak":
        model.add(
            place(
                sh.prism(sh.superellipse(2, 16), top=0.05),
                front + [0.2 * size, 0, 0.1 * high],
                (size * 0.25, size * dice(0.2, 0.4), size * dice(0.3, 0.6)),
                (0, 90, 0),
            ),
            hsv(dice(0.03, 0.15), 0.9, dice(0.5, 1)),
        )
    elif kind == "snout":
        model.add(
            limb([at, front, front + [size * dice(0.4, 1.1), 0, -size * dice(0, 0.3)]], [high * 0.7, high * 0.5, high * dice(0.2, 0.4)]),
            coat,
        )
    elif kind == "trunk":
        drop = size * dice(0.8, 1.8)
        model.add(
            limb(
                [
                    at,
                    front + [0.3 * size, 0, 0],
                    front + [0.5 * size, 0, -drop],
                    front + [dice(0.3, 1.2) * size, 0, -drop * dice(0.9, 1.3)],
                ],
                [0.5 * size, 0.32 * size, 0.14 * size],
                16,
            ),
            coat,
        )
    if dice.chance(0.35):  # mouth: a dark line
        model.add(
            limb(
                [
                    front + [0.25 * size, -0.3 * wide, -0.3 * high],
                    front + [0.42 * size, 0, -0.4 * high],
                    front + [0.25 * size, 0.3 * wide, -0.3 * high],
                ],
                [0.035 * size] * 2,
            ),
            BLACK,
        )
    ears = dice.weighted({"round": 3, "pointed": 3, "long": 2, "flop": 2, "none": 2, "horns": 2, "antlers": 1, "crest": 1})
    side = at + [-0.1 * size, 0.55 * wide, 0.75 * high]
    if ears == "round":
        r = size * dice(0.25, 0.5)
        model.add(
            ball(side + [0, 0.1, 0.1 * size], (0.35 * r, r, r)),
            by_height([0.3], [coat, plain(belly)], 0) if dice.chance(0.5) else coat,
            mirror=True,
        )
    elif ears == "pointed":
        ear = place(
            sh.prism(sh.superellipse(2, 14), top=0.05),
            side + [0, 0, 0.25 * size],
            (0.12 * size, 0.3 * size, size * dice(0.3, 0.6)),
            (dice(-25, 5), 0, 0),
        )
        model.add(ear, coat, mirror=True)
    elif ears == "long":
        rise = size * dice(0.9, 1.8)
        model.add(
            limb(
                [side, side + [-0.1, 0.15, rise * 0.5], side + [dice(-0.5, 0.3) * size, dice(0.1, 0.5) * size, rise]],
                [0.14 * size, 0.24 * size, 0.08 * size],
            ),
            coat,
            mirror=True,
        )
    elif ears == "flop":
        model.add(
            ball(side + [0, 0.45 * wide, -0.6 * high], (0.3 * size, 0.12 * size, size * dice(0.4, 0.8)), (dice(0, 20), 0, 0)),
            plain(model.palette.main()),
            mirror=True,
        )
    elif ears in ("horns", "antlers"):
        colour = dice.pick(WHITE * 0.9, BLACK, hsv(0.1, 0.4, 0.6))
        out, up = dice(0.3, 1.2) * size, dice(0.2, 1.2) * size
        horn = [side, side + [0, out * 0.7, up * 0.3], side + [dice(-0.4, 0.5) * size, out, up]]
        model.add(
            limb(horn, [0.16 * size, 0.12 * size, 0.03 * size]),
            stripes(dice, [colour, colour * 0.7]) if dice.chance(0.3) else plain(colour),
            mirror=True,
        )
        if ears == "antlers":
            model.add(limb([horn[1], horn[1] + [0.3 * size, 0.1, 0.4 * size]], [0.1 * size, 0.03 * size]), plain(colour), mirror=True)
    elif ears == "crest":
        for k in range(5):
            model.add(
                ball(at + [size * (0.5 - 0.3 * k), 0, high * (1.0 - 0.07 * k * k)], (0.15 * size, 0.06 * size, size * dice(0.15, 0.35))),
                model.palette.accent(),
            )
    if dice.chance(0.2):  # a hat
        model.add(
            place(
                sh.prism(sh.superellipse(2, 22), top=dice.pick(0.02, 0.9)), at + [0, 0, high * 1.35], (0.5 * size, 0.5 * size, 0.5 * size)
            ),
            pattern(dice, model.palette, 0.3),
        )
    eyes(model, at + [0.68 * long, 0.48 * wide, 0.3 * high], size * dice(0.1, 0.26))


def _tail(model: Model, at, size: float, coat: Paint) -> None:
    dice, at = model.dice, np.asarray(at, float)
    kind = dice.pick("thin", "thick", "ball", "bush", "none", "curl")
    back = size * dice(0.4, 1.3)
    end = at + [-back, 0, size * dice(-0.6, 0.8)]
    if kind == "thin":
        model.add(limb([at, (at + end) / 2 + [0, 0, dice(-0.2, 0.3)], end], [0.08 * size, 0.05 * size]), coat)
        if dice.chance(0.5):
            model.add(ball(end, size * dice(0.1, 0.18), fine=False), model.palette.main())
    elif kind == "thick":
        model.add(limb([at + [0.2 * size, 0, 0], (at + end) / 2, end], [0.4 * size, 0.22 * size, 0.04 * size], 14), coat)
    elif kind == "ball":
        model.add(ball(at, size * dice(0.15, 0.35)), coat)
    elif kind == "bush":
        model.add(
            limb([at, (at + end) / 2, end], [0.1 * size, 0.3 * size, 0.08 * size]),
            by_height([dice(-0.5, 0.2)], [plain(model.palette.main()), coat], 0),
        )
    elif kind == "curl":
        angle = np.linspace(0, dice(5, 10), 7)
        model.add(
            limb(
                at + np.stack([-0.2 * size * np.sin(angle) - 0.05, 0.03 * angle, 0.2 * size * (1 - np.cos(angle))], -1),
                [0.07 * size] * 2,
                24,
            ),
            coat,
        )


def _quadruped(model: Model) -> None:
    dice = model.dice
    coat, belly = _coat(model)
    length, wide, high, leg = dice(0.7, 1.5), dice(0.28, 0.6), dice(0.3, 0.65), dice(0.2, 1.1)
    ground = leg + 0.6 * high
    middle, spread = ground + dice(-0.05, 0.08), dice.vector(0.75, 1.1, 5)
    body = sh.hull(
        [-length, length],
        wide * spread * [0.5, 1, 0.95, 1, 0.6],
        middle - high * spread[::-1] * [0.5, 0.9, 0.8, 0.95, 0.5],
        middle + high * spread * [0.6, 1, 0.85, 1, 0.7],
        dice(1.9, 3),
    )
    model.add(body, _with_belly(dice, coat, belly))
    thick = min(wide, high) * dice(0.22, 0.5)
    sock = model.palette.main()
    leg_paint = by_height([dice(-0.85, -0.3)], [plain(sock), coat]) if dice.chance(0.6) else coat
    step = dice(-0.25, 0.25) if dice.chance(0.6) else 0.0
    for x, sign in ((0.72 * length, 1), (-0.72 * length, -1)):
        hip = np.array([x, wide * 0.62, ground])
        knee, foot = hip + [sign * dice(-0.1, 0.15), 0.02, -0.5 * leg - 0.3 * high], np.array([x + step * sign, wide * 0.65, thick * 0.7])
        model.add(limb([hip, knee, foot], [thick * 1.3, thick * dice(0.7, 1), thick * dice(0.6, 1.1)], 8, 10), leg_paint, mirror=True)
        if dice.chance(0.5):
            model.add(
                ball(foot + [0.25 * thick, 0, -0.25 * thick], (thick * 1.4, thick * 1.05, thick * 0.6), fine=False),
                plain(sock),
                mirror=True,
            )
    size = dice(0.28, 0.6)
    head = np.array([length + dice(0.0, 0.6), 0, ground + high * 0.6 + dice(0, 1.2) * dice()])
    model.add(
        limb(
            [(length * 0.7, 0, ground + high * 0.2), (length * 0.95, 0, (ground + head[2]) / 2 + 0.1), head],
            [high * 0.75, size * 0.62, size * 0.62],
        ),
        coat,
    )
    _head(model, head, size, coat, belly)
    _tail(model, (-length * 0.95, 0, ground + high * 0.3), dice(0.6, 1.2), coat)
    if dice.chance(0.25):  # plates or a mane along the back
        colour = plain(model.palette.accent())
        for k in range(dice.whole(4, 9)):
            x = length * (0.8 - 0.2 * k)
            model.add(place(sh.prism(sh.superellipse(2, 10), top=0.05), (x, 0, middle + high), (0.13, 0.05, dice(0.12, 0.3))), colour)
    if dice.chance(0.2):  # saddle or cloth
        model.add(
            place(sh.superquadric(4, 4), (0, 0, middle + 0.25 * high), (0.3 * length, wide * 1.06, high * 0.82)),
            pattern(dice, model.palette, 0.3),
        )


def _sitting(model: Model) -> None:
    """A soft toy that sits."""
    dice = model.dice
    coat, belly = _coat(model)
    wide, high = dice(0.5, 0.75), dice(0.6, 0.95)
    body = sh.taper(ball((0, 0, high), (wide * dice(0.75, 1), wide, high)), dice(-0.1, 0.4))
    model.add(body, decal(coat, np.broadcast_to(belly, (8, 8, 3)), 1, 0, (-0.62, -0.8, 0.62, 0.5), oval=True) if dice.chance(0.6) else coat)
    size = dice(0.45, 0.75)
    shoulder = 2 * high - 0.35
    reach, drop = dice(0.3, 0.9), dice(-0.7, 0.5)
    model.add(
        limb(
            [(0, wide * 0.6, shoulder), (0.2, wide + 0.2, shoulder + drop * 0.4), (reach, wide + dice(-0.2, 0.4), shoulder + drop)],
            [0.2, 0.2, dice(0.15, 0.24)],
        ),
        coat,
        mirror=True,
    )
    leg, foot = dice(0.6, 1.1), dice(0.18, 0.3)
    model.add(
        limb([(0, wide * 0.6, 0.25), (leg * 0.6, wide * 0.9, 0.25), (leg, wide * dice(0.7, 1.3), 0.25)], [0.28, 0.24, 0.2]),
        coat,
        mirror=True,
    )
    model.add(ball((leg + 0.1, wide, 0.28), (foot * 0.6, foot, foot * 1.2)), plain(belly), mirror=True)
    _head(model, (0.05, 0, 2 * high + 0.55 * size), size, coat, belly)
    _tail(model, (-wide * 0.8, 0, 0.4), 0.7, coat)
    if dice.chance(0.35):
        angle = np.linspace(0, sh.TAU, 25)
        model.add(
            sh.tube(np.stack([0.42 * np.cos(angle), 0.42 * np.sin(angle), 0 * angle + 2 * high - 0.08], -1), 0.09, closed=True),
            model.palette.accent(),
        )


def _bird(model: Model) -> None:
    dice = model.dice
    coat, belly = _coat(model)
    long, wide, tilt = dice(0.5, 1.0), dice(0.35, 0.6), dice(-40, 0)
    leg = dice(0.1, 0.9)
    at = np.array([0, 0, leg + 0.6])
    model.add(ball(at, (long, wide, wide * dice(0.9, 1.2)), (0, tilt, 0)), _with_belly(dice, coat, belly))
    size = dice(0.22, 0.42)
    head = at + [long * dice(0.6, 1.0), 0, dice(0.3, 1.3)]
    model.add(limb([at + [0.5 * long, 0, 0.1], (at + head) / 2 + [0.2, 0, 0], head], [0.3 * wide + 0.1, size * 0.6, size * 0.6]), coat)
    model.add(ball(head, size), coat)
    model.add(
        limb([head, head + [size * dice(1.2, 2.6), 0, -size * dice(0, 0.8)]], [size * 0.4, 0.03]), hsv(dice(0.02, 0.15), 0.9, dice(0.6, 1))
    )
    eyes(model, head + [0.55 * size, 0.72 * size, 0.25 * size], size * dice(0.15, 0.3))
    wing = dice.pick("folded", "open", "raised")
    turn = {"folded": (12, tilt, 8), "open": (dice(65, 100), 0, dice(-20, 20)), "raised": (dice(110, 160), 0, 0)}[wing]
    span = wide * dice(1.0, 2.2) if wing != "folded" else wide * 0.8
    shape = place(ball((0, 0, -span * 0.8), (long * 0.6, 0.07, span)), at + [-0.1, wide * 0.95, 0.2], turn=turn)
    model.add(shape, pattern(dice, model.palette, 0.4), mirror=True)
    model.add(
        place(
            sh.prism(sh.superellipse(4, 20), top=dice(0.3, 1.3)),
            at + [-long, 0, -0.1],
            (0.05, dice(0.1, 0.35), dice(0.25, 0.7)),
            (0, -dice(50, 120), 0),
        ),
        pattern(dice, model.palette, 0.4),
    )
    foot = plain(hsv(dice(0.02, 0.14), 0.9, 0.85))
    model.add(limb([at + [0, 0.2, -0.3], (0, 0.22, 0.05)], [0.07, 0.05], 5, 8), foot, mirror=True)
    model.add(ball((0.12, 0.22, 0.04), (0.25, 0.14, 0.05), fine=False), foot, mirror=True)


def _fish(model: Model) -> None:
    dice = model.dice
    coat, belly = _coat(model)
    high, wide = dice.vector(0.2, 0.75, 4), dice(0.15, 0.45)
    model.add(
        sh.hull(
            [-1, 1], np.array([0.1, 0.7, 1, 0.8, 0.25]) * wide, -np.append(high, 0.1), np.append(high, 0.1)[[0, 2, 1, 3, 4]], dice(1.8, 2.5)
        ),
        _with_belly(dice, coat, belly),
    )
    fin = pattern(dice, model.palette, 0.5)
    tail = dice(0.3, 0.8)
    for sign in (1, -1):
        model.add(
            place(ball((0, 0, tail * 0.6), (0.2, 0.04, tail * 0.6), fine=False), (-0.95, 0, 0), turn=(0, (-90 + sign * dice(15, 60)), 0)),
            fin,
        )
    model.add(place(ball((0, 0, 0), (dice(0.3, 0.7), 0.05, dice(0.15, 0.5))), (0, 0, high[1:3].mean())), fin)
    model.add(
        place(ball((-0.2, 0, 0), (dice(0.2, 0.5), 0.03, 0.12)), (0.3, wide * 0.9, -0.1), turn=(0, dice(-40, 40), -dice(20, 60))),
        fin,
        mirror=True,
    )
    eyes(model, (0.72, wide * 0.55, 0.1), dice(0.06, 0.13))


def _bug(model: Model) -> None:
    """Beetles, spiders, crabs, caterpillars."""
    dice = model.dice
    coat, belly = _coat(model)
    segments, x = dice.whole(1, 5), 0.0
    sizes = dice.vector(0.3, 0.6, segments) if segments < 4 else np.full(segments, dice(0.3, 0.45))
    for k, size in enumerate(sizes):
        model.add(
            ball((x, 0, 0.55), (size * dice(0.9, 1.3), size * dice(0.8, 1.2), size * dice(0.6, 1))),
            coat if k % 2 else dice.pick(coat, plain(belly)),
        )
        x -= size * 1.35
    legs = dice.whole(2, 4)
    reach, knee = dice(0.5, 1.2), dice(0.4, 1.1)
    colour = plain(model.palette.main())
    for k in range(legs):
        base = (x + 0.5) * k / max(legs - 1, 1) * (segments > 1) + (0 if segments > 1 else 0.3 - 0.6 * k / max(legs - 1, 1))
        fan = dice(-0.2, 0.2) + (0.4 - 0.8 * k / max(legs - 1, 1))
        model.add(
            limb(
                [(base, 0.25, 0.5), (base + fan * 0.5, 0.3 + reach * 0.5, knee), (base + fan, 0.3 + reach, 0.05)], [0.09, 0.07, 0.04], 12, 8
            ),
            colour,
            mirror=True,
        )
    size = dice(0.2, 0.4)
    model.add(ball((sizes[0] + 0.4 * size, 0, 0.62), size), colour)
    eyes(model, (sizes[0] + size * 1.1, size * 0.55, 0.75), size * dice(0.25, 0.5))
    if dice.chance(0.6):
        model.add(
            limb(
                [(sizes[0] + 0.3, 0.1, 0.8), (sizes[0] + 0.6, 0.25, 1.1), (sizes[0] + dice(0.5, 0.9), dice(0.2, 0.6), dice(1, 1.4))],
                [0.03, 0.03],
                10,
                8,
            ),
            BLACK,
            mirror=True,
        )
    if dice.chance(0.4):  # wings
        wing = place(ball((-0.6, 0, 0), (0.7, dice(0.25, 0.5), 0.03)), (0, 0.2, 0.95), turn=(dice(-10, 50), dice(-10, 30), -dice(20, 80)))
        model.add(wing, pattern(dice, model.palette, 0.2), mirror=True)


def creature(model: Model) -> None:
    """Animals: on four legs, sitting soft toys, birds, fish, insects."""
    model.dice.pick(_quadruped, _quadruped, _quadruped, _sitting, _sitting, _bird, _fish, _bug)(model)
