"""Spherical k-means on the device, and the centroids nearest to a record.

Sums are matrix products in a fixed order, not scattered additions, so that the same device gives
the same centroids every time.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int32

# Similarities held at a time: 256 MB of float32.
_ENTRIES = 1 << 26
_MAX_BLOCK = 4096


def fit(
    sample: Float32[np.ndarray, "n d"], count: int, iterations: int, seed: int
) -> Float32[np.ndarray, "count d"]:
    """Centroids of length 1 for vectors of length 1, by Lloyd's iterations.

    They start at `count` random vectors of the sample; one that loses all its vectors stays where
    it is.

    Args:
      sample: what they are fitted to; n >= count.
      count: of centroids.
      iterations: over the sample.
      seed: of the start.
    """
    start = np.random.default_rng(seed).permutation(len(sample))[:count]
    centroids = jnp.asarray(sample[np.sort(start)])
    block = _block(count)
    for _ in range(iterations):
        sums = jnp.zeros_like(centroids)
        for first in range(0, len(sample), block):
            part = sample[first : first + block]
            sums = _add(sums, centroids, _padded(part, block), len(part))
        centroids = _moved(centroids, sums)
    return np.asarray(centroids)


def nearest(
    vectors: Float[np.ndarray, "n d"], centroids: Float32[Array, "count d"], probes: int
) -> Int32[np.ndarray, "n probes"]:
    """The `probes` centroids of the largest cosine for each vector, the nearest first."""
    count = len(centroids)
    block = _block(count)
    found = [np.zeros((0, probes), np.int32)]
    for first in range(0, len(vectors), block):
        part = vectors[first : first + block].astype(np.float32)
        chosen = _nearest(jnp.asarray(_padded(part, block)), centroids, probes)
        found.append(np.asarray(chosen)[: len(part)])
    return np.concatenate(found)


def _block(count: int) -> int:
    """Vectors at a time: a power of two, so that there are few shapes to compile for."""
    return 1 << max(6, min(_MAX_BLOCK, _ENTRIES // count).bit_length() - 1)


def _padded(part: np.ndarray, block: int) -> np.ndarray:
    if len(part) == block:
        return part
    return np.concatenate([part, np.zeros((block - len(part), part.shape[1]), part.dtype)])


@functools.partial(jax.jit, donate_argnums=0)
def _add(sums: Array, centroids: Array, vectors: Array, real: Array) -> Array:
    """Adds each of the first `real` vectors to the sum of its nearest centroid."""
    nearest = jnp.argmax(_similarities(vectors, centroids), axis=1)
    chosen = jax.nn.one_hot(nearest, len(centroids), dtype=jnp.float32)
    chosen = chosen * (jnp.arange(len(vectors)) < real)[:, None]
    return sums + jnp.matmul(chosen.T, vectors, precision=jax.lax.Precision.HIGHEST)


@jax.jit
def _moved(centroids: Array, sums: Array) -> Array:
    length = jnp.linalg.norm(sums, axis=1, keepdims=True)
    return jnp.where(length > 0, sums / jnp.maximum(length, 1e-12), centroids)


@functools.partial(jax.jit, static_argnames="probes")
def _nearest(vectors: Array, centroids: Array, probes: int) -> Array:
    similarities = _similarities(vectors, centroids)
    found = []
    # For one or two, looking for the maximum is far quicker than sorting.
    for _ in range(probes):
        best = jnp.argmax(similarities, axis=1)
        found.append(best)
        taken = jnp.arange(len(centroids))[None, :] == best[:, None]
        similarities = jnp.where(taken, -jnp.inf, similarities)
    return jnp.stack(found, axis=1).astype(jnp.int32)


def _similarities(vectors: Array, centroids: Array) -> Array:
    return jnp.matmul(vectors, centroids.T, preferred_element_type=jnp.float32)
