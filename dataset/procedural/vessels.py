"""Vessels of the procedural corpus: mugs, bowls, vases, bottles, teapots, lamps, bells, buckets, stacking rings."""

from __future__ import annotations

import numpy as np

from dataset.procedural import shapes as sh
from dataset.procedural.model import Model, ball, limb, turned
from dataset.procedural.paint import (
    WHITE,
    Paint,
    by_height,
    edge,
    hsv,
    label,
    mix,
    pattern,
    plain,
    wrapped,
)  # fmt: skip
from dataset.procedural.shapes import Shape, place


def hollow(radii, height: float, wall: float, outline=None) -> Shape:
    """A vessel open at the top: outside up, over the rim, inside down."""
    radius = sh.between(radii, 18)
    z = np.linspace(0, height, 18)
    rows = np.concatenate([
        [[0, 0]], np.stack([radius, z], -1), [[radius[-1] - wall * 0.5, height + wall * 0.4]],
        np.stack([np.maximum(radius - wall, 0.02), np.maximum(z, wall)], -1)[::-1], [[0, wall]],
    ])  # fmt: skip
    return sh.loft(rows, sh.superellipse(2, 32) if outline is None else outline)


def _glaze(model: Model, inside, low: float = -0.95, high: float = 0.9) -> Paint:
    """The paint of a vessel, with a printed picture, bands or a pattern outside and a colour of its own inside."""
    dice, palette = model.dice, model.palette
    outer = pattern(dice, palette, 0.3)
    kind = dice.pick("print", "print", "band", "bare", "bare")
    if kind == "print":
        a = dice(low, 0)
        outer = wrapped(outer, label(dice, palette, dice(1.5, 3)), a, min(high, a + dice(0.6, 1.6)), dice.whole(1, 2))
    elif kind == "band":
        edges = np.sort(dice.vector(low, high, 4))
        outer = by_height(list(edges), [outer, plain(palette.accent()), outer, plain(palette.main()), outer], softness=0.02)
    return mix(outer, plain(inside), lambda t: edge(t.uv[:, 1] - 0.5, 0.01))


