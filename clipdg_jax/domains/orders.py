"""Which records to label, and in which order: the items of a draw.

Random and audit draws give every record of the dataset, save those excluded, the same known
chance, so that what is measured on them holds for all of it. The other two choose by a rule: good
for training and for settling disputes, but never to calibrate.
"""

from __future__ import annotations

import collections
import collections.abc
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float

from clipdg_jax.data import resolve, shards, shuffle
from clipdg_jax.domains import label_table, labels
from clipdg_jax.errors import UserError

# Records that are not to be drawn: their keys, all of which must be the dataset's
# (`exclusion.read` sees to that), or a mask of its records.
Exclude = collections.abc.Set[str] | Bool[np.ndarray, " records"]


def random(
    source: resolve.Source, n: int, seed: int, exclude: Exclude = frozenset()
) -> list[labels.Item]:
    """`n` records drawn at random without replacement, in random order.

    Draws of one seed are nested: a larger one begins with the smaller, and to exclude records only
    takes them out of the order. Records that are damaged on disk are left out, with a warning, so
    that there may be fewer than `n`; each of the others was drawn with probability n / `allowed`
    all the same.

    Raises UserError unless 1 <= n <= allowed(source, exclude).
    """
    return _drawn(source, n, shuffle.seed_of("random", seed), exclude)


def audit(
    source: resolve.Source, n: int, seed: int, exclude: Exclude = frozenset()
) -> list[labels.Item]:
    """Like `random`, but independent of the random draw that has the same seed.

    For a human check of what a classifier decided, on records that it was not fitted to.
    """
    return _drawn(source, n, shuffle.seed_of("audit", seed), exclude)


def allowed(source: resolve.Source, exclude: Exclude = frozenset()) -> int:
    """How many records of the dataset may be drawn: the population of a draw."""
    if isinstance(exclude, np.ndarray):
        if exclude.shape != (len(source),) or exclude.dtype != bool:
            raise ValueError(f"exclude needs one bool for each of the {len(source)} records")
        return len(source) - int(exclude.sum())
    return len(source) - len(exclude)


def _drawn(source: resolve.Source, n: int, seed: int, exclude: Exclude) -> list[labels.Item]:
    population = allowed(source, exclude)
    if not 1 <= n <= population:
        besides = len(source) - population
        raise UserError(
            f"{source.name}: cannot draw {n} of its {population} records"
            f"{f' (besides {besides} excluded)' if besides else ''}; "
            + (f"ask for 1 to {population}" if population > 0 else "exclude fewer")
        )
    order = shuffle.Permutation(len(source), seed)
    chosen: list[tuple[int, str | None]] = []
    seen = 0
    while len(chosen) < n and seen < len(source):
        stop = min(seen + n - len(chosen), len(source))
        for index in order(np.arange(seen, stop)).tolist():
            if isinstance(exclude, np.ndarray):
                if not exclude[index]:
                    chosen.append((index, _key(source, index)))
            elif (key := _key(source, index)) not in exclude:
                chosen.append((index, key))
        seen = stop
    return _items(source, chosen, n / population)


def uncertain(
    source: resolve.Source,
    scores: Float[np.ndarray, "records 2"] | str | os.PathLike[str],
    n: int,
) -> list[labels.Item]:
    """The `n` records that a classifier is least sure of, the least sure first.

    Unsure is a small difference between the two largest of the three probabilities.

    Args:
        source: the dataset.
        scores: probabilities of natural and of rendition (ambiguous is what is left to 1) of each
            record of the dataset, NaN where it has none; or a Parquet file with the columns key,
            natural and rendition, and index where known.
        n: how many; fewer come back where fewer have scores.

    Raises:
        UserError: the file cannot be read, lacks a column, or names keys that are not in the
            dataset; n < 1; no record has a score.
    """
    if n < 1:
        raise UserError(f"{source.name}: cannot draw {n} records; ask for at least 1")
    if isinstance(scores, str | os.PathLike):
        scores = _read_scores(source, Path(scores))
    if scores.shape != (len(source), 2):
        raise ValueError(f"scores have shape {scores.shape}, not {(len(source), 2)}")
    every = np.column_stack([scores, 1 - scores.sum(axis=1)])
    every.sort(axis=1)
    margin = every[:, 2] - every[:, 1]
    # NaN sorts last; equal margins keep the order of the dataset.
    order = np.argsort(margin, kind="stable")[: min(n, int(np.isfinite(margin).sum()))]
    if not len(order):
        raise UserError(f"{source.name}: no record has a score; score the dataset first")
    chosen = [(index, _key(source, index)) for index in order.tolist()]
    return _items(source, chosen, math.nan)


