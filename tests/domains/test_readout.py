import logging

import numpy as np
import pytest

from clipdg_jax.domains import readout
from clipdg_jax.errors import UserError


def examples(seed=0, n=300, d=6, domains=3):
    """Overlapping clusters with features of very different size, one of them constant."""
    rng = np.random.default_rng(seed)
    domain = rng.integers(0, domains, n)
    centres = rng.normal(size=(3, d))
    features = rng.normal(size=(n, d)) + centres[domain]
    features = features * np.logspace(-3, 3, d) + rng.normal(size=d) * 50
    return np.concatenate([features, np.full((n, 1), 0.1)], 1).astype(np.float32), domain


def newton(features, domain, columns, l2, standardise=True):
    """The optimum by Newton's method on explicitly standardised features; logits of them."""
    x = features.astype(np.float64)
    std = x.std(axis=0)
    keep = std > 1e-6 * np.abs(x.mean(axis=0))
    z = (x - x.mean(axis=0))[:, keep] / (std[keep] if standardise else 1.0)
    z = np.concatenate([z, np.ones((len(z), 1))], axis=1)
    target = (domain[:, None] == np.asarray(columns)[None, :]).astype(float)
    n, d = z.shape
    k = len(columns)
    penalty = np.full((d, k), l2)
    penalty[-1] = 0
    w = np.zeros((d, k))
    for _ in range(50):
        logits = z @ w
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        gradient = z.T @ (p - target) / n + penalty * w
        curvature = np.einsum("nk,kl->nkl", p, np.eye(k)) - np.einsum("nk,nl->nkl", p, p)
        hessian = np.einsum("ni,nkl,nj->ikjl", z, curvature, z).reshape(d * k, d * k) / n
        hessian += np.diag(penalty.ravel())
        # One constant for all biases is free: the smallest step leaves it alone.
        w -= (np.linalg.pinv(hessian, rcond=1e-12) @ gradient.ravel()).reshape(d, k)
    assert np.abs(gradient).max() < 1e-12
    return p


@pytest.mark.parametrize("standardise", [True, False])
def test_gradient_is_that_of_finite_differences(standardise, monkeypatch):
    monkeypatch.setattr(readout, "_BLOCK", 70)  # Ten rows at a time.
    features, domain = examples(n=57)
    if not standardise:
        features = features[:, 1:4]
    function, _ = readout.objective(features, domain, 0.3, standardise=standardise)
    size = (features.shape[1] + 1) * 3
    at = np.random.default_rng(1).normal(size=size) * (0.3 if standardise else 0.01)
    _, gradient = function(at)
    step = 1e-6
    for i, unit in enumerate(np.eye(size) * step):
        slope = (function(at + unit)[0] - function(at - unit)[0]) / (2 * step)
        assert gradient[i] == pytest.approx(slope, rel=1e-5, abs=2e-8)


@pytest.mark.parametrize(
    ("columns", "l2", "standardise"),
    [((0, 1, 2), 1e-2, True), ((0, 1), 1e-4, True), ((1, 2), 1.0, True), ((0, 1, 2), 0.1, False)],
)
def test_solution_is_that_of_newtons_method(columns, l2, standardise):
    features, drawn = examples(domains=len(columns))
    domain = np.asarray(columns)[drawn]
    if not standardise:
        features = features[:, 2:5]
    found = readout.fit(features, domain, l2, standardise=standardise).probabilities(features)
    wanted = newton(features, domain, columns, l2, standardise)
    np.testing.assert_allclose(found[:, columns], wanted, atol=2e-6)
    absent = [i for i in range(3) if i not in columns]
    assert (found[:, absent] == 0).all()
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-12)


def test_probabilities_fit_the_shares_of_the_labels():
    # Stationarity in the biases, which are not penalised: mean probabilities are the shares.
    features, domain = examples(n=400)
    for l2 in (1e-3, 10.0):
        found = readout.fit(features, domain, l2).probabilities(features)
        np.testing.assert_allclose(found.mean(axis=0), np.bincount(domain) / 400, atol=1e-6)


