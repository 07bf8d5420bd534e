"""The contrastive losses, written for the global batch.

Inside `jax.jit` with rows sharded over the devices, a row meets the columns of all devices:
XLA gathers one side, and the gradient, that of the logit scale too, is the true one of the
global loss. Nothing here names a device.

The square of all logits is never in memory: they are made, and in the backward pass made again,
some `COLUMNS` captions at a time. That costs one more matrix product, little beside the towers.

A record that is not valid (an image that would not decode, padding) leaves both softmaxes, as a
row and as a column, and the mean divides by the number of valid records. A batch without any
has loss 0 and gradient 0.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from clipdg_jax import errors
from clipdg_jax.models import text as text_lib
from clipdg_jax.training import stacking

Params = dict[str, Array]
Metrics = dict[str, Array]
# (params, batch, scalars) -> (loss, metrics); params are the frozen and the trainable ones.
Objective = Callable[[Params, Mapping[str, Array], Mapping[str, Array]], tuple[Array, Metrics]]

LOGIT_SCALE, LOGIT_BIAS = "logit_scale", "logit_bias"

# Where the sigmoid loss starts (Zhai et al. 2023, section 3.2): scale 10, bias -10. The
# contrastive loss starts where the model's own initialisation puts the scale.
SIGLIP_LOG_SCALE, SIGLIP_BIAS = 2.302585092994046, -10.0

# Captions that meet all images at a time. On one device a batch of 16 384 then takes 128 MiB for
# logits and not 1 GiB, several times over.
COLUMNS = 2048


def _valid_only(features: Float[Array, "b e"], valid: Bool[Array, " b"]) -> Float[Array, "b e"]:
    """float32; invalid features become 0, for 0 x NaN would reach valid gradients."""
    return jnp.where(valid[:, None], features.astype(jnp.float32), 0.0)


def _over_columns(
    chunk: Callable[[Any, Array, Array, Array], tuple[Any, Any]],
    image: Float[Array, "b e"],
    text: Float[Array, "b e"],
    valid: Bool[Array, " b"],
    start: Any,
) -> tuple[Any, Any, Bool[Array, " b"]]:
    """Goes through all similarities, `COLUMNS` captions at a time.

    Args:
      chunk: (what it last returned of the images, arrays [b]; similarities [b, c]; the captions'
        `valid` [c]; which similarities are an image's and its own caption's [b, c]) -> (the same
        of the images; something of these captions, arrays [c]).
      image, text: float32, 0 where not valid.
      start: the first `chunk`'s first argument.

    Returns:
      What `chunk` made of the images and of the captions, and whether an image's own caption is
      the nearest of the valid ones.
    """
    rows = valid.shape[0]
    width = min(COLUMNS, rows)
    padding = -rows % width

    def body(carry: Any, columns: Any) -> tuple[Any, Array]:
        of_images, nearest, at = carry
        captions, counts, index = columns
        similar = jnp.matmul(image, captions.T, precision=jax.lax.Precision.HIGHEST)
        own = jnp.arange(rows)[:, None] == index[None, :]
        of_images, of_captions = chunk(of_images, similar, counts, own)
        candidates = jax.lax.stop_gradient(jnp.where(counts[None, :], similar, -jnp.inf))
        here = candidates.max(axis=1)
        at = jnp.where(here > nearest, index[candidates.argmax(axis=1)], at)
        return (of_images, jnp.maximum(nearest, here), at), of_captions

    columns = (
        jnp.pad(text, ((0, padding), (0, 0))),
        jnp.pad(valid, (0, padding)),
        jnp.arange(rows + padding),
    )
    columns = jax.tree.map(lambda x: x.reshape(-1, width, *x.shape[1:]), columns)
    first = (start, jnp.full(rows, -jnp.inf), jnp.full(rows, -1))
    body = jax.checkpoint(body, prevent_cse=False)  # Within a scan nothing can be merged anyway.
    (of_images, _, at), of_captions = jax.lax.scan(body, first, columns)
    of_captions = jax.tree.map(lambda x: x.reshape(-1)[:rows], of_captions)
    return of_images, of_captions, at == jnp.arange(rows)


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
    image, text = _valid_only(image, valid), _valid_only(text, valid)
    # A large finite number, not -inf: with no valid record the gradient must be 0, not NaN.
    out = jnp.finfo(jnp.float32).min

    def chunk(so_far: Any, similar: Array, counts: Array, own: Array) -> tuple[Any, Array]:
        row_lse, own_logit = so_far
        logits = scale * similar
        here = jax.nn.logsumexp(jnp.where(counts[None, :], logits, out), axis=1)
        col_lse = jax.nn.logsumexp(jnp.where(valid[:, None], logits, out), axis=0)
        own_logit = own_logit + jnp.sum(jnp.where(own, logits, 0.0), axis=1)
        return (jnp.logaddexp(row_lse, here), own_logit), col_lse

    start = (jnp.full(valid.shape, out), jnp.zeros(valid.shape))
    (row_lse, own_logit), col_lse, matched = _over_columns(chunk, image, text, valid, start)
    each = 0.5 * (row_lse + col_lse) - own_logit
    count = jnp.maximum(jnp.sum(valid, dtype=jnp.float32), 1.0)
    loss = jnp.sum(jnp.where(valid, each, 0.0)) / count
    return loss, {"accuracy": jnp.sum(matched & valid) / count}


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
    image, text = _valid_only(image, valid), _valid_only(text, valid)

    def chunk(so_far: Array, similar: Array, counts: Array, own: Array) -> tuple[Array, None]:
        each = jax.nn.log_sigmoid(jnp.where(own, 1.0, -1.0) * (scale * similar + bias))
        each = jnp.where(valid[:, None] & counts[None, :], each, 0.0)
        return so_far - each.sum(axis=1), None

    each, _, matched = _over_columns(chunk, image, text, valid, jnp.zeros(valid.shape))
    count = jnp.maximum(jnp.sum(valid, dtype=jnp.float32), 1.0)
    return jnp.sum(each) / count, {"accuracy": jnp.sum(matched & valid) / count}


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
    apply: Callable[..., tuple[Array, Array, Array]],
    loss: str,
    *,
    accumulate: int = 1,
    shards: int = 1,
) -> Objective:
    """The objective of pre-training.

    Args:
      apply: `models.model.Model`, called as (params, image, tokens), and packing where captions
        are packed, -> (image features [b, e], text features [b, e], scale []).
      loss: 'clip' or 'siglip'; the latter needs parameters from `wrap_init(.., 'siglip')`.
      accumulate: parts in which the batch goes through the towers, for want of memory. All
        features meet in one loss, and the backward pass computes each part's again, so that the
        gradient is that of the whole batch (Gao et al. 2021, GradCache).
      shards: devices that the rows lie on; each has its rows of every part.

    Returns:
      An objective over batches with `image`, `tokens` and `valid`, and where captions are packed
      (`data.packing`) `positions` and `ends`, in a multiple of accumulate x shards groups; adds
      to the loss's metrics "logit_scale", the factor itself and not its logarithm, and "valid",
      the records counted. The towers' blocks may be stacked (`stacking`) in its parameters.
    """
    check_loss(loss)

    def features(params: Params, batch: Mapping[str, Array]) -> tuple[Array, Array, Array]:
        params = stacking.unstack(params)
        if "ends" not in batch:
            return apply(params, batch["image"], batch["tokens"])
        packing = text_lib.Packing(batch["positions"], batch["ends"])
        return apply(params, batch["image"], batch["tokens"], packing)

    def features_by_parts(params: Params, batch: Mapping[str, Array]) -> tuple[Array, Array, Array]:
        def split(x: Array) -> Array:  # [rows, ..] -> [parts, rows of a part, ..]
            x = x.reshape(shards, accumulate, -1, *x.shape[1:]).swapaxes(0, 1)
            return x.reshape(accumulate, -1, *x.shape[3:])

        def join(x: Array) -> Array:
            x = x.reshape(accumulate, shards, -1, *x.shape[2:]).swapaxes(0, 1)
            return x.reshape(-1, *x.shape[3:])

        names = ("image", "tokens", "positions", "ends")
        parts = {name: split(batch[name]) for name in names if name in batch}
        encode = jax.checkpoint(functools.partial(features, params), prevent_cse=False)
        image, text, scale = jax.lax.map(encode, parts)
        return join(image), join(text), scale[0]

    def objective(
        params: Params, batch: Mapping[str, Array], scalars: Mapping[str, Array]
    ) -> tuple[Array, Metrics]:
        del scalars  # Pre-training has none.
        model_params = {k: v for k, v in params.items() if k != LOGIT_BIAS}
        encode = features if accumulate == 1 else features_by_parts
        image, text, scale = encode(model_params, batch)
        if loss == "clip":
            value, metrics = clip_loss(image, text, scale, batch["valid"])
        else:
            bias = params[LOGIT_BIAS]
            value, metrics = siglip_loss(image, text, scale, bias, batch["valid"])
        return value, metrics | {"logit_scale": scale, "valid": jnp.sum(batch["valid"])}

    return objective
