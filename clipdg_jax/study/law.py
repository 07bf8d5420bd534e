"""A law of accuracy over how many natural images and renditions a model was trained on.

For each domain, with `own` records of it and `other` records of the other domain,

    logit(accuracy) = a + b ln(own + k other)

A record of the other domain counts as k of the own one: the effective data transferred of
Hernandez et al. (2021), linear in the data as in the mixtures of Hashimoto (2021), with the power
law of error in data (Hestness et al. 2017) on the logit scale, where accuracies have no ceiling.
Three numbers for each domain: few cells fit it, and it says something of cells that were not run.

For each k the best a and b are a line's; k is searched on a grid, so that there is no starting
point and no local minimum (variable projection, Golub and Pereyra 1973).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import scipy.stats
from jaxtyping import Float

PARAMETERS = 3
MIN_CELLS = PARAMETERS + 3  # Fewer tell too little of their scatter.
_EXCHANGE = np.logspace(-6, 3, 1801)  # k, in steps of 1.2 %.
_FAR = 20.0  # On the logit scale.


@dataclasses.dataclass(frozen=True, eq=False)
class Law:
    """A fitted law of one domain.

    Attributes:
      a, b, k: the formula's.
      k_low, k_high: the 95 % profile interval of k: where the sum of squares is at most 1 + F / df
        of the least, F the quantile of F(1, df) (Bates and Watts 1988, section 6.1).
      own, other, logits: what it was fitted to, one entry for each cell.
    """

    a: float
    b: float
    k: float
    k_low: float
    k_high: float
    own: Float[np.ndarray, " cells"]
    other: Float[np.ndarray, " cells"]
    logits: Float[np.ndarray, " cells"]

    def at(self, own: float, other: float) -> float:
        """The logit that it gives a cell."""
        return float(self.a + self.b * np.log(own + self.k * other))

    @property
    def scatter(self) -> float:
        """Standard deviation of the cells about the law, on the logit scale."""
        return float(np.sqrt((self._rest**2).sum() / (len(self.logits) - PARAMETERS)))

    @property
    def _rest(self) -> Float[np.ndarray, " cells"]:
        return self.logits - self.a - self.b * np.log(self.own + self.k * self.other)

    def interval(self, own: float, other: float, confidence: float = 0.95) -> tuple[float, float]:
        """Profile prediction interval of the logit of one more cell.

        It holds those values y that, added as one more cell, raise the least sum of squares by at
        most t^2 scatter^2, t the quantile of m - 3 degrees of freedom. For a law that is linear in
        its parameters that is the interval yhat -+ t scatter sqrt(1 + leverage); here it follows
        the curvature as well (Bates and Watts 1988, section 6.1.2). An end that is more than
        `_FAR` away is infinite: the cells say nothing of it.
        """
        dof = len(self.logits) - PARAMETERS
        t = float(scipy.stats.t.ppf((1 + confidence) / 2, dof))
        limit = float((self._rest**2).sum()) + (t * self.scatter) ** 2
        x, _, _ = _standardised(np.append(self.own, own), np.append(self.other, other))
        centre = self.at(own, other)

        def outside(y: float) -> bool:
            return _squares(x, np.append(self.logits, y)[None]).min() > limit

        return (
            centre - _reach(lambda step: outside(centre - step)),
            centre + _reach(lambda step: outside(centre + step)),
        )


def fit(
    own: Float[np.ndarray, " cells"],
    other: Float[np.ndarray, " cells"],
    logits: Float[np.ndarray, " cells"],
) -> Law:
    """Fits the law of one domain by least squares on the logits.

    Args:
      own, other: records of the domain and of the other one; not both 0.
      logits: of the accuracies.

    Raises:
      ValueError: fewer than `MIN_CELLS` cells, or all with as many records.
    """
    own, other, logits = (np.asarray(given, np.float64) for given in (own, other, logits))
    m = len(logits)
    if m < MIN_CELLS:
        raise ValueError(f"{m} mixes are too few for the law; {MIN_CELLS} do")
    if len({*zip(own.tolist(), other.tolist(), strict=True)}) < MIN_CELLS:
        raise ValueError(f"the law needs {MIN_CELLS} mixes of different numbers of records")
    a, b, k = _line(own, other, logits)
    squares = _squares(_standardised(own, other)[0], logits[None])[0]
    dof = m - PARAMETERS
    limit = squares.min() * (1 + float(scipy.stats.f.ppf(0.95, 1, dof)) / dof)
    inside = _EXCHANGE[squares <= limit]
    bounds = float(inside[0]), float(inside[-1])
    return Law(a, b, k, *bounds, own, other, logits)


def _standardised(
    own: Float[np.ndarray, " cells"], other: Float[np.ndarray, " cells"]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each k of the grid: ln(own + k other) centred to length 1, its mean, its length."""
    x = np.log(own[None, :] + _EXCHANGE[:, None] * other[None, :])
    mean = x.mean(axis=1)
    centred = x - mean[:, None]
    length = np.maximum(np.sqrt((centred**2).sum(axis=1)), 1e-12)
    return centred / length[:, None], mean, length


def _squares(
    x: Float[np.ndarray, "grid cells"], logits: Float[np.ndarray, "samples cells"]
) -> Float[np.ndarray, "samples grid"]:
    """Sums of squares that are left, for each k of the grid; x as `_standardised` gives it."""
    centred = logits - logits.mean(axis=1, keepdims=True)
    return (centred**2).sum(axis=1, keepdims=True) - (centred @ x.T) ** 2


def _reach(outside: Callable[[float], bool]) -> float:
    """The distance at which `outside` becomes true, by bisection; infinity past `_FAR`."""
    low, high = 0.0, 1e-3
    while not outside(high):
        low, high = high, 2 * high
        if high > _FAR:
            return math.inf
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if outside(middle) else (middle, high)
    return high


def _line(
    own: Float[np.ndarray, " cells"],
    other: Float[np.ndarray, " cells"],
    logits: Float[np.ndarray, " cells"],
) -> tuple[float, float, float]:
    """(a, b, k) with the least sum of squares."""
    x, mean, length = _standardised(own, other)
    projected = x @ (logits - logits.mean())
    best = int(np.argmax(projected**2))
    b = float(projected[best] / length[best])
    return float(logits.mean()) - b * float(mean[best]), b, float(_EXCHANGE[best])
