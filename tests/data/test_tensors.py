"""Safetensors files: what the library reads, the same bytes each time, whole or not at all."""

import os
import resource
import stat

import ml_dtypes
import numpy as np
import pytest
import safetensors

from clipdg_jax.data import tensors
from clipdg_jax.errors import UserError

ARRAYS = {
    "b.scalar": np.asarray(3.5),
    "a.turned": np.arange(6, dtype=np.int32).reshape(2, 3).T,
    "c": np.ones((3, 5), ml_dtypes.bfloat16),
    "ä": np.zeros((0, 4), np.float32),
}
# As many as chance does not put into one order.
METADATA = {name: f'{name} "ü"' for name in ("format", "z", "a", "m", "q", "b", "y", "c")}


def test_the_library_reads_what_was_written(tmp_path):
    path = tmp_path / "x.safetensors"
    tensors.write(path, ARRAYS, METADATA)
    with safetensors.safe_open(path, "numpy") as file:
        assert file.metadata() == METADATA
        assert set(file.keys()) == set(ARRAYS)
        for name, value in ARRAYS.items():
            found = file.get_tensor(name)
            assert found.dtype == value.dtype
            np.testing.assert_array_equal(found, value)


def test_equal_arrays_are_equal_bytes_that_others_may_read(tmp_path):
    path = tmp_path / "x.safetensors"
    umask = os.umask(0o022)
    try:
        written = set()
        for _ in range(5):
            tensors.write(path, ARRAYS, dict(METADATA))
            written.add(path.read_bytes())
    finally:
        os.umask(umask)
    assert len(written) == 1
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_full_disk_leaves_what_was_there(tmp_path):
    path = tmp_path / "x.safetensors"
    tensors.write(path, ARRAYS, {"a": "b"})
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(UserError, match=r"x\.safetensors: no space left to write it"):
            tensors.write(path, {"large": np.zeros(10_000)}, {"a": "b"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [one.name for one in tmp_path.iterdir()] == ["x.safetensors"]
    assert path.read_bytes() == before
