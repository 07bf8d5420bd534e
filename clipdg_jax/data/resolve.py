"""From the name of a dataset to the data: the one place that knows where data may be.

A name is a directory below `data_root`, any path, `tfds:<name>[/<config>]:<split>`, or
`folder:<layout>:<path>` (`folders`).
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from clipdg_jax.data import dataset, engine, folders, schema, tars, tfds_source
from clipdg_jax.errors import UserError


class Source(Protocol):
    """Labelled or captioned images by index; safe under threads and picklable.

    `tokenizer` is the hash of the tokeniser that made the records' tokens, or None.
    `record` raises `shards.RecordError` for a damaged record.
    """

    @property
    def name(self) -> str: ...

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def tokenizer(self) -> str | None: ...

    @property
    def fingerprint(self) -> str: ...

    def __len__(self) -> int: ...

    def record(self, index: int) -> schema.Record: ...


class Pool(Protocol):
    """Images shard by shard, as input of the shard engine.

    The items are `schema.Record` where `shards()` comes from a dataset, and `tars.TarSample`
    where it comes from tars.
    """

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    def shards(self) -> Sequence[engine.InputShard]: ...


def resolve(name: str, data_root: str | os.PathLike[str]) -> Source:
    """The dataset `name`, for reading at random.

    Raises:
        UserError: there is none; it is damaged; it is a pool of tars, which must be imported.
    """
    if name.startswith(tfds_source.PREFIX):
        return tfds_source.open_tfds(name, Path(data_root))
    if name.startswith(folders.PREFIX):
        return folders.open_folder(name, Path(data_root))
    path = _directory(name, Path(data_root))
    if _has_tars(path):
        raise UserError(
            f"{path}: is a pool of tars, which cannot be read at random; import it with "
            f"`python -m tools.import_webdataset --tars={path} --out=<new directory>`"
        )
    return dataset.open_dataset(path)


def is_there(name: str, data_root: str | os.PathLike[str]) -> bool:
    """Whether `resolve` would find something under the name, be it in order or not."""
    root = Path(data_root)
    if name.startswith(tfds_source.PREFIX):
        return tfds_source.find(name, root) is not None
    if name.startswith(folders.PREFIX):
        path = name.removeprefix(folders.PREFIX).partition(":")[2]
        return bool(path) and (root / path).is_dir()
    return bool(name) and any((base / dataset.MANIFEST).is_file() for base in (root / name, Path(name)))


def resolve_pool(name: str, data_root: str | os.PathLike[str]) -> Pool:
    """The dataset or directory of tars `name`, for reading shard by shard.

    Raises UserError like `resolve`, save that tars are welcome and TFDS data are not.
    """
    if name.startswith((tfds_source.PREFIX, folders.PREFIX)):
        raise UserError(
            f"{name}: TFDS data and folders are read at random only; name a dataset or tars here"
        )
    path = _directory(name, Path(data_root))
    return tars.open_tars(str(path)) if _has_tars(path) else dataset.open_dataset(path)


def _has_tars(path: Path) -> bool:
    if (path / dataset.MANIFEST).exists():
        return False
    return any(path.glob("*.tar"))


def _directory(name: str, data_root: Path) -> Path:
    """The directory that `name` means: below `data_root` first, then as a path."""
    if not name:
        raise UserError("a dataset's name is empty; name a directory below data_root, or a path")
    for path in (data_root / name, Path(name)):
        if path.is_dir():
            return path
    known = [p.parent.relative_to(data_root).as_posix() for p in _manifests(data_root)]
    close = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise UserError(
        f"{data_root / name}: no such dataset; {hint}make it with `python -m "
        f"tools.import_webdataset --tars=<tars> --out={data_root / name}` or with "
        "`python -m tools.import_folder`"
    )


def _manifests(data_root: Path) -> list[Path]:
    """Manifests at most three directories deep: enough for a hint, cheap on any disk."""
    patterns = ("*", "*/*", "*/*/*")
    return [path for p in patterns for path in data_root.glob(f"{p}/{dataset.MANIFEST}")]
