"""The contrastive losses, written for the global batch.

Inside `jax.jit` with rows sharded over the devices, a row meets the columns of all devices:
XLA gathers one side, and the gradient, that of the logit scale too, is the true one of the
global loss. Nothing here names a device.

A record that is not valid (an image that would not decode, padding) leaves both softmaxes, as a
row and as a column, and the mean divides by the number of valid records. A batch without any
has loss 0 and gradient 0.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from clipdg_jax import errors

Params = dict[str, Array]
Metrics = dict[str, Array]
# (params, batch, scalars) -> (loss, metrics); params are the frozen and the trainable ones.
Objective = Callable[[Params, Mapping[str, Array], Mapping[str, Array]], tuple[Array, Metrics]]

LOGIT_SCALE, LOGIT_BIAS = "logit_scale", "logit_bias"

# Where the sigmoid loss starts (Zhai et al. 2023, section 3.2): scale 10, bias -10. The
# contrastive loss starts where the model's own initialisation puts the scale.
SIGLIP_LOG_SCALE, SIGLIP_BIAS = 2.302585092994046, -10.0


def _similarities(
    image: Float[Array, "b e"], text: Float[Array, "b e"], valid: Bool[Array, " b"]
) -> Float[Array, "b b"]:
    """fp32 dot products; invalid features become 0, for 0 x NaN would reach valid gradients."""
    keep = valid[:, None]
    image = jnp.where(keep, image.astype(jnp.float32), 0.0)
    text = jnp.where(keep, text.astype(jnp.float32), 0.0)
    return jnp.matmul(image, text.T, precision=jax.lax.Precision.HIGHEST)


def _matched(
    logits: Float[Array, "b b"], valid: Bool[Array, " b"], count: Float[Array, ""]
) -> Float[Array, ""]:
    """Share of valid images whose own caption scores highest among the valid ones."""
    candidates = jnp.where(valid[None, :], logits, -jnp.inf)
    own = jnp.argmax(candidates, axis=1) == jnp.arange(valid.shape[0])
    return jnp.sum(own & valid) / count


def clip_loss(
    image: Float[Array, "b e"],
    text: Float[Array, "b e"],
    scale: Float[Array, ""],
    valid: Bool[Array, " b"],
) -> tuple[Float[Array, ""], Metrics]:
    """Mean of the image-to-text and text-to-image cross-entropies (Radford et al. 2021, fig. 3).

    Args:
      image: L2-normalised image features of the global batch.
      text: L2-normalised features of the captions, row by row those of the images.
      scale: what the cosine similarities are multiplied by, exp(logit_scale).
      valid: which records count.

    Returns:
      The loss in nats, and {"accuracy": share of images that find their own caption}.
    """
    logits = scale * _similarities(image, text, valid)
    # A large finite number, not -inf: with no valid record the gradient must be 0, not NaN.
    out = jnp.finfo(logits.dtype).min
    row_lse = jax.nn.logsumexp(jnp.where(valid[None, :], logits, out), axis=1)
    col_lse = jax.nn.logsumexp(jnp.where(valid[:, None], logits, out), axis=0)
    each = 0.5 * (row_lse + col_lse) - jnp.diagonal(logits)
    count = jnp.maximum(jnp.sum(valid, dtype=jnp.float32), 1.0)
    loss = jnp.sum(jnp.where(valid, each, 0.0)) / count
    return loss, {"accuracy": _matched(logits, valid, count)}


def siglip_loss(
    image: Float[Array, "b e"],
    text: Float[Array, "b e"],
    scale: Float[Array, ""],
    bias: Float[Array, ""],
    valid: Bool[Array, " b"],
) -> tuple[Float[Array, ""], Metrics]:
    """Sigmoid loss (Zhai et al. 2023, eq. 1): every pair is a yes/no question of its own.

    Args:
      image, text, scale, valid: as for `clip_loss`.
      bias: added to every logit; the trainable parameter `logit_bias`.

    Returns:
      The loss in nats a record (summed over its pairs), and {"accuracy": as `clip_loss`}.
    """
    logits = scale * _similarities(image, text, valid) + bias
    sign = 2.0 * jnp.eye(valid.shape[0], dtype=logits.dtype) - 1.0
    pair = valid[:, None] & valid[None, :]
    count = jnp.maximum(jnp.sum(valid, dtype=jnp.float32), 1.0)
    loss = -jnp.sum(jnp.where(pair, jax.nn.log_sigmoid(sign * logits), 0.0)) / count
    return loss, {"accuracy": _matched(logits, valid, count)}


def check_loss(loss: str) -> None:
    """Raises UserError for a loss that does not exist."""
    if loss not in ("clip", "siglip"):
        raise errors.UserError(f"loss: {loss!r} is unknown; use 'clip' or 'siglip'")


def wrap_init(init: Callable[[Array], Params], loss: str) -> Callable[[Array], Params]:
    """The model's `init` with what the loss adds.

    'clip' adds nothing. 'siglip' adds the trainable `logit_bias`, named as in open_clip, and
    sets where it and `logit_scale` start. The model itself knows no bias.
    """
    check_loss(loss)
    if loss == "clip":
        return init

    def siglip_init(rng: Array) -> Params:
        start = {LOGIT_SCALE: SIGLIP_LOG_SCALE, LOGIT_BIAS: SIGLIP_BIAS}
        return init(rng) | {k: jnp.asarray(v, jnp.float32) for k, v in start.items()}

    return siglip_init


def contrastive_objective(
    apply: Callable[[Params, Array, Array], tuple[Array, Array, Array]], loss: str
) -> Objective:
    """The objective of pre-training.

    Args:
      apply: `models.model.Model`, called as (params, image, tokens) -> (image features [b, e],
        text features [b, e], scale []).
      loss: 'clip' or 'siglip'; the latter needs parameters from `wrap_init(.., 'siglip')`.

    Returns:
      An objective over batches with `image`, `tokens` and `valid`; adds to the loss's metrics
      "logit_scale", the factor itself and not its logarithm, and "valid", the records counted.
    """
    check_loss(loss)

    def objective(
        params: Params, batch: Mapping[str, Array], scalars: Mapping[str, Array]
    ) -> tuple[Array, Metrics]:
        del scalars  # Pre-training has none.
        model_params = {k: v for k, v in params.items() if k != LOGIT_BIAS}
        image, text, scale = apply(model_params, batch["image"], batch["tokens"])
        if loss == "clip":
            value, metrics = clip_loss(image, text, scale, batch["valid"])
        else:
            bias = params[LOGIT_BIAS]
            value, metrics = siglip_loss(image, text, scale, bias, batch["valid"])
        return value, metrics | {"logit_scale": scale, "valid": jnp.sum(batch["valid"])}

    return objective
