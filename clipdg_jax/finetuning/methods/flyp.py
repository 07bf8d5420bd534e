"""FLYP (Goyal et al. 2023): fine-tuned as it was pre-trained, images against their class's prompts.

Both towers are trained by the contrastive loss, each image with a prompt drawn from the templates;
afterwards the head is made of prompts, as for zero-shot. As in the paper, images of one class in a
batch are not told apart from others: each has its own row's prompt as its only match.
"""

from typing import Any

from jaxtyping import Array, Float

from clipdg_jax.finetuning import parts
from clipdg_jax.finetuning.methods.method import Method
from clipdg_jax.training import losses


def loss(forward: parts.Forward) -> Float[Array, ""]:
    """CLIP's loss on the labelled rows, in nats."""
    image, text = forward.features, forward.text_features
    return losses.clip_loss(image, text, forward.scale, forward.labelled)[0]


def build(name: str, config: Any) -> parts.Parts:
    """`lr`: 0: the config's."""
    return parts.Parts(
        name, data=parts.Data(loss=loss, prompts=True, trains_text=True), lr=config.lr
    )


METHOD = Method("contrastive, with prompts", build, {"lr": 0.0})