def vessel(model: Model) -> None:
    """Mugs, bowls, vases, bottles, teapots, lamps, bells, baskets, stacking rings."""
    dice, palette = model.dice, model.palette
    kind = dice.weighted(
        {"mug": 5, "bowl": 2, "vase": 3, "bottle": 4, "teapot": 2, "lamp": 2, "bell": 1, "rings": 2, "turned": 2, "bucket": 2}
    )
    inside = dice.pick(WHITE, WHITE, palette.main(), palette.accent())
    if kind in ("mug", "bucket"):
        high, wall = dice(0.9, 2.4), dice(0.05, 0.12)
        radii = dice.pick([1, 1], [dice(0.6, 1), dice(0.85, 1.1)], [0.8, 1.05, 0.95], [1, dice(0.7, 0.9), 1.0], [dice(0.7, 1), 1.1, 0.8])
        square = sh.superellipse(dice(3, 6), 36) if dice.chance(0.12) else None
        model.add(hollow(radii, high, wall, square), _glaze(model, inside))
        if dice.chance(0.4):
            model.add(
                place(sh.prism(sh.superellipse(2, 24)), (0, 0, high * dice(0.6, 0.9)), (radii[-1] * 0.85, radii[-1] * 0.85, 0.01)),
                hsv(0.07, dice(0.3, 0.8), dice(0.15, 0.6)),
            )
        colour = plain(palette.main())
        if kind == "mug":
            top, bottom, reach = high * dice(0.7, 0.9), high * dice(0.1, 0.35), dice(0.35, 0.75)
            path = [
                (radii[-1] - 0.08, 0, top),
                (1 + reach, 0, top + dice(-0.1, 0.1)),
                (1 + reach, 0, bottom + dice(0, 0.2)),
                (radii[0] - 0.05, 0, bottom),
            ]
            model.add(sh.tube(sh.curve(path, 22), dice(0.07, 0.16), sh.superellipse(dice.pick(2, 4), 12)), colour)
        else:
            angle = np.linspace(0, np.pi, 20)
            arc = np.stack([0 * angle, np.cos(angle) * radii[-1], high + np.sin(angle) * dice(0.2, 1.2)], -1)
            model.add(sh.tube(arc, 0.04, sh.superellipse(2, 8)), colour)
    elif kind == "bowl":
        model.add(
            hollow(
                [dice(0.3, 0.6), dice(0.8, 1), dice(0.95, 1.2)],
                dice(0.2, 0.9),
                0.06,
                sh.flower(dice.whole(5, 12), 0.08, 60) if dice.chance(0.2) else None,
            ),
            _glaze(model, inside),
        )
        for _ in range(dice.pick(0, 0, dice.whole(2, 6))):
            model.add(ball((*dice.vector(-0.4, 0.4, 2), dice(0.4, 0.8)), dice(0.2, 0.38)), palette.accent())
    elif kind == "vase":
        model.add(
            hollow(
                dice.vector(0.3, 1.0, dice.whole(3, 6)), dice(1.2, 3), 0.06, dice.pick(None, None, sh.flower(dice.whole(4, 9), 0.15, 60))
            ),
            _glaze(model, inside),
        )
        if dice.chance(0.3):
            model.add(limb([(0.5, 0, 2 * 0.6), (1.1, 0, 1.2), (0.6, 0, 0.4)], [0.07, 0.07], 16, 8), plain(palette.main()), mirror=False)
    elif kind == "bottle":
        wide, high, neck = 1.0, dice(1.8, 4), dice(0.2, 0.6)
        shoulder, tall = dice(0.55, 0.85), 24
        z = np.linspace(0, 1, tall)
        waist = 1 - dice.pick(0, 0, dice(0.05, 0.3)) * np.exp(-(((z - dice(0.2, 0.5)) / 0.12) ** 2))
        radius = wide * waist * (neck + (1 - neck) / (1 + np.exp((z - shoulder) / dice(0.015, 0.07))))
        profile = np.concatenate([[[0, 0], [radius[0] * 0.93, 0]], np.stack([radius, 0.05 + z * high], -1), [[0, 0.05 + high]]])
        outline = dice.pick(
            sh.superellipse(2, 30), sh.superellipse(2, 30), sh.superellipse(5, 36), sh.superellipse(2, 30) * [1, dice(0.4, 0.7)]
        )
        glass = pattern(dice, palette, 0.6)
        model.add(
            sh.loft(profile, outline),
            wrapped(glass, label(dice, palette, 2), dice(-0.85, -0.5), dice(-0.2, 2 * shoulder - 1.15), dice.whole(1, 2))
            if dice.chance(0.8)
            else glass,
        )
        cap = dice(0.1, 0.35)
        model.add(
            place(
                sh.prism(sh.gear(16, 0.06) if dice.chance(0.4) else sh.superellipse(2, 24), bevel=0.1),
                (0, 0, high + cap),
                (neck * 1.12, neck * 1.12, cap),
            ),
            plain(palette.accent()),
        )
        if dice.chance(0.2):  # a pump or a spray head
            model.add(place(sh.superquadric(5, 4), (0.3, 0, high + 2 * cap + 0.2), (0.6, 0.25, 0.2)), plain(palette.main()))
    elif kind == "teapot":
        body = sh.loft(
            np.stack([sh.between([0.5, dice(0.9, 1.1), dice(0.8, 1), 0.4, 0.02], 24), np.linspace(0, dice(1.1, 1.8), 24)], -1),
            sh.superellipse(2, 32),
        )
        top = body.box()[1][2]
        glaze = pattern(dice, palette, 0.25)
        model.add(body, wrapped(glaze, label(dice, palette, 3), -0.6, 0.3, 2) if dice.chance(0.3) else glaze)
        model.add(
            limb([(0.7, 0, 0.4 * top), (1.2, 0, 0.6 * top), (dice(1.4, 1.8), 0, top * dice(0.8, 1.1))], [0.28, 0.17, 0.1], 14),
            plain(palette.main()),
        )
        model.add(
            limb([(-0.6, 0, 0.8 * top), (-1.4, 0, 0.85 * top), (-1.4, 0, 0.4 * top), (-0.8, 0, 0.25 * top)], [0.09, 0.09], 18),
            plain(palette.main()),
        )
        model.add(ball((0, 0, top + 0.05), (0.15, 0.15, 0.13)), palette.accent())
    elif kind == "lamp":
        base = turned(dice)
        model.add(place(base, (0, 0, 0.6), (0.3, 0.3, 0.6)), pattern(dice, palette, 0.4))
        shade = hollow(
            [dice(0.6, 0.9), dice(0.3, 0.6)], dice(0.5, 0.9), 0.02, dice.pick(None, sh.flower(16, 0.05, 64), sh.superellipse(6, 32))
        )
        model.add(place(shade, (0, 0, 1.1)), pattern(dice, palette, 0.3))
        model.add(ball((0, 0, 1.3), 0.18), hsv(0.14, 0.2, 1))
    elif kind == "bell":
        model.add(place(hollow([dice(0.95, 1.2), 0.7, 0.55, 0.2], 1.3, 0.06), turn=(0, 0, 0)), pattern(dice, palette, 0.4))
        model.add(place(turned(dice), (0, 0, 1.7), (0.2, 0.2, 0.5)), pattern(dice, palette, 0.4))
    elif kind == "rings":
        z = 0.0
        model.add(limb([(0, 0, 0), (0, 0, 2.2)], [0.12, 0.1], 4), plain(WHITE))
        angle, rings = np.linspace(0, sh.TAU, 31), dice.whole(3, 6)
        square = dice.pick(2, 2, 4)
        for k in range(rings):
            radius, thick = 0.75 - 0.45 * k / rings, dice(0.14, 0.24)
            ring = np.stack([radius * np.cos(angle), radius * np.sin(angle), 0 * angle + z + thick], -1)
            model.add(
                sh.tube(ring, thick, sh.superellipse(square, 14), closed=True),
                hsv(k / rings + dice(-0.05, 0.05), dice(0.5, 1), dice(0.6, 1)) if dice.chance(0.6) else palette.main(),
            )
            z += 1.9 * thick
        model.add(ball((0, 0, z + 0.2), dice(0.15, 0.3)), palette.accent())
    else:
        for k in range(dice.whole(1, 3)):
            shape = place(turned(dice, 34), (1.1 * k, dice(-0.4, 0.4), 0), (dice(0.3, 0.6), dice(0.3, 0.6), dice(0.4, 1)))
            model.add(place(shape, (0, 0, -shape.box()[0][2])), pattern(dice, palette, 0.15))
