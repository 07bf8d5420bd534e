import json
import math

import numpy as np
import pytest

from clipdg_jax.domains import measures


def draw(seed, n=60, levels=None):
    """Scores, tied where `levels` is small, and labels that go with them."""
    rng = np.random.default_rng(seed)
    positive = rng.random(n) < 0.4
    scores = rng.normal(size=n) + 1.5 * positive
    if levels:
        scores = np.floor(scores * levels) / levels
    return scores, positive


def average_precision_by_definition(scores, positive):
    """One term for each positive image: the precision among all that score no less."""
    terms = []
    for s, hit in zip(scores, positive, strict=True):
        if hit:
            above = [p for t, p in zip(scores, positive, strict=True) if t >= s]
            terms.append(sum(above) / len(above))
    return sum(terms) / len(terms)


@pytest.mark.parametrize("levels", [None, 2, 0.5])
def test_average_precision_is_that_of_the_definition(levels):
    for seed in range(20):
        scores, positive = draw(seed, levels=levels)
        expected = average_precision_by_definition(scores, positive)
        assert measures.average_precision(scores, positive) == pytest.approx(expected, abs=1e-12)


def test_average_precision_of_known_orders():
    # The example of scikit-learn's documentation.
    found = measures.average_precision(np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1]) > 0)
    assert found == pytest.approx(5 / 6)
    assert measures.average_precision(np.zeros(10), np.arange(10) < 3) == pytest.approx(0.3)
    assert math.isnan(measures.average_precision(np.arange(3.0), np.zeros(3, bool)))


def test_a_curve_has_every_distinct_score_once():
    scores, positive = draw(3, 200, levels=3)
    curve = measures.curve(scores, positive)
    np.testing.assert_array_equal(curve.threshold, np.unique(scores)[::-1])
    for i, t in enumerate(curve.threshold):
        taken = scores >= t
        assert curve.precision[i] == positive[taken].mean()
        assert curve.recall[i] == positive[taken].sum() / positive.sum()


@pytest.mark.parametrize(
    ("scores", "labels", "match"),
    [
        ([math.nan, 1], 2, "1 of 2 scores"),
        ([math.inf], 1, "finite"),
        ([], 0, "one"),
        ([1], 2, "as"),
    ],
)
def test_scores_that_cannot_be_measured_are_refused(scores, labels, match):
    with pytest.raises(ValueError, match=match):
        measures.curve(np.array(scores, float), np.ones(labels, bool))


def test_a_thinned_curve_keeps_its_ends_and_survives_json():
    scores, positive = draw(0, 3000)
    whole = measures.curve(scores, positive)
    thin = measures.Curve.from_json(json.loads(json.dumps(whole.thinned().to_json())))
    assert len(whole.threshold) == 3000
    assert len(thin.threshold) == 500
    assert thin.recall[-1] == 1
    assert thin.positives == positive.sum()
    where = np.searchsorted(-whole.threshold, -thin.threshold)
    np.testing.assert_array_equal(thin.precision, whole.precision[where])
    assert where[0] == 0


def test_measures_of_a_decider_counted_by_hand():
    scores = np.array([0.9, 0.8, 0.8, 0.6, 0.5, 0.4])
    positive = np.array([True, True, False, False, True, True])
    got = measures.measure(scores, positive, 0.8)
    assert (got.n, got.positives, got.decided, got.correct) == (6, 4, 3, 2)
    assert got.precision.value == pytest.approx(2 / 3)
    assert got.recall.value == pytest.approx(1 / 2)
    assert got.f1.value == pytest.approx(2 / (3 / 2 + 2))  # harmonic mean of the two
    # Wilson's interval as the roots of (p - x)^2 = z^2 x (1 - x) / n, here with p = 2/3, n = 3.
    z2 = 1.959963984540054**2
    roots = np.roots([1 + z2 / 3, -(4 / 3 + z2 / 3), 4 / 9])
    np.testing.assert_allclose([got.precision.high, got.precision.low], sorted(roots)[::-1])


def test_what_is_undefined_is_a_dash_and_survives_json():
    scores, positive = draw(0)
    nothing_taken = measures.measure(scores, positive, math.inf)
    assert nothing_taken.precision.percent() == nothing_taken.precision.interval() == "-"
    assert nothing_taken.recall.value == 0
    assert nothing_taken.f1.value == 0
    no_positives = measures.measure(scores, np.zeros(60, bool), 0.0)
    assert no_positives.precision.value == 0
    assert math.isnan(no_positives.recall.value)
    assert no_positives.average_precision.interval() == "-"
    for measured in (nothing_taken, no_positives):
        text = json.dumps(measured.to_json(), allow_nan=False)
        assert repr(measures.Measured.from_json(json.loads(text))) == repr(measured)


def test_bootstrap_intervals_are_those_of_resampling_one_by_one():
    scores, positive = draw(1, 150, levels=2)
    got = measures.measure(scores, positive, 0.5, confidence=0.9, resamples=4000)
    rng = np.random.default_rng(7)
    f1, ap = [], []
    for _ in range(800):
        rows = rng.integers(0, 150, 150)
        taken, hit = scores[rows] >= 0.5, positive[rows]
        f1.append(2 * (taken & hit).sum() / (taken.sum() + hit.sum()))
        ap.append(measures.average_precision(scores[rows], hit))
    for found, drawn in ((got.f1, f1), (got.average_precision, ap)):
        np.testing.assert_allclose(
            (found.low, found.high), np.quantile(drawn, [0.05, 0.95]), atol=0.015
        )
    assert got == measures.measure(scores, positive, 0.5, confidence=0.9, resamples=4000)
    assert got != measures.measure(scores, positive, 0.5, confidence=0.9, resamples=4000, seed=1)


def test_the_bootstrap_is_the_same_sampler_when_it_runs_in_pieces(monkeypatch):
    scores, positive = draw(2)
    whole = measures.measure(scores, positive, 0.5)
    monkeypatch.setattr(measures, "_CHUNK", 60 * 7)
    pieces = measures.measure(scores, positive, 0.5)
    assert pieces == whole


def test_confusion_counts():
    decisions = np.array([0, 0, 3, 2, 1, 1], np.int8)
    domain = np.array([0, 1, 1, 2, 1, 1])
    expected = [[1, 0, 0, 0], [1, 2, 0, 1], [0, 0, 1, 0]]
    np.testing.assert_array_equal(measures.confusion(decisions, domain), expected)
