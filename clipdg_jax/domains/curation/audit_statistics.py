"""The statistics of audits: how many records to look at where, and what they say of the whole.

The share of a domain in a population of N records that is sampled in strata, n_h of N_h records at
random without replacement, is the Horvitz-Thompson estimator (1952) of its total over N. With the
inclusion probabilities n_h / N_h of this design, and p_h the share among the stratum's sample:

    share = 1/N sum_i y_i / pi_i = sum_h N_h/N p_h

Its variance is estimated without bias by Sen, Yates and Grundy's estimator, which for this design
is (Cochran 1977, Sampling Techniques, theorem 5.5 and eq. 5.14):

    v = sum_h (N_h/N)^2 (1 - n_h/N_h) p_h (1 - p_h) / (n_h - 1)

A stratum whose sample is all of one domain adds nothing to v, and share -+ z sqrt(v) is too narrow
just where classifiers are good. The intervals given therefore recover a variance from Wilson's
interval (l_h, u_h) of each p_h, on either side (MOVER: Zou, Huang and Zhang 2009, A note on
confidence interval estimation for a linear function of binomial proportions):

    share - sqrt(sum_h (N_h/N)^2 (p_h - l_h)^2), share + sqrt(sum_h (N_h/N)^2 (u_h - p_h)^2)

where Wilson's interval is that of n_h (N_h - 1)/(N_h - n_h) records: with so many, a binomial
proportion has the variance that sampling without replacement leaves (the hypergeometric one).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Int64

from clipdg_jax.evaluation import stats


@dataclasses.dataclass(frozen=True)
class Share:
    """An estimated share in [0, 1], the ends of its interval, and its standard error sqrt(v)."""

    value: float
    low: float
    high: float
    standard_error: float

    def to_json(self) -> dict[str, Any]:
        """JSON-able."""
        return dataclasses.asdict(self)


def shares(
    counts: Int[np.ndarray, "strata domains"],
    sizes: Int[np.ndarray, " strata"],
    confidence: float = 0.95,
) -> list[Share]:
    """The share of each domain in the population; they sum to 1.

    Args:
      counts: how many of the sampled records of each stratum are of each domain.
      sizes: how many records each stratum holds.
      confidence: of the two-sided intervals.

    Raises:
      ValueError: a stratum has fewer than two sampled records, though more are in it, or more
        sampled records than it holds.
    """
    counts, sizes = np.asarray(counts, np.int64), np.asarray(sizes, np.int64)
    n = counts.sum(axis=1)
    if not ((n <= sizes) & ((n >= 2) | (n == sizes)) & (sizes >= 1)).all():
        raise ValueError(f"{n.tolist()} sampled of strata of {sizes.tolist()} records")
    weight = sizes / sizes.sum()
    p = counts / n[:, None]
    value = weight @ p
    variance = (weight**2 * (1 - n / sizes) / np.maximum(n - 1, 1)) @ (p * (1 - p))
    below, above = np.zeros_like(value), np.zeros_like(value)
    for stratum, domain in np.ndindex(*counts.shape):
        low, high = _wilson(
            int(counts[stratum, domain]), int(n[stratum]), int(sizes[stratum]), confidence
        )
        below[domain] += (weight[stratum] * (p[stratum, domain] - low)) ** 2
        above[domain] += (weight[stratum] * (high - p[stratum, domain])) ** 2
    lows = np.maximum(value - np.sqrt(below), 0)
    highs = np.minimum(value + np.sqrt(above), 1)
    rows = zip(value, lows, highs, np.sqrt(variance), strict=True)
    return [Share(*map(float, row)) for row in rows]


def allocate(
    sizes: Sequence[int], deviations: Float[np.ndarray, " strata"], n: int, least: int
) -> Int64[np.ndarray, " strata"]:
    """How many records to sample of each stratum: Neyman's allocation, within bounds.

    n_h is in proportion to N_h S_h, which makes the variance of the estimated total the smallest
    that n records can give (Neyman 1934; Cochran 1977, eq. 5.26), but no less than `least`, or all
    that there are, and no more than N_h.

    Args:
      sizes: N_h, each at least 1.
      deviations: S_h > 0, the standard deviation that is expected within each stratum.
      n: in all, at most as many as there are.
      least: in each.

    Raises:
      ValueError: n is more than there are, or fewer than `least` of each.
    """
    size = np.asarray(sizes, np.int64)
    floor = np.minimum(size, least)
    if not floor.sum() <= n <= size.sum():
        raise ValueError(f"{n} records of strata of {size.tolist()}, {least} of each or more")
    wanted = size * np.asarray(deviations, np.float64)
    # The multiplier at which the bounded shares sum to n: found by halving, as they grow with it.
    low, high = 0.0, float(np.max(size / wanted)) * 2
    for _ in range(200):
        middle = (low + high) / 2
        if np.clip(middle * wanted, floor, size).sum() < n:
            low = middle
        else:
            high = middle
    exact = np.clip(high * wanted, floor, size)
    given = np.clip(np.floor(exact + 1e-9).astype(np.int64), floor, size)
    # What rounding down left over goes where most was cut off.
    while given.sum() < n:
        given[np.argmax(np.where(given < size, exact - given, -math.inf))] += 1
    return given


def _wilson(correct: int, n: int, size: int, confidence: float) -> tuple[float, float]:
    """Wilson's interval of a share of `size` records, `n` of which were sampled."""
    if n == size:
        return correct / n, correct / n
    effective = n * (size - 1) / (size - n)
    scaled = effective if correct == n else correct / n * effective
    return stats.wilson_interval(scaled, effective, confidence)
