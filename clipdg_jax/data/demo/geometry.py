"""Curves and polygons that the object shapes are put together from.

Coordinates are object units, x to the right and y down, an object filling roughly [-1, 1]^2.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from jaxtyping import Float

Points = Float[np.ndarray, "n 2"]


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """One piece of an object, drawn over the pieces before it.

    Attributes:
      points: polygon corners, or the points of an open line where `width` is positive.
      slot: what paints it: `main` (the object's colour and material), `shade` and `tint` (darker
        and lighter versions of it), or a fixed paint: dark, light, wood, glass, gold, leaf.
      width: 0 for a filled polygon, else the line's width in object units.
      detail: an inner mark (a window, an eye) that a style may leave out.
    """

    points: Points
    slot: str = "main"
    width: float = 0.0
    detail: bool = False


class Draw:
    """Short names for the scalar draws that the shapes are full of."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng
        self._random = rng.random

    def u(self, low: float, high: float) -> float:
        """Uniform in [low, high)."""
        return low + (high - low) * self._random()

    def chance(self, p: float) -> bool:
        """True with probability p."""
        return self._random() < p

    def below(self, n: int) -> int:
        """Uniform integer in [0, n)."""
        return int(self._random() * n)

    def pick(self, options):
        """One element of a sequence, uniformly."""
        return options[self.below(len(options))]


def poly(*corners: tuple[float, float]) -> Points:
    return np.array(corners, np.float32)


def box(left: float, top: float, right: float, bottom: float) -> Points:
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)], np.float32)


@functools.lru_cache(maxsize=64)
def _circle(n: int) -> Points:
    angle = np.linspace(0, 2 * np.pi, n, endpoint=False)
    return np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)


def ellipse(cx: float, cy: float, rx: float, ry: float, turn: float = 0.0, n: int = 24) -> Points:
    """An ellipse turned clockwise by `turn` radians."""
    points = _circle(n) * np.array([rx, ry], np.float32)
    if turn:
        points = rotate(points, turn)
    return points + np.array([cx, cy], np.float32)


def rotate(points: Points, turn: float) -> Points:
    """Turns points clockwise (y is down) about the origin by `turn` radians."""
    c, s = np.cos(turn), np.sin(turn)
    return points @ np.array([[c, s], [-s, c]], np.float32)


@functools.lru_cache(maxsize=8)
def _spline_basis(steps: int) -> np.ndarray:
    t = np.linspace(0, 1, steps, endpoint=False)[:, None]
    basis = np.concatenate(
        [
            -0.5 * t + t**2 - 0.5 * t**3,
            1 - 2.5 * t**2 + 1.5 * t**3,
            0.5 * t + 2 * t**2 - 1.5 * t**3,
            -0.5 * t**2 + 0.5 * t**3,
        ],
        1,
    )
    return basis.astype(np.float32)


def curve(*knots: tuple[float, float], closed: bool = False, steps: int = 6) -> Points:
    """A Catmull-Rom spline through the knots, `steps` points for each piece."""
    k = np.array(knots, np.float32)
    if closed:
        rows = np.arange(len(k))
        padded = np.concatenate([k[-1:], k, k[:2]])
    else:
        rows = np.arange(len(k) - 1)
        padded = np.concatenate([2 * k[:1] - k[1:2], k, 2 * k[-1:] - k[-2:-1]])
    windows = np.stack([padded[rows + i] for i in range(4)], 1)
    points = np.einsum("sk,nkc->nsc", _spline_basis(steps), windows).reshape(-1, 2)
    return points if closed else np.concatenate([points, k[-1:]])


def mirrored(parts: list[Part]) -> list[Part]:
    """The parts seen in a mirror."""
    flip = np.array([-1, 1], np.float32)
    return [dataclasses.replace(p, points=p.points * flip) for p in parts]
