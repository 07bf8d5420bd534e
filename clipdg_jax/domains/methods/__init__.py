"""The domain methods and their registry: a method is one file and one line here."""

import importlib

from clipdg_jax.domains.methods import method
from clipdg_jax.errors import UserError

# Name, which is that of the config's section too -> module and class. Imported when asked for,
# because an ensemble is a method, and made of methods.
METHODS = {
    "finetune": "finetune.Finetune",
    "frozen": "finetune.Finetune",
    "centroid": "centroid.Centroid",
    "gram": "gram.Gram",
    "amplitude": "amplitude.Amplitude",
    "style": "style.Style",
    "keywords": "keywords.Keywords",
    "ensemble": "ensemble.Ensemble",
}


def get(name: str) -> type[method.Method]:
    """The class of a method. Raises UserError for an unknown name."""
    if name not in METHODS:
        raise UserError(f"method: {name!r} is unknown; one of {', '.join(METHODS)}")
    module, _, found = METHODS[name].partition(".")
    return getattr(importlib.import_module(f"{__name__}.{module}"), found)
