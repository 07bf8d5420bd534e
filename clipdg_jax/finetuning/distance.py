"""The penalties on the distance from the pre-trained weights."""

import functools
import re
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from clipdg_jax import errors
from clipdg_jax.finetuning import parts

DEFAULTS = {
    "reduction": "sum",  # sum | mean, over all the numbers that are held.
    "leaves": "",  # Regular expression for the parameters that are held; "": all that train.
}


def build(name: str, config: Any, each: Callable[[Array], Array]) -> parts.Parts:
    """A method that adds coefficient * sum (or mean) of each(theta - theta_0).

    Args:
      name: of the method.
      config: `coefficients`, `reduction`, `leaves`.
      each: of the difference, elementwise.
    """
    if config.reduction not in ("sum", "mean"):
        raise errors.UserError(
            f"config.{name}.reduction: {config.reduction!r} is unknown; use 'sum' or 'mean'"
        )
    value = functools.partial(
        _value, each=each, leaves=config.leaves, mean=config.reduction == "mean"
    )
    return parts.Parts(
        name,
        penalty=parts.Penalty(value, holds=config.leaves),
        sweep=parts.Sweep(parts.coefficients(name, "coefficients", config.coefficients)),
    )


def _value(
    forward: parts.Forward, each: Callable[[Array], Array], leaves: str, mean: bool
) -> Float[Array, ""]:
    held = [name for name in forward.moving if re.search(leaves, name)]
    total = jnp.zeros((), jnp.float32)
    for name in held:
        total += jnp.sum(each(forward.params[name] - forward.pretrained[name]))
    return total / sum(forward.params[name].size for name in held) if mean else total
