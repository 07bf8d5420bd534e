"""Pillow's antialiased bicubic resize of uint8 images: the same to the bit, in a sixth of its time.

Pillow filters rows, rounds to uint8, filters columns and rounds again, with weights that are
multiples of 2^-22 and sums in int32. So does this. Its loops run along the pixels of a row, which
the compiler turns into vector instructions, on the image and on its transpose in turn; Pillow's run
along the few weights of an output. Integers make the result the same on any machine. (OpenCV's
INTER_CUBIC has another kernel and does not antialias.)

The first call in a process compiles the loop, in about a second.
"""

from __future__ import annotations

import functools

import cv2
import numba
import numpy as np
from jaxtyping import Int32, Int64, UInt8

_BITS = 22  # of a weight's fraction; 255 times the largest sum of weights stays within int32


@functools.lru_cache(maxsize=1024)
def weights(
    inputs: int, outputs: int
) -> tuple[Int64[np.ndarray, " outputs"], Int32[np.ndarray, "outputs taps"]]:
    """The first input of each output, and the weights of it and of those after it, times 2^22.

    Keys' cubic (a = -1/2), widened when it shrinks; output i is centred on (i + 1/2) inputs /
    outputs. Operations and their order are Pillow's (`precompute_coeffs` and
    `normalize_coeffs_8bpc` of its Resample.c), so that the rounding is too.
    """
    scale = inputs / outputs
    width = max(scale, 1.0)
    centre = (np.arange(outputs) + 0.5) * scale
    first = np.maximum(centre - 2 * width + 0.5, 0).astype(np.int64)
    last = np.minimum(centre + 2 * width + 0.5, inputs).astype(np.int64)
    taps = (last - first).max()
    position = first + np.arange(taps)[:, None]
    x = np.abs((position - centre + 0.5) * (1 / width))
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    kernel = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    kernel[position >= last] = 0
    kernel /= kernel.sum(0)  # row by row, as a loop over the taps adds
    units = kernel * (1 << _BITS)
    units = np.trunc(units + np.copysign(0.5, units)).astype(np.int32)
    # The last outputs have fewer inputs than others: theirs begin earlier, with weights of zero.
    start = np.minimum(first, inputs - taps)
    shift = first - start
    shifted = np.zeros((outputs, taps), np.int32)
    for output, by in enumerate(shift):
        shifted[output, by:] = units[: taps - by, output]
    return start, shifted


@numba.njit(nogil=True)
def _filter(source, first, factors, out):
    """out[i] = sum_k factors[i, k] source[first[i] + k], rounded and clipped to uint8."""
    total = np.empty(out.shape[1], np.int32)
    for i in range(out.shape[0]):
        total[:] = 1 << (_BITS - 1)
        for k in range(factors.shape[1]):
            factor = factors[i, k]
            row = source[first[i] + k]
            for j in range(total.size):
                total[j] += factor * np.int32(row[j])
        for j in range(total.size):
            out[i, j] = min(max(total[j] >> _BITS, 0), 255)


def _filter_rows(
    image: UInt8[np.ndarray, "h w 3"],
    outputs: int,
    out: UInt8[np.ndarray, "outputs w 3"] | None = None,
) -> UInt8[np.ndarray, "outputs w 3"]:
    """Resize the first axis alone."""
    height, width, _ = image.shape
    if out is None:
        out = np.empty((outputs, width, 3), np.uint8)
    if height == outputs:
        out[...] = image
    else:
        rows = np.ascontiguousarray(image).reshape(height, width * 3)
        _filter(rows, *weights(height, outputs), out.reshape(outputs, width * 3))
    return out


def resize(
    image: UInt8[np.ndarray, "h w 3"],
    height: int,
    width: int,
    out: UInt8[np.ndarray, "height width 3"] | None = None,
) -> UInt8[np.ndarray, "height width 3"]:
    """`PIL.Image.resize((width, height), BICUBIC)` of Pillow 13; any strides will do.

    With `out`, a contiguous array, the result is written there: straight to a batch's row, it
    saves a copy.
    """
    if out is None:
        out = np.empty((height, width, 3), np.uint8)
    elif not out.flags.c_contiguous:
        raise ValueError("out is not contiguous")
    # Each pass rounds, so that their order shows. Before version 13, Pillow never chose.
    fewer_rows, fewer_columns = image.shape[0] - height, image.shape[1] - width
    if fewer_rows > max(0, 2 * fewer_columns):
        columns = _filter_rows(cv2.transpose(_filter_rows(image, height)), width)
        cv2.transpose(columns, dst=out)
    else:
        columns = _filter_rows(cv2.transpose(image), width)
        _filter_rows(cv2.transpose(columns), height, out)
    return out
