"""The shard engine: one function over many shards, on any number of processes and hosts.

`map_shards(source, fn, sink, ...)` takes each shard of `source`, hands its items to `fn`, and
writes what `fn` yields to the sink's output of that shard. An output and its report (a small
JSON file with the counts) appear whole or not at all, and a shard with a report is not done
again. So a job that was killed goes on where it stopped, and its result depends neither on the
kill nor on the number of processes: nothing crosses from one shard to another.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from clipdg_jax.data import files, progress, shard_workers
from clipdg_jax.data.shards import RecordError
from clipdg_jax.errors import UserError


@dataclasses.dataclass(frozen=True, slots=True)
class Drop:
    """In place of a value: this item is not written, and counted under `reason`."""

    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class Fault:
    """From a shard's iterator: a trouble that is not an item, counted under `reason`."""

    reason: str


class InputShard(Protocol):
    """A named run of items that always come in the same order; it must pickle.

    Its iterator may also yield `Drop` or `RecordError` in place of an item that cannot be read,
    and `Fault` beside the items; the engine counts them and `fn` does not see them.
    """

    @property
    def name(self) -> str: ...

    def __iter__(self) -> Iterator[Any]: ...


class Output(Protocol):
    """Where the values of one shard go."""

    def write(self, value: Any) -> None: ...

    def commit(self) -> Any:
        """Completes the files and returns what the report should say of them (JSON-able)."""

    def discard(self) -> None:
        """Removes what is incomplete, after an error."""


class Sink(Protocol):
    """Makes the output of each shard; it must pickle."""

    def open(self, index: int) -> Output: ...


# From the items of one shard, in order, to one value or `Drop` for each. It must pickle, and
# what it builds lazily (a tokeniser, a model) lives as long as its process.
Fn = Callable[[Iterator[Any]], Iterable[Any]]


@dataclasses.dataclass(frozen=True)
class Each:
    """An `Fn` that calls `function(item)` on each item."""

    function: Callable[[Any], Any]

    def __call__(self, items: Iterator[Any]) -> Iterator[Any]:
        return map(self.function, items)


@dataclasses.dataclass(frozen=True)
class Batched:
    """An `Fn` that calls `function(batch, valid)` on `size` items at a time.

    A batch never spans shards. The last one of a shard is filled up with its first item, and
    `valid` (bool [size]) tells which are real: the function sees one shape only, compiles once,
    and a row's result cannot depend on how the work was divided. It returns `size` outcomes;
    those of the filling are ignored.
    """

    function: Callable[[list[Any], np.ndarray], Sequence[Any]]
    size: int

    def __call__(self, items: Iterator[Any]) -> Iterator[Any]:
        while True:
            batch = list(itertools.islice(items, self.size))
            if not batch:
                return
            real = len(batch)
            batch += batch[:1] * (self.size - real)
            outcomes = self.function(batch, np.arange(self.size) < real)
            yield from outcomes[:real]


@dataclasses.dataclass(frozen=True)
class IndexShard:
    """The integers from `start` to `stop`, as a shard of generated data."""

    name: str
    start: int
    stop: int

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.stop))


def index_shards(count: int, size: int) -> list[IndexShard]:
    """The integers below `count` as shards of `size`, named by their number."""
    starts = range(0, count, size)
    return [IndexShard(f"{i:05d}", a, min(a + size, count)) for i, a in enumerate(starts)]


@dataclasses.dataclass
class Counts:
    """What became of the items: `seen == written + sum(dropped.values())`."""

    seen: int = 0
    written: int = 0
    dropped: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    faults: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def add(self, report: Mapping[str, Any]) -> None:
        """Adds the counts of one shard's report."""
        self.seen += report["seen"]
        self.written += report["written"]
        self.dropped.update(report["dropped"])
        self.faults.update(report["faults"])


class ShardError(RuntimeError):
    """An error while working on a shard; the message names the shard."""


class _Stopped(Exception):
    """Another shard failed; this one is given up."""


def report_path(work: Path, index: int) -> Path:
    """The report of shard `index`; it exists when the shard is done."""
    return work / f"{index:06d}.json"


def read_report(work: Path, index: int) -> dict[str, Any]:
    """{"name", "seen", "written", "dropped", "faults", "output"} of a finished shard."""
    return json.loads(report_path(work, index).read_text(encoding="utf-8"))


def wait_for_reports(work: Path, count: int, say: Callable[[str], None]) -> None:
    """Waits until the other hosts have done their shares of `count` input shards."""
    left = [index for index in range(count) if not report_path(work, index).exists()]
    if left:
        say(f"{work.parent}: waiting for {len(left)} input shards of other hosts")
    for index in left:
        while not report_path(work, index).exists():
            time.sleep(1)


