"""Writing datasets with the shard engine: one of them, or several in one pass over the input.

Each input shard gives part files in `<dataset>/.parts`. When all are there, they are joined to
shards of about `target_shard_bytes`, and the manifest is written last. Both steps are resumable,
so that a job killed at any point ends with the same bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from clipdg_jax.data import dataset, engine, parts, schema, shard_workers, shards
from clipdg_jax.errors import UserError

TARGET_SHARD_BYTES = 1 << 30
_PARTS = ".parts"


@dataclasses.dataclass(frozen=True, slots=True)
class Routed:
    """One record and the datasets that it goes to.

    Attributes:
        record: the record, the same for all of them.
        to: names of the datasets that get it; none is allowed.
        reason: under which the other datasets count it as dropped.
        reasons: in its stead, for single datasets by name.
    """

    record: schema.Record
    to: tuple[str, ...]
    reason: str
    reasons: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Target:
    """A dataset to be written.

    Attributes:
        out: its directory, whose last part gives the dataset's name.
        split, classes, domain, tokenizer, parents: see `dataset.Manifest`.
    """

    out: Path
    split: str = "train"
    classes: Sequence[str] = ()
    domain: str = ""
    tokenizer: str | None = None
    parents: Sequence[Mapping[str, Any]] = ()

    @property
    def name(self) -> str:
        return dataset_name(self.out)

    @property
    def parts(self) -> Path:
        return self.out / _PARTS


@dataclasses.dataclass(frozen=True)
class _RoutedSink:
    """Writes routed records to the parts of the datasets that get them.

    `directories` are those of the parts by the dataset's name, `complete` the names of datasets
    that hold their records already.
    """

    directories: Mapping[str, Path]
    complete: Collection[str]
    target_bytes: int

    def open(self, index: int) -> _RoutedOutput:
        writers = {
            name: parts.PartWriter(directory, index, self.target_bytes)
            for name, directory in self.directories.items()
        }
        return _RoutedOutput(writers, self.complete)


class _RoutedOutput:
    def __init__(self, writers: Mapping[str, parts.PartWriter], complete: Collection[str]):
        self._writers = writers
        self._complete = complete
        # Records that one dataset does not get although another may.
        self._dropped: dict[str, Counter[str]] = {name: Counter() for name in writers}

    def write(self, routed: Routed) -> None:
        for name in routed.to:
            if name not in self._writers and name not in self._complete:
                raise ValueError(f"{routed.record.key!r} is routed to {name!r}; no such dataset")
        data = None
        for name, writer in self._writers.items():
            if name in routed.to:
                data = data or schema.encode(routed.record)
                writer.write(data)
            else:
                self._dropped[name][routed.reasons.get(name, routed.reason)] += 1

    def commit(self) -> dict[str, Any]:
        return {
            name: {"parts": writer.close(), "dropped": dict(self._dropped[name])}
            for name, writer in self._writers.items()
        }

    def discard(self) -> None:
        for writer in self._writers.values():
            writer.discard()


def dataset_name(out: Path) -> str:
    """The name that goes with a directory: TFDS wants letters, digits and underscores."""
    name = re.sub(r"[^A-Za-z0-9_]", "_", out.resolve().name)
    return name if name[:1].isalpha() else f"data_{name}"


@dataclasses.dataclass(frozen=True)
class _ToOne:
    """`fn` with every record routed to the one dataset `name`."""

    fn: engine.Fn
    name: str

    def __call__(self, items: Iterator[Any]) -> Iterator[Routed | engine.Drop]:
        to = (self.name,)
        for outcome in self.fn(items):
            yield outcome if isinstance(outcome, engine.Drop) else Routed(outcome, to, "")


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
        target_shard_bytes, processes, process_index, process_count, wait, say: see
            `write_datasets`.

    Returns and raises as `write_datasets` does.
    """
    target = Target(Path(out), split, classes, domain, tokenizer, parents)
    written = write_datasets(
        {target.name: target},
        source,
        _ToOne(fn, target.name),
        work=target.out,
        config=config,
        target_shard_bytes=target_shard_bytes,
        processes=processes,
        process_index=process_index,
        process_count=process_count,
        wait=wait,
        say=say,
    )
    return None if written is None else written[target.name]


