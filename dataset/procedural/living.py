"""People and plants of the procedural corpus, as toys are made of them."""

from __future__ import annotations

import numpy as np

from dataset.procedural import shapes as sh
from dataset.procedural.animals import eyes
from dataset.procedural.model import Model, ball, limb, outline_any, turned
from dataset.procedural.paint import (
    BLACK,
    WHITE,
    by_height,
    clouds,
    decal,
    dots,
    gradient,
    hsv,
    label,
    mottled,
    pattern,
    plain,
    stripes,
)  # fmt: skip
from dataset.procedural.shapes import place


def figure(model: Model) -> None:
    """People, robots and dolls: standing, with arms in a pose, clothes and sometimes a base or a thing in the hand."""
    dice, palette = model.dice, model.palette
    robot = dice.chance(0.25)
    skin = palette.main() if robot or dice.chance(0.2) else hsv(dice(0.04, 0.1), dice(0.25, 0.65), dice(0.35, 1))
    shirt, trousers = pattern(dice, palette, 0.45), plain(palette.main()) if dice.chance(0.7) else pattern(dice, palette, 0)
    shoes = plain(dice.pick(BLACK, palette.accent(), palette.main()))
    leg, torso, wide, head = dice(0.3, 1.0), dice(0.55, 0.95), dice(0.25, 0.5), dice(0.2, 0.55)
    soft = dice(3, 7) if robot else dice(1.9, 3.5)
    stance, thick = dice(0.5, 0.9) * wide, wide * dice(0.25, 0.5)
    stride = dice(-0.3, 0.3) if dice.chance(0.4) else 0.0
    dress = dice.chance(0.2)
    for sign in (1, -1):
        path = [
            (0, sign * stance * 0.8, leg + 0.15),
            (0.05 + stride * sign * 0.5, sign * stance, leg * 0.5),
            (stride * sign, sign * stance, 0.12),
        ]
        model.add(
            limb(path, [thick * 1.15, thick, thick * dice(0.7, 1)], 8),
            plain(skin) if dress else by_height([-0.7], [shoes, trousers], softness=0.02),
        )
        model.add(ball((stride * sign + 0.08, sign * stance, 0.09), (thick * 1.7, thick * 1.1, 0.1), exponent=2.6), shoes)
    chest = leg + torso
    if dress:
        model.add(
            place(
                sh.prism(sh.superellipse(2, 26), top=dice(0.3, 0.6), rows=8),
                (0, 0, leg * 0.7 + torso / 2),
                (wide * 1.4, wide * 1.5, torso / 2 + leg * 0.3),
            ),
            shirt,
        )
    else:
        body = place(
            sh.taper(sh.superquadric(soft, soft), dice(-0.45, 0.2)), (0, 0, leg + torso / 2), (wide * dice(0.5, 0.8), wide, torso * 0.56)
        )
        paint = shirt
        if dice.chance(0.5):
            a = dice(0.3, 0.7)
            paint = decal(shirt, label(dice, palette, size=96), 1, 0, (-a, dice(-0.3, 0), a, dice(0.4, 0.8)), dice.chance(0.3))
        model.add(body, by_height([dice(-0.75, -0.4)], [trousers, paint], softness=0.02))
        if dice.chance(0.4):
            model.add(
                place(sh.prism(sh.superellipse(soft, 24), bevel=0.1), (0, 0, leg + 0.16 * torso), (wide * 0.7, wide * 1.02, 0.05)),
                palette.accent(),
            )
    sleeve = dice.pick(shirt, plain(skin), by_height([dice(-0.5, 0.5)], [plain(skin), shirt], softness=0.02))
    same = dice.chance(0.5)
    pose = None
    for sign in (1, -1):
        if pose is None or not same:
            pose = (dice(-0.2, 0.5), dice(0.1, 0.5), dice(-0.35, 0.2), dice(-0.1, 0.8), dice(0.05, 0.7), dice(-0.8, 0.9))
        shoulder = np.array([0, sign * wide * 0.95, chest - 0.12])
        elbow, hand = shoulder + [pose[0] * 0.5, sign * pose[1], pose[2]], shoulder + [pose[3], sign * pose[4], pose[5] * torso * 0.9]
        arm = thick * dice(0.6, 0.85)
        model.add(limb([shoulder, elbow, hand], [arm, arm, arm * 0.8], 9), sleeve)
        model.add(ball(hand, arm * dice(1.1, 1.5), fine=False), plain(skin))
        if dice.chance(0.2):  # holds a stick, a sword, a shield, a ball
            thing = dice.pick("stick", "blade", "shield", "ball")
            paint = pattern(dice, palette, 0.4)
            if thing == "stick":
                model.add(limb([hand - [0, 0, 0.4], hand + [0.1, 0, dice(0.4, 1.1)]], [0.04, 0.04], 4, 8), paint)
            elif thing == "blade":
                model.add(place(sh.prism(sh.superellipse(2, 10), top=0.2), hand + [0.25, 0, 0.25], (0.03, 0.08, 0.55), (0, 45, 0)), paint)
            elif thing == "shield":
                model.add(place(sh.prism(outline_any(dice), bevel=0.2), hand + [0, sign * 0.1, 0], (0.35, 0.35, 0.05), (90, 0, 0)), paint)
            else:
                model.add(ball(hand + [0.15, 0, 0.1], dice(0.12, 0.3)), paint)
    top = np.array([0.03, 0, chest + head * 0.95])
    model.add(limb([(0, 0, chest - 0.1), top], [thick * 0.7, thick * 0.7], 4), plain(skin))
    face = plain(skin)
    model.add(place(sh.superquadric(soft, soft), top, (head * dice(0.8, 1), head * dice(0.75, 1), head)), face)
    eyes(model, top + [head * 0.78, head * 0.36, head * 0.12], head * dice(0.09, 0.2))
    if not robot:
        model.add(ball(top + [head * 0.92, 0, -head * 0.12], head * dice(0.08, 0.25), fine=False), plain(skin * dice(0.75, 1)))
        model.add(
            ball(top + [head * 0.72, 0, -head * 0.48], (head * 0.1, head * dice(0.15, 0.3), head * 0.05), fine=False),
            plain(dice.pick(BLACK, hsv(0, 0.7, 0.6))),
        )
    cover = dice.weighted({"hair": 4, "cap": 3, "helmet": 2, "hat": 2, "none": 1, "antenna": 2 if robot else 0.2})
    hair = plain(dice.pick(BLACK, hsv(0.08, 0.7, 0.3), hsv(0.13, 0.6, 0.85), hsv(0.03, 0.8, 0.5), palette.accent()))
    if cover == "hair":
        model.add(ball(top + [-0.15 * head, 0, 0.22 * head], (head * 0.98, head * 1.05, head * dice(0.85, 1))), hair)
        if dice.chance(0.4):
            model.add(limb([top + [-0.7 * head, 0, 0.2 * head], top + [-head, 0, -head * dice(0.3, 1.5)]], [head * 0.5, head * 0.3]), hair)
    elif cover in ("cap", "helmet"):
        paint = pattern(dice, palette, 0.5)
        model.add(ball(top + [-0.05 * head, 0, 0.42 * head], (head * 1.06, head * 1.08, head * 0.78)), paint)
        if cover == "cap":
            model.add(ball(top + [head * 0.85, 0, 0.4 * head], (head * 0.6, head * 0.6, head * 0.09)), paint)
    elif cover == "hat":
        paint = pattern(dice, palette, 0.6)
        model.add(
            place(sh.prism(sh.superellipse(2, 26)), top + [0, 0, 0.6 * head], (head * dice(1.3, 1.9), head * 1.5, 0.06 * head)), paint
        )
        model.add(
            place(
                sh.prism(sh.superellipse(2, 26), top=dice(0.1, 1)),
                top + [0, 0, 1.05 * head],
                (head * 0.8, head * 0.8, head * dice(0.4, 0.8)),
            ),
            paint,
        )
    elif cover == "antenna":
        model.add(limb([top, top + [0, 0, head * 1.7]], [0.04, 0.03], 4, 8), palette.accent())
        model.add(ball(top + [0, 0, head * 1.75], head * 0.16, fine=False), palette.accent())
    if dice.chance(0.2):  # cape or rucksack
        shape = place(
            sh.superquadric(5, 5), (-wide * 0.8, 0, leg + torso * 0.55), (wide * dice(0.1, 0.4), wide * 0.85, torso * dice(0.4, 0.75))
        )
        model.add(shape, pattern(dice, palette, 0.4))
    if dice.chance(0.25):
        model.add(
            place(
                sh.prism(dice.pick(sh.superellipse(2, 30), sh.superellipse(6, 30)), bevel=0.2),
                (0, 0, -0.05),
                (wide * dice(1.5, 2.4), wide * dice(1.5, 2.4), 0.06),
            ),
            pattern(dice, palette, 0.6),
        )


