"""Renditions made of many small marks: painting and, held out of all training, mosaic.

A stroke field is a tile that stores, for each pixel, the offset to the centre of the mark that
covers it and a random number of that mark. One lookup then gives every mark one colour, which is
far quicker than painting the marks one by one.
"""

from __future__ import annotations

import dataclasses
import functools

import cv2
import numpy as np
from jaxtyping import Float, Int, UInt8

from clipdg_jax.data.demo import canvas, drawn, textures, vocabulary
from clipdg_jax.data.demo import scene as scenes
from clipdg_jax.data.demo.geometry import Draw, Part, ellipse
from clipdg_jax.data.demo.scene import Scene

Picture = UInt8[np.ndarray, "t t 3"]


@dataclasses.dataclass(frozen=True, slots=True)
class Field:
    """Marks that cover a square of twice a picture's side, of which a picture takes a window.

    Attributes:
      hop: where a pixel's mark takes its colour (the mark's centre, or a point on the way to it),
        as the distance in the flattened picture after `reach` pixels were added all around.
      reach: the largest offset in either direction, in pixels.
      noise: three random numbers of the mark, in [-1, 1].
      relief: light and dark within the mark (bristles, grout), about [-1, 1].
    """

    hop: Int[np.ndarray, "n n"]
    reach: int
    noise: Float[np.ndarray, "n n 3"]
    relief: Float[np.ndarray, "n n"]

    def cut(self, y: int, x: int, side: int) -> Field:
        """A window of the field."""
        rows, columns = slice(y, y + side), slice(x, x + side)
        return Field(
            self.hop[rows, columns],
            self.reach,
            self.noise[rows, columns],
            self.relief[rows, columns],
        )


def _painted(name: str, side: int, length: float, aspect: float, swirl: float) -> Field:
    """Overlapping brush strokes that follow a slowly turning direction."""
    d = Draw(textures.named_rng(name))
    n = 2 * side
    unit = side / 96
    half = max(2.0, length * unit)
    count = int(2.6 * n * n / (4 * half * half * aspect))
    turn = np.pi * swirl * cv2.resize(textures.tile("soft"), (n, n))
    owner = np.zeros((n, n), np.int32)
    centres = np.zeros((count + 1, 2), np.int32)
    bristle = np.zeros((n, n), np.float32)
    grid = np.arange(n)
    for i in range(1, count + 1):
        x, y = d.below(n), d.below(n)
        centres[i] = x, y
        angle = turn[y, x] + d.u(-0.35, 0.35)
        reach = int(half * 1.3) + 1
        rows, columns = slice(max(0, y - reach), y + reach), slice(max(0, x - reach), x + reach)
        yy, xx = np.meshgrid(grid[rows] - y, grid[columns] - x, indexing="ij")
        along = xx * np.cos(angle) + yy * np.sin(angle)
        across = yy * np.cos(angle) - xx * np.sin(angle)
        bow = across + 0.1 * along * along / half
        inside = (np.abs(along) < half * d.u(0.7, 1.2)) & (np.abs(bow) < half * aspect)
        owner[rows, columns][inside] = i
        hairs = np.cos(bow[inside] / (half * aspect) * np.pi) * 0.6 + 0.6 * np.cos(
            bow[inside] * 2.3 / unit
        )
        bristle[rows, columns][inside] = hairs - 0.4 * along[inside] / half
    # Half the way to the centre only: a painter bends a stroke to the contour.
    return _field(owner, centres, d, bristle, 0.45)


