"""Periodic noise and material tiles, made once per process from a fixed seed.

A tile is float32 [n, n] in about [-1, 1] and wraps around; pictures take crops of it at random
places, scales and turns. Tiles hold about ten features across, so that a material can be told at
small sizes too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import cv2
import numpy as np
from jaxtyping import Float

from clipdg_jax.data.demo.geometry import Draw

TILE = 512
_SEED = 20240

Tile = Float[np.ndarray, "n n"]


def named_rng(name: str) -> np.random.Generator:
    """Random numbers fixed by a name, the same in every process."""
    return np.random.default_rng([_SEED, *name.encode()])


def _grid() -> tuple[Tile, Tile]:
    axis = np.arange(TILE, dtype=np.float32) / TILE
    return np.meshgrid(axis, axis)


def _normalised(tile: np.ndarray) -> Tile:
    tile = tile - tile.mean()
    return np.clip(tile / (2 * tile.std() + 1e-9), -1, 1).astype(np.float32)


def _spectral(name: str, falloff: float, stretch: float = 1.0, cut: float = 0.0) -> Tile:
    """Periodic noise of spectrum f^-falloff; `stretch` > 1 draws it out along y, < 1 along x."""
    f = np.fft.fftfreq(TILE, 1 / TILE)
    radius = np.hypot(f[None, :], f[:, None] * stretch)
    radius[0, 0] = 1
    gain = np.where(radius < cut, 0, (radius + 1e-6) ** -falloff)
    gain[0, 0] = 0
    noise = np.fft.fft2(named_rng(name).standard_normal((TILE, TILE)))
    return _normalised(np.fft.ifft2(noise * gain).real)


def _dabs(name: str, count: int, low: int, high: int, aspect: float) -> Tile:
    """Overlapping ellipses of random grey, wrapped around the edges."""
    d = Draw(named_rng(name))
    tile = np.zeros((TILE, TILE), np.float32)
    for _ in range(count):
        x, y, r = d.below(TILE), d.below(TILE), low + d.below(high - low)
        turn, value = d.u(0, 180), d.u(-1, 1)
        axes = (r, max(1, int(r * aspect)))
        for dx in (-TILE, 0, TILE):
            for dy in (-TILE, 0, TILE):
                if -r <= x + dx < TILE + r and -r <= y + dy < TILE + r:
                    cv2.ellipse(tile, (x + dx, y + dy), axes, turn, 0, 360, value, -1, cv2.LINE_AA)
    return tile


def _brick() -> Tile:
    x, y = _grid()
    row = np.floor(y * 10)
    u = (x * 5 + 0.5 * (row % 2)) % 1
    v = (y * 10) % 1
    shade = named_rng("brick").uniform(-0.3, 0.5, (10, 5))
    brick = shade[row.astype(int), np.floor(x * 5 + 0.5 * (row % 2)).astype(int) % 5]
    mortar = (u < 0.1) | (v < 0.18)
    return _normalised(np.where(mortar, 1.5, brick - 0.5) + 0.2 * fine_noise())


def _leaves() -> Tile:
    return _normalised(_dabs("leaves", 900, 16, 30, 0.5) + 0.2 * fine_noise())


def _metal() -> Tile:
    _, y = _grid()
    wave = np.sin(2 * np.pi * (2 * y + 0.12 * soft_noise()))
    return (0.8 * np.sign(wave) * np.abs(wave) ** 0.4 + 0.08 * fine_noise()).astype(np.float32)


def _scales() -> Tile:
    x, y = _grid()
    best = np.full((TILE, TILE), -1.0, np.float32)
    for k in range(3):
        row = np.floor(y * 12) - k
        u = (x * 9 + 0.5 * (row % 2)) % 1 - 0.5
        v = y * 12 - row
        r = np.hypot(u * 1.9, v - 0.6) / 1.15
        best = np.where((r < 1) & (best < 0), r, best)
    return _normalised(-(np.clip(best, 0, 1) ** 3) * 2 + 0.15 * fine_noise())


def _feathers() -> Tile:
    x, y = _grid()
    u = np.abs((x * 5) % 1 - 0.5)
    chevron = np.sin(2 * np.pi * (10 * y + 2.2 * u))
    return _normalised(chevron - 1.6 * (u < 0.05) + 0.3 * fine_noise())


def _fur() -> Tile:
    streaks = _spectral("fur", 1.1, stretch=6.0, cut=6)
    return _normalised(streaks + 0.4 * soft_noise())


def _ceramic() -> Tile:
    d = Draw(named_rng("ceramic"))
    tile = np.full((TILE, TILE), 0.35, np.float32)
    for _ in range(150):
        centre, r = (d.below(TILE), d.below(TILE)), 5 + d.below(9)
        cv2.circle(tile, centre, r, -1.0, -1, cv2.LINE_AA)
    return tile


def _wood() -> Tile:
    x, y = _grid()
    warp = 0.5 * soft_noise() + 0.25 * np.sin(2 * np.pi * (x + 2 * y))
    rings = np.sin(2 * np.pi * (9 * y + 0.7 * warp))
    return _normalised(rings + 0.5 * _spectral("wood", 1.0, stretch=0.12, cut=4))


def _petal() -> Tile:
    x, _ = _grid()
    veins = np.abs(np.sin(2 * np.pi * (5 * x + 0.3 * soft_noise())))
    return _normalised(-(veins**0.35) + 0.9 * soft_noise())


def _lacquer() -> Tile:
    x, y = _grid()
    flame = np.sin(2 * np.pi * (7 * x + 0.8 * np.sin(2 * np.pi * y) + 0.4 * soft_noise()))
    return _normalised(flame + 0.8 * np.cos(2 * np.pi * (y * 2)))


def _planks() -> Tile:
    _, y = _grid()
    board = np.floor(y * 7).astype(int)
    tone = named_rng("planks").uniform(-0.7, 0.7, 7)[board]
    gap = ((y * 7) % 1) < 0.14
    return _normalised(np.where(gap, -2.0, tone) + 0.4 * _spectral("planks", 1.0, 0.12, cut=4))


def _fabric() -> Tile:
    x, y = _grid()
    weave = np.sign(np.sin(2 * np.pi * 6 * x)) + np.sign(np.sin(2 * np.pi * 6 * y))
    return _normalised(weave + 0.2 * fine_noise())


_MAKERS: dict[str, Callable[[], Tile]] = {
    "brick": _brick,
    "leaves": _leaves,
    "metal": _metal,
    "scales": _scales,
    "feathers": _feathers,
    "fur": _fur,
    "ceramic": _ceramic,
    "wood": _wood,
    "petal": _petal,
    "lacquer": _lacquer,
    "planks": _planks,
    "fabric": _fabric,
    "fine": lambda: _spectral("fine", 0.4, cut=12),
    "soft": lambda: _spectral("soft", 2.2),
    "cloud": lambda: _spectral("cloud", 1.7),
    "grass": lambda: _spectral("grass", 0.9, stretch=4.0, cut=8),
    "wave": lambda: _spectral("wave", 1.2, stretch=0.2, cut=5),
    "paper": lambda: _spectral("paper", 0.7, cut=30),
    "canvas": lambda: _canvas(),
    "bumps": lambda: _normalised(_dabs("bumps", 420, 14, 40, 0.8)),
}


def _canvas() -> Tile:
    x, y = _grid()
    weave = np.sin(2 * np.pi * 64 * x) * np.sign(np.sin(2 * np.pi * 64 * y))
    return _normalised(weave + 0.7 * _spectral("paper", 0.7, cut=30))


@functools.cache
def tile(name: str) -> Tile:
    """The full-size tile of a material or noise."""
    return _MAKERS[name]()


def fine_noise() -> Tile:
    return tile("fine")


def soft_noise() -> Tile:
    return tile("soft")


@functools.lru_cache(maxsize=256)
def _level(name: str, n: int) -> Tile:
    return cv2.resize(tile(name), (n, n), interpolation=cv2.INTER_AREA)


def level_for(name: str, pixels: float) -> Tile:
    """The tile at a power-of-two size that suits a tile spanning `pixels` (anti-aliasing)."""
    n = 32
    while n < min(pixels * 0.9, TILE):
        n *= 2
    return _level(name, n)


def crop(name: str, d: Draw, height: int, width: int, span: float, turn: float = 0.0) -> Tile:
    """A random crop [height, width] of a tile that spans `span` pixels, turned by `turn`."""
    source = level_for(name, span)
    step = source.shape[0] / span
    c, s = step * np.cos(turn), step * np.sin(turn)
    matrix = np.array([[c, -s, d.u(0, source.shape[0])], [s, c, d.u(0, source.shape[0])]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(source, matrix, (width, height), flags=flags, borderMode=cv2.BORDER_WRAP)


def ground(name: str, d: Draw, height: int, width: int, span: float) -> Tile:
    """A tile laid on a plane that recedes to a horizon just above the first row.

    Rows near the horizon fade out, where the texture is finer than a pixel.
    """
    source = level_for(name, span)
    n = source.shape[0]
    depth = (np.arange(height, dtype=np.float32) + 1.5) / height
    rows = (d.u(0, n) + 0.45 * n / depth).astype(np.int32) % n
    spread = (np.arange(width, dtype=np.float32) - width * d.u(0.3, 0.7)) * (n / span)
    columns = (spread[None, :] / depth[:, None] * 0.6 + d.u(0, n)).astype(np.int32) % n
    return source[rows[:, None], columns] * np.minimum(1, 1.6 * depth)[:, None]


def sensor_noise(d: Draw, side: int) -> Float[np.ndarray, "s s 3"]:
    """A crop of fixed unit Gaussian noise, [side, side, 3]."""
    bank = _noise_bank(side)
    y, x = d.below(side), d.below(side)
    return bank[y : y + side, x : x + side]


@functools.lru_cache(maxsize=4)
def _noise_bank(side: int) -> np.ndarray:
    return named_rng("sensor").standard_normal((2 * side, 2 * side, 3)).astype(np.float32)
