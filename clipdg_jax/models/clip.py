"""The two towers and the temperature, as one module."""

import jax
import jax.numpy as jnp
from flax import nnx

from clipdg_jax.models import config as config_lib
from clipdg_jax.models import layers, text, vision


class CLIP(nnx.Module):
    """Holds the towers `visual` and `text`, and the logits' scale.

    open_clip keeps the text tower's parts at the top level: `model.name_of` drops the `text.`.
    """

    def __init__(self, config: config_lib.ClipConfig):
        self.visual = vision.VisionTower(config)
        self.text = text.TextTower(config)
        self.logit_scale = layers.param((), layers.constant(config.init_logit_scale))


def normalise(x: jax.Array) -> jax.Array:
    """Rows of length 1, float32; a row of zeros stays zero (torch's F.normalize)."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-24))