def _tiled(name: str, side: int, across: int) -> Field:
    """Tesserae: cells around the points of a jittered grid, with dark grout between."""
    d = Draw(textures.named_rng(name))
    n = 2 * side
    step = side / across
    cells = int(np.ceil(n / step))
    jitter = d.rng.uniform(-0.28, 0.28, (cells, cells, 2)) + 0.5
    rows, columns = np.meshgrid(np.arange(cells), np.arange(cells), indexing="ij")
    centres = (np.stack([columns, rows], -1) + jitter) * step
    yy, xx = np.meshgrid(np.arange(n), np.arange(n), indexing="ij")
    near = np.full((2, n, n), 1e9, np.float32)
    owner = np.zeros((n, n), np.int32)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            r = np.clip((yy / step).astype(int) + dy, 0, cells - 1)
            c = np.clip((xx / step).astype(int) + dx, 0, cells - 1)
            offset = np.abs(centres[r, c] - np.stack([xx, yy], -1))
            # Between the square and the round distance: cells with blunt corners.
            distance = (offset.max(-1) + 0.5 * offset.sum(-1)).astype(np.float32)
            closer = distance < near[0]
            near[1] = np.where(
                closer,
                near[0],
                np.where(distance == near[0], near[1], np.minimum(near[1], distance)),
            )
            owner = np.where(closer, r * cells + c + 1, owner)
            near[0] = np.where(closer, distance, near[0])
    grout = np.clip(1 - (near[1] - near[0]) / (0.3 * step), 0, 1)
    flat = np.concatenate([np.zeros((1, 2)), centres.reshape(-1, 2)])
    return _field(owner, np.rint(flat).astype(np.int32), d, -grout, 1.0)


