import math

import numpy as np
import pytest

from clipdg_jax.evaluation import stats


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [
        # Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_agrees_with_newcombes_table(correct, n, low, high):
    interval = stats.wilson_interval(correct, n)
    np.testing.assert_allclose(interval, (low, high), atol=5e-5)
    mirrored = stats.wilson_interval(n - correct, n)
    np.testing.assert_allclose(mirrored, (1 - high, 1 - low), atol=5e-5)


def test_wilson_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    for p in (0.02, 0.5, 0.9):
        draws = rng.binomial(200, p, size=2000)
        bounds = {k: stats.wilson_interval(k, 200, 0.9) for k in set(draws.tolist())}
        covered = np.mean([bounds[k][0] <= p <= bounds[k][1] for k in draws.tolist()])
        assert 0.86 < covered < 0.95


def test_wilson_interval_stays_within_bounds_and_refuses_nonsense():
    assert stats.wilson_interval(0, 7)[0] == 0
    assert stats.wilson_interval(7, 7)[1] == 1
    for correct, n in ((1, 0), (-1, 5), (6, 5)):
        with pytest.raises(ValueError, match="need 0 <= correct <= n"):
            stats.wilson_interval(correct, n)
    with pytest.raises(ValueError, match="confidence"):
        stats.wilson_interval(1, 2, 1.0)


def test_mean_and_standard_error():
    mean, error = stats.mean_and_standard_error([0.7, 0.8, 0.75])
    assert mean == pytest.approx(0.75)
    assert error == pytest.approx(0.05 / math.sqrt(3))  # sample standard deviation is exactly .05
    assert math.isnan(stats.mean_and_standard_error([0.4])[1])
    with pytest.raises(ValueError, match="no values"):
        stats.mean_and_standard_error([])


def test_corrected_accuracy_puts_chance_at_zero_and_perfect_at_one():
    assert stats.corrected_accuracy(0.25, 0.25) == 0
    assert stats.corrected_accuracy(1.0, 0.25) == 1
    assert stats.corrected_accuracy(0.625, 0.25) == pytest.approx(0.5)
    assert stats.corrected_accuracy(0.1, 0.25) < 0


def test_relative_corrected_accuracy():
    assert stats.relative_corrected_accuracy(0.4, 0.7, 0.1) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="not above chance"):
        stats.relative_corrected_accuracy(0.4, 0.1, 0.1)
