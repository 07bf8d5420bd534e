"""What an audit has people look at: records of written datasets, and of the pool in strata.

Of each written dataset it is a random draw. The pool is drawn from in strata, by what curation
decided of each record, so that the many that are clear do not use up the labels that the unclear
ones need; every record still has a known chance.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int64

from clipdg_jax.data import dataset, engine, files, resolve, schema, shards, shuffle
from clipdg_jax.domains import calibration, labels, orders
from clipdg_jax.domains.curation import audit_statistics, selection, table
from clipdg_jax.errors import UserError

POOL = "pool"
LEAST = 30  # of each stratum, or all of it
# The share of one domain that is expected within each stratum, by its decision: where a decider
# took a record it is mostly right, elsewhere anything is possible.
_EXPECTED = (0.97, 0.97, 0.5, 0.5)


@dataclasses.dataclass(frozen=True, eq=False)
class Queue:
    """A draw of a label store that is to be labelled.

    Attributes:
      name: the dataset's, as the config calls it, or `POOL`.
      source: the dataset.
      draw: its id in the store.
      items: what was drawn.
      groups: key -> what was decided of the record: its domain in a written dataset; one of
        `calibration.DECISIONS` in the pool.
      truth: key -> its true domain, an index into `schema.DOMAINS`; -1 where it is unknown.
      sizes: records of each group that could have been drawn; of the pool only.
    """

    name: str
    source: resolve.Source
    draw: int
    items: Sequence[labels.Item]
    groups: Mapping[str, str]
    truth: Mapping[str, int]
    sizes: Mapping[str, int]


@dataclasses.dataclass(frozen=True, eq=False)
class Frame:
    """The records of a pool that can be drawn: scored, and no duplicates.

    Attributes:
      scored: the pool's scores and drop list.
      counts: of each shard, records by decision.
      truth: records by the domain that they name themselves; None where some name none.
    """

    scored: selection.ScoredPool
    counts: Int64[np.ndarray, "shards 4"]
    truth: Int64[np.ndarray, " 3"] | None

    def __len__(self) -> int:
        return int(self.counts.sum())


def fingerprint(scored: selection.ScoredPool) -> str:
    """Identifies the scores and the drop list of a pool.

    Raises UserError where shards have not been scored.
    """
    places = [engine.report_path(scored.scores, index) for index in range(scored.shards)]
    missing = [place for place in places if not place.is_file()]
    if missing:
        raise UserError(
            f"{scored.scores}: holds no scores of {len(missing)} of the pool's {scored.shards} "
            "shards; score it with `python -m clipdg_jax.main --config=configs/curate.py`, or set "
            "config.pool.name to nothing"
        )
    outputs = [engine.read_report(scored.scores, index)["output"] for index in range(len(places))]
    return files.digest([[one["sha256"] for one in outputs], scored.duplicates.digest])


def frame(scored: selection.ScoredPool) -> Frame:
    """Counts the decisions on a pool, shard by shard. Raises UserError where scores are damaged."""
    counts = np.zeros((scored.shards, len(calibration.DECISIONS)), np.int64)
    truth = np.zeros(1 + len(schema.DOMAINS), np.int64)
    for index in range(scored.shards):
        own = scored.shard(index)
        counts[index] = np.bincount(own.outcome[own.kept], minlength=counts.shape[1])
        truth += np.bincount(own.domain[own.kept] + 1, minlength=len(truth))
    return Frame(scored, counts, None if truth[0] else truth[1:])


def of_dataset(
    store: labels.Store, name: str, source: resolve.Source, n: int, seed: int, true_domain: str
) -> Queue:
    """Draws `n` random records of a written dataset into the store.

    Args:
      store: gets the draw, in order "audit".
      name: of the dataset, in the config.
      source: the dataset; its records' domains are what was decided of them.
      n: how many.
      seed: of the draw.
      true_domain: the entry of the records' meta that names their true domain, where it is known.

    Raises:
      UserError: the dataset has fewer records, or they name no domain; the store holds labels of
        another version of it.
    """
    if not 1 <= n <= len(source):
        raise UserError(
            f"config.n: is {n}, but {name} has {len(source)} records; ask for 1 to {len(source)}"
        )
    items = orders.audit(source, n, seed)
    groups, truth = {}, {}
    for item in items:
        record = source.record(item.index)
        groups[item.key] = record.domain
        truth[item.key] = _number(record.meta.get(true_domain, ""))
    unknown = [key for key, domain in groups.items() if not domain]
    if unknown:
        raise UserError(
            f"config.datasets: {unknown[0]} of {name} names no domain ({len(unknown)} of {n} drawn "
            "do not), so that nothing is claimed of it; audit datasets that curation sorted"
        )
    _refuse_other_version(store, source, "audit")
    draw = store.add_draw(source, "audit", seed, items)
    return Queue(name, source, draw, items, groups, truth, {})


def of_pool(
    store: labels.Store, source: dataset.Dataset, drawable: Frame, n: int, seed: int
) -> Queue:
    """Draws `n` records of a pool into the store, in strata of its decisions, in random order.

    How many of each stratum follows from Neyman's allocation (`audit_statistics.allocate`), with
    at least `LEAST` of each. Records that are damaged on disk cannot occur: they have no score.

    Args:
      store: gets the draw, in order "stratified".
      source: the pool.
      drawable: its records that can be drawn.
      n: how many.
      seed: of the draw.

    Raises:
      UserError: there are fewer records, or n is too few for the strata; the scores are of another
        pool; the store holds labels of another version of it.
    """
    sizes = drawable.counts.sum(axis=0)
    strata = np.flatnonzero(sizes).tolist()
    fewest = int(np.minimum(sizes, LEAST).sum())
    if not fewest <= n <= len(drawable):
        raise UserError(
            f"config.pool.n: is {n}; the pool has {len(drawable)} scored records without "
            f"duplicates, in {len(strata)} strata of which up to {LEAST} each are needed; ask for "
            f"{fewest} to {len(drawable)}"
        )
    expected = np.array(_EXPECTED)[strata]
    deviations = np.sqrt(expected * (1 - expected))
    each = audit_statistics.allocate(sizes[strata], deviations, n, LEAST).tolist()
    wanted = dict(zip(strata, each, strict=True))
    items, groups, truth = [], {}, {}
    for shard, rows in enumerate(_ranks(drawable.counts, wanted, seed)):
        if not rows:
            continue
        own = drawable.scored.shard(shard)
        for stratum, ranks in rows.items():
            name = calibration.DECISIONS[stratum]
            probability = wanted[stratum] / int(sizes[stratum])
            for place in np.flatnonzero(own.outcome == stratum)[ranks].tolist():
                key = own.keys[place]
                index = _locate(source, shard, int(own.rows[place]), key, drawable.scored)
                items.append(labels.Item(index, key, probability))
                groups[key], truth[key] = name, int(own.domain[place])
    # Whoever labels must not see from the order what was decided.
    items.sort(key=lambda item: (shuffle.seed_of("stratified", seed, item.key), item.key))
    _refuse_other_version(store, source, "stratified")
    draw = store.add_draw(source, "stratified", seed, items, len(drawable))
    counted = {calibration.DECISIONS[stratum]: int(sizes[stratum]) for stratum in strata}
    return Queue(POOL, source, draw, items, groups, truth, counted)


def _ranks(
    counts: Int64[np.ndarray, "shards 4"], wanted: Mapping[int, int], seed: int
) -> list[dict[int, Int64[np.ndarray, " k"]]]:
    """Of each shard: stratum -> which of its records of that stratum are drawn, by their rank."""
    found: list[dict[int, np.ndarray]] = [{} for _ in counts]
    for stratum, n in wanted.items():
        ends = np.cumsum(counts[:, stratum])
        order = shuffle.Permutation(int(ends[-1]), shuffle.seed_of("stratum", stratum, seed))
        drawn = np.sort(order(np.arange(n)))
        shard = np.searchsorted(ends, drawn, side="right")
        for index in np.unique(shard).tolist():
            start = ends[index] - counts[index, stratum]
            found[index][stratum] = drawn[shard == index] - start
    return found


def _locate(
    source: dataset.Dataset, shard: int, row: int, key: str, scored: selection.ScoredPool
) -> int:
    """The index of a record, whose row does not count damaged records before it in its shard."""
    sizes = [info.records for info in source.manifest.shards]
    if shard < len(sizes):
        start, stop = sum(sizes[:shard]), sum(sizes[: shard + 1])
        for index in range(start + row, stop):
            try:
                if source.record(index).key == key:
                    return index
            except shards.RecordError:
                continue
    raise UserError(
        f"{table.path_of(scored.scores, shard)}: row {row} is {key!r}, which {source.name} does "
        "not have there; score this pool"
    )


def _refuse_other_version(store: labels.Store, source: resolve.Source, order: str) -> None:
    """Raises UserError where the store has such labels of this dataset's name but none of it."""
    drawn = [d for d in store.draws() if (d.dataset, d.order) == (source.name, order)]
    if not drawn or any(d.fingerprint == source.fingerprint for d in drawn):
        return
    count = sum(len(store.labels(d.id)) for d in drawn)
    if count:
        raise UserError(
            f"{store.path}: its {count} labels of {source.name} are of another version of the "
            f"dataset ({drawn[-1].fingerprint[:12]}, not {source.fingerprint[:12]}); restore that "
            "version, or give another config.labels.path to audit this one"
        )


def _number(domain: object) -> int:
    return schema.DOMAINS.index(domain) if domain in schema.DOMAINS else -1
