"""OpenCLIP's optimiser (release 2.24): AdamW, warm-up and cosine, and what is not decayed."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from clipdg_jax import errors

# Not decayed, by canonical (open_clip's) parameter name. Both positional embeddings, the token
# embedding, the projections and the patch convolution are decayed.
NOT_DECAYED = re.compile(r"bn|ln|bias|logit_scale|class_embedding")

# Limits that hold after every update, where the parameter is trained.
CLAMP: Mapping[str, tuple[float, float]] = {"logit_scale": (0.0, math.log(100.0))}


def schedule(
    lr: float, warmup: int, steps: int
) -> Callable[[Int[Array, ""] | int], Float[Array, ""]]:
    """Linear warm-up, then a cosine to 0, per step.

    lr(s) = lr * (s + 1) / warmup for s < warmup, then lr * (1 + cos(pi (s - w) / (T - w))) / 2,
    with s counted from 0 (OpenCLIP, release 2.24).

    Args:
      lr: the highest learning rate.
      warmup: w, steps of warm-up; 0 for none. A run shorter than that ends while warming up.
      steps: T, steps in all.
    """
    if warmup < 0:
        raise errors.UserError(f"optim.warmup: {warmup} is negative; use 0 or more steps")

    def rate(step: Int[Array, ""] | int) -> Float[Array, ""]:
        s = jnp.asarray(step, jnp.float32)
        progress = jnp.clip((s - warmup) / max(steps - warmup, 1), 0.0, 1.0)
        cosine = 0.5 * (1.0 + jnp.cos(jnp.pi * progress)) * lr
        return jnp.where(s < warmup, lr * (s + 1.0) / max(warmup, 1), cosine)

    return rate


def decay_mask(params: Mapping[str, Any]) -> dict[str, bool]:
    """Which parameters weight decay touches: none whose name matches `NOT_DECAYED`, no vector.

    Args:
      params: per canonical name anything with `.shape`. Canonical parameters are never stacked
        over layers, so that a vector is one; LayerNorms and biases go by name in any case.
    """
    return {
        name: NOT_DECAYED.search(name) is None and len(leaf.shape) >= 2
        for name, leaf in params.items()
    }


def make_optimizer(optim: Any, steps: int) -> optax.GradientTransformation:
    """AdamW as OpenCLIP sets it up, on `decay_mask`'s parameters, decoupled decay times lr.

    Args:
      optim: fields `lr`, `warmup`, `beta1`, `beta2`, `eps`, `weight_decay`, and `clip`, the
        largest global gradient norm (None or 0 for no clipping).
      steps: the length of the run, for the cosine.

    Raises:
      UserError: a field outside its range.
    """
    for field, low, high in (
        ("lr", 0.0, math.inf),
        ("beta1", 0.0, 1.0),
        ("beta2", 0.0, 1.0),
        ("eps", 0.0, math.inf),
        ("weight_decay", 0.0, math.inf),
        ("clip", 0.0, math.inf),
    ):
        value = optim[field]
        if value is not None and not low <= value < high:
            raise errors.UserError(
                f"optim.{field}: {value} is out of range; use {low:g} to {high:g}"
            )
    parts = [optax.clip_by_global_norm(optim["clip"])] if optim["clip"] else []
    parts.append(
        optax.adamw(
            schedule(optim["lr"], optim["warmup"], steps),
            b1=optim["beta1"],
            b2=optim["beta2"],
            eps=optim["eps"],
            weight_decay=optim["weight_decay"],
            mask=decay_mask,
        )
    )
    return optax.chain(*parts)
