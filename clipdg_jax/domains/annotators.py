"""Simulated annotators, for datasets whose true domains are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int

from clipdg_jax.data import resolve, schema, shuffle
from clipdg_jax.domains import labels, orders

TRAINER = "simulated-trainer"
ADJUDICATOR = "simulated-adjudicator"


def name_of(number: int) -> str:
    """The name of the simulated annotator `number`, from 1."""
    return f"simulated-{number}"


def simulate(
    store: labels.Store,
    source: resolve.Source,
    truth: Int[np.ndarray, " records"],
    *,
    train: int,
    validation_and_test: int,
    train_noise: float,
    annotators: int,
    error: float,
    seed: int,
    exclude: orders.Exclude = frozenset(),
) -> int:
    """Labels a random draw as people might, with errors at known rates, and returns its id.

    Of the draw, the first `train` records are labelled once, by one annotator; the rest by
    `annotators` others, and those of the rest on which they disagree are decided by an
    adjudicator. An error is one of the two wrong domains with equal chance, independent of
    everything else. Calling it again with equal arguments changes nothing.

    Args:
        store: where the labels go.
        source: the dataset to draw from.
        truth: the true domain of each record, an index into `schema.DOMAINS`.
        train, validation_and_test: how many records to draw for each.
        train_noise: rate of errors of the annotator of the training records.
        annotators: how many label each of the others.
        error: rate of errors of each of them, and of the adjudicator.
        seed: of the draw and the errors.
        exclude: records that are not drawn.

    Raises:
        UserError: fewer records may be drawn than are to be.
        ValueError: `truth` does not fit the dataset.
    """
    if truth.shape != (len(source),) or not ((truth >= 0) & (truth < len(schema.DOMAINS))).all():
        raise ValueError(f"truth needs one domain for each of the {len(source)} records")
    if not (0 <= train_noise <= 1 and 0 <= error <= 1):
        raise ValueError(f"rates lie between 0 and 1, not {train_noise} and {error}")
    items = orders.random(source, train + validation_and_test, seed, exclude)
    draw = store.add_draw(source, "random", seed, items, orders.allowed(source, exclude))
    right = {item.key: int(truth[item.index]) for item in items}
    trained = [item.key for item in items[:train]]
    store.set_all(TRAINER, draw, _say(TRAINER, trained, right, train_noise, seed))
    rest = {item.key: right[item.key] for item in items[train:]}
    label(store, draw, rest, annotators=annotators, error=error, seed=seed)
    return draw


def label(
    store: labels.Store,
    draw: int,
    truth: Mapping[str, int],
    *,
    annotators: int,
    error: float,
    seed: int,
) -> None:
    """Labels records of a draw as `simulate` does those that calibrate: by several, adjudicated.

    Args:
        store: holds the draw, and gets the labels.
        draw: its id.
        truth: key -> true domain, an index into `schema.DOMAINS`, of the records to label.
        annotators: how many label each.
        error: rate of errors of each of them, and of the adjudicator.
        seed: of the errors.
    """
    keys = list(truth)
    names = [name_of(number) for number in range(1, annotators + 1)]
    answers = {name: _say(name, keys, truth, error, seed) for name in names}
    for name, answer in answers.items():
        store.set_all(name, draw, answer)
    disputed = [key for key in keys if len({answer[key] for answer in answers.values()}) > 1]
    decided = {decision.key for decision in store.adjudications(draw)}
    decisions = _say(ADJUDICATOR, disputed, truth, error, seed)
    store.adjudicate_all(
        ADJUDICATOR, draw, {k: d for k, d in decisions.items() if k not in decided}
    )


def _say(
    name: str, keys: Sequence[str], truth: Mapping[str, int], rate: float, seed: int
) -> dict[str, str]:
    """What an annotator of this name says of these records."""
    rng = np.random.default_rng(shuffle.seed_of("annotator", name, seed))
    right = np.array([truth[key] for key in keys], np.int64)
    wrong = (right + rng.integers(1, len(schema.DOMAINS), len(keys))) % len(schema.DOMAINS)
    said = np.where(rng.random(len(keys)) < rate, wrong, right)
    return {key: schema.DOMAINS[d] for key, d in zip(keys, said.tolist(), strict=True)}
