"""Estimates and intervals of audits, against closed forms, every possible sample, and draws."""

import itertools
import math

import numpy as np
import pytest

from clipdg_jax.domains.curation import audit_statistics
from clipdg_jax.evaluation import stats

# A tiny population in strata of 5, 4 and 2 records, by domain; 2, 3 and 2 are sampled.
TINY = [[0, 0, 0, 1, 2], [1, 1, 0, 2], [2, 0]]
TAKEN = (2, 3, 2)


def counted(sample) -> np.ndarray:
    return np.array([np.bincount(np.array(one), minlength=3) for one in sample])


def horvitz_thompson(y: np.ndarray, stratum: np.ndarray, sizes, n) -> tuple[float, float]:
    """The total and its variance by the general formulas, from first and second order chances."""
    first = np.array([n[h] / sizes[h] for h in stratum])
    total, variance = float(np.sum(y / first)), 0.0
    for i, j in itertools.combinations(range(len(y)), 2):
        h, g = stratum[i], stratum[j]
        both = first[i] * first[j]
        if h == g:
            both = n[h] * (n[h] - 1) / (sizes[h] * (sizes[h] - 1))
        weight = (first[i] * first[j] - both) / both
        variance += weight * (y[i] / first[i] - y[j] / first[j]) ** 2
    return total, variance


def test_all_samples_of_a_tiny_population_average_to_the_truth():
    sizes = np.array([len(one) for one in TINY])
    every = itertools.product(
        *(itertools.combinations(one, k) for one, k in zip(TINY, TAKEN, strict=True))
    )
    found = [audit_statistics.shares(counted(sample), sizes) for sample in every]
    assert len(found) == math.comb(5, 2) * math.comb(4, 3)
    truth = counted(TINY).sum(axis=0) / sizes.sum()
    values = np.array([[share.value for share in one] for one in found])
    variances = np.array([[share.standard_error**2 for share in one] for one in found])
    np.testing.assert_allclose(values.mean(axis=0), truth, rtol=1e-12)
    np.testing.assert_allclose(values.sum(axis=1), 1, rtol=1e-12)
    np.testing.assert_allclose(variances.mean(axis=0), values.var(axis=0), rtol=1e-12)


def test_estimates_are_those_of_the_general_formulas():
    rng = np.random.default_rng(0)
    sizes, n = np.array([50, 30, 9]), np.array([12, 7, 9])
    stratum = np.repeat(np.arange(3), n)
    domain = rng.integers(0, 3, len(stratum))
    counts = np.array([np.bincount(domain[stratum == h], minlength=3) for h in range(3)])
    for d, share in enumerate(audit_statistics.shares(counts, sizes)):
        total, variance = horvitz_thompson((domain == d).astype(float), stratum, sizes, n)
        assert share.value == pytest.approx(total / sizes.sum(), rel=1e-12)
        assert share.standard_error == pytest.approx(math.sqrt(variance) / sizes.sum(), rel=1e-12)


def test_one_stratum_of_many_is_wilsons_interval():
    (share, _) = audit_statistics.shares(np.array([[392, 8]]), np.array([10**9]))
    low, high = stats.wilson_interval(392, 400)
    assert share.value == 0.98
    assert (share.low, share.high) == (pytest.approx(low, abs=1e-7), pytest.approx(high, abs=1e-7))
    # Half of a small population says more; all of it says everything.
    (half, _) = audit_statistics.shares(np.array([[392, 8]]), np.array([800]))
    assert half.high - half.low == pytest.approx((high - low) / math.sqrt(2), rel=0.03)
    (whole, _) = audit_statistics.shares(np.array([[392, 8]]), np.array([400]))
    assert (whole.low, whole.value, whole.high, whole.standard_error) == (0.98, 0.98, 0.98, 0)


