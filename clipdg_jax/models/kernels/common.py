"""What the kernels share: where they run, on several devices too, and how they read rows."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import custom_partitioning
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float


def nvidia() -> bool:
    """Whether the devices are NVIDIA GPUs, Ampere or later."""
    if jax.default_backend() != "gpu":
        return False
    device = jax.devices()[0]
    return "nvidia" in device.device_kind.lower() and float(device.compute_capability) >= 8


def interpreted() -> bool:
    """Whether kernels are interpreted, for want of a GPU."""
    return jax.default_backend() != "gpu"


def by_rows(function: Callable[..., Any], rule: str) -> Callable[..., Any]:
    """`function`, run by each device on its own part of the arrays.

    rule: the axes of its arguments and results in Shardy's notation, "b n d, d -> b n d". Only
        the axis `b` may be split, and it comes first.
    """
    arguments, results = ([axes.split() for axes in s.split(",")] for s in rule.split("->"))
    factors = dict.fromkeys(factor for axes in arguments + results for factor in axes)

    def partition(mesh: Mesh, operands: Any, _: Any) -> Any:
        specs = [x.sharding.spec for x in operands]
        split = [
            spec[0] for spec, axes in zip(specs, arguments, strict=True) if axes[0] == "b" and spec
        ]
        over = next((names for names in split if names is not None), None)

        def sharding(axes: list[str]) -> NamedSharding:
            return NamedSharding(mesh, PartitionSpec(over if axes[0] == "b" else None))

        out = [sharding(axes) for axes in results]
        ins = tuple(sharding(axes) for axes in arguments)
        return mesh, function, out[0] if len(out) == 1 else tuple(out), ins

    wrapped = custom_partitioning.custom_partitioning(function)
    wrapped.def_partition(
        partition,
        sharding_rule=rule,
        need_replication_factors=tuple(factor for factor in factors if factor != "b"),
    )
    return jax.jit(wrapped)  # So that all layers share what is traced and lowered.


def inside(start: Any, shape: tuple[int, int], rows: int) -> Array:
    """Which entries of a block that begins at row `start` lie within the first `rows`."""
    return start + jax.lax.broadcasted_iota(jnp.int32, shape, 0) < rows


def load(ref: Any, index: tuple[Any, ...], mask: Array) -> Array:
    """The block of a reference, 0 where masked."""
    return triton.load(ref.at[index], mask=mask, other=0)


def store(ref: Any, index: tuple[Any, ...], value: Array, mask: Array) -> None:
    """Writes a block but where it is masked, in the reference's type."""
    triton.store(ref.at[index], value.astype(ref.dtype), mask=mask)


def dot(a: Float[Array, "..."], b: Float[Array, "..."], over: tuple[int, int]) -> Array:
    """float32 matrix product, over these axes of the two."""
    dims = (((over[0],), (over[1],)), ((), ()))
    return jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)


def call(
    kernel: Callable[..., None],
    name: str,
    grid: tuple[int, ...],
    specs: tuple[list[pl.BlockSpec], list[pl.BlockSpec]],
    shapes: list[jax.ShapeDtypeStruct],
    warps: int,
) -> Callable[..., list[Array]]:
    """`pallas_call` with the compiler's settings.

    specs: of the arguments and of the results, the latter's shapes are `shapes`.
    """
    return pl.pallas_call(
        kernel,
        grid=grid,
        in_specs=specs[0],
        out_specs=specs[1],
        out_shape=shapes,
        compiler_params=triton.CompilerParams(num_warps=warps, num_stages=1),
        interpret=interpreted(),
        name=name,
    )
