"""What is kept of every record of a pool, so that its image need not be read again.

A pass of the shard engine: one row for each item that a shard yields, in order, whatever becomes of
it. Beside the Parquet file of a shard lies, where embeddings are wanted, an array of them.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32, UInt8

from clipdg_jax.data import engine, files, images
from clipdg_jax.data import pool as pool_lib
from clipdg_jax.domains.dedup import descriptor, hashes
from clipdg_jax.errors import UserError

BATCH = 256

_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("error", pa.string()),  # Why it takes part in no comparison; else null.
        ("sha256", pa.binary(32)),
        ("phash", pa.uint64()),
        ("mirror", pa.uint64()),  # The hash of the mirror image.
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("copy_of", pa.string()),  # The demo world's truth, else null.
        ("copy", pa.string()),
    ]
)
# What the eye compares: `hashes.thumbnail` and `hashes.colours`.
_PICTURES = (
    pa.field("thumbnail", pa.binary(hashes.SIDE**2)),
    pa.field("colours", pa.binary(2 * hashes.COLOUR_SIDE**2)),
)
PICTURE_BYTES = sum(field.type.byte_width for field in _PICTURES)


class Encoder(Protocol):
    """What embeds images; see `domains.encoder.Encoder`."""

    @property
    def image_size(self) -> int: ...

    def features(self, images: UInt8[np.ndarray, "n s s 3"]) -> Float32[np.ndarray, "n e"]: ...


@dataclasses.dataclass(frozen=True)
class Row:
    """The signature of one item; `embedding` is None where none is wanted."""

    values: dict[str, Any]
    embedding: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class _Decoded:
    """A record with what can be said of it without looking at others."""

    values: dict[str, Any]
    thumbnail: np.ndarray
    crop: np.ndarray | None  # What the encoder is fed.


@dataclasses.dataclass(frozen=True)
class Sign:
    """The shard engine's function: from the items of a shard to a `Row` for each.

    Attributes:
      embed: whether embeddings are wanted.
      encoder: gives them; None: `descriptor.describe` does. With an encoder this cannot be sent
        to another process.
      threads: that decode for the encoder while it computes.
    """

    embed: bool
    encoder: Encoder | None = None
    threads: int = 2

    def __call__(self, items: Iterator[Any]) -> Iterator[Row]:
        cv2.setNumThreads(1)
        outcomes = pool_lib.ToRecords(keep_uncaptioned=True)(items)
        batches = iter(lambda: list(itertools.islice(outcomes, BATCH)), [])
        if self.encoder is None:
            for batch in batches:
                yield from self._rows(map(self._decode, batch))
            return
        with concurrent.futures.ThreadPoolExecutor(self.threads) as threads:
            # One batch is decoded while the encoder has the one before.
            waiting: collections.deque[Iterator[_Decoded]] = collections.deque()
            for batch in batches:
                waiting.append(threads.map(self._decode, batch))
                if len(waiting) > 1:
                    yield from self._rows(waiting.popleft())
            while waiting:
                yield from self._rows(waiting.popleft())

    def _decode(self, outcome: Any) -> _Decoded:
        nothing = np.zeros((hashes.SIDE, hashes.SIDE), np.uint8)
        if isinstance(outcome, engine.Drop):
            return _Decoded({"key": "", "error": outcome.reason}, nothing, None)
        values = {"key": outcome.key}
        for name in ("copy_of", "copy"):
            values[name] = outcome.meta.get(name)
        try:
            image = images.decode(outcome.image)
        except images.ImageError:
            return _Decoded({**values, "error": "corrupt_image"}, nothing, None)
        height, width = image.shape[:2]
        digest = bytes.fromhex(hashes.sha256(outcome.image))
        values |= {"sha256": digest, "width": width, "height": height}
        values["colours"] = hashes.colours(image).tobytes()
        crop = None if self.encoder is None else images.eval_crop(image, self.encoder.image_size)
        return _Decoded(values, hashes.thumbnail(image), crop)

    def _rows(self, batch: Iterator[_Decoded]) -> Iterator[Row]:
        decoded = list(batch)
        thumbnails = np.stack([one.thumbnail for one in decoded])
        own, mirror = (column.tolist() for column in hashes.phashes(thumbnails))
        embeddings = self._embeddings(decoded, thumbnails) if self.embed else [None] * len(decoded)
        for i, one in enumerate(decoded):
            values = dict(one.values)
            if "error" not in values:
                values |= {"phash": own[i], "mirror": mirror[i]}
                values["thumbnail"] = thumbnails[i].tobytes()
            yield Row(values, embeddings[i])

    def _embeddings(self, decoded: Sequence[_Decoded], thumbnails: np.ndarray) -> np.ndarray:
        if self.encoder is None:
            return descriptor.describe(thumbnails)
        size = self.encoder.image_size
        crops = np.zeros((len(decoded), size, size, 3), np.uint8)
        for crop, one in zip(crops, decoded, strict=True):
            if one.crop is not None:
                crop[:] = one.crop
        readable = np.array([one.crop is not None for one in decoded])
        return self.encoder.features(crops) * readable[:, None]


@dataclasses.dataclass(frozen=True)
class Sink:
    """Writes the signatures of each shard to `directory`.

    `thumbnails` says whether thumbnails are kept: a kilobyte for each record.
    """

    directory: Path
    thumbnails: bool

    def open(self, index: int) -> _Output:
        return _Output(self.directory / f"{index:06d}", self.thumbnails)


class _Output:
    def __init__(self, path: Path, thumbnails: bool):
        self._path = path
        fields = [*_SCHEMA, *(_PICTURES if thumbnails else ())]
        self._columns: dict[str, list[Any]] = {field.name: [] for field in fields}
        self._schema = pa.schema(fields)
        self._embeddings: list[np.ndarray] = []

    def write(self, row: Row) -> None:
        for name, values in self._columns.items():
            values.append(row.values.get(name))
        if row.embedding is not None:
            self._embeddings.append(row.embedding.astype(np.float16))

    def commit(self) -> dict[str, Any]:
        table = pa.table(self._columns, self._schema)
        if self._embeddings:
            save_array(self._path.with_suffix(".npy"), np.stack(self._embeddings))
        with files.whole(self._path.with_suffix(".parquet")) as unfinished:
            pq.write_table(table, unfinished, compression="zstd", compression_level=1)
        reasons = collections.Counter(r for r in self._columns["error"] if r is not None)
        return {"rows": len(table), "errors": dict(sorted(reasons.items()))}

    def discard(self) -> None:
        self._columns = {}


def save_array(path: Path, array: np.ndarray) -> None:
    """Writes an array to a .npy file, whole or not at all."""
    with files.whole(path) as unfinished, open(unfinished, "wb") as file:
        np.save(file, array)


@dataclasses.dataclass(frozen=True)
class Member:
    """A pool among those compared: its name, its shards' share of all shards."""

    name: str
    first: int
    shards: int


