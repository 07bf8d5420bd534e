"""Gram matrices of a network's activations: which channels fire together, wherever in the image.

For the n positions and c channels of a layer, F [n, c], the Gram matrix is G = F^T F / n. It
forgets places and keeps texture, which is why style transfer matches it (Gatys et al. 2016). The
feature is the upper triangle of each layer's G, each entry v as sign(v) sqrt(|v|), which undoes the
squaring and so the long tails (as in bilinear pooling, Lin et al. 2015).

A layer of c channels gives c (c + 1) / 2 numbers, 131 328 for VGG-19's 512: more than there are
labels by far. Layers of more channels than asked for are therefore projected first onto that many
random orthonormal directions, which keeps lengths and angles up to one factor and a small error.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterator
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, UInt8

from clipdg_jax.domains import backbones
from clipdg_jax.models import config as model_config
from clipdg_jax.models import model as model_lib

_PROJECTION = "projection."


class Backbone(Protocol):
    """A network whose activations are looked at. Hashable."""

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers, in the order in which `activations` gives them."""

    @property
    def image_size(self) -> int:
        """Side of the images it takes, pixels."""

    @property
    def batch(self) -> int:
        """Images at a time."""

    def activations(
        self, params: model_lib.Params, images: UInt8[Array, "b s s 3"]
    ) -> Iterator[Float[Array, "b n c"]]:
        """Per layer, the channels at each position."""


@dataclasses.dataclass(frozen=True)
class ImageNet:
    """A network of `backbones`, all its layers.

    name: in `backbones.NETWORKS`.
    """

    name: str
    image_size: int
    batch: int = 32  # At 224 pixels the first layer's output alone is 13 MB an image.

    @property
    def layers(self) -> tuple[str, ...]:
        return backbones.NETWORKS[self.name][0].layers()

    def activations(
        self, params: model_lib.Params, images: UInt8[Array, "b s s 3"]
    ) -> Iterator[Float[Array, "b n c"]]:
        """The layers' outputs, pixels as rows."""
        for x in backbones.NETWORKS[self.name][0].activations(params, images):
            yield x.reshape(x.shape[0], -1, x.shape[-1])


@dataclasses.dataclass(frozen=True)
class ImageTower:
    """A CLIP's image tower.

    layers: some of `model.Model.image_layers`.
    """

    architecture: model_config.ClipConfig
    layers: tuple[str, ...]
    batch: int = 256

    @property
    def image_size(self) -> int:
        return self.architecture.vision.image_size

    def activations(
        self, params: model_lib.Params, images: UInt8[Array, "b s s 3"]
    ) -> Iterator[Float[Array, "b n c"]]:
        """The layers' outputs: patches, or the stem's pixels, as rows; no class token."""
        yield from model_lib.Model(self.architecture).image_tokens(params, images, self.layers)


@dataclasses.dataclass(frozen=True)
class GramFeatures:
    """The function from images to features. Equal ones are compiled once."""

    backbone: Backbone

    @property
    def image_size(self) -> int:
        return self.backbone.image_size

    @property
    def batch(self) -> int:
        return self.backbone.batch

    def __call__(
        self, params: model_lib.Params, images: UInt8[Array, "b s s 3"]
    ) -> Float[Array, "b f"]:
        """The Gram features of all layers, one after the other.

        params: the backbone's and, from `projections`, those of the layers that are projected.
        """
        parts = []
        activations = self.backbone.activations(params, images)
        for layer, tokens in zip(self.backbone.layers, activations, strict=True):
            projection = params.get(_PROJECTION + layer)
            if projection is not None:
                tokens = jnp.matmul(tokens, projection, precision=jax.lax.Precision.HIGHEST)
            parts.append(gram(tokens))
        return jnp.concatenate(parts, axis=1)


def gram(tokens: Float[Array, "b n c"]) -> Float[Array, "b f"]:
    """Upper triangle, row by row, of F^T F / n; of each entry the root, with its sign.

    tokens: channels at each position. f = c (c + 1) / 2.
    """
    _, n, c = tokens.shape
    product = jnp.einsum("bnc,bnd->bcd", tokens, tokens, precision=jax.lax.Precision.HIGHEST)
    rows, columns = np.triu_indices(c)
    entries = product[:, rows, columns] / n
    return jnp.sign(entries) * jnp.sqrt(jnp.abs(entries))


def projections(
    backbone: Backbone, params: Any, channels: int, seed: int
) -> dict[str, Float32[np.ndarray, "c k"]]:
    """Per layer of more than `channels` channels, an orthonormal basis of as many directions.

    Directions are uniformly distributed, and depend on `seed`, the layer's name and its shape only.
    params: the backbone's, or their shapes.
    """
    size = backbone.image_size
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.uint8)
    shapes = jax.eval_shape(lambda p, x: list(backbone.activations(p, x)), params, images)
    found = {}
    for layer, tokens in zip(backbone.layers, shapes, strict=True):
        inputs = tokens.shape[-1]
        if inputs > channels:
            rng = np.random.default_rng([seed, zlib.crc32(layer.encode())])
            q, r = np.linalg.qr(rng.normal(size=(inputs, channels)))
            # The signs that LAPACK chooses are not random, nor the same everywhere.
            found[_PROJECTION + layer] = np.asarray(q * np.sign(np.diag(r)), np.float32)
    return found
