"""A dataset: a directory of shards with a manifest, read at random and lazily."""

from __future__ import annotations

import bisect
import concurrent.futures
import dataclasses
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from clipdg_jax.data import files, schema
from clipdg_jax.data.shards import RecordError, ShardInfo, ShardReader
from clipdg_jax.errors import UserError

MANIFEST = "manifest.json"
FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What is in a dataset and where it came from.

    Attributes:
        name: the stem of the shard names; the last part of the dataset's directory.
        split: TFDS's word for the part that the shards hold, "train" or "test".
        shards: the shards in order.
        classes: class names in label order; empty where records have no label.
        domain: the domain of all records, or "" where they differ or it is unknown.
        tokenizer: hash of the tokeniser that made the tokens, or None.
        config: how the dataset was made; another config in the same directory is refused.
        parents: [{"name", "fingerprint"}] of the datasets or pools it was made from.
        seen, dropped: records looked at, and of those not written, by reason.
        faults: troubles that are not records, by reason (truncated tars).
    """

    name: str
    split: str
    shards: tuple[ShardInfo, ...]
    classes: tuple[str, ...] = ()
    domain: str = ""
    tokenizer: str | None = None
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    parents: tuple[Mapping[str, Any], ...] = ()
    seen: int = 0
    dropped: Mapping[str, int] = dataclasses.field(default_factory=dict)
    faults: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def records(self) -> int:
        return sum(shard.records for shard in self.shards)

    @property
    def bytes(self) -> int:
        return sum(shard.bytes for shard in self.shards)

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) over the shards' sums, the classes and the tokeniser: the content."""
        sums = [[shard.records, shard.sha256] for shard in self.shards]
        return files.digest([sums, list(self.classes), self.tokenizer])

    def save(self, directory: Path) -> None:
        """Writes `manifest.json`; the last file of a dataset, whose presence completes it."""
        fields = dataclasses.asdict(self)
        head = {"format": FORMAT, "records": self.records, "bytes": self.bytes}
        # Mappings are sorted: the bytes must not depend on the order in which drops occurred.
        for name in ("dropped", "faults"):
            fields[name] = dict(sorted(fields[name].items()))
        files.write_json(directory / MANIFEST, head | fields)

    @classmethod
    def load(cls, directory: Path) -> Manifest:
        """Reads and validates `manifest.json`; UserError tells what is wrong with it."""
        path = directory / MANIFEST
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise UserError(
                f"{directory}: not a dataset (no {MANIFEST}); import one with "
                f"`python -m tools.import_folder` or `python -m tools.import_webdataset`"
            ) from error
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path}: cannot be read as JSON ({error}); write the dataset again"
            ) from error
        if not isinstance(raw, dict) or raw.get("format") != FORMAT:
            found = raw.get("format") if isinstance(raw, dict) else None
            raise UserError(f"{path}: has format {found!r}; this version reads format {FORMAT}")
        try:
            manifest = cls(
                name=str(raw["name"]),
                split=str(raw["split"]),
                shards=tuple(ShardInfo(**shard) for shard in raw["shards"]),
                classes=tuple(raw["classes"]),
                domain=raw["domain"],
                tokenizer=raw["tokenizer"],
                config=raw["config"],
                parents=tuple(raw["parents"]),
                seen=int(raw["seen"]),
                dropped=dict(raw["dropped"]),
                faults=dict(raw["faults"]),
            )
            manifest._validate(raw)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = f"field {error} is missing" if isinstance(error, KeyError) else str(error)
            raise UserError(f"{path}: {what}; write the dataset again") from error
        return manifest

    def _validate(self, raw: Mapping[str, Any]) -> None:
        """Checks that the figures add up; ValueError tells which do not."""
        if not self.shards:
            raise ValueError("lists no shards")
        if raw["records"] != self.records:
            raise ValueError(f"records is {raw['records']} but the shards' sum is {self.records}")
        if raw["bytes"] != self.bytes:
            raise ValueError(f"bytes is {raw['bytes']} but the shards' sum is {self.bytes}")
        dropped = sum(self.dropped.values())
        if self.seen != self.records + dropped:
            raise ValueError(f"seen is {self.seen}, not {self.records} written + {dropped} dropped")
        for index, shard in enumerate(self.shards):
            expected = schema.shard_name(self.name, self.split, index, len(self.shards))
            if shard.file != expected:
                raise ValueError(f"shard {index} is named {shard.file!r}, not {expected!r}")


