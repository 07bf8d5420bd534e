"""ArrayRecord files: written whole or not at all, read at random by many threads."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import resource
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from array_record.python import array_record_module

from clipdg_jax.data import files
from clipdg_jax.errors import UserError

_WRITER_OPTIONS = "group_size:1,uncompressed"
# The buffer makes a range of records one read of up to 16 MB, and costs a single record nothing.
# No thread per reader: there may be hundreds of readers.
_READER_OPTIONS = "readahead_buffer_size:16777216,max_parallelism:0"
_READER_BUFFER = 32 * 1024
_CHUNK = 64


class RecordError(Exception):
    """One record cannot be read; the others of its shard can."""


@dataclasses.dataclass(frozen=True, slots=True)
class ShardInfo:
    """What the manifest says of one shard: file name, record count, bytes on disk, sha256."""

    file: str
    records: int
    bytes: int
    sha256: str


class ShardWriter:
    """Writes one ArrayRecord file under a temporary name.

    `close()` ends it: the file is closed, opened again, counted, hashed and renamed. `discard()`
    gives it up. After an error the temporary file is gone already.

    Raises UserError when the disk is full.
    """

    def __init__(self, path: Path):
        self.path = path
        self.records = 0
        self.payload = 0  # bytes of the records themselves
        self._temporary = files.temporary(path)
        self._writer: Any = None
        with files.discarding(self.path, self.discard):
            # Opening it ourselves first gives a proper error where it cannot be written.
            open(self._temporary, "wb").close()
            name = str(self._temporary)
            self._writer = array_record_module.ArrayRecordWriter(name, _WRITER_OPTIONS)

    def write(self, data: bytes) -> None:
        """Appends one record."""
        with files.discarding(self.path, self.discard):
            self._writer.write(data)
        self.records += 1
        self.payload += len(data)

    def close(self) -> ShardInfo:
        """Completes the file under its real name and returns what the manifest needs."""
        with files.discarding(self.path, self.discard):
            self._writer.close()
            counted = _open(self._temporary).num_records()
            if counted != self.records:
                raise OSError(f"{self._temporary}: {counted} of {self.records} records arrived")
            info = ShardInfo(
                file=self.path.name,
                records=self.records,
                bytes=self._temporary.stat().st_size,
                sha256=files.sha256(self._temporary),
            )
            files.publish(self._temporary, self.path)
        return info

    def discard(self) -> None:
        """Gives the file up; nothing of it stays. Harmless after `close` or an error."""
        with contextlib.suppress(Exception):
            self._writer.close()
        self._temporary.unlink(missing_ok=True)


def _open(path: Path) -> Any:
    """Opens an ArrayRecord file. A missing, truncated or unclosed one is an OSError."""
    try:
        reader = array_record_module.ArrayRecordReader(
            str(path), _READER_OPTIONS, file_reader_buffer_size=_READER_BUFFER
        )
    except RuntimeError as error:
        raise OSError(f"{path}: {error}") from error
    if not reader.ok():  # a missing or truncated file does not always raise
        raise OSError(f"{path}: missing, truncated or not an ArrayRecord file")
    return reader


def _default_open_limit() -> int:
    """At most half of the process's file descriptors, and no more than 512."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 512 if soft == resource.RLIM_INFINITY else max(8, min(512, soft // 2))


class _ReaderCache:
    """The most recently used open readers of this process, at most `limit` of them."""

    def __init__(self, limit: int):
        self.limit = limit
        self._readers: collections.OrderedDict[Any, Any] = collections.OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Any, path: Path, records: int) -> Any:
        with self._lock:
            reader = self._readers.get(key)
            if reader is not None:
                self._readers.move_to_end(key)
                return reader
        # Opened outside the lock: another thread may open the same file too, which is harmless.
        reader = open_counted(path, records)
        with self._lock:
            self._readers[key] = reader
            while len(self._readers) > self.limit:
                # Only the reference goes: a thread still reading keeps the file open until done.
                self._readers.popitem(last=False)
        return reader


_CACHE = _ReaderCache(_default_open_limit())


def open_counted(path: Path, records: int) -> Any:
    """Opens a shard and checks that it holds `records` records; UserError names the shard."""
    try:
        reader = _open(path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be opened as a shard ({error}); restore it or write the dataset again"
        ) from error
    if reader.num_records() != records:
        raise UserError(
            f"{path}: holds {reader.num_records()} records; its manifest says {records}; "
            "restore the file or write the dataset again"
        )
    return reader


class ShardReader:
    """Random access to one shard, by any number of threads; cheap to make and to pickle.

    Files are opened when first read. All readers of a process share one set of open files, so
    that ten thousand shards fit an ordinary limit of file descriptors.
    """

    def __init__(self, path: Path, info: ShardInfo):
        self.path = path
        self.info = info

    def read(self, index: int) -> bytes:
        """The bytes of record `index`.

        Raises:
            RecordError: the record's own bytes are damaged.
            UserError: the shard cannot be opened or holds another number of records.
        """
        reader = _CACHE.get((self.path, self.info.sha256), self.path, self.info.records)
        return _read(reader, self.path, index)

    def read_range(self, start: int, stop: int) -> list[bytes | RecordError]:
        """Records `start` to `stop` - 1, read together; a damaged one is its RecordError.

        Raises UserError like `read`.
        """
        reader = _CACHE.get((self.path, self.info.sha256), self.path, self.info.records)
        return _read_range(reader, self.path, start, stop)

    def read_all(self) -> Iterator[bytes | RecordError]:
        """All records in order; a damaged one is yielded as its RecordError."""
        reader = open_counted(self.path, self.info.records)
        for start in range(0, self.info.records, _CHUNK):
            yield from _read_range(reader, self.path, start, min(start + _CHUNK, self.info.records))


def _read(reader: Any, path: Path, index: int) -> bytes:
    try:
        # A range, not a list of indices: the latter costs time in proportion to the shard.
        return reader.read(index, index + 1)[0]
    except (RuntimeError, IndexError, ValueError) as error:
        raise RecordError(f"{path}: record {index} cannot be read ({error})") from error


def _read_range(reader: Any, path: Path, start: int, stop: int) -> list[bytes | RecordError]:
    try:
        return reader.read(start, stop)
    except (RuntimeError, IndexError, ValueError):
        pass  # one of them is damaged: find out which
    found: list[bytes | RecordError] = []
    for index in range(start, stop):
        try:
            found.append(_read(reader, path, index))
        except RecordError as error:
            found.append(error)
    return found
