"""Contact sheets: many images in one picture, each with a few lines of text."""

from __future__ import annotations

import dataclasses
import math
import textwrap
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

_INK, _FRAME = "#222222", 3  # colour of text; thickness of a frame in pixels
_PAD = 6


@dataclasses.dataclass(frozen=True, eq=False)
class Cell:
    """One place of a sheet.

    Attributes:
      image: of any size, or None: the place stays empty.
      text: shown below it; line breaks are kept, long lines are wrapped, and what does not fit is
        cut off.
      frame: colour around the image, None for no frame.
    """

    image: UInt8[np.ndarray, "h w 3"] | None
    text: str = ""
    frame: str | None = None


@dataclasses.dataclass(frozen=True)
class Section:
    """Cells under a heading, which may be empty."""

    heading: str
    cells: Sequence[Cell]


def columns_for(count: int) -> int:
    """Columns that make a page of so many cells a little wider than high."""
    return max(1, min(count, round(math.sqrt(1.6 * count))))


def draw(
    sections: Sequence[Section],
    columns: int,
    *,
    cell: int = 160,
    lines: int = 3,
    text_size: int = 11,
    title: str = "",
) -> Image.Image:
    """Draws sections below each other.

    Args:
      sections: at least one; one without cells shows its heading only.
      columns: images in a row.
      cell: side of an image in pixels; larger ones are made smaller, smaller ones stay.
      lines: of text that every cell has room for.
      text_size: its height in pixels; headings and the title are larger.
      title: above all sections, if not empty.
    """
    font = ImageFont.load_default(text_size)
    line = text_size + 2
    heading_font, title_font = ImageFont.load_default(16), ImageFont.load_default(20)
    row = cell + lines * line + _PAD
    width = columns * (cell + _PAD) + _PAD
    titles = textwrap.wrap(title, max(1, int(width / 11)))
    headings = [textwrap.wrap(s.heading, max(1, int(width / 9))) for s in sections]
    height = _PAD + 26 * len(titles)
    for section, heading in zip(sections, headings, strict=True):
        height += 22 * len(heading) + _PAD * bool(heading)
        height += row * math.ceil(len(section.cells) / columns)
    page = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(page)
    y = _PAD
    for part in titles:
        pen.text((_PAD, y), part, _INK, title_font)
        y += 26
    for section, heading in zip(sections, headings, strict=True):
        y += _PAD * bool(heading)
        for part in heading:
            pen.text((_PAD, y), part, _INK, heading_font)
            y += 22
        for place, content in enumerate(section.cells):
            left = _PAD + place % columns * (cell + _PAD)
            top = y + place // columns * row
            _paste(page, pen, content, left, top, cell)
            fitted = _fit(content.text, font, cell, lines)
            pen.multiline_text((left, top + cell + 1), "\n".join(fitted), _INK, font, spacing=1)
        y += row * math.ceil(len(section.cells) / columns)
    return page


def _paste(
    page: Image.Image, pen: ImageDraw.ImageDraw, content: Cell, left: int, top: int, cell: int
) -> None:
    if content.image is not None:
        inside = cell - 2 * _FRAME * bool(content.frame)
        picture = Image.fromarray(content.image)
        picture.thumbnail((inside, inside))
        offset = _FRAME * bool(content.frame)
        page.paste(picture, (left + offset, top + offset))
        if content.frame:
            right, bottom = left + picture.width, top + picture.height
            box = (left, top, right + 2 * _FRAME - 1, bottom + 2 * _FRAME - 1)
            pen.rectangle(box, outline=content.frame, width=_FRAME)


def _fit(text: str, font: ImageFont.FreeTypeFont, width: int, lines: int) -> list[str]:
    """The first `lines` of the text, wrapped so that each is at most `width` pixels long."""
    for characters in range(width // 4, 3, -1):
        wrapped: list[str] = []
        for part in text.split("\n"):
            room = lines - len(wrapped)
            if room > 0:
                wrapped += textwrap.wrap(part, characters, max_lines=room, placeholder="...")
        if all(font.getlength(line) <= width for line in wrapped):
            return wrapped
    return []
