"""All pairs of 64-bit hashes within a Hamming radius, without comparing all with all.

The bits are cut into B blocks. Hashes that differ in at most r bits agree in at least B - r blocks
(Manku, Jain and Das Sarma, "Detecting Near-Duplicates for Web Crawling", WWW 2007): for each choice
of B - r blocks, only the hashes that agree in all of them are compared. B is the smallest number
for which so few agree by chance that the work grows with the number of hashes, not its square.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int64, UInt64

from clipdg_jax.domains.dedup import hashes
from clipdg_jax.errors import UserError

MAX_RADIUS = 12
# More tables than this cost more than they save.
_MAX_TABLES = 500
# A hash, its key in a table, its number, and sorting them.
BYTES_PER_HASH = 48
# Multiplying by it spreads what differs in a few bits over all of them.
_SPREAD = np.uint64(0x9E3779B97F4A7C15)


def check_radius(radius: int, field: str) -> None:
    """Raises UserError for a radius that no tables can be made for."""
    if not 0 <= radius <= MAX_RADIUS:
        raise UserError(f"{field}: is {radius}; the radius is 0 to {MAX_RADIUS} of the 64 bits")


def blocks(count: int, radius: int) -> int:
    """Blocks to cut the hashes into, for `count` of them."""
    wanted = math.log2(max(count, 2))
    number = radius + 1
    while True:
        more = math.comb(number + 1, radius)
        if hashes.BITS * (number - radius) / number >= wanted or more > _MAX_TABLES:
            return number
        number += 1


def tables(count: int, radius: int) -> list[np.uint64]:
    """The masks of the bits in which hashes must agree, a table each."""
    number = blocks(count, radius)
    cuts = [hashes.BITS * i // number for i in range(number + 1)]
    masks = [((1 << b) - 1) ^ ((1 << a) - 1) for a, b in itertools.pairwise(cuts)]
    chosen = itertools.combinations(masks, number - radius)
    return [np.uint64(sum(some)) for some in chosen]


def pairs(
    values: UInt64[np.ndarray, " n"], radius: int, available: int
) -> Iterator[Int64[np.ndarray, "p 2"]]:
    """All pairs of positions whose values differ in at most `radius` bits, each once.

    Args:
      values: the hashes.
      radius: largest distance, in bits.
      available: bytes that may be used; with fewer, hashes are gone through more often.
    """
    passes = max(1, -(-len(values) * BYTES_PER_HASH // max(available, 1)))
    masks = tables(len(values), radius)
    for table, mask in enumerate(masks):
        for number in range(passes):
            chosen = np.arange(len(values))
            if passes > 1:  # Which pass a key belongs to is scattered over all keys.
                scattered = ((values & mask) * _SPREAD) >> np.uint64(32)
                chosen = np.flatnonzero(scattered % np.uint64(passes) == number)
            for found in _agreeing(values, mask, chosen, radius):
                differ = values[found[:, 0]] ^ values[found[:, 1]]
                known = np.zeros(len(found), bool)
                for earlier in masks[:table]:
                    known |= differ & earlier == 0
                yield found[~known]


def _agreeing(
    values: np.ndarray, mask: np.uint64, chosen: np.ndarray, radius: int
) -> Iterator[np.ndarray]:
    """The pairs among those chosen that agree where the mask is set and lie within the radius."""
    by = chosen[np.argsort(values[chosen] & mask, kind="stable")]
    sorted_values = values[by]
    keys = sorted_values & mask
    left = np.arange(len(by) - 1)
    for step in range(1, len(by)):
        left = left[left + step < len(by)]
        left = left[keys[left] == keys[left + step]]
        if not len(left):
            return
        apart = hashes.distance(sorted_values[left], sorted_values[left + step])
        near = left[apart <= radius]
        if len(near):
            yield np.stack([by[near], by[near + step]], axis=1)
