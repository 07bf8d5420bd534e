"""The release table: what was selected, for publication without a single image.

    key, url          of the record; the URL null where its meta holds none
    sha256            of the image's encoded bytes, hex
    phash             64-bit perceptual hash
    natural, rendition, decision
    dataset           that holds the record

One row for each record and dataset, in the pool's order. What a list selected was neither decoded
nor scored: its perceptual hashes, probabilities and decisions are null.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clipdg_jax.data import dataset, files, shards
from clipdg_jax.domains import calibration
from clipdg_jax.domains.curation import selection, table

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("url", pa.string()),
        ("sha256", pa.string()),
        ("phash", pa.uint64()),
        ("natural", pa.float32()),
        ("rendition", pa.float32()),
        ("decision", pa.string()),
        ("dataset", pa.string()),
    ]
)
_KEPT = ("key", "url", "sha256", "phash", "natural", "rendition", "decision")
_CHUNK = 1 << 14


def write(
    path: Path,
    pool: selection.ScoredPool,
    datasets: Sequence[str],
    drawn: Mapping[str, int],
    seed: int,
) -> int:
    """Writes the table of a scored pool's datasets, whole or not at all; returns its rows.

    The arguments are those of `selection.members`, for all shards.
    """
    return _write(path, _of_scores(pool, datasets, drawn, seed))


def write_listed(path: Path, name: str, written: dataset.Dataset) -> int:
    """Writes the table of the one dataset that a list selected; returns its rows."""
    return _write(path, _of_records(name, written))


def _write(path: Path, parts: Iterator[pa.Table]) -> int:
    rows = 0
    with (
        files.whole(path) as unfinished,
        pq.ParquetWriter(unfinished, SCHEMA, compression="zstd") as writer,
    ):
        for part in parts:
            writer.write_table(part)
            rows += len(part)
    return rows


def _of_scores(
    pool: selection.ScoredPool, datasets: Sequence[str], drawn: Mapping[str, int], seed: int
) -> Iterator[pa.Table]:
    decisions = pa.array(calibration.DECISIONS)
    for index in range(pool.shards):
        members = selection.members(pool.shard(index), datasets, drawn, seed)
        places = [np.flatnonzero(taken) for taken in members.values()]
        names = np.repeat(list(members), [len(own) for own in places])
        every = np.concatenate([*places, np.zeros(0, np.int64)])
        order = np.argsort(every, kind="stable")
        found = table.read(pool.scores, index, _KEPT).take(pa.array(every[order]))
        told = found.set_column(
            _KEPT.index("decision"),
            "decision",
            decisions.take(found.column("decision").combine_chunks()),
        )
        told = told.append_column("dataset", pa.array(names[order].tolist(), pa.string()))
        yield told.cast(SCHEMA)


def _of_records(name: str, written: dataset.Dataset) -> Iterator[pa.Table]:
    for shard in written.shards():
        rows: list[tuple[str, str | None, str]] = []
        for record in shard:
            if isinstance(record, shards.RecordError):
                continue
            url = record.meta.get("url")
            digest = hashlib.sha256(record.image).hexdigest()
            rows.append((record.key, url if isinstance(url, str) else None, digest))
            if len(rows) == _CHUNK:
                yield _listed(name, rows)
                rows = []
        yield _listed(name, rows)


def _listed(name: str, rows: list[tuple[str, str | None, str]]) -> pa.Table:
    told = [
        {"key": key, "url": url, "sha256": digest, "dataset": name} for key, url, digest in rows
    ]
    return pa.Table.from_pylist(told, schema=SCHEMA)
