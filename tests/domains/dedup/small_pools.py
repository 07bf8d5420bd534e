"""Signatures of drawn embeddings, and pools in memory, for the tests of deduplication."""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clipdg_jax.data import engine, files
from clipdg_jax.domains.dedup import signatures


@dataclasses.dataclass(frozen=True)
class Shard:
    """A shard of the engine with these items."""

    name: str
    items: tuple

    def __iter__(self):
        return iter(self.items)


def families(count, width=24, seed=0, noise=0.35):
    """float16 vectors of length 1, of which groups lie near each other."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((count, width))
    own = rng.integers(0, count // 4, count)
    vectors = vectors[own] + noise * rng.standard_normal((count, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def signed(folder, embeddings, shards=3, references=0, pixels=None):
    """`Signatures` of a pool with these embeddings; the first shards are references."""
    files.make_directory(folder)
    pixels = np.arange(len(embeddings)) % 3 + 1 if pixels is None else pixels
    for index, rows in enumerate(np.array_split(np.arange(len(embeddings)), shards)):
        table = {
            "key": [f"r/{row}" for row in rows.tolist()],
            "error": pa.nulls(len(rows), pa.string()),
            "width": pixels[rows].astype(np.int32),
            "height": np.ones(len(rows), np.int32),
        }
        pq.write_table(pa.table(table), folder / f"{index:06d}.parquet")
        signatures.save_array(folder / f"{index:06d}.npy", embeddings[rows])
        report = {"dropped": {}, "output": {"rows": len(rows), "errors": {}}}
        files.write_json(engine.report_path(folder, index), report)
    members = [signatures.Member("pool", references, shards - references)]
    if references:
        members = [signatures.Member("test", 0, references), *members]
    return signatures.Signatures(folder, members)
