"""Labelled records: which records of which datasets, and the domain that each was given."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Int, Int32, Int64

from clipdg_jax.data import files, resolve, schema, shards
from clipdg_jax.domains import inputs as inputs_lib
from clipdg_jax.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """Labelled records of one or more datasets.

    Attributes:
      sources: the datasets.
      source: index into `sources` of each example.
      index: its record in that dataset.
      domain: its label, an index into `schema.DOMAINS`.
      keys: its key, unlike all others'; see `join`.
    """

    sources: tuple[resolve.Source, ...]
    source: Int32[np.ndarray, " n"]
    index: Int64[np.ndarray, " n"]
    domain: Int32[np.ndarray, " n"]
    keys: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.keys)

    def subset(self, rows: Int[np.ndarray, " m"] | Bool[np.ndarray, " n"]) -> Examples:
        """The examples of these rows, in their order."""
        chosen = np.arange(len(self))[rows]
        return Examples(
            self.sources,
            self.source[chosen],
            self.index[chosen],
            self.domain[chosen],
            tuple(self.keys[i] for i in chosen.tolist()),
        )

    def batches(self, size: int = 256) -> Iterator[inputs_lib.Inputs]:
        """All examples, in order, `size` at a time; the last batch may be shorter.

        Raises UserError for a record that is damaged on disk.
        """
        for start in range(0, len(self), size):
            stop = min(start + size, len(self))
            yield inputs_lib.Inputs([self.record(i) for i in range(start, stop)])

    def record(self, row: int) -> schema.Record:
        """The record of one example. Raises UserError if it is damaged on disk."""
        source = self.sources[self.source[row]]
        try:
            return source.record(int(self.index[row]))
        except shards.RecordError as error:
            raise UserError(
                f"{source.name}: {self.keys[row]} is damaged ({error}); restore the shard or "
                "remove the label"
            ) from error

    def counts(self) -> dict[str, int]:
        """Examples of each domain."""
        return {
            name: int(np.sum(self.domain == number))
            for number, name in enumerate(inputs_lib.DOMAINS)
        }

    def as_source(self) -> LabelledSource:
        """The examples as one dataset whose labels are their domains, for the training loader."""
        return LabelledSource(self)


def everything(source: resolve.Source) -> Examples:
    """All records of a dataset, with the domain that each names itself, or -1.

    Raises UserError for a record that is damaged on disk.
    """
    numbers = {name: i for i, name in enumerate(inputs_lib.DOMAINS)}
    keys, domains = [], []
    for index in range(len(source)):
        try:
            record = source.record(index)
        except shards.RecordError as error:
            raise UserError(
                f"{source.name}: record {index} is damaged ({error}); restore the shard"
            ) from error
        keys.append(record.key)
        domains.append(numbers.get(record.domain, -1))
    return Examples(
        sources=(source,),
        source=np.zeros(len(source), np.int32),
        index=np.arange(len(source), dtype=np.int64),
        domain=np.array(domains, np.int32),
        keys=tuple(keys),
    )


def join(parts: Sequence[Examples]) -> Examples:
    """Examples of several sets as one, in order.

    Keys of more than one dataset get its name in front: datasets may share keys.
    """
    sources: list[resolve.Source] = []
    for part in parts:
        sources += [s for s in part.sources if all(s is not known for known in sources)]

    def renumbered(part: Examples) -> np.ndarray:
        places = [next(i for i, s in enumerate(sources) if s is own) for own in part.sources]
        return np.asarray(places, np.int32)[part.source]

    source = np.concatenate([renumbered(part) for part in parts])
    keys = [key for part in parts for key in part.keys]
    if len(sources) > 1:
        keys = [f"{sources[s].name}/{key}" for s, key in zip(source.tolist(), keys, strict=True)]
    return Examples(
        tuple(sources),
        source,
        np.concatenate([part.index for part in parts]),
        np.concatenate([part.domain for part in parts]),
        tuple(keys),
    )


@dataclasses.dataclass(frozen=True, eq=False)
class LabelledSource:
    """Examples as a `resolve.Source`: record i is example i, its label the domain given to it."""

    examples: Examples

    @property
    def name(self) -> str:
        return "labels"

    @property
    def classes(self) -> tuple[str, ...]:
        return inputs_lib.DOMAINS

    @property
    def tokenizer(self) -> None:
        """No tokeniser is promised: the datasets may differ in it."""
        return

    @property
    def fingerprint(self) -> str:
        own = self.examples
        return files.digest(
            {
                "sources": [source.fingerprint for source in own.sources],
                "rows": np.stack([own.source, own.index, own.domain]).tolist(),
            }
        )

    def __len__(self) -> int:
        return len(self.examples)

    def record(self, index: int) -> schema.Record:
        own = self.examples
        record = own.sources[own.source[index]].record(int(own.index[index]))
        # Nothing is trained on the caption: the loader need not tokenise it.
        return dataclasses.replace(record, label=int(own.domain[index]), caption="")
