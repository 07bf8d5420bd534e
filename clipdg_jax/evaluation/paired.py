"""Two models on the same images: the difference of their accuracies, with a paired bootstrap.

Predictions of the same image belong together: two models err on much the same images, so that the
interval of the difference is far narrower than those of the accuracies say.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Bool

from clipdg_jax.errors import UserError

RESAMPLES = 10_000


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One test set: both top-1 accuracies, second less first, and its 95 % interval.

    only_first, only_second: images that one model alone answers rightly (McNemar's two counts).
    """

    test_set: str
    n: int
    first: float
    second: float
    low: float
    high: float
    only_first: int
    only_second: int

    @property
    def difference(self) -> float:
        return self.second - self.first


def bootstrap(
    first: Bool[np.ndarray, " n"],
    second: Bool[np.ndarray, " n"],
    seed: int = 0,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Percentile interval of the difference of two accuracies, second less first, over images.

    Only the numbers of images on which the models differ, one way or the other, matter; a resample
    of n images has them multinomially distributed (Efron and Tibshirani 1993, chapter 13).
    """
    n = len(first)
    better, worse = int((second & ~first).sum()), int((first & ~second).sum())
    shares = np.array([better, worse, n - better - worse]) / n
    drawn = np.random.default_rng(seed).multinomial(n, shares, size=resamples)
    tail = (1 - confidence) / 2
    low, high = np.quantile((drawn[:, 0] - drawn[:, 1]) / n, (tail, 1 - tail))
    return float(low), float(high)


def compare(first: str | pathlib.Path, second: str | pathlib.Path) -> list[Comparison]:
    """Compares two files of `predictions.write`, test set by test set.

    Raises:
      UserError: a file cannot be read; they share no test set; they do not hold the same images of
        one, with the same labels.
    """
    one, other = dict(read(first)), dict(read(second))
    shared = [name for name in one if name in other]
    if not shared:
        raise UserError(
            f"{first} and {second}: share no test set; evaluate both models on the same suites"
        )
    found = []
    for name in shared:
        (keys, labels, right), (other_keys, other_labels, other_right) = one[name], other[name]
        order, other_order = np.argsort(keys), np.argsort(other_keys)
        same = len(keys) == len(other_keys) and np.array_equal(keys[order], other_keys[other_order])
        if not same or not np.array_equal(labels[order], other_labels[other_order]):
            raise UserError(
                f"{name}: {first} and {second} do not hold the same images with the same labels; "
                "evaluate both models on the same data"
            )
        a, b = right[order], other_right[other_order]
        low, high = bootstrap(a, b)
        counts = int((a & ~b).sum()), int((b & ~a).sum())
        found.append(Comparison(name, len(a), float(a.mean()), float(b.mean()), low, high, *counts))
    return found


def read(path: str | pathlib.Path) -> Iterator[tuple[str, tuple[np.ndarray, ...]]]:
    """(suite/test set, (keys, class names of the labels, correct)) of a file of predictions."""
    columns = ["suite", "test_set", "key", "label_class", "correct"]
    try:
        table = pq.read_table(path, columns=columns)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{path}: is not a file of predictions ({error}); give a predictions-<step>.parquet"
        ) from error
    names = pc.binary_join_element_wise(
        table["suite"].cast("string"), table["test_set"].cast("string"), "/"
    )
    arrays = {name: table[name].to_numpy() for name in columns[2:]}
    of = names.to_numpy()
    for name in dict.fromkeys(of.tolist()):
        rows = of == name
        yield name, tuple(arrays[column][rows] for column in columns[2:])
