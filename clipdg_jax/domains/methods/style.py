"""Contrastive style descriptors (CSD, Somepalli et al. 2024), and a readout of the domain.

The descriptor of an image is that of its style: the image tower's pooled features times a matrix,
the style head, L2-normalised. The head takes the place of CLIP's projection, and starts as it.
Head and, with `mode` full, tower are trained with the supervised contrastive loss, whose labels are
the domains; then a logistic regression reads the domain off the descriptors. Released weights can
stand in for the start (`weights`), and be used as they are (no `epochs` and no `examples`).

Left out of CSD: the self-supervised term between two augmentations of an image, and the content
head with its reversed gradient, which is not used once trained.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import safetensors
from jaxtyping import Array, Bool, Float, Int32, UInt8

from clipdg_jax import errors
from clipdg_jax.domains import encoder as encoder_lib
from clipdg_jax.domains import examples as examples_lib
from clipdg_jax.domains import fitting, recipe
from clipdg_jax.domains.methods import fixed, method
from clipdg_jax.models import config as model_config
from clipdg_jax.models import flops
from clipdg_jax.models import model as model_lib
from clipdg_jax.training import losses

HEAD = "style.weight"
_PROJECTION = "visual.proj"

# mode -> what is trained, as a regular expression for parameter names.
MODES = {"full": "", "frozen": r"^style\."}


@dataclasses.dataclass(frozen=True)
class Descriptor:
    """From images to style descriptors. Equal ones are compiled once."""

    architecture: model_config.ClipConfig
    batch: ClassVar[int] = 256

    @property
    def image_size(self) -> int:
        """Side of the images it takes, pixels."""
        return self.architecture.vision.image_size

    def __call__(
        self, params: losses.Params, images: UInt8[Array, "b s s 3"]
    ) -> Float[Array, "b e"]:
        """Descriptors of length 1; `params` as `start` gives them."""
        model = model_lib.Model(self.architecture)
        return model.encode_image(params | {_PROJECTION: params[HEAD]}, images)


def start(tower: Mapping[str, Array]) -> dict[str, Array]:
    """The image tower with the style head in the place of its projection."""
    return {HEAD if name == _PROJECTION else name: value for name, value in tower.items()}


def contrastive_loss(
    descriptors: Float[Array, "b e"],
    label: Int32[Array, " b"],
    valid: Bool[Array, " b"],
    temperature: float,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The supervised contrastive loss (Khosla et al. 2020, eq. 2, L_out).

    Of each anchor i, with positives P(i), the other rows of its label, and A(i), all other rows:
    -1/|P(i)| sum over p in P(i) of log(exp(z_i z_p / t) / sum over a in A(i) of exp(z_i z_a / t)).
    Rows that are not valid are in no set; anchors without positives do not count.

    Args:
      descriptors: z, of length 1, of the global batch.
      temperature: t.

    Returns:
      The mean over the anchors in nats (0 without any), and how many there are.
    """
    z = jnp.where(valid[:, None], descriptors, 0.0)
    logits = jnp.matmul(z, z.T, precision=jax.lax.Precision.HIGHEST) / temperature
    others = valid[:, None] & valid[None, :] & ~jnp.eye(len(label), dtype=bool)
    positive = others & (label[:, None] == label[None, :])
    # A large number, not infinity: the gradient of a row without others must be 0, not NaN.
    out = jnp.finfo(logits.dtype).min
    log = logits - jax.nn.logsumexp(jnp.where(others, logits, out), axis=1, keepdims=True)
    count = jnp.sum(positive, axis=1)
    each = -jnp.sum(jnp.where(positive, log, 0.0), axis=1) / jnp.maximum(count, 1)
    anchors = jnp.sum(count > 0, dtype=jnp.float32)
    return jnp.sum(each) / jnp.maximum(anchors, 1.0), anchors


def plan(
    config: ml_collections.ConfigDict,
    architecture: model_config.ClipConfig,
    mesh: jax.sharding.Mesh,
    *,
    examples: int,
) -> recipe.Plan:
    """What the training of the descriptor comes to, before any data is touched.

    Args:
      config: the section `style`: `mode` (full | frozen), `temperature`, and what `recipe.Plan`
        takes.
      architecture: of the CLIP to start from.
      examples: labels to train on.

    Raises:
      UserError: naming the field that is wrong.
    """
    if config.mode not in MODES:
        raise errors.UserError(f"style.mode: {config.mode!r} is unknown; use full or frozen")
    if not config.temperature > 0:
        raise errors.UserError(f"style.temperature: {config.temperature}; use a positive number")
    return _plan(ml_collections.FrozenConfigDict(config), Descriptor(architecture), mesh, examples)


