"""A picture of the demo world: a row for each style, a column for each class.

python -m tools.contact_sheet --out=docs/demo_world.png
"""

from __future__ import annotations

import argparse

import cv2
import numpy as np
from PIL import Image

from clipdg_jax.data import demo

_MARGIN, _TOP, _GAP = 84, 26, 4


def sheet(world: demo.World, seed: int, cell: int) -> np.ndarray:
    """The sheet as uint8 RGB; every cell is the first picture of its style and class."""
    height = _TOP + len(demo.STYLES) * (cell + _GAP)
    width = _MARGIN + len(demo.CLASSES) * (cell + _GAP)
    out = np.full((height, width, 3), 255, np.uint8)
    for column, name in enumerate(demo.CLASSES):
        _label(out, name, _MARGIN + column * (cell + _GAP), _TOP - 9)
    for row, style in enumerate(demo.STYLES):
        top = _TOP + row * (cell + _GAP)
        _label(out, style, 4, top + cell // 2)
        found: dict[int, np.ndarray] = {}
        index = 0
        while len(found) < len(demo.CLASSES):
            example = demo.render(world, style, seed, index)
            found.setdefault(example.scene.label, example.image)
            index += 1
        for label, image in found.items():
            left = _MARGIN + label * (cell + _GAP)
            out[top : top + cell, left : left + cell] = cv2.resize(
                image, (cell, cell), interpolation=cv2.INTER_NEAREST
            )
    return out


def _label(out: np.ndarray, text: str, x: int, y: int) -> None:
    cv2.putText(out, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (30, 30, 30), 1, cv2.LINE_AA)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", default="docs/demo_world.png")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--size", type=int, default=96, help="pixels a picture is rendered at")
    parser.add_argument("--cell", type=int, help="pixels it is shown at; default: --size")
    parser.add_argument("--cue-correlation", type=float, default=0.9)
    flags = parser.parse_args()
    world = demo.World(flags.size, flags.cue_correlation)
    image = sheet(world, flags.seed, flags.cell or flags.size)
    # 256 colours are a third of the bytes, and the eye does not miss the others.
    palette = Image.fromarray(image).quantize(256, dither=Image.Dither.NONE)
    palette.save(flags.out, optimize=True)


if __name__ == "__main__":
    main()
