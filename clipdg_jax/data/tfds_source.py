"""TFDS data that were prepared as ArrayRecord, read as records without TensorFlow."""

from __future__ import annotations

import bisect
import itertools
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipdg_jax.data import files, schema, shards
from clipdg_jax.errors import UserError

PREFIX = "tfds:"

# Which feature is which, first match wins; images and labels are told by their type.
_CAPTIONS = ("caption", "text", "captions", "title")
_KEYS = ("key", "file_name", "filename", "image/filename", "image_id", "id")


class TfdsSource:
    """A split of prepared TFDS data, by index: a `resolve.Source`.

    The image is the first Image feature, the label the first ClassLabel; the caption and the key
    are found by name. Without a key feature the key is `<name>:<split>/<index>`.
    """

    tokenizer = None

    def __init__(self, directory: Path, name: str, split: str):
        self.path = directory
        self.name = name
        # Imported here: it takes a second, and most runs read no TFDS data.
        import tensorflow_datasets as tfds

        try:
            info = tfds.builder_from_directory(str(directory)).info
        except Exception as error:  # TFDS raises what its parsers happen to raise
            raise UserError(f"{directory}: cannot be opened as TFDS data ({error})") from error
        if str(getattr(info.file_format, "value", info.file_format)) != "array_record":
            raise UserError(
                f"{directory}: was prepared as {info.file_format}; prepare it again with "
                "file_format='array_record'"
            )
        try:
            instructions = info.splits[split].file_instructions
        except (KeyError, ValueError) as error:
            raise UserError(
                f"{PREFIX}{name}:{split}: no such split; it has {', '.join(info.splits)}"
            ) from error
        features = dict(info.features)
        images = [k for k, v in features.items() if isinstance(v, tfds.features.Image)]
        labels = [k for k, v in features.items() if isinstance(v, tfds.features.ClassLabel)]
        if not images:
            raise UserError(f"{directory}: has no image feature, only {', '.join(features)}")
        self._image = images[0]
        self._label = labels[0] if labels else None
        self.classes: tuple[str, ...] = tuple(features[labels[0]].names) if labels else ()
        self._caption = next((k for k in _CAPTIONS if k in features), None)
        self._key = next((k for k in _KEYS if k in features), None)
        self._readers = []
        self._skips = []
        for part in instructions:
            path = Path(part.filename)
            whole = shards.ShardInfo(path.name, part.examples_in_shard, 0, "")
            self._readers.append(shards.ShardReader(path, whole))
            self._skips.append(part.skip)
        self._ends = list(itertools.accumulate(part.take for part in instructions))
        document = json.loads((directory / "dataset_info.json").read_text(encoding="utf-8"))
        self.fingerprint = files.digest([document, split])
        self._split = split

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def record(self, index: int) -> schema.Record:
        """Record `index`; errors as in `dataset.Dataset.record`."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.path}: record {index} of {len(self)}")
        part = bisect.bisect_right(self._ends, index)
        start = self._ends[part - 1] if part else 0
        data = self._readers[part].read(self._skips[part] + index - start)
        try:
            return self._map(schema.read_features(data), index)
        except (ValueError, KeyError, IndexError) as error:
            raise shards.RecordError(f"{self.path}: record {index}: {error}") from error

    def _map(self, values: Mapping[str, list[Any]], index: int) -> schema.Record:
        def text(name: str | None) -> str:
            found = values.get(name) if name else None
            value = found[0] if found else b""
            return value.decode(errors="replace") if isinstance(value, bytes) else str(value)

        domain = text("domain")
        return schema.Record(
            key=text(self._key) or f"{self.name}:{self._split}/{index}",
            image=values[self._image][0],
            caption=text(self._caption),
            label=int(values[self._label][0]) if self._label else -1,
            domain=domain if domain in schema.DOMAINS else "",
        )

    def __reduce__(self):
        return TfdsSource, (self.path, self.name, self._split)


def open_tfds(name: str, data_root: Path) -> TfdsSource:
    """Opens `tfds:<name>[/<config>][/<version>]:<split>`.

    Looked for in `data_root`, `$TFDS_DATA_DIR` and `~/tensorflow_datasets`; the newest version
    counts unless one is named.

    Raises:
        UserError: it is not there (the message tells how to prepare it), has no such split, or
            is not in ArrayRecord files.
    """
    found = find(name, data_root)
    path, split = _parts(name)
    if found is not None:
        return TfdsSource(found, path, split)
    raise UserError(
        f"{name}: not prepared in {' or '.join(map(str, _roots(data_root)))}; prepare it with "
        f"`python -c \"import tensorflow_datasets as tfds; tfds.builder('{path}', "
        "file_format='array_record').download_and_prepare()\"`"
    )


def find(name: str, data_root: Path) -> Path | None:
    """The directory that `open_tfds` would open; None if there is none."""
    path, _ = _parts(name)
    directories = (_newest(root / path) for root in _roots(data_root))
    return next((found for found in directories if found is not None), None)


def _parts(name: str) -> tuple[str, str]:
    match = re.fullmatch(rf"{PREFIX}([^:]+):(.+)", name)
    if match is None:
        raise UserError(f"{name}: TFDS data are named tfds:<name>[/<config>]:<split>")
    return match[1], match[2]


def _roots(data_root: Path) -> list[Path]:
    home = Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    return [data_root.expanduser(), home.expanduser()]


def _newest(path: Path) -> Path | None:
    """`path` if it holds TFDS data, else its newest version, else that of its only config."""
    if (path / "dataset_info.json").exists():
        return path
    found = [info.parent for info in path.glob("*/dataset_info.json")]
    if found:
        return max(found, key=lambda p: [int(n) for n in re.findall(r"\d+", p.name)])
    configs = sorted({info.parent.parent for info in path.glob("*/*/dataset_info.json")})
    return _newest(configs[0]) if len(configs) == 1 else None
