"""Renditions made of lines and flat areas: pencil sketch, cartoon and clip-art.

Painted at twice the size in uint8 sRGB, then averaged down.
"""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import UInt8

from clipdg_jax.data.demo import canvas, textures, vocabulary
from clipdg_jax.data.demo import scene as scenes
from clipdg_jax.data.demo.geometry import Draw, Part, ellipse
from clipdg_jax.data.demo.scene import Scene

Picture = UInt8[np.ndarray, "t t 3"]

SCALE = (0.72, 0.94)
SHIFT = 0.06
CARICATURE = 0.3

# Two tones of each context, for plain grounds that only hint at it.
CONTEXT_TONES: dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    "sky": ((186, 222, 246), (232, 244, 252)),
    "meadow": ((206, 234, 176), (164, 210, 122)),
    "forest": ((150, 190, 150), (110, 156, 116)),
    "water": ((176, 222, 230), (120, 186, 206)),
    "street": ((214, 214, 220), (176, 178, 188)),
    "room": ((244, 228, 204), (222, 190, 158)),
    "table": ((240, 214, 196), (204, 160, 128)),
    "beach": ((250, 238, 202), (240, 216, 158)),
}


def shrink(picture: np.ndarray, size: int) -> Picture:
    return cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA)


def closed(part: Part) -> bool:
    return part.width == 0


def sketch(scene: Scene, size: int) -> Picture:
    """Pencil on paper: wavering, doubled outlines and hatching; colour is left as lightness."""
    d = scene.draw(scenes.PIXELS)
    side = 2 * size
    parts = scenes.posed(scene, side, SCALE, SHIFT, CARICATURE)
    ids = canvas.label_map(parts, side)
    ink = np.zeros((side, side), np.uint8)
    thin = max(1, round(side / 56))
    wobble = side * d.u(0.004, 0.010)
    for part in parts:
        if closed(part):
            canvas.fill(ink, part, 0)
        elif part.width > 3 * thin:
            # A thick line becomes two strokes: its rim, with white paper between.
            canvas.fill(ink, part, d.u(150, 230))
            canvas.fill(ink, Part(part.points, width=part.width - 2 * thin), 0)
            continue
        for _ in range(1 if part.detail else 2):
            phase, bend = d.u(0, 6.3), d.u(1.5, 4)
            t = np.linspace(0, bend, len(part.points)) + phase
            waver = wobble * np.stack([np.sin(2.1 * t), np.cos(3.3 * t)], 1)
            dark = d.u(110, 190) if part.detail else d.u(170, 250)
            canvas.stroke(ink, part.points + waver, dark, thin, closed(part))
    _hatch(ink, scene, parts, ids, d)
    paper = textures.crop("paper", d, side, side, side * 1.3)
    fuzz = textures.crop("fine", d, side, side, side * 1.1)
    strength = ink.astype(np.float32) * np.float32(d.u(0.7, 0.95)) * (0.86 + 0.22 * fuzz)
    tone = d.u(236, 252) + 5 * paper - strength
    if d.chance(0.35):
        smudge = textures.crop("soft", d, side, side, side * 1.5)
        tone -= 12 * np.clip(smudge, 0, 1)
    warm = np.array([1.0, d.u(0.985, 1.0), d.u(0.94, 1.0)], np.float32)
    return shrink(np.clip(tone[..., None] * warm, 0, 255).astype(np.uint8), size)


def _hatch(ink: np.ndarray, scene: Scene, parts: list[Part], ids: np.ndarray, d: Draw) -> None:
    """Parallel pencil lines: denser where the paint is darker, and on the shaded side."""
    side = ids.shape[0]
    main = tuple(float(v) for v in vocabulary.COLOURS[scene.colour])
    dark = np.zeros(256, np.float32)
    for i, part in enumerate(parts):
        r, g, b = canvas.paint(part.slot, main, 0.6, 0.5)
        dark[i + 1] = 1 - (0.3 * r + 0.59 * g + 0.11 * b) / 255
    axis = np.arange(side, dtype=np.float32) / side
    turn = d.u(0.5, 1.1) * d.pick((-1, 1))
    across = axis[None, :] * np.cos(turn) + axis[:, None] * np.sin(turn)
    lines = np.sin(across * np.float32(2 * np.pi * d.u(12, 17))) * 0.5 + 0.5
    side_shade = axis[None, :] if turn > 0 else 1 - axis[None, :]
    want = dark[ids] * (0.55 + 0.7 * side_shade)
    where = ids > 0
    if d.chance(0.3):  # the ground is shaded, and the object left white
        want, where = np.full_like(want, d.u(0.45, 0.8)), ~where
    stroke = np.clip((want - lines * 0.75) * 2.5, 0, 1) * where * np.float32(d.u(80, 150))
    np.maximum(ink, stroke.astype(np.uint8), out=ink)


def cartoon(scene: Scene, size: int) -> Picture:
    """Flat, bright areas with one step of shadow and thick black outlines."""
    d = scene.draw(scenes.PIXELS)
    side = 2 * size
    parts = scenes.posed(scene, side, SCALE, SHIFT, CARICATURE)
    picture = _cartoon_ground(scene, d, side)
    if d.chance(0.3):
        _confetti(picture, d)
    ink_figure(picture, scene, parts, d)
    return shrink(picture, size)


