"""L2-SP (Li et al. 2018): coefficient * sum (theta - theta_0)^2, in the place of weight decay."""

from typing import Any

import jax.numpy as jnp

from clipdg_jax.finetuning import distance, parts
from clipdg_jax.finetuning.methods.method import Method


def build(name: str, config: Any) -> parts.Parts:
    """`coefficients`, and `distance.DEFAULTS`."""
    return distance.build(name, config, jnp.square)


METHOD = Method(
    "squared distance of the weights",
    build,
    {"coefficients": (0.01, 0.1, 1.0), **distance.DEFAULTS},
)
