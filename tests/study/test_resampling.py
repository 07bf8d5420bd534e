"""Resamples against closed forms, and the coverage of their intervals on simulated models."""

import math

import numpy as np
import pytest

from clipdg_jax.study import resampling
from tests.study import simulated


def test_images_are_shared_so_that_differences_vary_as_paired_ones_do():
    rng = np.random.default_rng(0)
    right = np.stack([simulated.answers(share, 500, 7, rng) for share in (0.6, 0.7)])
    drawn = resampling.over_images(right, 20_000, rng)
    accuracies = right.mean(axis=1)
    assert drawn.mean(axis=0) == pytest.approx(accuracies, abs=1e-3)
    for column, p in enumerate(accuracies):
        assert drawn[:, column].std() == pytest.approx(math.sqrt(p * (1 - p) / 500), rel=0.03)
    difference = right[1].astype(float) - right[0]
    spread = (drawn[:, 1] - drawn[:, 0]).std()
    assert spread == pytest.approx(difference.std() / math.sqrt(500), rel=0.03)
    alone = resampling.over_counts(accuracies, 500, 20_000, rng)
    unpaired = math.sqrt(sum(p * (1 - p) / 500 for p in accuracies))
    assert (alone[:, 1] - alone[:, 0]).std() == pytest.approx(unpaired, rel=0.03)


def test_seeds_add_the_pooled_variance_of_a_mean():
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(5), [3, 3, 3, 3, 1])
    values = rng.normal(size=(13, 2)) * [1.0, 2.0] + groups[:, None]
    drawn = resampling.over_seeds(values, groups, 20_000, rng)
    assert drawn.shape == (20_000, 5, 2)
    assert drawn.mean(axis=0) == pytest.approx(np.zeros((5, 2)), abs=0.05)
    # The mean of the groups' unbiased variances.
    pooled = np.mean([values[groups == g].var(axis=0, ddof=1) for g in range(4)], axis=0)
    for group, seeds in enumerate((3, 3, 3, 3, 1)):
        assert drawn[:, group].var(axis=0) == pytest.approx(pooled / seeds, rel=0.05)
    assert not resampling.over_seeds(values[:2], np.array([0, 1]), 10, rng).any()


def test_intervals_of_a_difference_cover_as_often_as_they_say():
    """Two groups of three seeds; the truth is of all images and all seeds."""
    rng = np.random.default_rng(2)
    truth, seed_noise, images, covered, trials = 0.05, 0.03, 150, 0, 200
    groups = np.repeat(np.arange(6), 3)
    shares = np.array([0.6, 0.6 + truth, 0.5, 0.7, 0.55, 0.65])
    for trial in range(trials):
        own = shares[groups] + seed_noise * rng.normal(size=18)
        right = np.stack([simulated.answers(p, images, 10_000 + trial, rng) for p in own])
        values = right.mean(axis=1, keepdims=True)
        drawn = resampling.over_images(right, 200, rng)[..., None]
        samples = resampling.group_means(drawn, groups)
        samples += resampling.over_seeds(values, groups, 200, rng)
        low, high = resampling.interval(samples[:, 1, 0] - samples[:, 0, 0])
        covered += low <= truth <= high
    # The seeds' residuals hold the runs' own errors on the images too, so the interval may be a
    # little wide, and must not be narrow.
    assert 0.91 <= covered / trials <= 1


def test_the_best_place_and_how_sure_it_is():
    samples = np.zeros((100, 4))
    samples[:, 1] = 1
    samples[:3, 2], samples[3:40, 3] = 2, 2
    low, high, shares = resampling.best(samples, (0.0, 0.25, 0.5, 1.0))
    assert shares.tolist() == [0.0, 0.6, 0.03, 0.37]
    assert (low, high) == (0.25, 1.0)
    assert resampling.best(samples[40:], (0.0, 0.25, 0.5, 1.0))[:2] == (0.25, 0.25)
