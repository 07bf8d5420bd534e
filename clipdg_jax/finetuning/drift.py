"""How far fine-tuning moved a model: its weights by layer, and its features."""

import collections
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

# Layers by canonical name: a stage of the stem or a block of a transformer; else the first word
# after the tower's.
_LAYER = re.compile(r"^((?:visual\.)?(?:(?:stem|transformer\.resblocks)\.\d+|[^.]+))")


def layer(name: str) -> str:
    """The layer that a parameter belongs to: `visual.transformer.resblocks.3`, `head`, ..."""
    found = _LAYER.match(name)
    assert found is not None
    return found[1]


def distances(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, float]:
    """|theta - theta_0| / |theta_0| of each layer, and of all as "all" (Frobenius norms, float64).

    Args:
      before, after: parameters by canonical name, of the same names. A layer that was all 0 has
        the length of its change instead.
    """
    moved: dict[str, float] = collections.defaultdict(float)
    size: dict[str, float] = collections.defaultdict(float)
    for name, value in after.items():
        was = np.asarray(before[name], np.float64)
        change = np.asarray(value, np.float64) - was
        for key in (layer(name), "all"):
            moved[key] += float(np.sum(np.square(change)))
            size[key] += float(np.sum(np.square(was)))
    return {key: float(np.sqrt(moved[key] / (size[key] or 1.0))) for key in moved}


def cosine(before: Float[np.ndarray, "n e"], after: Float[np.ndarray, "n e"]) -> float:
    """Mean cosine of each image's features before and after."""
    x, y = np.asarray(before, np.float64), np.asarray(after, np.float64)
    lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    return float(np.mean(np.sum(x * y, axis=1) / np.maximum(lengths, 1e-24)))


def linear_cka(before: Float[np.ndarray, "n e"], after: Float[np.ndarray, "n f"]) -> float:
    """Linear centred kernel alignment, 0 to 1 (Kornblith et al. 2019, equation 5).

    |Y^T X|_F^2 / (|X^T X|_F |Y^T Y|_F) with columns centred: unlike the cosine it does not mind a
    rotation of all features. 0 where either does not vary at all.
    """
    x, y = (np.asarray(part, np.float64) for part in (before, after))
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    norms = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    return float(np.sum(np.square(y.T @ x)) / norms) if norms else 0.0
