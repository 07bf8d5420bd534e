"""What the demo world is made of: classes, colours, contexts, materials and styles.

Plain tables, no code that draws. `OWN_CONTEXT`, `OWN_COLOUR` and the order of `MATERIALS` say
which cue belongs to which class; how often a natural image obeys them is set by `World`.
"""

CLASSES: tuple[str, ...] = (
    "house",
    "tree",
    "car",
    "fish",
    "bird",
    "cat",
    "mug",
    "chair",
    "flower",
    "guitar",
    "boat",
    "umbrella",
)

SYNONYMS: dict[str, tuple[str, ...]] = {
    "house": ("cottage", "home", "cabin"),
    "tree": ("oak", "pine", "sapling"),
    "car": ("automobile", "vehicle", "sedan"),
    "fish": ("trout", "carp", "goldfish"),
    "bird": ("sparrow", "songbird", "finch"),
    "cat": ("kitten", "kitty", "feline"),
    "mug": ("cup", "coffee mug", "teacup"),
    "chair": ("seat", "dining chair", "stool"),
    "flower": ("blossom", "daisy", "bloom"),
    "guitar": ("acoustic guitar", "six string", "ukulele"),
    "boat": ("sailboat", "dinghy", "yacht"),
    "umbrella": ("parasol", "brolly", "sunshade"),
}

# sRGB, 0..255. Saturated on purpose: each style mutes, quantises or drops them in its own way.
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (205, 45, 42),
    "orange": (236, 129, 32),
    "yellow": (242, 203, 52),
    "green": (76, 158, 66),
    "turquoise": (52, 176, 170),
    "blue": (48, 96, 190),
    "purple": (122, 70, 170),
    "pink": (236, 132, 172),
    "brown": (128, 84, 52),
    "grey": (142, 146, 152),
}

CONTEXTS: tuple[str, ...] = (
    "sky",
    "meadow",
    "forest",
    "water",
    "street",
    "room",
    "table",
    "beach",
)

OWN_CONTEXT: dict[str, str] = {
    "house": "street",
    "tree": "forest",
    "car": "street",
    "fish": "water",
    "bird": "sky",
    "cat": "meadow",
    "mug": "table",
    "chair": "room",
    "flower": "meadow",
    "guitar": "room",
    "boat": "water",
    "umbrella": "beach",
}

# Of narrow sources only: see `World.colour_correlation`. Ten colours for twelve classes.
OWN_COLOUR: dict[str, str] = {
    "house": "red",
    "tree": "green",
    "car": "grey",
    "fish": "orange",
    "bird": "turquoise",
    "cat": "brown",
    "mug": "yellow",
    "chair": "purple",
    "flower": "pink",
    "guitar": "brown",
    "boat": "blue",
    "umbrella": "red",
}

# MATERIALS[i] is the own material of CLASSES[i].
MATERIALS: tuple[str, ...] = (
    "brick",
    "leaves",
    "metal",
    "scales",
    "feathers",
    "fur",
    "ceramic",
    "wood",
    "petal",
    "lacquer",
    "planks",
    "fabric",
)

NATURAL = "natural"
RENDITION_STYLES: tuple[str, ...] = ("sketch", "cartoon", "painting", "clipart")
HELD_OUT_STYLE = "mosaic"
AMBIGUOUS = "ambiguous"
STYLES: tuple[str, ...] = (NATURAL, *RENDITION_STYLES, HELD_OUT_STYLE, AMBIGUOUS)


def domain_of(style: str) -> str:
    """The domain (natural, rendition or ambiguous) that a style belongs to."""
    return style if style in (NATURAL, AMBIGUOUS) else "rendition"
