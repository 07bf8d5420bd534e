"""Records that are not to be drawn for labelling, such as the duplicates that dedup found."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import tqdm

from clipdg_jax.data import files, resolve, shards
from clipdg_jax.errors import UserError


def read(path: str | os.PathLike[str], source: resolve.Source) -> frozenset[str]:
    """Those keys of a Parquet table that are keys of a dataset.

    A table that names the dataset in its metadata (`pool`: its fingerprint), as that of the job
    dedup does, is believed. Otherwise all records are read, to know which of the keys are theirs.

    Args:
      path: a table with the column `key`.
      source: the dataset.

    Raises:
      UserError: the table cannot be read, has no column `key`, or names keys, but none of the
        dataset's.
    """
    path = Path(path)
    try:
        table = pq.read_table(path, columns=["key"])
        keys = frozenset(table.column("key").to_pylist())
        of = (pq.read_schema(path).metadata or {}).get(b"pool", b"").decode()
    except (OSError, KeyError, pa.ArrowException) as error:
        what = " ".join(str(error).split())
        raise UserError(
            f"{path}: cannot be read as keys to exclude ({what}); it should be Parquet with the "
            "column key, such as the duplicates.parquet of the job dedup"
        ) from error
    if not keys or of == source.fingerprint:
        return keys
    known = keys.intersection(_keys(source))
    if not known:
        raise UserError(
            f"{path}: none of its {len(keys)} keys is of {source.name}; give the table of keys of "
            "this dataset"
        )
    return known


def fingerprint(path: str | os.PathLike[str]) -> str:
    """Identifies the content of such a table. Raises UserError where there is none."""
    try:
        return files.sha256(Path(path))
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); make it with `python -m clipdg_jax.main "
            "--config=configs/dedup.py`"
        ) from error


def _keys(source: resolve.Source) -> Iterator[str]:
    for index in tqdm.trange(len(source), desc="keys", unit="record", disable=None, delay=2):
        try:
            yield source.record(index).key
        except shards.RecordError:
            continue
