"""Writing a dataset with the shard engine: parts, then shards of about the same size.

Each input shard gives part files in `<dataset>/.parts`. When all are there, neighbouring parts
are joined, in input order, to shards of about `target_shard_bytes`, and the manifest is written
last. Both steps are resumable, so that a job killed at any point ends with the same bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from clipdg_jax.data import dataset, engine, files, schema, shards
from clipdg_jax.errors import UserError

TARGET_SHARD_BYTES = 1 << 30
_PARTS = ".parts"


@dataclasses.dataclass(frozen=True)
class RecordSink:
    """Writes the records of each input shard to part files of at most about `target_bytes`."""

    work: Path
    target_bytes: int

    def open(self, index: int) -> _PartsOutput:
        return _PartsOutput(self.work, index, self.target_bytes)


class _PartsOutput:
    def __init__(self, work: Path, index: int, target_bytes: int):
        self._work = work
        self._index = index
        self._target = target_bytes
        self._writer: shards.ShardWriter | None = None
        self._parts: list[dict[str, Any]] = []

    def write(self, record: schema.Record) -> None:
        data = schema.encode(record)
        if self._writer is not None and self._writer.payload + len(data) > self._target:
            self._close()
        if self._writer is None:
            name = f"{self._index:06d}-{len(self._parts):04d}.array_record"
            self._writer = shards.ShardWriter(self._work / name)
        self._writer.write(data)

    def _close(self) -> None:
        if self._writer is not None:
            info = self._writer.close()
            payload = self._writer.payload
            self._parts.append({**dataclasses.asdict(info), "payload": payload})
            self._writer = None

    def commit(self) -> list[dict[str, Any]]:
        self._close()
        return self._parts

    def discard(self) -> None:
        if self._writer is not None:
            self._writer.discard()


@dataclasses.dataclass(frozen=True)
class _Part:
    """One part file: what the manifest would say of it, and the bytes of its records."""

    info: shards.ShardInfo
    payload: int


@dataclasses.dataclass(frozen=True)
class _Group:
    """Parts that become one shard; as input of the engine, their serialised records."""

    name: str
    paths: Sequence[Path]
    parts: Sequence[_Part]

    def __iter__(self) -> Iterator[bytes]:
        for path, part in zip(self.paths, self.parts, strict=True):
            for data in shards.ShardReader(path, part.info).read_all():
                if isinstance(data, shards.RecordError):
                    raise data  # our own file, just written: the disk is failing
                yield data


def _same(item: bytes) -> bytes:
    return item


@dataclasses.dataclass(frozen=True)
class _ShardSink:
    """Writes each group of parts to the shard that has its name."""

    directory: Path
    names: Sequence[str]

    def open(self, index: int) -> _ShardOutput:
        return _ShardOutput(self.directory / self.names[index])


class _ShardOutput:
    def __init__(self, path: Path):
        self._writer = shards.ShardWriter(path)

    def write(self, data: bytes) -> None:
        self._writer.write(data)

    def commit(self) -> dict[str, Any]:
        return dataclasses.asdict(self._writer.close())

    def discard(self) -> None:
        self._writer.discard()


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


def dataset_name(out: Path) -> str:
    """The name that goes with a directory: TFDS wants letters, digits and underscores."""
    name = re.sub(r"[^A-Za-z0-9_]", "_", out.resolve().name)
    return name if name[:1].isalpha() else f"data_{name}"


def write_dataset(
    out: str | Path,
    source: Sequence[engine.InputShard],
    fn: engine.Fn,
    *,
    config: Mapping[str, Any],
    split: str = "train",
    classes: Sequence[str] = (),
    domain: str = "",
    tokenizer: str | None = None,
    parents: Sequence[Mapping[str, Any]] = (),
    target_shard_bytes: int = TARGET_SHARD_BYTES,
    processes: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    wait: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> dataset.Dataset | None:
    """Writes the records that `fn` makes of `source` as a dataset, or goes on doing so.

    Args:
        out: the dataset's directory; its last part gives the dataset's name.
        source: input shards.
        fn: from the items of one input shard to a `schema.Record` or `engine.Drop` for each.
        config: what the content depends on, kept in the manifest; JSON-able.
        split, classes, domain, tokenizer, parents: see `dataset.Manifest`.
        target_shard_bytes: aimed size of a shard.
        processes, process_index, process_count: see `engine.map_shards`.
        wait: when another process is writing `out`, wait for it instead of raising.
        say: gets a line when the dataset was there already, or when other hosts are slower.

    Returns:
        The dataset. On hosts other than the first, None once their share is done: the first
        waits for all shares and completes the dataset.

    Raises:
        UserError: `out` was written with another config, holds something else, or is being
            written by another process; no space left.
    """
    out = Path(out)
    name = dataset_name(out)
    identity = {
        **config,
        "target_shard_bytes": target_shard_bytes,
        "inputs": engine.source_digest(source),
    }
    work = out / _PARTS
    if _complete(out, identity):
        say(f"{out}: complete already, left as it is")
        shutil.rmtree(work, ignore_errors=True)  # there if it was killed just before the end
        return dataset.open_dataset(out)
    _check_unused(out)
    with engine.claim(work, identity, process_index=process_index, wait=wait):
        if not _complete(out, identity):  # another process may have completed it meanwhile
            engine.run(
                source,
                fn,
                RecordSink(work, target_shard_bytes),
                work,
                indices=range(process_index, len(source), process_count),
                processes=processes,
                title=name,
            )
            if process_index != 0:
                return None
            _wait_for_reports(work, len(source), say)
            counts, infos = _join(out, name, split, len(source), target_shard_bytes, processes)
            sizes = [(info.records, info.bytes) for info in infos]
            schema.write_tfds_metadata(out, name, {split: sizes}, classes)
            dataset.Manifest(
                name=name,
                split=split,
                shards=tuple(infos),
                classes=tuple(classes),
                domain=domain,
                tokenizer=tokenizer,
                config=identity,
                parents=tuple(parents),
                seen=counts.seen,
                dropped=dict(counts.dropped),
                faults=dict(counts.faults),
            ).save(out)
        shutil.rmtree(work, ignore_errors=True)  # one that waits for the lock may be there too
    return dataset.open_dataset(out)


def _complete(out: Path, identity: Mapping[str, Any]) -> bool:
    """Whether `out` is this very dataset; UserError when it is another one."""
    if not (out / dataset.MANIFEST).exists():
        return False
    engine.check_identity(out, dataset.Manifest.load(out).config, identity)
    return True


def _check_unused(out: Path) -> None:
    """UserError when `out` holds anything and is not a dataset that was begun."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        if os.listdir(out) and not (out / _PARTS).is_dir():
            raise UserError(
                f"{out}: holds files that are not a dataset; choose a new or an empty directory"
            )


