"""Which records of the datasets written are shown: the surest, the least sure, and some at random.

They are found from the scores, shard by shard, and read from the datasets themselves: what is shown
is what was written, also where the pool is in tars, which cannot be read at random.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float32, Int64

from clipdg_jax.domains.curation import selection

SURE, UNSURE, RANDOM = "surest", "least sure", "at random"


@dataclasses.dataclass(frozen=True, eq=False)
class Picks:
    """Records of one dataset, in the order in which they are shown.

    Attributes:
        index: in the dataset.
        probability: of natural and of rendition.
    """

    index: Int64[np.ndarray, " k"]
    probability: Float32[np.ndarray, "k 2"]


@dataclasses.dataclass
class _Best:
    """The `count` lowest of all values that were added, with what belongs to them."""

    count: int
    values: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0))
    index: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
    probability: np.ndarray = dataclasses.field(
        default_factory=lambda: np.zeros((0, 2), np.float32)
    )

    def add(self, values: np.ndarray, index: np.ndarray, probability: np.ndarray) -> None:
        joined = np.concatenate([self.values, values])
        kept = np.argsort(joined, kind="stable")[: self.count]
        self.values = joined[kept]
        self.index = np.concatenate([self.index, index])[kept]
        self.probability = np.concatenate([self.probability, probability])[kept]


def pick(
    pool: selection.ScoredPool,
    datasets: Sequence[str],
    drawn: Mapping[str, int],
    seed: int,
    count: int,
) -> dict[str, dict[str, Picks]]:
    """{dataset: {section: picks}}, at most `count` of each section; controls are shown at random.

    Sure is, of a natural or rendition dataset, a high probability of its domain, and of the
    ambiguous one a high probability of neither. The other arguments are those of
    `selection.members`, for all shards.
    """
    found: dict[str, dict[str, _Best]] = {}
    ends: dict[str, int] = {}
    for shard in range(pool.shards):
        scored = pool.shard(shard)
        rng = np.random.default_rng((seed, shard))
        dice = rng.random(len(scored.rows))
        for name, taken in selection.members(scored, datasets, drawn, seed).items():
            start = ends.get(name, 0)
            index = np.arange(start, start + taken.sum())
            ends[name] = start + len(index)
            probability = scored.probability[taken]
            own = found.setdefault(name, {})
            values = {RANDOM: dice[taken]}
            if name in datasets:
                sure = _sureness(name, probability.astype(np.float64))
                values = {SURE: -sure, UNSURE: sure, **values}
            for section, value in values.items():
                own.setdefault(section, _Best(count)).add(value, index, probability)
    return {
        name: {section: Picks(best.index, best.probability) for section, best in own.items()}
        for name, own in found.items()
    }


def _sureness(dataset: str, probability: np.ndarray) -> np.ndarray:
    natural, rendition = probability.T
    return {"natural": natural, "rendition": rendition}.get(dataset, 1 - natural - rendition)
