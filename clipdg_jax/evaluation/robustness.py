"""Effective robustness: what a model does on a shifted test set beyond what its accuracy predicts.

Over models that were trained without regard to the shift, the baselines, accuracy on the shifted
set is close to a line in accuracy on the reference set, on logit axes. A model's effective
robustness is how far it lies above that line (Taori et al. 2020, section 2.2; Miller et al. 2021):

    logit(shifted) = intercept + slope logit(reference)        fitted by least squares
    effective robustness = shifted - expit(intercept + slope logit(reference))
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import scipy.special
import scipy.stats
from jaxtyping import Float

MIN_BASELINES = 3  # Two points always have a line, and nothing would be left to tell its error.


@dataclasses.dataclass(frozen=True)
class Line:
    """A least-squares line y = intercept + slope x, with what its intervals need.

    Attributes:
      slope, intercept: of the line.
      n: points it was fitted to.
      scatter: standard deviation of the points about the line, with n - 2 degrees of freedom.
      centre, spread: mean of x, and the sum of squared deviations from it.
    """

    slope: float
    intercept: float
    n: int
    scatter: float
    centre: float
    spread: float

    def at(self, x: float) -> float:
        """y on the line."""
        return self.intercept + self.slope * x

    def margin(self, x: float, confidence: float = 0.95) -> float:
        """Half the width of the prediction interval of one more point at x.

        t s sqrt(1 + 1/n + (x - centre)^2 / spread), t of n - 2 degrees of freedom (Draper and Smith
        1998, section 3.1).
        """
        t = float(scipy.stats.t.ppf((1 + confidence) / 2, self.n - 2))
        leverage = 1 / self.n + (x - self.centre) ** 2 / self.spread
        return t * self.scatter * math.sqrt(1 + leverage)


@dataclasses.dataclass(frozen=True)
class Robustness:
    """One model against the line, in accuracies (0 to 1).

    Attributes:
      expected: the shifted accuracy that the line predicts from the reference accuracy.
      effective: the accuracy less `expected`.
      low, high: its interval: the accuracy less the ends of the prediction interval. A model whose
        interval holds 0 is one that could belong to the baselines.
    """

    expected: float
    effective: float
    low: float
    high: float


def logit(accuracy: float, images: int) -> float:
    """ln(p / (1 - p)), p clipped to [1/2n, 1 - 1/2n]: half an image away from 0 and 1.

    Args:
      accuracy: in [0, 1].
      images: n, that it was measured on.
    """
    half = 0.5 / images
    clipped = min(max(accuracy, half), 1 - half)
    return math.log(clipped / (1 - clipped))


def expit(value: float) -> float:
    """The inverse of the logit."""
    return float(scipy.special.expit(value))


def fit_line(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> Line:
    """The least-squares line, in float64.

    Raises:
      ValueError: fewer than `MIN_BASELINES` points, or all at one x.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    n = len(x)
    if n < MIN_BASELINES:
        raise ValueError(f"{n} points are too few for a line with intervals; {MIN_BASELINES} do")
    centre = float(x.mean())
    spread = float(((x - centre) ** 2).sum())
    if spread == 0:
        raise ValueError("all points have the same accuracy on the reference set")
    slope = float(((x - centre) * (y - y.mean())).sum()) / spread
    intercept = float(y.mean()) - slope * centre
    rest = y - intercept - slope * x
    scatter = math.sqrt(float((rest**2).sum()) / (n - 2))
    return Line(slope, intercept, n, scatter, centre, spread)


def effective(
    line: Line,
    reference: float,
    shifted: float,
    images: tuple[int, int],
    confidence: float = 0.95,
) -> Robustness:
    """A model's effective robustness, with its interval.

    Args:
      line: of the baselines, on logit axes.
      reference, shifted: the model's accuracies.
      images: that these were measured on.
      confidence: of the interval.
    """
    x = logit(reference, images[0])
    y, margin = line.at(x), line.margin(x, confidence)
    return Robustness(
        expit(y), shifted - expit(y), shifted - expit(y + margin), shifted - expit(y - margin)
    )
