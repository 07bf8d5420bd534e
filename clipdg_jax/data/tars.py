"""Webdataset tars as img2dataset writes them: image, .txt and .json members under one key.

A tar is read front to back with one sample in memory at a time. One that ends too early gives
what could be read before, and one fault.
"""

from __future__ import annotations

import dataclasses
import glob
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from clipdg_jax.data import engine, files, tar_reader
from clipdg_jax.errors import UserError

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
_SUFFIXES = frozenset((*IMAGE_SUFFIXES, "txt", "json"))
_BUFFER = 1 << 20  # bytes read at once


@dataclasses.dataclass(frozen=True, slots=True)
class TarSample:
    """The members of a tar that share a key.

    Attributes:
        key: `<tar>/<member without its suffix>`.
        image: bytes of the image member; None without one.
        caption: the text member, else the JSON member's "caption", stripped; or "".
        meta: the JSON member; empty without a valid one.
    """

    key: str
    image: bytes | None
    caption: str
    meta: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class TarShard:
    """One tar as input of the shard engine.

    Yields a `TarSample` for each sample and `Drop("truncated")` for one that the end of the file
    cuts off. Faults: "truncated_tar" (the archive does not end as it should), "unreadable_tar"
    (it is not a tar at all) and "bad_json" (a member is not a JSON object; its sample is kept).
    """

    name: str
    path: Path

    def __iter__(self) -> Iterator[TarSample | engine.Drop | engine.Fault]:
        key = None
        members: dict[str, bytes] = {}
        with open(self.path, "rb", buffering=_BUFFER) as file:
            reader = tar_reader.TarReader(file)
            try:
                while (name := reader.next()) is not None:
                    folder, slash, base = name.rpartition("/")
                    stem, _, suffix = base.partition(".")
                    suffix = suffix.lower()
                    # Names that begin with a dot are other programs' (macOS's "._name").
                    if not stem or suffix not in _SUFFIXES:
                        continue
                    found = f"{folder}{slash}{stem}".removeprefix("./")
                    # A suffix for the second time begins a second sample of the same name.
                    if found != key or suffix in members:
                        if members:
                            yield from self._sample(key, members)
                        key, members = found, {}
                    data = reader.read()
                    if data is None:
                        yield engine.Fault("truncated_tar")
                        yield engine.Drop("truncated")
                        return
                    members[suffix] = data
            except tar_reader.TarError as error:
                yield engine.Fault("unreadable_tar" if error.at_start else "truncated_tar")
        if members:
            yield from self._sample(key, members)

    def _sample(
        self, key: str | None, members: dict[str, bytes]
    ) -> Iterator[TarSample | engine.Fault]:
        meta: Any = {}
        if "json" in members:
            try:
                meta = json.loads(members["json"])
            except ValueError:
                meta = None
            if not isinstance(meta, dict):
                yield engine.Fault("bad_json")
                meta = {}
        if "txt" in members:
            caption = members["txt"].decode(errors="replace")
        else:
            caption = meta.get("caption")
        image = next((members[s] for s in IMAGE_SUFFIXES if s in members), None)
        caption = caption.strip() if isinstance(caption, str) else ""
        yield TarSample(f"{self.name}/{key}", image, caption, meta)


@dataclasses.dataclass(frozen=True)
class TarPool:
    """A directory (or glob) of tars as a pool: read shard by shard, not by index."""

    name: str
    tars: tuple[TarShard, ...]

    def shards(self) -> Sequence[TarShard]:
        """The tars as input of the shard engine, in the order of their names."""
        return self.tars

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) over the tars' names and sizes."""
        return files.digest([[tar.name, tar.path.stat().st_size] for tar in self.tars])


def open_tars(pattern: str) -> TarPool:
    """The pool of the tars in a directory (and below it), or of those that match a glob.

    A tar's name is its path below the directory that all have in common, without `.tar`.
    Raises UserError when there are none.
    """
    if os.path.isdir(pattern):
        root = Path(pattern)
        paths = sorted(root.rglob("*.tar"))
    else:
        paths = sorted(Path(path) for path in glob.glob(pattern, recursive=True))
        root = Path(os.path.commonpath([path.parent for path in paths])) if paths else Path()
    paths = [path for path in paths if path.is_file() and not path.name.startswith(".")]
    if not paths:
        raise UserError(f"{pattern}: no tars there; give a directory of .tar files or a glob")
    names = [path.relative_to(root).with_suffix("").as_posix() for path in paths]
    shards = map(TarShard, names, paths)
    return TarPool(root.resolve().name, tuple(shards))
