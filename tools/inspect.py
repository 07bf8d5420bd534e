r"""Shows, searches and verifies a dataset.

    python -m tools.inspect data/natural
    python -m tools.inspect data/natural --verify --processes=8
    python -m tools.inspect data/natural --search='\bsketch\b' --limit=50
    python -m tools.inspect data/natural --show=48 --out=sheet.png
    python -m tools.inspect data/natural --record=00000/000000012 --out=image.jpg
    python -m tools.inspect tfds:imagenet2012:validation --show=12

The dataset is a path, a name below --data_root, or prepared TFDS data.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from clipdg_jax.data import dataset, engine, files, images, resolve, schema, shards
from clipdg_jax.errors import UserError
from tools import cli, sheet, summary


def describe(source: resolve.Source) -> str:
    """What the dataset is, as text of a few lines."""
    lines = []
    if isinstance(source, dataset.Dataset):
        manifest = source.manifest
        tool = manifest.config.get("tool")
        parents = ", ".join(f"{p['name']} ({p['fingerprint'][:12]})" for p in manifest.parents)
        lines = [
            summary.counts(source),
            f"split: {manifest.split}   domain: {manifest.domain or 'unknown or mixed'}"
            + (f"   made by: {tool}" if tool else ""),
            f"parents: {parents or 'none'}",
        ]
    else:
        lines = [f"{source.name}: {len(source)} records"]
    shown = ", ".join(source.classes[:10])
    more = f", ... ({len(source.classes)} in all)" if len(source.classes) > 10 else ""
    lines += [
        f"classes: {shown or 'none'}{more}",
        f"tokenizer: {source.tokenizer or 'not tokenised'}",
        f"fingerprint: {source.fingerprint}",
    ]
    return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class CheckShard:
    """The engine's function: "" for a sound record, else what is wrong with it."""

    classes: int
    tokenised: bool

    def __call__(self, items: Iterator[schema.Record]) -> Iterator[str]:
        keys: set[str] = set()
        for record in items:
            yield self._problem(record, keys)
            keys.add(record.key)

    def _problem(self, record: schema.Record, keys: set[str]) -> str:
        if record.key in keys:
            return f"{record.key}: occurs twice in its shard"
        if self.classes and not -1 <= record.label < self.classes:
            return f"{record.key}: label {record.label} of {self.classes} classes"
        if self.tokenised and record.tokens is None:
            return f"{record.key}: has no tokens"
        try:
            images.decode(record.image)
        except images.ImageError as error:
            return f"{record.key}: its image cannot be decoded ({error})"
        return ""


class _Problems:
    """The engine's sink and output: keeps the problems of a shard in its report."""

    def open(self, index: int) -> _Problems:
        return _Problems()

    def __init__(self) -> None:
        self._found: list[str] = []

    def write(self, problem: str) -> None:
        if problem:
            self._found.append(problem)

    def commit(self) -> list[str]:
        return self._found

    def discard(self) -> None:
        pass  # nothing is kept outside the report


def verify(data: dataset.Dataset, processes: int = 0) -> list[str]:
    """Checks every shard's sum and that every record and image decodes; returns the problems."""
    source = data.shards()
    with concurrent.futures.ThreadPoolExecutor(max(1, processes)) as pool:
        sums = pool.map(lambda shard: files.sha256(data.path / shard.file), data.manifest.shards)
        problems = [
            f"{data.path / shard.file}: its sha256 is not the manifest's"
            for shard, found in zip(data.manifest.shards, sums, strict=True)
            if found != shard.sha256
        ]
    with tempfile.TemporaryDirectory() as work:
        counts = engine.map_shards(
            source,
            CheckShard(len(data.classes), data.tokenizer is not None),
            _Problems(),
            Path(work),
            config={},
            processes=processes,
            title="verify",
        )
        for index in range(len(source)):
            problems += engine.read_report(Path(work), index)["output"]
    unreadable = counts.dropped.total()
    if unreadable:
        problems.append(f"{data.path}: {unreadable} records cannot be read")
    return problems