def write_datasets(
    targets: Mapping[str, Target],
    source: Sequence[engine.InputShard],
    fn: engine.Fn,
    *,
    work: Path,
    config: Mapping[str, Any],
    target_shard_bytes: int = TARGET_SHARD_BYTES,
    processes: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    wait: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, dataset.Dataset] | None:
    """Writes several datasets in one pass over `source`, or goes on doing so.

    Every dataset's manifest adds up by itself: it has seen all items, and counts as dropped the
    `Drop`s and the records that were not routed to it. One that gets no record at all has a
    single empty shard. Datasets that are complete already are left as they are.

    Args:
        targets: the datasets by the names that `Routed.to` uses.
        source: input shards.
        fn: from the items of one input shard to a `Routed` or `engine.Drop` for each.
        work: directory in which a folder `.parts` keeps the reports until all is done; hosts
            that share the work share it.
        config: what the content depends on, kept in each manifest; JSON-able.
        target_shard_bytes: aimed size of a shard.
        processes, process_index, process_count: see `engine.map_shards`.
        wait: when another process is writing a dataset, wait for it instead of raising.
        say: gets a line when a dataset was there already, or when other hosts are slower.

    Returns:
        The datasets by name. On hosts other than the first, None once their share is done: the
        first waits for all shares and completes the datasets.

    Raises:
        UserError: a target was written with another config, holds something else, or is being
            written by another process; parts written earlier are gone; no space left.
    """
    if len({target.out.resolve() for target in targets.values()}) < len(targets):
        raise ValueError("two targets have the same directory")
    identity = {
        **config,
        "target_shard_bytes": target_shard_bytes,
        "inputs": engine.source_digest(source),
    }
    incomplete = _incomplete(targets, identity)
    for name in targets:
        if name not in incomplete:
            say(f"{targets[name].out}: complete already, left as it is")
    for target in incomplete.values():
        _check_unused(target.out)
    if incomplete:
        with contextlib.ExitStack() as held:
            run = _Run(targets, source, fn, identity, work / _PARTS)
            incomplete = run.claim(held, process_index, wait)
            workers = held.enter_context(shard_workers.Workers(processes))
            if incomplete:
                run.make_parts(incomplete, workers, process_index, process_count)
                if process_index != 0:
                    return None
                run.complete(incomplete, workers, say)
            _remove(targets, work)
    else:
        _remove(targets, work)  # there if it was killed just before the end
    return {name: dataset.open_dataset(target.out) for name, target in targets.items()}


