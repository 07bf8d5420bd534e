"""A batch of records as the domain methods see it: images at any size, and captions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

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
        self._valid: np.ndarray | None = None
        self._sized: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self._bytes)

    @property
    def valid(self) -> Bool[np.ndarray, " n"]:
        """False where the image cannot be decoded."""
        if self._valid is None:
            self._valid = np.array([image is not None for image in self._images()], bool)
        return self._valid

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes at which images were asked for."""
        return tuple(self._sized)

    def prepare(
        self,
        sizes: Sequence[int],
        look: Callable[[UInt8[np.ndarray, "h w 3"]], Any],
        mapped: Callable[[Callable, Iterable], Iterable] = map,
    ) -> list[Any]:
        """Decodes the images, resizes them to `sizes`, and lets go of them.

        A batch that waits for its turn then holds nothing larger than what it will be asked for.
        Should it be asked for another size, images are decoded once more. Those that are the same
        object, as where a batch was filled up, are decoded once.

        Args:
          sizes: that `images` will be asked for.
          look: what to keep of a whole image besides.
          mapped: the `map` to do it with, say a thread pool's.

        Returns:
          What `look` returned for each image; None where it cannot be decoded.
        """

        def make(data: bytes) -> tuple[Any, list[np.ndarray]] | None:
            image = _decode(data)
            if image is None:
                return None
            return look(image), [images.eval_crop(image, size) for size in sizes]

        distinct = {id(data): data for data in self._bytes}
        made = dict(zip(distinct, mapped(make, distinct.values()), strict=True))
        found = [made[id(data)] for data in self._bytes]
        self._valid = np.array([one is not None for one in found], bool)
        for place, size in enumerate(sizes):
            self._sized[size] = sized = np.zeros((len(self), size, size, 3), np.uint8)
            for row, one in zip(sized, found, strict=True):
                if one is not None:
                    row[:] = one[1][place]
        return [None if one is None else one[0] for one in found]

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
