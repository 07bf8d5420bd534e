"""From the items of a pool's shards to records, the same way for every job that reads a pool."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

from clipdg_jax.data import engine, schema, tars, tokenizer, writing


@dataclasses.dataclass(frozen=True)
class ToRecords:
    """From the items of one shard to one `schema.Record` or `engine.Drop` for each, in order.

    Items are `tars.TarSample` or `schema.Record`; they are neither decoded nor tokenised. Reasons
    of drops: `duplicate_key` (a key for the second time in one shard), `no_image`, and
    `no_caption` unless `keep_uncaptioned`. An item's row number in a shard is its place in this
    sequence.
    """

    keep_uncaptioned: bool = False

    def __call__(
        self, items: Iterator[tars.TarSample | schema.Record]
    ) -> Iterator[schema.Record | engine.Drop]:
        seen: set[str] = set()
        for item in items:
            if item.key in seen:
                yield engine.Drop("duplicate_key")
                continue
            seen.add(item.key)
            if item.image is None:
                yield engine.Drop("no_image")
            elif not item.caption and not self.keep_uncaptioned:
                yield engine.Drop("no_caption")
            elif isinstance(item, schema.Record):
                yield item
            else:
                yield schema.Record(item.key, item.image, item.caption, meta=item.meta)


@dataclasses.dataclass(frozen=True)
class Tokenise:
    """Gives the records in a sequence of outcomes their tokens; put it last.

    Outcomes are records, `writing.Routed` and drops. Drops, and records that go nowhere, pass as
    they are.

    Attributes:
        vocab_size: vocabulary of the tokeniser; see `tokenizer.get_tokenizer`.
        made_by: hash of the tokeniser that made the tokens that the records have already, or
            None. Where it is the same one, they are kept.
    """

    vocab_size: int
    made_by: str | None = None

    def __call__(self, outcomes: Iterable[Any]) -> Iterator[Any]:
        for outcome in outcomes:
            if isinstance(outcome, schema.Record):
                yield self.record(outcome)
            elif isinstance(outcome, writing.Routed) and outcome.to:
                yield writing.Routed(
                    self.record(outcome.record), outcome.to, outcome.reason, outcome.reasons
                )
            else:
                yield outcome

    def record(self, record: schema.Record) -> schema.Record:
        """The record with its tokens."""
        encoder = tokenizer.get_tokenizer(self.vocab_size)
        if record.tokens is not None and self.made_by == encoder.hash:
            return record
        return dataclasses.replace(record, tokens=encoder.encode([record.caption])[0])
