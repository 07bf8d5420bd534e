"""A batch of records as the domain methods see it: images at any size, and captions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, UInt8

from clipdg_jax.data import images, schema

# Domains are numbered in the order of `schema.DOMAINS`.
DOMAINS = schema.DOMAINS
NATURAL, RENDITION, AMBIGUOUS = range(3)


class Inputs:
    """Records, decoded once when first asked for and resized once for each size.

    Attributes:
      keys: of the records.
      captions: text beside each image, "" where there is none.
      domains: what each record itself says of its domain, "" where it says nothing.
    """

    def __init__(self, records: Sequence[schema.Record]):
        self.keys = [record.key for record in records]
        self.captions = [record.caption for record in records]
        self.domains = [record.domain for record in records]
        self._bytes = [record.image for record in records]
        self._decoded: list[np.ndarray | None] | None = None
        self._sized: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self._bytes)

    @property
    def valid(self) -> Bool[np.ndarray, " n"]:
        """False where the image cannot be decoded."""
        return np.array([image is not None for image in self._images()], bool)

    def images(self, size: int) -> UInt8[np.ndarray, "n size size 3"]:
        """The images by open_clip's test transform, zeros where they cannot be decoded."""
        if size not in self._sized:
            sized = np.zeros((len(self), size, size, 3), np.uint8)
            for row, image in zip(sized, self._images(), strict=True):
                if image is not None:
                    row[:] = images.eval_crop(image, size)
            self._sized[size] = sized
        return self._sized[size]

    def _images(self) -> list[np.ndarray | None]:
        if self._decoded is None:
            self._decoded = [_decode(data) for data in self._bytes]
        return self._decoded


def _decode(data: bytes) -> np.ndarray | None:
    try:
        return images.decode(data)
    except images.ImageError:
        return None
