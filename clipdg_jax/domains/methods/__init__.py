"""The domain methods and their registry: a method is one file and one line here."""

import importlib

from clipdg_jax.domains.methods import method
from clipdg_jax.errors import UserError

# name, of the config's section and of the module -> its class. Imported when asked for, because
# an ensemble is a method, and made of methods.
METHODS = {
    "finetune": "Finetune",
    "centroid": "Centroid",
    "gram": "Gram",
    "amplitude": "Amplitude",
    "style": "Style",
    "keywords": "Keywords",
    "ensemble": "Ensemble",
}


def get(name: str) -> type[method.Method]:
    """The class of a method. Raises UserError for an unknown name."""
    if name not in METHODS:
        raise UserError(f"method: {name!r} is unknown; one of {', '.join(METHODS)}")
    return getattr(importlib.import_module(f"{__name__}.{name}"), METHODS[name])
