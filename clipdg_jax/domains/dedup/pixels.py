"""Whether two thumbnails show the same picture, also when one was cut by a twentieth.

One is moved over the other by the cuts that a crop of 5 % allows, and the best correlation counts.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, UInt8

from clipdg_jax.domains.dedup import hashes

Luminance: TypeAlias = UInt8[np.ndarray, "n 32 32"]
Chroma: TypeAlias = UInt8[np.ndarray, "n 8 8 2"]

# Share of the side that is left, and where the cut is: at one end, at both, at the other.
_LEFT = 0.95
_OFFSETS = (0.0, 0.5, 1.0)
# Compared in a coarser raster than the thumbnails' own: what JPEG and resizing leave alone.
_RASTER = 16
# Pairs at a time: what is made of them, 2.4 MB a plane, stays in a processor's cache.
_BLOCK = 256


@functools.cache
def _cuts(side: int, raster: int) -> Float32[np.ndarray, "4 raster side"]:
    """From a thumbnail's rows (or columns) to a raster: uncut, then with each of the cuts."""

    def cut(left: float, offset: float) -> np.ndarray:
        centres = (offset * (1 - left) + left * (np.arange(side) + 0.5) / side) * side - 0.5
        return np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(side)[None, :]))

    every = [cut(1.0, 0.0), *(cut(_LEFT, offset) for offset in _OFFSETS)]
    rows = np.stack([matrix / matrix.sum(1, keepdims=True) for matrix in every])
    averaged = rows.reshape(len(every), raster, side // raster, side).mean(2)
    return averaged.astype(np.float32)


def correlation(
    first: tuple[Luminance, Chroma],
    second: tuple[Luminance, Chroma],
    mirrored: Bool[np.ndarray, " n"],
) -> Float32[np.ndarray, " n"]:
    """The correlation of each pair over luminance and chroma, at the best cut of either of the two.

    Args:
      first, second: `hashes.thumbnail` and `hashes.colours` of n images each.
      mirrored: whether the second is to be looked at in the mirror.

    Returns:
      From -1 to 1; 0 where one has no structure. Changes of brightness, contrast and white balance
      do not matter; those of saturation matter a little.
    """
    flip = mirrored[:, None, None]
    luminance = np.where(flip, second[0][:, :, ::-1], second[0])
    chroma = np.where(flip[..., None], second[1][:, :, ::-1], second[1])
    sides = (*first, luminance, chroma)
    found = [np.zeros(0, np.float32)]
    for start in range(0, len(mirrored), _BLOCK):
        parts = [_padded(side[start : start + _BLOCK]) for side in sides]
        real = min(_BLOCK, len(mirrored) - start)
        found.append(np.asarray(_correlation(*parts))[:real])
    return np.concatenate(found)


def _padded(part: np.ndarray) -> np.ndarray:
    return np.concatenate([part, np.zeros((_BLOCK - len(part), *part.shape[1:]), part.dtype)])


@jax.jit
def _correlation(first: Array, first_chroma: Array, second: Array, second_chroma: Array) -> Array:
    cuts = {
        _RASTER: jnp.asarray(_cuts(hashes.SIDE, _RASTER)),
        hashes.COLOUR_SIDE: jnp.asarray(_cuts(hashes.COLOUR_SIDE, hashes.COLOUR_SIDE)),
    }

    def planes(luminance: Array, chroma: Array) -> list[tuple[Array, Array]]:
        every = [(luminance, _RASTER)]
        every += [(chroma[..., i], hashes.COLOUR_SIDE) for i in range(chroma.shape[-1])]
        return [(_centred(plane), cuts[raster]) for plane, raster in every]

    ours, theirs = planes(first, first_chroma), planes(second, second_chroma)
    plain = [[_raster(plane, cut[:1]) for plane, cut in side] for side in (ours, theirs)]
    moved = [[_raster(plane, cut[1:]) for plane, cut in side] for side in (ours, theirs)]
    pairs = ((plain[0], plain[1]), (moved[0], plain[1]), (moved[1], plain[0]))
    return jnp.stack([_best(one, other) for one, other in pairs]).max(0)


def _centred(plane: Array) -> Array:
    plane = plane.astype(jnp.float32)
    return plane - plane.mean((1, 2), keepdims=True)


def _raster(images: Array, cuts: Array) -> Array:
    """n y x -> n k r l c: every cut k of the rows r with every cut l of the columns c."""
    count, raster, side = cuts.shape
    every = cuts.reshape(count * raster, side)
    columns = jnp.matmul(images.reshape(-1, side), every.T).reshape(len(images), side, -1)
    return jnp.matmul(every, columns).reshape(len(images), count, raster, count, raster)


def _best(cut: Sequence[Array], plain: Sequence[Array]) -> Array:
    """Planes of n k r l c, of n 1 r 1 c -> n: the largest of the k x l correlations."""
    axes = (2, 4)
    covariance, variance, others = jnp.zeros(()), jnp.zeros(()), jnp.zeros(())
    for one, other in zip(cut, plain, strict=True):
        count = one.shape[2] * one.shape[4]
        other = other - other.mean(axes, keepdims=True)
        covariance += (one * other).sum(axes) / count
        variance += (one * one).sum(axes) / count - (one.sum(axes) / count) ** 2
        others += (other * other).sum(axes) / count
    power = variance * others
    # Less than a grey level of spread in either is no structure.
    correlations = jnp.where(power > 1, covariance / jnp.sqrt(jnp.maximum(power, 1)), 0)
    return correlations.max((1, 2))