class Signatures:
    """The finished signatures of several pools, whose shards and rows are numbered through.

    Attributes:
      members: the pools, references first; the last is the one to be deduplicated.
      starts: number of the first row of each shard, and, last, of all rows.
      errors: rows that take part in no comparison, by reason.
    """

    def __init__(self, directory: Path, members: Sequence[Member]):
        self._directory = directory
        self.members = tuple(members)
        self.shards = sum(member.shards for member in members)
        reports = [engine.read_report(directory, i) for i in range(self.shards)]
        rows = [report["output"]["rows"] for report in reports]
        self.starts = np.concatenate([[0], np.cumsum(rows, dtype=np.int64)])
        pool = members[-1]
        self.errors: collections.Counter[str] = collections.Counter()
        for report in reports[pool.first :]:
            self.errors.update(report["output"]["errors"])
            self.errors.update(report["dropped"])

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def pool_start(self) -> int:
        """Number of the first row that is the pool's; those before are references."""
        return int(self.starts[self.members[-1].first])

    def table(self, shard: int, columns: Sequence[str]) -> pa.Table:
        """Columns of the rows of one shard. Raises UserError where the file is damaged."""
        path = self._directory / f"{shard:06d}.parquet"
        try:
            return pq.read_table(path, columns=list(columns))
        except (OSError, KeyError, pa.ArrowException) as error:
            raise _damaged(path, error) from error

    def embeddings(self, shard: int) -> np.ndarray:
        """float16 [rows, width] of one shard, mapped from the disk; rows of errors are 0."""
        path = self._directory / f"{shard:06d}.npy"
        rows = int(self.starts[shard + 1] - self.starts[shard])
        if rows == 0:  # No row, no file.
            return np.zeros((0, self.width), np.float16)
        try:
            array = np.load(path, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise _damaged(path, error) from error
        if len(array) != rows:
            raise _damaged(path, f"{len(array)} rows, not {rows}")
        return array

    @property
    def width(self) -> int:
        """Of an embedding; 0 where there is none at all."""
        first = next(iter(sorted(self._directory.glob("*.npy"))), None)
        return 0 if first is None else int(np.load(first, mmap_mode="r").shape[1])

    def pixels(self, shard: int) -> np.ndarray:
        """int64 [rows]: width x height; `REFERENCE` for all of a reference; 0 for an error."""
        if shard < self.members[-1].first:
            sound = self.table(shard, ["error"]).column("error").is_null().to_numpy()
            return np.where(sound, REFERENCE, 0)
        table = self.table(shard, ["width", "height"])
        width, height = (table.column(name).fill_null(0).to_numpy() for name in table.column_names)
        return width.astype(np.int64) * height

    def keys(self, rows: np.ndarray) -> pa.ChunkedArray:
        """The keys (large_string) of these rows (sorted, by number), in their order."""
        cuts = np.searchsorted(rows, self.starts)
        parts = []
        for shard in np.flatnonzero(np.diff(cuts)).tolist():
            own = rows[cuts[shard] : cuts[shard + 1]] - self.starts[shard]
            found = self.table(shard, ["key"]).column("key").take(own)
            parts += found.cast(pa.large_string()).chunks
        return pa.chunked_array(parts, pa.large_string())

    def member(self, row: int) -> str:
        """The name of the pool that holds a row."""
        return next(m.name for m in reversed(self.members) if row >= self.starts[m.first])


# More pixels than any image has: references are preferred to all others.
REFERENCE = 1 << 62


def _damaged(path: Path, what: object) -> UserError:
    told = " ".join(str(what).split())
    return UserError(f"{path}: is damaged ({told}); remove its folder to sign the pool again")


def sign(
    sources: Sequence[engine.InputShard],
    work: Path,
    function: Sign,
    *,
    thumbnails: bool,
    processes: int,
    process_index: int,
    process_count: int,
) -> None:
    """Writes the signatures of the shards that are this host's and are not done.

    Raises like `engine.map_shards`.
    """
    engine.map_shards(
        sources,
        function,
        Sink(work, thumbnails),
        work,
        config={"embed": function.embed, "thumbnails": thumbnails},
        processes=0 if function.encoder is not None else processes,
        process_index=process_index,
        process_count=process_count,
        title="signatures",
    )
