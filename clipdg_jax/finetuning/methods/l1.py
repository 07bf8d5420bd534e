"""coefficient * sum |theta - theta_0|, in the place of weight decay; where equal, no gradient."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from clipdg_jax.finetuning import distance, parts
from clipdg_jax.finetuning.methods.method import Method


def magnitude(change: Array) -> Array:
    """|change|, with gradient 0 at 0, where jnp.abs has 1: what has not moved is not pushed."""
    return change * jax.lax.stop_gradient(jnp.sign(change))


def build(name: str, config: Any) -> parts.Parts:
    """`coefficients`, and `distance.DEFAULTS`."""
    return distance.build(name, config, magnitude)


METHOD = Method(
    "absolute distance of the weights",
    build,
    {"coefficients": (1e-5, 1e-4, 1e-3), **distance.DEFAULTS},
)
