"""Exact sums over arrays: of each leaf on the devices, and of all parameters on the host."""

import functools
import hashlib
import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32

from clipdg_jax.training import sharding

# Added to each element's position, so that the two halves of a checksum are unrelated.
_SEEDS = (0x9E3779B9, 0x7F4A7C15)


def leaf_checksums(leaves: Mapping[str, Array]) -> dict[str, str]:
    """A 64-bit checksum for each array, as 16 hexadecimal digits.

    It depends on every bit and on where it stands, not on how the array is sharded. A change of
    one element always shows; any other change is missed with probability 2^-64. Computed on the
    devices; every process must call it, with the same leaves in the same order.
    """
    sums = {name: _compiled(_whole(leaf))(leaf) for name, leaf in leaves.items()}
    return {name: f"{a:08x}{b:08x}" for name, (a, b) in jax.device_get(sums).items()}


def _whole(leaf: Array) -> jax.sharding.Sharding | None:
    """The sharding that lets every process read the sum of `leaf`."""
    if isinstance(leaf.sharding, jax.sharding.NamedSharding):
        return sharding.replicated(leaf.sharding.mesh)
    return None


@functools.cache
def _compiled(out: jax.sharding.Sharding | None):
    return jax.jit(_checksum, out_shardings=out)


def _checksum(x: Array) -> UInt32[Array, "2"]:
    """Sum modulo 2^32 of a hash of (element, position), twice: sums do not mind the order."""
    words = _words(x)
    index = jnp.zeros(words.shape, jnp.uint32)
    stride = 1
    for dim in reversed(range(words.ndim)):
        along = jax.lax.broadcasted_iota(jnp.uint32, words.shape, dim)
        index += along * jnp.uint32(stride % 2**32)
        stride *= words.shape[dim]
    # For a given position `_mix(words ^ ..)` is one-to-one: a single change cannot hide.
    lanes = [jnp.sum(_mix(words ^ _mix(index + jnp.uint32(s))), dtype=jnp.uint32) for s in _SEEDS]
    return jnp.stack(lanes)


def _words(x: Array) -> Array:
    """The bits of each element as one uint32, or two in a new last dimension."""
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[x.dtype.itemsize]
    return jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)


def _mix(x: Array) -> Array:
    """MurmurHash3's 32-bit finaliser, a one-to-one map (Appleby, public domain)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def canonical_order(names: Mapping[str, object]) -> list[str]:
    """Parameter names sorted with numbers by value: `resblocks.2` before `resblocks.10`."""
    return sorted(
        names,
        key=lambda n: [(p.isdigit(), int(p) if p.isdigit() else p) for p in re.split(r"(\d+)", n)],
    )


def params_sha256(params: Mapping[str, Array | np.ndarray]) -> str:
    """SHA-256 over all parameters in canonical order: name, dtype, shape and bytes of each.

    The bytes are little-endian and in row-major order. Independent of the sharding; every
    process must call it, and gets the same digest. Copies one parameter at a time to the host.
    """
    digest = hashlib.sha256()
    for name in canonical_order(params):
        value = _on_host(params[name])
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def _on_host(x: Array | np.ndarray) -> np.ndarray:
    if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
        # Other processes hold a part.
        x = jax.jit(lambda a: a, out_shardings=_whole(x))(x)
    return np.asarray(x)