@dataclasses.dataclass(frozen=True)
class DatasetShard:
    """One shard as input of the shard engine: yields records, or the error of a damaged one."""

    name: str
    reader: ShardReader

    def __iter__(self) -> Iterator[schema.Record | RecordError]:
        for data in self.reader.read_all():
            yield data if isinstance(data, RecordError) else _decode(data, self.reader.path)


def _decode(data: bytes, path: Path) -> schema.Record | RecordError:
    try:
        return schema.decode(data)
    except ValueError as error:
        return RecordError(f"{path}: {error}")


class Dataset:
    """Records by index. Safe under threads, cheap to pickle; opens shards when first read."""

    def __init__(self, path: Path, manifest: Manifest):
        self.path = path
        self.manifest = manifest
        self._readers = [ShardReader(path / info.file, info) for info in manifest.shards]
        self._ends = list(itertools.accumulate(info.records for info in manifest.shards))

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def classes(self) -> tuple[str, ...]:
        return self.manifest.classes

    @property
    def domain(self) -> str:
        return self.manifest.domain

    @property
    def tokenizer(self) -> str | None:
        return self.manifest.tokenizer

    @property
    def fingerprint(self) -> str:
        return self.manifest.fingerprint

    def __len__(self) -> int:
        return self._ends[-1]

    def raw(self, index: int) -> bytes:
        """The serialised record `index`, 0 <= index < len. Errors as in `ShardReader.read`."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.path}: record {index} of {len(self)}")
        shard = bisect.bisect_right(self._ends, index)
        start = self._ends[shard - 1] if shard else 0
        return self._readers[shard].read(index - start)

    def record(self, index: int) -> schema.Record:
        """Record `index`, 0 <= index < len.

        Raises:
            RecordError: this record is damaged.
            UserError: its shard cannot be opened or differs from the manifest.
        """
        try:
            return schema.decode(self.raw(index))
        except ValueError as error:
            raise RecordError(f"{self.path}: record {index}: {error}") from error

    def records(self, start: int, stop: int) -> list[schema.Record | RecordError]:
        """Records `start` to `stop` - 1, with one read per shard that they lie in.

        A damaged record is its RecordError. Raises UserError like `record`.
        """
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"{self.path}: records {start} to {stop} of {len(self)}")
        found: list[schema.Record | RecordError] = []
        while start < stop:
            shard = bisect.bisect_right(self._ends, start)
            reader, end = self._readers[shard], min(stop, self._ends[shard])
            first = self._ends[shard] - reader.info.records
            for data in reader.read_range(start - first, end - first):
                found.append(data if isinstance(data, RecordError) else _decode(data, reader.path))
            start = end
        return found

    def shards(self) -> Sequence[DatasetShard]:
        """The shards as input of the shard engine, in order."""
        return [DatasetShard(reader.info.file, reader) for reader in self._readers]

    def __reduce__(self):
        return Dataset, (self.path, self.manifest)


def open_dataset(path: str | Path) -> Dataset:
    """Opens a dataset after checking its manifest and the name and size of every shard.

    No shard is opened; each one's record count is checked against the manifest when it is first
    read. UserError names the manifest or the shard that is wrong.
    """
    path = Path(path)
    manifest = Manifest.load(path)
    with os.scandir(path) as entries:
        present = {entry.name: entry for entry in entries if ".array_record-" in entry.name}
    missing = [shard.file for shard in manifest.shards if shard.file not in present]
    if missing:
        raise UserError(
            f"{path / missing[0]}: missing ({len(missing)} of {len(manifest.shards)} shards that "
            "the manifest lists are); restore it or write the dataset again"
        )
    extra = sorted(set(present) - {shard.file for shard in manifest.shards})
    if extra:
        raise UserError(f"{path / extra[0]}: not in {MANIFEST}; remove it or restore its manifest")
    # Sizes in parallel: on a network disk each one is a round trip.
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        sizes = pool.map(lambda shard: present[shard.file].stat().st_size, manifest.shards)
        for shard, size in zip(manifest.shards, sizes, strict=True):
            if size != shard.bytes:
                raise UserError(
                    f"{path / shard.file}: has {size} bytes, not the {shard.bytes} of its "
                    "manifest (truncated or changed); restore it or write the dataset again"
                )
    return Dataset(path, manifest)