def test_units_and_offsets_of_features_do_not_matter_and_constants_are_ignored():
    features, domain = examples()
    first = readout.fit(features, domain, 0.01)
    assert (first.weight[-1] == 0).all()
    # Powers of two change float32 numbers without rounding.
    other = readout.fit(features * np.float32(2**9), domain, 0.01)
    np.testing.assert_allclose(other.weight * 2**9, first.weight, rtol=1e-4, atol=1e-9)
    # Rounding alone: 1000 and the next float32 number.
    features[:, -1] = np.where(domain == 0, np.nextafter(np.float32(1000), np.float32(2000)), 1000)
    rounded = readout.fit(features, domain, 0.01)
    np.testing.assert_array_equal(rounded.weight, first.weight)
    unseen = features[:5].copy()
    unseen[:, -1] = 1e6
    np.testing.assert_array_equal(first.probabilities(unseen), first.probabilities(features[:5]))


def test_more_features_than_examples_and_blocks_of_rows_agree_with_one_block(monkeypatch):
    rng = np.random.default_rng(3)
    domain = np.repeat([0, 1, 2], 20)
    features = rng.normal(size=(60, 500)).astype(np.float32)
    features[:, :3] += 2 * np.eye(3)[domain]
    whole = readout.fit(features, domain, 0.1)
    monkeypatch.setattr(readout, "_BLOCK", 500 * 7)
    parts = readout.fit(features, domain, 0.1)
    np.testing.assert_allclose(parts.weight, whole.weight, atol=1e-6)
    unseen = rng.normal(size=(30, 500)).astype(np.float32)
    np.testing.assert_allclose(
        parts.probabilities(unseen), whole.probabilities(unseen), rtol=0, atol=1e-5
    )
    wanted = newton(features[:, :8], domain, (0, 1, 2), 0.1)
    found = readout.fit(features[:, :8], domain, 0.1).probabilities(features[:, :8])
    np.testing.assert_allclose(found, wanted, atol=2e-6)


def test_separable_labels_reach_the_optimum_quietly(caplog):
    rng = np.random.default_rng(4)
    domain = np.repeat([0, 1], 50)
    features = rng.normal(size=(100, 20)) + 10 * domain[:, None]
    with caplog.at_level(logging.WARNING):
        fitted = readout.fit(features, domain, 1e-5)
    assert caplog.records == []
    assert (fitted.probabilities(features).argmax(axis=1) == domain).all()


def test_a_fit_that_stops_early_says_so(caplog, monkeypatch):
    monkeypatch.setattr(readout, "MAX_ITERATIONS", 2)
    readout.fit(*examples(), 1e-4)
    assert "not at the optimum after 2 iterations" in caplog.text


def test_saved_and_loaded_it_is_the_same():
    features, domain = examples()
    fitted = readout.fit(features, domain + (domain == 1), 0.01)  # 0 and 2 only.
    arrays = {"other": np.zeros(1), **fitted.arrays("readout/")}
    again = readout.Readout.from_arrays(arrays, "readout/")
    np.testing.assert_array_equal(again.probabilities(features), fitted.probabilities(features))


def test_what_is_refused():
    features, domain = examples(n=20)
    for l2 in (0.0, -1.0, np.nan):
        with pytest.raises(UserError, match=r"l2: .* positive"):
            readout.fit(features, domain, l2)
    with pytest.raises(UserError, match=r"\(rendition\); a classifier needs two"):
        readout.fit(features, np.full(20, 1), 1.0)
    with pytest.raises(ValueError, match="20 rows of features, 19 domains"):
        readout.fit(features, domain[1:], 1.0)
    features[3, 2] = np.nan
    with pytest.raises(ValueError, match="1 features have values that are not finite"):
        readout.fit(features, domain, 1.0)
    with pytest.raises(ValueError, match="2 features, fitted to 3"):
        readout.fit(examples()[0][:, :3], examples()[1], 1.0).probabilities(np.zeros((1, 2)))
