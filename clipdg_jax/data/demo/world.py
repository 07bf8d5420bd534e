"""One picture of the demo world with its caption and truth, as a pure function of (seed, index)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8

from clipdg_jax.data.demo import ambiguous, brushed, captions, drawn, natural, scene, vocabulary
from clipdg_jax.data.demo.scene import Scene, World

_RENDERERS: dict[str, Callable[[Scene, int], np.ndarray]] = {
    vocabulary.NATURAL: natural.render,
    "sketch": drawn.sketch,
    "cartoon": drawn.cartoon,
    "painting": brushed.painting,
    "clipart": drawn.clipart,
    vocabulary.HELD_OUT_STYLE: brushed.mosaic,
    vocabulary.AMBIGUOUS: ambiguous.render,
}


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
    """A picture, what the web says about it, and what it truly shows.

    Attributes:
      image: RGB.
      caption: may be wrong or empty of content.
      caption_kind: what kind of caption it is; see `captions.KINDS`.
      scene: the truth.
    """

    image: UInt8[np.ndarray, "s s 3"]
    caption: str
    caption_kind: str
    scene: Scene


def render(world: World, style: str, seed: int, index: int) -> Example:
    """Renders one picture.

    The same arguments give the same bytes in every process and run (with the same versions of
    NumPy and OpenCV on the same kind of processor).

    Args:
      world: picture size and cue correlation.
      style: one of `vocabulary.STYLES`.
      seed: the world's seed, below 2^56; other seeds give disjoint pictures.
      index: number of the picture, any below 2^64.
    """
    factors = scene.sample(world, style, seed, index)
    image = _RENDERERS[style](factors, world.size)
    caption, kind = captions.caption(factors)
    return Example(np.ascontiguousarray(image), caption, kind, factors)
