"""CLIP's text tower: a causal transformer, read at the end-of-text token.

Captions may share rows (packing). A token sees those of its own caption up to itself, and its
position counts from its caption's start, so that neither the features nor their gradients depend
on who shares a row with whom.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from clipdg_jax.models import config as config_lib
from clipdg_jax.models import layers


class Packing(NamedTuple):
    """Where captions lie in the rows of a batch of tokens.

    positions: of each token in its caption. 0 begins a caption; slots that hold none have 0 too.
    ends: of each caption the slot of its end-of-text token. Consecutive rows, r / g of them, make
        a group; `ends[i]` are slots of group i, counted through its rows. The features are those
        of group 0, then of group 1, ... A group's captions are gathered from its own rows, so
        that groups may lie on different devices.
    """

    positions: Int[Array, "#r n"]
    ends: Int[Array, "g k"]


def one_per_row(tokens: Int[Array, "b n"]) -> Packing:
    """The packing of captions that each have a row: SOT .. EOT and zeros, EOT the largest id."""
    return Packing(jnp.arange(tokens.shape[1])[None], tokens.argmax(axis=-1)[:, None])


class Embedding(nnx.Module):
    """One row of `weight` for each token of the vocabulary."""

    def __init__(self, rows: int, width: int):
        self.weight = layers.param((rows, width), layers.normal(0.02))

    def __call__(self, tokens: Int[Array, "b n"]) -> Float[Array, "b n d"]:
        return self.weight[...][tokens]


class TextTower(nnx.Module):
    """Tokens -> feature, not normalised. The text half of open_clip's CLIP.

    Rows may be shorter than the context where no caption needs more: with a causal mask the
    padding behind the end-of-text token changes nothing, it only costs time.
    """

    def __init__(self, config: config_lib.ClipConfig):
        c = config.text
        width, hidden = c.width, int(c.width * c.mlp_ratio)
        attn_in, attn_out, mlp_in, mlp_out = layers.text_inits(width, c.layers)
        blocks = [
            layers.Block(
                layers.Attention(width, c.heads, config.kernels, attn_in, attn_out),
                layers.Mlp(width, hidden, config.activation, mlp_in, mlp_out),
                width,
                config.kernels,
            )
            for _ in range(c.layers)
        ]
        self.token_embedding = Embedding(c.vocab_size, width)
        self.positional_embedding = layers.param((c.context_length, width), layers.normal(0.01))
        self.transformer = layers.Transformer(blocks, config.remat, config.scan_layers)
        self.ln_final = layers.LayerNorm(width)
        self.text_projection = layers.param((width, config.embed_dim), layers.normal(width**-0.5))
        self.dtype = config.dtype

    def __call__(self, tokens: Int[Array, "r n"], packing: Packing) -> Float[Array, "b e"]:
        """Features of the captions that `packing.ends` lists, b = g k."""
        x = self.token_embedding(tokens).astype(self.dtype) + self._embed(packing.positions)
        groups, _ = packing.ends.shape

        def read(x: Array) -> Array:
            """The end-of-text tokens, a row each."""
            slots = x.reshape(groups, -1, x.shape[-1])
            ends = jnp.take_along_axis(slots, packing.ends[:, :, None], axis=1)
            return ends.reshape(-1, 1, x.shape[-1])

        x = self.transformer(x, seen(packing.positions), read)
        pooled = self.ln_final(x[:, 0])
        return pooled @ self.text_projection[...].astype(pooled.dtype)

    def _embed(self, positions: Int[Array, "#r n"]) -> Float[Array, "#r n d"]:
        """Rows of the positional embedding, exactly.

        By a matrix product: the gradient of a gather would add up many thousands of rows in
        each of a few places, one after the other.
        """
        table = self.positional_embedding[...].astype(self.dtype)
        chosen = jax.nn.one_hot(positions, table.shape[0], dtype=table.dtype)
        return jnp.matmul(chosen, table, precision=jax.lax.Precision.HIGHEST)


def seen(positions: Int[Array, "#r n"]) -> Bool[Array, "#r n n"]:
    """Whether a token (second axis) sees another: of its own caption, and not behind it."""
    slot = jnp.arange(positions.shape[1])
    back = slot[None, :, None] - slot[None, None, :]
    return (back >= 0) & (back <= positions[:, :, None])
