"""Distillation from the pre-trained model: its outputs for the training images are kept.

features  mean |f - f_0|^2, f of length 1
logits    mean over images and classes of (z - z_0)^2
kl        T^2 mean KL(softmax(z_0 / T) || softmax(z / T))   (Hinton et al. 2015)
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from clipdg_jax import errors
from clipdg_jax.finetuning import parts
from clipdg_jax.finetuning.methods.method import Method


def features(forward: parts.Forward) -> Float[Array, ""]:
    """Mean squared distance of the features; 0 to 4."""
    moved = forward.features - forward.pretrained_features
    return forward.mean(jnp.sum(jnp.square(moved), axis=1))


def logits(forward: parts.Forward) -> Float[Array, ""]:
    """Mean squared distance of the logits."""
    moved = forward.logits - forward.pretrained_logits
    return forward.mean(jnp.mean(jnp.square(moved), axis=1))


def kl(forward: parts.Forward, temperature: float) -> Float[Array, ""]:
    """Mean divergence in nats, times the temperature's square."""
    student = jax.nn.log_softmax(forward.logits / temperature)
    teacher = jax.nn.log_softmax(forward.pretrained_logits / temperature)
    each = jnp.sum(jnp.exp(teacher) * (teacher - student), axis=1)
    return temperature**2 * forward.mean(each)


def build(name: str, config: Any) -> parts.Parts:
    """`coefficients`, `of`, `temperature`."""
    values: dict[str, Callable[[parts.Forward], Array]] = {
        "features": features,
        "logits": logits,
        "kl": lambda forward: kl(forward, config.temperature),
    }
    if config.of not in values:
        raise errors.UserError(
            f"config.{name}.of: {config.of!r} is unknown; use {', '.join(values)}"
        )
    if not config.temperature > 0:
        raise errors.UserError(f"config.{name}.temperature: {config.temperature}; above 0")
    return parts.Parts(
        name,
        penalty=parts.Penalty(values[config.of]),
        sweep=parts.Sweep(parts.coefficients(name, "coefficients", config.coefficients)),
    )


METHOD = Method(
    "distance of the outputs",
    build,
    {
        "coefficients": (1.0, 10.0, 100.0),
        "of": "features",  # features | logits | kl
        "temperature": 1.0,  # Of kl.
    },
)
