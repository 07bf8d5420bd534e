"""Rasterising parts: which part covers each pixel, and the colours that paints give."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from clipdg_jax.data.demo.geometry import Part

RGB = tuple[float, ...]  # three numbers

# Fixed paints, sRGB 0..255.
PAINTS: dict[str, RGB] = {
    "dark": (42, 38, 42),
    "light": (242, 240, 232),
    "wood": (122, 84, 52),
    "glass": (170, 206, 226),
    "gold": (240, 182, 62),
    "leaf": (80, 146, 64),
}

_SHIFT = 3  # OpenCV's fixed-point coordinates: 1/8 of a pixel
_ONE = 1 << _SHIFT


def paint(slot: str, main: RGB, shade: float = 0.7, tint: float = 0.35) -> RGB:
    """The colour of a slot on an object of colour `main`, 0..255.

    Args:
      slot: see `geometry.Part`.
      main: the object's colour.
      shade: factor that makes `shade` out of `main`.
      tint: how far `tint` goes from `main` to white.
    """
    r, g, b = main
    if slot == "main":
        return main
    if slot == "shade":
        return (r * shade, g * shade, b * shade)
    if slot == "tint":
        return (r + (255 - r) * tint, g + (255 - g) * tint, b + (255 - b) * tint)
    return PAINTS[slot]


def _fixed_point(points: np.ndarray) -> np.ndarray:
    return np.rint(points * _ONE).astype(np.int32)


def stroke(image: np.ndarray, points: np.ndarray, value, thickness: int, closed: bool) -> None:
    """Draws a smooth line through points (in pixels) into an image, in place."""
    cv2.polylines(image, [_fixed_point(points)], closed, value, thickness, cv2.LINE_AA, _SHIFT)


def fill(image: np.ndarray, part: Part, value, smooth: bool = False) -> None:
    """Paints one part (in pixels) into an image, in place."""
    line = cv2.LINE_AA if smooth else cv2.LINE_8
    points = _fixed_point(part.points)
    if part.width > 0:
        thickness = max(1, round(part.width))
        cv2.polylines(image, [points], False, value, thickness, line, _SHIFT)
    else:
        cv2.fillPoly(image, [points], value, line, _SHIFT)


def label_map(parts: Sequence[Part], side: int) -> UInt8[np.ndarray, "s s"]:
    """For each pixel 1 + the index of the front-most part, 0 for none."""
    ids = np.zeros((side, side), np.uint8)
    for i, part in enumerate(parts):
        fill(ids, part, i + 1)
    return ids


def flat_paint(
    ids: UInt8[np.ndarray, "s s"], colours: Sequence[RGB], background: RGB
) -> UInt8[np.ndarray, "s s 3"]:
    """Each pixel in the colour of its part."""
    table = np.zeros((256, 3), np.uint8)
    table[0] = background
    table[1 : len(colours) + 1] = np.clip(colours, 0, 255)
    return table[ids]


def edges(ids: UInt8[np.ndarray, "s s"]) -> UInt8[np.ndarray, "s s"]:
    """255 where a pixel's part differs from its left or upper neighbour's."""
    out = np.zeros_like(ids)
    out[1:] = (ids[1:] != ids[:-1]) * np.uint8(255)
    out[:, 1:] |= (ids[:, 1:] != ids[:, :-1]) * np.uint8(255)
    return out


def vertical(side: int, top: RGB, bottom: RGB) -> Float[np.ndarray, "s 1 3"]:
    """A gradient from top to bottom, to broadcast over columns."""
    t = np.linspace(0, 1, side, dtype=np.float32)[:, None, None]
    return np.array(top, np.float32) * (1 - t) + np.array(bottom, np.float32) * t
