import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from clipdg_jax import errors
from clipdg_jax.training import sharding


def _struct(*shape):
    return jax.ShapeDtypeStruct(shape, np.float32)


def test_mesh_uses_each_device_once():
    for data, fsdp, shape in ((-1, 1, (8, 1)), (-1, 4, (2, 4)), (1, 8, (1, 8))):
        mesh = sharding.make_mesh(data, fsdp)
        assert mesh.devices.shape == shape
        assert {d.id for d in mesh.devices.flat} == set(range(8))
    assert sharding.make_mesh(devices=jax.devices()[:3]).devices.size == 3


@pytest.mark.parametrize(
    ("data", "fsdp", "message"),
    [
        (-1, 3, "mesh.fsdp: 3 does not divide the 8 devices; use 1, 2, 4, 8"),
        (-1, 0, "mesh.fsdp: 0 does not divide"),
        (3, 2, "mesh.data: 3 x mesh.fsdp 2 is not the 8 devices; use 4 or -1"),
        (0, 1, "mesh.data: 0"),
    ],
)
def test_sizes_that_do_not_fit(data, fsdp, message):
    with pytest.raises(errors.UserError, match=message):
        sharding.make_mesh(data, fsdp)


def test_large_parameters_are_split_along_their_largest_divisible_dimension():
    shapes = {
        "wide": _struct(512, 2048),
        "tall": _struct(49408, 512),
        "odd_rows": _struct(49409, 512),
        "odd": _struct(1023, 1021),
        "small": _struct(64, 64),
        "scalar": _struct(),
    }
    specs = {
        k: s.spec for k, s in sharding.param_shardings(shapes, sharding.make_mesh(2, 4)).items()
    }
    assert specs == {
        "wide": P(None, "fsdp"),
        "tall": P("fsdp"),
        "odd_rows": P(None, "fsdp"),
        "odd": P(),
        "small": P(),
        "scalar": P(),
    }
    whole = sharding.param_shardings(shapes, sharding.make_mesh())
    assert all(s.is_fully_replicated for s in whole.values())


def test_put_batch_keeps_rows_in_order_and_spreads_them():
    batch = {
        "image": np.arange(16 * 3, dtype=np.uint8).reshape(16, 3),
        "valid": np.arange(16) % 3 == 0,
        "index": np.arange(16) + 2**40,
    }
    placed = sharding.put_batch(batch, sharding.make_mesh(2, 4))
    assert sorted(placed) == ["image", "valid"]  # 64 bits would be halved silently
    for name, array in placed.items():
        np.testing.assert_array_equal(np.asarray(array), batch[name])
        assert [s.data.shape[0] for s in array.addressable_shards] == [2] * 8


def test_batch_size_must_be_divisible():
    mesh = sharding.make_mesh()
    sharding.check_batch_size(104, mesh)
    message = "batch_size: 100 is not divisible by 8 devices; use a multiple of 8"
    with pytest.raises(errors.UserError, match=message):
        sharding.check_batch_size(100, mesh)
    with pytest.raises(errors.UserError, match="batch_size: 0"):
        sharding.check_batch_size(0, mesh)
