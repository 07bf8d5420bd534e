"""What training a domain method comes to before any data is touched; so it serves dry runs too."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import scipy.special
from jaxtyping import Array, Float, Float32

from clipdg_jax import errors
from clipdg_jax.domains import encoder as encoder_lib
from clipdg_jax.models import model as model_lib
from clipdg_jax.training import dry_run, losses, optimizer, sharding, step

# (params, images, labels, valid) -> (mean loss, of how many rows, further metrics). Rows that are
# not valid have no part in it. With mixup, which not every loss knows, it is given the shares too.
Loss = Callable[..., tuple[Float[Array, ""], Float[Array, ""], losses.Metrics]]

# (seed, what training starts with) -> all parameters by name; traced.
Init = Callable[[Array, losses.Params], losses.Params]


def mixup(config: ml_collections.FrozenConfigDict) -> float:
    """The method's `mixup`, 0 where it has none."""
    return config.get("mixup", 0.0)


def mixup_share(uniform: Float[np.ndarray, " b"], alpha: float) -> Float32[np.ndarray, " b"]:
    """From uniform numbers to the smaller share of each mixed pair: min(x, 1 - x), x ~ Beta(a, a).

    mixup (Zhang et al. 2018) mixes a batch's rows with others at the share x. The others are in
    random order themselves, so that the smaller share may always be theirs.
    """
    return scipy.special.betaincinv(alpha, alpha, uniform / 2).astype(np.float32)


def mix_rows(values: Float[Array, "b ..."], share: Float[Array, " b"]) -> Float[Array, "b ..."]:
    """Each row with the previous one's at the given share; the first one's previous is the last."""
    share = share.reshape(-1, *[1] * (values.ndim - 1))
    return (1 - share) * values + share * jnp.roll(values, 1, axis=0)


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """A training before any data is touched. Fits of one plan are compiled once.

    Attributes:
      config: the method's section: `batch_size`, `flip`, `crop_scale`, `crop_ratio`, `log_every`,
        `optim` and, if it has that, `mixup` are read here, `epochs`, `examples` and `eval_every` in
        `make_plan`.
      steps: the length. epoch_steps: of an epoch. evaluate_every: from one evaluation to the next.
      start: shapes of what training starts with, by name.
      init: adds what that lacks.
      trainable: regular expression for the names of the parameters that are trained.
      objective: of batches of `image`, `label`, `valid` and, where the config asks for them, `flip`
        (which rows are mirrored) and `mix` (the previous row's share in each, after that).
      validation: what steps are chosen by, without augmentation.
      flops_per_example: forward and backward.
    """

    config: ml_collections.FrozenConfigDict
    model: model_lib.Model
    mesh: jax.sharding.Mesh
    steps: int
    epoch_steps: int
    evaluate_every: int
    start: Mapping[str, jax.ShapeDtypeStruct]
    init: Init
    trainable: str
    objective: losses.Objective
    validation: Loss
    flops_per_example: int

    @functools.cached_property
    def tx(self) -> optax.GradientTransformation:
        """The optimiser."""
        return optimizer.make_optimizer(self.config.optim, self.steps, self.epoch_steps)

    @functools.cached_property
    def abstract(self) -> step.State:
        """The state's shapes and shardings."""
        return step.abstract_state(self._init, (0, self.start), self.tx, self.mesh, self.trainable)

    @functools.cached_property
    def train_step(self) -> step.Step:
        """The compiled update."""
        return step.make_train_step(
            self.objective,
            self.tx,
            self.abstract,
            self.mesh,
            schedule=optimizer.make_schedule(self.config.optim, self.steps, self.epoch_steps),
        )

    @functools.cached_property
    def measure(self) -> Callable[..., tuple[Array, Array]]:
        """(params, batch) -> (mean validation loss, of how many rows); compiled."""

        def measure(params: losses.Params, batch: Mapping[str, Array]) -> tuple[Array, Array]:
            fields = (batch[name] for name in ("image", "label", "valid"))
            return self.validation(params, *fields)[:2]

        return jax.jit(measure, out_shardings=sharding.replicated(self.mesh))

    def init_state(self, seed: int, start: losses.Params) -> step.State:
        """A new state; `start` stays as it is."""
        argument = (np.uint32(seed), encoder_lib.place(start, self.mesh))
        return step.init_state(self._init, argument, self.tx, self.mesh, self.trainable)

    def _init(self, argument: tuple[Array, losses.Params]) -> losses.Params:
        # Copied, because the step takes over the memory of its state.
        return {name: jnp.copy(value) for name, value in self.init(*argument).items()}

    def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of a global batch, as the step takes it."""
        rows, side = self.config.batch_size, self.model.config.vision.image_size
        shapes = {
            "image": ((rows, side, side, 3), jnp.uint8),
            "label": ((rows,), jnp.int32),
            "valid": ((rows,), jnp.bool_),
        }
        if self.config.flip:
            shapes["flip"] = ((rows,), jnp.bool_)
        if mixup(self.config):
            shapes["mix"] = ((rows,), jnp.float32)
        return {name: jax.ShapeDtypeStruct(*value) for name, value in shapes.items()}

    def report(self, name: str) -> str:
        """The dry run's report."""
        return dry_run.report(
            name=name,
            state=self.abstract,
            objective=self.objective,
            batch=self.abstract_batch(),
            scalars={},
            mesh=self.mesh,
            batch_size=self.config.batch_size,
            steps=self.steps,
            flops_per_example=self.flops_per_example,
        )


