"""Which labels train, which set the thresholds and which check them; folds for cross-fitting.

Everything follows from a hash of the keys, so that it does not depend on the order of the labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from clipdg_jax.data import shuffle
from clipdg_jax.domains import label_table
from clipdg_jax.errors import UserError

Rows = Int64[np.ndarray, " rows"]


def split(
    consensus: label_table.Consensus, validation: int, test: int, min_annotators: int, seed: int
) -> tuple[Rows, Rows, Rows]:
    """Rows that train, that validate and that test; each in ascending order.

    Validation and test are drawn by key hash from the records that a random or audit draw chose
    and that at least `min_annotators` labelled in such a draw, or that were decided on. Whom a
    rule asked in addition does not count: it would favour the records that the rule picks. All
    other records train, save another version of a record (same dataset name and key, other
    content) that validates or tests: it is in no part.

    Raises UserError where there are too few such records, and where nothing is left to train.
    """
    for name, number in (("validation", validation), ("test", test)):
        if number < 0:
            raise UserError(f"{name}: is {number}; a number of labels is 0 or more")
    enough = (consensus.random_annotators >= min_annotators) | consensus.adjudicated
    names = np.array(list(zip(consensus.dataset, consensus.key, strict=True)), dtype=object)
    names = names.reshape(-1, 2)
    eligible: dict[tuple[str, str], int] = {}
    for row in np.flatnonzero(consensus.random & enough).tolist():
        eligible.setdefault(tuple(names[row]), row)
    wanted = validation + test
    if len(eligible) < wanted:
        raise UserError(
            f"validation and test: need {wanted} labels but only {len(eligible)} of the "
            f"{len(consensus)} labelled records come from random draws with {min_annotators} or "
            "more annotators or a decision; label more at random, or ask for fewer"
        )
    ranked = sorted(eligible, key=lambda name: _rank("split", seed, *name))
    held_out = set(ranked[:wanted])
    train = [row for row, name in enumerate(names) if tuple(name) not in held_out]
    if not train:
        raise UserError(
            f"validation and test: take all {len(consensus)} labels and leave none to train; ask "
            "for fewer or label more"
        )
    parts = (
        train,
        sorted(eligible[name] for name in ranked[:validation]),
        sorted(eligible[name] for name in ranked[validation:wanted]),
    )
    first, second, third = (np.array(rows, np.int64) for rows in parts)
    return first, second, third


def folds(keys: Sequence[str], k: int, seed: int) -> Int64[np.ndarray, " n"]:
    """The fold, 0 to k - 1, of each key; equal keys share one.

    Over distinct keys, the sizes differ by at most one. Raises UserError unless
    2 <= k <= the number of distinct keys.
    """
    ranked = sorted(set(keys), key=lambda key: _rank("folds", seed, key))
    if not 2 <= k <= len(ranked):
        raise UserError(
            f"folds: cannot make {k} of {len(ranked)} records; choose from 2 to {len(ranked)}"
        )
    fold = {key: place % k for place, key in enumerate(ranked)}
    return np.array([fold[key] for key in keys], np.int64)


def _rank(purpose: str, seed: int, *names: str) -> tuple[int, tuple[str, ...]]:
    """Sorts names pseudo-randomly; the names themselves decide should hashes meet."""
    return shuffle.seed_of(purpose, seed, *names), names
