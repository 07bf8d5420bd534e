"""Natural backgrounds: eight kinds of place, each a far part, a ground, and what stands there.

Every function paints float32 [s, s, 3], sRGB 0..1.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from jaxtyping import Float

from clipdg_jax.data.demo import canvas, textures
from clipdg_jax.data.demo.geometry import Draw

Image = Float[np.ndarray, "s s 3"]


def _mix(d: Draw, *colours: tuple[float, float, float]) -> np.ndarray:
    """A jittered blend of the colours, 0..255 in, 0..1 out."""
    weights = d.rng.random(len(colours)) + 0.05
    blend = (weights / weights.sum()) @ np.array(colours)
    return np.clip((blend + d.u(-14, 14)) / 255, 0, 1).astype(np.float32)


def _textured(colour: np.ndarray, tile: np.ndarray, strength: float) -> np.ndarray:
    return colour * (1 + strength * tile)[..., None]


def _sky_part(d: Draw, side: int, clouds: float) -> Image:
    zenith = _mix(d, (70, 130, 205), (120, 165, 215), (150, 170, 190))
    low = _mix(d, (200, 220, 235), (235, 220, 200), (215, 225, 230))
    sky = canvas.vertical(side, tuple(zenith), tuple(low))
    cloud = np.clip(
        textures.crop("cloud", d, side, side, side * d.u(1.2, 2.0)) * 1.4 + clouds, 0, 1
    )
    return sky + (np.float32(0.97) - sky) * (0.85 * cloud)[..., None]


def _join(far: Image, ground: np.ndarray, horizon: int) -> Image:
    far[horizon:] = ground
    return far


def sky(d: Draw, side: int) -> Image:
    out = _sky_part(d, side, d.u(-0.1, 0.5))
    if d.chance(0.4):
        ridge = textures.crop("soft", d, 1, side, side * 1.5)[0]
        height = (side * (0.9 + 0.06 * ridge)).astype(np.int32)
        land = np.arange(side)[:, None] > height[None, :]
        out[land] = _mix(d, (70, 95, 70), (90, 100, 120))
    return out


def meadow(d: Draw, side: int) -> Image:
    horizon = int(side * d.u(0.15, 0.4))
    green = _mix(d, (96, 140, 52), (130, 160, 70), (80, 120, 50))
    grass = textures.ground("grass", d, side - horizon, side, side * 0.8)
    ground = _textured(green, grass, 0.4)
    if d.chance(0.6):
        spots = textures.crop("bumps", d, side - horizon, side, side * 1.2) > 0.8
        ground[spots] = _mix(d, (235, 225, 90), (240, 235, 235), (220, 120, 150))
    return _join(_sky_part(d, side, 0.2), ground, horizon)


def forest(d: Draw, side: int) -> Image:
    deep = _mix(d, (40, 66, 36), (66, 92, 46), (30, 52, 40))
    out = _textured(deep, textures.crop("leaves", d, side, side, side * d.u(0.7, 1.1)), 0.6)
    for _ in range(3 + d.below(4)):
        x, w = d.u(0, 1) * side, d.u(0.02, 0.06) * side
        bark = tuple(float(v) for v in _mix(d, (72, 54, 40), (110, 96, 80), (50, 40, 34)))
        lean = d.u(-0.06, 0.06) * side
        cv2.line(out, (int(x), -1), (int(x + lean), side), bark, max(1, int(2 * w)))
    horizon = int(side * d.u(0.72, 0.88))
    soil = _mix(d, (96, 76, 48), (70, 80, 44))
    ground = _textured(soil, textures.ground("bumps", d, side - horizon, side, side * 0.8), 0.35)
    return _join(out, ground, horizon)


def water(d: Draw, side: int) -> Image:
    horizon = int(side * d.u(0.0, 0.35))
    blue = _mix(d, (34, 92, 130), (60, 130, 150), (40, 80, 110))
    waves = textures.ground("wave", d, side - horizon, side, side * 0.9)
    surface = _textured(blue, waves, 0.45)
    glint = np.clip(waves - 0.55, 0, 1)[..., None]
    return _join(_sky_part(d, side, 0.1), surface + glint * np.float32(1.2), horizon)


def street(d: Draw, side: int) -> Image:
    horizon = int(side * d.u(0.5, 0.66))
    out = _sky_part(d, side, 0.3)
    x = int(-d.u(0, 0.2) * side)
    while x < side:
        w, top = int(d.u(0.18, 0.36) * side), int(d.u(0.02, 0.3) * side)
        wall = _mix(d, (150, 120, 100), (170, 165, 155), (120, 125, 135), (160, 95, 75))
        left, right = max(x, 0), min(x + w, side)
        if right > left:
            out[top:horizon, left:right] = wall
            step = max(4, int(side * d.u(0.075, 0.1)))
            pane = wall * np.float32(d.pick((0.45, 1.5)))
            for row in range(top + step // 2, horizon - step // 2, step):
                for col in range(left + step // 3, right - step // 2, step):
                    out[row : row + step // 2, col : col + step // 2] = pane
        x += w
    grey = _mix(d, (90, 90, 94), (120, 118, 116))
    ground = _textured(grey, textures.ground("fine", d, side - horizon, side, side * 0.8), 0.16)
    out = _join(out, ground, horizon)
    kerb = horizon + max(1, side // 40)
    out[horizon:kerb] = 0.72
    if d.chance(0.7):
        middle, width = d.u(0.2, 0.8) * side, max(1, side // 24)
        for a, b in ((0.25, 0.4), (0.6, 0.95)):
            ya, yb = (int(horizon + (side - horizon) * t) for t in (a, b))
            cv2.line(out, (int(middle), ya), (int(middle * 1.15), yb), (0.9, 0.88, 0.8), width)
    return out


def room(d: Draw, side: int) -> Image:
    wall = _mix(d, (205, 190, 165), (180, 190, 195), (190, 160, 140), (160, 175, 155))
    lit = 1 + 0.18 * np.linspace(-1, 1, side, dtype=np.float32) * d.pick((-1, 1))
    stripes = np.float32(d.pick((0.0, 0.08))) * np.sign(np.sin(np.arange(side) * (48 / side)))
    out = np.tile(wall * (lit + stripes)[:, None].astype(np.float32), (side, 1, 1))
    horizon = int(side * d.u(0.66, 0.8))
    for _ in range(1 + d.below(3)):
        x, y = int(d.u(-0.05, 0.85) * side), int(d.u(0.02, 0.3) * side)
        w, h = int(d.u(0.15, 0.32) * side), int(d.u(0.18, 0.34) * side)
        frame = tuple(float(v) for v in _mix(d, (90, 66, 46), (60, 60, 66), (200, 190, 170)))
        inside = tuple(float(v) for v in _mix(d, (170, 200, 215), (120, 130, 100), (210, 180, 150)))
        cv2.rectangle(out, (x, y), (x + w, y + h), inside, -1)
        cv2.rectangle(out, (x, y), (x + w, y + h), frame, max(1, side // 36))
    floor = _mix(d, (150, 105, 66), (120, 86, 60), (165, 135, 105))
    boards = textures.ground("planks", d, side - horizon, side, side * 0.9)
    out = _join(out, _textured(floor, boards, 0.28), horizon)
    out[horizon : horizon + max(1, side // 40)] = wall * 0.75
    return out


def table(d: Draw, side: int) -> Image:
    back = _mix(d, (110, 90, 80), (80, 86, 96), (150, 130, 110))
    out = _textured(back, textures.crop("soft", d, side, side, side * 0.8), 0.4)
    for _ in range(4 + d.below(5)):
        light = tuple(float(v) for v in _mix(d, (255, 225, 160), (220, 235, 240), (240, 180, 120)))
        centre = (d.below(side), int(d.u(0, 0.55) * side))
        cv2.circle(out, centre, max(2, int(d.u(0.03, 0.08) * side)), light, -1, cv2.LINE_AA)
    out = cv2.blur(out, (side // 20 | 1, side // 20 | 1))
    horizon = int(side * d.u(0.55, 0.72))
    cloth = d.chance(0.45)
    top = (
        _mix(d, (220, 205, 190), (190, 80, 76)) if cloth else _mix(d, (150, 104, 62), (108, 74, 48))
    )
    pattern = textures.ground("fabric" if cloth else "wood", d, side - horizon, side, side * 0.9)
    return _join(out, _textured(top, pattern, 0.3), horizon)


def beach(d: Draw, side: int) -> Image:
    horizon = int(side * d.u(0.2, 0.4))
    out = _sky_part(d, side, 0.0)
    shore = horizon + int(side * d.u(0.08, 0.2))
    sea = _mix(d, (50, 140, 165), (80, 165, 175))
    out[horizon:shore] = _textured(sea, textures.crop("wave", d, shore - horizon, side, side), 0.2)
    out[shore : shore + max(1, side // 30)] = 0.94
    sand = _mix(d, (228, 204, 158), (214, 188, 140), (236, 216, 180))
    start = shore + max(1, side // 30)
    ripples = textures.ground("bumps", d, side - start, side, side * 0.9)
    return _join(out, _textured(sand, ripples, 0.1), start)


PLACES: dict[str, Callable[[Draw, int], Image]] = {
    f.__name__: f for f in (sky, meadow, forest, water, street, room, table, beach)
}
