"""Small statistics of accuracies, each with its formula."""

import math
import statistics
from collections.abc import Sequence


def wilson_interval(correct: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion, without continuity correction.

    (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), with p = correct/n and z the normal
    quantile of the two-sided `confidence` (Wilson 1927; method 3 of Newcombe 1998). Unlike
    p -+ z sqrt(p(1-p)/n), it stays within [0, 1] and is honest for accuracies near 0 and 1. An
    effective number of trials need not be whole.

    Raises ValueError unless n >= 1, 0 <= correct <= n and 0 < confidence < 1.
    """
    if n < 1 or not 0 <= correct <= n:
        raise ValueError(f"need 0 <= correct <= n and n >= 1, got correct={correct}, n={n}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
    p = correct / n
    scale = 1 + z * z / n
    centre = (p + z * z / (2 * n)) / scale
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / scale
    # At correct = 0 and correct = n one bound is exactly 0 or 1; rounding must not move it out.
    low = 0.0 if correct == 0 else max(0.0, centre - half)
    high = 1.0 if correct == n else min(1.0, centre + half)
    return low, high


def mean_and_standard_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and standard error of the mean, s / sqrt(n) with the n - 1 standard deviation.

    For figures over seeds. A single value has an unknown error: NaN. Raises ValueError if empty.
    """
    if not values:
        raise ValueError("no values to average")
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean, math.nan
    return mean, statistics.stdev(values) / math.sqrt(len(values))


def corrected_accuracy(accuracy: float, chance: float) -> float:
    """Accuracy rescaled so that chance is 0 and perfect is 1: (accuracy - chance)/(1 - chance).

    Negative below chance. `chance` is 1/classes for top-1; raises ValueError unless in [0, 1).
    """
    if not 0 <= chance < 1:
        raise ValueError(f"chance must lie in [0, 1), got {chance}")
    return (accuracy - chance) / (1 - chance)


def relative_corrected_accuracy(accuracy: float, reference: float, chance: float) -> float:
    """Corrected accuracy over that of a reference run on the same test set.

    The reference is the run with as many samples seen. Raises ValueError where the reference is
    not above chance, since the ratio then means nothing.
    """
    base = corrected_accuracy(reference, chance)
    if base <= 0:
        raise ValueError(f"the reference accuracy {reference} is not above chance {chance}")
    return corrected_accuracy(accuracy, chance) / base
