"""Which point of a sweep is chosen, by in-distribution validation alone."""

import math
from collections.abc import Sequence

RULE = (
    "the strongest protection whose in-distribution validation accuracy is within one standard "
    "error of the best"
)


def choose(accuracies: Sequence[float], images: int, protections: Sequence[float]) -> int:
    """The point that `RULE` names.

    The standard error is that of the best accuracy p over the validation images, sqrt(p (1 - p) /
    n). Of points that protect as strongly, the more accurate is chosen, and of equals the first.

    Args:
      accuracies: of each point on the validation images, in [0, 1].
      images: how many there are.
      protections: of each point; only their order matters.
    """
    best = max(accuracies)
    floor = best - math.sqrt(best * (1 - best) / images)
    within = [i for i, accuracy in enumerate(accuracies) if accuracy >= floor]
    return max(within, key=lambda i: (protections[i], accuracies[i], -i))
