"""The fine-tuning methods and their registry: a method is one file and one line here."""

from collections.abc import Mapping
from typing import Any

from clipdg_jax.errors import UserError
from clipdg_jax.finetuning.methods import (
    flyp,
    full,
    kd,
    l1,
    l2,
    linear_probe,
    lora,
    lp_ft,
    rehearsal,
    wise_ft,
    zero_shot,
)
from clipdg_jax.finetuning.methods.method import Method

# In the order of the tables. The name is that of the config's section, too.
METHODS: dict[str, Method] = {
    "zero_shot": zero_shot.METHOD,
    "linear_probe": linear_probe.METHOD,
    "full": full.METHOD,
    "lp_ft": lp_ft.METHOD,
    "l1": l1.METHOD,
    "l2": l2.METHOD,
    "kd": kd.METHOD,
    "lora": lora.METHOD,
    "flyp": flyp.METHOD,
    "rehearsal": rehearsal.METHOD,
    "wise_ft": wise_ft.METHOD,
}


def get(name: str) -> Method:
    """A method. Raises UserError for an unknown name."""
    if name not in METHODS:
        raise UserError(
            f"method: {name!r} is unknown; use {', '.join(METHODS)}, or several of them joined by +"
        )
    return METHODS[name]


def defaults() -> dict[str, Mapping[str, Any]]:
    """The config's section of each method that has settings."""
    return {name: method.defaults for name, method in METHODS.items() if method.defaults}
