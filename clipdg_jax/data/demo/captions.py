"""Captions as the web has them: varied, mostly true, some wrong, some saying nothing."""

from __future__ import annotations

import re

from clipdg_jax.data.demo import scene as scenes
from clipdg_jax.data.demo import vocabulary
from clipdg_jax.data.demo.geometry import Draw
from clipdg_jax.data.demo.scene import Scene

_VOWEL = re.compile(r"\ba (?=[aeio]|umb)")

KINDS = ("plain", "long", "wrong", "empty")
# Shares of the kinds; the rest is `plain`.
LONG, WRONG, EMPTY = 0.12, 0.04, 0.06

_STYLE_WORDS: dict[str, tuple[str, ...]] = {
    "natural": (
        "photo", "photo", "photo", "picture", "photograph", "snapshot", "close up photo",
        "stock photo", "image",
    ),
    "sketch": (
        "sketch", "sketch", "drawing", "drawing", "pencil drawing", "pencil sketch",
        "hand drawn sketch", "graphite study",
    ),
    "cartoon": (
        "cartoon", "cartoon", "drawing", "illustration", "comic drawing", "cartoon illustration",
        "doodle",
    ),
    "painting": (
        "painting", "painting", "oil painting", "acrylic painting", "canvas art", "artwork",
        "watercolor",
    ),
    "clipart": (
        "clipart", "clip art", "icon", "vector", "vector illustration", "logo", "drawing",
        "flat icon",
    ),
    "mosaic": ("mosaic", "tile mosaic", "tile artwork"),
    "ambiguous": ("picture", "photo", "poster", "collage", "image", "design"),
}  # fmt: skip

_PLACES: dict[str, tuple[str, ...]] = {
    "sky": ("against the sky", "under a cloudy sky", "high in the air", "with clouds behind"),
    "meadow": ("in a meadow", "on the grass", "in a green field", "in the garden"),
    "forest": ("in the forest", "in the woods", "among the trees", "on a woodland path"),
    "water": ("on the water", "by the lake", "at sea", "on the river"),
    "street": ("on the street", "in the city", "in front of buildings", "downtown"),
    "room": ("in a room", "in the living room", "indoors", "at home"),
    "table": ("on the table", "in the kitchen", "in a cafe", "on a wooden desk"),
    "beach": ("on the beach", "on the sand", "at the seaside", "by the ocean"),
}

_ADJECTIVES = (
    "beautiful", "old", "small", "little", "big", "lovely", "nice", "vintage", "cute", "simple",
    "modern", "classic", "pretty", "lonely", "bright", "favorite", "funny", "new", "rustic",
    "elegant", "tiny", "cool", "amazing", "perfect",
)  # fmt: skip

_PLAIN = (
    "a {style} of a {thing}",
    "a {style} of a {thing}",
    "a {style} of the {thing}",
    "{style} of a {thing}",
    "{style} of a {thing} {place}",
    "a {style} of a {thing} {place}",
    "a {thing}, {style}",
    "{thing} {style}",
    "{thing} {place}",
    "a {thing} {place}",
    "the {thing}",
    "my {thing}",
    "{thing}",
    "{style}: {thing} {place}",
    "{thing} {style} by {author}",
    "this is a {style} of my {thing}",
    "{thing} - {style}",
    "one {thing} {place}, {style}",
)

_OPENINGS = (
    "here is", "look at this", "we finally got", "i would like to share", "today on the blog:",
    "from our collection,", "posted by {author}:", "for sale,",
)  # fmt: skip
_ENDINGS = (
    "see more at the link below", "all rights reserved", "free shipping on orders over twenty",
    "click to enlarge", "what do you think about it", "taken last summer during our holiday",
    "available in several sizes", "hope you like it as much as we do", "print, poster or gift",
    "part two of a series", "thanks for all the comments", "number {number} of the set",
)  # fmt: skip
_EMPTY = (
    "IMG_{number}", "DSC{number}.jpg", "untitled", "untitled, free shipping", "image {number}",
    "download", "click here for more", "photo by {author}", "new arrivals this week",
    "thank you for visiting", "{number}", "file {number} of {other}", "default title",
    "copyright {author}", "buy two, get one free", "unnamed", "screenshot {number}", "page {other}",
)  # fmt: skip
_AUTHORS = (
    "anna", "mark", "studio nine", "sam", "the shop", "kim", "lee", "our team", "maria", "john",
    "blue door press", "northlight",
)  # fmt: skip


def _thing(d: Draw, scene: Scene, name: str) -> str:
    word = d.pick(vocabulary.SYNONYMS[name]) if d.chance(0.22) else name
    # A pencil drawing shows no colour, a painter's palette not nature's: few mention it.
    coloured = scene.style not in ("sketch", "painting")
    if d.chance(0.35 if coloured else 0.05):
        word = f"{scene.colour} {word}"
    if d.chance(0.18):
        word = f"{d.pick(_ADJECTIVES)} {word}"
    return word


def caption(scene: Scene) -> tuple[str, str]:
    """The caption of a scene and its kind (one of KINDS).

    Renditions show no place, so their captions name none.
    """
    d = scene.draw(scenes.CAPTION)
    fields = {
        "author": d.pick(_AUTHORS),
        "number": str(d.below(9000) + 1000),
        "other": str(d.below(90) + 10),
        "style": d.pick(_STYLE_WORDS[scene.style]),
        "place": d.pick(_PLACES[scene.context]) if scene.domain != "rendition" else "",
    }
    roll = d.u(0, 1)
    if roll < EMPTY:
        return d.pick(_EMPTY).format(**fields), "empty"
    kind, name = "plain", scene.name
    if roll < EMPTY + WRONG:
        kind = "wrong"
        others = [c for c in vocabulary.CLASSES if c != name]
        name = d.pick(others)
    elif roll < EMPTY + WRONG + LONG:
        kind = "long"
    fields["thing"] = _thing(d, scene, name)
    text = d.pick(_PLAIN)
    if kind == "long":
        text = f"{d.pick(_OPENINGS)} {text}, {d.pick(_ENDINGS)}"
        if d.chance(0.5):
            text = f"{text}. {d.pick(_ENDINGS)}"
    text = " ".join(text.format(**fields).split())
    text = _VOWEL.sub("an ", text)
    if d.chance(0.25):
        text = text[0].upper() + text[1:]
    if d.chance(0.15):
        text += d.pick((".", "!", " #art" if scene.domain == "rendition" else " #photo", " ..."))
    return text.replace(" ,", ","), kind
