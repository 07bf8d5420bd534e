"""Thresholds at which the two deciders reach a stated precision on validation images.

Precision is not monotone in the threshold: a threshold at which it happens to reach the target may
have others above it at which it does not. The rule (ours; the paper's code only reads files that
were thresholded already) therefore looks at all of them. With the distinct validation scores as
candidates, and the support of a candidate the number of scores that reach it:

    point        the smallest candidate t such that at every candidate t' >= t whose support is at
                 least `min_support` the precision is at least the target; t is one of these.
    lower_bound  the smallest t that satisfies this and at which, besides, the lower end of Wilson's
                 interval of the precision is at least the target.

Under `lower_bound` the bound is asked for at the threshold itself only. Above it, where the
support is small, no data could meet it: with k of k correct the lower end is k / (k + z^2), so
that a target of 0.98 at 95 % takes k >= 189, and 50 of 50 give 0.929. Asking for it from a support
of 189 on is no way out: one wrong label among the 189 surest images would leave no threshold at
all. (Simulated, 3000 images with 1 label in 1000 wrong: 16 % of calibrations refused, against 0.1
% by the rule above; true precision >= 0.97 in all of 1000 draws of both.) So `lower_bound` is
`point` with a proof at the threshold, and its threshold is never the lower of the two.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Int8

from clipdg_jax.data import schema
from clipdg_jax.domains import measures
from clipdg_jax.errors import UserError
from clipdg_jax.evaluation import stats

RULES = ("point", "lower_bound")
DECISIONS = measures.DECISIONS
# The domains that have a decider, in the order of the columns of scores.
DECIDED = schema.DOMAINS[:2]


@dataclasses.dataclass(frozen=True)
class Decider:
    """One domain against the rest, with its calibrated threshold.

    Attributes:
      domain: the domain whose images it takes.
      threshold: a score that reaches it is taken. Infinity, which takes nothing, where no
        threshold reaches the target.
      target: the precision asked for.
      rule: "point" or "lower_bound".
      min_support: fewest validation images that count as evidence.
      confidence: of the two-sided intervals.
      validation: the decider on the images that it was calibrated on.
      refusal: "", or why no threshold reaches the target.
    """

    domain: str
    threshold: float
    target: float
    rule: str
    min_support: int
    confidence: float
    validation: measures.Measured
    refusal: str = ""

    def to_json(self) -> dict[str, Any]:
        """JSON-able; a threshold of infinity is null."""
        value = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        value["threshold"] = self.threshold if math.isfinite(self.threshold) else None
        value["validation"] = self.validation.to_json()
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Decider:
        """The inverse of `to_json`."""
        reached = value["threshold"]
        return cls(
            **{
                **value,
                "threshold": math.inf if reached is None else reached,
                "validation": measures.Measured.from_json(value["validation"]),
            }
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Calibration:
    """Both deciders, natural then rendition, and their curves on validation (<= 500 points)."""

    deciders: tuple[Decider, Decider]
    curves: tuple[measures.Curve, measures.Curve]

    def to_json(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "deciders": [decider.to_json() for decider in self.deciders],
            "curves": [curve.to_json() for curve in self.curves],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Calibration:
        """The inverse of `to_json`."""
        natural, rendition = (Decider.from_json(part) for part in value["deciders"])
        curves = tuple(measures.Curve.from_json(part) for part in value["curves"])
        return cls((natural, rendition), (curves[0], curves[1]))


def threshold(
    scores: Float[np.ndarray, " n"],
    positive: Bool[np.ndarray, " n"],
    *,
    target: float,
    rule: str,
    min_support: int = 50,
    confidence: float = 0.95,
    name: str = "decider",
) -> float:
    """The smallest threshold that reaches the target by the rule; the module defines the rules.

    Args:
      scores: of the validation images; one that equals the threshold is taken.
      positive: whether the image is of the decider's domain.
      target: precision, in (0, 1).
      rule: "point" or "lower_bound".
      min_support: thresholds that fewer scores reach neither qualify nor disqualify.
      confidence: of the two-sided Wilson interval.
      name: of the decider, for the error.

    Raises:
      UserError: an argument is out of its range, or no threshold reaches the target; then it says
        what is reached, and what would help.
    """
    _check_arguments(target, rule, min_support, confidence)
    curve = measures.curve(scores, positive)
    enough = curve.support >= min_support
    stays = np.logical_and.accumulate((curve.precision >= target) | ~enough)
    for i in np.flatnonzero(enough & stays)[::-1]:  # from the smallest threshold up
        if rule == "point" or _lower_bound(curve, i, confidence) >= target:
            return float(curve.threshold[i])
    raise UserError(_refusal(curve, target, rule, min_support, confidence, name))


def calibrate(
    scores: Float[np.ndarray, "n 2"],
    domain: Int[np.ndarray, " n"],
    *,
    target: float = 0.98,
    rule: str = "lower_bound",
    min_support: int = 50,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    allow_unreached: bool = False,
) -> Calibration:
    """Calibrates both deciders on labelled validation images.

    Args:
      scores: of natural and of rendition.
      domain: the label of each image, an index into `schema.DOMAINS`.
      target, rule, min_support, confidence: see `threshold`.
      resamples, seed: of the bootstrap intervals on validation.
      allow_unreached: give a decider that no threshold brings to the target the threshold infinity
        and the reason as its `refusal`, instead of raising; a comparison shows it so.

    Raises:
      UserError: as `threshold` does.
    """
    _check_arguments(target, rule, min_support, confidence)
    deciders, curves = [], []
    for column, name in enumerate(DECIDED):
        own, positive = np.asarray(scores)[:, column], np.asarray(domain) == column
        reached, refusal = math.inf, ""
        try:
            reached = threshold(
                own,
                positive,
                target=target,
                rule=rule,
                min_support=min_support,
                confidence=confidence,
                name=f"{name} decider",
            )
        except UserError as error:
            if not allow_unreached:
                raise
            refusal = str(error)
        validation = measures.measure(
            own, positive, reached, confidence=confidence, resamples=resamples, seed=seed
        )
        deciders.append(
            Decider(name, reached, target, rule, min_support, confidence, validation, refusal)
        )
        curves.append(measures.curve(own, positive).thinned())
    return Calibration((deciders[0], deciders[1]), (curves[0], curves[1]))


def decide(scores: Float[np.ndarray, "n 2"], calibration: Calibration) -> Int8[np.ndarray, " n"]:
    """What the deciders say of each image together, an index into `DECISIONS`.

    0 natural, 1 rendition, 2 ambiguous (neither takes it), 3 conflict: both take it, which is to be
    treated as ambiguous, but counted.
    """
    scores = np.asarray(scores, np.float64)
    natural, rendition = (
        scores[:, column] >= decider.threshold
        for column, decider in enumerate(calibration.deciders)
    )
    return np.select([natural & rendition, natural, rendition], [3, 0, 1], 2).astype(np.int8)


def _lower_bound(curve: measures.Curve, i: int, confidence: float) -> float:
    return stats.wilson_interval(int(curve.correct[i]), int(curve.support[i]), confidence)[0]


def _check_arguments(target: float, rule: str, min_support: int, confidence: float) -> None:
    for field, value in (("target", target), ("confidence", confidence)):
        if not 0 < value < 1:
            raise UserError(f"calibration.{field}: is {value}; must lie between 0 and 1, say 0.95")
    if rule not in RULES:
        raise UserError(f"calibration.rule: is {rule!r}; must be one of {', '.join(RULES)}")
    if min_support < 1:
        raise UserError(f"calibration.min_support: is {min_support}; must be at least 1")


def _refusal(
    curve: measures.Curve, target: float, rule: str, min_support: int, confidence: float, name: str
) -> str:
    """One line: the best within reach, what stands in the way, and what would help."""
    n = int(curve.support[-1])
    head = f"{name}: no threshold reaches precision {target:g} on validation"
    if n < min_support:
        return f"{head}: {n} labels, fewer than min_support {min_support}; label more images"
    enough = np.flatnonzero(curve.support >= min_support)
    precision = reached = curve.precision[enough]
    best = enough[np.flatnonzero(precision == precision.max())[-1]]
    found = (
        f"the best is {_floored(precision.max())}, {curve.correct[best]} of {curve.support[best]}"
    )
    found += f" images (of {n}, {curve.positives} of them positive)"
    helps = "more validation labels or a lower target"
    if rule == "lower_bound":
        reached = np.array([_lower_bound(curve, i, confidence) for i in enough])
        proven = enough[np.argmax(reached)]
        found += f", the highest lower bound {_floored(reached.max())}, {curve.correct[proven]} of "
        found += f"{curve.support[proven]}"
        helps = "more validation labels, a lower target or rule 'point'"
    if reached.max() >= target:  # so what bars it is a candidate above
        bar = enough[np.argmax(precision < target)]
        above = _floored(curve.precision[bar])
        found += f", but precision is {above} on the {curve.support[bar]} surest"
        helps = f"checking the labels of these, {helps}"
    return f"{head} by rule {rule}; {found}; {helps} would help"


def _floored(value: float) -> str:
    """Four digits, rounded down: what misses the target must not be printed as the target."""
    return f"{math.floor(1e4 * value + 1e-6) / 1e4:.4f}"
