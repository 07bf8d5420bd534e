"""Mixes: what parses, and the exactness of the schedule."""

import math
import random
from fractions import Fraction

import numpy as np
import pytest

from clipdg_jax import errors
from clipdg_jax.data import mixture


def test_amounts():
    mix = mixture.parse_mix("natural=44M, rendition=22.5k,other=1_000")
    assert mix.names == ("natural", "rendition", "other")
    assert mix.values == (44_000_000, 22_500, 1000)
    assert mix.amounts
    assert mix.total == 44_023_500


def test_weights_and_names_with_signs_in_them():
    mix = mixture.parse_mix("tfds:food101/x:train=0.75,/a/b=c=.25,none=0")
    assert mix.names == ("tfds:food101/x:train", "/a/b=c", "none")
    assert mix.values == (Fraction(3, 4), Fraction(1, 4), 0)
    assert mix.total is None
    assert mix.active_names == ("tfds:food101/x:train", "/a/b=c")


def test_zero_goes_with_either_kind():
    assert mixture.parse_mix("a=16M,b=0").total == 16_000_000
    assert not mixture.parse_mix("a=1,b=0M").amounts


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "form name=value"),
        ("a", "form name=value"),
        ("=3", "form name=value"),
        ("a=3,", "form name=value"),
        ("a=3,a=1", "named twice"),
        ("a=-1,b=2", "negative"),
        ("a=-1M", "negative"),
        ("a=0,b=0", "no weight is positive"),
        ("a=44M,b=1", "cannot be mixed"),
        ("a=1_000,b=5", "cannot be mixed"),
        ("a=.0005k", "whole number"),
        ("a=many", "neither an amount nor a weight"),
        ("a=3m", "neither an amount nor a weight"),
        ("a=1_00", "neither an amount nor a weight"),
        ("a=nan", "neither an amount nor a weight"),
    ],
)
def test_wrong_mixes_are_refused(text, problem):
    with pytest.raises(errors.UserError, match=problem):
        mixture.parse_mix(text)


def random_weights(rng):
    largest = rng.choice([2, 5, 30, 1000])
    return [Fraction(rng.randint(1, largest)) for _ in range(rng.randint(1, 6))]


def test_every_batch_and_every_running_total_is_exact():
    rng = random.Random(0)
    for _ in range(150):
        weights, batch_size = random_weights(rng), rng.randint(1, 50)
        steps = rng.randint(1, 200)
        schedule = mixture.Schedule(weights, batch_size, steps)
        shares = [batch_size * weight / sum(weights) for weight in weights]
        total = np.zeros(len(weights), int)
        for step in range(steps):
            counts = schedule.counts(step)
            assert counts.sum() == batch_size
            np.testing.assert_array_equal(schedule.before(step), total)
            for count, share in zip(counts.tolist(), shares, strict=True):
                assert math.floor(share) <= count <= math.ceil(share), (weights, batch_size, step)
            total += counts
            for ran, share in zip(total.tolist(), shares, strict=True):
                assert abs(ran - (step + 1) * share) < 1, (weights, batch_size, step)


def test_the_schedule_repeats_after_its_period():
    short = mixture.Schedule([Fraction(2), Fraction(1)], 4, 10**9)  # period 3
    for step in (5, 999_999_998):
        ideal = step * Fraction(8, 3)
        assert abs(int(short.before(step)[0]) - ideal) < 1
    assert short.before(999_999_999).tolist() == [2_666_666_664, 1_333_333_332]


def test_a_prefix_of_a_longer_run_is_the_shorter_run():
    weights = [Fraction(w) for w in (7001, 999, 313)]
    long, short = (mixture.Schedule(weights, 64, steps) for steps in (500, 50))
    for step in range(50):
        np.testing.assert_array_equal(long.counts(step), short.counts(step))


def test_pd2_schedules_a_heavy_set_that_needs_its_tie_breaks():
    # Utilisation is exactly 3 of 6 tasks: earliest deadline alone misses deadlines on such sets.
    rates = [Fraction(n, 42) for n in (31, 27, 25, 19, 15, 9)]
    chosen = mixture.fair_schedule(rates, 84)
    assert (chosen.sum(1) == 3).all()
    steps = np.arange(1, 85)[:, None]
    lag = steps * np.array([float(rate) for rate in rates])[None] - chosen.cumsum(0)
    assert np.abs(lag).max() < 1
