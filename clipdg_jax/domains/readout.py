"""Multinomial logistic regression on fixed features, solved to the optimum.

With z = (x - mean) / std of the training features, the weights W and biases b minimise

    - mean_i log softmax(z_i W + b)[domain_i]  +  l2/2 * sum(W^2)

The plain likelihood: examples weigh the same whatever their domain, so that the probabilities fit
the shares of the training labels. Biases are not penalised. The problem is convex, and strictly so
in W for l2 > 0; L-BFGS (scipy) follows the analytic gradient in float64 until it vanishes.

Features stay in the type that they come in, float32 as a rule: 13 000 rows of 33 000 features are
1.7 GB then, and would be 3.4 GB more in float64. Each evaluation takes blocks of rows to float64
instead, which costs about as much time as the products themselves. The standardisation is never
applied to them: it is folded into the weights, x (W/std) + (b - mean W/std).
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from typing import Self

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Int32, Num
from scipy import optimize

from clipdg_jax.data import schema
from clipdg_jax.errors import UserError

# Optimal when no derivative of the objective (in nats) by a standardised weight is larger.
GRADIENT_TOLERANCE = 1e-7
MAX_ITERATIONS = 5000
# A block of rows in float64 holds about this many numbers: 32 MB.
_BLOCK = 4_000_000

Features = Num[np.ndarray, "n d"]


@dataclasses.dataclass(frozen=True, eq=False)
class Readout:
    """A fitted readout.

    Attributes:
      weight: of the features as they come, the standardisation folded in.
      bias: likewise.
      domains: index into `schema.DOMAINS` of each column; those that had labels.
    """

    weight: Float64[np.ndarray, "d k"]
    bias: Float64[np.ndarray, " k"]
    domains: Int32[np.ndarray, " k"]

    def probabilities(self, features: Features) -> Float64[np.ndarray, "n 3"]:
        """Probability of each domain; exactly 0 for those without labels in training.

        Raises ValueError for features of another length.
        """
        if features.shape[1] != len(self.weight):
            raise ValueError(f"{features.shape[1]} features, fitted to {len(self.weight)}")
        found = np.zeros((len(features), len(schema.DOMAINS)))
        for rows, block in _blocks(features):
            found[rows, self.domains] = np.exp(_log_softmax(block @ self.weight + self.bias))
        return found

    def arrays(self, prefix: str = "") -> dict[str, np.ndarray]:
        """The readout by name, to be saved."""
        return {prefix + field.name: getattr(self, field.name) for field in _FIELDS}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], prefix: str = "") -> Self:
        """The readout that `arrays` gave; other names are ignored."""
        return cls(**{field.name: np.asarray(arrays[prefix + field.name]) for field in _FIELDS})


_FIELDS = dataclasses.fields(Readout)


@dataclasses.dataclass(frozen=True, eq=False)
class Objective:
    """The function that is minimised, of the weights of standardised features and the biases.

    Attributes:
      features: as they come.
      target: column of each example's domain.
      columns: how many there are.
      mean: of each feature.
      scale: what multiplies each feature after its mean is taken off: 1/std, 0 if it is constant.
      l2: strength of the penalty.
    """

    features: Features
    target: Int[np.ndarray, " n"]
    columns: int
    mean: Float64[np.ndarray, " d"]
    scale: Float64[np.ndarray, " d"]
    l2: float

    def __call__(
        self, parameters: Float64[np.ndarray, " m"]
    ) -> tuple[float, Float64[np.ndarray, " m"]]:
        """Value in nats and gradient, at m = (d + 1) k weights and biases, biases last."""
        weight, bias = self.split(parameters)
        folded, offset = self.fold(weight, bias)
        loss = 0.0
        inner = np.zeros_like(weight)  # features' residuals
        total = np.zeros_like(bias)  # sum of the residuals
        for rows, block in _blocks(self.features):
            log = _log_softmax(block @ folded + offset)
            picked = (np.arange(len(block)), self.target[rows])
            loss -= log[picked].sum()
            residual = np.exp(log)
            residual[picked] -= 1
            inner += block.T @ residual
            total += residual.sum(axis=0)
        n = len(self.features)
        slope = self.scale[:, None] * (inner - np.outer(self.mean, total)) / n + self.l2 * weight
        value = loss / n + self.l2 / 2 * np.vdot(weight, weight)
        return float(value), np.concatenate([slope.ravel(), total / n])

    def split(
        self, parameters: Float64[np.ndarray, " m"]
    ) -> tuple[Float64[np.ndarray, "d k"], Float64[np.ndarray, " k"]]:
        """Weights and biases."""
        return parameters[: -self.columns].reshape(-1, self.columns), parameters[-self.columns :]

    def fold(
        self, weight: Float64[np.ndarray, "d k"], bias: Float64[np.ndarray, " k"]
    ) -> tuple[Float64[np.ndarray, "d k"], Float64[np.ndarray, " k"]]:
        """The same function as weights and biases of the features as they come."""
        folded = self.scale[:, None] * weight
        return folded, bias - self.mean @ folded


def objective(
    features: Features, domain: Int[np.ndarray, " n"], l2: float, *, standardise: bool = True
) -> tuple[Objective, Int32[np.ndarray, " k"]]:
    """The objective of `fit`, and the domains that its columns stand for."""
    domains, target = np.unique(domain, return_inverse=True)
    mean, std = _moments(features)
    if not np.isfinite(std).all():
        raise ValueError(f"{np.sum(~np.isfinite(std))} features have values that are not finite")
    # What float32 makes of a constant may vary in the last digit.
    constant = std <= 1e-6 * np.abs(mean)
    scale = np.where(constant, 0.0, 1 / np.where(constant, 1.0, std) if standardise else 1.0)
    made = Objective(features, target, len(domains), mean, scale, l2)
    return made, domains.astype(np.int32)


def fit(
    features: Features, domain: Int[np.ndarray, " n"], l2: float, *, standardise: bool = True
) -> Readout:
    """Fits the readout.

    Args:
      features: one row for each example, of any numeric type; never copied as a whole.
      domain: index into `schema.DOMAINS` of each; not all three need occur.
      l2: strength of the penalty, > 0. It counts against the mean over the examples, so that n
        examples with l2 are the maximum a posteriori with a Gaussian prior of variance 1/(n l2).
      standardise: False takes only the means off. For indicators, where a rare one would
        otherwise be scaled up until it counts as much as a frequent one.

    A feature that is constant in training gets the weight 0.

    Raises:
      UserError: l2 is not positive, or fewer than two domains have labels.
      ValueError: a feature is not finite, or the lengths differ.
    """
    if not l2 > 0 or not np.isfinite(l2):
        raise UserError(f"l2: {l2} is not a strength of a penalty; use a positive number")
    if len(features) != len(domain):
        raise ValueError(f"{len(features)} rows of features, {len(domain)} domains")
    known = labelled(domain)
    if known.sum() < 2:
        only = ", ".join(np.array(schema.DOMAINS)[known]) or "none"
        raise UserError(
            f"labels: those to train on are of one domain or none ({only}); a classifier needs two"
        )
    function, domains = objective(features, domain, l2, standardise=standardise)
    start = np.zeros((features.shape[1] + 1) * len(domains))
    found = optimize.minimize(
        function,
        start,
        jac=True,
        method="L-BFGS-B",
        options={
            "maxiter": MAX_ITERATIONS,
            "maxfun": 2 * MAX_ITERATIONS,
            "maxcor": 20,
            "ftol": 0.0,  # The gradient decides, not a small step.
            "gtol": GRADIENT_TOLERANCE,
        },
    )
    steepest = float(np.abs(found.jac).max())
    # Short of the tolerance, the line search may end where float64 tells values no longer apart.
    if steepest > 100 * GRADIENT_TOLERANCE:
        logging.warning(
            "readout: not at the optimum after %d iterations (gradient %.1e): %s",
            found.nit,
            steepest,
            found.message,
        )
    weight, bias = function.fold(*function.split(found.x))
    return Readout(weight, bias, domains)


def labelled(domain: Int[np.ndarray, " n"]) -> Bool[np.ndarray, "3"]:
    """Which domains occur."""
    return np.bincount(domain, minlength=len(schema.DOMAINS)) > 0


def _moments(features: Features) -> tuple[Float64[np.ndarray, " d"], Float64[np.ndarray, " d"]]:
    """Mean and (population) standard deviation of each feature, in two passes."""
    n = len(features)
    mean = sum(block.sum(axis=0) for _, block in _blocks(features)) / n
    square = sum(np.square(block - mean).sum(axis=0) for _, block in _blocks(features))
    return mean, np.sqrt(square / n)


def _blocks(features: Features) -> Iterator[tuple[slice, Float64[np.ndarray, "b d"]]]:
    """Successive rows in float64, and where they stand."""
    size = max(1, _BLOCK // max(1, features.shape[1]))
    for start in range(0, len(features), size):
        rows = slice(start, start + size)
        yield rows, features[rows].astype(np.float64, copy=False)


def _log_softmax(logits: Float[np.ndarray, "b k"]) -> Float[np.ndarray, "b k"]:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
