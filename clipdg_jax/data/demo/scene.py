"""What a picture shows: its class, colour, cues and posed shape, drawn from (seed, index).

All randomness of a picture comes from Philox counters keyed by (seed, style, index), one stream
for each purpose. So a record does not depend on its neighbours, and changing the picture size or
the cue correlation leaves everything else of it as it was.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from clipdg_jax.data.demo import geometry, shapes, vocabulary
from clipdg_jax.data.demo.geometry import Draw, Part

# Streams of randomness within one picture.
FACTORS, POSE, PIXELS, CAPTION = range(4)


@dataclasses.dataclass(frozen=True, slots=True)
class World:
    """A demo world.

    Attributes:
      size: side of the pictures in pixels.
      cue_correlation: for a natural picture, the probability that the object's material is its
        class's own, and, by a second coin, that the context is; else each is drawn uniformly.
      colour_correlation: the same of its colour, by a third coin. 0 in the world that models are
        pre-trained on, so that there colour tells nothing of the class.
    """

    size: int = 40
    cue_correlation: float = 0.9
    colour_correlation: float = 0.0


@dataclasses.dataclass(frozen=True, slots=True)
class Scene:
    """The factors of one picture; see `vocabulary` for their values.

    `own_material` and `own_context` tell whether the cue's coin fell on the class's own; the
    uniform draw may give the own one as well. Renditions carry neither cue: their `context` only
    lends colours to a plain ground in some styles, and is uniform; `material` is not drawn.
    """

    style: str
    seed: int
    index: int
    label: int
    colour: str
    context: str
    material: str
    own_context: bool
    own_material: bool

    @property
    def name(self) -> str:
        """The class's name."""
        return vocabulary.CLASSES[self.label]

    @property
    def domain(self) -> str:
        return vocabulary.domain_of(self.style)

    def draw(self, stream: int) -> Draw:
        """The random numbers of one stream."""
        return Draw(stream_rng(self.seed, self.style, self.index, stream))

    def meta(self) -> dict[str, Any]:
        """The truth about the picture, for evaluation only."""
        meta: dict[str, Any] = {
            "class": self.name,
            "style": self.style,
            "colour": self.colour,
            "context": self.context,
        }
        if self.domain != "rendition":
            meta["material"] = self.material
            meta["own_context"] = self.own_context
            meta["own_material"] = self.own_material
        return meta


def stream_rng(seed: int, style: str, index: int, stream: int) -> np.random.Generator:
    """Independent random numbers for each (seed, style, index, stream).

    Args:
      seed: below 2^56.
      style: one of `vocabulary.STYLES`.
      index: below 2^64.
      stream: which purpose; below 2^64.
    """
    key = np.array([seed << 8 | vocabulary.STYLES.index(style), index], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, stream]))


def draw_style(shares: Mapping[str, float], seed: int, index: int) -> str:
    """The style of picture `index` where styles come in these shares (which sum to 1)."""
    # 255 is no style's number: these draws are independent of every picture's.
    key = np.array([seed << 8 | 255, index], np.uint64)
    place = float(np.random.Generator(np.random.Philox(key=key)).random())
    for style, share in shares.items():
        place -= share
        if place < 0:
            return style
    return style


def sample(world: World, style: str, seed: int, index: int) -> Scene:
    """Draws the factors of a picture. Class, colour and style are independent."""
    d = Draw(stream_rng(seed, style, index, FACTORS))
    label = d.below(len(vocabulary.CLASSES))
    colour = d.pick(tuple(vocabulary.COLOURS))
    context, material = d.pick(vocabulary.CONTEXTS), d.pick(vocabulary.MATERIALS)
    # The coins are tossed for every style and correlation, so that worlds differ only in cues.
    coins = d.u(0, 1), d.u(0, 1)
    correlated = vocabulary.domain_of(style) != "rendition"
    own_context = correlated and coins[0] < world.cue_correlation
    own_material = correlated and coins[1] < world.cue_correlation
    if correlated and d.u(0, 1) < world.colour_correlation:
        colour = vocabulary.OWN_COLOUR[vocabulary.CLASSES[label]]
    if own_context:
        context = vocabulary.OWN_CONTEXT[vocabulary.CLASSES[label]]
    if own_material:
        material = vocabulary.MATERIALS[label]
    return Scene(style, seed, index, label, colour, context, material, own_context, own_material)


def posed(
    scene: Scene, side: int, scale: tuple[float, float], shift: float, caricature: float = 0.0
) -> list[Part]:
    """The object's parts in pixels, posed at random.

    Args:
      scene: whose class and POSE stream are used.
      side: of the canvas in pixels.
      scale: range of the longer side of the object's bounding box, as a share of the canvas.
      shift: largest displacement of its centre from the canvas's, as a share of the canvas.
      caricature: how far proportions are exaggerated: width grows or shrinks from top to bottom
        by up to this share of it, and upright things bend.
    """
    d = scene.draw(POSE)
    parts = shapes.SHAPES[scene.name](d)
    if d.chance(0.5):
        parts = geometry.mirrored(parts)
    limit = np.deg2rad(shapes.TURN.get(scene.name, shapes.DEFAULT_TURN))
    turn = d.u(-limit, limit)
    c, s = np.cos(turn), np.sin(turn)
    wide = 1 + d.u(-0.12, 0.12)
    slant = d.u(-0.08, 0.08)
    taper, bend = d.u(-1, 1) * caricature, d.u(-1, 1) * caricature
    if caricature:
        parts = [_caricature(part, taper, bend) for part in parts]
    matrix = np.array([[wide * c, wide * s], [slant - s, c]], np.float32)
    every = np.concatenate([p.points for p in parts]) @ matrix
    low, high = every.min(0), every.max(0)
    zoom = np.float32(d.u(*scale) * side / float((high - low).max()))
    half = (high - low) * zoom / 2
    # It stays within the picture; one larger than it may leave by as much as it must.
    room = np.minimum(shift * side, np.abs(side * 0.49 - half))
    centre = side / 2 + room * np.array([d.u(-1, 1), d.u(-1, 1)], np.float32)
    offset = (centre - zoom * (low + high) / 2).astype(np.float32)
    matrix = matrix * zoom
    return [
        Part(p.points @ matrix + offset, p.slot, p.width * float(zoom), p.detail) for p in parts
    ]


def _caricature(part: Part, taper: float, bend: float) -> Part:
    x, y = part.points[:, 0], part.points[:, 1]
    points = np.stack([x * (1 + taper * y) + 0.6 * bend * y * y, y], 1).astype(np.float32)
    return dataclasses.replace(part, points=points)
