"""CLIP's text tower: a causal transformer, read at the end-of-text token."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from clipdg_jax.models import config as config_lib
from clipdg_jax.models import layers


class Embedding(nnx.Module):
    """One row of `weight` for each token of the vocabulary."""

    def __init__(self, rows: int, width: int):
        self.weight = layers.param((rows, width), layers.normal(0.02))

    def __call__(self, tokens: Int[Array, "b n"]) -> Float[Array, "b n d"]:
        return self.weight[...][tokens]


class TextTower(nnx.Module):
    """Tokens -> feature, not normalised. The text half of open_clip's CLIP.

    A caption shorter than the context may come as fewer columns: with a causal mask the padding
    behind the end-of-text token changes nothing, it only costs time.
    """

    def __init__(self, config: config_lib.ClipConfig):
        c = config.text
        width, hidden = c.width, int(c.width * c.mlp_ratio)
        attn_in, attn_out, mlp_in, mlp_out = layers.text_inits(width, c.layers)
        blocks = [
            layers.Block(
                layers.Attention(width, c.heads, True, attn_in, attn_out),
                layers.Mlp(width, hidden, config.activation, mlp_in, mlp_out),
                width,
            )
            for _ in range(c.layers)
        ]
        self.token_embedding = Embedding(c.vocab_size, width)
        self.positional_embedding = layers.param((c.context_length, width), layers.normal(0.01))
        self.transformer = layers.Transformer(blocks, config.remat, config.scan_layers)
        self.ln_final = layers.LayerNorm(width)
        self.text_projection = layers.param((width, config.embed_dim), layers.normal(width**-0.5))
        self.dtype = config.dtype

    def __call__(self, tokens: Int[Array, "b n"]) -> Float[Array, "b e"]:
        """tokens: SOT .. EOT and zeros; the EOT is the row's largest id."""
        x = self.token_embedding(tokens).astype(self.dtype)
        positions = self.positional_embedding[...][: tokens.shape[1]].astype(x.dtype)
        x = self.transformer(x + positions[None])
        end = tokens.argmax(axis=-1)
        pooled = jnp.take_along_axis(x, end.reshape(-1, 1, 1), axis=1)[:, 0]
        pooled = self.ln_final(pooled)
        return pooled @ self.text_projection[...].astype(pooled.dtype)
