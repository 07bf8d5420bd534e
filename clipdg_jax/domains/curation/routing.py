"""The pass that writes datasets: which of them each record of the pool goes to, and what is told.

`Route` is the function that `writing.write_datasets` is given; a judge decides for it: by scores
(`ByScores`), by one decider alone (`ByDecider`), or by a list (`listing.ByList`).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from clipdg_jax.data import engine, pool, schema, shards, writing
from clipdg_jax.domains import calibration
from clipdg_jax.domains.curation import selection, table
from clipdg_jax.errors import UserError

# In the meta of a record that named its domain itself: what it said, since `domain` is replaced
# by what was decided.
TRUE_DOMAIN = "true_domain"

Outcomes = Iterator[schema.Record | engine.Drop]
Routes = Iterator[writing.Routed | engine.Drop]


class Judge(Protocol):
    """Decides where the records of a shard go; it must pickle."""

    def __call__(self, index: int, outcomes: Outcomes) -> Routes:
        """One route or drop for each outcome of shard `index`, in order."""


@dataclasses.dataclass(frozen=True)
class Numbered:
    """A shard of the pool whose items come with its number."""

    index: int
    shard: engine.InputShard

    @property
    def name(self) -> str:
        return self.shard.name

    def __iter__(self) -> Iterator[Any]:
        aside = (engine.Drop, engine.Fault, shards.RecordError)
        for item in self.shard:
            yield item if isinstance(item, aside) else (self.index, item)


def numbered(found: Sequence[engine.InputShard]) -> list[Numbered]:
    """All shards of a pool."""
    return [Numbered(index, shard) for index, shard in enumerate(found)]


@dataclasses.dataclass(frozen=True)
class Route:
    """The engine's function: from the items of a `Numbered` shard to routes and drops.

    Attributes:
        judge: decides.
        to_records: makes records of the items.
        tokenise: gives those that are written their tokens; None leaves them as they are.
    """

    judge: Judge
    to_records: pool.ToRecords
    tokenise: pool.Tokenise | None = None

    def __call__(self, items: Iterator[tuple[int, Any]]) -> Routes:
        first = next(items, None)
        if first is None:
            return iter(())
        every = itertools.chain([first], items)
        outcomes = self.to_records(item for _, item in every)
        routes = self.judge(first[0], outcomes)
        return self.tokenise(routes) if self.tokenise else routes


@dataclasses.dataclass(frozen=True)
class ByScores:
    """Sends natural, rendition and ambiguous images to the datasets of these names.

    Attributes:
        pool: its scores and drop list.
        datasets: those of natural, rendition and ambiguous that are written.
        drawn: control -> the largest hash that it takes; see `selection.Selection`.
        seed: of the controls.
    """

    pool: selection.ScoredPool
    datasets: tuple[str, ...]
    drawn: Mapping[str, int]
    seed: int

    def __call__(self, index: int, outcomes: Outcomes) -> Routes:
        scored = self.pool.shard(index)
        members = selection.members(scored, self.datasets, self.drawn, self.seed)
        not_drawn = {selection.CONTROL + name: "not_drawn" for name in self.drawn}
        places = _matched(self.pool.scores, index, scored.rows, scored.keys, outcomes)
        for outcome, place in places:
            if isinstance(outcome, engine.Drop):
                yield outcome
                continue
            number = int(scored.outcome[place])
            reason = selection.REASONS[number]
            if number == selection.DUPLICATE:
                yield engine.Drop(reason)
                continue
            yield writing.Routed(
                record=placed(outcome, selection.DECIDED[number]),
                to=tuple(name for name, taken in members.items() if taken[place]),
                reason=reason,
                reasons=not_drawn,
            )


@dataclasses.dataclass(frozen=True)
class ByDecider:
    """Sends the images that one decider takes to one dataset, whatever the other one says.

    Attributes:
        scores: of the shards.
        decider: index into `calibration.DECIDED`.
        threshold: of the decider.
        dataset: name of the dataset.
    """

    scores: Path
    decider: int
    threshold: float
    dataset: str

    def __call__(self, index: int, outcomes: Outcomes) -> Routes:
        domain = calibration.DECIDED[self.decider]
        found = table.read(self.scores, index, ("row", "key", domain))
        taken = reaches(table.column(found, domain), self.threshold)
        keys, rows = found.column("key").to_pylist(), table.column(found, "row")
        for outcome, place in _matched(self.scores, index, rows, keys, outcomes):
            if isinstance(outcome, engine.Drop):
                yield outcome
            else:
                to = (self.dataset,) if taken[place] else ()
                yield writing.Routed(placed(outcome, domain), to, f"not_{domain}")


def reaches(scores: np.ndarray, threshold: float) -> np.ndarray:
    """Whether a decider of this threshold takes an image of this score."""
    return scores.astype(np.float64) >= threshold


def placed(record: schema.Record, domain: str) -> schema.Record:
    """The record with the domain decided for it; what it said of itself stays in its meta."""
    meta = {**record.meta, TRUE_DOMAIN: record.domain} if record.domain else record.meta
    return dataclasses.replace(record, domain=domain, meta=meta)


def _matched(
    scores: Path, index: int, rows: np.ndarray, keys: Sequence[str], outcomes: Outcomes
) -> Iterator[tuple[schema.Record | engine.Drop, int]]:
    """Each outcome with the place of its score; a record that has none as a drop.

    Raises UserError where the keys differ: the scores are not of these records.
    """
    scored = iter(zip(rows.tolist(), keys, range(len(keys)), strict=True))
    following = next(scored, None)
    for row, outcome in enumerate(outcomes):
        if following is None or following[0] != row:
            unscored = isinstance(outcome, engine.Drop)
            yield outcome if unscored else engine.Drop("corrupt_image"), -1
            continue
        _, key, place = following
        if isinstance(outcome, engine.Drop) or outcome.key != key:
            found = outcome.reason if isinstance(outcome, engine.Drop) else repr(outcome.key)
            raise UserError(
                f"{table.path_of(scores, index)}: row {row} is {key!r}, but {found} in the pool, "
                "which was changed since; score it into another --workdir"
            )
        yield outcome, place
        following = next(scored, None)
