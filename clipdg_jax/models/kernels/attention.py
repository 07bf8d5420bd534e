"""Attention over short sequences.

A program has one head of one row: all its keys and values, and so many queries at a time that
their weights stay in registers. The backward pass computes the weights again, and from them
everything else, so that nothing but the inputs is kept.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Bool, Float

from clipdg_jax.models.kernels import common

# A program's keys and values, in elements each, fit in its registers.
_MOST_ELEMENTS = 128 * 64

# Not -inf: a row of padding sees no key, and its weights must not be NaN.
_HIDDEN = -1e30

# Queries at a time, by the number of keys: the fastest of those tried on an H100.
_BLOCK = {64: 64, 128: 16}
_WARPS = 4


def suits(qkv: Float[Array, "b n 3 h c"]) -> bool:
    """Whether `attention` takes this, and is the fastest way: in bfloat16 on an NVIDIA GPU."""
    _, n, _, _, c = qkv.shape
    fits = pl.next_power_of_2(n) * c <= _MOST_ELEMENTS
    return common.nvidia() and qkv.dtype == jnp.bfloat16 and fits and c >= 16 and c & (c - 1) == 0


@jax.custom_vjp
def attention(
    qkv: Float[Array, "b n 3 h c"], seen: Bool[Array, "#b n n"] | None
) -> Float[Array, "b n h c"]:
    """softmax(q k^T / sqrt(c)) v per head.

    qkv: queries, keys and values as one matrix product leaves them; to take them apart would be
        to copy them. c is a power of 2, at least 16.
    seen: whether a query (second axis) sees a key (third axis); None: each sees all.
    """
    return _attention(qkv, seen)


def _attention(qkv: Array, seen: Array | None, *dout: Array) -> Array:
    """The output; or given its gradient, the gradient of qkv."""
    masks = () if seen is None else (seen.astype(jnp.int8),)
    mask = "" if seen is None else "o n m" if seen.shape[0] == 1 else "b n m"
    return _by_rows(mask, bool(dout))(qkv, *masks, *dout)


def _forward(qkv: Array, seen: Array | None) -> tuple[Array, Any]:
    return _attention(qkv, seen), (qkv, seen)


def _backward(kept: Any, dout: Array) -> tuple[Array, None]:
    return _attention(*kept, dout), None


attention.defvjp(_forward, _backward)


@functools.cache
def _by_rows(mask: str, backward: bool) -> Callable[..., Array]:
    """The kernel on every device. mask: the axes of the mask, if there is one."""
    sides = ["b n t h c", *([mask] if mask else []), *(["b n h c"] if backward else [])]
    rule = f"{', '.join(sides)} -> {'b n t h c' if backward else 'b n h c'}"
    return common.by_rows(functools.partial(_call, mask, backward), rule)


def _call(mask: str, backward: bool, *arrays: Array) -> Array:
    b, n, _, h, c = arrays[0].shape
    size = max(pl.next_power_of_2(n), 16)
    qkv = pl.BlockSpec((None, n, 3, None, c), lambda i, j: (i, 0, 0, j, 0))
    out = pl.BlockSpec((None, n, None, c), lambda i, j: (i, 0, j, 0))
    seen = pl.BlockSpec((None, n, n), lambda i, j: (i if mask[0] == "b" else 0, 0, 0))
    specs = [qkv, *([seen] if mask else []), *([out] if backward else [])]
    shape = (b, n, 3, h, c) if backward else (b, n, h, c)
    kernel: Callable[..., None] = _gradient if backward else _output

    def run(*refs: Any) -> None:
        inputs = list(refs[:-1])
        seen_ref = inputs.pop(1) if mask else None
        kernel(_Head(inputs[0], seen_ref, size, _BLOCK.get(size, 16)), *inputs[1:], refs[-1])

    (found,) = common.call(
        run,
        "attention_backward" if backward else "attention",
        (b, h),
        (specs, [qkv if backward else out]),
        [jax.ShapeDtypeStruct(shape, arrays[0].dtype)],
        _WARPS,
    )(*arrays)
    return found


class _Head:
    """One head of one row, [n, 3, c], padded to `size` keys; queries come in blocks."""

    def __init__(self, qkv: Any, seen: Any, size: int, block: int):
        self.qkv, self.seen, self.size, self.block = qkv, seen, size, block
        self.n, _, self.c = qkv.shape

    def queries(self, start: Any) -> Array:
        return self.load(self.qkv, (jnp.int32(0),), start, self.block)

    def keys_and_values(self) -> tuple[Array, Array]:
        k, v = (self.load(self.qkv, (jnp.int32(which),), 0, self.size) for which in (1, 2))
        return k, v

    def load(self, ref: Any, which: tuple[Any, ...], start: Any, size: int) -> Array:
        mask = common.inside(start, (size, self.c), self.n)
        return common.load(ref, (pl.ds(start, size), *which, slice(None)), mask)

    def store(self, ref: Any, which: tuple[Any, ...], start: Any, value: Array) -> None:
        mask = common.inside(start, value.shape, self.n)
        common.store(ref, (pl.ds(start, len(value)), *which, slice(None)), value, mask)

    def weights(self, q: Array, k: Array, start: Any) -> Array:
        """float32 weights of a block of queries over all keys."""
        logits = common.dot(q, k, over=(1, 1)) * self.c**-0.5
        visible = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1) < self.n
        if self.seen is not None:
            mask = common.inside(start, logits.shape, self.n) & visible
            at = (pl.ds(start, self.block), pl.ds(0, self.size))
            visible = visible & (common.load(self.seen, at, mask) != 0)
        logits = jnp.where(visible, logits, _HIDDEN)
        weights = jnp.exp(logits - logits.max(axis=1, keepdims=True))
        return weights / weights.sum(axis=1, keepdims=True)

    def for_blocks(self, body: Callable[[Any, Any], Any], state: Any) -> Any:
        """`state = body(first query, state)` for each block of queries."""
        count = pl.cdiv(self.n, self.block)
        if count == 1:
            return body(0, state)
        return jax.lax.fori_loop(0, count, lambda i, s: body(i * self.block, s), state)


def _output(head: _Head, out: Any) -> None:
    k, v = head.keys_and_values()

    def body(start: Any, state: Any) -> Any:
        weights = head.weights(head.queries(start), k, start)
        head.store(out, (), start, common.dot(weights.astype(v.dtype), v, over=(1, 0)))
        return state

    head.for_blocks(body, 0)


def _gradient(head: _Head, dout: Any, dqkv: Any) -> None:
    k, v = head.keys_and_values()

    def body(start: Any, state: Any) -> Any:
        q, dy = head.queries(start), head.load(dout, (), start, head.block)
        weights = head.weights(q, k, start)
        dv = common.dot(weights.astype(v.dtype), dy, over=(0, 0))
        dweights = common.dot(dy, v, over=(1, 1))
        dlogits = weights * (dweights - (weights * dweights).sum(axis=1, keepdims=True))
        dlogits = (dlogits * head.c**-0.5).astype(q.dtype)
        head.store(dqkv, (jnp.int32(0),), start, common.dot(dlogits, k, over=(1, 0)))
        return state[0] + common.dot(dlogits, q, over=(0, 0)), state[1] + dv

    zeros = jnp.zeros(k.shape, jnp.float32)
    dk, dv = head.for_blocks(body, (zeros, zeros))
    head.store(dqkv, (jnp.int32(1),), 0, dk)
    head.store(dqkv, (jnp.int32(2),), 0, dv)
