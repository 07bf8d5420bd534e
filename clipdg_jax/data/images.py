"""Encoded bytes to the uint8 crops that the model is fed, as open_clip's transforms make them.

JPEG is decoded by simplejpeg (libjpeg-turbo). Its pixels equal Pillow's to the bit, and so do
OpenCV's, but it is the quickest: 256x256 at quality 95 took 255 us on one core, OpenCV 322,
Pillow 494 to an array. Whatever it does not take (CMYK, a damaged file that Pillow can still read,
any other format) goes to Pillow, so that what is readable, and how, is what open_clip reads:
EXIF orientation is not applied, alpha is dropped.
"""

from __future__ import annotations

import io
import math

import numpy as np
import simplejpeg
from jaxtyping import Float64, UInt8
from PIL import Image

from clipdg_jax.data import resize

_JPEG = b"\xff\xd8\xff"
BOX_DRAWS = 40  # random numbers of `random_box`


class ImageError(ValueError):
    """These bytes are not an image that can be decoded."""


def decode(data: bytes) -> UInt8[np.ndarray, "h w 3"]:
    """Decode JPEG, PNG, WebP or whatever else Pillow reads to RGB.

    Raises:
      ImageError: the bytes are damaged, truncated, no image, or one of more pixels than Pillow
        takes for safe (179 million).
    """
    if data[:3] == _JPEG:
        try:
            # Larger ones are for Pillow to refuse. Reading the header takes 1 us.
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
            small = height * width <= (Image.MAX_IMAGE_PIXELS or math.inf)
            if small and colours in ("YCbCr", "Gray", "RGB"):
                return simplejpeg.decode_jpeg(data)
        except ValueError:
            pass  # Pillow decides
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))
    # Pillow's plugins raise nearly anything on damaged files: OSError, SyntaxError, struct.error,
    # IndexError, zlib.error, DecompressionBombError, ...
    except Exception as error:
        raise ImageError(f"{type(error).__name__}: {error}") from error


def random_box(
    draws: Float64[np.ndarray, " 40"],
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> tuple[int, int, int, int]:
    """A box as torchvision's RandomResizedCrop draws it: (top, left, height, width).

    Ten times, an area (a uniform fraction of the image's, within `scale`) and an aspect ratio
    (log-uniform within `ratio`) are drawn; the first that fits is placed uniformly. If none fits,
    the largest central box with a ratio within the bounds.

    Args:
      draws: random numbers, uniform in [0, 1): four for each of ten attempts.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for for_area, for_aspect, for_top, for_left in draws.reshape(-1, 4).tolist():
        area = height * width * (scale[0] + for_area * (scale[1] - scale[0]))
        aspect = math.exp(low + for_aspect * (high - low))
        w = round(math.sqrt(area * aspect))
        h = round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(for_top * (height - h + 1)), int(for_left * (width - w + 1)), h, w
    aspect = min(max(width / height, ratio[0]), ratio[1])
    h = min(height, round(width / aspect))
    w = min(width, round(height * aspect))
    return (height - h) // 2, (width - w) // 2, h, w


def train_crop(
    image: UInt8[np.ndarray, "h w 3"],
    draws: Float64[np.ndarray, " 40"],
    size: int,
    scale: tuple[float, float] = (0.9, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    out: UInt8[np.ndarray, "size size 3"] | None = None,
) -> UInt8[np.ndarray, "size size 3"]:
    """open_clip's training transform: a random box (see `random_box`) resized to a square.

    With `out`, a contiguous array, the result is written there.
    """
    top, left, height, width = random_box(draws, image.shape[0], image.shape[1], scale, ratio)
    return resize.resize(image[top : top + height, left : left + width], size, size, out)


def eval_crop(image: UInt8[np.ndarray, "h w 3"], size: int) -> UInt8[np.ndarray, "size size 3"]:
    """open_clip's test transform: the short side resized to `size`, then the central square."""
    height, width = image.shape[:2]
    if height <= width:
        resized = resize.resize(image, size, int(size * width / height))
    else:
        resized = resize.resize(image, int(size * height / width), size)
    top = round((resized.shape[0] - size) / 2)
    left = round((resized.shape[1] - size) / 2)
    return resized[top : top + size, left : left + size]