def _read_scores(source: resolve.Source, path: Path) -> np.ndarray:
    """float64 [records, 2], NaN where the file has no row."""
    try:
        table = pq.read_table(path)
        keys = table.column("key").to_pylist()
        columns = [table.column(name).to_numpy() for name in ("natural", "rendition")]
        index = table.column("index").to_numpy() if "index" in table.column_names else None
    except (OSError, KeyError, pa.ArrowException) as error:
        what = " ".join(str(error).split())
        raise UserError(
            f"{path}: cannot be read as scores ({what}); it should be Parquet with the columns "
            "key, natural and rendition"
        ) from error
    if index is None:
        index = label_table.locate(source, keys)
    else:
        _check_index(source, path, keys, index)
    scores = np.full((len(source), 2), np.nan)
    scores[index] = np.column_stack(columns)
    return scores


def _check_index(source: resolve.Source, path: Path, keys: list[str], index: np.ndarray) -> None:
    """Raises UserError if the rows are of another dataset; a few of them tell."""
    some = np.linspace(0, len(keys) - 1, min(len(keys), 16), dtype=int)
    inside = len(index) == 0 or (index.min() >= 0 and index.max() < len(source))
    if not inside or any(_key(source, int(index[i])) not in (keys[i], None) for i in some):
        raise UserError(
            f"{path}: its keys are not those of {source.name} at the same index; give the scores "
            "of this dataset"
        )


def disagreement(store: labels.Store, source: resolve.Source) -> list[labels.Item]:
    """The records of a dataset whose annotators disagree and that nobody decided on yet.

    Most even first: by the share of those who are outvoted, then in the order of the dataset.

    Raises UserError where there are none.
    """
    decided = {a.key for a in store.adjudications() if a.fingerprint == source.fingerprint}
    said: dict[tuple[int, str], dict[str, str]] = collections.defaultdict(dict)
    for label in store.labels():  # oldest first: the latest of each annotator stays
        if label.fingerprint == source.fingerprint and label.key not in decided:
            said[label.index, label.key][label.annotator] = label.domain
    outvoted = {}
    for record, votes in said.items():
        most = max(collections.Counter(votes.values()).values())
        if most < len(votes):
            outvoted[record] = 1 - most / len(votes)
    if not outvoted:
        raise UserError(
            f"{store.path}: no undecided record of {source.name} has labels that differ; let two "
            "or more annotators label the same draw first"
        )
    ranked = sorted(outvoted, key=lambda record: (-outvoted[record], record))
    return [labels.Item(index, key) for index, key in ranked]


def _items(
    source: resolve.Source, chosen: Sequence[tuple[int, str | None]], probability: float
) -> list[labels.Item]:
    """The chosen records as items; those without a key are damaged."""
    items = [labels.Item(index, key, probability) for index, key in chosen if key is not None]
    if len(items) < len(chosen):
        logging.warning(
            "%s: %d of %d drawn records are damaged and left out",
            source.name,
            len(chosen) - len(items),
            len(chosen),
        )
    if not items:
        raise UserError(f"{source.name}: all drawn records are damaged; restore the dataset")
    return items


def _key(source: resolve.Source, index: int) -> str | None:
    """The key of a record, or None where it is damaged."""
    try:
        return source.record(index).key
    except shards.RecordError:
        return None
