"""Pairs within a Hamming radius: all of them, each once, as comparing all with all finds them."""

import itertools
import math

import numpy as np
import pytest

from clipdg_jax.domains.dedup import banding
from clipdg_jax.errors import UserError


def hashes(kind: str) -> np.ndarray:
    """Random ones, with families that differ in a few bits; or ones that share most of them."""
    rng = np.random.default_rng(1)
    if kind == "skewed":  # A quarter of the bits vary.
        return rng.integers(0, 1 << 16, 200, dtype=np.uint64) << np.uint64(20)
    values = rng.integers(0, 1 << 63, 300, dtype=np.uint64)
    family = values[rng.integers(0, 30, 200)]
    for _ in range(6):
        family = family ^ (np.uint64(1) << rng.integers(0, 64, 200).astype(np.uint64))
    return np.concatenate([values, family])


def brute_force(values, radius):
    apart = np.bitwise_count(values[:, None] ^ values[None, :])
    return {tuple(pair) for pair in np.argwhere(np.triu(apart <= radius, 1)).tolist()}


@pytest.mark.parametrize("available", [1 << 30, 4000])
@pytest.mark.parametrize("radius", [0, 1, 4, 7])
@pytest.mark.parametrize("kind", ["families", "skewed"])
def test_pairs_are_those_of_brute_force(kind, radius, available):
    values = hashes(kind)
    found = [sorted(pair) for part in banding.pairs(values, radius, available) for pair in part]
    unique = {tuple(map(int, pair)) for pair in found}
    assert len(found) == len(unique)
    assert unique == brute_force(values, radius)
    assert radius < 7 or len(unique) > 50


@pytest.mark.parametrize("radius", [1, 3, 4, 8, 12])
def test_any_so_many_bits_leave_one_table_alone(radius):
    masks = banding.tables(1 << 20, radius)
    number = banding.blocks(1 << 20, radius)
    assert len(masks) == math.comb(number, radius)
    rng = np.random.default_rng(0)
    for _ in range(300):
        flipped = rng.choice(64, radius, replace=False)
        differ = np.uint64(sum(1 << int(bit) for bit in flipped))
        assert any(mask & differ == 0 for mask in masks)


def test_more_hashes_share_longer_keys():
    for radius in (2, 4):
        bits = [
            min(int(mask).bit_count() for mask in banding.tables(count, radius))
            for count in (1000, 10**6, 10**8)
        ]
        assert bits == sorted(bits)
        assert all(b >= math.log2(n) - 2 for b, n in zip(bits, (1000, 10**6, 10**8), strict=True))
        for count in (1000, 10**8):
            assert all(a != b for a, b in itertools.pairwise(banding.tables(count, radius)))


def test_radii_out_of_range():
    for radius in (-1, 13):
        with pytest.raises(UserError, match=r"perceptual.radius: is .* 0 to 12"):
            banding.check_radius(radius, "config.perceptual.radius")
