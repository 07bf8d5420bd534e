"""A contact sheet: many images with their captions in one picture."""

from __future__ import annotations

import math
import textwrap

from PIL import Image, ImageDraw, ImageFont

from clipdg_jax.data import images, resolve, shards

_CELL = 160
_LINES = 3
_TEXT = 12  # height of a line of text
_PAD = 6


def write(source: resolve.Source, count: int, path: str) -> int:
    """Writes `count` evenly spaced records of `source` as one picture; returns how many it shows.

    A record that cannot be read or decoded shows as an empty cell with the reason.
    """
    count = min(count, len(source))
    columns = max(1, min(count, round(math.sqrt(1.6 * count))))
    rows = max(1, math.ceil(count / columns))
    height = _CELL + _LINES * _TEXT + _PAD
    page = Image.new("RGB", (columns * (_CELL + _PAD) + _PAD, rows * height + _PAD), "white")
    draw = ImageDraw.Draw(page)
    font = ImageFont.load_default(_TEXT - 2)
    for place in range(count):
        index = place * len(source) // count
        x = _PAD + place % columns * (_CELL + _PAD)
        y = _PAD + place // columns * height
        try:
            record = source.record(index)
            picture = Image.fromarray(images.decode(record.image))
            picture.thumbnail((_CELL, _CELL))
            page.paste(picture, (x, y))
            text = record.caption or record.key
        except (shards.RecordError, images.ImageError) as error:
            text = str(error)
        lines = textwrap.wrap(text, 30, max_lines=_LINES, placeholder="...")
        draw.multiline_text((x, y + _CELL), "\n".join(lines), "black", font, spacing=1)
    page.save(path)
    return count
