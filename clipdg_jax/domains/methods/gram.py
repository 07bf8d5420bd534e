"""Texture: Gram matrices of a network's activations (`gram_features`), read by logistic regression.

The network is the VGG-19 or ResNet-50 whose weights are given, or else the encoder. An encoder with
fresh, random weights serves too: what random filters answer together still tells textures apart.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from clipdg_jax.domains import backbones, gram_features
from clipdg_jax.domains import examples as examples_lib
from clipdg_jax.domains.methods import fixed, method
from clipdg_jax.errors import UserError
from clipdg_jax.models import config as model_config
from clipdg_jax.models import model as model_lib

_SMALLEST = 32  # What both networks shrink to one position.
_IMAGENET = 224  # What they were trained on.


class Gram(fixed.Fixed):
    """Logistic regression of Gram features.

    The section `gram`:
      weights: a safetensors file of VGG-19 or ResNet-50 (`backbones`); "": the encoder.
      image_size: side of the images, pixels; 0: what the network is made for. The encoder's stem,
        being convolutions, takes larger images too: finer texture, none of it resized away.
      layers: of the encoder, comma-separated (`model.Model.image_layers`); "": the stages of its
        convolutional stem, or, without one, the blocks at a third and two thirds of the depth.
      channels: layers of more are projected onto so many.
      l2: penalty of the readout.
    """

    name: ClassVar[str] = "gram"

    @classmethod
    def fit(
        cls,
        train: examples_lib.Examples,
        validation: examples_lib.Examples,
        context: method.Context,
    ) -> Self:
        """Computes the features of `train` and fits the readout; nothing is chosen."""
        del validation
        config = context.config
        if config.channels < 1:
            raise UserError(f"gram.channels: {config.channels}; use 1 or more")
        params: Mapping[str, Any]
        if config.weights:
            size = config.image_size or _IMAGENET
            if size < _SMALLEST:
                raise UserError(f"gram.image_size: {size}; use {_SMALLEST} or more")
            if config.layers:
                raise UserError(
                    f"gram.layers: {config.layers!r} are the encoder's, but gram.weights gives "
                    "another network, whose layers are fixed; leave one of the two empty"
                )
            name, params = backbones.load(config.weights)
            meta: dict[str, Any] = {"network": name, "image_size": size}
        else:
            model, params = context.encoder.model, context.encoder.params
            layers = chosen_layers(model, config.layers)
            architecture = sized(model.config, layers, config.image_size)
            meta = {"architecture": architecture.to_dict(), "layers": list(layers)}
        backbone = cls.from_meta(meta).backbone
        params = {**params} | gram_features.projections(
            backbone, params, config.channels, context.seed
        )
        return cls.fit_readout(train, params, config.l2, context.mesh, meta)

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any]) -> gram_features.GramFeatures:
        """The features that `meta` describes."""
        backbone: gram_features.Backbone
        if "network" in meta:
            backbone = gram_features.ImageNet(meta["network"], meta["image_size"])
        else:
            architecture = model_config.from_config(meta["architecture"])
            backbone = gram_features.ImageTower(architecture, tuple(meta["layers"]))
        return gram_features.GramFeatures(backbone)

    def describe(self) -> str:
        """What it looks at."""
        features = self.from_meta(self._meta)
        network = self._meta.get("network", "the encoder")
        return f"Gram matrices of {network}, layers {', '.join(features.backbone.layers)}"


def sized(
    architecture: model_config.ClipConfig, layers: Sequence[str], image_size: int
) -> model_config.ClipConfig:
    """The architecture for images of another size; 0: as it is.

    Raises UserError where `layers` see positions, whose embeddings are of one size, or where the
    patches do not fit.
    """
    if image_size in (0, architecture.vision.image_size):
        return architecture
    beyond = [name for name in layers if not name.startswith("stem.")]
    if beyond:
        raise UserError(
            f"gram.image_size: {image_size}, but layer {beyond[0]} of the encoder takes images of "
            f"{architecture.vision.image_size} pixels only; use 0, or layers of a stem"
        )
    patch = architecture.vision.patch_size
    if image_size < 0 or image_size % patch:
        raise UserError(
            f"gram.image_size: {image_size} is not 0, nor a multiple of the encoder's patches of "
            f"{patch} pixels"
        )
    vision = dataclasses.replace(architecture.vision, image_size=image_size)
    return dataclasses.replace(architecture, vision=vision)


def chosen_layers(model: model_lib.Model, given: str) -> tuple[str, ...]:
    """The layers that `gram.layers` names. Raises UserError for one that the encoder has not."""
    names = model.image_layers()
    stem = tuple(name for name in names if name.startswith("stem."))
    if not given:
        depth = len(names)
        return stem or tuple(names[i] for i in sorted({(depth - 1) // 3, 2 * (depth - 1) // 3}))
    chosen = tuple(part.strip() for part in given.split(","))
    unknown = [name for name in chosen if name not in names]
    if unknown:
        raise UserError(
            f"gram.layers: the encoder has no layer {unknown[0]!r}; it has {', '.join(names)}"
        )
    if len(set(chosen)) < len(chosen):
        raise UserError(f"gram.layers: {given!r} names a layer twice; name each once")
    return chosen
