"""Several captions in one row of tokens.

A web caption fills about 16 of a text tower's 77 slots. Nothing behind a caption's end-of-text
token matters to a causal model, so that others may stand there; `models.text.Packing` tells the
model which slots belong together.

The rows of a batch are an array of one shape for each step, and each shape is compiled for. So
their number is one of a few `sizes`: the smallest that holds the batch's captions.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int32, Int64

from clipdg_jax.errors import UserError

Packed = dict[str, np.ndarray]

# Slots of a row are a multiple of this: matrix units work in tiles.
_TILE = 8


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the captions of a batch are laid out.

    Attributes:
      groups: parts of the batch, equal and consecutive, that share no rows: one for each device,
        or several.
      captions: in each group.
      columns: slots of a row.
      sizes: numbers of rows in a group to choose from, ascending. The last is `captions`, which
        always suffices.
    """

    groups: int
    captions: int
    columns: int
    sizes: tuple[int, ...]


def layout(batch_size: int, groups: int, context_length: int, rows: Sequence[float]) -> Layout:
    """The layout of batches of `batch_size` captions of at most `context_length` tokens.

    Args:
      groups: parts of the batch, which they divide.
      rows: sizes to choose from besides the largest, in rows per caption: within 0 and 1.

    Raises:
      UserError: `rows` are not within 0 and 1.
    """
    if not all(0 < share <= 1 for share in rows):
        raise UserError(
            f"data.pack_rows: {tuple(rows)}; give rows per caption, each above 0 and at most 1"
        )
    captions = batch_size // groups
    sizes = {math.ceil(captions * share) for share in rows} | {captions}
    return Layout(groups, captions, columns(context_length), tuple(sorted(sizes)))


def columns(context_length: int) -> int:
    """Slots of a row that is to hold captions of at most `context_length` tokens."""
    return -(-context_length // _TILE) * _TILE


def assign(
    lengths: Int64[np.ndarray, " b"], columns: int
) -> tuple[Int64[np.ndarray, " b"], Int64[np.ndarray, " b"], int]:
    """Places captions in rows: longest first, each where the least room is left over.

    Best-fit decreasing needs at most 11/9 of the fewest possible rows, and one (Johnson et al.
    1974); with captions much shorter than a row, hardly more than the fewest.

    Args:
      lengths: of each caption, at most `columns`.

    Returns:
      Of each caption its row and its first slot there; and the number of rows.
    """
    row_of, start_of = np.zeros((2, len(lengths)), np.int64)
    with_room: list[list[int]] = [[] for _ in range(columns)]  # Rows by free slots.
    rooms = 0  # A bit for each of those lists that is not empty.
    rows = 0
    order = np.argsort(-lengths, kind="stable")
    for caption, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        if fitting := rooms >> length:
            room = length + (fitting & -fitting).bit_length() - 1
            row = with_room[room].pop()
            if not with_room[room]:
                rooms ^= 1 << room
        else:
            row, room = rows, columns
            rows += 1
        row_of[caption], start_of[caption] = row, columns - room
        left = room - length
        if left:
            with_room[left].append(row)
            rooms |= 1 << left
    return row_of, start_of, rows


def pack(
    tokens: Int32[np.ndarray, "b n"],
    layout: Layout,
    agree: Callable[[int], int] = lambda rows: rows,
) -> Packed:
    """Packs one caption a row into fewer rows.

    Args:
      tokens: SOT .. EOT and zeros; the EOT is the row's largest id. A row of zeros counts as a
        caption of one token. b is any number of whole groups.
      layout: of the batch, of which these are some groups.
      agree: given the rows that a group here needs, those that one needs anywhere.

    Returns:
      tokens int32 [r, columns], positions int32 [r, columns] and ends int32 [groups, captions],
      as `models.text.Packing` has them. r is the groups here times one of the sizes.
    """
    ends = tokens.argmax(axis=1)
    groups = len(tokens) // layout.captions
    by_group = ends.reshape(groups, layout.captions) + 1
    placed = [assign(lengths, layout.columns) for lengths in by_group]
    needed = agree(max(rows for *_, rows in placed))
    size = next(size for size in layout.sizes if size >= needed)
    slot = np.stack([row * layout.columns + start for row, start, _ in placed])
    first = slot + np.arange(groups)[:, None] * size * layout.columns
    column = np.arange(tokens.shape[1])
    inside = column <= ends[:, None]
    target = (first.reshape(-1, 1) + column)[inside]
    packed = np.zeros((2, groups * size, layout.columns), np.int32)
    packed[0].reshape(-1)[target] = tokens[inside]
    packed[1].reshape(-1)[target] = np.broadcast_to(column, inside.shape)[inside]
    last = slot + by_group - 1
    return {"tokens": packed[0], "positions": packed[1], "ends": last.astype(np.int32)}
