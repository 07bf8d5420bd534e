"""LoRA (Hu et al. 2022): W + (alpha / rank) A B, with W frozen; and the head is trained.

The matrices are found by a regular expression for canonical names. The queries', keys' and values'
thirds of an `attn.in_proj_weight` are three matrices, named with `.q`, `.k` and `.v` behind. A
convolution's kernel [height, width, in, out] counts as one of height * width * in rows.

A [rows, rank] is drawn as torch's nn.Linear draws, B [rank, columns] is 0. The alpha is a traced
scalar: the smaller it is, the more the weights stay where they were.
"""

import functools
import re
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from clipdg_jax import errors
from clipdg_jax.finetuning import parts
from clipdg_jax.finetuning.methods.method import Method

PREFIX = "lora."
_THIRDS = ("q", "k", "v")
_PACKED = "attn.in_proj_weight"


def matrices(params: dict[str, Any]) -> list[str]:
    """Names of all matrices of the model that can be adapted.

    Args:
      params: by canonical name anything with `.shape`.
    """
    found = []
    for name, leaf in params.items():
        if len(leaf.shape) < 2 or name.startswith(parts.HEAD):
            continue
        found += [f"{name}.{t}" for t in _THIRDS] if name.endswith(_PACKED) else [name]
    return found


def add(rng: Array, params: parts.Params, pattern: str, rank: int) -> parts.Params:
    """The factors of the matrices that the pattern is found in.

    Raises UserError where it is found in none.
    """
    known = matrices(params)
    chosen = [name for name in known if re.search(pattern, name)]
    if not chosen:
        raise errors.UserError(
            f"config.lora.matrices: {pattern!r} matches none of the {len(known)} matrices; use a "
            f"regular expression for names such as {known[0]!r}"
        )
    factors = {}
    for name in chosen:
        rows, columns = _shape(name, params)
        key = jax.random.fold_in(rng, zlib.crc32(name.encode()))
        bound = rows**-0.5
        factors[f"{PREFIX}{name}.A"] = jax.random.uniform(
            key, (rows, rank), jnp.float32, -bound, bound
        )
        factors[f"{PREFIX}{name}.B"] = jnp.zeros((rank, columns), jnp.float32)
    return factors


def effective(params: parts.Params, scalars: parts.Scalars, name: str, rank: int) -> parts.Params:
    """The parameters with the low-rank products added, without the factors."""
    merged = {k: v for k, v in params.items() if not k.startswith(PREFIX)}
    changes: dict[str, dict[str, Array]] = {}
    for factor, a in params.items():
        if factor.startswith(PREFIX) and factor.endswith(".A"):
            matrix = factor.removeprefix(PREFIX).removesuffix(".A")
            weight, third = _of(matrix)
            product = jnp.matmul(
                a, params[f"{PREFIX}{matrix}.B"], precision=jax.lax.Precision.HIGHEST
            )
            changes.setdefault(weight, {})[third] = product * (scalars[name] / rank)
    for weight, products in changes.items():
        whole = merged[weight]
        if "" in products:
            merged[weight] = whole + products[""].reshape(whole.shape)
        else:
            size = whole.shape[1] // 3
            none = jnp.zeros((whole.shape[0], size), whole.dtype)
            columns = [products.get(third, none) for third in _THIRDS]
            merged[weight] = whole + jnp.concatenate(columns, axis=1)
    return merged


def _of(matrix: str) -> tuple[str, str]:
    """The parameter that a matrix is (a third of), and which third."""
    weight, _, third = matrix.rpartition(".")
    return (weight, third) if third in _THIRDS and weight.endswith(_PACKED) else (matrix, "")


def _shape(matrix: str, params: dict[str, Any]) -> tuple[int, int]:
    weight, third = _of(matrix)
    shape: Sequence[int] = params[weight].shape
    return int(np.prod(shape[:-1])), shape[-1] // (3 if third else 1)


def _moves(name: str, pattern: str) -> bool:
    thirds = [f"{name}.{t}" for t in _THIRDS] if name.endswith(_PACKED) else [name]
    return not name.startswith(parts.HEAD) and any(re.search(pattern, t) for t in thirds)


def build(name: str, config: Any) -> parts.Parts:
    """`alphas`, `rank`, `matrices`, `lr`."""
    if config.rank < 1:
        raise errors.UserError(f"config.{name}.rank: {config.rank}; use 1 or more")
    reparam = parts.Reparam(
        trainable=r"^(lora|head)\.",
        add=functools.partial(add, pattern=config.matrices, rank=config.rank),
        effective=functools.partial(effective, name=name, rank=config.rank),
        moves=functools.partial(_moves, pattern=config.matrices),
    )
    sweep = parts.Sweep(parts.coefficients(name, "alphas", config.alphas), "smaller")
    return parts.Parts(name, reparam=reparam, sweep=sweep, lr=config.lr)


METHOD = Method(
    "low-rank changes of the weights",
    build,
    {
        "alphas": (4.0, 16.0, 64.0),
        "rank": 8,
        "matrices": r"^visual\..*(in_proj_weight\.[qv])$",
        "lr": 0.0,
    },
)
