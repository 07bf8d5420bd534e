"""Resamples of accuracies over test images and over seeds, for every interval of a report."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

_CHUNK = 256  # Resamples at once: bounds the memory of a test set of 50 000 images to 50 MB.


def over_images(
    correct: Bool[np.ndarray, "runs images"], resamples: int, rng: np.random.Generator
) -> Float[np.ndarray, "resamples runs"]:
    """Accuracies of all runs on the same resampled images of one test set.

    As all runs answer the same images, their differences vary less than their accuracies.
    """
    images = correct.shape[1]
    table = correct.T.astype(np.float32)
    found = []
    for start in range(0, resamples, _CHUNK):
        rows = min(_CHUNK, resamples - start)
        # How often each image is drawn; several times quicker than `multinomial`.
        drawn = rng.integers(images, size=(rows, images)) + images * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * images).reshape(rows, images)
        found.append(times.astype(np.float32) @ table)
    return np.concatenate(found).astype(np.float64) / images


def over_counts(
    accuracies: Float[np.ndarray, " runs"], images: int, resamples: int, rng: np.random.Generator
) -> Float[np.ndarray, "resamples runs"]:
    """The same where only accuracies are known: binomial, each run for itself.

    Differences between runs then come out as uncertain as those of different images.
    """
    return rng.binomial(images, accuracies, size=(resamples, len(accuracies))) / images


def over_seeds(
    values: Float[np.ndarray, "runs measures"],
    groups: Int[np.ndarray, " runs"],
    resamples: int,
    rng: np.random.Generator,
) -> Float[np.ndarray, "resamples groups measures"]:
    """What resampled seeds add to the groups' means, for measures that vary together.

    With three seeds of each group, resampling them within the group would give two thirds of the
    variance and few different means. So residuals are pooled over the groups, each inflated by
    sqrt(n / (n - 1)) for the mean that was subtracted (Davison and Hinkley 1997, section 6.2), and
    each group draws as many as it has seeds. It assumes that seeds vary as much in all groups.

    Args:
      values: of each run.
      groups: 0, 1, ...: which group each run is of.

    Returns:
      Deviations of the means; 0 where no group has two seeds.
    """
    count = int(groups.max()) + 1
    sizes = np.bincount(groups, minlength=count)
    means = group_means(values, groups)
    inflation = np.sqrt(sizes / np.maximum(sizes - 1, 1))
    repeated = sizes[groups] > 1
    residuals = ((values - means[groups]) * inflation[groups, None])[repeated]
    if not len(residuals):
        return np.zeros((resamples, count, values.shape[1]))
    deviations = [
        residuals[rng.integers(len(residuals), size=(resamples, size))].mean(axis=1)
        for size in sizes.tolist()
    ]
    return np.stack(deviations, axis=1)


def group_means(
    values: Float[np.ndarray, "... runs measures"], groups: Int[np.ndarray, " runs"]
) -> Float[np.ndarray, "... groups measures"]:
    """Means over the runs of each group."""
    count = int(groups.max()) + 1
    return np.stack([values[..., groups == g, :].mean(axis=-2) for g in range(count)], axis=-2)


def interval(
    samples: Float[np.ndarray, "resamples ..."], confidence: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval over the resamples."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(samples, (tail, 1 - tail), axis=0)
    return low, high


def best(
    samples: Float[np.ndarray, "resamples places"],
    places: Sequence[float],
    confidence: float = 0.95,
) -> tuple[float, float, Float[np.ndarray, " places"]]:
    """Where the largest value lies: its interval, and how often it is at each place.

    Args:
      samples: values at each place.
      places: their order, ascending.

    Returns:
      The lowest and the highest place of the interval, both of them among `places`, and the share
      of the resamples in which each is the best.
    """
    chosen = samples.argmax(axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(chosen, (tail, 1 - tail), method="inverted_cdf")
    shares = np.bincount(chosen, minlength=len(places)) / len(samples)
    return places[int(low)], places[int(high)], shares
