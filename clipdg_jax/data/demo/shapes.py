"""The twelve object classes as articulated, parametric shapes.

Each function draws its own proportions and pose, and returns parts from back to front. The same
shapes serve every style; a style decides how they are painted. What lives is in `living`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from clipdg_jax.data.demo import living
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
    for f in (
        house,
        living.tree,
        car,
        living.fish,
        living.bird,
        living.cat,
        mug,
        chair,
        living.flower,
        guitar,
        boat,
        umbrella,
    )
}

# Largest turn either way, in degrees.
TURN: dict[str, float] = {"guitar": 50, "umbrella": 30, "fish": 18, "bird": 12, "boat": 8, "car": 6}
DEFAULT_TURN = 9.0
