"""Parts of a dataset, and the shards that they are joined to.

Each input shard gives part files. When all are there, neighbouring parts are joined, in input
order, to shards of about the wanted size. Parts are read once, front to back, and soon: they are
plain files of records one after the other, which cost half of what ArrayRecord files would.
"""

from __future__ import annotations

import contextlib
import dataclasses
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from clipdg_jax.data import engine, files, schema, shard_workers, shards

_BUFFER = 1 << 20  # bytes written or read at once
_WORTH_A_PROCESS = 256 << 20  # bytes that are joined while a worker process starts
_HEAD = struct.Struct("<QI")  # before each record: its length and its CRC-32


@dataclasses.dataclass(frozen=True)
class Part:
    """One part file, and the bytes of its records."""

    file: str
    payload: int


class PartWriter:
    """Writes the records of input shard `index` to parts of at most about `target_bytes`.

    The parts are files in `directory`, named by the input shard and their own number; each
    appears whole or not at all. After an error nothing unfinished stays.

    Raises UserError when the disk is full.
    """

    def __init__(self, directory: Path, index: int, target_bytes: int):
        self._directory = directory
        self._index = index
        self._target = target_bytes
        self._file: IO[bytes] | None = None
        self._path = directory
        self._payload = 0
        self._parts: list[Part] = []

    def write(self, data: bytes) -> None:
        """Appends one serialised record."""
        if self._file is not None and self._payload + len(data) > self._target:
            self._end_part()
        if self._file is None:
            name = f"{self._index:06d}-{len(self._parts):04d}.records"
            self._path, self._payload = self._directory / name, 0
        with files.discarding(self._path, self.discard):
            if self._file is None:
                unfinished = files.temporary(self._path)
                self._file = open(unfinished, "wb", buffering=_BUFFER)  # noqa: SIM115 - kept open
            self._file.write(_HEAD.pack(len(data), zlib.crc32(data)))
            self._file.write(data)
        self._payload += len(data)

    def _end_part(self) -> None:
        if self._file is not None:
            with files.discarding(self._path, self.discard):
                self._file.close()
                files.publish(files.temporary(self._path), self._path)
            self._file = None
            self._parts.append(Part(self._path.name, self._payload))

    def close(self) -> list[dict[str, Any]]:
        """Completes the parts and returns them for a report."""
        self._end_part()
        return [dataclasses.asdict(part) for part in self._parts]

    def discard(self) -> None:
        """Gives up the part that is being written. Harmless after `close` or an error."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None
            files.temporary(self._path).unlink(missing_ok=True)


def read_part(path: Path, part: Part) -> Iterator[bytes]:
    """The serialised records of a part; OSError when it is not as it was written."""
    payload = 0
    with open(path, "rb", buffering=_BUFFER) as file:
        while head := file.read(_HEAD.size):
            if len(head) < _HEAD.size:
                break
            length, crc = _HEAD.unpack(head)
            data = file.read(length)
            if zlib.crc32(data) != crc:
                raise OSError(f"{path}: was changed since it was written; the disk is failing")
            payload += length
            yield data
    if payload != part.payload:
        raise OSError(f"{path}: has {payload} of {part.payload} bytes; the disk is failing")


def group_by_size(sizes: Sequence[int], target: int) -> list[list[int]]:
    """Runs of neighbouring indices whose sizes sum to at most `target`; at least one run.

    A size above `target` stands alone. No sizes at all give one empty run.
    """
    groups: list[list[int]] = [[]]
    total = 0
    for index, size in enumerate(sizes):
        if groups[-1] and total + size > target:
            groups.append([])
            total = 0
        groups[-1].append(index)
        total += size
    return groups


@dataclasses.dataclass(frozen=True)
class Joined:
    """A dataset whose parts are to be joined.

    Attributes:
        parts: all of them, in order. Each is removed once its shard is there.
        work: directory of the parts.
        out: directory of the shards.
        name, split: of the dataset; they give the shards their names.
    """

    parts: Sequence[Part]
    work: Path
    out: Path
    name: str
    split: str


@dataclasses.dataclass(frozen=True)
class _Group:
    """Parts that become one shard; as input of the engine, their serialised records."""

    path: Path
    directory: Path
    parts: Sequence[Part]

    @property
    def name(self) -> str:
        return self.path.name

    def __iter__(self) -> Iterator[bytes]:
        for part in self.parts:
            yield from read_part(self.directory / part.file, part)

    def remove_parts(self) -> None:
        for part in self.parts:
            (self.directory / part.file).unlink(missing_ok=True)


def _groups(joined: Joined, target_bytes: int) -> list[_Group]:
    grouped = group_by_size([part.payload for part in joined.parts], target_bytes)
    return [
        _Group(
            joined.out / schema.shard_name(joined.name, joined.split, number, len(grouped)),
            joined.work,
            [joined.parts[member] for member in members],
        )
        for number, members in enumerate(grouped)
    ]


def _same(item: bytes) -> bytes:
    return item


@dataclasses.dataclass(frozen=True)
class _ShardSink:
    """Writes each group of parts to its shard."""

    paths: Mapping[int, Path]

    def open(self, index: int) -> _ShardOutput:
        return _ShardOutput(self.paths[index])


class _ShardOutput:
    def __init__(self, path: Path):
        self._writer = shards.ShardWriter(path)

    def write(self, data: bytes) -> None:
        self._writer.write(data)

    def commit(self) -> dict[str, Any]:
        return dataclasses.asdict(self._writer.close())

    def discard(self) -> None:
        self._writer.discard()


def join(
    datasets: Sequence[Joined | None],
    reports: Path,
    *,
    target_bytes: int,
    workers: shard_workers.Workers,
) -> list[list[shards.ShardInfo]]:
    """Joins the parts of several datasets at once, or goes on doing so; returns their shards.

    Args:
        datasets: what to join; None stands for a dataset that is complete, and gives no shards.
        reports: directory in which it is kept what is done.
        target_bytes: aimed size of a shard.
        workers: who works; the present process where there is little to join.
    """
    # Shard k of dataset d has the number k * len(datasets) + d, which stays the same when another
    # dataset is completed and the run goes on after that.
    groups = {
        number * len(datasets) + place: group
        for place, joined in enumerate(datasets)
        if joined is not None
        for number, group in enumerate(_groups(joined, target_bytes))
    }
    files.make_directory(reports)
    size = sum(part.payload for group in groups.values() for part in group.parts)
    little = not workers.started and size < _WORTH_A_PROCESS
    engine.run(
        groups,
        engine.Each(_same),
        _ShardSink({index: group.path for index, group in groups.items()}),
        reports,
        indices=sorted(groups),
        workers=shard_workers.Workers(1) if little else workers,
        title="joining " + ", ".join(joined.name for joined in datasets if joined is not None),
        finished=lambda index: groups[index].remove_parts(),
    )
    found: list[list[shards.ShardInfo]] = [[] for _ in datasets]
    for index in sorted(groups):
        report = engine.read_report(reports, index)
        found[index % len(datasets)].append(shards.ShardInfo(**report["output"]))
    return found
