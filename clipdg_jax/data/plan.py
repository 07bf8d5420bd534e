"""Which record each row of each batch holds: a function of the configuration and the step alone.

Rows are interleaved: each source's rows are spread evenly over the batch, so that every slice of
it, such as a process's rows, has the mix's shares.

With block shuffle, T consecutive batches form a group, and a source's records in a group are laid
out down its columns: the first row of all T batches, then the second, and so on. A block of K
consecutive records then fills about K / T neighbouring rows of T batches. So each block is read
by one process and, where each worker takes the same rows of every batch, by one worker, while
every batch mixes T B / K blocks. A run that ends within a group leaves the rest of it undrawn.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from jaxtyping import Int32, Int64

from clipdg_jax.data import mixture, shuffle


class Plan:
    """The global batches of a run.

    Args:
      orders: one per source.
      weights: one per source; only their ratios matter.
      batch_size: rows of a global batch.
      steps: batches in the run.
      window: blocks that are shuffled together, over all sources, where orders have blocks.

    Attributes:
      group: batches over which a block's records are spread (T).
    """

    def __init__(
        self,
        orders: Sequence[shuffle.Order],
        weights: Sequence[Fraction],
        *,
        batch_size: int,
        steps: int,
        window: int,
    ) -> None:
        self.orders = list(orders)
        self.batch_size = batch_size
        self.steps = steps
        block = orders[0].block
        self.group = 1 if block == 1 else max(1, -(-window * block // batch_size))
        # Whole groups, so that the last batches do not depend on where the run ends.
        self._schedule = mixture.Schedule(weights, batch_size, -(-steps // self.group) * self.group)

    def rows(
        self, step: int, start: int, stop: int
    ) -> tuple[Int32[np.ndarray, " rows"], Int64[np.ndarray, " rows"]]:
        """(source, record within it) of rows `start` to `stop` - 1 of batch `step`."""
        counts = self._schedule.counts(step)
        source, rank = (column[start:stop] for column in _interleaved(tuple(counts.tolist())))
        index = np.empty(len(source), np.int64)
        for i, order in enumerate(self.orders):
            mine = source == i
            if mine.any():
                index[mine] = order.records(self._positions(step, i, rank[mine]))
        return source, index

    def _positions(self, step: int, source: int, rank: np.ndarray) -> np.ndarray:
        """Positions in a source's order of the rows that are its `rank`-th in the batch."""
        first = step - step % self.group
        within = step - first
        start, now = (int(self._schedule.before(s)[source]) for s in (first, step))
        # Every batch has `whole` rows of this source, and some have one more. That row's column
        # comes last, and skips the batches without it.
        whole = self._schedule.whole(source)
        last = whole * self.group + (now - start - whole * within)
        return start + np.where(rank < whole, rank * self.group + within, last)


@functools.lru_cache(maxsize=64)
def _interleaved(counts: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Source and rank within the source of each row; each source's rows are evenly spread."""
    source = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    rank = np.concatenate([np.arange(count) for count in counts])
    place = np.concatenate([(np.arange(count) + 0.5) / max(count, 1) for count in counts])
    order = np.argsort(place, kind="stable")
    return source[order], rank[order]