def make_plan(
    config: ml_collections.FrozenConfigDict,
    model: model_lib.Model,
    mesh: jax.sharding.Mesh,
    *,
    examples: int,
    loss: Loss,
    **others: Any,
) -> Plan:
    """Checks a method's section and builds everything that needs no data.

    The length is `config.examples // batch_size` steps if set, else `config.epochs` epochs of
    floor(examples / batch_size) steps, at least one.

    Args:
      examples: labels to train on.
      loss: of a training batch.
      others: `start`, `init`, `trainable`, `validation` and `flops_per_example` of `Plan`.

    Raises:
      UserError: naming the field that is wrong.
    """
    sharding.check_batch_size(config.batch_size, mesh)
    epoch = max(1, examples // config.batch_size)
    steps = config.examples // config.batch_size if config.examples else config.epochs * epoch
    if steps < 1:
        raise errors.UserError(
            f"epochs, examples: {config.epochs}, {config.examples} make no step of "
            f"{config.batch_size} examples; give 1 epoch or more, or more examples"
        )
    if config.eval_every < 1:
        raise errors.UserError(f"eval_every: {config.eval_every} epochs; use 1 or more")
    plan = Plan(
        config=config,
        model=model,
        mesh=mesh,
        steps=steps,
        epoch_steps=epoch,
        evaluate_every=config.eval_every * epoch,
        objective=_objective(loss),
        **others,
    )
    _ = plan.tx  # Checks the fields of `optim`.
    return plan


def _objective(loss: Loss) -> losses.Objective:
    """Mirrors and mixes the rows that are to be, and counts the valid ones."""

    def objective(
        params: losses.Params, batch: Mapping[str, Array], scalars: Mapping[str, Array]
    ) -> tuple[Array, losses.Metrics]:
        del scalars  # There are none.
        image, valid = batch["image"], batch["valid"]
        if "flip" in batch:
            image = jnp.where(batch["flip"].reshape(-1, 1, 1, 1), image[:, :, ::-1], image)
        further = {}
        if "mix" in batch:
            share = jnp.where(valid & jnp.roll(valid, 1), batch["mix"], 0.0)
            image = jnp.round(mix_rows(image.astype(jnp.float32), share)).astype(jnp.uint8)
            further["share"] = share
        value, _, values = loss(params, image, batch["label"], valid, **further)
        return value, values | {"valid": jnp.sum(valid)}

    return objective
