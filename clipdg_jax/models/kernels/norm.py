"""LayerNorm at the head of a residual branch.

x goes on beside the branch, and its gradient is the sum of what comes back from both. The backward
kernel adds them in passing, and gathers the gradients of weight and bias for each row of the batch
while it has the row's tokens in registers.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from clipdg_jax.models.kernels import common

# Tokens at a time: within a few per cent of the fastest of those tried on an H100.
_ROWS = 4


def suits(x: Float[Array, "..."]) -> bool:
    """Whether `branch` takes this, and is the fastest way: in bfloat16 on an NVIDIA GPU."""
    return (
        common.nvidia()
        and x.dtype == jnp.bfloat16
        and x.ndim == 3
        and _part(x.shape[-1]) >= 32
        and x.shape[-1] <= 16 * _part(x.shape[-1])
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def branch(
    x: Float[Array, "b n d"], weight: Float[Array, " d"], bias: Float[Array, " d"], eps: float
) -> tuple[Float[Array, "b n d"], Float[Array, "b n d"]]:
    """x itself; and (x - mean) / sqrt(variance + eps) * weight + bias along the last axis.

    Computed in float32, given in x's type.
    """
    return x, _by_rows(eps, False)(x, weight, bias)


def _forward(x: Array, weight: Array, bias: Array, eps: float) -> tuple[tuple[Array, Array], Any]:
    return branch(x, weight, bias, eps), (x, weight)


def _backward(eps: float, kept: Any, grads: tuple[Array, Array]) -> tuple[Array, Array, Array]:
    beside, dy = grads
    dx, dweight, dbias = _by_rows(eps, True)(*kept, dy, beside)
    return dx, dweight.sum(axis=0), dbias.sum(axis=0)


branch.defvjp(_forward, _backward)


@functools.cache
def _by_rows(eps: float, backward: bool) -> Callable[..., Any]:
    """The kernel on every device."""
    if backward:
        rule = "b n d, d, b n d, b n d -> b n d, b d, b d"
        return common.by_rows(functools.partial(_call_gradients, eps), rule)
    return common.by_rows(functools.partial(_call_output, eps), "b n d, d, d -> b n d")


def _warps(width: int) -> int:
    """So many that a token's part of a thread fits in its registers."""
    return min(pl.next_power_of_2(pl.cdiv(width, 384)), 16)


def _call_output(eps: float, x: Array, weight: Array, bias: Array) -> Array:
    b, n, d = x.shape
    each = pl.BlockSpec((None, n, d), lambda i, j: (i, 0, 0))
    whole = pl.BlockSpec((d,), lambda i, j: (0,))
    (out,) = common.call(
        functools.partial(_output, eps),
        "layer_norm",
        (b, pl.cdiv(n, _ROWS)),
        ([each, whole, whole], [each]),
        [jax.ShapeDtypeStruct(x.shape, x.dtype)],
        _warps(d),
    )(x, weight, bias)
    return out


def _call_gradients(
    eps: float, x: Array, weight: Array, dy: Array, beside: Array
) -> tuple[Array, Array, Array]:
    b, n, d = x.shape
    each = pl.BlockSpec((None, n, d), lambda i: (i, 0, 0))
    whole = pl.BlockSpec((d,), lambda i: (0,))
    own = pl.BlockSpec((None, d), lambda i: (i, 0))
    sums = jax.ShapeDtypeStruct((b, d), jnp.float32)
    dx, dweight, dbias = common.call(
        functools.partial(_gradients, eps),
        "layer_norm_backward",
        (b,),
        ([each, whole, each, each], [each, own, own]),
        [jax.ShapeDtypeStruct(x.shape, x.dtype), sums, sums],
        _warps(d),
    )(x, weight, dy, beside)
    return dx, dweight, dbias


# Triton's blocks have powers of 2 as their sides: a token is a list of equal parts.


def _part(width: int) -> int:
    """The largest power of 2 that divides it."""
    return width & -width


def _columns(width: int) -> list[Any]:
    return [pl.ds(first, _part(width)) for first in range(0, width, _part(width))]


def _load(ref: Any, start: Any) -> list[Array]:
    """float32 tokens from `start` on."""
    n, width = ref.shape
    mask = common.inside(start, (_ROWS, _part(width)), n)
    parts = [common.load(ref, (pl.ds(start, _ROWS), c), mask) for c in _columns(width)]
    return [part.astype(jnp.float32) for part in parts]


def _store(ref: Any, start: Any, parts: list[Array]) -> None:
    n, width = ref.shape
    mask = common.inside(start, (_ROWS, _part(width)), n)
    for part, c in zip(parts, _columns(width), strict=True):
        common.store(ref, (pl.ds(start, _ROWS), c), part, mask)


def _vector(ref: Any) -> list[Array]:
    return [ref[c][None, :] for c in _columns(ref.shape[0])]


def _mean(parts: list[Array]) -> Array:
    total = functools.reduce(jnp.add, [part.sum(axis=1, keepdims=True) for part in parts])
    return total / (len(parts) * parts[0].shape[1])


def _times(a: list[Array], b: list[Array]) -> list[Array]:
    return [x * y for x, y in zip(a, b, strict=True)]


def _plus(a: list[Array], b: list[Array]) -> list[Array]:
    return [x + y for x, y in zip(a, b, strict=True)]


def _normalised(x: list[Array], eps: float) -> tuple[list[Array], Array]:
    """Tokens of mean 0 and variance 1, and what they were multiplied by."""
    mean = _mean(x)
    x = [part - mean for part in x]
    scale = jax.lax.rsqrt(_mean(_times(x, x)) + eps)
    return [part * scale for part in x], scale


def _output(eps: float, x: Any, weight: Any, bias: Any, out: Any) -> None:
    start = pl.program_id(1) * _ROWS
    normalised, _ = _normalised(_load(x, start), eps)
    _store(out, start, _plus(_times(normalised, _vector(weight)), _vector(bias)))


def _gradients(
    eps: float, x: Any, weight: Any, dy: Any, beside: Any, dx: Any, dweight: Any, dbias: Any
) -> None:
    n, width = x.shape
    weights = _vector(weight)

    def body(i: Any, sums: tuple[list[Array], list[Array]]) -> tuple[list[Array], list[Array]]:
        start = i * _ROWS
        normalised, scale = _normalised(_load(x, start), eps)
        d = _load(dy, start)
        along = _times(d, normalised)
        sums = _plus(sums[0], along), _plus(sums[1], d)
        d = _times(d, weights)
        mean, slope = _mean(d), _mean(_times(d, normalised))
        d = [(g - mean - y * slope) * scale for g, y in zip(d, normalised, strict=True)]
        _store(dx, start, _plus(d, _load(beside, start)))
        return sums

    zeros = [jnp.zeros((_ROWS, _part(width)), jnp.float32) for _ in _columns(width)]
    sums = jax.lax.fori_loop(0, pl.cdiv(n, _ROWS), body, (zeros, zeros))
    for ref, parts in zip((dweight, dbias), sums, strict=True):
        for part, c in zip(parts, _columns(width), strict=True):
            ref[c] = part.sum(axis=0)
