"""The scores of a pool on disk: one Parquet file for each of its shards, one row for each image.

row         number among the items of the shard; what has no row could not be scored
key         of the record
natural     probability, float32
rendition   probability, float32
decision    index into `calibration.DECISIONS`
width       of the image in pixels
height
sha256      of the image's encoded bytes, hex
phash       64-bit perceptual hash (`dedup.hashes.phash`)
label       class index, -1 without
domain      that the record itself names, index into `schema.DOMAINS`, -1 where it names none
url         of the record's meta, null without
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clipdg_jax.data import files
from clipdg_jax.errors import UserError

SCHEMA = pa.schema(
    [
        ("row", pa.int32()),
        ("key", pa.string()),
        ("natural", pa.float32()),
        ("rendition", pa.float32()),
        ("decision", pa.int8()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("sha256", pa.string()),
        ("phash", pa.uint64()),
        ("label", pa.int32()),
        ("domain", pa.int8()),
        ("url", pa.string()),
    ]
)
_GROUP = 1 << 14  # rows that are written together


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One image. The fields are the columns of the file, then what is not kept in it.

    Attributes:
        waited, scored: its share of the seconds that its batch was waited for, and that the
            classifier took for it.
    """

    row: int
    key: str
    natural: float
    rendition: float
    decision: int
    width: int
    height: int
    sha256: str
    phash: int
    label: int
    domain: int
    url: str | None
    waited: float = 0.0
    scored: float = 0.0


def path_of(directory: Path, index: int) -> Path:
    """The scores of shard `index` of the pool."""
    return directory / f"{index:06d}.parquet"


@dataclasses.dataclass(frozen=True)
class Sink:
    """Writes the rows of each input shard to its file in `directory`."""

    directory: Path

    def open(self, index: int) -> Output:
        return Output(path_of(self.directory, index))


class Output:
    """One file of scores, under a temporary name until it is complete.

    Raises UserError when the disk is full.
    """

    def __init__(self, path: Path):
        self._path, self._unfinished = path, files.temporary(path)
        self._rows: list[Row] = []
        self._count, self._waited, self._scored = 0, 0.0, 0.0
        try:
            self._writer = pq.ParquetWriter(self._unfinished, SCHEMA, compression="zstd")
        except OSError as error:
            files.raise_if_unwritable(path, error)
            raise

    def write(self, value: Row) -> None:
        self._rows.append(value)
        if len(self._rows) == _GROUP:
            self._flush()

    def _flush(self) -> None:
        columns = {name: [getattr(row, name) for row in self._rows] for name in SCHEMA.names}
        self._count += len(self._rows)
        self._waited += sum(row.waited for row in self._rows)
        self._scored += sum(row.scored for row in self._rows)
        self._rows = []
        try:
            self._writer.write_table(pa.table(columns, schema=SCHEMA))
        except OSError as error:
            files.raise_if_unwritable(self._path, error)
            raise

    def commit(self) -> dict[str, Any]:
        """{"rows", "sha256", "waited_s", "scored_s"}"""
        try:
            self._flush()
            self._writer.close()
            digest = files.sha256(self._unfinished)
            files.publish(self._unfinished, self._path)
        except OSError as error:
            files.raise_if_unwritable(self._path, error)
            raise
        seconds = {"waited_s": round(self._waited, 3), "scored_s": round(self._scored, 3)}
        return {"rows": self._count, "sha256": digest, **seconds}

    def discard(self) -> None:
        with contextlib.suppress(OSError):  # of the full disk for which it is given up
            self._writer.close()
        self._unfinished.unlink(missing_ok=True)


def read(directory: Path, index: int, columns: Sequence[str] | None = None) -> pa.Table:
    """The scores of shard `index`, or some of their columns; UserError where they are damaged."""
    path = path_of(directory, index)
    try:
        return pq.read_table(path, columns=None if columns is None else list(columns))
    except (OSError, pa.ArrowException) as error:
        what = " ".join(str(error).split())
        raise UserError(
            f"{path}: is missing or damaged ({what}); remove {path.with_suffix('.json').name} "
            "beside it and run the same command again to score this shard anew"
        ) from error


def column(table: pa.Table, name: str) -> np.ndarray:
    """A column of numbers."""
    return table.column(name).to_numpy()
