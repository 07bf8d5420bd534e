"""The pre-trained model as it is, with the head that its prompts make: the row to compare with."""

from typing import Any

from clipdg_jax.finetuning import parts
from clipdg_jax.finetuning.methods.method import Method


def build(name: str, config: Any) -> parts.Parts:
    """Nothing is trained."""
    del config
    return parts.Parts(name, trains=False)


METHOD = Method("the pre-trained model, not trained further", build)
