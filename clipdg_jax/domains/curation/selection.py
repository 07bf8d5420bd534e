"""Which dataset each scored image goes to: by decision, and by lot for the random controls.

Everything is counted shard by shard, from the scores alone: no list of a pool's images is ever in
memory. A control of n records holds those with the n smallest keyed hashes of their keys, so that
controls of one seed are nested and depend on the keys only, not on shards or processes.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int8, Int64, UInt64

from clipdg_jax.data import engine, schema
from clipdg_jax.domains import calibration
from clipdg_jax.domains.curation import duplicates as duplicates_lib
from clipdg_jax.domains.curation import table
from clipdg_jax.errors import UserError

# What a scored image is: decided in one of four ways, or a duplicate, whatever is decided of it.
OUTCOMES = (*calibration.DECISIONS, "duplicate")
DUPLICATE = len(calibration.DECISIONS)
# Under which a dataset of other images counts it as dropped.
REASONS = ("decided_natural", "decided_rendition", "decided_ambiguous", "conflict", "duplicate")
# The domain that follows from each decision.
DECIDED = (*schema.DOMAINS, "ambiguous")
CONTROL = "random-"
BINS = 50  # of the histograms of scores, over [0, 1]
_TOP_BITS = 16  # of a hash: what the first search for a threshold looks at


@dataclasses.dataclass(frozen=True, eq=False)
class Scored:
    """The scores of one shard, with duplicates marked; rows rising.

    Attributes:
        keys, rows, domain, probability: as in `table`; probability of natural and of rendition.
        outcome: index into `OUTCOMES`.
    """

    keys: list[str]
    rows: Int64[np.ndarray, " n"]
    domain: Int8[np.ndarray, " n"]
    probability: Float32[np.ndarray, "n 2"]
    outcome: Int8[np.ndarray, " n"]

    @property
    def kept(self) -> Bool[np.ndarray, " n"]:
        """Those that are no duplicates."""
        return self.outcome != DUPLICATE


@dataclasses.dataclass(frozen=True)
class ScoredPool:
    """The scores of a pool of `shards` shards, and its drop list."""

    scores: Path
    shards: int
    duplicates: duplicates_lib.Duplicates

    def shard(self, index: int) -> Scored:
        """One shard. Raises UserError where scores and drop list do not fit each other."""
        columns = ("row", "key", *calibration.DECIDED, "decision", "domain")
        found = table.read(self.scores, index, columns)
        keys = found.column("key").to_pylist()
        rows = table.column(found, "row").astype(np.int64)
        outcome = table.column(found, "decision").copy()
        dropped = self.duplicates.of(index)
        places = {row: place for place, row in enumerate(rows.tolist())} if dropped else {}
        for row, key in dropped.items():
            place = places.get(row)  # Without a score, it is counted as what has none.
            if place is None:
                continue
            if keys[place] != key:
                raise UserError(
                    f"{self.duplicates.path}: row {row} of shard {index} is {key!r}, but "
                    f"{keys[place]!r} in the pool; deduplicate this pool"
                )
            outcome[place] = DUPLICATE
        return Scored(
            keys=keys,
            rows=rows,
            domain=table.column(found, "domain"),
            probability=np.stack([table.column(found, n) for n in calibration.DECIDED], axis=1),
            outcome=outcome,
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Selection:
    """What a pool's scores come to.

    Attributes:
        seen: items of the pool.
        unscored: of them, those that have no score, by reason.
        faults: troubles that are no items, by reason.
        counts: scored images by what they say themselves (no domain, then `schema.DOMAINS`) and
            by outcome.
        histograms: of both scores (first axis) by decision (second), over `BINS` bins of [0, 1];
            duplicates are left out.
        drawn: control -> the largest hash that it takes.
    """

    seen: int
    unscored: Mapping[str, int]
    faults: Mapping[str, int]
    counts: Int64[np.ndarray, "4 5"]
    histograms: Int64[np.ndarray, "2 4 bins"]
    drawn: Mapping[str, int]

    @property
    def by_outcome(self) -> dict[str, int]:
        """Scored images of each outcome."""
        return dict(zip(OUTCOMES, self.counts.sum(axis=0).tolist(), strict=True))

    def to_json(self) -> dict[str, Any]:
        """JSON-able."""
        value = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        value["counts"], value["histograms"] = self.counts.tolist(), self.histograms.tolist()
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Selection:
        """The inverse of `to_json`."""
        arrays = {name: np.array(value[name], np.int64) for name in ("counts", "histograms")}
        return cls(**{**value, **arrays})


def size_of(counts: Int64[np.ndarray, "4 5"], dataset: str) -> int:
    """Records of the dataset natural, rendition or ambiguous; the last holds conflicts too."""
    totals = counts.sum(axis=0).tolist()
    return sum(n for n, domain in zip(totals, DECIDED, strict=False) if domain == dataset)


def select(pool: ScoredPool, controls: Sequence[str], seed: int) -> Selection:
    """Counts the outcomes and draws the controls.

    Args:
        pool: scored whole.
        controls: of which datasets there are to be controls of the same size.
        seed: of the lot.

    Raises:
        UserError: scores are damaged or do not fit the drop list; keys occur more than once.
    """
    counts = np.zeros((1 + len(schema.DOMAINS), len(OUTCOMES)), np.int64)
    histograms = np.zeros((2, len(calibration.DECISIONS), BINS), np.int64)
    tops = np.zeros(1 << _TOP_BITS, np.int64)
    reported = engine.Counts()
    for index in range(pool.shards):
        reported.add(engine.read_report(pool.scores, index))
        own = pool.shard(index)
        np.add.at(counts, (own.domain + 1, own.outcome), 1)
        bins = np.minimum((own.probability[own.kept] * BINS).astype(int), BINS - 1)
        for which in range(len(histograms)):
            np.add.at(histograms[which], (own.outcome[own.kept], bins[:, which]), 1)
        if controls:
            hashed = lots(own.keys, seed)[own.kept]
            tops += np.bincount(hashed >> np.uint64(64 - _TOP_BITS), minlength=len(tops))
    sizes = {name: size_of(counts, name) for name in controls}
    return Selection(
        seen=reported.seen,
        unscored=dict(sorted(reported.dropped.items())),
        faults=dict(sorted(reported.faults.items())),
        counts=counts,
        histograms=histograms,
        drawn=_thresholds(pool, sizes, tops, seed),
    )


def lots(keys: Sequence[str], seed: int) -> UInt64[np.ndarray, " n"]:
    """A hash of each key, the first 8 bytes of BLAKE2b under the seed: what a control draws by."""
    key = b"control" + seed.to_bytes(8, "big", signed=True)
    hashed = (hashlib.blake2b(k.encode(), digest_size=8, key=key).digest() for k in keys)
    return np.frombuffer(b"".join(hashed), ">u8").astype(np.uint64)


def _thresholds(
    pool: ScoredPool, sizes: Mapping[str, int], tops: np.ndarray, seed: int
) -> dict[str, int]:
    """The n-th smallest hash for each size n; -1 for none.

    `tops` tells which leading bits it has; only the hashes that share them are held and sorted.
    """
    ends = np.cumsum(tops)
    top = {name: int(np.searchsorted(ends, n)) for name, n in sizes.items() if n}
    if not top:
        return dict.fromkeys(sizes, -1)
    wanted = np.zeros(len(tops), bool)
    wanted[list(top.values())] = True
    near: list[np.ndarray] = []
    for index in range(pool.shards):
        own = pool.shard(index)
        hashed = lots(own.keys, seed)[own.kept]
        near.append(hashed[wanted[hashed >> np.uint64(64 - _TOP_BITS)]])
    held = np.sort(np.concatenate(near))
    thresholds = dict.fromkeys(sizes, -1)
    for name, place in top.items():
        own = held[held >> np.uint64(64 - _TOP_BITS) == place]
        rank = sizes[name] - int(ends[place] - tops[place])  # among these, from 1
        if rank < len(own) and own[rank] == own[rank - 1]:
            raise UserError(
                f"{pool.scores}: two records of the pool have the same key, so that none can be "
                "drawn by its key; import the pool with unlike keys"
            )
        thresholds[name] = int(own[rank - 1])
    return thresholds


def members(
    scored: Scored, datasets: Sequence[str], thresholds: Mapping[str, int], seed: int
) -> dict[str, Bool[np.ndarray, " n"]]:
    """Which images of a shard each dataset gets.

    Args:
        scored: the shard.
        datasets: those of natural, rendition and ambiguous that are written.
        thresholds: control -> the largest hash that it takes (`Selection.drawn`).
        seed: of the controls.

    Returns:
        By dataset, the controls as `random-<name>`; no duplicate is in any of them.
    """
    domain = np.array([*DECIDED, ""])[scored.outcome]
    found = {name: domain == name for name in datasets}
    if thresholds:
        hashed = lots(scored.keys, seed)
    for name, limit in thresholds.items():
        reached = hashed <= np.uint64(max(limit, 0)) if limit >= 0 else np.zeros(len(domain), bool)
        found[CONTROL + name] = scored.kept & reached
    return found
