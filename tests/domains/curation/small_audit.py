"""A curated world on disk without pictures: a pool with known domains, its scores, and datasets."""

import dataclasses
import pathlib

import numpy as np

from clipdg_jax.data import dataset, engine, schema, writing
from clipdg_jax.domains import calibration
from clipdg_jax.domains.curation import duplicates, routing, selection, table

# What is decided of a record of each domain: natural, rendition, ambiguous or conflict.
CHANCES = {0: (0.80, 0.01, 0.18, 0.01), 1: (0.01, 0.80, 0.18, 0.01), 2: (0.04, 0.03, 0.92, 0.01)}
SHARES = (0.5, 0.3, 0.2)


@dataclasses.dataclass(frozen=True, eq=False)
class World:
    """A root with the datasets pool, natural, rendition and ambiguous, and the scores beside it."""

    root: pathlib.Path
    truth: np.ndarray
    decision: np.ndarray

    @property
    def pool(self) -> dataset.Dataset:
        return dataset.open_dataset(self.root / "pool")

    @property
    def scores(self) -> pathlib.Path:
        return self.root / "scores"

    def written(self, name: str) -> dataset.Dataset:
        return dataset.open_dataset(self.root / name)

    def scored(self, drop: str = "") -> selection.ScoredPool:
        pool = self.pool
        dropped = duplicates.Duplicates.open(drop, pool.fingerprint)
        return selection.ScoredPool(self.scores, len(pool.shards()), dropped)

    def precision(self, name: str) -> float:
        """True precision of a written dataset."""
        wanted = schema.DOMAINS.index(name)
        return float(np.mean(self.truth[self.chosen(name)] == wanted))

    def chosen(self, name: str) -> np.ndarray:
        """The records that a written dataset holds, as a mask of the pool."""
        names = np.array(selection.DECIDED)
        return names[self.decision] == name


def key(i: int) -> str:
    return f"r/{i:05d}"


def make(root: pathlib.Path, count: int = 600, shards: int = 3, seed: int = 0) -> World:
    """Writes it all. Records of the pool name their domain, as a demo's do."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(3, count, p=SHARES)
    decision = np.array([rng.choice(4, p=CHANCES[domain]) for domain in truth.tolist()])
    world = World(root, truth, decision)

    def record(i: int) -> schema.Record:
        return schema.Record(key(i), b"image %d" % i, domain=schema.DOMAINS[truth[i]])

    made = writing.write_dataset(
        root / "pool",
        engine.index_shards(count, -(-count // shards)),
        engine.Each(record),
        config={"tool": "a test"},
        target_shard_bytes=int(1.1 * count / shards * len(schema.encode(record(0)))),
    )
    assert [info.records for info in made.manifest.shards] == [count // shards] * shards
    for name in schema.DOMAINS:
        members = np.flatnonzero(world.chosen(name)).tolist()
        writing.write_dataset(
            root / name,
            engine.index_shards(len(members), 10**6),
            engine.Each(lambda i, m=members, n=name: routing.placed(record(m[i]), n)),
            config={"tool": "a test"},
        )
    write_scores(world, made)
    return world


def write_scores(world: World, pool: dataset.Dataset) -> None:
    """The scores of the pool, as curation writes them."""
    assert calibration.DECISIONS[3] == "conflict"

    def rows(items):
        for row, record in enumerate(items):
            i = int(record.key.removeprefix("r/"))
            likely = (0.9, 0.1) if world.decision[i] == 0 else (0.1, 0.9)
            yield table.Row(
                row, record.key, *likely, int(world.decision[i]), 8, 8, "", 0, -1,
                int(world.truth[i]), None,
            )  # fmt: skip

    engine.map_shards(
        pool.shards(), rows, table.Sink(world.scores), world.scores, config={}, title="scores"
    )
