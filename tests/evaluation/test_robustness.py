"""Effective robustness against scipy, and its interval against simulated models."""

import math

import numpy as np
import pytest
import scipy.stats

from clipdg_jax.evaluation import robustness


def test_logits_are_clipped_half_an_image_away_from_the_ends():
    assert robustness.logit(0.8, 1000) == pytest.approx(math.log(4))
    assert robustness.logit(1.0, 50) == pytest.approx(math.log(0.99 / 0.01))
    assert robustness.logit(0.0, 50) == pytest.approx(-robustness.logit(1.0, 50))
    assert robustness.expit(robustness.logit(0.37, 1000)) == pytest.approx(0.37)


def test_line_is_scipys():
    rng = np.random.default_rng(0)
    x = rng.normal(size=9)
    y = 0.3 + 0.8 * x + 0.1 * rng.normal(size=9)
    line, theirs = robustness.fit_line(x, y), scipy.stats.linregress(x, y)
    assert line.slope == pytest.approx(theirs.slope)
    assert line.intercept == pytest.approx(theirs.intercept)
    # The standard errors of slope and intercept follow from scatter, centre and spread.
    assert line.scatter / math.sqrt(line.spread) == pytest.approx(theirs.stderr)
    at_zero = line.scatter * math.sqrt(1 / line.n + line.centre**2 / line.spread)
    assert at_zero == pytest.approx(theirs.intercept_stderr)
    # Variance of one more point about the line: its own, and that of the line there.
    t = scipy.stats.t.ppf(0.975, 7)
    variance = line.scatter**2 + theirs.intercept_stderr**2
    assert line.margin(0.0) == pytest.approx(t * math.sqrt(variance))


def test_interval_covers_as_often_as_it_says():
    """Five baselines and one more model of the same line: its interval holds 0 in 95 of 100."""
    rng = np.random.default_rng(1)
    images, held, trials = (10**9, 10**9), 0, 2000
    for _ in range(trials):
        x = rng.normal(size=6)
        y = -1 + 1.2 * x + 0.2 * rng.normal(size=6)
        line = robustness.fit_line(x[:5], y[:5])
        told = robustness.effective(line, robustness.expit(x[5]), robustness.expit(y[5]), images)
        held += told.low <= 0 <= told.high
    # Three binomial standard deviations about 0.95.
    assert held / trials == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / trials))


def test_a_model_off_the_line_is_told_by_how_much():
    x = np.array([-1.0, 0.0, 1.0, 2.0])
    line = robustness.fit_line(x, x - 1)
    told = robustness.effective(line, 0.5, 0.6, (1000, 1000))
    assert told.expected == pytest.approx(1 / (1 + math.e))
    assert told.effective == pytest.approx(0.6 - told.expected)
    # All baselines lie on the line: nothing is uncertain.
    assert told.low == pytest.approx(told.effective)
    assert told.high == pytest.approx(told.effective)


@pytest.mark.parametrize(
    ("x", "reason"), [([0.0, 1.0], "too few"), ([0.3] * 4, "the same accuracy")]
)
def test_what_has_no_line_says_so(x, reason):
    with pytest.raises(ValueError, match=reason):
        robustness.fit_line(np.array(x), np.array(x))
