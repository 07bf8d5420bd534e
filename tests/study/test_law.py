"""The law of accuracy against scipy's fit, and its intervals against simulated studies."""

import math

import numpy as np
import pytest
import scipy.optimize
import scipy.stats

from clipdg_jax.study import law
from tests.study import simulated

NATURAL = np.array([2000, 1750, 1500, 1000, 500, 250, 0, 1000, 500], np.float64)
RENDITION = np.array([0, 250, 500, 1000, 1500, 1750, 2000, 0, 0], np.float64)
A, B, K = simulated.TRUTH["rendition"]


def logits(noise: float, rng: np.random.Generator) -> np.ndarray:
    return A + B * np.log(RENDITION + K * NATURAL) + noise * rng.normal(size=len(NATURAL))


def test_a_law_without_noise_is_found():
    found = law.fit(RENDITION, NATURAL, logits(0.0, np.random.default_rng(0)))
    # The grid of k has steps of 1.2 %.
    assert found.k == pytest.approx(K, rel=0.012)
    assert found.b == pytest.approx(B, rel=0.01)
    assert found.at(3000, 500) == pytest.approx(A + B * math.log(3000 + K * 500), abs=0.01)


def test_the_least_squares_are_scipys():
    y = logits(0.2, np.random.default_rng(1))

    def formula(counts, a, b, log_k):
        return a + b * np.log(counts[0] + np.exp(log_k) * counts[1])

    (a, b, log_k), _ = scipy.optimize.curve_fit(
        formula, np.stack([RENDITION, NATURAL]), y, p0=(A, B, math.log(K))
    )
    theirs = ((y - formula((RENDITION, NATURAL), a, b, log_k)) ** 2).sum()
    found = law.fit(RENDITION, NATURAL, y)
    ours = ((y - formula((RENDITION, NATURAL), found.a, found.b, math.log(found.k))) ** 2).sum()
    assert ours == pytest.approx(theirs, rel=1e-4)
    assert found.k == pytest.approx(math.exp(log_k), rel=0.02)
    assert found.scatter == pytest.approx(math.sqrt(theirs / (len(y) - 3)), rel=1e-4)


def test_where_the_other_domain_says_nothing_the_interval_is_that_of_a_line():
    """With no records of the other domain, the law is a line in ln(own), with k left over."""
    own = np.array([200.0, 400.0, 700.0, 1000.0, 1600.0, 2500.0])
    y = np.array([-0.9, -0.35, 0.22, 0.4, 0.97, 1.3])
    found = law.fit(own, np.zeros(6), y)
    low, high = found.interval(3000.0, 0.0)
    line = scipy.stats.linregress(np.log(own), y)
    x, centre = math.log(3000), np.log(own).mean()
    leverage = 1 / 6 + (x - centre) ** 2 / ((np.log(own) - centre) ** 2).sum()
    rest = ((y - line.intercept - line.slope * np.log(own)) ** 2).sum()
    # m - 3, because three numbers count as fitted.
    margin = scipy.stats.t.ppf(0.975, 3) * math.sqrt(rest / 3) * math.sqrt(1 + leverage)
    assert (low + high) / 2 == pytest.approx(line.intercept + line.slope * x, abs=1e-5)
    assert (high - low) / 2 == pytest.approx(margin, rel=1e-4)


def test_intervals_hold_two_cells_left_out_as_often_as_they_say():
    rng = np.random.default_rng(2)
    inside, exchange, trials = 0, 0, 150
    for _ in range(trials):
        y = logits(0.1, rng)
        for left_out in (2, 4):
            kept = np.arange(len(y)) != left_out
            found = law.fit(RENDITION[kept], NATURAL[kept], y[kept])
            low, high = found.interval(RENDITION[left_out], NATURAL[left_out])
            inside += low <= y[left_out] <= high
        exchange += found.k_low <= K * 1.012 and found.k_high >= K / 1.012
    # Three binomial standard deviations; the intervals are exact for linear laws only.
    assert inside / (2 * trials) == pytest.approx(0.95, abs=0.04)
    assert exchange / trials == pytest.approx(0.95, abs=0.055)


def test_few_cells_are_refused():
    with pytest.raises(ValueError, match="5 mixes are too few"):
        law.fit(RENDITION[:5], NATURAL[:5], np.zeros(5))
    with pytest.raises(ValueError, match="different numbers"):
        law.fit(np.full(9, 100.0), np.zeros(9), np.arange(9.0))