def ink_figure(picture: np.ndarray, scene: Scene, parts: list[Part], d: Draw) -> None:
    """Draws the cartoon object into a uint8 picture, in place."""
    side = picture.shape[0]
    main = _vivid(vocabulary.COLOURS[scene.colour])
    line = max(2, round(side / d.u(14, 34)))
    ink = (24, 20, 26)
    line_art = d.chance(0.3)
    big = [p for p in parts if not p.detail]
    for part in big:  # a rim around the whole silhouette, behind everything
        width = line if closed(part) else max(1, round(part.width)) + line
        canvas.stroke(picture, part.points, ink, width, closed(part))
    for part in parts:
        colour = canvas.paint(part.slot, main, 0.75, 0.45)
        if line_art and part.slot != "dark":
            colour = (252, 250, 244)
        canvas.fill(picture, part, colour, smooth=True)
        if closed(part):
            canvas.stroke(picture, part.points, ink, max(1, line // 2), True)
    if d.chance(0.45):
        solid = np.array([p.slot in ("main", "shade", "tint") for p in parts])
        fill = pattern(d, canvas.label_map(parts, side), solid)[..., None]
        bright = picture.sum(-1, keepdims=True) > 140  # spares the ink
        picture[:] = np.where(bright, np.clip(picture * fill, 0, 255), picture)
    # Cel shadow: the silhouette minus a copy of itself moved towards the light.
    mask = np.minimum(canvas.label_map(big, side), 1)
    move = max(2, side // 16)
    shade = mask.copy()
    if d.chance(0.5):
        shade[:-move, :-move] &= 1 - mask[move:, move:]
    else:
        shade[:-move, move:] &= 1 - mask[move:, :-move]
    picture[shade > 0] = (picture[shade > 0] * np.float32(0.78)).astype(np.uint8)
    if scene.name not in ("fish", "bird", "cat") and d.chance(0.5):
        _face(picture, max(big, key=_area), d)


def _area(part: Part) -> float:
    """Of the bounding box of a filled main part; nothing for others."""
    if part.width > 0 or part.slot != "main":
        return 0.0
    return float(np.prod(np.ptp(part.points, axis=0)))


def _face(picture: np.ndarray, part: Part, d: Draw) -> None:
    """Big eyes and a smile, as cartoons give to anything."""
    low, high = part.points.min(0), part.points.max(0)
    x, y = (float(v) for v in (low + high) / 2)
    reach = max(3.0, 0.5 * float((high - low).min()))
    r = reach * d.u(0.26, 0.36)
    look = d.u(-0.3, 0.3) * r
    for eye in (x - 1.1 * r, x + 1.1 * r):
        ball = ellipse(eye, y - 0.2 * reach, r, r * 1.15)
        canvas.fill(picture, Part(ball), (255, 255, 255), smooth=True)
        canvas.stroke(picture, ball, (24, 20, 26), max(1, round(r / 6)), True)
        pupil = ellipse(eye + look, y - 0.15 * reach, r * 0.5, r * 0.6)
        canvas.fill(picture, Part(pupil), (24, 20, 26), smooth=True)
    angle = np.linspace(0.15 * np.pi, 0.85 * np.pi, 9)
    mouth = np.stack([x + reach * 0.4 * np.cos(angle), y + 0.25 * reach * (1 + np.sin(angle))], 1)
    canvas.stroke(picture, mouth, (24, 20, 26), max(1, round(r / 3)), False)


def pattern(d: Draw, ids: np.ndarray, solid: np.ndarray) -> np.ndarray:
    """A factor that prints dots, stripes or checks on parts where `solid[part]`, [s, s].

    Any class may wear any pattern: a drawing's texture says nothing of what it shows.
    """
    side = ids.shape[0]
    axis = np.arange(side, dtype=np.float32) * np.float32(2 * np.pi * d.u(7, 12) / side)
    turn = d.u(0, np.pi)
    c, s = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    u = axis[None, :] * c + axis[:, None] * s
    v = axis[:, None] * c - axis[None, :] * s
    kind = d.below(3)
    if kind == 0:
        wave = np.sin(u) * np.sin(v) > 0.35
    elif kind == 1:
        wave = np.sin(u) > d.u(-0.3, 0.5)
    else:
        wave = np.sin(u) * np.sin(v) > 0
    where = np.zeros(256, bool)
    where[1 : len(solid) + 1] = solid
    return np.where(wave & where[ids], np.float32(d.pick((0.62, 0.72, 1.35))), np.float32(1))


def _long_shadow(picture: np.ndarray, ids: np.ndarray, d: Draw) -> None:
    """The slanted shadow of flat design, out to the picture's edge."""
    cast = ids > 0
    if d.chance(0.5):
        picture, cast = picture[:, ::-1], cast[:, ::-1]
    step = 1
    while step < ids.shape[0]:
        longer = cast.copy()
        longer[step:, step:] |= cast[:-step, :-step]
        cast, step = longer, 2 * step
    picture[cast] = (picture[cast] * np.float32(0.82)).astype(np.uint8)


def _confetti(picture: np.ndarray, d: Draw) -> None:
    """Small plain shapes strewn over the ground."""
    side = picture.shape[0]
    for _ in range(6 + d.below(8)):
        colour = vocabulary.COLOURS[d.pick(tuple(vocabulary.COLOURS))]
        r = d.u(0.02, 0.05) * side
        piece = ellipse(d.u(0, side), d.u(0, side), r, r, d.u(0, 3), d.pick((3, 4, 12)))
        canvas.fill(picture, Part(piece), colour, smooth=True)


def _vivid(colour: tuple[int, int, int]) -> tuple[float, float, float]:
    """The colour with its saturation raised."""
    mean = sum(colour) / 3
    r, g, b = (min(255.0, max(0.0, mean + 1.25 * (v - mean) + 14)) for v in colour)
    return (r, g, b)


def _cartoon_ground(scene: Scene, d: Draw, side: int) -> np.ndarray:
    far, near = CONTEXT_TONES[scene.context]
    picture = np.empty((side, side, 3), np.uint8)
    kind = d.below(4)
    if kind == 0:
        picture[:] = (255, 255, 255)
        return picture
    picture[:] = far
    if kind == 1:
        horizon = int(side * d.u(0.6, 0.8))
        hill = ellipse(d.u(0.2, 0.8) * side, horizon + side * 0.9, side * 1.3, side * 0.95, n=40)
        canvas.fill(picture, Part(hill), near, smooth=True)
    elif kind == 2:
        centre, rays = np.array([d.u(0.3, 0.7), d.u(0.3, 0.7)]) * side, 7 + d.below(5)
        for i in range(rays):
            a, b = (2 * np.pi * (i + s) / rays for s in (0.0, 0.5))
            far_a = centre + 2 * side * np.array([np.cos(a), np.sin(a)])
            far_b = centre + 2 * side * np.array([np.cos(b), np.sin(b)])
            canvas.fill(picture, Part(np.stack([centre, far_a, far_b])), near)
    else:
        step = max(5, side // 11)
        for i, y in enumerate(range(step // 2, side + step, step)):
            for x in range((i % 2) * step // 2, side + step, step):
                cv2.circle(picture, (x, y), max(1, step // 5), near, -1, cv2.LINE_AA)
    return picture


def clipart(scene: Scene, size: int) -> Picture:
    """Flat vector art without outlines: plain ground or badge, two-tone fills or a glyph."""
    d = scene.draw(scenes.PIXELS)
    side = 2 * size
    colour = np.array(vocabulary.COLOURS[scene.colour], np.float32)
    far, _ = CONTEXT_TONES[scene.context]
    picture = np.empty((side, side, 3), np.uint8)
    picture[:] = (255, 255, 255) if d.chance(0.65) else far
    kind = d.below(5)
    badge, glyph = 2 <= kind <= 3, kind == 3
    scale = (0.52, 0.66) if badge else SCALE
    parts = scenes.posed(scene, side, scale, 0.0 if badge else SHIFT, CARICATURE)
    if not badge and d.chance(0.4):
        _confetti(picture, d)
    if badge:
        middle = side / 2
        corners = d.pick((4, 40, 40, 6))
        turn = np.pi / 4 if corners == 4 else d.u(0, 1)
        reach = side * (0.64 if corners == 4 else 0.48)
        plate = ellipse(middle, middle, reach, reach, turn, corners)
        if glyph:
            fill = tuple(float(v) for v in colour)
        else:
            fill = tuple(float(v) for v in 255 - 0.55 * (255 - colour[::-1]))
        canvas.fill(picture, Part(plate), fill, smooth=True)
    ids = canvas.label_map(parts, side)
    if d.chance(0.35):
        _long_shadow(picture, ids, d)
    if kind == 4:  # a plain silhouette
        flat = np.empty((side, side, 3), np.float32)
        flat[:] = colour * np.float32(d.pick((0.3, 1.0)))
    elif glyph:
        table = np.zeros((256, 3), np.float32)
        for i, part in enumerate(parts):
            inner = part.detail and part.slot not in ("light", "tint")
            table[i + 1] = colour if inner else (250, 250, 248)
        flat = table[ids]
    else:
        main = tuple(float(v) for v in colour)
        table = np.zeros((256, 3), np.float32)
        for i, part in enumerate(parts):
            table[i + 1] = canvas.paint(part.slot, main, 0.8, 0.5)
        flat = table[ids]
        if d.chance(0.45):
            solid = np.array([p.slot in ("main", "shade", "tint") for p in parts])
            flat *= pattern(d, ids, solid)[..., None]
        elif d.chance(0.6):  # flat design: one half in shadow
            half = np.arange(side) > side * d.u(0.4, 0.6)
            flat[:, half] *= 0.8
        else:  # a smooth gradient over the whole
            flat *= np.linspace(1.18, 0.82, side, dtype=np.float32)[:, None, None]
    cv2.copyTo(np.clip(flat, 0, 255).astype(np.uint8), np.minimum(ids, 1), picture)
    return shrink(picture, size)
