"""Natural pictures: a lit object of some material in a cluttered place, seen by a camera.

Painted at twice the size in float32 sRGB 0..1, then averaged down.
"""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from clipdg_jax.data.demo import canvas, contexts, textures, vocabulary
from clipdg_jax.data.demo import scene as scenes
from clipdg_jax.data.demo.geometry import Draw, Part, ellipse
from clipdg_jax.data.demo.scene import Scene


@dataclasses.dataclass(frozen=True, slots=True)
class Material:
    """How a material looks, besides its tile.

    Attributes:
      tint: its own colour, sRGB 0..255.
      pull: how far the object's colour goes towards the tint.
      contrast: strength of the tile.
      gloss: strength of the highlight.
    """

    tint: tuple[float, float, float]
    pull: float
    contrast: float
    gloss: float


LOOKS: dict[str, Material] = {
    "brick": Material((176, 88, 66), 0.50, 0.48, 0.0),
    "leaves": Material((74, 124, 52), 0.50, 0.56, 0.1),
    "metal": Material((176, 184, 196), 0.45, 0.40, 0.9),
    "scales": Material((128, 164, 172), 0.45, 0.56, 0.5),
    "feathers": Material((150, 130, 108), 0.45, 0.51, 0.0),
    "fur": Material((176, 132, 92), 0.50, 0.56, 0.0),
    "ceramic": Material((236, 232, 224), 0.50, 0.46, 0.8),
    "wood": Material((156, 104, 60), 0.55, 0.48, 0.1),
    "petal": Material((242, 200, 206), 0.45, 0.36, 0.0),
    "lacquer": Material((186, 104, 36), 0.50, 0.48, 0.7),
    "planks": Material((138, 118, 98), 0.50, 0.56, 0.0),
    "fabric": Material((226, 218, 190), 0.45, 0.48, 0.0),
}

# Longer side of the object as a share of the picture's: afar, ordinary, near, close up.
_DISTANCES = ((0.4, 0.6), (0.6, 0.85), (0.8, 1.1), (1.1, 1.6))


def paint_objects(
    picture: Float[np.ndarray, "s s 3"], scene: Scene, parts: list[Part], d: Draw
) -> UInt8[np.ndarray, "s s"]:
    """Paints the lit, textured object with its shadow into `picture`; returns its label map."""
    side = picture.shape[0]
    ids = canvas.label_map(parts, side)
    light = d.u(-2.6, -0.5)  # direction the light comes from, radians; up is -pi/2
    toward = (np.cos(light), np.sin(light))
    _cast_shadow(picture, ids, toward, d)

    inside = np.where(canvas.edges(ids) > 0, np.uint8(0), np.minimum(ids, 1))
    depth = cv2.distanceTransform(inside, cv2.DIST_L2, 3)
    round_to = np.float32(side * d.u(0.07, 0.13))
    slope = 1 - np.minimum(depth / round_to, 1)
    height = cv2.blur(np.sqrt(1 - slope * slope), (3, 3))
    gx = cv2.Sobel(height, cv2.CV_32F, 1, 0, ksize=3)
    gy = cv2.Sobel(height, cv2.CV_32F, 0, 1, ksize=3)
    facing = -(gx * np.float32(toward[0]) + gy * np.float32(toward[1]))
    shade = 0.74 + 0.22 * height + np.clip(facing * (side / 200), -0.4, 0.4)

    look = LOOKS[scene.material]
    own = vocabulary.COLOURS[scene.colour]
    main = tuple(c + (t - c) * look.pull for c, t in zip(own, look.tint, strict=True))
    table = np.zeros((256, 3), np.float32)
    covered = np.zeros(256, np.float32)
    for i, part in enumerate(parts):
        # Photographed objects are of one stuff: their marks and fittings stand out but little.
        keep = 0.35 if part.detail else 0.5
        stuff = part.slot in ("main", "shade", "tint")
        colour = np.array(canvas.paint(part.slot, main, 0.8, 0.15), np.float32)
        table[i + 1] = colour if stuff else colour * keep + np.array(main, np.float32) * (1 - keep)
        covered[i + 1] = 1.0 if stuff else 1 - keep
    tile = textures.crop(scene.material, d, side, side, side * d.u(0.9, 1.3), d.u(-0.35, 0.35))
    grain = tile * covered[ids]
    lum = shade * (1 + np.float32(look.contrast) * grain)
    albedo = table[ids] * np.float32(1 / 255)
    lit = albedo * lum[..., None]
    if look.gloss:
        spot = np.clip(facing * (side / 70) - 0.35, 0, 1) * covered[ids]
        lit += (np.float32(0.55 * look.gloss) * spot)[..., None]
    cv2.copyTo(lit, np.minimum(ids, 1), picture)
    return ids


