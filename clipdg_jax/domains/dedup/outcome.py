"""What a deduplication leaves: the table of duplicates, the counts, and the truth if known."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clipdg_jax.data import files
from clipdg_jax.domains.dedup import clusters, signatures

TABLE = "duplicates.parquet"
_SCHEMA = pa.schema(
    [
        ("shard", pa.int32()),
        ("row", pa.int32()),
        ("key", pa.string()),
        ("kept", pa.string()),
        ("kept_key", pa.string()),
        ("how", pa.string()),
        ("cosine", pa.float32()),
        ("distance", pa.int16()),
    ]
)


def write_table(
    path: Path, acted: clusters.Edges, signed: signatures.Signatures, fingerprint: str
) -> None:
    """Writes which records of the pool are dropped, in favour of which, by shard and row.

    `shard` is the number of the pool's shard, `row` that of the item within it, `kept` the name of
    the data set that holds the record that is kept; `cosine` and `distance` are null where none was
    computed. The file names the pool by its fingerprint, in the metadata field `pool`.
    """
    acted = acted[np.argsort(acted["dropped"])]
    kept_rows = np.unique(acted["kept"])
    kept_keys = signed.keys(kept_rows)
    schema = _SCHEMA.with_metadata({"pool": fingerprint})
    first = signed.members[-1].first
    with files.whole(path) as unfinished, pq.ParquetWriter(unfinished, schema) as writer:
        for shard, part in _by_shard(acted, signed):
            rows = part["dropped"] - signed.starts[shard]
            keys = signed.table(shard, ["key"]).column("key")
            known = ~np.isnan(part["cosine"])
            columns = [
                pa.array(np.full(len(part), shard - first, np.int32)),
                pa.array(rows.astype(np.int32)),
                keys.take(pa.array(rows)),
                pa.array([signed.member(row) for row in part["kept"].tolist()], pa.string()),
                kept_keys.take(np.searchsorted(kept_rows, part["kept"])).cast(pa.string()),
                pa.array([clusters.HOW[how] for how in part["how"].tolist()], pa.string()),
                pa.array(part["cosine"], mask=~known),
                pa.array(part["distance"], mask=part["distance"] < 0),
            ]
            writer.write_table(pa.table(columns, schema))


def _by_shard(
    acted: clusters.Edges, signed: signatures.Signatures
) -> Iterator[tuple[int, clusters.Edges]]:
    """The edges (sorted by what is dropped) of each shard that has any."""
    cuts = np.searchsorted(acted["dropped"], signed.starts)
    for shard in np.flatnonzero(np.diff(cuts)).tolist():
        yield shard, acted[cuts[shard] : cuts[shard + 1]]


def counts(acted: clusters.Edges, signed: signatures.Signatures) -> dict[str, Any]:
    """How many records there are, and how many are dropped, by how they were found and for whom."""
    pool = len(signed) - signed.pool_start
    by_how = np.bincount(acted["how"], minlength=len(clusters.HOW)).tolist()
    kept_in: dict[str, int] = {}
    bounds = [*(signed.starts[member.first] for member in signed.members), len(signed)]
    for member, low, high in zip(signed.members, bounds, bounds[1:], strict=False):
        inside = (acted["kept"] >= low) & (acted["kept"] < high)
        kept_in[member.name] = int(inside.sum())
    # What a shard could not even yield has no row.
    unread = signed.errors["unreadable_record"] + signed.errors["truncated"]
    return {
        "records": pool + unread,
        "references": signed.pool_start,
        "not_compared": dict(sorted(signed.errors.items())),
        "duplicates": len(acted),
        "left": pool + unread - len(acted),
        "by_how": {how: n for how, n in zip(clusters.HOW, by_how, strict=True) if n},
        "in_favour_of": kept_in,
    }


def ground_truth(acted: clusters.Edges, signed: signatures.Signatures) -> dict[str, float] | None:
    """How well planted copies were found; None where the records say nothing of copies.

    For each kind of copy its recall: the share of the copies that end with their original, one
    dropped in favour of the other or both in favour of a third. `precision`: the share of the
    records dropped in favour of one of the pool that show the same original as that one.
    """
    kinds = _copies(signed)
    if not kinds:
        return None
    rows: dict[str, int] = {}
    for shard in range(signed.members[-1].first, signed.shards):
        keys = signed.table(shard, ["key"]).column("key").to_pylist()
        rows.update(zip(keys, range(int(signed.starts[shard]), int(signed.starts[shard + 1]))))
    origin = np.arange(len(signed))
    cluster = origin.copy()
    cluster[acted["dropped"]] = acted["kept"]
    told = {}
    for kind, copies in sorted(kinds.items()):
        own = np.array(list(copies))
        origin[own] = [rows[of] for of in copies.values()]
        told[kind] = float((cluster[own] == cluster[origin[own]]).mean())
    inside = acted[acted["kept"] >= signed.pool_start]
    if len(inside):
        told["precision"] = float((origin[inside["dropped"]] == origin[inside["kept"]]).mean())
    return told


def _copies(signed: signatures.Signatures) -> dict[str, dict[int, str]]:
    """Of each kind of copy: its rows, and the keys of what they are copies of."""
    kinds: dict[str, dict[int, str]] = {}
    for shard in range(signed.members[-1].first, signed.shards):
        table = signed.table(shard, ["copy", "copy_of"])
        copies = np.flatnonzero(table.column("copy").is_valid())
        for row, told in zip(copies.tolist(), table.take(copies).to_pylist(), strict=True):
            kinds.setdefault(told["copy"], {})[row + int(signed.starts[shard])] = told["copy_of"]
    return kinds
