"""All of the image tower and the head are trained; nothing protects them."""

from typing import Any

from clipdg_jax.finetuning import parts
from clipdg_jax.finetuning.methods.method import Method


def build(name: str, config: Any) -> parts.Parts:
    """What a combination without a `reparam` does, under a name of its own."""
    del config
    return parts.Parts(name)


METHOD = Method("image tower and head trained", build)