def _cast_shadow(
    picture: np.ndarray, ids: np.ndarray, toward: tuple[float, float], d: Draw
) -> None:
    side = picture.shape[0]
    reach = d.u(0.03, 0.09) * side
    matrix = np.array([[1, 0, -toward[0] * reach], [0, 1, -toward[1] * reach]])
    mask = np.minimum(ids, 1).astype(np.float32)
    cast = cv2.warpAffine(mask, matrix, (side, side), flags=cv2.INTER_NEAREST)
    width = max(1, side // 16) | 1
    cast = cv2.blur(cast, (width, width))
    picture *= (1 - np.float32(d.u(0.3, 0.6)) * cast)[..., None]


def _props(picture: np.ndarray, d: Draw, count: int, front: bool = False) -> None:
    """Things that stand about: stones, sticks, boxes of some material; smaller in front."""
    side = picture.shape[0]
    for _ in range(count):
        material = d.pick(vocabulary.MATERIALS)
        pigment = np.array(vocabulary.COLOURS[d.pick(tuple(vocabulary.COLOURS))], np.float32)
        tint = np.array(LOOKS[material].tint, np.float32)
        colour = (pigment * 0.4 + tint * 0.4 + 40) / 255
        cx, cy, r = d.u(0, 1) * side, d.u(0.2, 1) * side, d.u(0.05, 0.1 if front else 0.16) * side
        kind = d.below(3)
        if kind == 0:
            points = ellipse(cx, cy, r * d.u(0.8, 1.5), r * 0.8, d.u(0, 3), 12)
        elif kind == 1:
            points = ellipse(cx, cy, r * 2.2, r * 0.22, d.u(0, 3), 12)
        else:
            points = ellipse(cx, cy, r * 1.2, r * 1.2, d.u(0, 1), 4)
        left, top = (int(v) for v in np.clip(points.min(0), 0, side - 1))
        right, bottom = (int(v) for v in np.clip(points.max(0) + 1, 1, side))
        height, width = bottom - top, right - left
        window = picture[top:bottom, left:right]
        mask = np.zeros((height, width), np.uint8)
        canvas.fill(mask, Part(points - np.array([left, top], np.float32)), 1)
        span, turn = side * d.u(0.9, 1.3), d.u(-0.5, 0.5)
        tile = textures.crop(material, d, height, width, span, turn)
        window[:] = np.where(mask[..., None], colour * (0.85 + 0.4 * tile)[..., None], window)


def _occlude(picture: np.ndarray, d: Draw) -> None:
    """Something before the object: grass at the foot, or a twig or post across."""
    side = picture.shape[0]
    tone = tuple(float(v) * d.u(0.5, 1.1) for v in picture[side - 2, d.below(side)])
    if d.chance(0.5):
        for _ in range(10 + d.below(10)):
            x, h = d.u(0, 1) * side, d.u(0.06, 0.22) * side
            tip = (int(x + d.u(-0.06, 0.06) * side), int(side - h))
            cv2.line(picture, (int(x), side), tip, tone, max(1, side // 60), cv2.LINE_AA)
    else:
        start, stop = int(d.u(-0.1, 1.1) * side), int(d.u(-0.1, 1.1) * side)
        upright = d.chance(0.6)
        a, b = ((start, -2), (stop, side + 2)) if upright else ((-2, start), (side + 2, stop))
        cv2.line(picture, a, b, tone, max(1, int(side * d.u(0.02, 0.05))), cv2.LINE_AA)


def camera(picture: Float[np.ndarray, "s s 3"], d: Draw, size: int) -> UInt8[np.ndarray, "t t 3"]:
    """Exposure, colour of the light, vignette, blur, noise and JPEG; `s` = 2 `t`, `t` = size."""
    side = picture.shape[0]
    small = cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA)
    gain = d.u(0.75, 1.15) * np.array([1 + d.u(-0.08, 0.08), 1, 1 + d.u(-0.1, 0.1)], np.float32)
    ramp = 1 + d.u(-0.2, 0.2) * np.linspace(-1, 1, size, dtype=np.float32)
    small *= gain * (ramp[None, :, None] if d.chance(0.5) else ramp[:, None, None])
    if d.chance(0.3):
        haze = np.float32(d.u(0.08, 0.25))
        small += (np.float32(0.75) - small) * haze
    sigma = d.u(0.0, 0.9) * side / 96
    if sigma > 0.25:
        small = cv2.GaussianBlur(small, (0, 0), sigma)
    elif d.chance(0.3):
        n = max(2, size // 16)
        small = cv2.blur(small, (n, 1) if d.chance(0.5) else (1, n))
    small += np.float32(d.u(0.01, 0.05)) * textures.sensor_noise(d, size)
    out = np.clip(small * 255 + np.float32(0.5), 0, 255).astype(np.uint8)
    if d.chance(0.5):
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(d.u(45, 90))]
        out = cv2.imdecode(cv2.imencode(".jpg", out, quality)[1], cv2.IMREAD_COLOR)
    return out


def place(scene: Scene, d: Draw, side: int) -> Float[np.ndarray, "s s 3"]:
    """The scene's context with things standing about and, often, out of focus."""
    picture = np.array(contexts.PLACES[scene.context](d, side), np.float32)
    _props(picture, d, d.below(4))
    if d.chance(0.5):
        width = max(1, int(side * d.u(0.01, 0.05))) | 1
        picture = cv2.blur(picture, (width, width))
    return picture


def render(scene: Scene, size: int) -> UInt8[np.ndarray, "t t 3"]:
    """The natural picture of a scene, `size` pixels a side."""
    d = scene.draw(scenes.PIXELS)
    side = 2 * size
    picture = place(scene, d, side)
    parts = scenes.posed(scene, side, d.pick(_DISTANCES), 0.25)
    paint_objects(picture, scene, parts, d)
    if d.chance(0.6):
        _occlude(picture, d)
    _props(picture, d, d.below(3), front=True)
    if d.chance(0.5):  # dappled light
        spots = textures.crop("soft", d, side, side, side * d.u(0.6, 1.2))
        picture *= (1 + np.float32(d.u(0.1, 0.4)) * spots)[..., None]
    return camera(picture, d, size)