@dataclasses.dataclass(frozen=True)
class _Run:
    """The steps of `write_datasets`; `reports` is the directory of the reports."""

    targets: Mapping[str, Target]
    source: Sequence[engine.InputShard]
    fn: engine.Fn
    identity: Mapping[str, Any]
    reports: Path

    def claim(
        self, held: contextlib.ExitStack, process_index: int, wait: bool
    ) -> dict[str, Target]:
        """Holds all directories for this run; returns the targets that are still incomplete."""

        def hold(directory: Path, identity: Mapping[str, Any]) -> None:
            held.enter_context(
                engine.claim(directory, identity, process_index=process_index, wait=wait)
            )

        # With one target, the reports are among its parts.
        if all(target.parts == self.reports for target in self.targets.values()):
            hold(self.reports, self.identity)
        else:
            hold(self.reports, {**self.identity, "datasets": list(self.targets)})
        incomplete = _incomplete(self.targets, self.identity)
        for target in incomplete.values():
            if target.parts != self.reports:
                if not target.parts.is_dir() and any(self.reports.glob("[0-9]*.json")):
                    raise self._lost(target)
                hold(target.parts, self.identity)
        # Another process may have completed one while this one waited.
        return _incomplete(incomplete, self.identity)

    def make_parts(
        self,
        incomplete: Mapping[str, Target],
        workers: shard_workers.Workers,
        process_index: int,
        process_count: int,
    ) -> None:
        """Does this host's share of the input shards."""
        engine.run(
            self.source,
            self.fn,
            _RoutedSink(
                {name: target.parts for name, target in incomplete.items()},
                self.targets.keys() - incomplete.keys(),
                self.identity["target_shard_bytes"],
            ),
            self.reports,
            indices=range(process_index, len(self.source), process_count),
            workers=workers,
            title=", ".join(target.name for target in incomplete.values()),
        )

    def complete(
        self,
        incomplete: Mapping[str, Target],
        workers: shard_workers.Workers,
        say: Callable[[str], None],
    ) -> None:
        """Waits for the other hosts' shares, and makes shards and manifests of the parts."""
        count = len(self.source)
        engine.wait_for_reports(self.reports, count, say)
        counts = {name: engine.Counts() for name in incomplete}
        made: dict[str, list[parts.Part]] = {name: [] for name in incomplete}
        for index in range(count):
            report = engine.read_report(self.reports, index)
            for name, target in incomplete.items():
                output = report["output"].get(name)
                if output is None:
                    raise self._lost(target)
                counts[name].add(report)
                counts[name].dropped.update(output["dropped"])
                made[name] += [parts.Part(**part) for part in output["parts"]]
        infos = parts.join(
            [
                parts.Joined(made[name], target.parts, target.out, target.name, target.split)
                if name in incomplete
                else None
                for name, target in self.targets.items()
            ],
            self.reports / "joined",
            target_bytes=self.identity["target_shard_bytes"],
            workers=workers,
        )
        for (name, target), shards_of in zip(self.targets.items(), infos, strict=True):
            if name in incomplete:
                self._describe(target, shards_of, counts[name])

    def _describe(
        self, target: Target, infos: Sequence[shards.ShardInfo], counts: engine.Counts
    ) -> None:
        """Writes TFDS's metadata and, last of all, the manifest."""
        sizes = [(info.records, info.bytes) for info in infos]
        schema.write_tfds_metadata(target.out, target.name, {target.split: sizes}, target.classes)
        dataset.Manifest(
            name=target.name,
            split=target.split,
            shards=tuple(infos),
            classes=tuple(target.classes),
            domain=target.domain,
            tokenizer=target.tokenizer,
            config=self.identity,
            parents=tuple(target.parents),
            seen=counts.seen,
            dropped=dict(counts.dropped),
            faults=dict(counts.faults),
        ).save(target.out)

    def _lost(self, target: Target) -> UserError:
        return UserError(
            f"{target.parts}: is gone, but {self.reports} says that it was written; remove the "
            "latter, then run the same command again"
        )


def _incomplete(targets: Mapping[str, Target], identity: Mapping[str, Any]) -> dict[str, Target]:
    """The targets without a manifest; UserError when one is another dataset."""
    left = {}
    for name, target in targets.items():
        if (target.out / dataset.MANIFEST).exists():
            found = dataset.Manifest.load(target.out).config
            engine.check_identity(target.out, found, identity)
        else:
            left[name] = target
    return left


def _check_unused(out: Path) -> None:
    """UserError when `out` holds anything and is not a dataset that was begun."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        if os.listdir(out) and not (out / _PARTS).is_dir():
            raise UserError(
                f"{out}: holds files that are not a dataset; choose a new or an empty directory"
            )


def _remove(targets: Mapping[str, Target], work: Path) -> None:
    """Removes what only an unfinished run needs. One that waits for a lock may be there too."""
    for directory in (work / _PARTS, *(target.parts for target in targets.values())):
        shutil.rmtree(directory, ignore_errors=True)
