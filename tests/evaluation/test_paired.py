"""Paired bootstrap: against the closed form, and on files of predictions."""

import numpy as np
import pytest

from clipdg_jax.errors import UserError
from clipdg_jax.evaluation import paired, predictions


def test_interval_is_that_of_paired_differences():
    """Nearly normal for many images, with the variance of the mean of the paired differences."""
    rng = np.random.default_rng(0)
    first = rng.random(4000) < 0.6
    second = np.where(rng.random(4000) < 0.1, ~first, first)
    difference = second.astype(float) - first
    low, high = paired.bootstrap(first, second)
    half = 1.96 * difference.std() / np.sqrt(4000)
    assert low == pytest.approx(difference.mean() - half, abs=0.06 * half)
    assert high == pytest.approx(difference.mean() + half, abs=0.06 * half)
    # Unpaired, the interval would be several times as wide.
    assert high - low < 0.5 * 2 * 1.96 * np.sqrt(2 * 0.24 / 4000)
    assert paired.bootstrap(first, first) == (0, 0)


def write(path, right, keys=None, test_set="photo"):
    n = len(right)
    label = np.arange(n) % 3
    answers = predictions.Predictions(
        domain="natural",
        classes=("a", "b", "c"),
        evaluated=np.ones(3, bool),
        index=np.arange(n),
        label=label,
        prediction=np.where(right, label, (label + 1) % 3),
        probability=np.full(n, 0.5, np.float32),
        in_top5=np.ones(n, bool),
        invalid=0,
        unlabelled=0,
    )
    keys = [str(i) for i in range(n)] if keys is None else keys
    predictions.write(path, [("demo", test_set, answers, keys)])
    return path


def test_files_are_compared_image_by_image(tmp_path):
    first = write(tmp_path / "a", np.array([True, True, False, False, True, False]))
    second = write(tmp_path / "b", np.array([True, False, True, True, True, True]))
    (found,) = paired.compare(first, second)
    assert (found.test_set, found.n) == ("demo/photo", 6)
    assert (found.only_first, found.only_second) == (1, 3)
    assert found.difference == pytest.approx(2 / 6)
    assert found.low <= found.difference <= found.high
    other = write(tmp_path / "c", np.ones(6, bool), keys=["x", *"12345"])
    with pytest.raises(UserError, match="do not hold the same images"):
        paired.compare(first, other)
    with pytest.raises(UserError, match="share no test set"):
        paired.compare(first, write(tmp_path / "d", np.ones(6, bool), test_set="sketch"))
    (tmp_path / "e").write_text("x")
    with pytest.raises(UserError, match="is not a file of predictions"):
        paired.compare(first, tmp_path / "e")
