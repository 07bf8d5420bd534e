"""The embedded demo world: an endless, seeded, procedural pool of captioned images.

`render` gives one picture, `ensure` a set of datasets and suites on disk, `ensure_narrow` a narrow
natural source to fine-tune on.
"""

from clipdg_jax.data.demo.build import DemoSpec, ensure
from clipdg_jax.data.demo.copies import KINDS as COPIES
from clipdg_jax.data.demo.narrow import INSIDE as NARROW
from clipdg_jax.data.demo.narrow import NarrowSpec, ensure_narrow
from clipdg_jax.data.demo.scene import Scene, World
from clipdg_jax.data.demo.vocabulary import (
    AMBIGUOUS,
    CLASSES,
    COLOURS,
    CONTEXTS,
    HELD_OUT_STYLE,
    MATERIALS,
    NATURAL,
    RENDITION_STYLES,
    STYLES,
)
from clipdg_jax.data.demo.world import Example, render

__all__ = [
    "AMBIGUOUS",
    "CLASSES",
    "COLOURS",
    "CONTEXTS",
    "COPIES",
    "HELD_OUT_STYLE",
    "MATERIALS",
    "NARROW",
    "NATURAL",
    "RENDITION_STYLES",
    "STYLES",
    "DemoSpec",
    "Example",
    "NarrowSpec",
    "Scene",
    "World",
    "ensure",
    "ensure_narrow",
    "render",
]
