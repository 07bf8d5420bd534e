"""The shapes of what grows and lives: tree, fish, bird, cat and flower; see `shapes`."""

from __future__ import annotations

import numpy as np

from clipdg_jax.data.demo import geometry
from clipdg_jax.data.demo.geometry import Draw, Part, curve, ellipse, poly


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