def _field(
    owner: np.ndarray, centres: np.ndarray, d: Draw, relief: np.ndarray, share: float
) -> Field:
    """The field of marks `owner` (0: bare), offsets leading `share` of the way to the centres."""
    n = owner.shape[0]
    yy, xx = np.meshgrid(np.arange(n), np.arange(n), indexing="ij")
    own = centres[owner]
    dx = np.where(owner > 0, np.rint(share * (own[..., 0] - xx)), 0).astype(np.int32)
    dy = np.where(owner > 0, np.rint(share * (own[..., 1] - yy)), 0).astype(np.int32)
    reach = int(max(np.abs(dx).max(), np.abs(dy).max()))
    hop = dy * (n // 2 + 2 * reach) + dx
    noise = d.rng.uniform(-1, 1, (len(centres), 3)).astype(np.float32)[owner]
    return Field(hop, reach, noise, relief.astype(np.float32))


@functools.lru_cache(maxsize=16)
def _field_for(name: str, side: int) -> Field:
    if name == "dabs":
        return _painted(name, side, 5.0, 0.42, 0.6)
    if name == "strokes":
        return _painted(name, side, 9.0, 0.26, 0.5)
    if name == "swirls":
        return _painted(name, side, 7.5, 0.3, 1.6)
    return _tiled(name, side, 21 if name == "fine_tiles" else 17)


def _gathered(picture: np.ndarray, field: Field) -> np.ndarray:
    """Every pixel in the colour found at its mark's offset."""
    side, reach = picture.shape[0], field.reach
    wide = side + 2 * reach
    padded = cv2.copyMakeBorder(picture, reach, reach, reach, reach, cv2.BORDER_REPLICATE)
    axis = np.arange(reach, reach + side)
    places = field.hop + (axis[:, None] * wide + axis[None, :])
    return padded.reshape(wide * wide, *picture.shape[2:]).take(places, axis=0)


def _window(name: str, d: Draw, side: int) -> Field:
    return _field_for(name, side).cut(d.below(side), d.below(side), side)


# Painters' palettes, sRGB in hexadecimal: no picture's colours are nature's.
_PALETTES = tuple(
    np.array([list(bytes.fromhex(colour)) for colour in palette.split()], np.float32)
    for palette in (
        "182242 2e4a76 5c80a0 a8bec4 ded6be 78585c 406060 be8c6e",  # a blue period
        "d63e2c f49e28 fadc5a 28825a 1e5aa0 6e3c8c ec8296 1e1e3c",  # the fauves
        "3a2820 70482c a6703c d0a460 e8d4a8 783228 545c3e 3c5460",  # earth and ochre
        "f0d0cc ced8ec d6e8d0 faecbe beaad0 96bec4 e2a096 6e6888",  # pastel
        "28183a 5c2458 a83c5c e86e54 fcb870 5a6496 327882 f4e2c4",  # dusk
    )
)


def _nearest(palette: np.ndarray, colour) -> np.ndarray:
    """The palette's colour closest in hue and lightness."""
    colour = np.asarray(colour, np.float32)
    a, b = palette - palette.mean(-1, keepdims=True), colour - colour.mean()
    hue = ((a - b) ** 2).sum(-1)
    light = (palette.mean(-1) - colour.mean()) ** 2
    return palette[int(np.argmin(hue + 1.2 * light))]


def painting(scene: Scene, size: int) -> Picture:
    """Brush strokes from a painter's palette over an abstract wash, on canvas."""
    d = scene.draw(scenes.PIXELS)
    side = 2 * size
    palette = _PALETTES[d.below(len(_PALETTES))]
    parts = scenes.posed(scene, side, drawn.SCALE, drawn.SHIFT, drawn.CARICATURE)
    ids = canvas.label_map(parts, side)
    main = _nearest(palette, vocabulary.COLOURS[scene.colour])
    # The wash: two palette tones away from the object's, in large soft patches.
    far = np.argsort(-((palette - main) ** 2).sum(-1))
    first, second = palette[far[d.below(3)]], palette[far[d.below(4)]]
    patch = np.clip(textures.crop("soft", d, side, side, side * 1.2) * 1.5 + 0.5, 0, 1)[..., None]
    picture = first * (1 - 0.6 * patch) + second * (0.6 * patch)
    for _ in range(d.below(9)):  # bold planes
        colour = 0.4 * first + 0.1 * second + 0.5 * palette[d.below(len(palette))]
        plane = ellipse(
            d.u(0, side),
            d.u(0, side),
            d.u(0.1, 0.4) * side,
            d.u(0.1, 0.5) * side,
            d.u(0, 3),
            d.pick((3, 4, 5)),
        )
        canvas.fill(picture, Part(plane), tuple(float(v) for v in colour))
    table = np.zeros((256, 3), np.float32)
    lum = float(main.mean())
    for i, part in enumerate(parts):
        wanted = canvas.paint(part.slot, tuple(float(v) for v in main), 0.68, 0.4)
        fixed = part.slot in canvas.PAINTS
        table[i + 1] = _nearest(palette, wanted) if fixed else wanted
    cv2.copyTo(table[ids], np.minimum(ids, 1), picture)
    # A light side and a dark side, as broad planes.
    axis = np.linspace(-1, 1, side, dtype=np.float32) * d.pick((-1, 1))
    plane = np.where(ids > 0, np.sign(axis + 0.3 * textures.crop("soft", d, side, side, side)), 0)
    picture = picture * (1 + 0.13 * plane)[..., None]
    name = d.pick(("dabs", "strokes", "swirls"))
    field = _window(name, d, side)
    out = _gathered(picture, field)
    if d.chance(0.5):  # a dark contour, itself brushed
        rim = cv2.dilate(canvas.edges(np.minimum(ids, 1)), np.ones((3, 3), np.uint8))
        dark = palette[int(np.argmin(palette.sum(-1)))]
        weight = (_gathered(rim, field) > 0) * np.float32(0.55 if lum > 90 else 0.3)
        out = out + (dark - out) * weight[..., None]
    weave = textures.crop("canvas", d, side, side, side * 1.3)
    out = out * (1 + 0.09 * field.relief + 0.05 * weave)[..., None] + 20 * field.noise
    return drawn.shrink(np.clip(out, 0, 255).astype(np.uint8), size)


def mosaic(scene: Scene, size: int) -> Picture:
    """Tesserae of glass and stone in grey grout; never in the training styles."""
    d = scene.draw(scenes.PIXELS)
    side = 2 * size
    parts = scenes.posed(scene, side, (0.8, 0.95), 0.03, drawn.CARICATURE)
    ids = canvas.label_map(parts, side)
    main = tuple(float(v) for v in vocabulary.COLOURS[scene.colour])
    light = sum(main) > 330 and d.chance(0.6)
    ground = (52, 58, 84) if light else drawn.CONTEXT_TONES[scene.context][0]
    colours = [canvas.paint(p.slot, main, 0.72, 0.45) for p in parts]
    picture = canvas.flat_paint(ids, colours, ground).astype(np.float32)
    field = _window(d.pick(("fine_tiles", "coarse_tiles")), d, side)
    out = _gathered(picture, field) * (1 + 0.12 * field.noise[..., :1]) + 10 * field.noise
    grout = np.array([96, 92, 88], np.float32)
    out = out + (grout - out) * (-0.75 * field.relief)[..., None]
    return drawn.shrink(np.clip(out, 0, 255).astype(np.uint8), size)
