"""What people say of audited records, and what follows for the datasets and for the pool."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from clipdg_jax.data import schema
from clipdg_jax.domains import calibration, label_table, labels
from clipdg_jax.domains.curation import audit_draws, audit_statistics
from clipdg_jax.evaluation import stats

Queue = audit_draws.Queue

# {"datasets": {name: {"n", "correct", "precision", "low", "high", "claimed", "drawn", "truth"}},
#  "shares": {domain: {"value", "low", "high", "standard_error", "truth"}},
#  "strata": {decision: {"records", "n", *schema.DOMAINS}}, "notes": [...]}
Results = dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Said:
    """What is settled of a queue.

    Attributes:
      domain: key -> the domain that its annotators agree on, or that was decided.
      unlabelled: keys that too few have labelled.
      disputed: keys without a majority, on which nobody decided.
    """

    domain: Mapping[str, str]
    unlabelled: Sequence[str]
    disputed: Sequence[str]

    @property
    def missing(self) -> int:
        return len(self.unlabelled) + len(self.disputed)


def read(store: labels.Store, queues: Sequence[Queue], min_annotators: int) -> list[Said]:
    """What the store says of each queue, by `label_table.consensus`.

    Labels of the same records in other draws of the dataset count too.
    """
    table = label_table.from_store(store)
    agreed = label_table.consensus(table, min_annotators)
    domains = {
        (f, key): schema.DOMAINS[number]
        for f, key, number in zip(agreed.fingerprint, agreed.key, agreed.domain, strict=True)
    }
    votes = table.votes()
    found = []
    for queue in queues:
        settled, unlabelled, disputed = {}, [], []
        for item in queue.items:
            identity = queue.source.fingerprint, item.key
            if identity in domains:
                settled[item.key] = domains[identity]
            elif len(votes.get(identity, {})) >= min_annotators:
                disputed.append(item.key)
            else:
                unlabelled.append(item.key)
        found.append(Said(settled, unlabelled, disputed))
    return found


def precision(queue: Queue, said: Said, claimed: float | None) -> dict[str, Any]:
    """The achieved precision of a written dataset, of the records that are settled.

    The interval is Wilson's at 95 %, without a correction for the size of the dataset: wider than
    need be where a large part of the dataset was drawn.

    Args:
      queue: of the dataset.
      said: of it.
      claimed: the precision that natural and rendition records are said to have.
    """
    n = len(said.domain)
    correct = sum(queue.groups[key] == domain for key, domain in said.domain.items())
    low, high = stats.wilson_interval(correct, n) if n else (0.0, 1.0)
    decided = set(queue.groups.values())
    return {
        "n": n,
        "correct": correct,
        "precision": correct / n if n else None,
        "low": low,
        "high": high,
        "claimed": claimed if decided <= set(calibration.DECIDED) else None,
        "drawn": len(queue.items),
        "truth": None,
    }


def pool_shares(queue: Queue, said: Said) -> tuple[dict[str, Any], dict[str, Any], str]:
    """The share of each domain in the pool, by Horvitz-Thompson over its strata.

    Records that are not settled count as not drawn: the queue is in random order.

    Returns:
      The shares, the strata, and "" or why there are no shares.
    """
    counts = {name: dict.fromkeys(schema.DOMAINS, 0) for name in queue.sizes}
    for key, domain in said.domain.items():
        counts[queue.groups[key]][domain] += 1
    return _shares(queue.sizes, counts)


def written_shares(
    queues: Sequence[Queue], said: Sequence[Said]
) -> tuple[dict[str, Any], dict[str, Any], str]:
    """The same for a pool that is not read at random: what was written of it are the strata.

    Args:
      queues: of the written datasets, among which there must be just one of each domain.
      said: of each.
    """
    by_domain: dict[str, list[int]] = {name: [] for name in schema.DOMAINS}
    for place, queue in enumerate(queues):
        decided = set(queue.groups.values())
        if len(decided) == 1:
            by_domain[decided.pop()].append(place)
    wrong = [name for name, places in by_domain.items() if len(places) != 1]
    if wrong:
        note = (
            "The pool is not read at random, and its shares take one written dataset of each "
            f"domain; config.datasets has not exactly one of {' and '.join(wrong)}."
        )
        return {}, {}, note
    sizes, counts = {}, {}
    for name, (place,) in by_domain.items():
        sizes[name] = len(queues[place].source)
        found = list(said[place].domain.values())
        counts[name] = {domain: found.count(domain) for domain in schema.DOMAINS}
    return _shares(sizes, counts)


def _shares(
    sizes: Mapping[str, int], counts: Mapping[str, Mapping[str, int]]
) -> tuple[dict[str, Any], dict[str, Any], str]:
    strata = {
        name: {"records": sizes[name], "n": sum(counts[name].values()), **counts[name]}
        for name in sizes
    }
    few = [name for name, one in strata.items() if one["n"] < min(2, one["records"])]
    if few:
        return {}, strata, f"Too few of the stratum {few[0]} are labelled for shares of the pool."
    table = np.array([[one[domain] for domain in schema.DOMAINS] for one in strata.values()])
    found = audit_statistics.shares(table, np.array(list(sizes.values())))
    shares = {
        domain: {**share.to_json(), "truth": None}
        for domain, share in zip(schema.DOMAINS, found, strict=True)
    }
    return shares, strata, ""


def true_precision(queue: Queue, true_domain: str) -> float | None:
    """The precision of a whole written dataset whose records know their true domain.

    None where those drawn do not all know it, or any other does not.
    """
    if min(queue.truth.values()) < 0:
        return None
    right = 0
    for index in range(len(queue.source)):
        record = queue.source.record(index)
        truth = record.meta.get(true_domain, "")
        if truth not in schema.DOMAINS:
            return None
        right += truth == record.domain
    return right / len(queue.source)
