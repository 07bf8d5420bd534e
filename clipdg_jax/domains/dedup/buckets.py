"""Records laid out on the disk by the centroids that they are near to.

Three steps, each of which goes on where it was stopped. Every record's nearest centroids are
written shard by shard. Their counts give every bucket its place in one file, before anything is
copied, so that a bucket too large for the memory is told of early. Then signatures and embeddings
are copied to their places, as much at a time as fits; copying a shard twice writes the same bytes
to the same places.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float32, Int32, Int64

from clipdg_jax.data import engine, files
from clipdg_jax.domains.dedup import hashes, kmeans, signatures
from clipdg_jax.errors import UserError


def entry(width: int, thumbnails: bool) -> np.dtype:
    """What a bucket holds of a record: number, pixels, hashes, thumbnails, embedding (float16)."""
    return np.dtype(
        [
            ("row", np.int64),
            ("pixels", np.int64),
            *(
                [
                    ("phash", np.uint64),
                    ("mirror", np.uint64),
                    ("thumbnail", np.uint8, (hashes.SIDE, hashes.SIDE)),
                    ("colours", np.uint8, (hashes.COLOUR_SIDE, hashes.COLOUR_SIDE, 2)),
                ]
                if thumbnails
                else []
            ),
            ("embedding", np.float16, (width,)),
        ]
    )


@dataclasses.dataclass(frozen=True)
class Numbered:
    """A shard of the engine with one item: the number of a shard of signatures, or of a bucket."""

    name: str
    number: int

    def __iter__(self) -> Iterator[int]:
        yield self.number


@dataclasses.dataclass(frozen=True)
class ArraySink:
    """Writes the one array that comes from each input to a .npy file in `directory`."""

    directory: Path

    def open(self, index: int) -> _ArrayOutput:
        return _ArrayOutput(self.directory / f"{index:06d}.npy")


class _ArrayOutput:
    def __init__(self, path: Path):
        self._path = path
        self._array: np.ndarray | None = None

    def write(self, array: np.ndarray) -> None:
        self._array = array

    def commit(self) -> dict[str, Any]:
        assert self._array is not None
        signatures.save_array(self._path, self._array)
        return {"rows": len(self._array)}

    def discard(self) -> None:
        self._array = None


def assign(
    signed: signatures.Signatures,
    taking_part: Bool[np.ndarray, " n"],
    centroids: Float32[np.ndarray, "k d"],
    probes: int,
    work: Path,
) -> None:
    """Writes the nearest centroids of every record; -1 where it does not take part.

    Neither does a record whose embedding is 0: nothing is known of it.
    """
    on_device = jnp.asarray(centroids)

    def one(shard: int) -> Int32[np.ndarray, "rows probes"]:
        part = taking_part[signed.starts[shard] : signed.starts[shard + 1]]
        embeddings = signed.embeddings(shard)
        part = part & embeddings.any(axis=1) if len(part) else part
        found = np.full((len(part), probes), -1, np.int32)
        found[part] = kmeans.nearest(embeddings[part], on_device, probes)
        return found

    engine.map_shards(
        [Numbered(f"{i:06d}", i) for i in range(signed.shards)],
        engine.Each(one),
        ArraySink(work),
        work,
        config={"probes": probes},
        title="buckets",
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """Where the buckets are in their file.

    Attributes:
      path: of the file.
      starts: entry number of each bucket's begin, and, last, of all entries.
      dtype: of an entry.
    """

    path: Path
    starts: Int64[np.ndarray, " k1"]
    dtype: np.dtype

    @property
    def bytes(self) -> int:
        return int(self.starts[-1]) * self.dtype.itemsize

    def sizes(self) -> Int64[np.ndarray, " k"]:
        return np.diff(self.starts)

    def read(self, bucket: int) -> np.ndarray:
        """The entries of one bucket."""
        first, last = self.starts[bucket : bucket + 2].tolist()
        size = self.dtype.itemsize
        return np.fromfile(self.path, self.dtype, last - first, offset=first * size)


def lay_out(
    signed: signatures.Signatures,
    work: Path,
    path: Path,
    count: int,
    dtype: np.dtype,
) -> Layout:
    """Gives every bucket its place by what `assign` wrote to `work`."""
    sizes = np.zeros(count, np.int64)
    for shard in range(signed.shards):
        sizes += _counts(_assigned(work, shard), count)
    return Layout(path, np.concatenate([[0], np.cumsum(sizes)]), dtype)


def check(layout: Layout, available: int, ram_gib: float, needed_per_entry: int) -> None:
    """Raises UserError, naming the bucket, where one is too large for the memory.

    Args:
      available: bytes that a bucket may take.
      ram_gib: the bound that the user gave.
      needed_per_entry: bytes that working on a bucket takes for each of its records.
    """
    sizes = layout.sizes()
    bucket = int(sizes.argmax())
    needed = int(sizes[bucket]) * needed_per_entry
    if needed > available:
        short = (needed - available) / 2**30
        raise UserError(
            f"{layout.path}: bucket {bucket} has {sizes[bucket]:,} records and needs "
            f"{needed / 2**30:.3g} GiB, {short:.3g} more than config.ram_gib={ram_gib:g} leaves; "
            f"run again with config.ram_gib={ram_gib + short + 0.01:.2f} or more, or in another "
            "--workdir with a smaller config.buckets.size"
        )


def fill(signed: signatures.Signatures, work: Path, layout: Layout, available: int) -> None:
    """Copies all records to their buckets, `available` bytes at a time.

    Raises UserError where the disk is full.
    """
    progress = layout.path.with_suffix(".json")
    done = json.loads(progress.read_text())["shards"] if progress.exists() else 0
    if done == signed.shards:
        return
    try:
        with open(layout.path, "r+b" if layout.path.exists() else "w+b") as file:
            file.truncate(layout.bytes)
            _fill(signed, work, layout, available, file.fileno(), progress, done)
    except OSError as error:
        files.raise_if_unwritable(layout.path, error)
        raise


def _fill(
    signed: signatures.Signatures,
    work: Path,
    layout: Layout,
    available: int,
    file: int,
    progress: Path,
    done: int,
) -> None:
    count = len(layout.starts) - 1
    cursor = layout.starts[:-1].copy()
    for shard in range(done):
        cursor += _counts(_assigned(work, shard), count)
    held: list[np.ndarray] = []
    places: list[np.ndarray] = []
    size = 0
    for shard in range(done, signed.shards):
        for entries, buckets in _entries(signed, work, shard, layout.dtype):
            held.append(entries)
            places.append(buckets)
            # Entries, all of them together, the same sorted, and their order.
            size += 3 * entries.nbytes + 16 * len(entries)
            if size >= available:
                _write(held, places, cursor, layout, file)
                held, places, size = [], [], 0
        if not held:  # Everything up to here is written.
            os.fsync(file)
            files.write_json(progress, {"shards": shard + 1})
    _write(held, places, cursor, layout, file)
    os.fsync(file)
    files.write_json(progress, {"shards": signed.shards})


# Records of a shard that are brought together at a time.
_PART = 1 << 14


def _entries(
    signed: signatures.Signatures, work: Path, shard: int, dtype: np.dtype
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The entries of one shard with their buckets, one for each probe."""
    assigned = _assigned(work, shard)
    assert dtype.names is not None
    columns = [name for name in ("phash", "mirror", "thumbnail", "colours") if name in dtype.names]
    table = signed.table(shard, columns) if columns else pa.table({})
    pixels, embeddings = signed.pixels(shard), signed.embeddings(shard)
    for first in range(0, len(assigned), _PART):
        part = assigned[first : first + _PART]
        rows = np.flatnonzero(part[:, 0] >= 0) + first
        made = np.zeros(len(rows), dtype)
        made["row"] = rows + signed.starts[shard]
        made["pixels"] = pixels[rows]
        made["embedding"] = embeddings[rows]
        for name in table.column_names:
            column = table.column(name).take(rows)
            if pa.types.is_integer(column.type):
                made[name] = column.to_numpy()
            else:
                pictures = np.frombuffer(b"".join(column.to_pylist()), np.uint8)
                made[name] = pictures.reshape(-1, *dtype[name].shape)
        yield np.repeat(made, part.shape[1]), assigned[rows].ravel()


def _write(
    held: list[np.ndarray], places: list[np.ndarray], cursor: np.ndarray, layout: Layout, file: int
) -> None:
    """Writes entries to their buckets, one piece for each bucket, and moves the cursors on."""
    if not held:
        return
    entries, buckets = np.concatenate(held), np.concatenate(places)
    by = np.argsort(buckets, kind="stable")
    entries, buckets = entries[by], buckets[by]
    cuts = np.flatnonzero(np.diff(buckets, prepend=-1, append=np.iinfo(np.int32).max))
    for first, last in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True):
        bucket = buckets[first]
        data = memoryview(entries[first:last].tobytes())
        place = int(cursor[bucket]) * layout.dtype.itemsize
        while data:  # The system may write less than it is given.
            written = os.pwrite(file, data, place)
            data, place = data[written:], place + written
        cursor[bucket] += last - first


def _assigned(work: Path, shard: int) -> Int32[np.ndarray, "rows probes"]:
    path = work / f"{shard:06d}.npy"
    try:
        return np.load(path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: is damaged ({error}); remove {work} to make the buckets anew"
        ) from error


def _counts(assigned: np.ndarray, count: int) -> np.ndarray:
    return np.bincount(assigned[assigned >= 0], minlength=count)
