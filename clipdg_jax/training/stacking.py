"""Equal blocks in one array each: how a state is held whose step scans over the blocks.

In place of `transformer.resblocks.0.mlp.c_fc.weight` and those of the blocks after it there is

    transformer.resblocks.*.mlp.c_fc.weight    [blocks, ...]

A scan reads its blocks' parameters from such arrays. Held as one array per block they would be
copied into place in every step, and gradients and optimiser would be code for each of them; the
program of a step on a stacked state is as long for any number of blocks. The last block of a tower
is not scanned over (`models.layers.Transformer`) and keeps its name.

It is the state's and its step's affair alone: `step.merged_params`, checkpoints and with them
evaluation, hashes and exported weights have one array per block, by its canonical name. For as
long as those are needed there are both on the devices.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

_MARK = ".*."
_BLOCK = re.compile(r"^(.*\bresblocks)\.(\d+)\.(.*)$")


def is_stack(name: str) -> bool:
    """Whether a parameter of this name has the blocks as its first dimension."""
    return _MARK in name


def block_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The parameter's own shape: of a stack, that of each block."""
    return shape[1:] if is_stack(name) else shape


def stack(params: Mapping[str, Array]) -> dict[str, Array]:
    """Parameters with those of each tower's blocks, but for its last one, stacked.

    Args:
      params: by canonical name. Blocks that are not counted from 0 without a gap, as where others
        are frozen, stay as they are.
    """
    blocks: dict[tuple[str, str], dict[int, str]] = {}
    for name in params:
        if found := _BLOCK.match(name):
            tower, number, leaf = found.groups()
            blocks.setdefault((tower, leaf), {})[int(number)] = name
    stacks = {
        f"{tower}{_MARK}{leaf}": [names[i] for i in range(len(names) - 1)]
        for (tower, leaf), names in blocks.items()
        if len(names) > 1 and max(names) == len(names) - 1
    }
    inside = {name for names in stacks.values() for name in names}
    return {
        **{name: value for name, value in params.items() if name not in inside},
        **{name: jnp.stack([params[n] for n in names]) for name, names in stacks.items()},
    }


def unstack(tree: Any) -> Any:
    """The inverse of `stack`, for every dict in a tree; what holds no stack stays as it is.

    Leaves are traced, lie on a mesh, or are `jax.ShapeDtypeStruct`s that say where they would.
    """

    def each(params: Any) -> Any:
        if not _holds_stacks(params):
            return params
        canonical: dict[str, Any] = {}
        for name, value in params.items():
            if is_stack(name):
                canonical |= {_nth(name, i): block for i, block in enumerate(_split(value))}
            else:
                canonical[name] = value
        return canonical

    return jax.tree.map(each, tree, is_leaf=_holds_stacks)


def stack_as(abstract: Any, tree: Any) -> Any:
    """A tree of arrays with what `abstract`, otherwise of the same structure, holds as stacks."""

    def each(wanted: Any, params: Any) -> Any:
        if not _holds_stacks(wanted):
            return params
        return {
            name: _join(leaf, [params[_nth(name, i)] for i in range(leaf.shape[0])])
            if is_stack(name)
            else params[name]
            for name, leaf in wanted.items()
        }

    return jax.tree.map(each, abstract, tree, is_leaf=_holds_stacks)


def _holds_stacks(node: Any) -> bool:
    return isinstance(node, dict) and any(is_stack(name) for name in node)


def _nth(name: str, block: int) -> str:
    return name.replace(_MARK, f".{block}.")


def _split(x: Any) -> tuple[Any, ...]:
    """The blocks of a stack."""
    if isinstance(x, jax.core.Tracer):
        return _blocks(x)
    one = NamedSharding(x.sharding.mesh, PartitionSpec(*x.sharding.spec[1:]))
    if isinstance(x, jax.ShapeDtypeStruct):
        return (jax.ShapeDtypeStruct(x.shape[1:], x.dtype, sharding=one),) * x.shape[0]
    return jax.jit(_blocks, out_shardings=one)(x)


def _join(leaf: jax.ShapeDtypeStruct, blocks: list[Array]) -> Array:
    return jax.jit(_stacked, out_shardings=leaf.sharding)(*blocks)


def _stacked(*blocks: Array) -> Array:
    return jnp.stack(blocks)


@jax.custom_vjp
def _blocks(x: Array) -> tuple[Array, ...]:
    return tuple(x[i] for i in range(x.shape[0]))


# Autodiff would add up as many padded arrays as there are blocks. That a stack of all blocks is
# the array they came from XLA knows: of a scan over them neither split nor stack is left.
_blocks.defvjp(lambda x: (_blocks(x), None), lambda _, gradients: (_stacked(*gradients),))
