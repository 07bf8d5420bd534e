import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipdg_jax.training import checksums, sharding


def _leaves(mesh=None):
    rng = np.random.default_rng(0)
    leaves = {
        "w": rng.normal(size=(256, 512)).astype(np.float32),
        "half": rng.normal(size=(64, 16)).astype(jnp.bfloat16),
        "image": rng.integers(256, size=(8, 5), dtype=np.uint8),
        "mask": rng.random(24) < 0.5,
        "count": np.int32(7),
        "empty": np.zeros((0, 3), np.float32),
    }
    if mesh is None:
        return {k: jnp.asarray(v) for k, v in leaves.items()}
    rows, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    split = ("w", "half", "image", "mask")
    return {k: jax.device_put(v, rows if k in split else whole) for k, v in leaves.items()}


def test_sums_do_not_depend_on_the_devices():
    expected = checksums.leaf_checksums(_leaves())
    digest = checksums.params_sha256(_leaves())
    for count, fsdp in ((8, 4), (4, 1)):
        leaves = _leaves(sharding.make_mesh(fsdp=fsdp, devices=jax.devices()[:count]))
        assert checksums.leaf_checksums(leaves) == expected
        assert checksums.params_sha256(leaves) == digest
    assert len({*expected.values()}) == len(expected)


def test_the_sum_is_the_documented_one():
    """The same hash in Python's own integers, over words in row-major order."""

    def mix(x):
        x = (x ^ (x >> 16)) * 0x85EBCA6B % 2**32
        x = (x ^ (x >> 13)) * 0xC2B2AE35 % 2**32
        return x ^ (x >> 16)

    values = np.asarray([[1.0, -2.5, np.nan], [0.0, -0.0, 1e-40]], np.float32)
    words = [int(w) for w in values.view(np.uint32).ravel()]
    lanes = [
        sum(mix(w ^ mix((i + seed) % 2**32)) for i, w in enumerate(words)) % 2**32
        for seed in (0x9E3779B9, 0x7F4A7C15)
    ]
    got = checksums.leaf_checksums({"x": jnp.asarray(values)})["x"]
    assert got == f"{lanes[0]:08x}{lanes[1]:08x}"


@pytest.mark.parametrize("dtype", [np.float32, np.uint16, np.uint8])
def test_every_single_bit_and_every_swap_shows(dtype):
    size = np.dtype(dtype).itemsize
    good = np.arange(3 * 5 * size, dtype=np.uint8)
    seen = set()
    variants = [good]
    for bit in range(8 * len(good)):
        bad = good.copy()
        bad[bit // 8] ^= 1 << (bit % 8)
        variants.append(bad)
    words = good.reshape(15, size)
    for i in range(15):
        for j in range(i):
            swapped = words.copy()
            swapped[[i, j]] = words[[j, i]]
            variants.append(swapped.ravel())
    for v in variants:
        seen.add(checksums.leaf_checksums({"x": jnp.asarray(v.view(dtype).reshape(3, 5))})["x"])
    assert len(seen) == len(variants)


def test_negative_zero_is_not_zero():
    sums = [checksums.leaf_checksums({"x": jnp.full((2,), z)})["x"] for z in (0.0, -0.0)]
    assert sums[0] != sums[1]


def test_canonical_order_counts():
    ordered = ["9.b", "10.a", "logit_scale", "r.2.b", "r.2.w", "r.10.w", "r.w"]
    assert checksums.canonical_order(dict.fromkeys(reversed(ordered))) == ordered


def test_the_digest_is_the_documented_one():
    params = {"r.10": jnp.asarray([1.0, 2.0]), "r.9": jnp.asarray([[3]], jnp.bfloat16)}
    three = b"\x40\x40"  # as a bfloat16
    one_and_two = np.asarray([1.0, 2.0], "<f4").tobytes()
    content = b"r.9 bfloat16 [1, 1]\n" + three + b"r.10 float32 [2]\n" + one_and_two
    assert checksums.params_sha256(params) == hashlib.sha256(content).hexdigest()
