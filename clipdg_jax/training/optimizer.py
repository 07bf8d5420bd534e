"""Optimisers and learning rates.

OpenCLIP's (release 2.24): AdamW, warm-up and cosine, and what is not decayed. And that of the
domain study's classifier: torch's SGD with a learning rate that drops every few epochs.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from clipdg_jax import errors
from clipdg_jax.training import stacking

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


def drop_schedule(
    lr: float, warmup: int, every: int, factor: float
) -> Callable[[Int[Array, ""] | int], Float[Array, ""]]:
    """Linear warm-up, and the rate times `factor` after every `every` steps (torch's StepLR).

    lr(s) = lr * min(1, (s + 1) / warmup) * factor^floor(s / every), with s counted from 0.

    Args:
      lr: the highest learning rate.
      warmup: steps of warm-up; 0 for none.
      every: steps from one drop to the next.
      factor: what the rate is multiplied by at each.
    """
    if warmup < 0:
        raise errors.UserError(f"optim.warmup: {warmup} is negative; use 0 or more steps")
    if every < 1:
        raise errors.UserError(f"optim.drop_every: {every} steps; use an epoch or more")

    def rate(step: Int[Array, ""] | int) -> Float[Array, ""]:
        s = jnp.asarray(step, jnp.int32)
        warm = jnp.minimum(1.0, (s + 1).astype(jnp.float32) / max(warmup, 1))
        drops = (s // every).astype(jnp.float32)
        return lr * warm * jnp.asarray(factor, jnp.float32) ** drops

    return rate


def make_schedule(
    optim: Any, steps: int, epoch_steps: int = 1
) -> Callable[[Int[Array, ""] | int], Float[Array, ""]]:
    """The learning rate that a config asks for.

    Args:
      optim: fields `lr` and `warmup` (steps); `schedule`, "cosine" where absent, or "step", which
        takes `drop_every` (epochs) and `drop_factor` too.
      steps: the length of the run.
      epoch_steps: the length of an epoch.
    """
    kind = optim.get("schedule", "cosine")
    if kind == "cosine":
        return schedule(optim["lr"], optim["warmup"], steps)
    if kind == "step":
        _check_ranges(optim, {"drop_factor": (0.0, 1.0)})
        every = optim["drop_every"] * epoch_steps
        return drop_schedule(optim["lr"], optim["warmup"], every, optim["drop_factor"])
    raise errors.UserError(f"optim.schedule: {kind!r} is unknown; use 'cosine' or 'step'")


def decay_mask(params: Mapping[str, Any]) -> dict[str, bool]:
    """Which parameters weight decay touches: none whose name matches `NOT_DECAYED`, no vector.

    Args:
      params: per name anything with `.shape`. Of a stack of blocks (`stacking`) each block's
        decides; LayerNorms and biases go by name in any case.
    """
    return {
        name: NOT_DECAYED.search(name) is None and len(stacking.block_shape(name, leaf.shape)) >= 2
        for name, leaf in params.items()
    }


def make_optimizer(
    optim: Any,
    steps: int,
    epoch_steps: int = 1,
    decayed: Callable[[Mapping[str, Any]], dict[str, bool]] = decay_mask,
) -> optax.GradientTransformation:
    """The optimiser that a config asks for, by the field `name`.

    "adamw", where absent: as OpenCLIP sets it up, decay on `decayed`'s parameters, decoupled
    and times lr. "sgd": torch's, v = momentum v + (g + weight_decay p), p = p - lr v, so that the
    decay enters the momentum; of all parameters.

    Args:
      optim: `make_schedule`'s fields, `weight_decay`, `clip`, the largest global gradient norm
        (None or 0 for no clipping); for AdamW `beta1`, `beta2`, `eps`; for SGD `momentum`.
      steps: the length of the run, for the schedule.
      epoch_steps: the length of an epoch, for a schedule in epochs.
      decayed: which of the parameters AdamW's decay touches.

    Raises:
      UserError: a field outside its range, or an optimiser or schedule that does not exist.
    """
    name = optim.get("name", "adamw")
    if name not in ("adamw", "sgd"):
        raise errors.UserError(f"optim.name: {name!r} is unknown; use 'adamw' or 'sgd'")
    unit, positive = (0.0, 1.0), (0.0, math.inf)
    own = {
        "adamw": {"beta1": unit, "beta2": unit, "eps": positive},
        "sgd": {"momentum": unit},
    }[name]
    _check_ranges(optim, {"lr": positive, **own, "weight_decay": positive, "clip": positive})
    parts = [optax.clip_by_global_norm(optim["clip"])] if optim["clip"] else []
    rate = make_schedule(optim, steps, epoch_steps)
    if name == "adamw":
        parts.append(
            optax.adamw(
                rate,
                b1=optim["beta1"],
                b2=optim["beta2"],
                eps=optim["eps"],
                weight_decay=optim["weight_decay"],
                mask=decayed,
            )
        )
    else:
        parts += [
            optax.add_decayed_weights(optim["weight_decay"]),
            optax.sgd(rate, momentum=optim["momentum"]),
        ]
    return optax.chain(*parts)


def _check_ranges(optim: Any, ranges: Mapping[str, tuple[float, float]]) -> None:
    """Raises UserError for the first field that is not in [low, high); None is no value."""
    for field, (low, high) in ranges.items():
        value = optim[field]
        if value is not None and not low <= value < high:
            raise errors.UserError(
                f"optim.{field}: {value} is out of range; use {low:g} to {high:g}"
            )