@functools.lru_cache(maxsize=16)
def _plan(
    config: ml_collections.FrozenConfigDict,
    descriptor: Descriptor,
    mesh: jax.sharding.Mesh,
    examples: int,
) -> recipe.Plan:
    """Kept, so that fits to other labels or with other seeds need not be compiled again."""
    model = model_lib.Model(descriptor.architecture)

    def loss(
        params: losses.Params,
        image: UInt8[Array, "b s s 3"],
        label: Int32[Array, " b"],
        valid: Bool[Array, " b"],
    ) -> tuple[Float[Array, ""], Float[Array, ""], losses.Metrics]:
        z = descriptor(params, image)
        return *contrastive_loss(z, label, valid, config.temperature), {}

    return recipe.make_plan(
        config,
        model,
        mesh,
        examples=examples,
        start=start(encoder_lib.tower(model.shapes())),
        init=lambda seed, params: params,
        trainable=MODES[config.mode],
        loss=loss,
        validation=loss,
        flops_per_example=flops_per_example(config, descriptor.architecture),
    )


def flops_per_example(
    config: ml_collections.ConfigDict | ml_collections.FrozenConfigDict,
    architecture: model_config.ClipConfig,
) -> int:
    """Of one training image: three times the forward pass of whatever is trained."""
    forward = flops.forward_flops_image(architecture)
    if config.mode == "full":
        return 3 * forward
    return forward + 2 * 2 * architecture.vision.width * architecture.embed_dim


def import_weights(path: str, architecture: model_config.ClipConfig) -> dict[str, np.ndarray]:
    """Reads CSD's released weights: a ViT of OpenAI's CLIP, a style and a content head.

    Args:
      path: a safetensors file of the released model: `backbone.*`, the tower in torch's layout
        and without its projection, `last_layer_style` and `last_layer_content` [width, embed_dim].
        A leading `module.` is dropped. float32 or float16.
      architecture: what the weights must fit; OpenAI's towers use QuickGELU.

    Returns:
      float32 parameters as `start` names them.

    Raises:
      UserError: naming the tensor that is missing, of another shape, or unknown; or the
        activation is another.
    """
    if architecture.activation != "quick_gelu":
        raise errors.UserError(
            f"style.weights: {path} was trained with quick_gelu, the encoder has "
            f"{architecture.activation}; use a model such as ViT-L-14-quickgelu"
        )
    if not pathlib.Path(path).is_file():
        raise errors.UserError(f"style.weights: {path} is no file; give a safetensors file")
    shapes = start(encoder_lib.tower(model_lib.Model(architecture).shapes()))
    params = {}
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            theirs = {name.removeprefix("module."): name for name in file.keys()}  # noqa: SIM118
            for name, leaf in shapes.items():
                params[name] = _tensor(path, file, theirs, name, leaf.shape)
    except safetensors.SafetensorError as error:
        raise errors.UserError(
            f"style.weights: {path} is not a safetensors file ({error}); save the model as one"
        ) from error
    # The content head is part of the released model, and not of the descriptor.
    theirs.pop("last_layer_content", None)
    if theirs:
        raise errors.UserError(
            f"style.weights: {path} has {min(theirs)}, which the encoder has not; name the "
            "architecture that it was trained with"
        )
    return params


def _tensor(
    path: str, file: Any, theirs: dict[str, str], name: str, shape: tuple[int, ...]
) -> np.ndarray:
    """Takes one parameter out of those of a file, in our layout."""
    foreign = "last_layer_style" if name == HEAD else name.replace("visual.", "backbone.", 1)
    if foreign not in theirs:
        raise errors.UserError(
            f"style.weights: {path} has no {foreign}, which the encoder needs; give CSD's released "
            "model, and name its architecture"
        )
    value = file.get_tensor(theirs.pop(foreign)).astype(np.float32)
    axes = model_lib.LAYOUTS[model_lib.layout(name)]
    wanted = shape if axes is None else tuple(shape[axes.index(i)] for i in range(len(shape)))
    if value.shape != wanted:
        raise errors.UserError(
            f"style.weights: {path} has {foreign} of shape {list(value.shape)}, the encoder's is "
            f"{list(wanted)}; name the architecture that it was trained with"
        )
    return value if axes is None else np.ascontiguousarray(value.transpose(axes))


class Style(fixed.Fixed):
    """A fitted style descriptor with its readout."""

    name: ClassVar[str] = "style"

    @classmethod
    def fit(
        cls,
        train: examples_lib.Examples,
        validation: examples_lib.Examples,
        context: method.Context,
    ) -> Self:
        """Trains the descriptor on the one loop (`fitting.fit`), then the readout."""
        config, architecture = context.config, context.encoder.model.config
        fitting.trained_domains(train)
        params = start(encoder_lib.tower(context.encoder.params))
        origin = "the encoder's projection"
        if config.weights:
            imported = import_weights(config.weights, architecture)
            params = encoder_lib.place(imported, context.mesh)
            origin = f"{pathlib.Path(config.weights).name}"
        if config.epochs or config.examples:
            planned = plan(config, architecture, context.mesh, examples=len(train))
            params = fitting.fit(planned, params, train, validation, context)
            origin += f", then trained ({config.mode})"
        meta = {"architecture": architecture.to_dict(), "origin": origin}
        return cls.fit_readout(train, params, config.l2, context.mesh, meta)

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any]) -> Descriptor:
        """The descriptor of the architecture."""
        return Descriptor(model_config.from_config(meta["architecture"]))

    def describe(self) -> str:
        """What it looks at."""
        return f"contrastive style descriptors: {self._meta['origin']}"
