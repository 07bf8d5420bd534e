"""How far annotators agree, beyond what chance alone would give.

Intervals are percentile bootstraps over the items. Both coefficients depend on an item only
through what was said of it, so that a bootstrap sample is one multinomial draw of how often each
answer pattern occurs: exactly the same distribution as drawing items, at a fraction of the work.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float64, Int

from clipdg_jax.data import schema
from clipdg_jax.domains import label_table, labels
from clipdg_jax.evaluation import stats

MISSING = -1


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A coefficient with its interval, and the number of items that it rests on.

    NaN where it is undefined: no item, or everyone gave the same answer to all.
    """

    value: float
    low: float
    high: float
    items: int


def cohen_kappa(
    a: Int[np.ndarray, " n"],
    b: Int[np.ndarray, " n"],
    *,
    seed: int = 0,
    resamples: int = 2000,
    confidence: float = 0.95,
) -> Estimate:
    """Cohen's kappa of two annotators, (p_o - p_e) / (1 - p_e).

    p_o is the share of items on which they agree, p_e the share expected of independent answers
    with each one's own frequencies (Cohen 1960). Items that either left out (-1) do not count.

    Args:
        a, b: each annotator's answers, numbered from 0; -1 where there is none.
        seed: of the bootstrap.
        resamples: bootstrap samples.
        confidence: of the two-sided interval, between 0 and 1.
    """
    both = (a != MISSING) & (b != MISSING)
    if not both.any():
        return Estimate(math.nan, math.nan, math.nan, 0)
    size = int(max(a[both].max(), b[both].max())) + 1
    cells = np.bincount(a[both] * size + b[both], minlength=size * size)

    def kappa(counts: Float64[np.ndarray, "r cells"]) -> Float64[np.ndarray, " r"]:
        table = counts.reshape(-1, size, size)
        n = table.sum(axis=(1, 2))
        observed = np.trace(table, axis1=1, axis2=2) / n
        expected = (table.sum(axis=2) * table.sum(axis=1)).sum(axis=1) / n**2
        return _ratio(observed - expected, 1 - expected)

    return _estimate(kappa, cells, seed, resamples, confidence)


def krippendorff_alpha(
    ratings: Int[np.ndarray, "annotators n"],
    *,
    seed: int = 0,
    resamples: int = 2000,
    confidence: float = 0.95,
) -> Estimate:
    """Krippendorff's alpha for nominal data, 1 - D_o / D_e, for any number of annotators.

    With n_uc annotators who gave item u the answer c, m_u answers to it, and n_c, n the sums over
    items with m_u >= 2 (others do not count): D_o = sum_u (m_u^2 - sum_c n_uc^2) / (m_u - 1) / n
    and D_e = (n^2 - sum_c n_c^2) / n / (n - 1) (Krippendorff 2004, section 11.3).

    Args:
        ratings: answers numbered from 0; -1 where there is none.
        seed, resamples, confidence: as in `cohen_kappa`.
    """
    size = int(ratings.max(initial=0)) + 1
    counts = np.stack([(ratings == c).sum(axis=0) for c in range(size)], axis=1)
    counts = counts[counts.sum(axis=1) >= 2]
    if not len(counts):
        return Estimate(math.nan, math.nan, math.nan, 0)
    patterns, times = np.unique(counts, axis=0, return_counts=True)
    answers = patterns.sum(axis=1)
    within = (answers**2 - (patterns**2).sum(axis=1)) / (answers - 1)

    def alpha(times: Float64[np.ndarray, "r patterns"]) -> Float64[np.ndarray, " r"]:
        per_answer = times @ patterns
        n = per_answer.sum(axis=1)
        observed = times @ within / n
        expected = (n**2 - (per_answer**2).sum(axis=1)) / n / (n - 1)
        return _ratio(expected - observed, expected)

    return _estimate(alpha, times, seed, resamples, confidence)


def _ratio(over: np.ndarray, under: np.ndarray) -> np.ndarray:
    """NaN where nothing could have differed by chance. `under` may be off zero by rounding."""
    varied = under > 1e-12
    return np.where(varied, over / np.where(varied, under, 1), np.nan)


