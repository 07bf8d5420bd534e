"""Simulated annotators, for datasets whose true domains are known."""

from __future__ import annotations

from collections.abc import Sequence

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

    Raises:
        UserError: the dataset has fewer records than are to be drawn.
        ValueError: `truth` does not fit the dataset.
    """
    if truth.shape != (len(source),) or not ((truth >= 0) & (truth < len(schema.DOMAINS))).all():
        raise ValueError(f"truth needs one domain for each of the {len(source)} records")
    if not (0 <= train_noise <= 1 and 0 <= error <= 1):
        raise ValueError(f"rates lie between 0 and 1, not {train_noise} and {error}")
    items = orders.random(source, train + validation_and_test, seed)
    draw = store.add_draw(source, "random", seed, items)

    def say(name: str, chosen: Sequence[labels.Item], rate: float) -> dict[str, str]:
        """What an annotator of this name says of the chosen records."""
        rng = np.random.default_rng(shuffle.seed_of("annotator", name, seed))
        right = truth[[item.index for item in chosen]]
        wrong = (right + rng.integers(1, len(schema.DOMAINS), len(chosen))) % len(schema.DOMAINS)
        said = np.where(rng.random(len(chosen)) < rate, wrong, right)
        return {
            item.key: schema.DOMAINS[domain]
            for item, domain in zip(chosen, said.tolist(), strict=True)
        }

    store.set_all(TRAINER, draw, say(TRAINER, items[:train], train_noise))
    rest = items[train:]
    answers = [say(name_of(number), rest, error) for number in range(1, annotators + 1)]
    for number, answer in enumerate(answers, 1):
        store.set_all(name_of(number), draw, answer)
    disputed = [item for item in rest if len({answer[item.key] for answer in answers}) > 1]
    decided = {label.key for label in store.adjudications(draw)}
    decisions = say(ADJUDICATOR, disputed, error)
    store.adjudicate_all(
        ADJUDICATOR, draw, {k: d for k, d in decisions.items() if k not in decided}
    )
    return draw
