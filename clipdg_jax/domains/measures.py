"""How well a decider does: precision, recall, F1 and average precision, with their intervals.

A decider takes the images whose score is at least its threshold. Precision and recall have Wilson
intervals; F1 and average precision, which are no proportions, bootstrap intervals over images.
What is undefined (the precision of a decider that took nothing) is NaN, "-" when shown, and null
in JSON.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64, Int

from clipdg_jax.data import schema
from clipdg_jax.evaluation import stats

# What the two deciders say of an image together; the last, taken by both, counts as ambiguous.
DECISIONS = (*schema.DOMAINS, "conflict")

_CHUNK = 250_000  # weights of the bootstrap held at once: what fits the cache


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A figure in [0, 1] with the interval from `low` to `high`; NaN where it is undefined."""

    value: float
    low: float = math.nan
    high: float = math.nan

    def percent(self) -> str:
        """For example "98.2", or "-"."""
        return "-" if math.isnan(self.value) else f"{100 * self.value:.1f}"

    def interval(self) -> str:
        """In percent, for example "97.5 - 98.7", or "-"."""
        return "-" if math.isnan(self.low) else f"{100 * self.low:.1f} - {100 * self.high:.1f}"


@dataclasses.dataclass(frozen=True)
class Measured:
    """A decider on a set of labelled images.

    Attributes:
      n: images.
      positives: of them, those of the decider's domain.
      decided: of them, those that the decider takes.
      correct: decided and positive.
      precision: correct / decided.
      recall: correct / positives.
      f1: 2 correct / (decided + positives).
      average_precision: of the scores; the threshold has no part in it.
      confidence: of the four intervals.
    """

    n: int
    positives: int
    decided: int
    correct: int
    precision: Estimate
    recall: Estimate
    f1: Estimate
    average_precision: Estimate
    confidence: float

    def to_json(self) -> dict[str, Any]:
        """JSON-able."""
        return _without_nan(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Measured:
        """The inverse of `to_json`."""
        estimates = {
            name: Estimate(**{k: math.nan if v is None else v for k, v in part.items()})
            for name, part in value.items()
            if isinstance(part, Mapping)
        }
        return cls(**{**value, **estimates})


@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
    """Precision and recall at falling thresholds, each a distinct score.

    Attributes:
      threshold: float64 [k], strictly falling.
      support: int64 [k], how many scores are at least that.
      correct: int64 [k], how many of these are positive.
      positives: in all.
    """

    threshold: Float64[np.ndarray, " k"]
    support: Int[np.ndarray, " k"]
    correct: Int[np.ndarray, " k"]
    positives: int

    @property
    def precision(self) -> Float64[np.ndarray, " k"]:
        """correct / support."""
        return self.correct / self.support

    @property
    def recall(self) -> Float64[np.ndarray, " k"]:
        """correct / positives; NaN where nothing is positive."""
        return (
            self.correct / self.positives if self.positives else np.full(len(self.correct), np.nan)
        )

    def thinned(self, points: int = 500) -> Curve:
        """At most `points` of the curve, evenly spaced among its thresholds, both ends included."""
        kept = np.unique(np.linspace(0, len(self.threshold) - 1, points).round().astype(int))
        return Curve(self.threshold[kept], self.support[kept], self.correct[kept], self.positives)

    def to_json(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "threshold": self.threshold.tolist(),
            "support": self.support.tolist(),
            "correct": self.correct.tolist(),
            "positives": self.positives,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Curve:
        """The inverse of `to_json`."""
        return cls(
            np.array(value["threshold"], np.float64),
            np.array(value["support"], np.int64),
            np.array(value["correct"], np.int64),
            value["positives"],
        )


def curve(scores: Float[np.ndarray, " n"], positive: Bool[np.ndarray, " n"]) -> Curve:
    """The whole curve: every distinct score as a threshold; equal scores are taken together.

    Raises ValueError where there are no scores, or some are not finite.
    """
    scores, positive = _checked(scores, positive)
    order = np.argsort(-scores, kind="stable")
    falling = scores[order]
    last = np.flatnonzero(np.append(falling[1:] != falling[:-1], True))  # of each run of ties
    correct = np.cumsum(positive[order])[last]
    return Curve(falling[last], last + 1, correct, int(positive.sum()))


def average_precision(scores: Float[np.ndarray, " n"], positive: Bool[np.ndarray, " n"]) -> float:
    """Sum over falling thresholds of (recall's step) x (precision there), without interpolation.

    This is scikit-learn's `average_precision_score`: AP = sum_k (R_k - R_{k-1}) P_k over the
    distinct scores, so that equal scores count as one step and their order has no effect. NaN
    where nothing is positive.
    """
    whole = curve(scores, positive)
    if not whole.positives:
        return math.nan
    return float(np.sum(np.diff(whole.recall, prepend=0.0) * whole.precision))


def measure(
    scores: Float[np.ndarray, " n"],
    positive: Bool[np.ndarray, " n"],
    threshold: float,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Measured:
    """Measures a decider. On the images that chose its threshold the figures flatter it.

    Args:
      scores: larger is surer.
      positive: whether the image is of the decider's domain.
      threshold: what a score must reach to be taken; infinity takes nothing.
      confidence: of the two-sided intervals.
      resamples: of the bootstrap. An interval runs between the (1 -+ confidence)/2 quantiles of
        the resamples in which the figure is defined (the percentile method).
      seed: of the bootstrap.

    Raises ValueError where there are no scores, or some are not finite.
    """
    scores, positive = _checked(scores, positive)
    taken = scores >= threshold
    n, positives, decided = len(scores), int(positive.sum()), int(taken.sum())
    correct = int((taken & positive).sum())
    f1, ap = _bootstrap(scores, positive, threshold, resamples, seed)
    f1_value = 2 * correct / (decided + positives) if decided + positives else math.nan
    return Measured(
        n=n,
        positives=positives,
        decided=decided,
        correct=correct,
        precision=_proportion(correct, decided, confidence),
        recall=_proportion(correct, positives, confidence),
        f1=_between_quantiles(f1_value, f1, confidence),
        average_precision=_between_quantiles(average_precision(scores, positive), ap, confidence),
        confidence=confidence,
    )


def confusion(
    decisions: Int[np.ndarray, " n"], domain: Int[np.ndarray, " n"]
) -> Int[np.ndarray, "3 4"]:
    """How many images of each domain (rows, `schema.DOMAINS`) got each of `DECISIONS` (columns)."""
    counts = np.zeros((len(schema.DOMAINS), len(DECISIONS)), np.int64)
    np.add.at(counts, (domain, decisions), 1)
    return counts


def _checked(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores, positive = np.asarray(scores, np.float64), np.asarray(positive, bool)
    if scores.ndim != 1 or scores.shape != positive.shape or not len(scores):
        raise ValueError(
            f"need as many scores as labels, at least one: {scores.shape} and {positive.shape}"
        )
    if not np.isfinite(scores).all():
        raise ValueError(f"{(~np.isfinite(scores)).sum()} of {len(scores)} scores are not finite")
    return scores, positive


def _proportion(correct: int, n: int, confidence: float) -> Estimate:
    if not n:
        return Estimate(math.nan)
    return Estimate(correct / n, *stats.wilson_interval(correct, n, confidence))


def _bootstrap(
    scores: np.ndarray, positive: np.ndarray, threshold: float, resamples: int, seed: int
) -> tuple[Float64[np.ndarray, " resamples"], Float64[np.ndarray, " resamples"]]:
    """F1 and average precision of the resamples; NaN in those where they are undefined.

    A resample is a row of weights, how often each image was drawn, so that the scores are sorted
    once and everything after is sums along the row.
    """
    rng = np.random.default_rng(seed)
    n = len(scores)
    order = np.argsort(-scores, kind="stable")
    falling, hit = scores[order], positive[order]
    last = np.flatnonzero(np.append(falling[1:] != falling[:-1], True))
    decided = int((falling >= threshold).sum())
    rows = max(1, _CHUNK // n)
    f1, ap = [], []
    for start in range(0, resamples, rows):
        r = min(rows, resamples - start)
        drawn = rng.integers(0, n, (r, n)) + n * np.arange(r)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=r * n).reshape(r, n)
        support = np.cumsum(weights, axis=1)
        correct = np.cumsum(weights * hit, axis=1)
        positives = correct[:, -1].astype(np.float64)
        takes = (support[:, decided - 1], correct[:, decided - 1]) if decided else (0, 0)
        with np.errstate(invalid="ignore"):  # 0/0 is NaN: undefined
            f1.append(2 * takes[1] / (takes[0] + positives))
            support, correct = support[:, last], correct[:, last]
            # Before the first image drawn the support is 0, and so is the step of the recall.
            precision = correct / np.maximum(support, 1)
            steps = np.diff(correct, axis=1, prepend=0)
            ap.append((steps * precision).sum(axis=1) / positives)
    return np.concatenate(f1), np.concatenate(ap)


def _between_quantiles(value: float, resampled: np.ndarray, confidence: float) -> Estimate:
    defined = resampled[np.isfinite(resampled)]
    if math.isnan(value) or not len(defined):
        return Estimate(value)
    low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(value, float(low), float(high))


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
