"""coefficient * sum |theta - theta_0|, in the place of weight decay; where equal, no gradient."""

from typing import Any

import jax.numpy as jnp

from clipdg_jax.finetuning import distance, parts
from clipdg_jax.finetuning.methods.method import Method


def build(name: str, config: Any) -> parts.Parts:
    """`coefficients`, and `distance.DEFAULTS`."""
    return distance.build(name, config, jnp.abs)


METHOD = Method(
    "absolute distance of the weights",
    build,
    {"coefficients": (1e-5, 1e-4, 1e-3), **distance.DEFAULTS},
)
