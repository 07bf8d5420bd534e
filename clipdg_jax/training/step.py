"""The one training step, for every objective.

A state is a plain dict:

    {"params": trainable parameters by canonical name, "frozen": the others,
     "opt": the optimiser's state, for the trainable ones only, "step": int32, updates made}

Where layers are scanned, blocks lie in one array (`stacking`); all else is by canonical name.

The step is one `jax.jit` that takes over (donates) the state it is given.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array

from clipdg_jax import errors
from clipdg_jax.training import losses, optimizer, sharding, stacking

State = dict[str, Any]
Init = Callable[[Any], losses.Params]
Step = Callable[[State, Mapping[str, Array], Mapping[str, Any]], tuple[State, losses.Metrics]]


def _builder(
    init: Init, tx: optax.GradientTransformation, trainable: str
) -> Callable[[Any], State]:
    pattern = re.compile(trainable)

    def build(argument: Any) -> State:
        params = init(argument)
        chosen = {k: v for k, v in params.items() if pattern.search(k)}
        if not chosen:
            raise errors.UserError(
                f"trainable: {trainable!r} matches none of the {len(params)} parameters; "
                f"use a regular expression for names such as {min(params)!r}"
            )
        frozen = {k: v for k, v in params.items() if k not in chosen}
        opt = tx.init(chosen)
        state = {"params": chosen, "frozen": frozen, "opt": opt, "step": jnp.zeros((), jnp.int32)}
        # A weakly typed leaf (jnp.asarray(2.6)) would turn strong in the first step and make the
        # second one compile again.
        return jax.tree.map(lambda x: jax.lax.convert_element_type(x, x.dtype), state)

    return build


def abstract_state(
    init: Init,
    argument: Any,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    trainable: str = "",
) -> State:
    """The state's shapes, dtypes and shardings, without computing it.

    Args: as for `make_init`.

    Returns:
      The state with a `jax.ShapeDtypeStruct` for each leaf: what `Checkpoints.restore` fills,
      `make_train_step` compiles for and `memory` counts.
    """
    shapes = jax.eval_shape(_builder(init, tx, trainable), argument)
    whole = sharding.replicated(mesh)
    params = sharding.param_shardings(shapes["params"], mesh)
    shardings = {
        "params": params,
        "frozen": sharding.param_shardings(shapes["frozen"], mesh),
        # Moments lie with their parameter, counters everywhere.
        "opt": optax.tree.map_params(
            tx, lambda _, s: s, shapes["opt"], params, transform_non_params=lambda _: whole
        ),
        "step": whole,
    }
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
    )


def state_shardings(state: State) -> State:
    """The sharding of each leaf of a state, abstract or real."""
    return jax.tree.map(lambda x: x.sharding, state)


def make_init(
    init: Init,
    argument: Any,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    trainable: str = "",
) -> Callable[[Any], State]:
    """Builds a function that computes new states where they will live: compiled once for all.

    Args:
      init: `init(argument)` gives all parameters by canonical name; it is traced.
      argument: what `init` takes, or its shapes: a PRNG key; or loaded parameters, with an
        identity as `init`.
      tx: the optimiser.
      mesh: from `sharding.make_mesh`.
      trainable: regular expression, searched for in the canonical names of the parameters to
        train; the default matches all.

    Raises:
      UserError: `trainable` matches no parameter.
    """
    shardings = state_shardings(abstract_state(init, argument, tx, mesh, trainable))
    return jax.jit(_builder(init, tx, trainable), out_shardings=shardings)


def init_state(
    init: Init,
    argument: Any,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    trainable: str = "",
) -> State:
    """Computes a new state where it will live. Arguments and errors are those of `make_init`."""
    return make_init(init, argument, tx, mesh, trainable)(argument)


def merged_params(state: State) -> losses.Params:
    """All parameters, frozen and trainable, by canonical name."""
    return stacking.unstack({**state["frozen"], **state["params"]})


def updated_if(
    finite: Array,
    update: Callable[[State, losses.Params], State],
    state: State,
    grads: losses.Params,
) -> State:
    """`update(state, grads)` where the scalar `finite` holds, else the state as it is."""
    if jax.default_backend() == "cpu":
        # XLA would copy the optimiser's state for a select, which trebles the update's time.
        return jax.lax.cond(finite, update, lambda state, grads: state, state, grads)
    # A branch would wait for the host; the select is fused into the update.
    return jax.tree.map(lambda a, b: jnp.where(finite, a, b), update(state, grads), state)


def make_train_step(
    objective: losses.Objective,
    tx: optax.GradientTransformation,
    abstract: State,
    mesh: Mesh,
    *,
    schedule: Callable[[Any], Array] | None = None,
    clamp: Mapping[str, tuple[float, float]] = optimizer.CLAMP,
) -> Step:
    """Builds `step(state, batch, scalars) -> (state, metrics)`.

    Args:
      objective: (params, batch, scalars) -> (loss [], metrics).
      tx: the optimiser that `abstract` was made with.
      abstract: from `abstract_state`.
      mesh: from `sharding.make_mesh`.
      schedule: if given, its value is reported as "learning_rate".
      clamp: (lowest, highest) value of a parameter after each update, where it is trained.

    Returns:
      A jitted function. The state passed in is gone afterwards. `batch` holds global arrays with
      rows sharded as `sharding.batch_sharding`; `scalars` is a dict of numbers that may change
      from step to step without compiling again. Metrics are fp32 scalars on every device:
      the objective's, "loss", "grad_norm" (global, before any clipping), and "finite", False
      where the loss or the gradient holds a NaN or an infinity. Such a step changes nothing:
      it returns the state it was given, its "step" too.
    """

    def update(state: State, grads: losses.Params) -> State:
        updates, opt = tx.update(grads, state["opt"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        for name, (low, high) in clamp.items():
            if name in params:
                params[name] = jnp.clip(params[name], low, high)
        return {"params": params, "opt": opt, "step": state["step"] + 1}

    def train_step(
        state: State, batch: Mapping[str, Array], scalars: Mapping[str, Array]
    ) -> tuple[State, losses.Metrics]:
        def loss_of(params: losses.Params) -> tuple[Array, losses.Metrics]:
            return objective({**state["frozen"], **params}, batch, scalars)

        (loss, metrics), grads = jax.value_and_grad(loss_of, has_aux=True)(state["params"])
        grad_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        trained = {k: v for k, v in state.items() if k != "frozen"}
        new = {**updated_if(finite, update, trained, grads), "frozen": state["frozen"]}
        metrics = metrics | {"loss": loss, "grad_norm": grad_norm}
        if schedule is not None:
            metrics["learning_rate"] = schedule(state["step"])
        return new, {k: v.astype(jnp.float32) for k, v in metrics.items()} | {"finite": finite}

    shardings = state_shardings(abstract)
    whole = sharding.replicated(mesh)
    return jax.jit(
        train_step,
        in_shardings=(shardings, sharding.batch_sharding(mesh), whole),
        out_shardings=(shardings, whole),
        donate_argnums=0,
    )