def _wait_for_reports(work: Path, count: int, say: Callable[[str], None]) -> None:
    """Waits until the other hosts have done their shares."""
    left = [index for index in range(count) if not engine.report_path(work, index).exists()]
    if left:
        say(f"{work.parent}: waiting for {len(left)} input shards of other hosts")
    while not all(engine.report_path(work, index).exists() for index in left):
        time.sleep(1)


def _join(
    out: Path, name: str, split: str, inputs: int, target: int, processes: int
) -> tuple[engine.Counts, list[shards.ShardInfo]]:
    """Joins the parts to shards under their final names; returns all counts and the shards."""
    work = out / _PARTS
    counts = engine.Counts()
    parts = []
    for index in range(inputs):
        report = engine.read_report(work, index)
        counts.add(report)
        for part in report["output"]:
            payload = part.pop("payload")
            parts.append(_Part(shards.ShardInfo(**part), payload))

    grouped = group_by_size([part.payload for part in parts], target)
    names = [schema.shard_name(name, split, i, len(grouped)) for i in range(len(grouped))]
    groups = []
    for shard, members in zip(names, grouped, strict=True):
        chosen = [parts[member] for member in members]
        groups.append(_Group(shard, [work / part.info.file for part in chosen], chosen))

    # A part that is a shard by itself need not be copied.
    alone = {index for index, group in enumerate(groups) if len(group.parts) == 1}
    for index in alone:
        if groups[index].paths[0].exists():
            os.replace(groups[index].paths[0], out / names[index])

    def remove_parts(index: int) -> None:
        for path in groups[index].paths:
            path.unlink(missing_ok=True)

    joined = work / "joined"
    files.make_directory(joined)
    engine.run(
        groups,
        engine.Each(_same),
        _ShardSink(out, names),
        joined,
        indices=[index for index in range(len(groups)) if index not in alone],
        processes=processes,
        title=f"{name} (joining)",
        finished=remove_parts,
    )
    infos = []
    for index, group in enumerate(groups):
        if index in alone:
            infos.append(dataclasses.replace(group.parts[0].info, file=names[index]))
        else:
            infos.append(shards.ShardInfo(**engine.read_report(joined, index)["output"]))
    return counts, infos
