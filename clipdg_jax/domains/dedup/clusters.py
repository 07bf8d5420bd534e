"""Who is dropped in favour of whom.

Records form stars, not chains: going through the records from the best on, each that is not dropped
yet is kept, and its duplicates that are not dropped yet are dropped in favour of it. So every
record that is dropped was itself compared with the one that is kept in its place, and a chain of
small changes does not join what differs.

The better of two is the reference, then the one of more pixels, then the earlier one. References
are never dropped.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from jaxtyping import Int64, UInt64

from clipdg_jax.domains.dedup.signatures import REFERENCE

# How a record was found to be a duplicate, in the order of their numbers.
HOW = ("exact", "perceptual", "cascade", "embedding")
EXACT, PERCEPTUAL, CASCADE, EMBEDDING = range(4)

# A record and a better one of which it is a duplicate. Records are numbered over all sets; `cosine`
# is NaN, `distance` -1 where there is none.
EDGE = np.dtype(
    [
        ("dropped", np.int64),
        ("kept", np.int64),
        ("dropped_pixels", np.int64),
        ("kept_pixels", np.int64),
        ("cosine", np.float32),
        ("distance", np.int16),
        ("how", np.uint8),
    ]
)
Edges: TypeAlias = np.ndarray

NONE = np.zeros(0, EDGE)
_CHUNK = 1 << 20


def order(pixels: Int64[np.ndarray, " n"], rows: Int64[np.ndarray, " n"]) -> np.ndarray:
    """The positions of records from the best to the worst."""
    return np.lexsort((rows, -pixels))


def edges(
    pixels: tuple[np.ndarray, np.ndarray],
    rows: tuple[np.ndarray, np.ndarray],
    how: int,
    cosine: np.ndarray | None = None,
    distance: np.ndarray | None = None,
) -> Edges:
    """Edges of pairs (in any order) with their pixels; pairs of two references are left out."""
    swap = (pixels[0] < pixels[1]) | ((pixels[0] == pixels[1]) & (rows[0] > rows[1]))
    made = np.zeros(len(rows[0]), EDGE)
    made["kept"], made["dropped"] = np.where(swap, rows[::-1], rows)
    made["kept_pixels"], made["dropped_pixels"] = np.where(swap, pixels[::-1], pixels)
    made["cosine"] = np.nan if cosine is None else cosine
    made["distance"] = -1 if distance is None else distance
    made["how"] = how
    return made[made["dropped_pixels"] != REFERENCE]


def stars(found: Edges, records: int) -> Edges:
    """The edges that are acted upon: one for each record that is dropped.

    Args:
      found: in any order; several of one pair will do.
      records: in all.
    """
    found = found[
        np.lexsort(
            (found["dropped"], -found["dropped_pixels"], found["kept"], -found["kept_pixels"])
        )
    ]
    gone = np.zeros(records, bool)
    acted = []
    for start in range(0, len(found), _CHUNK):
        part = found[start : start + _CHUNK]
        # All edges that could drop the keeper of this one came before it.
        for i, (kept, dropped) in enumerate(
            zip(part["kept"].tolist(), part["dropped"].tolist(), strict=True), start
        ):
            if not gone[kept] and not gone[dropped]:
                gone[dropped] = True
                acted.append(i)
    return found[np.array(acted, np.int64)]


def follow(same: Edges, acted: Edges) -> Edges:
    """Edges of equals, redirected to what their keepers were dropped in favour of, and `acted`.

    Args:
      same: each drops one in favour of an equal, which took part in comparisons for both.
      acted: what became of those that took part, from `stars`.
    """
    by_dropped = np.argsort(acted["dropped"], kind="stable")
    sorted_dropped = acted["dropped"][by_dropped]
    place = np.searchsorted(sorted_dropped, same["kept"])
    inside = place < len(sorted_dropped)
    hit = np.zeros(len(same), bool)
    hit[inside] = sorted_dropped[place[inside]] == same["kept"][inside]
    same = same.copy()
    via = acted[by_dropped[place[hit]]]
    for field in ("kept", "kept_pixels", "cosine", "distance", "how"):
        same[field][hit] = via[field]
    return np.concatenate([same, acted])


def equals(
    digests: UInt64[np.ndarray, "n w"],
    rows: Int64[np.ndarray, " n"],
    pixels: Int64[np.ndarray, " n"],
    how: int,
) -> tuple[Edges, Int64[np.ndarray, " b"]]:
    """Edges from every record to the best of its equals, and the rows of the best.

    Args:
      digests: equal where the records are.
      rows, pixels: of the records.
    """
    by = np.lexsort((rows, -pixels, *digests.T))
    first = np.ones(len(by), bool)
    first[1:] = (digests[by][1:] != digests[by][:-1]).any(1)
    keeper = by[first][np.cumsum(first) - 1][~first]
    others = by[~first]
    found = edges((pixels[keeper], pixels[others]), (rows[keeper], rows[others]), how)
    if how == PERCEPTUAL:
        found["distance"] = 0
    return found, rows[by[first]]
