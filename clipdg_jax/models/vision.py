"""CLIP's image tower: a ViT, optionally behind a convolutional stem."""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from clipdg_jax.models import config as config_lib
from clipdg_jax.models import layers


class PatchConv(nnx.Module):
    """A convolution whose stride is its kernel size, no bias: cuts patches, projects each one.

    weight: [kh, kw, in, out].
    """

    def __init__(self, size: int, inputs: int, outputs: int):
        bound = (size * size * inputs) ** -0.5
        self.weight = layers.param((size, size, inputs, outputs), layers.uniform(bound))

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b n d"]:
        weight = self.weight[...].astype(x.dtype)
        p, _, c, d = weight.shape
        b, h, w, _ = x.shape
        x = x.reshape(b, h // p, p, w // p, p, c).transpose(0, 1, 3, 2, 4, 5)
        return x.reshape(b, -1, p * p * c) @ weight.reshape(-1, d)


class StemConv(nnx.Module):
    """3x3 convolution, padding 1, no bias. weight: [3, 3, in, out]."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        std = (2 / (9 * inputs)) ** 0.5  # He et al. 2015, for rectifier-like activations
        self.weight = layers.param((3, 3, inputs, outputs), layers.normal(std))
        self.stride = stride

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h/s w/s d"]:
        return jax.lax.conv_general_dilated(
            x,
            self.weight[...].astype(x.dtype),
            window_strides=(self.stride, self.stride),
            padding=((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )


class StemLayer(nnx.Module):
    """Convolution, LayerNorm over the channels, activation; stride 2 halves the image."""

    def __init__(self, inputs: int, outputs: int, stride: int, activation: str):
        self.conv = StemConv(inputs, outputs, stride)
        self.ln = layers.ImageNorm(outputs)
        self.activation = activation

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h/s w/s d"]:
        return layers.ACTIVATIONS[self.activation](self.ln(self.conv(x)))


class StemStage(StemLayer):
    """A layer that halves the image, then `blocks` layers beside the identity."""

    def __init__(self, inputs: int, outputs: int, blocks: int, activation: str):
        super().__init__(inputs, outputs, 2, activation)
        self.blocks = nnx.List(StemLayer(outputs, outputs, 1, activation) for _ in range(blocks))

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h/2 w/2 d"]:
        x = super().__call__(x)
        for block in self.blocks:
            x = x + block(x)
        return x


class VisionTower(nnx.Module):
    """Image -> feature, not normalised. open_clip's VisionTransformer.

    With a stem (`visual.stem.N.*`), which open_clip does not have, the patches are cut from the
    stem's output; such a model cannot be exported to open_clip.
    """

    def __init__(self, config: config_lib.ClipConfig):
        c = config.vision
        width, hidden = c.width, int(c.width * c.mlp_ratio)
        attn_in, attn_out, mlp_in, mlp_out = layers.vision_inits(width, hidden)
        blocks = [
            layers.Block(
                layers.Attention(width, c.heads, config.kernels, attn_in, attn_out),
                layers.Mlp(width, hidden, config.activation, mlp_in, mlp_out),
                width,
                config.kernels,
            )
            for _ in range(c.layers)
        ]
        scale = width**-0.5
        channels = (3, *c.stem)
        self.stem = nnx.List(
            StemStage(i, o, c.stem_blocks, config.activation)
            for i, o in itertools.pairwise(channels)
        )
        self.conv1 = PatchConv(c.patch_size // 2 ** len(c.stem), channels[-1], width)
        self.class_embedding = layers.param((width,), layers.normal(scale))
        self.positional_embedding = layers.param((c.tokens, width), layers.normal(scale))
        self.ln_pre = layers.LayerNorm(width)
        self.transformer = layers.Transformer(blocks, config.remat, config.scan_layers)
        self.ln_post = layers.LayerNorm(width)
        self.proj = layers.param((width, config.embed_dim), layers.normal(scale))
        self.pool = c.pool

    def __call__(self, image: Float[Array, "b h w 3"]) -> Float[Array, "b e"]:
        """image: normalised, in the compute type, of the configured size."""
        for layer in self.stem:
            image = layer(image)
        x = self._embed(image)
        if self.pool == "tok":
            x = self.transformer(x, read=lambda x: x[:, :1])
        else:
            x = self.transformer(x)[:, 1:]
        pooled = self.ln_post(x).mean(axis=1)
        return pooled @ self.proj[...].astype(pooled.dtype)

    def _embed(self, x: Float[Array, "b h w c"]) -> Float[Array, "b n d"]:
        """What the first block gets, from the stem's output: class token and patches."""
        x = self.conv1(x)
        b, _, d = x.shape
        first = jnp.broadcast_to(self.class_embedding[...].astype(x.dtype), (b, 1, d))
        x = jnp.concatenate([first, x], axis=1)
        return self.ln_pre(x + self.positional_embedding[...].astype(x.dtype)[None])

    def activations(
        self, image: Float[Array, "b h w 3"], names: Sequence[str]
    ) -> dict[str, Float[Array, "b n d"]]:
        """The outputs of the named layers: `stem.N`, pixels as rows, and `resblocks.N`, patches.

        The class token is left out; nothing behind the last named layer is computed.
        """
        found: dict[str, Array] = {}
        for i, layer in enumerate(self.stem):
            image = layer(image)
            if f"stem.{i}" in names:
                found[f"stem.{i}"] = image.reshape(image.shape[0], -1, image.shape[-1])
        blocks = self.transformer.resblocks
        ends = [i + 1 for i in range(len(blocks)) if f"resblocks.{i}" in names]
        if ends:
            x = self._embed(image)
        # Each stretch between two named blocks is a transformer of its own, so that a scan and
        # rematerialisation stay where they are written.
        for start, end in itertools.pairwise([0, *ends]):
            stretch = [blocks[i] for i in range(start, end)]
            x = layers.Transformer(stretch, self.transformer.remat, self.transformer.scan)(x)
            found[f"resblocks.{end - 1}"] = x[:, 1:]
        return found
