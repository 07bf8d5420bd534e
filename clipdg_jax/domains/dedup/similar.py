"""The duplicates within a bucket: proposed by cosine, confirmed by hash and pixels.

Records are gone through in blocks, the best first. A block's own duplicates are found, those that
are dropped stop proposing, and the others are compared with all that follow. So a thousand copies
of one picture give a thousand pairs, not a million.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int64, UInt8

from clipdg_jax.domains.dedup import clusters, hashes, pixels
from clipdg_jax.domains.dedup.signatures import REFERENCE

# Devices multiply in bfloat16 at worst: a cosine is off by 2^-8 at most. So much below the
# threshold is proposed, and then computed again on the host, the same on every device.
_MARGIN = 2.0**-8
_BYTE = 8
# Pairs whose cosine is computed at a time.
_PAIRS = 1 << 16


@dataclasses.dataclass(frozen=True)
class Rule:
    """When two records are duplicates.

    Attributes:
      how: `clusters.CASCADE` or `clusters.EMBEDDING`.
      cosine: of the embeddings, at least.
      distance: of the perceptual hashes (or with one of the mirror image), at most; cascade only.
      correlation: of the pixels, see `pixels.correlation`, at least; cascade only.
    """

    how: int
    cosine: float
    distance: int = hashes.BITS
    correlation: float = -1.0

    def confirm(
        self, entries: np.ndarray, left: np.ndarray, right: np.ndarray
    ) -> tuple[Bool[np.ndarray, " n"], np.ndarray]:
        """Which of these pairs of entries are duplicates too by hash and pixels; distances."""
        if self.how == clusters.EMBEDDING:
            return np.ones(len(left), bool), np.full(len(left), -1, np.int16)
        own = hashes.distance(entries["phash"][left], entries["phash"][right])
        mirror = hashes.distance(entries["phash"][left], entries["mirror"][right])
        apart = np.minimum(own, mirror).astype(np.int16)
        close = np.flatnonzero(apart <= self.distance)
        confirmed = np.zeros(len(left), bool)
        for start in range(0, len(close), _PAIRS):
            some = close[start : start + _PAIRS]
            first, second = (
                (entries["thumbnail"][side[some]], entries["colours"][side[some]])
                for side in (left, right)
            )
            seen = pixels.correlation(first, second, (mirror < own)[some])
            confirmed[some] = seen >= self.correlation
        return confirmed, apart


def find(entries: np.ndarray, rule: Rule, block: int = 0) -> clusters.Edges:
    """The edges from the records that are best among their duplicates to those, within a bucket.

    Args:
      entries: of the bucket, see `buckets.entry`.
      rule: when two are duplicates.
      block: records compared at a time; 0: what suits the device. The result does not depend on it.
    """
    block = block or block_size()
    entries = entries[clusters.order(entries["pixels"], entries["row"])]
    count = len(entries)
    blocks = -(-count // block)
    vectors = np.zeros((blocks * block, entries["embedding"].shape[1]), np.float32)
    vectors[:count] = entries["embedding"]
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors /= np.maximum(length, 1e-6)
    on_device = [jnp.asarray(vectors[i * block : (i + 1) * block], _dtype()) for i in range(blocks)]
    bucket = _Bucket(entries, vectors, on_device, rule)
    found = [clusters.NONE]
    for i in range(blocks):
        # First within the block, so that what is dropped there proposes nothing to the others.
        found += [bucket.compare(i, range(i, i + 1)), bucket.compare(i, range(i + 1, blocks))]
    return np.concatenate(found)


class _Bucket:
    """A bucket in the course of its comparisons; its entries are sorted from the best on."""

    def __init__(
        self, entries: np.ndarray, vectors: np.ndarray, on_device: list[Array], rule: Rule
    ):
        self._entries = entries
        self._vectors = vectors
        self._on_device = on_device
        self._block = len(on_device[0]) if on_device else 0
        self._rule = rule
        self._reference = entries["pixels"] == REFERENCE
        self._gone = np.zeros(len(entries), bool)

    def compare(self, block: int, others: range) -> clusters.Edges:
        """The edges from a block's records to those of the same or later blocks."""
        if not others:
            return clusters.NONE
        proposed = [self._propose(block, other) for other in others]
        left, right, cosine = (np.concatenate(column) for column in zip(*proposed, strict=True))
        confirmed, apart = self._rule.confirm(self._entries, left, right)
        left, right = left[confirmed], right[confirmed]
        for i in np.lexsort((right, left)).tolist():
            if not self._gone[left[i]]:
                self._gone[right[i]] = True
        keepers = ~self._gone[left]
        left, right = left[keepers], right[keepers]
        pixels, rows = self._entries["pixels"], self._entries["row"]
        return clusters.edges(
            (pixels[left], pixels[right]),
            (rows[left], rows[right]),
            self._rule.how,
            cosine[confirmed][keepers],
            apart[confirmed][keepers],
        )

    def _propose(self, block: int, other: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pairs of positions, the better first, and their cosines."""
        left, right = _above(
            self._on_device[block], self._on_device[other], self._rule.cosine - _MARGIN
        )
        left, right = left + block * self._block, right + other * self._block
        sound = (left < right) & (right < len(self._entries))
        left, right = left[sound], right[sound]
        # References are not compared with each other; none of them is ever dropped.
        sound = ~self._gone[left] & ~self._reference[right]
        left, right = left[sound], right[sound]
        cosine = _cosines(self._vectors, left, right)
        sound = cosine >= self._rule.cosine
        return left[sound], right[sound], cosine[sound]


def bytes_per_entry(dtype: np.dtype) -> int:
    """Memory that `find` takes for each record: two copies of the entry, and float32 vectors."""
    width = dtype["embedding"].shape[0]
    return 2 * dtype.itemsize + 3 * 4 * width


def block_size() -> int:
    """Records compared at a time on this device."""
    return 512 if jax.default_backend() == "cpu" else 4096


def _dtype() -> jnp.dtype:
    """In which the device multiplies quickest what is stored as float16."""
    by_backend = {"cpu": jnp.float32, "gpu": jnp.float16}
    return by_backend.get(jax.default_backend(), jnp.bfloat16)


def _above(
    left: Float32[Array, "b d"], right: Float32[Array, "b d"], threshold: float
) -> tuple[Int64[np.ndarray, " p"], Int64[np.ndarray, " p"]]:
    """The pairs of rows whose product is above the threshold."""
    packed = np.asarray(_packed(left, right, threshold))
    rows, columns = np.nonzero(packed)
    bits = np.unpackbits(packed[rows, columns, None], axis=1)
    pair, bit = np.nonzero(bits)
    return rows[pair], columns[pair] * _BYTE + bit


@jax.jit
def _packed(left: Array, right: Array, threshold: Array) -> UInt8[Array, "b b8"]:
    """Eight comparisons a byte, so that little is copied from the device."""
    products = jnp.matmul(left, right.T, preferred_element_type=jnp.float32)
    return jnp.packbits(products >= threshold, axis=1)


def _cosines(vectors: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """In float32, from vectors of length 1."""
    found = [np.zeros(0, np.float32)]
    for start in range(0, len(left), _PAIRS):
        some = slice(start, start + _PAIRS)
        found.append(np.einsum("nd,nd->n", vectors[left[some]], vectors[right[some]]))
    return np.concatenate(found)
