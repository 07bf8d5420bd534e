"""LP-FT (Kumar et al. 2022): a linear probe first, then full fine-tuning from its head.

A head that fits already asks less change of the features.
"""

from typing import Any

from clipdg_jax.finetuning import parts
from clipdg_jax.finetuning.methods import linear_probe
from clipdg_jax.finetuning.methods.method import Method


def build(name: str, config: Any) -> parts.Parts:
    """Starts where the method `linear_probe` ends."""
    del config
    return parts.Parts(name, reparam=parts.Reparam(start=linear_probe.NAME))


METHOD = Method("linear probe, then all trained", build)
