"""How fast the kernels of `models.kernels` are on a GPU, beside cuDNN's and XLA's.

    python -m tools.bench_kernels --rows=3072 --tokens=50 --width=768             # images
    python -m tools.bench_kernels --rows=640 --tokens=80 --width=512 --packed     # captions

Attention, and LayerNorm at the head of a residual branch, of ViT-B/32 in bfloat16: milliseconds of
the forward pass, and of both passes, the best of three times `--count` runs; and how far the
outputs and the gradients are from float32's, ||x - y|| / ||y||, on the first `--exact_rows`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from clipdg_jax.models import layers, text
from clipdg_jax.models.kernels import attention, norm
from tools import bench_inputs, cli

FLAGS = flags.FLAGS
HEAD = 64  # Channels of a head, in every CLIP.


def define_flags() -> None:
    """The command line's: tests import several tools into one process."""
    flags.DEFINE_integer("rows", 3072, "Rows of tokens.", lower_bound=1)
    flags.DEFINE_integer("tokens", 50, "Tokens of a row.", lower_bound=1)
    flags.DEFINE_integer("width", 768, "Channels of a token.", lower_bound=HEAD)
    flags.DEFINE_bool("packed", False, "Rows are of captions, masked, and not of patches.")
    flags.DEFINE_integer("count", 20, "Runs that are timed together.", lower_bound=1)
    flags.DEFINE_integer("exact_rows", 64, "Rows compared with float32.", lower_bound=1)


def packed(rows: int, columns: int) -> jax.Array:
    """Whether a token sees another, in rows full of captions of web-like lengths."""
    found = np.zeros((rows, columns), np.int32)
    lengths = iter(bench_inputs.lengths(rows * columns, context=columns).tolist())
    for row in found:
        start = 0
        while start < columns:
            length = min(next(lengths), columns - start)
            row[start : start + length] = np.arange(length)
            start += length
    return text.seen(jnp.asarray(found))


def branch(x: jax.Array, weight: jax.Array, bias: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`norm.branch` as XLA compiles it."""
    y = x.astype(jnp.float32)
    y = y - y.mean(-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + layers.EPS)
    return x, (y * weight[None, None] + bias[None, None]).astype(x.dtype)


def passes(function: Callable[..., Any]) -> Callable[..., Any]:
    """Both passes: the function's results, and the gradients of its arguments."""

    def both(grads: Any, *args: jax.Array) -> Any:
        results, back = jax.vjp(function, *args)
        return results, back(grads)

    return both


def milliseconds(function: Callable[..., Any], *args: Any) -> float:
    compiled = jax.jit(function).lower(*args).compile()

    def once() -> float:
        start = time.perf_counter()
        for _ in range(FLAGS.count):
            results = compiled(*args)
        jax.block_until_ready(results)
        return 1e3 * (time.perf_counter() - start) / FLAGS.count

    once()
    return min(once() for _ in range(3))


def distance(found: Any, exact: Any) -> float:
    """||found - exact|| / ||exact||, the largest of all arrays."""

    def leaves(tree: Any) -> list[np.ndarray]:
        return [np.asarray(x, np.float64) for x in jax.tree.leaves(tree)]

    pairs = zip(leaves(found), leaves(exact), strict=True)
    return max(float(np.linalg.norm(f - e) / np.linalg.norm(e)) for f, e in pairs)


def compare(name: str, ways: dict[str, Callable[..., Any]], *args: jax.Array) -> None:
    """Prints a line for each way; "XLA" is there, and is what is right in float32."""
    grads = jax.tree.map(
        lambda x: jax.random.normal(jax.random.key(7), x.shape, x.dtype),
        jax.eval_shape(ways["XLA"], *args),
    )
    few = jax.tree.map(lambda x: x[: FLAGS.exact_rows] if x.ndim > 1 else x, (grads, *args))
    with jax.default_matmul_precision("highest"):
        exact = jax.jit(passes(ways["XLA"]))(*jax.tree.map(lambda x: x.astype(jnp.float32), few))
    for way, function in ways.items():
        forward, both = milliseconds(function, *args), milliseconds(passes(function), grads, *args)
        off = distance(jax.jit(passes(function))(*few), exact)
        print(f"{name:10} {way:6} forward {forward:.3f} ms, both {both:.3f} ms, off {off:.1e}")


def main(argv: Sequence[str]) -> None:
    del argv
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    rows, tokens, width = FLAGS.rows, FLAGS.tokens, FLAGS.width
    keys = jax.random.split(jax.random.key(0), 4)
    x = jax.random.normal(keys[0], (rows, tokens, width), jnp.bfloat16)
    weight, bias = (jax.random.normal(key, (width,)) for key in keys[1:3])
    qkv = jax.random.normal(keys[3], (rows, tokens, 3, width // HEAD, HEAD), jnp.bfloat16)
    masks = packed(rows, tokens) if FLAGS.packed else None

    def mask(qkv: jax.Array) -> jax.Array | None:
        return None if masks is None else masks[: len(qkv)]

    ways: dict[str, Callable[..., Any]] = {
        "XLA": lambda qkv: layers.attend(qkv, mask(qkv), "xla"),
        "ours": lambda qkv: attention.attention(qkv, mask(qkv)),
    }
    if jax.default_backend() == "gpu":
        ways["cuDNN"] = lambda qkv: layers.attend_cudnn(qkv, mask(qkv))
    compare("attention", ways, qkv)
    ours = {"ours": lambda *args: norm.branch(*args, layers.EPS)}
    compare("LayerNorm", {"XLA": branch} | ours, x, weight, bias)


if __name__ == "__main__":
    define_flags()
    cli.run(main)
