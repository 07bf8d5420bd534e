"""Copies among the records of the pool, as the web has them: of other bytes, or the very same."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import cv2
import numpy as np
from jaxtyping import UInt8

from clipdg_jax.data.demo.geometry import Draw

Picture = UInt8[np.ndarray, "h w 3"]

# Equally often each.
KINDS = ("exact", "reencoded", "resized", "cropped", "mirrored", "recoloured")

# Styles are numbered below 200, and 255 draws them: these draws are independent of all others.
_COPIES = 254
_TRIES = 64
_CROP = 0.05  # of each side


@dataclasses.dataclass(frozen=True, slots=True)
class Copy:
    """What a record is a copy of.

    Attributes:
      of: number of the original.
      kind: one of `KINDS`.
      same_caption: whether the caption came along; else the copy was captioned anew.
    """

    of: int
    kind: str
    same_caption: bool


def _draw(seed: int, number: int, stream: int) -> Draw:
    key = np.array([seed << 8 | _COPIES, number], np.uint64)
    return Draw(np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, stream])))


@functools.lru_cache(maxsize=1 << 16)
def _is_copy(seed: int, number: int, share: float) -> bool:
    return number > 0 and _draw(seed, number, 0).chance(share)


def plan(seed: int, number: int, share: float) -> Copy | None:
    """What record `number` is a copy of: always an earlier original; None for an original.

    A pure function. Records are copies with the probability `share`, save number 0 (and, where
    nearly all are copies, one that finds no original in a few tries).
    """
    if not share or not _is_copy(seed, number, share):
        return None
    d = _draw(seed, number, 1)
    kind, same_caption = d.pick(KINDS), d.chance(0.5)
    for _ in range(_TRIES):
        of = d.below(number)
        if not _is_copy(seed, of, share):
            return Copy(of, kind, same_caption)
    return None


def make(
    copy: Copy, original: bytes, seed: int, number: int, encode: Callable[[Picture, int], bytes]
) -> bytes:
    """The bytes of the copy.

    Args:
      copy: what is copied, and how.
      original: the encoded original.
      seed, number: of the copy.
      encode: gives the bytes of a picture as JPEG of a quality.
    """
    if copy.kind == "exact":
        return original
    decoded = cv2.imdecode(np.frombuffer(original, np.uint8), cv2.IMREAD_COLOR)
    picture = np.ascontiguousarray(decoded[..., ::-1])
    d = _draw(seed, number, 2)
    if copy.kind == "reencoded":
        return encode(picture, 50 + d.below(31))
    changed = {
        "resized": _resized,
        "cropped": _cropped,
        "mirrored": lambda picture, d: picture[:, ::-1],
        "recoloured": _recoloured,
    }[copy.kind](picture, d)
    return encode(np.ascontiguousarray(changed), 85 + d.below(11))


def _resized(picture: Picture, d: Draw) -> Picture:
    """At 60 to 90 % of the side; half of them blown up to the old side again."""
    height, width = picture.shape[:2]
    scale = d.u(0.6, 0.9)
    small = cv2.resize(
        picture, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA
    )
    if d.chance(0.5):
        return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    return small


def _cropped(picture: Picture, d: Draw) -> Picture:
    """Without 5 % of the rows and of the columns, taken from either end."""
    height, width = picture.shape[:2]
    rows, columns = max(1, round(height * _CROP)), max(1, round(width * _CROP))
    top, left = d.below(rows + 1), d.below(columns + 1)
    return picture[top : top + height - rows, left : left + width - columns]


def _recoloured(picture: Picture, d: Draw) -> Picture:
    """Other brightness, contrast, saturation and white balance, each by a little."""
    values = picture.astype(np.float32)
    grey = values.mean(-1, keepdims=True)
    values = grey + (values - grey) * d.u(0.7, 1.3)
    balance = np.array([d.u(0.92, 1.08) for _ in range(3)], np.float32)
    values = (values - 128) * d.u(0.85, 1.15) * balance + 128 + d.u(-14, 14)
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
