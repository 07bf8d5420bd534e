"""Reading whole blocks ahead of need, so that a slow disk is waited for once per block."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import threading
from collections.abc import Mapping, Sequence

import numpy as np

from clipdg_jax.data import resolve, schema, shards, shuffle

_THREADS = 4
# Where fewer of a block's span are wanted, reading them one by one moves fewer bytes.
_DENSE = 0.25

_Item = schema.Record | shards.RecordError


@dataclasses.dataclass
class _Block:
    records: concurrent.futures.Future[Mapping[int, _Item]]
    group: int  # the latest group of batches that asked for it


class BlockReader:
    """Records of block-shuffled sources; each block is read whole, once, by a background thread.

    Blocks stay until no batch of the present or the preceding group wants them (threads may be
    one group behind). Safe under threads.
    """

    def __init__(self, sources: Sequence[resolve.Source], orders: Sequence[shuffle.Order]) -> None:
        self._sources = sources
        self._orders = orders
        self._blocks: dict[tuple[int, int], _Block] = {}
        self._lock = threading.Lock()
        self._pool = concurrent.futures.ThreadPoolExecutor(_THREADS, "block-reader")

    def want(self, source: np.ndarray, index: np.ndarray, group: int) -> None:
        """Starts reading the blocks that hold these rows' records, unless they are here."""
        with self._lock:
            for i, order in enumerate(self._orders):
                for block in np.unique(index[source == i] // order.block).tolist():
                    self._want(i, block, group)

    def release(self, group: int) -> None:
        """Drops the blocks that only groups before `group` - 1 asked for."""
        with self._lock:
            self._blocks = {k: b for k, b in self._blocks.items() if b.group >= group - 1}

    def record(self, source: int, index: int, group: int) -> schema.Record:
        """Record `index`; waits for its block. Raises what `Source.record` raises."""
        with self._lock:
            block = self._want(source, index // self._orders[source].block, group)
        item = block.records.result()[index]
        if isinstance(item, shards.RecordError):
            raise item
        return item

    def _want(self, source: int, block: int, group: int) -> _Block:
        entry = self._blocks.get((source, block))
        if entry is None:
            entry = _Block(self._pool.submit(self._read, source, block), group)
            self._blocks[source, block] = entry
        entry.group = max(entry.group, group)
        return entry

    def _read(self, source: int, block: int) -> Mapping[int, _Item]:
        members = self._orders[source].members(block).tolist()
        return dict(zip(members, read_members(self._sources[source], members), strict=True))


def read_members(source: resolve.Source, members: Sequence[int]) -> list[_Item]:
    """The records of ascending indices, as one range where they are dense and a source can."""
    first, last = members[0], members[-1]
    ranged = getattr(source, "records", None)  # TFDS sources have none
    if ranged is not None and len(members) >= _DENSE * (last + 1 - first):
        records = ranged(first, last + 1)
        return [records[index - first] for index in members]
    found: list[_Item] = []
    for index in members:
        try:
            found.append(source.record(index))
        except shards.RecordError as error:
            found.append(error)
    return found
