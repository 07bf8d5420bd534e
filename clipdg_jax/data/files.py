"""Files that appear whole or not at all, one writer at a time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from clipdg_jax.errors import UserError

# What the operating system and the ArrayRecord writer say when there is no room.
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_ROOM_TEXT = ("No space left", "Disk quota exceeded", "File too large")


def temporary(path: Path) -> Path:
    """The name beside `path` under which it is written until it is complete.

    Always the same one, so that what a killed process left there is overwritten, not collected.
    """
    return path.with_name(f".{path.name}.tmp")


def publish(temporary: Path, path: Path) -> None:
    """Gives a complete file its real name, once its bytes are on the disk."""
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def raise_if_unwritable(path: Path, error: BaseException) -> None:
    """Turns a full disk or a missing permission into one line for the user."""
    number = error.errno if isinstance(error, OSError) else None
    if number in _NO_ROOM or any(text in str(error) for text in _NO_ROOM_TEXT):
        raise UserError(
            f"{path}: no space left to write it; free some space or choose another directory, "
            "then run the same command again"
        ) from error
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        raise UserError(f"{path}: may not be written; choose a writable directory") from error


@contextlib.contextmanager
def discarding(path: Path, discard: Callable[[], None]) -> Iterator[None]:
    """Calls `discard` on any error, and raises UserError if it is the disk's, naming `path`."""
    try:
        yield
    except BaseException as error:
        discard()
        raise_if_unwritable(path, error)
        raise


def make_directory(path: Path) -> None:
    """Creates `path` and its parents; a place that cannot hold a directory is a UserError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"{path}: a file is in the way of this directory; move it") from error
    except OSError as error:
        raise_if_unwritable(path, error)
        raise


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Makes a file appear whole or not at all: what is written to the name given becomes `path`.

    Whatever stops the writing, what was at `path` stays. Raises UserError where the system refuses.
    """
    unfinished = temporary(path)
    try:
        yield unfinished
        publish(unfinished, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise_if_unwritable(path, error)
        if isinstance(error, OSError):
            raise UserError(
                f"{path}: cannot be written ({error.strerror or error}); mend that or choose "
                "another place"
            ) from error
        raise


def write_text(path: Path, text: str) -> None:
    """Writes a small text file atomically; UserError when it cannot be written."""
    with whole(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes JSON atomically, indented, keys in the order given."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def digest(value: Any) -> str:
    """sha256 (hex) of a JSON-able value in canonical form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def sha256(path: Path) -> str:
    """sha256 (hex) of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def lock(path: Path, wait: bool = False) -> Iterator[int]:
    """Holds an exclusive lock on the file `path`, which is created if need be and stays.

    The system drops the lock when the holder dies, however it dies. Yields the file's descriptor:
    a child process that is handed it holds the lock too.

    Args:
        path: the lock file.
        wait: whether to wait for another holder, or to raise.

    Raises:
        UserError: another process holds it and `wait` is False; it cannot be written.
    """
    while True:
        make_directory(path.parent)
        try:
            file = open(path, "a")  # noqa: SIM115 - closed by the `with` below
        except FileNotFoundError:
            continue  # the former holder has just removed the directory
        except OSError as error:
            raise_if_unwritable(path, error)
            raise
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError as error:
                raise UserError(
                    f"{path.parent}: another run is writing here; wait for it to end or choose "
                    "another output directory"
                ) from error
            # The former holder may have removed the file while this process waited for it.
            try:
                same = os.path.samestat(os.fstat(file.fileno()), os.stat(path))
            except FileNotFoundError:
                same = False
            if same:
                yield file.fileno()
                return
