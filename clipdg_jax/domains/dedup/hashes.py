"""Content hash and perceptual hash of an image, and the distance of perceptual hashes.

The perceptual hash is pHash (Zauner, "Implementation and Benchmarking of Perceptual Image Hash
Functions", 2010): 64 low frequencies of the image's DCT, each above or below their median.
Re-encoding, resizing and mild changes of colour turn few of its bits; a crop by 5 % a dozen or so.
"""

from __future__ import annotations

import functools
import hashlib

import cv2
import numpy as np
from jaxtyping import Float64, Int, UInt8, UInt64

BITS = 64
SIDE = 32  # of the thumbnail that the hash is made of, in pixels
COLOUR_SIDE = 8
# Frequencies 1 to 8 in both directions: without the mean, and without pure rows and columns.
_LOW = slice(1, 9)
# A frequency of a smaller amplitude than this, in grey levels, is rounding, not content.
_FLAT = 1e-3


def sha256(data: bytes) -> str:
    """sha256 (hex) of an encoded image's bytes: equal for copies of the file only."""
    return hashlib.sha256(data).hexdigest()


def thumbnail(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "32 32"]:
    """The luminance of an image, squeezed to 32 x 32 by averaging (bilinear where it grows)."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    shrinks = min(grey.shape) >= SIDE
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(grey, (SIDE, SIDE), interpolation=how)


def colours(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "8 8 2"]:
    """The two chroma planes (Cr, Cb) of an image, squeezed to 8 x 8."""
    how = cv2.INTER_AREA if min(image.shape[:2]) >= COLOUR_SIDE else cv2.INTER_LINEAR
    small = cv2.resize(image, (COLOUR_SIDE, COLOUR_SIDE), interpolation=how)
    return cv2.cvtColor(small, cv2.COLOR_RGB2YCrCb)[..., 1:]


@functools.cache
def dct_matrix(size: int) -> Float64[np.ndarray, "size size"]:
    """The orthonormal DCT-II: row k is frequency k."""
    k, x = np.arange(size)[:, None], np.arange(size)[None, :]
    matrix = np.cos(np.pi * k * (2 * x + 1) / (2 * size)) * np.sqrt(2 / size)
    matrix[0] /= np.sqrt(2)
    return matrix


def phashes(
    small: UInt8[np.ndarray, "n 32 32"],
) -> tuple[UInt64[np.ndarray, " n"], UInt64[np.ndarray, " n"]]:
    """The perceptual hashes of n thumbnails, and those of their mirror images.

    Mirroring changes the sign of the odd horizontal frequencies and nothing else. Both are 0 for an
    image without structure (one of a single colour), which says nothing of what it is a copy of.
    """
    dct = dct_matrix(SIDE)[_LOW]
    low = dct @ small.astype(np.float64) @ dct.T
    structured = np.abs(low).max((1, 2), initial=0) >= _FLAT * SIDE
    mirrored = low.copy()
    mirrored[..., ::2] *= -1  # frequencies 1, 3, 5, 7
    return _bits(low) * structured, _bits(mirrored) * structured


def phash(image: UInt8[np.ndarray, "h w 3"]) -> int:
    """The perceptual hash (64 bits) of an image; 0 for an image of a single colour."""
    return int(phashes(thumbnail(image)[None])[0][0])


def _bits(low: Float64[np.ndarray, "n 8 8"]) -> UInt64[np.ndarray, " n"]:
    """Bit 63 - i says whether value i (row by row) is above the median."""
    flat = low.reshape(-1, BITS)
    middle = BITS // 2 - 1  # above this one of the sorted values are those above the median
    above = flat > np.partition(flat, middle, axis=1)[:, middle, None]
    return np.packbits(above, axis=1).view(">u8")[:, 0].astype(np.uint64)


def distance(
    first: UInt64[np.ndarray, " n"], second: UInt64[np.ndarray, " n"]
) -> Int[np.ndarray, " n"]:
    """The Hamming distance of each pair of hashes: 0 to 64 bits."""
    return np.bitwise_count(np.bitwise_xor(first, second))
