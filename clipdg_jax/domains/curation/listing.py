"""Selection by an external list of keys or URLs, such as a published one; nothing is scored.

The list is held as the sorted 64-bit hashes of its entries, in a file that all processes share: 8
bytes an entry, whatever its length. That a record which is not listed has the hash of one that is
happens once in 2^64 / (records x entries), so never.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import UInt64

from clipdg_jax.data import dataset, engine, files, schema, shards, writing
from clipdg_jax.domains.curation import duplicates as duplicates_lib
from clipdg_jax.domains.curation import routing
from clipdg_jax.errors import UserError

KINDS = ("key", "url")
_CHUNK = 1 << 16


@dataclasses.dataclass(frozen=True)
class Listing:
    """A list that was read.

    Attributes:
        path: of the user's file.
        hashes: of the file of sorted hashes.
        kinds: what it holds: keys, URLs or both.
        entries: unlike ones.
        repeated: lines that were there before.
    """

    path: Path
    hashes: Path
    kinds: tuple[str, ...]
    entries: int
    repeated: int

    def load(self) -> UInt64[np.ndarray, " n"]:
        """The hashes, mapped and not read, so that processes share them."""
        return np.load(self.hashes, mmap_mode="r")


def read(path: str | Path, hashes: Path) -> Listing:
    """Reads a list and writes its hashes.

    A .txt file has a key or URL a line, told apart by "://"; a .csv or .parquet file has a column
    `key` or `url`, in any case, and with both, `key` counts.

    Args:
        path: the file.
        hashes: where to write; replaced.

    Raises:
        UserError: there is no such file, it has neither column, or it lists nothing.
    """
    path = Path(path)
    parts: list[np.ndarray] = []
    kinds: set[str] = set()
    chunk: list[tuple[str, str]] = []

    def end_chunk() -> None:
        parts.append(np.array([_hash(kind, entry) for kind, entry in chunk], np.uint64))
        kinds.update(kind for kind, _ in chunk)
        chunk.clear()

    try:
        for kind, entry in _entries(path):
            if entry.strip():
                chunk.append((kind, entry.strip()))
            if len(chunk) == _CHUNK:
                end_chunk()
    except FileNotFoundError:
        raise UserError(
            f"{path}: does not exist; config.list is a file of keys or URLs (.txt, .csv, .parquet)"
        ) from None
    except (OSError, UnicodeDecodeError, csv.Error, pa.ArrowException) as error:
        what = " ".join(str(error).split())
        raise UserError(f"{path}: cannot be read ({what}); config.list is a list of keys") from None
    end_chunk()
    found = np.concatenate(parts)
    distinct = np.unique(found)
    if not len(distinct):
        raise UserError(f"{path}: lists nothing; it needs a key or a URL a line")
    files.make_directory(hashes.parent)
    with files.whole(hashes) as unfinished, open(unfinished, "wb") as file:
        np.save(file, distinct)
    return Listing(
        path,
        hashes,
        tuple(kind for kind in KINDS if kind in kinds),
        len(distinct),
        len(found) - len(distinct),
    )


def _entries(path: Path) -> Iterator[tuple[str, str]]:
    """(kind, entry) of each line."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        with pq.ParquetFile(path) as file:
            name = _column(path, file.schema_arrow.names)
            for batch in file.iter_batches(columns=[name]):
                for entry in batch.column(0).to_pylist():
                    yield name.lower(), "" if entry is None else str(entry)
        return
    with open(path, encoding="utf-8-sig", newline="") as file:
        if suffix == ".csv":
            rows = csv.DictReader(file)
            name = _column(path, rows.fieldnames or ())
            for row in rows:
                yield name.lower(), row[name] or ""
        else:
            for line in file:
                yield "url" if "://" in line else "key", line


def _column(path: Path, names: Iterable[str]) -> str:
    known = {name.lower(): name for name in names}
    for kind in KINDS:
        if kind in known:
            return known[kind]
    raise UserError(
        f"{path}: has no column key or url; it has {', '.join(known.values()) or 'none'}"
    )


def _hash(kind: str, entry: str) -> int:
    digest = hashlib.blake2b(entry.encode(errors="replace"), digest_size=8, key=kind.encode())
    return int.from_bytes(digest.digest(), "little")


def hashes_of(record: schema.Record, kinds: Iterable[str]) -> list[int]:
    """What the record would be listed as: the hash of its key, of its URL, or of both."""
    found = []
    for kind in kinds:
        value = record.key if kind == "key" else record.meta.get("url")
        if isinstance(value, str):
            found.append(_hash(kind, value.strip()))
    return found


@dataclasses.dataclass(frozen=True)
class ByList:
    """A judge (see `routing`) that sends the records listed to one dataset.

    Attributes:
        listing: the list.
        duplicates: are dropped, listed or not.
        dataset: name of the dataset.
        domain: of the list's images; "" leaves the records' own.
    """

    listing: Listing
    duplicates: duplicates_lib.Duplicates
    dataset: str
    domain: str

    def __call__(self, index: int, outcomes: routing.Outcomes) -> routing.Routes:
        known = self.listing.load()
        dropped = self.duplicates.of(index)
        for row, outcome in enumerate(outcomes):
            if isinstance(outcome, engine.Drop):
                yield outcome
            elif row in dropped:
                if dropped[row] != outcome.key:
                    raise UserError(
                        f"{self.duplicates.path}: row {row} of shard {index} is {dropped[row]!r}, "
                        f"but {outcome.key!r} in the pool; deduplicate this pool"
                    )
                yield engine.Drop("duplicate")
            elif _listed(known, hashes_of(outcome, self.listing.kinds)):
                record = routing.placed(outcome, self.domain) if self.domain else outcome
                yield writing.Routed(record, (self.dataset,), "")
            else:
                yield engine.Drop("not_listed")


def _listed(known: UInt64[np.ndarray, " n"], hashes: list[int]) -> list[int]:
    """Those of the hashes that are known."""
    found = []
    for value in hashes:
        place = int(np.searchsorted(known, np.uint64(value)))
        if place < len(known) and int(known[place]) == value:
            found.append(value)
    return found


def matched(listing: Listing, written: dataset.Dataset) -> int:
    """How many of the list's entries the records written are."""
    known = listing.load()
    seen = np.zeros(len(known), bool)
    for shard in written.shards():
        for record in shard:
            if not isinstance(record, shards.RecordError):
                for value in _listed(known, hashes_of(record, listing.kinds)):
                    seen[np.searchsorted(known, np.uint64(value))] = True
    return int(seen.sum())


def withdraw(written: dataset.Dataset, listing: Listing) -> None:
    """Removes a dataset that a list has left empty, and raises UserError that says so."""
    shutil.rmtree(written.path)
    what = " or ".join(listing.kinds)
    raise UserError(
        f"{listing.path}: none of its {listing.entries:,} entries is the {what} of any of the "
        f"{written.manifest.seen:,} items of the pool; a key is `<shard>/<member>`, a URL the "
        "`url` of an image's json"
    )
