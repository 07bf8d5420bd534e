"""The head alone is trained, from the zero-shot weights; the features stay as they are."""

from typing import Any

from clipdg_jax.finetuning import parts
from clipdg_jax.finetuning.methods.method import Method

NAME = "linear_probe"


def build(name: str, config: Any) -> parts.Parts:
    """`lr`: higher than that of a whole model; 0: the config's."""
    return parts.Parts(name, reparam=parts.Reparam(trainable=r"^head\."), lr=config.lr)


METHOD = Method("the head trained", build, {"lr": 1e-2})