@dataclasses.dataclass(frozen=True)
class _Job:
    source: Sequence[InputShard] | Mapping[int, InputShard]
    fn: Fn
    sink: Sink
    work: Path

    def run(self, index: int, stopped: Callable[[], bool]) -> dict[str, Any]:
        """Does one shard and returns its report."""
        shard = self.source[index]
        try:
            return self._run(shard, index, stopped)
        except (UserError, _Stopped):
            raise
        except Exception as error:
            raise ShardError(f"{shard.name}: {type(error).__name__}: {error}") from error

    def _run(self, shard: InputShard, index: int, stopped: Callable[[], bool]) -> dict[str, Any]:
        counts = Counts()

        def items() -> Iterator[Any]:
            for item in shard:
                if stopped():
                    raise _Stopped
                if isinstance(item, Fault):
                    counts.faults[item.reason] += 1
                    continue
                counts.seen += 1
                if isinstance(item, Drop):
                    counts.dropped[item.reason] += 1
                elif isinstance(item, RecordError):
                    counts.dropped["unreadable_record"] += 1
                else:
                    yield item

        output = self.sink.open(index)
        try:
            for outcome in self.fn(items()):
                if isinstance(outcome, Drop):
                    counts.dropped[outcome.reason] += 1
                else:
                    output.write(outcome)
                    counts.written += 1
            if counts.seen != counts.written + counts.dropped.total():
                raise ValueError(
                    f"{counts.seen} items seen, but {counts.written} written and "
                    f"{counts.dropped.total()} dropped: the function must yield one for each"
                )
            written = output.commit()
        except BaseException:
            output.discard()
            raise
        report = {
            "name": shard.name,
            "seen": counts.seen,
            "written": counts.written,
            "dropped": dict(counts.dropped),
            "faults": dict(counts.faults),
            "output": written,
        }
        files.write_json(report_path(self.work, index), report)
        return report


@contextlib.contextmanager
def claim(
    work: Path,
    identity: Mapping[str, Any],
    *,
    process_index: int = 0,
    wait: bool = False,
) -> Iterator[None]:
    """Holds the directory `work` for one job, whose identity is kept in `job.json`.

    Raises:
        UserError: another process holds it (unless `wait`), or it belongs to another job.
    """
    with files.lock(work / f"lock-{process_index:05d}", wait=wait):
        path = work / "job.json"
        with files.lock(work / "job.lock", wait=True):  # hosts that start together
            if path.exists():
                check_identity(work, json.loads(path.read_text(encoding="utf-8")), identity)
            else:
                files.write_json(path, dict(identity))
        yield


def check_identity(where: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """UserError, naming the first differing field, unless both are the same as JSON."""
    wanted = json.loads(json.dumps(dict(wanted)))
    for field in {**wanted, **found}:  # the caller's order: what the user set comes first
        if found.get(field) != wanted.get(field):
            raise UserError(
                f"{where}: was begun with {field}={_short(found.get(field))}, now "
                f"{field}={_short(wanted.get(field))}; use the former value or another directory"
            )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def source_digest(source: Sequence[InputShard]) -> str:
    """sha256 (hex) of the names of the input shards, for a job's identity."""
    return files.digest([shard.name for shard in source])


def map_shards(
    source: Sequence[InputShard],
    fn: Fn,
    sink: Sink,
    work: Path,
    *,
    config: Mapping[str, Any],
    processes: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    title: str = "shards",
) -> Counts:
    """Runs `fn` over the shards of `source` that this host has and that are not done yet.

    Args:
        source: the input shards.
        fn: from the items of one shard to a value or `Drop` for each (`Each`, `Batched`).
        sink: makes the output of each shard.
        work: directory of the reports; a second run with the same one resumes.
        config: what the result depends on; a `work` used with another config is refused.
        processes: worker processes on this host; 0 or 1 works in this one.
        process_index, process_count: this host's number and how many hosts share the list.
        title: what the progress bar says.

    Returns:
        The counts over this host's shards, finished earlier ones included.

    Raises:
        UserError: see `claim`; or no space left.
        ShardError: `fn` or the source failed; names the shard.
    """
    identity = {**config, "inputs": source_digest(source)}
    with claim(work, identity, process_index=process_index):
        with shard_workers.Workers(processes) as workers:
            return run(
                source,
                fn,
                sink,
                work,
                indices=range(process_index, len(source), process_count),
                workers=workers,
                title=title,
            )


def run(
    source: Sequence[InputShard] | Mapping[int, InputShard],
    fn: Fn,
    sink: Sink,
    work: Path,
    *,
    indices: Iterable[int],
    workers: shard_workers.Workers,
    title: str,
    finished: Callable[[int], None] = lambda index: None,
) -> Counts:
    """`map_shards` over the shards `indices`, for a caller that has claimed `work`.

    `finished(index)` is called in this process for each shard that has a report, also when the
    report is an earlier run's.
    """
    counts = Counts()
    left = []
    indices = list(indices)
    for index in indices:
        if report_path(work, index).exists():
            counts.add(read_report(work, index))
            finished(index)
        else:
            left.append(index)
    job = _Job(source, fn, sink, work)
    with progress.Progress(title, len(indices), done=len(indices) - len(left)) as bar:
        try:
            for index, report in workers.run(job, left):
                counts.add(report)
                finished(index)
                bar.advance(report["seen"])
        except shard_workers.WorkerDied as error:
            raise ShardError(
                f"a worker process died (killed, or out of memory) at one of {len(error.indices)} "
                f"unfinished shards from {source[error.indices[0]].name} on; run the same command "
                "again, with fewer processes"
            ) from error
    return counts