def search(source: resolve.Source, pattern: str) -> Iterator[tuple[int, schema.Record]]:
    """The records, with their indices, whose key or caption the regular expression matches.

    A damaged record is passed over, with a line on stderr.
    """
    try:
        wanted = re.compile(pattern)
    except re.error as error:
        raise UserError(f"--search: {pattern!r} is not a regular expression ({error})") from error
    for index in range(len(source)):
        try:
            record = source.record(index)
        except shards.RecordError as error:
            print(f"passed over: {error}", file=sys.stderr)
            continue
        if wanted.search(record.caption) or wanted.search(record.key):
            yield index, record


def find(source: resolve.Source, wanted: str) -> schema.Record:
    """The record with this index or this key. Raises UserError when there is none."""
    if wanted.isdigit():
        if int(wanted) >= len(source):
            raise UserError(f"--record: {wanted} is too large; {source.name} has {len(source)}")
        return source.record(int(wanted))
    for _, record in search(source, f"^{re.escape(wanted)}$"):
        if record.key == wanted:
            return record
    raise UserError(f"--record: {source.name} has no record with the key {wanted!r}")


def _line(index: int, record: schema.Record, classes: Sequence[str]) -> str:
    label = classes[record.label] if 0 <= record.label < len(classes) else record.label
    return f"{index}\t{record.key}\t{label}\t{record.domain or '-'}\t{record.caption}"


def _fields(record: schema.Record) -> dict[str, Any]:
    tokens = None if record.tokens is None else record.tokens.tolist()
    return dataclasses.asdict(record) | {"image": f"{len(record.image)} bytes", "tokens": tokens}


def main(argv: Sequence[str]) -> None:
    """Prints what the flags ask for."""
    values = flags.FLAGS
    if len(argv) < 2:
        raise UserError("name a dataset: python -m tools.inspect <path or name>; see --help")
    source = resolve.resolve(argv[1], values.data_root)
    if values.record is not None:
        record = find(source, values.record)
        print(json.dumps(_fields(record), indent=1, ensure_ascii=False))
        if values.out:
            Path(values.out).write_bytes(record.image)
        return
    if values.search is not None:
        found = 0
        for index, record in search(source, values.search):
            found += 1
            if found <= values.limit:
                print(_line(index, record, source.classes))
        print(f"{found} of {len(source)} records match; {min(found, values.limit)} shown")
        return
    print(describe(source))
    if values.show:
        out = values.out or "sheet.png"
        shown = sheet.write(source, values.show, out)
        print(f"{out}: {shown} records, evenly spaced")
    if values.verify:
        if not isinstance(source, dataset.Dataset):
            raise UserError(f"--verify: {argv[1]} has no manifest to compare with; import it first")
        problems = verify(source, values.processes)
        for problem in problems[: values.limit]:
            print(problem)
        if problems:
            raise UserError(f"{source.path}: {len(problems)} problems found; write it again")
        print(f"verified: {len(source)} records decode and {len(source.shards())} sums agree")


if __name__ == "__main__":
    flags.DEFINE_string("data_root", "data", "Where datasets live that are given by name.")
    flags.DEFINE_bool("verify", False, "Check all sums, and decode every record and image.")
    flags.DEFINE_string("search", None, "Regular expression; print records it matches.")
    flags.DEFINE_integer("limit", 20, "Lines to print at most.", lower_bound=1)
    flags.DEFINE_integer("show", 0, "Write a contact sheet of so many records.", lower_bound=0)
    flags.DEFINE_string("record", None, "Index or key of one record to print.")
    flags.DEFINE_string("out", None, "File for --show (sheet.png) or for the image of --record.")
    flags.DEFINE_integer("processes", 0, "Worker processes of --verify.", lower_bound=0)
    cli.run(main, positional=1)
