"""An embedding without a model: how an image's light is spread, the same for its mirror image.

Stands in where there is no encoder. It knows nothing of content: of two photos of one thing it says
that they differ, which is what a search for copies wants, and copies cut by more than a tenth, or
with a banner added, are lost on it.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, UInt8

from clipdg_jax.domains.dedup import hashes

_FREQUENCIES = 8  # in each direction
WIDTH = _FREQUENCIES**2 - 1


def describe(
    thumbnails: UInt8[np.ndarray, "n 32 32"],
) -> Float32[np.ndarray, "n 63"]:
    """Descriptors of length 1, or 0 for an image without structure.

    The low frequencies of the DCT without the mean, each times the root of its distance from 0, so
    that the few lowest do not decide alone. Mirroring turns the sign of the odd horizontal ones,
    which therefore count by their size only.
    """
    dct = hashes.dct_matrix(hashes.SIDE)[:_FREQUENCIES]
    low = dct @ thumbnails.astype(np.float64) @ dct.T
    low *= np.sqrt(np.hypot(*np.indices((_FREQUENCIES, _FREQUENCIES))))
    low[..., 1::2] = np.abs(low[..., 1::2])
    flat = low.reshape(len(low), -1)[:, 1:]
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    return np.where(length > 1, flat / np.maximum(length, 1), 0).astype(np.float32)
