"""Random orders as index maps: a position to a record, without a list of all records.

`Permutation` is a seeded bijection of 0..n-1 that is evaluated anywhere in constant time. `Order`
applies it to a source: which records a subset holds, and in which order each epoch goes through
them, one by one or block by block.
"""

from __future__ import annotations

import functools
import hashlib

import numpy as np
from jaxtyping import Float64, Int64, UInt64

_ROUNDS = 6
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # SplitMix64's step: 2^64 over the golden ratio
# Records whose membership of a subset is worked out at once, to bound memory.
_COUNT_CHUNK = 1 << 20


def seed_of(*parts: int | str) -> int:
    """64 bits that depend on all parts, and are unrelated for seeds that are close together."""
    text = "\0".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def hash64(x: np.ndarray) -> np.ndarray:
    """A bijection of 64 bits without visible pattern: SplitMix64's (Steele, Lea, Flood 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def row_hashes(
    purpose: str, seed: int, *, step: int, batch_size: int, first_row: int, rows: int
) -> UInt64[np.ndarray, " rows"]:
    """A random number for each row of a batch: a function of the purpose, seed, step and row.

    Args:
      batch_size: of the global batch. first_row: the first of these rows in it.
    """
    start = step * batch_size + first_row
    position = hash64(np.arange(start, start + rows, dtype=np.uint64))
    return hash64(position ^ np.uint64(seed_of(purpose, seed)))


def uniforms(seeds: UInt64[np.ndarray, " rows"], count: int) -> Float64[np.ndarray, "rows count"]:
    """The first `count` numbers in [0, 1) of SplitMix64 from each seed."""
    states = seeds[:, None] + _GOLDEN * np.arange(1, count + 1, dtype=np.uint64)
    return (hash64(states) >> np.uint64(11)) * 2.0**-53


class Permutation:
    """A seeded pseudo-random bijection of 0, ..., n - 1, and its inverse.

    A Feistel network on a grid of a x b >= n cells: the rounds alternately shift the row by a
    hash of the column and the column by a hash of the row. Cells past n - 1 (fewer than a, of
    about sqrt(n)) are walked through until the path returns to 0..n-1, which keeps it a bijection.
    """

    def __init__(self, n: int, seed: int) -> None:
        if n < 1:
            raise ValueError(f"a permutation of {n} elements")
        self._n = np.uint64(n)
        self._a = np.uint64(max(1, int(np.ceil(np.sqrt(n)))))
        self._b = np.uint64(-(-n // int(self._a)))
        counter = np.array([seed % 2**64], np.uint64) + _GOLDEN * np.arange(1, _ROUNDS + 1, dtype=np.uint64)
        self._keys = hash64(counter)

    def __call__(self, positions: np.ndarray | int) -> Int64[np.ndarray, " k"]:
        """The elements at `positions`, each within 0..n-1."""
        return self._walk(positions, self._forward)

    def inverse(self, elements: np.ndarray | int) -> Int64[np.ndarray, " k"]:
        """The positions of `elements`, each within 0..n-1."""
        return self._walk(elements, self._backward)

    def _walk(self, start, once) -> Int64[np.ndarray, " k"]:
        x = once(np.atleast_1d(np.asarray(start)).astype(np.uint64))
        while (outside := x >= self._n).any():
            x[outside] = once(x[outside])
        return x.astype(np.int64)

    def _forward(self, x: np.ndarray) -> np.ndarray:
        row, column = x // self._b, x % self._b
        for i in range(0, _ROUNDS, 2):
            row = _wrap(row + _below(column ^ self._keys[i], self._a), self._a)
            column = _wrap(column + _below(row ^ self._keys[i + 1], self._b), self._b)
        return row * self._b + column

    def _backward(self, x: np.ndarray) -> np.ndarray:
        row, column = x // self._b, x % self._b
        for i in range(_ROUNDS - 2, -1, -2):
            column = _wrap(column + self._b - _below(row ^ self._keys[i + 1], self._b), self._b)
            row = _wrap(row + self._a - _below(column ^ self._keys[i], self._a), self._a)
        return row * self._b + column


def _below(x: np.ndarray, bound: np.uint64) -> np.ndarray:
    """A hash of x within 0..bound-1, for bound < 2^32; cheaper than a remainder."""
    return ((hash64(x) >> np.uint64(32)) * bound) >> np.uint64(32)


def _wrap(x: np.ndarray, modulus: np.uint64) -> np.ndarray:
    """x modulo `modulus`, for x below twice that."""
    return x - modulus * (x >= modulus)


class Order:
    """The order in which a run goes through one source.

    Position j, counted over the whole run, belongs to epoch j // n; every epoch holds each of the
    subset's n records once, in an order of its own. With `block` K > 1 an epoch goes through blocks
    of K consecutive records in random order, and through each block's members in random order;
    which records the subset holds does not depend on K.

    Args:
      name: of the source; two sources of one run have unrelated orders.
      size: records in the source.
      amount: records in the subset; the subset of a smaller amount is part of that of a larger.
      seed, subset_seed: of the order, and of the choice of the subset.
      block: K.
    """

    def __init__(
        self, name: str, size: int, amount: int, *, seed: int, subset_seed: int, block: int
    ) -> None:
        if not 0 < amount <= size or block < 1:
            raise ValueError(f"{amount} of {size} records in blocks of {block}")
        self.size = size
        self.amount = amount
        self.block = block
        self._name = name
        self._seed = seed
        # The subset is the first `amount` of a random order; None where it is everything.
        self._subset = (
            Permutation(size, seed_of("subset", subset_seed, name)) if amount < size else None
        )
        # Of no use record by record, and as long as the source then.
        self._block_sizes = self._count_blocks() if block > 1 else np.zeros(0, np.int64)
        self._cache()

    def _cache(self) -> None:
        # Two epochs' orders of blocks, and the orders within the blocks in use.
        self._starts = functools.lru_cache(maxsize=2)(self._block_starts)
        self._within = functools.lru_cache(maxsize=1024)(self._block_order)

    def __getstate__(self) -> dict:
        return {k: v for k, v in self.__dict__.items() if k not in ("_starts", "_within")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._cache()

    def records(self, positions: np.ndarray) -> Int64[np.ndarray, " k"]:
        """The records at positions of the run, counted from 0 over all epochs."""
        epochs, offsets = np.divmod(np.asarray(positions, np.int64), self.amount)
        result = np.empty_like(offsets)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            find = self._single if self.block == 1 else self._blockwise
            result[here] = find(int(epoch), offsets[here])
        return result

    def members(self, block: int) -> Int64[np.ndarray, " k"]:
        """The subset's records among those of `block`, in ascending order."""
        start = block * self.block
        records = np.arange(start, min(start + self.block, self.size))
        return records[self._selected(records)]

    def _single(self, epoch: int, offsets: np.ndarray) -> np.ndarray:
        seed = seed_of("epoch", self._seed, self._name, epoch)
        ranks = Permutation(self.amount, seed)(offsets)
        return ranks if self._subset is None else self._subset(ranks)

    def _blockwise(self, epoch: int, offsets: np.ndarray) -> np.ndarray:
        blocks, starts = self._starts(epoch)
        places = np.searchsorted(starts, offsets, side="right") - 1
        result = np.empty_like(offsets)
        for place in np.unique(places):
            here = places == place
            result[here] = self._within(epoch, int(blocks[place]))[offsets[here] - starts[place]]
        return result

    def _block_order(self, epoch: int, block: int) -> np.ndarray:
        """A block's members in the epoch's order: sorted by a hash of the record."""
        members = self.members(block)
        seed = seed_of("block", self._seed, self._name, epoch, block)
        keys = hash64(members.astype(np.uint64) ^ np.uint64(seed))
        return members[np.argsort(keys, kind="stable")]

    def _block_starts(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The blocks in the epoch's order, and the offset at which each begins."""
        seed = seed_of("blocks", self._seed, self._name, epoch)
        blocks = Permutation(len(self._block_sizes), seed)(np.arange(len(self._block_sizes)))
        sizes = self._block_sizes[blocks]
        blocks, sizes = blocks[sizes > 0], sizes[sizes > 0]
        return blocks, np.cumsum(sizes) - sizes

    def _count_blocks(self) -> Int64[np.ndarray, " blocks"]:
        """How many of each block's records the subset holds; 0.3 us a record of a subset."""
        edges = range(0, self.size, self.block)
        if self._subset is None:
            return np.array([min(self.block, self.size - start) for start in edges], np.int64)
        counts = np.zeros(len(edges), np.int64)
        chunk = max(1, _COUNT_CHUNK // self.block) * self.block
        for start in range(0, self.size, chunk):
            records = np.arange(start, min(start + chunk, self.size))
            selected = records[self._selected(records)]
            counts += np.bincount(selected // self.block, minlength=len(edges))
        return counts

    def _selected(self, records: np.ndarray) -> np.ndarray:
        """Which of the records the subset holds, as a mask."""
        if self._subset is None:
            return np.ones(len(records), bool)
        return self._subset.inverse(records) < self.amount