def plant(model: Model) -> None:
    """Potted plants, trees, flowers, cacti, mushrooms, fruit."""
    dice, palette = model.dice, model.palette
    green = hsv(dice(0.2, 0.42), dice(0.4, 0.95), dice(0.3, 0.85)) if dice.chance(0.75) else palette.main()
    leaf = dice.pick(
        plain(green),
        gradient(dice, [green * 0.6, green]),
        clouds(dice, [green, green * 0.7, palette.main()]),
        mottled(dice, plain(green), 0.3),
    )
    kind = dice.pick("leaves", "leaves", "tree", "flowers", "cactus", "mushroom", "fruit", "conifer")
    ground = 0.0
    if kind not in ("mushroom", "fruit") and dice.chance(0.75):
        pot = place(
            sh.taper(turned(dice), -0.3)
            if dice.chance(0.4)
            else sh.prism(dice.pick(sh.superellipse(2, 26), sh.superellipse(6, 28)), top=dice(1.0, 1.5), rows=6),
            (0, 0, 0.3),
            (dice(0.25, 0.4), dice(0.25, 0.4), dice(0.2, 0.4)),
        )
        model.add(pot, pattern(dice, palette, 0.3))
        ground = pot.box()[1][2]
        model.add(ball((0, 0, ground), (0.25, 0.25, 0.04), fine=False), np.array([0.2, 0.13, 0.09]))
    if kind in ("leaves", "flowers"):
        for k in range(dice.whole(4, 13)):
            angle, rise, out = k * 2.4 + dice(-0.3, 0.3), dice(0.3, 1.3), dice(0.1, 0.9)
            end = np.array([np.cos(angle) * out, np.sin(angle) * out, ground + rise])
            path = [(0.05 * np.cos(angle), 0.05 * np.sin(angle), ground), end * [0.35, 0.35, 0.8], end]
            model.add(limb(path, [0.03, 0.02], 6, 6), green * 0.7)
            if kind == "leaves":
                size = dice(0.2, 0.5)
                blade = ball((size * 0.8, 0, 0), (size, size * dice(0.2, 0.5), 0.02), fine=False)
                model.add(place(blade, end, turn=(dice(-20, 20), dice(-50, 60), np.degrees(angle))), leaf)
            else:
                colours, petals = (palette.accent(), palette.accent()), dice.whole(4, 8)
                bloom = place(
                    sh.prism(sh.flower(petals, dice(0.2, 0.6)), bevel=0.2), end, (0.2, 0.2, 0.03), (dice(-50, 50), dice(-50, 50), 0)
                )
                model.add(bloom, colours[0])
                model.add(ball(end, 0.08, fine=False), colours[1])
    elif kind == "tree":
        model.add(
            limb([(0, 0, ground), (dice(-0.1, 0.1), dice(-0.1, 0.1), ground + 0.5), (0, 0, ground + 1.0)], [0.12, 0.08, 0.05]),
            hsv(0.07, 0.5, dice(0.25, 0.5)),
        )
        noise = dice.noise(3)
        for _ in range(dice.whole(1, 7)):
            size = dice(0.25, 0.6)
            crown = sh.wobble(
                ball(np.array([0, 0, ground + 1.1]) + dice.vector(-0.35, 0.35), (size, size, size * dice(0.6, 1.2))), noise, dice(0, 0.2), 3
            )
            model.add(crown, leaf)
        for _ in range(dice.pick(0, 0, 8)):
            direction = dice.generator.normal(size=3)
            model.add(
                ball(np.array([0, 0, ground + 1.1]) + 0.6 * direction / np.linalg.norm(direction), 0.07, fine=False), palette.accent()
            )
    elif kind == "conifer":
        tiers, wide = dice.whole(2, 5), dice(0.4, 0.7)
        model.add(limb([(0, 0, ground), (0, 0, ground + 0.4)], [0.09, 0.09], 3), hsv(0.07, 0.5, 0.35))
        for k in range(tiers):
            scale = 1 - 0.75 * k / tiers
            model.add(
                place(
                    sh.prism(dice.pick(sh.superellipse(2, 24), sh.flower(8, 0.2)), top=0.05, rows=5),
                    (0, 0, ground + 0.45 + 0.4 * k),
                    (wide * scale, wide * scale, 0.3),
                ),
                leaf,
            )
        model.add(ball((0, 0, ground + 0.5 + 0.4 * tiers), 0.08, fine=False), palette.accent())
    elif kind == "cactus":
        height, wide = dice(0.5, 1.4), dice(0.15, 0.4)
        body = sh.loft(
            np.stack([wide * np.sqrt(1 - np.linspace(-0.95, 1, 16) ** 8), ground + height * np.linspace(0, 1, 16)], -1),
            sh.flower(dice.whole(6, 12), 0.2, 72),
        )
        model.add(body, leaf)
        for _ in range(dice.whole(0, 3)):
            angle, at = dice(0, 6.3), ground + height * dice(0.3, 0.7)
            out = np.array([np.cos(angle), np.sin(angle), 0])
            start = np.array([0, 0, at])
            model.add(
                limb([start, start + out * (wide + 0.15), start + out * (wide + 0.2) + [0, 0, dice(0.2, 0.5)]], [0.1, 0.1, 0.09], 12), leaf
            )
        model.add(ball((0, 0, ground + height), (0.12, 0.12, 0.08), fine=False), palette.accent())
    elif kind == "mushroom":
        for _ in range(dice.whole(1, 3)):
            at, height, cap = np.append(dice.vector(-0.5, 0.5, 2), 0), dice(0.3, 1.0), dice(0.2, 0.6)
            model.add(limb([at, at + [0, 0, height]], [dice(0.1, 0.25), 0.1], 6), WHITE * 0.9)
            model.add(
                place(
                    sh.loft([(0, 0), (0.9, 0.02), (1, 0.1), (0.85, 0.5), (0.5, 0.8), (0, 0.95)], sh.superellipse(2, 26)),
                    at + [0, 0, height - 0.05],
                    cap,
                ),
                dots(dice, palette.accent(), WHITE) if dice.chance(0.6) else pattern(dice, palette),
            )
    else:
        noise = dice.noise(3)
        peel = dice.pick(
            gradient(dice, [palette.accent(), palette.accent()]),
            mottled(dice, plain(palette.accent()), 0.25),
            clouds(dice, [palette.accent(), palette.main()], hard=False),
            stripes(dice, [green, green * 0.6], (1, 0.3, 0)),
        )
        for _ in range(dice.pick(1, 1, 1, 3, 5)):
            at, size = np.append(dice.vector(-0.7, 0.7, 2), 0), dice(0.35, 0.6)
            body = sh.wobble(
                place(sh.taper(sh.superquadric(dice(1.7, 2.6), 2), dice(-0.3, 0.6)), size=(size, size, size * dice(0.7, 1.8))),
                noise,
                dice(0, 0.15),
                1.5,
            )
            body = place(sh.bend(body, dice.pick(0, 0, dice(20, 70))), turn=(0, dice.pick(0, 0, 90), dice(0, 360)))
            body = place(body, at - [0, 0, body.box()[0][2]])
            model.add(body, peel)
            low, high = body.box()
            stem = np.array([*(low + high)[:2] / 2, high[2] - 0.05])
            model.add(limb([stem, stem + [0.05, 0.03, 0.2]], [0.035, 0.03], 4, 6), hsv(0.08, 0.6, 0.3))
            if dice.chance(0.5):
                model.add(
                    place(ball((0.15, 0, 0), (0.2, 0.09, 0.02), fine=False), stem + [0, 0, 0.08], turn=(0, dice(-30, 20), dice(0, 360))),
                    green,
                )
