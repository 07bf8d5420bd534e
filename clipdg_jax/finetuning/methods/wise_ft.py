"""WiSE-FT (Wortsman et al. 2022): (1 - a) theta_0 + a theta, over every tensor, the head too.

theta is what the methods that it is combined with end at; alone, full fine-tuning.
"""

from typing import Any

from clipdg_jax import errors
from clipdg_jax.finetuning import parts
from clipdg_jax.finetuning.methods.method import Method


def build(name: str, config: Any) -> parts.Parts:
    """`alphas`: tried, all in one pass over the images; `also`: told of whichever is chosen."""
    alphas = parts.coefficients(name, "alphas", config.alphas)
    outside = [a for a in (*alphas, config.also) if not 0 <= a <= 1]
    if outside:
        raise errors.UserError(
            f"config.{name}.alphas: {outside[0]} is not in [0, 1]; 0 is the pre-trained model, "
            "1 the fine-tuned one"
        )
    if config.also not in alphas:
        raise errors.UserError(
            f"config.{name}.also: {config.also} is none of the alphas; name one of them"
        )
    return parts.Parts(name, after=parts.After(tuple(sorted(alphas)), float(config.also)))


METHOD = Method(
    "interpolated with the pre-trained weights",
    build,
    {"alphas": tuple(i / 10 for i in range(11)), "also": 0.5},
)
