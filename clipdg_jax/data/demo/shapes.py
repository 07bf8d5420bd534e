"""The twelve object classes as articulated, parametric shapes.

Each function draws its own proportions and pose, and returns parts from back to front. The same
shapes serve every style; a style decides how they are painted.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from clipdg_jax.data.demo import geometry
from clipdg_jax.data.demo.geometry import Draw, Part, box, curve, ellipse, poly


def house(d: Draw) -> list[Part]:
    w, wall, base = d.u(0.55, 0.88), d.u(-0.25, 0.05), 0.85
    peak, lean, over = d.u(-0.98, -0.7), d.u(-0.15, 0.15), d.u(0.06, 0.18)
    ridge = 0.0 if d.chance(0.55) else d.u(0.2, 0.45)
    parts = []
    if d.chance(0.7):
        x = d.pick((-1, 1)) * d.u(0.3, 0.45)
        parts.append(Part(box(x - 0.09, peak + d.u(-0.02, 0.12), x + 0.09, wall), "shade"))
    parts.append(Part(box(-w, wall - 0.02, w, base), "main"))
    roof = poly((-w - over, wall), (lean - ridge, peak), (lean + ridge, peak), (w + over, wall))
    parts.append(Part(roof, "shade"))
    door = d.pick((-1, 0, 1)) * w * 0.55
    tall = d.u(0.42, 0.55)
    parts.append(Part(box(door - 0.13, base - tall, door + 0.13, base), "wood", detail=True))
    for x in (-0.55, 0.0, 0.55):
        if abs(x * w - door) > 0.25 * w:
            left, top = x * w - 0.15, wall + 0.14
            parts.append(Part(box(left, top, left + 0.3, top + 0.3), "glass", detail=True))
    if ridge == 0 and d.chance(0.5):
        parts.append(Part(ellipse(lean, (peak + 2 * wall) / 3, 0.11, 0.11), "glass", detail=True))
    return parts


def tree(d: Draw) -> list[Part]:
    lean, width = d.u(-0.1, 0.1), d.u(0.09, 0.15)
    trunk = poly(
        (-width * 1.5, 1), (lean - width * 0.7, 0), (lean + width * 0.7, 0), (width * 1.5, 1)
    )
    parts = [Part(trunk, "wood")]
    if d.chance(0.35):
        tiers, low, reach = 3 + d.below(2), d.u(0.45, 0.6), d.u(0.55, 0.75)
        top = -1.0
        left = [(lean, top)]
        for i in range(1, tiers + 1):
            y = top + (low - top) * i / tiers
            r = reach * i / tiers
            left.append((lean - r, y))
            if i < tiers:
                left.append((lean - r * 0.5, y - 0.04))
        right = [(2 * lean - x, y) for x, y in reversed(left[1:])]
        parts.append(Part(poly(*left, *right), "main"))
        return parts
    for side in (-1, 1):
        x, y = side * d.u(0.25, 0.4), d.u(-0.1, 0.15)
        parts.append(Part(poly((lean, d.u(0.35, 0.5)), (lean + x, y)), "wood", width=0.08))
    lobes, rx, ry = 5 + d.below(4), d.u(0.62, 0.85), d.u(0.5, 0.66)
    angle = np.linspace(0, 2 * np.pi, 56, endpoint=False)
    bumps = np.abs(np.sin(0.5 * lobes * angle + d.u(0, np.pi)))
    radius = 0.82 + 0.22 * bumps + 0.05 * np.sin(2 * angle + d.u(0, 6))
    x_y = lean + rx * radius * np.cos(angle), -0.35 + ry * radius * np.sin(angle)
    crown = np.stack(x_y, 1)
    parts.append(Part(crown.astype(np.float32), "main"))
    for _ in range(2):
        x, y, s = d.u(-0.35, 0.35), d.u(-0.6, -0.15), d.u(0.12, 0.2)
        arc = curve((x - s, y), (x, y - 0.6 * s), (x + s, y))
        parts.append(Part(arc, "shade", width=0.05, detail=True))
    return parts


def car(d: Draw) -> list[Part]:
    hood, sill = d.u(-0.08, 0.02), d.u(0.36, 0.42)
    roof, front = d.u(-0.52, -0.36), d.u(-0.5, -0.38)
    back = d.u(0.5, 0.9)
    rear_deck = hood - d.u(0.0, 0.05)
    slope = d.u(0.14, 0.24)
    body = poly(
        (-1.0, sill),
        (-1.0, hood + 0.16),
        (-0.92, hood + 0.05),
        (front, hood - 0.03),
        (front + slope, roof),
        (back - slope * 0.9, roof),
        (back, rear_deck),
        (0.97, rear_deck + 0.06),
        (1.0, sill),
    )
    parts = [Part(body, "main")]
    middle = (front + back) / 2 + 0.03
    top, low = roof + 0.08, hood - 0.05
    for window in (
        poly((front + 0.1, low), (front + slope + 0.03, top), (middle - 0.04, top), (middle, low)),
        poly(
            (middle + 0.05, low), (middle, top), (back - slope * 0.9 - 0.04, top), (back - 0.1, low)
        ),
    ):
        parts.append(Part(window, "glass", detail=True))
    parts.append(Part(poly((middle, low + 0.08), (middle, sill - 0.04)), "shade", 0.03, True))
    r = d.u(0.2, 0.25)
    for x in (-d.u(0.55, 0.63), d.u(0.55, 0.63)):
        parts.append(Part(ellipse(x, sill, r, r), "dark"))
        parts.append(Part(ellipse(x, sill, r * 0.48, r * 0.48, n=14), "light", detail=True))
    parts.append(Part(ellipse(-0.93, hood + 0.17, 0.06, 0.06, n=10), "gold", detail=True))
    return parts


def fish(d: Draw) -> list[Part]:
    high, bend, waist = d.u(0.34, 0.52), d.u(-0.12, 0.12), d.u(0.05, 0.09)
    t = np.linspace(0, 1, 22)
    x = -0.95 + 1.45 * t
    half = high * np.sin(np.pi * t**0.75) ** 0.85 + waist * t
    middle = bend * np.sin(1.6 * np.pi * t)
    outline = np.concatenate(
        [np.stack([x, middle - half], 1), np.stack([x, middle + half], 1)[::-1]]
    )
    y = float(middle[-1])
    fork, spread = d.u(0.08, 0.22), d.u(0.36, 0.5)
    tail = curve(
        (0.4, y),
        (0.72, y - spread * 0.7),
        (1.0, y - spread),
        (1.0 - fork, y),
        (1.0, y + spread),
        (0.72, y + spread * 0.7),
        closed=True,
    )
    peak = d.u(-0.25, 0.0)
    fin = poly(
        (peak - 0.3, -high * 0.8), (peak + 0.05, -high - d.u(0.2, 0.34)), (peak + 0.42, -high * 0.7)
    )
    belly = poly(
        (peak, high * 0.85), (peak + 0.25, high + d.u(0.12, 0.24)), (peak + 0.35, high * 0.7)
    )
    eye_y = -0.06 + bend * 0.4
    parts = [Part(tail, "shade"), Part(fin, "shade"), Part(belly, "shade")]
    parts.append(Part(outline.astype(np.float32), "main"))
    gill = curve((-0.45, -high * 0.55), (-0.37, 0.0), (-0.45, high * 0.55))
    parts.append(Part(gill, "shade", 0.04, True))
    side = poly((-0.2, 0.04), (0.12, -0.1), (0.14, 0.16))
    parts.append(Part(side + poly((0, d.u(0, 0.1))), "tint", detail=True))
    parts.append(Part(ellipse(-0.66, eye_y, 0.1, 0.1, n=14), "light", detail=True))
    parts.append(Part(ellipse(-0.67, eye_y, 0.05, 0.05, n=10), "dark", detail=True))
    return parts


def bird(d: Draw) -> list[Part]:
    tilt, plump = d.u(-0.35, 0.1), d.u(0.32, 0.42)
    parts = []
    tail = poly((0.3, -0.08), (1.0, -d.u(0.0, 0.2)), (0.98, d.u(0.12, 0.2)), (0.3, 0.2))
    parts.append(Part(geometry.rotate(tail, -tilt * 0.5), "shade"))
    raised = d.chance(0.4)
    if raised:
        far = curve((-0.1, -0.1), (0.0, -0.6), (0.35, -d.u(0.8, 1.0)), (0.3, -0.1), closed=True)
        parts.append(Part(far, "shade"))
    for x in (-0.05, 0.15):
        foot = d.u(0.78, 0.9)
        parts.append(Part(poly((x, 0.3), (x - 0.02, foot), (x - 0.14, foot + 0.03)), "gold", 0.06))
    head_x, head_y, r = -0.55, -0.42 + tilt * 0.4, d.u(0.23, 0.28)
    beak = poly(
        (head_x - r * 0.7, head_y - 0.1), (-1.0, head_y + 0.04), (head_x - r * 0.7, head_y + 0.12)
    )
    parts.append(Part(beak, "gold"))
    body = curve(
        (head_x + 0.02, head_y - r * 0.95),
        (head_x - r * 0.95, head_y),
        (-0.52, 0.05),
        (-0.15, plump),
        (0.3, plump * 0.7),
        (0.62, 0.06),
        (0.35, -0.12),
        (-0.1, -0.3),
        closed=True,
    )
    parts.append(Part(body, "main"))
    if raised:
        up = d.u(0.75, 1.0)
        wing = curve(
            (-0.2, 0.0), (-0.3, -0.55), (-0.1, -up), (0.2, -0.55), (0.3, 0.02), closed=True
        )
    else:
        drop = d.u(0.12, 0.28)
        wing = curve((-0.22, -0.12), (0.15, -0.16), (0.72, drop), (0.1, 0.22), closed=True)
    parts.append(Part(wing, "shade"))
    parts.append(Part(ellipse(head_x - 0.05, head_y - 0.04, 0.05, 0.05, n=10), "dark", detail=True))
    return parts


def _cat_head(x: float, y: float, r: float, d: Draw) -> list[Part]:
    parts = []
    for side in (-1, 1):
        ear = poly(
            (x + side * r * 0.95, y - r * 0.1),
            (x + side * r * d.u(0.8, 1.05), y - r * d.u(1.35, 1.6)),
            (x + side * r * 0.15, y - r * 0.7),
        )
        parts.append(Part(ear, "main"))
    parts.append(Part(ellipse(x, y, r * 1.08, r * 0.92), "main"))
    for side in (-1, 1):
        parts.append(
            Part(
                ellipse(x + side * r * 0.42, y - r * 0.1, r * 0.19, r * 0.2, n=10), "gold", 0, True
            )
        )
        parts.append(
            Part(
                ellipse(x + side * r * 0.42, y - r * 0.1, r * 0.08, r * 0.17, n=8), "dark", 0, True
            )
        )
        for rise in (-0.05, 0.18):
            whisker = poly(
                (x + side * r * 0.3, y + r * 0.3), (x + side * r * 1.35, y + r * (0.25 + rise))
            )
            parts.append(Part(whisker, "light", 0.022, True))
    nose = poly((x - r * 0.13, y + r * 0.2), (x + r * 0.13, y + r * 0.2), (x, y + r * 0.36))
    parts.append(Part(nose, "dark", detail=True))
    return parts


def cat(d: Draw) -> list[Part]:
    if d.chance(0.55):
        w = d.u(0.4, 0.5)
        reach, tip = d.u(0.75, 0.95), d.u(-0.25, 0.2)
        tail = curve((0.2, 0.85), (reach * 0.8, 0.8), (reach, 0.3), (reach * 0.8, tip))
        body = curve(
            (0, -0.25),
            (-w * 0.75, 0.05),
            (-w, 0.7),
            (-w * 0.7, 0.95),
            (w * 0.7, 0.95),
            (w, 0.7),
            (w * 0.75, 0.05),
            closed=True,
        )
        parts = [Part(tail, "shade", 0.15), Part(body, "main")]
        for x in (-0.12, 0.12):
            parts.append(Part(poly((x, 0.35), (x, 0.92)), "shade", 0.04, True))
        return parts + _cat_head(d.u(-0.08, 0.08), d.u(-0.5, -0.4), d.u(0.34, 0.41), d)
    swing = d.u(-0.14, 0.14)
    tail = curve((0.6, -0.05), (0.9, -0.15), (1.0, -d.u(0.4, 0.6)), (0.85, -d.u(0.75, 0.95)))
    parts = [Part(tail, "shade", 0.13)]
    for x, s in ((-0.3, -swing), (0.5, swing)):
        parts.append(Part(poly((x, 0.2), (x + s, 0.8)), "shade", 0.15))
    for x, s in ((-0.42, swing), (0.58, -swing)):
        parts.append(Part(poly((x, 0.2), (x + s, 0.84)), "main", 0.16))
    body = curve(
        (-0.6, -0.1),
        (-0.55, 0.28),
        (0.1, 0.36),
        (0.68, 0.32),
        (0.72, -0.05),
        (0.1, -0.14),
        closed=True,
    )
    parts.append(Part(body, "main"))
    return parts + _cat_head(-0.6, d.u(-0.4, -0.25), d.u(0.29, 0.35), d)


def mug(d: Draw) -> list[Part]:
    w, taper, top, low = d.u(0.5, 0.64), d.u(-0.04, 0.16), d.u(-0.7, -0.5), d.u(0.62, 0.8)
    size = d.u(0.3, 0.42)
    middle = (top + low) / 2 + d.u(-0.06, 0.06)
    handle = curve(
        (w - taper * 0.4, middle - 0.36),
        (w + size * 0.9, middle - 0.32),
        (w + size, middle + 0.1),
        (w - taper * 0.7, middle + 0.36),
    )
    body = curve(
        (-w, top),
        (-w + taper * 0.5, middle),
        (-w + taper + 0.03, low - 0.06),
        (0, low + 0.06),
        (w - taper - 0.03, low - 0.06),
        (w - taper * 0.5, middle),
        (w, top),
        (0, top + 0.06),
        closed=True,
    )
    parts = [Part(handle, "shade", d.u(0.12, 0.17)), Part(body, "main")]
    if d.chance(0.5):
        y = middle + d.u(0.0, 0.15)
        band = curve((-w + taper * 0.6, y), (0, y + 0.09), (w - taper * 0.6, y))
        parts.append(Part(band, "light", d.u(0.08, 0.18), True))
    parts.append(Part(ellipse(0, top, w, 0.13), "tint"))
    parts.append(Part(ellipse(0, top + 0.01, w * 0.84, 0.09), "dark", detail=True))
    if d.chance(0.4):
        for x in (-0.18, 0.14):
            puff = curve(
                (x, top - 0.12),
                (x + 0.08, top - 0.22),
                (x - 0.04, top - 0.3),
                (x + 0.05, top - 0.4),
            )
            parts.append(Part(puff, "light", 0.05, True))
    return parts


def chair(d: Draw) -> list[Part]:
    w, skew, seat = d.u(0.42, 0.52), d.u(0.14, 0.32), d.u(0.1, 0.22)
    deep, leg, t = d.u(0.2, 0.27), d.u(0.8, 0.95), d.u(0.1, 0.13)
    top = d.u(-1.0, -0.85)
    back_l, back_r = -w + skew, w + skew
    parts = []
    for x in (back_l + 0.05, back_r - 0.05):
        parts.append(Part(poly((x, seat - deep), (x + 0.04, leg - deep)), "shade", t))
        parts.append(Part(poly((x, seat - deep), (x + 0.06, top)), "main", t))
    bar = top + 0.1
    if d.chance(0.35):
        panel = poly(
            (back_l + 0.1, bar - 0.08),
            (back_r + 0.06, bar - 0.08),
            (back_r - 0.02, seat - deep - 0.2),
            (back_l + 0.04, seat - deep - 0.2),
        )
        parts.append(Part(panel, "main"))
    else:
        for i in range(2 + d.below(2)):
            y = bar + i * 0.3
            parts.append(Part(poly((back_l + 0.06, y), (back_r, y)), "main", t * 1.15))
    for x in (-w + 0.05, w - 0.05):
        parts.append(Part(poly((x, seat), (x, leg)), "main", t))
    cushion = poly(
        (-w - 0.04, seat + 0.03),
        (back_l, seat - deep),
        (back_r, seat - deep),
        (w + 0.04, seat + 0.03),
    )
    parts.append(Part(cushion, "tint"))
    edge = poly(
        (-w - 0.04, seat + 0.03),
        (w + 0.04, seat + 0.03),
        (w + 0.04, seat + 0.14),
        (-w - 0.04, seat + 0.14),
    )
    parts.append(Part(edge, "main"))
    return parts


def flower(d: Draw) -> list[Part]:
    x, y, r = d.u(-0.12, 0.12), d.u(-0.5, -0.38), d.u(0.46, 0.56)
    foot = d.u(-0.15, 0.15)
    middle = (x + foot) / 2 + d.u(-0.12, 0.12)
    parts = [Part(curve((x, y), (middle, 0.3), (foot, 1.0)), "leaf", d.u(0.08, 0.12))]
    for side in (-1, 1):
        if side == 1 or d.chance(0.6):
            at, reach = d.u(0.35, 0.65), d.u(0.4, 0.55)
            leaf = curve(
                (middle, at + 0.1),
                (middle + side * reach * 0.5, at - 0.16),
                (middle + side * reach, at - 0.2),
                (middle + side * reach * 0.6, at + 0.1),
                closed=True,
            )
            parts.append(Part(leaf, "leaf"))
    n, turn = 5 + d.below(4), d.u(0, 6)
    thick = d.u(0.85, 1.05) * np.pi * 0.62 * r / n
    for i in range(n):
        a = turn + 2 * np.pi * i / n
        petal = ellipse(x + 0.6 * r * np.cos(a), y + 0.6 * r * np.sin(a), 0.42 * r, thick, a, 14)
        parts.append(Part(petal, "main"))
    core = r * d.u(0.28, 0.38)
    parts.append(
        Part(ellipse(x, y, core, core, n=16), d.pick(("gold", "dark", "light")), detail=True)
    )
    return parts


def guitar(d: Draw) -> list[Part]:
    low, waist, up = d.u(0.4, 0.47), d.u(0.22, 0.27), d.u(0.29, 0.35)
    neck = d.u(0.055, 0.075)
    right = [(0.12, -0.12), (up, 0.02), (waist, 0.32), (low, 0.68), (low * 0.55, 0.98)]
    if d.chance(0.3):
        right[0:2] = [(0.1, 0.06), (up * 0.7, 0.02), (up, 0.1)]
    left = [
        (-x, y)
        for x, y in ((0.12, -0.12), (up, 0.02), (waist, 0.32), (low, 0.68), (low * 0.55, 0.98))
    ]
    body = curve(*right, *reversed(left), closed=True, steps=5)
    head = poly((-neck - 0.02, -0.74), (-0.12, -1.0), (0.12, -1.0), (neck + 0.02, -0.74))
    parts = [Part(body, "main"), Part(head, "shade")]
    for y in (-0.94, -0.84):
        parts.append(Part(poly((-0.19, y), (0.19, y)), "dark", 0.04, True))
    hole = d.u(0.14, 0.17)
    parts.append(Part(ellipse(0, 0.36, hole, hole, n=18), "dark", detail=True))
    parts.append(Part(box(-neck, -0.78, neck, 0.24), "wood"))
    parts.append(Part(poly((-0.17, 0.72), (0.17, 0.72)), "dark", 0.07, True))
    for x in (-0.03, 0.03):
        parts.append(Part(poly((x, -0.78), (x, 0.72)), "light", 0.014, True))
    return parts


def boat(d: Draw) -> list[Part]:
    deck, keel = d.u(0.42, 0.5), d.u(0.82, 0.95)
    bow, stern = d.u(0.85, 1.0), d.u(0.7, 0.85)
    mast, top = d.u(-0.12, 0.12), -1.0
    hull = curve(
        (-stern, deck),
        (-stern * 0.8, keel - 0.02),
        (0, keel),
        (bow * 0.65, keel - 0.08),
        (bow, deck - 0.06),
        (bow * 0.5, deck + 0.01),
        (0, deck + 0.02),
        closed=True,
    )
    parts = [Part(poly((mast, deck + 0.1), (mast, top)), "wood", 0.07)]
    foot = deck - d.u(0.08, 0.14)
    belly = d.u(0.0, 0.12)
    jib = curve(
        (mast + 0.06, top + 0.1),
        (mast + 0.45 + belly, -0.2),
        (bow * 0.85, foot),
        (mast + 0.06, foot),
    )
    parts.append(Part(jib, "tint"))
    if d.chance(0.75):
        reach = d.u(0.55, 0.75)
        sail = curve(
            (mast - 0.06, top + 0.18),
            (mast - reach * 0.6 - belly, -0.1),
            (mast - reach, foot),
            (mast - 0.06, foot),
        )
        parts.append(Part(sail, "light"))
    else:
        cabin = box(-stern * 0.65, deck - d.u(0.24, 0.34), mast - 0.1, deck + 0.1)
        parts.append(Part(cabin, "light"))
        parts.append(
            Part(ellipse(-stern * 0.4, deck - 0.1, 0.07, 0.07, n=10), "glass", detail=True)
        )
    parts.append(Part(hull, "main"))
    parts.append(
        Part(
            curve((-stern * 0.95, deck + 0.12), (0, deck + 0.15), (bow * 0.88, deck + 0.08)),
            "light",
            0.05,
            True,
        )
    )
    return parts


def umbrella(d: Draw) -> list[Part]:
    rim, top = d.u(-0.08, 0.06), d.u(-0.9, -0.7)
    hook = d.u(0.14, 0.2)
    handle = curve(
        (0, rim - 0.3), (0, 0.72), (hook * 0.4, 0.95), (hook * 1.6, 0.92), (hook * 2, 0.74)
    )
    parts = [Part(handle, "wood", d.u(0.07, 0.1))]
    parts.append(Part(poly((0, top + 0.05), (0, top - 0.14)), "dark", 0.06))
    gores = 4 + d.below(3)
    angle = np.linspace(np.pi, 2 * np.pi, 24)
    flat = d.u(0.75, 1.0)
    dome = np.stack(
        [np.cos(angle), rim + (rim - top) * np.sign(np.sin(angle)) * np.abs(np.sin(angle)) ** flat],
        1,
    )
    t = np.linspace(0, 1, gores * 6 + 1)[1:-1]
    scallop = np.stack([1 - 2 * t, rim - 0.13 * np.abs(np.sin(np.pi * gores * t))], 1)
    parts.append(Part(np.concatenate([dome, scallop]).astype(np.float32), "main"))
    for i in range(1, gores):
        x = -1 + 2 * i / gores
        rib = curve((0, top + 0.02), (x * 0.62, top + 0.3 * (rim - top)), (x, rim))
        parts.append(Part(rib, "shade", 0.035, True))
    return parts


SHAPES: dict[str, Callable[[Draw], list[Part]]] = {
    f.__name__: f
    for f in (house, tree, car, fish, bird, cat, mug, chair, flower, guitar, boat, umbrella)
}

# Largest turn either way, in degrees.
TURN: dict[str, float] = {"guitar": 50, "umbrella": 30, "fish": 18, "bird": 12, "boat": 8, "car": 6}
DEFAULT_TURN = 9.0