def _estimate(
    coefficient: Callable[[np.ndarray], np.ndarray],
    counts: Int[np.ndarray, " patterns"],
    seed: int,
    resamples: int,
    confidence: float,
) -> Estimate:
    """The coefficient of the counts, and its percentile interval over resampled items.

    Samples in which it is undefined are left out of the interval.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    items = int(counts.sum())
    value = float(coefficient(counts[None, :].astype(np.float64))[0])
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(items, counts / items, size=resamples).astype(np.float64)
    values = coefficient(drawn)
    values = values[np.isfinite(values)]
    if math.isnan(value) or not len(values):
        return Estimate(value, math.nan, math.nan, items)
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(value, float(low), float(high), items)


def ratings(
    table: label_table.LabelTable, random_only: bool = False
) -> tuple[list[str], list[label_table.Identity], Int[np.ndarray, "annotators n"]]:
    """Annotators and records, each sorted, and what each annotator said of each record.

    An annotator's latest label of a record counts; decisions do not. With `random_only`, the
    latest that was given in a random or audit draw.
    """
    if random_only:
        keep = [order in labels.RANDOM_ORDERS for order in table.column("order")]
        table = label_table.LabelTable(table.table.filter(keep))
    votes = table.votes()
    domains = table.column("domain")
    records = sorted(votes)
    annotators = sorted({annotator for own in votes.values() for annotator in own})
    found = np.full((len(annotators), len(records)), MISSING)
    rows = {annotator: row for row, annotator in enumerate(annotators)}
    for column, record in enumerate(records):
        for annotator, row in votes[record].items():
            found[rows[annotator], column] = schema.DOMAINS.index(domains[row])
    return annotators, records, found


def report(table: label_table.LabelTable, seed: int = 0) -> dict[str, Any]:
    """Agreement of all annotators and of each pair, JSON-able, with `text` to print.

    Where any label comes from a random or audit draw, only those labels count (`basis` is
    "random"): images that were picked because they are hard, or because others disagreed on them,
    would make agreement look worse than it is. Otherwise all count (`basis` is "all").

    Further keys: `annotators` (labels of each), `items` (records labelled), `shared` (those with
    two or more annotators), `agreed` (those of them on which all agree; `share` with `share_low`
    and `share_high`, Wilson's), `alpha` (Krippendorff's) and `pairs` (Cohen's kappa of each, with
    the `items` that both labelled and the share `agreed`). Intervals are at 95 %. None stands for
    what is undefined.
    """
    orders = {
        order
        for order, final in zip(table.column("order"), table.column("adjudicated"), strict=True)
        if not final
    }
    random_only = not orders.isdisjoint(labels.RANDOM_ORDERS)
    annotators, records, matrix = ratings(table, random_only)
    given = (matrix != MISSING).sum(axis=0)
    shared = matrix[:, given >= 2]
    highest = shared.max(axis=0, initial=MISSING)
    agreed = int(((shared == MISSING) | (shared == highest[None, :])).all(axis=0).sum())
    n = shared.shape[1]
    low, high = stats.wilson_interval(agreed, n) if n else (None, None)
    found: dict[str, Any] = {
        "basis": "random" if random_only else "all",
        "annotators": {
            name: int((row != MISSING).sum()) for name, row in zip(annotators, matrix, strict=True)
        },
        "items": len(records),
        "shared": n,
        "agreed": agreed,
        "share": agreed / n if n else None,
        "share_low": low,
        "share_high": high,
        "alpha": _plain(krippendorff_alpha(matrix, seed=seed)),
        "pairs": [],
    }
    for i, j in itertools.combinations(range(len(annotators)), 2):
        both = (matrix[i] != MISSING) & (matrix[j] != MISSING)
        if both.any():
            found["pairs"].append(
                {
                    "annotators": [annotators[i], annotators[j]],
                    "agreed": float(np.mean(matrix[i, both] == matrix[j, both])),
                    **_plain(cohen_kappa(matrix[i], matrix[j], seed=seed)),
                }
            )
    found["text"] = _text(found)
    return found


def _plain(estimate: Estimate) -> dict[str, Any]:
    values = dataclasses.asdict(estimate)
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in values.items()}


def _text(found: dict[str, Any]) -> str:
    which = "from random draws" if found["basis"] == "random" else "from all sources"
    who = ", ".join(f"{name} {n}" for name, n in found["annotators"].items()) or "nobody"
    lines = [
        f"labels {which}: {found['items']} images; by annotator: {who}",
        f"images with two or more annotators: {found['shared']}",
    ]
    if not found["shared"]:
        return "\n".join([*lines, "no agreement to measure: let a second annotator label them too"])
    share, low, high = (100 * found[name] for name in ("share", "share_low", "share_high"))
    lines += [
        f"all agree on {found['agreed']} of these: {share:.1f} % ({low:.1f} - {high:.1f})",
        f"Krippendorff's alpha, nominal: {_interval(found['alpha'])}",
    ]
    for pair in found["pairs"]:
        lines.append(
            f"Cohen's kappa, {' and '.join(pair['annotators'])}: {_interval(pair)}; agree on "
            f"{100 * pair['agreed']:.1f} % of {pair['items']}"
        )
    return "\n".join([*lines, "in brackets: 95 % intervals"])


def _interval(estimate: dict[str, Any]) -> str:
    if estimate["value"] is None:
        return "undefined (only one domain occurs)"
    return f"{estimate['value']:.3f} ({estimate['low']:.3f} - {estimate['high']:.3f})"
