"""What a run needs on each device, told without running it."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.extend import core as jex_core
from jax.sharding import Mesh

from clipdg_jax.training import losses
from clipdg_jax.training import step as step_lib


def state_bytes_per_device(state: step_lib.State) -> int:
    """Bytes that a state takes on each device: exact, from the shardings of its leaves.

    Args:
      state: abstract (`step.abstract_state`) or real.
    """
    return sum(
        _bytes(leaf.sharding.shard_shape(leaf.shape), leaf.dtype) for leaf in jax.tree.leaves(state)
    )


def activation_bytes_per_device(
    objective: losses.Objective,
    state: step_lib.State,
    batch: Mapping[str, Any],
    scalars: Mapping[str, Any],
    mesh: Mesh,
) -> int:
    """Bytes that the forward pass keeps for the backward pass: the saved residuals.

    Counted are arrays that the forward pass makes; the parameters and the batch themselves,
    which are there anyway, are not. What depends on the batch is taken to be spread evenly over
    the devices; what follows from parameters alone (their copies in bf16) lies whole on each.
    A compiler may fuse some of it away, and needs scratch space besides.

    Args:
      objective: as for `step.make_train_step`; differentiated by `state["params"]` only.
      state: abstract or real; only shapes are used.
      batch, scalars: the global batch and the scalars, or their `jax.ShapeDtypeStruct`s.
      mesh: the devices.
    """

    def residuals(params, frozen, batch, scalars):
        def loss_of(trained):
            return objective({**frozen, **trained}, batch, scalars)[0]

        # The function that `vjp` returns is a pytree; its leaves are the residuals.
        return jax.vjp(loss_of, params)[1]

    arguments = jax.eval_shape(lambda *a: a, state["params"], state["frozen"], batch, scalars)
    closed = jax.make_jaxpr(residuals)(*arguments)
    given = len(jax.tree.leaves(arguments[:2]))
    variables = len(jax.tree.leaves(arguments))
    of_batch = _depends(closed.jaxpr, [i >= given for i in range(variables)])
    kept = {
        var: depends
        for var, depends in zip(closed.jaxpr.outvars, of_batch)
        if isinstance(var, jex_core.Var)
    }
    total = 0
    for var, depends in kept.items():
        if var in closed.jaxpr.invars or var in closed.jaxpr.constvars:
            continue
        size = _bytes(var.aval.shape, var.aval.dtype)
        total += -(-size // mesh.devices.size) if depends else size
    return total


def _bytes(shape: tuple[int, ...], dtype: Any) -> int:
    return int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize


def _depends(jaxpr: Any, inputs: list[bool]) -> list[bool]:
    """For each output of a jaxpr, whether it depends on any of the flagged inputs.

    Looks into calls whose operands line up with those of the function called, such as `jit`,
    and into scans. What cannot be looked into depends on all its operands.
    """
    flag = dict(zip(jaxpr.invars, inputs))

    def read(atom: Any) -> bool:
        return isinstance(atom, jex_core.Var) and flag.get(atom, False)

    for eqn in jaxpr.eqns:
        operands = [read(atom) for atom in eqn.invars]
        inner = next((p for p in map(_as_jaxpr, eqn.params.values()) if p is not None), None)
        if inner is None or len(inner.invars) != len(operands):
            outputs = [any(operands)] * len(eqn.outvars)
        elif eqn.primitive.name == "scan":
            first, count = eqn.params["num_consts"], eqn.params["num_carry"]
            outputs = _depends(inner, operands)
            while any(new and not old for new, old in zip(outputs, operands[first:][:count])):
                carry = [a or b for a, b in zip(outputs, operands[first:][:count])]
                operands[first : first + count] = carry
                outputs = _depends(inner, operands)
        else:
            outputs = _depends(inner, operands)
        flag.update(zip(eqn.outvars, outputs))
    return [read(atom) for atom in jaxpr.outvars]


def _as_jaxpr(value: Any) -> Any:
    if isinstance(value, jex_core.ClosedJaxpr):
        return value.jaxpr
    return value if isinstance(value, jex_core.Jaxpr) else None