def draws(sizes, chances, n, runs, seed):
    """Shares of simulated audits of one population, and the truth."""
    rng = np.random.default_rng(seed)
    population = np.array([rng.multinomial(s, p) for s, p in zip(sizes, chances, strict=True)])
    deviations = np.array([0.17, 0.17, 0.5, 0.5])[: len(sizes)]
    taken = audit_statistics.allocate(sizes, deviations, n, 30)
    found = []
    for _ in range(runs):
        counts = np.array(
            [rng.multivariate_hypergeometric(k, m) for k, m in zip(population, taken, strict=True)]
        )
        found.append(audit_statistics.shares(counts, np.array(sizes)))
    return found, population.sum(axis=0) / sum(sizes)


def coverage(found, truth, bounds) -> list[float]:
    inside = [
        [low <= t <= high for (low, high), t in zip(map(bounds, one), truth, strict=True)]
        for one in found
    ]
    return np.mean(inside, axis=0).tolist()


def ends(share):
    return share.low, share.high


def normal(share):
    return share.value - 1.96 * share.standard_error, share.value + 1.96 * share.standard_error


def test_intervals_of_shares_cover_as_often_as_they_say():
    sizes = [7600, 5200, 7150, 50]
    chances = [[0.985, 0.003, 0.012], [0.004, 0.982, 0.014], [0.35, 0.35, 0.3], [0.4, 0.4, 0.2]]
    found, truth = draws(sizes, chances, 1000, runs=1000, seed=0)
    assert all(0.92 <= share <= 0.98 for share in coverage(found, truth, ends))
    np.testing.assert_allclose(
        np.mean([[share.value for share in one] for one in found], axis=0), truth, atol=1e-3
    )


def test_a_rare_domain_is_covered_where_the_normal_interval_is_not():
    chances = [[0.985, 0.003, 0.012], [0.004, 0.994, 0.002]]
    found, truth = draws([80_000, 20_000], chances, 300, runs=1000, seed=1)
    assert coverage(found, truth, normal)[2] < 0.9
    assert coverage(found, truth, ends)[2] >= 0.92


@pytest.mark.parametrize(("size", "right", "n"), [(7600, 7410, 400), (50_000, 49_100, 500)])
def test_intervals_of_precision_cover_as_often_as_they_say(size, right, n):
    correct = np.random.default_rng(2).hypergeometric(right, size - right, n, 1000)
    bounds = [stats.wilson_interval(int(k), n) for k in correct]
    assert 0.92 <= np.mean([low <= right / size <= high for low, high in bounds]) <= 0.98


def test_allocations_are_the_best_of_all():
    sizes, deviations, n, least = [40, 25, 6], np.array([0.1, 0.3, 0.5]), 21, 2

    def variance(given) -> float:
        return sum(
            (size * s) ** 2 / k * (1 - k / size)
            for size, s, k in zip(sizes, deviations, given, strict=True)
        )

    possible = [
        (a, b, n - a - b)
        for a in range(least, 41)
        for b in range(least, 26)
        if least <= n - a - b <= 6
    ]
    found = audit_statistics.allocate(sizes, deviations, n, least)
    assert found.sum() == n
    assert variance(found) <= 1.01 * min(map(variance, possible))  # n is rounded, not searched
    # Far from the bounds it is in proportion to N_h S_h.
    far = audit_statistics.allocate([10**6, 10**5], np.array([0.1, 0.5]), 300, 2)
    assert far.tolist() == [200, 100]


@pytest.mark.parametrize("n", [5, 6, 17, 50, 70, 71])
def test_allocations_keep_their_bounds(n):
    sizes = [40, 25, 6, 1]
    given = audit_statistics.allocate(sizes, np.array([0.01, 0.5, 0.5, 0.5]), n, 1)
    assert given.sum() == n
    assert all(min(size, 1) <= k <= size for size, k in zip(sizes, given, strict=True))


def test_what_cannot_be():
    for counts, sizes in (([[1, 0]], [5]), ([[3, 3]], [5]), ([[0, 0]], [0])):
        with pytest.raises(ValueError, match="sampled of strata"):
            audit_statistics.shares(np.array(counts), np.array(sizes))
    for n in (3, 47):
        with pytest.raises(ValueError, match=f"{n} records of strata"):
            audit_statistics.allocate([40, 6], np.array([0.5, 0.5]), n, 2)
