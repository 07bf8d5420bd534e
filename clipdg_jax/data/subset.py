"""A part of a dataset's records, as a dataset of its own."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Int64

from clipdg_jax.data import files, resolve, schema, shuffle


@dataclasses.dataclass(frozen=True, eq=False)
class Subset:
    """Record i is record `index[i]` of `source`; a `resolve.Source`."""

    source: resolve.Source
    index: Int64[np.ndarray, " n"]

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def classes(self) -> tuple[str, ...]:
        return self.source.classes

    @property
    def tokenizer(self) -> str | None:
        return self.source.tokenizer

    @property
    def fingerprint(self) -> str:
        return files.digest([self.source.fingerprint, self.index.tolist()])

    def __len__(self) -> int:
        return len(self.index)

    def record(self, index: int) -> schema.Record:
        return self.source.record(int(self.index[index]))


def draw(source: resolve.Source, start: int, stop: int, seed: int) -> Subset:
    """The records at the positions `start` to `stop` - 1 of a seeded order of all records."""
    order = shuffle.Permutation(len(source), shuffle.seed_of("subset", seed))
    return Subset(source, order(np.arange(start, min(stop, len(source)))))
