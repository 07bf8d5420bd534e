"""Pictures that are neither: a photo under graphics, a collage, a cut-out drawing in a place."""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import UInt8

from clipdg_jax.data.demo import brushed, canvas, drawn, natural, vocabulary
from clipdg_jax.data.demo import scene as scenes
from clipdg_jax.data.demo.geometry import Draw
from clipdg_jax.data.demo.scene import Scene

Picture = UInt8[np.ndarray, "t t 3"]

_WORDS = ("SALE", "NEW", "50%", "WOW", "HOT", "ONLY $9", "VOL.2", "FREE")


def _graphics(scene: Scene, size: int, d: Draw) -> Picture:
    """A photograph under banners, a frame and lettering."""
    picture = natural.render(scene, size)
    colour = vocabulary.COLOURS[d.pick(tuple(vocabulary.COLOURS))]
    band = int(size * d.u(0.2, 0.32))
    top = 0 if d.chance(0.5) else size - band
    picture[top : top + band] = colour
    if d.chance(0.6):
        cv2.rectangle(picture, (0, 0), (size - 1, size - 1), colour, max(2, size // 14))
    if d.chance(0.7):
        other = vocabulary.COLOURS[d.pick(tuple(vocabulary.COLOURS))]
        centre = (int(size * d.pick((0.2, 0.8))), int(size * (0.25 if top else 0.75)))
        cv2.circle(picture, centre, int(size * d.u(0.12, 0.18)), other, -1, cv2.LINE_AA)
        cv2.circle(picture, centre, int(size * 0.18), (255, 255, 255), 1, cv2.LINE_AA)
    word = d.pick(_WORDS)
    (w, h), _ = cv2.getTextSize(word, cv2.FONT_HERSHEY_SIMPLEX, 1.0, 1)
    scale = min(0.88 * size / w, 0.66 * band / h)
    at = (int(size * 0.06), top + int(band * 0.82))
    thick = max(1, size // 40)
    cv2.putText(
        picture, word, at, cv2.FONT_HERSHEY_SIMPLEX, scale, (255, 255, 255), thick, cv2.LINE_AA
    )
    return picture


def _collage(scene: Scene, size: int, d: Draw) -> Picture:
    """Half photograph, half drawing of the same object, torn along a slanted line."""
    style = d.pick((drawn.sketch, drawn.cartoon, brushed.painting))
    photo, other = natural.render(scene, size), style(scene, size)
    axis = np.arange(size)
    seam = size * d.u(0.42, 0.58) + (axis - size / 2) * d.u(-0.5, 0.5)
    left = axis[None, :] < seam[:, None]
    if d.chance(0.5):
        left = left.T
    return np.where(left[..., None], photo, other)


def _cut_out(scene: Scene, size: int, d: Draw) -> Picture:
    """A drawn figure, cut out with a white rim, standing in a real place."""
    side = 2 * size
    picture = natural.place(scene, d, side)
    parts = scenes.posed(scene, side, (0.6, 0.85), 0.1)
    art = cv2.resize(natural.camera(picture, d, size), (side, side))
    mask = np.minimum(canvas.label_map(parts, side), 1)
    rim = cv2.dilate(mask, np.ones((3, 3), np.uint8), iterations=max(2, side // 20))
    art[rim > 0] = (246, 246, 242)
    drawn.ink_figure(art, scene, parts, d)
    return drawn.shrink(art, size)


def render(scene: Scene, size: int) -> Picture:
    """The ambiguous picture of a scene, `size` pixels a side; which kind is drawn."""
    d = scene.draw(scenes.PIXELS)
    kind = d.pick((_graphics, _collage, _cut_out))
    return kind(scene, size, d)
