"""What training a combination comes to before any data is touched; so it serves dry runs too."""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from clipdg_jax import errors
from clipdg_jax.finetuning import combination as combination_lib
from clipdg_jax.finetuning import parts
from clipdg_jax.models import flops
from clipdg_jax.models import model as model_lib
from clipdg_jax.training import dry_run, losses, optimizer, sharding, step


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """One combination's training; all points of its sweep are trained by one compiled step.

    Attributes:
      combination: what is trained.
      config: the run's: `batch_size`, `optim`.
      classes: of the head.
      steps: the length.
      seed: of what the reparametrisation adds.
    """

    combination: combination_lib.Combination
    config: Any
    model: model_lib.Model
    mesh: jax.sharding.Mesh
    classes: int
    steps: int
    seed: int = 0

    @functools.cached_property
    def start(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of what training starts with: the model's parameters that it needs, the head."""
        shapes = self.model.shapes() if self.combination.uses_text else image_tower(self.model)
        if not self.combination.data.trains_text:
            shapes |= head_shapes(self.model.config.embed_dim, self.classes)
        return shapes

    @functools.cached_property
    def moving(self) -> tuple[str, ...]:
        """Names of the parameters of the model and the head that training changes."""
        reparam = self.combination.reparam
        return tuple(
            name for name in self.start if re.search(reparam.trainable, name) or reparam.moves(name)
        )

    @functools.cached_property
    def optim(self) -> dict[str, Any]:
        """The optimiser's settings."""
        own = {"lr": self.combination.lr} if self.combination.lr else {}
        return {**self.config.optim.to_dict(), **own}

    @functools.cached_property
    def tx(self) -> optax.GradientTransformation:
        """The optimiser: without decay of what a penalty holds at its pre-trained value."""
        held = [p.holds for p in self.combination.penalties.values() if p.holds is not None]

        def decayed(params: Mapping[str, Any]) -> dict[str, bool]:
            mask = optimizer.decay_mask(params)
            return {
                name: decay and not any(re.search(pattern, name) for pattern in held)
                for name, decay in mask.items()
            }

        return optimizer.make_optimizer(self.optim, self.steps, decayed=decayed)

    @functools.cached_property
    def abstract(self) -> step.State:
        """The state's shapes and shardings."""
        argument = (np.uint32(0), self.start, self.start)
        return step.abstract_state(self._init, argument, self.tx, self.mesh, self._trainable)

    def init_state(self, start: parts.Params, pretrained: parts.Params) -> step.State:
        """A new state; both arguments stay as they are.

        Args:
          start: what training starts with.
          pretrained: what penalties compare with.
        """
        chosen = ({name: given[name] for name in self.start} for given in (start, pretrained))
        return self._initial((np.uint32(self.seed), *chosen))

    @functools.cached_property
    def _initial(self) -> Callable[[Any], step.State]:
        argument = (np.uint32(0), self.start, self.start)
        return step.make_init(self._init, argument, self.tx, self.mesh, self._trainable)

    @functools.cached_property
    def train_step(self) -> Any:
        """The compiled update."""
        built: Any = step.make_train_step(
            self.objective,
            self.tx,
            self.abstract,
            self.mesh,
            schedule=optimizer.make_schedule(self.optim, self.steps),
        )
        rows, whole = sharding.batch_sharding(self.mesh), sharding.replicated(self.mesh)
        batch = {k: _placed(v, rows) for k, v in self.abstract_batch().items()}
        scalars = {k: _placed(v, whole) for k, v in self.abstract_scalars().items()}
        return built.lower(self.abstract, batch, scalars).compile()

    def peak_bytes(self) -> int:
        """Bytes on each device while a step runs, as the compiler of this backend plans them."""
        found = self.train_step.memory_analysis()
        return int(
            found.argument_size_in_bytes
            + found.output_size_in_bytes
            - found.alias_size_in_bytes
            + found.temp_size_in_bytes
        )

    def trained(self) -> int:
        """How many numbers are trained."""
        return sum(int(np.prod(leaf.shape)) for leaf in self.abstract["params"].values())

    @property
    def batch_size(self) -> int:
        """Rows of a global batch: the labelled ones, and those replayed."""
        return self.config.batch_size + self.replayed

    @property
    def replayed(self) -> int:
        """Rows of the pre-training mix in each batch."""
        return round(self.config.batch_size * self.combination.data.replay)

    def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of a global batch, as the step takes it."""
        rows, vision = self.batch_size, self.model.config.vision
        shapes = {
            "image": ((rows, vision.image_size, vision.image_size, 3), jnp.uint8),
            "label": ((rows,), jnp.int32),
            "source": ((rows,), jnp.int32),
            "valid": ((rows,), jnp.bool_),
        }
        if self.combination.uses_text:
            shapes["tokens"] = ((rows, self.model.config.text.context_length), jnp.int32)
        return {name: jax.ShapeDtypeStruct(*value) for name, value in shapes.items()}

    def abstract_scalars(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The coefficients."""
        return {n: jax.ShapeDtypeStruct((), jnp.float32) for n in self.combination.sweeps}

    def scalars(self, point: combination_lib.Point) -> dict[str, Array]:
        """A point of the sweep, as the step takes it."""
        whole = sharding.replicated(self.mesh)
        return {
            name: jax.device_put(jnp.asarray(value, jnp.float32), whole)
            for name, value in point.items()
        }

    def objective(
        self, params: losses.Params, batch: Mapping[str, Array], scalars: Mapping[str, Array]
    ) -> tuple[Array, losses.Metrics]:
        """The task's loss and what the parts add to it, each of which is a metric too."""
        folded = self.combination
        own = {k: v for k, v in params.items() if not k.startswith(parts.PRETRAINED)}
        kept = {k.removeprefix(parts.PRETRAINED): v for k, v in params.items() if k not in own}
        forward = parts.Forward(
            self.model,
            folded.reparam.effective(own, scalars),
            own | kept,
            self.moving,
            batch,
            scalars,
        )
        loss = (folded.data.loss or parts.cross_entropy)(forward)
        metrics = {"task_loss": loss, "valid": jnp.sum(batch["valid"])}
        if folded.data.loss is None:
            right = jnp.argmax(forward.logits, axis=1) == batch["label"]
            metrics["accuracy"] = forward.mean(right.astype(jnp.float32))
        values: dict[str, Callable[[parts.Forward], Array] | None] = {
            **{name: penalty.value for name, penalty in folded.penalties.items()},
            **{name: data.added for name, data in folded.added.items()},
        }
        for name, value in values.items():
            assert value is not None
            metrics[name] = value(forward)
            loss = loss + scalars[name] * metrics[name]
        return loss, metrics

    def effective(self, params: parts.Params, scalars: Mapping[str, Array]) -> parts.Params:
        """What the model and the head take, of a state's parameters."""
        own = {k: v for k, v in params.items() if not k.startswith(parts.PRETRAINED)}
        return self.combination.reparam.effective(own, scalars)

    @property
    def flops_per_example(self) -> float:
        """Forward and backward, of a labelled row and what is replayed with it.

        The backward pass counts twice the forward one, also where it ends at a frozen layer.
        """
        image = 3 * flops.forward_flops_image(self.model.config)
        if self.combination.penalties and any(
            penalty.holds is None for penalty in self.combination.penalties.values()
        ):
            image += flops.forward_flops_image(self.model.config)  # The pre-trained outputs.
        text = flops.forward_flops_text(self.model.config) if self.combination.uses_text else 0
        return image + (3 if self.combination.data.trains_text else 1) * text

    def report(self, name: str) -> str:
        """The dry run's report."""
        return dry_run.report(
            name=name,
            state=self.abstract,
            objective=self.objective,
            batch=self.abstract_batch(),
            scalars=self.abstract_scalars(),
            mesh=self.mesh,
            batch_size=self.batch_size,
            steps=self.steps,
            flops_per_example=self.flops_per_example,
        )

    @property
    def _trainable(self) -> str:
        return rf"^(?!{re.escape(parts.PRETRAINED)})(?=.*(?:{self.combination.reparam.trainable}))"

    def _init(self, argument: tuple[Array, parts.Params, parts.Params]) -> parts.Params:
        seed, start, pretrained = argument
        # Copied, because the step takes over the memory of its state.
        params = {name: jnp.copy(value) for name, value in start.items()}
        params |= self.combination.reparam.add(jax.random.key(seed), params)
        if self.combination.penalties:
            # Copies of what training overwrites. What stays in the state serves itself.
            params |= {
                f"{parts.PRETRAINED}{name}": jnp.copy(pretrained[name])
                for name in self.moving
                if re.search(self.combination.reparam.trainable, name)
            }
        return params


def make_plan(
    folded: combination_lib.Combination,
    config: Any,
    model: model_lib.Model,
    mesh: jax.sharding.Mesh,
    *,
    examples: int,
    classes: int,
    seed: int = 0,
) -> Plan:
    """Checks the training's fields and builds everything that needs no data.

    The length is `config.steps` if set, else `config.epochs` epochs of floor(examples / batch_size)
    steps, at least one.

    Args:
      examples: labelled images to train on.
      classes: that they are of.

    Raises:
      UserError: naming the field that is wrong.
    """
    epoch = max(1, examples // config.batch_size)
    steps = config.steps or config.epochs * epoch
    if steps < 1:
        raise errors.UserError(
            f"config.steps, config.epochs: {config.steps}, {config.epochs} make no step; give 1 "
            "epoch or more"
        )
    plan = Plan(folded, config, model, mesh, classes, steps, seed)
    sharding.check_batch_size(plan.batch_size, mesh)
    if folded.trains:
        _ = plan.abstract  # Checks the fields of `optim`, and which parameters train.
        _check_held(plan)
    return plan


def _check_held(plan: Plan) -> None:
    """Raises UserError for a penalty on parameters that do not change."""
    for name, penalty in plan.combination.penalties.items():
        pattern = penalty.holds
        if pattern is not None and not any(re.search(pattern, other) for other in plan.moving):
            raise errors.UserError(
                f"config.{name}.leaves: {pattern!r} matches none of the {len(plan.moving)} "
                "parameters that change in training; use a regular expression for names such as "
                f"{plan.moving[0]!r}"
            )


def image_tower(model: model_lib.Model) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of the image tower's parameters."""
    return {k: v for k, v in model.shapes().items() if k.startswith(model_lib.IMAGE_TOWER)}


def head_shapes(features: int, classes: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Of the classifier's head."""
    return {
        parts.HEAD_WEIGHT: jax.ShapeDtypeStruct((features, classes), jnp.float32),
        parts.HEAD_BIAS: jax.ShapeDtypeStruct((classes,), jnp.float32),
    }


def _placed(leaf: jax.ShapeDtypeStruct, where: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)
