"""Centroids and the buckets nearest to a record."""

import jax.numpy as jnp
import numpy as np

from clipdg_jax.domains.dedup import kmeans


def clustered(count=600, centres=6, width=16):
    rng = np.random.default_rng(0)
    middle = rng.standard_normal((centres, width))
    own = np.arange(count) % centres
    vectors = middle[own] + 0.1 * rng.standard_normal((count, width))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32), own


def lloyd(vectors, count, iterations, seed):
    """In float64, with sums by scattering."""
    start = np.sort(np.random.default_rng(seed).permutation(len(vectors))[:count])
    centroids = vectors[start].astype(np.float64)
    for _ in range(iterations):
        own = (vectors @ centroids.T).argmax(1)
        for k in range(count):
            if (own == k).any():
                mean = vectors[own == k].sum(0)
                centroids[k] = mean / np.linalg.norm(mean)
    return centroids


def test_centroids_are_lloyds_and_the_same_every_time():
    vectors, _ = clustered()
    found = kmeans.fit(vectors, 7, 5, seed=3)
    np.testing.assert_allclose(found, lloyd(vectors, 7, 5, 3), atol=1e-5)
    np.testing.assert_array_equal(found, kmeans.fit(vectors, 7, 5, seed=3))
    assert not np.allclose(found, kmeans.fit(vectors, 7, 5, seed=4))


def test_nearest_centroids_are_those_of_a_full_sort():
    vectors, _ = clustered(300)
    centroids = kmeans.fit(vectors, 9, 1, seed=0)
    found = kmeans.nearest(vectors.astype(np.float16), jnp.asarray(centroids), 3)
    similarity = vectors.astype(np.float16).astype(np.float32) @ centroids.T
    np.testing.assert_array_equal(found, np.argsort(-similarity, axis=1, kind="stable")[:, :3])
    assert kmeans.nearest(vectors[:0], jnp.asarray(centroids), 2).shape == (0, 2)
