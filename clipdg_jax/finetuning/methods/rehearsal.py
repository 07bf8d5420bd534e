"""Replays the pre-training mix: cross-entropy on the labels + coefficient * CLIP's loss on the mix.

The fine-tuning paper names it as missing. The text tower and the logits' scale stay as they are:
the head came from them.
"""

from typing import Any

from jaxtyping import Array, Float

from clipdg_jax import errors
from clipdg_jax.data import mixture
from clipdg_jax.finetuning import parts
from clipdg_jax.finetuning.methods.method import Method
from clipdg_jax.training import losses


def replayed(forward: parts.Forward) -> Float[Array, ""]:
    """CLIP's loss on the replayed rows, in nats."""
    image, text = forward.features, forward.text_features
    return losses.clip_loss(image, text, forward.scale, forward.replayed)[0]


def build(name: str, config: Any) -> parts.Parts:
    """`coefficients`, `share` of the mix in the images seen, `mix`."""
    if not 0 < config.share < 1:
        raise errors.UserError(f"config.{name}.share: {config.share}; above 0 and below 1")
    if config.mix:
        mixture.parse_mix(config.mix)
    data = parts.Data(added=replayed, replay=config.share / (1 - config.share), mix=config.mix)
    sweep = parts.Sweep(parts.coefficients(name, "coefficients", config.coefficients))
    return parts.Parts(name, data=data, sweep=sweep)


METHOD = Method(
    "the pre-training mix replayed",
    build,
    {
        "coefficients": (0.1, 0.4, 1.6),
        "share": 0.5,  # Of all images seen.
        "mix": "",  # Datasets and weights; "": those of the checkpoint's run.
    },
)
