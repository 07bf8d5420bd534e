"""A contact sheet of a dataset: evenly spaced records with their captions."""

from __future__ import annotations

from clipdg_jax.data import images, resolve, shards
from clipdg_jax.evaluation import sheets


def write(source: resolve.Source, count: int, path: str) -> int:
    """Writes `count` evenly spaced records of `source` as one picture; returns how many it shows.

    A record that cannot be read or decoded shows as an empty cell with the reason.
    """
    count = min(count, len(source))
    cells = [_cell(source, place * len(source) // count) for place in range(count)]
    sheets.draw([sheets.Section("", cells)], sheets.columns_for(count)).save(path)
    return count


def _cell(source: resolve.Source, index: int) -> sheets.Cell:
    try:
        record = source.record(index)
        return sheets.Cell(images.decode(record.image), record.caption or record.key)
    except (shards.RecordError, images.ImageError) as error:
        return sheets.Cell(None, str(error))
