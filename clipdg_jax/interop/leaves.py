"""Which leaf of ours is which of theirs: the names and layouts of the formats.

Ours are open_clip's names (`models.model`). A format is a list of leaves; each says under which
names a parameter of ours is found there, and every parameter stands in the list once. So one loop
serves both directions and every format, and none can forget a leaf.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping

import numpy as np
from jaxtyping import Float32

from clipdg_jax.models import model as model_lib

FORMATS = ("open_clip", "hugging_face")

# The sigmoid loss's own parameter: in a state dict of open_clip's where the model has one.
LOGIT_BIAS = "logit_bias"

# What files hold beside parameters. Buffers that follow from the configuration, and the three
# numbers of a state dict that comes from OpenAI's own files.
OPENAI_MARKS = ("input_resolution", "context_length", "vocab_size")
_BUFFERS = re.compile(
    rf"^(attn_mask|{'|'.join(OPENAI_MARKS)}|(text|vision)_model\.embeddings\.position_ids)$"
)


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A parameter of ours in another format.

    Attributes:
      name: ours.
      foreign: its names there; several where it is cut along the first axis of torch's layout.
      axes: ours = torch's transposed by these, after joining; None where they are the same.
      shape: ours.
    """

    name: str
    foreign: tuple[str, ...]
    axes: tuple[int, ...] | None
    shape: tuple[int, ...]

    @property
    def foreign_shape(self) -> tuple[int, ...]:
        """Of each of its parts there."""
        shape = self.shape
        if self.axes is not None:
            shape = tuple(shape[self.axes.index(axis)] for axis in range(len(shape)))
        return shape if len(self.foreign) == 1 else (shape[0] // len(self.foreign), *shape[1:])

    def join(self, parts: list[np.ndarray]) -> Float32[np.ndarray, "..."]:
        """Ours, from the parts there, in float32."""
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
        if self.axes is not None:
            whole = whole.transpose(self.axes)
        return np.ascontiguousarray(whole, np.float32).reshape(self.shape)

    def cut(self, value: np.ndarray) -> dict[str, np.ndarray]:
        """The parts there, by their names, from ours; the inverse of `join`, bit for bit."""
        if self.axes is not None:
            value = value.transpose([self.axes.index(axis) for axis in range(value.ndim)])
        parts = [value] if len(self.foreign) == 1 else np.split(value, len(self.foreign))
        # A scalar stays one: ascontiguousarray would make it a vector of one.
        return {
            name: np.asarray(part, order="C").reshape(part.shape)
            for name, part in zip(self.foreign, parts, strict=True)
        }


def leaves(model: model_lib.Model, form: str, bias: bool = False) -> Iterator[Leaf]:
    """Every parameter of a model, in the order of our names.

    Args:
      model: of any configuration that the format knows (`architectures` checks that).
      form: one of FORMATS.
      bias: whether the sigmoid loss's bias belongs to the state; only open_clip has it.
    """
    shapes = {name: tuple(leaf.shape) for name, leaf in model.shapes().items()}
    if bias and form == "open_clip":
        shapes[LOGIT_BIAS] = ()
    for name, shape in shapes.items():
        axes = model_lib.LAYOUTS[model_lib.layout(name)]
        if form == "open_clip":
            yield Leaf(name, (name,), axes, shape)
        else:
            # There the projections are linear layers, so that torch's layout is the transpose.
            projection = name in ("visual.proj", "text_projection")
            yield Leaf(name, _hugging_face(name), (1, 0) if projection else axes, shape)


def is_buffer(name: str) -> bool:
    """Whether a foreign tensor is no parameter, but something that the configuration gives."""
    return _BUFFERS.match(name) is not None


def recognise(names: Mapping[str, object]) -> str | None:
    """The format that a state dict's names are of, or None."""
    if "visual.conv1.weight" in names:
        return "open_clip"
    return "hugging_face" if "vision_model.embeddings.class_embedding" in names else None


# Within a block: our name, and those in Hugging Face's `layers.<n>.`.
_BLOCK: dict[str, tuple[str, ...]] = {
    "attn.in_proj_": ("self_attn.q_proj.", "self_attn.k_proj.", "self_attn.v_proj."),
    "attn.out_proj.": ("self_attn.out_proj.",),
    "ln_1.": ("layer_norm1.",),
    "ln_2.": ("layer_norm2.",),
    "mlp.c_fc.": ("mlp.fc1.",),
    "mlp.c_proj.": ("mlp.fc2.",),
}
# Outside of blocks. `pre_layrnorm` is spelled so there.
_OTHERS: dict[str, str] = {
    "logit_scale": "logit_scale",
    "text_projection": "text_projection.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.proj": "visual_projection.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
_RESBLOCK = re.compile(r"^(visual\.)?transformer\.resblocks\.(\d+)\.(.*?)(weight|bias)$")


def _hugging_face(name: str) -> tuple[str, ...]:
    """The names of one of our parameters in Hugging Face's CLIPModel."""
    block = _RESBLOCK.match(name)
    if block is None:
        return (_OTHERS[name],)
    tower = "vision_model" if block[1] else "text_model"
    prefix = f"{tower}.encoder.layers.{block[2]}"
    return tuple(f"{prefix}.{part}{block[4]}" for part in _BLOCK[block[3]])
