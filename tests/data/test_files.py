"""Files that appear whole or not at all."""

import errno
import os

import pytest

from clipdg_jax.data import files
from clipdg_jax.errors import UserError


def test_a_file_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "file"
    path.write_text("before")
    with files.whole(path) as unfinished:
        unfinished.write_text("after")
        assert path.read_text() == "before"
    assert path.read_text() == "after"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("error", "raised", "told"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), UserError, "no space left to write it"),
        (OSError("I/O error: No space left on device"), UserError, "no space left to write it"),
        (PermissionError(errno.EACCES, "denied"), UserError, "may not be written"),
        (OSError(errno.EIO, "Input/output error"), UserError, r"cannot be written .Input/output"),
        (ValueError("a bug"), ValueError, "a bug"),
        (KeyboardInterrupt("now"), KeyboardInterrupt, "now"),
    ],
)
def test_what_stops_the_writing_leaves_what_was_there(tmp_path, error, raised, told):
    path = tmp_path / "file"
    path.write_text("before")

    def write():
        with files.whole(path) as unfinished:
            unfinished.write_text("half")
            raise error

    with pytest.raises(raised, match=told) as stopped:
        write()
    assert "\n" not in str(stopped.value)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_hold_a_file_is_one_line(tmp_path):
    os.mkdir(tmp_path / "taken")
    for path in (tmp_path / "taken", tmp_path / "none" / "file"):
        with pytest.raises(UserError, match=f"{path}: cannot be written"):
            files.write_text(path, "x")
    assert list(tmp_path.iterdir()) == [tmp_path / "taken"]
