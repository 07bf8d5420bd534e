"""Trains a domain method that learns: on the one loop, resumable, the best step kept.

In the method's `workdir` there are

    metrics.jsonl and TensorBoard   the loop's; "validation_loss" in the lines of evaluations
    checkpoints/                    the latest evaluation's state, to resume from
    best/                           the state of the lowest validation loss so far
"""

import contextlib
import functools
import json
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from clipdg_jax import errors
from clipdg_jax.data import loader, mixture, shuffle, tokenizer
from clipdg_jax.domains import examples as examples_lib
from clipdg_jax.domains import inputs, recipe
from clipdg_jax.domains.methods import method
from clipdg_jax.training import checkpoints, checksums, feed, loop, losses, metrics, sharding, step

# Fields of a method's section that never change what is computed.
_OPERATIONAL = ("log_every",)
# What is not looked at is cut short: a caption to its first and last token.
_TOKENS = 2


def trained_domains(train: examples_lib.Examples) -> tuple[bool, bool, bool]:
    """Which of the three domains occur among the labels. Raises UserError for fewer than two."""
    counts = train.counts()
    if sum(count > 0 for count in counts.values()) < 2:
        told = ", ".join(f"{count} {name}" for name, count in counts.items())
        raise errors.UserError(
            f"labels: {told} are left to train on; label at least two of the domains"
        )
    natural, rendition, ambiguous = (counts[name] > 0 for name in inputs.DOMAINS)
    return natural, rendition, ambiguous


def fit(
    plan: recipe.Plan,
    start: losses.Params,
    train: examples_lib.Examples,
    validation: examples_lib.Examples,
    context: method.Context,
) -> dict[str, Array]:
    """Trains, or goes on where an earlier call in `context.workdir` was stopped.

    Args:
      start: what `plan.init` takes; kept as it is.
      validation: the step with the lowest mean loss on these is chosen; the earliest of equals.

    Returns:
      All parameters of the chosen step, on the devices.

    Raises:
      UserError: the loss is not finite, no validation label is of a domain trained on, or the
        directory holds another training.
    """
    identity = _identity(plan, start, train, validation, context.seed)
    with contextlib.ExitStack() as stack:
        saved, best = (
            checkpoints.Checkpoints(
                context.workdir / name,
                identity=identity,
                architecture=plan.model.config.architecture,
                keep=1,
            )
            for name in ("checkpoints", "best")
        )
        stack.callback(saved.close)
        stack.callback(best.close)
        first = saved.latest() or 0
        if first:
            state, extra = saved.restore(plan.abstract)
            progress = loop.Progress(**extra)
        else:
            state, progress = plan.init_state(context.seed, start), loop.Progress()
        selection = _Selection(plan, validation, context, best)
        batches = _train_batches(plan, train, context, first)
        stack.callback(batches.close)
        device_feed = feed.DeviceFeed(
            _augmented(batches, plan, first, context.seed), plan.mesh, _Select(train)
        )
        stack.callback(device_feed.close)
        log = metrics.MetricLog(context.workdir, first, plan.steps)
        stack.callback(log.close)
        loop.train(
            plan.train_step,
            state,
            device_feed,
            progress=progress,
            steps=plan.steps,
            batch_size=plan.config.batch_size,
            cadence=loop.Cadence(
                log=plan.config.log_every,
                checkpoint=plan.evaluate_every,
                evaluate=plan.evaluate_every,
                images=plan.evaluate_every,
            ),
            log=log,
            checkpoints=saved,
            scalars={},
            step_flops=lambda _: plan.flops_per_example * plan.config.batch_size,
            source_names=[train.as_source().name],
            evaluate=selection,
            workdir=context.workdir,
        )
        return selection.chosen()


class _Selection:
    """The loop's hook: the validation loss; keeps the state of its lowest value on disk.

    The state is on disk before the loop saves its own of the same step, so that a run that is
    resumed finds the best of all that went before. Killed between the two, it repeats the
    evaluation of a step that is already kept, and leaves it.
    """

    def __init__(
        self,
        plan: recipe.Plan,
        validation: examples_lib.Examples,
        context: method.Context,
        best: checkpoints.Checkpoints,
    ):
        self._plan, self._context, self._best = plan, context, best
        # In a random order: a loss within the batch needs all domains in each.
        order = np.random.default_rng(0).permutation(len(validation))
        self._source = validation.subset(order).as_source()
        self._step, self._loss = 0, float("inf")
        if best.latest():
            _, extra = best.restore(plan.abstract)
            self._step, self._loss = extra["step"], extra["validation_loss"]

    def __call__(self, number: int, state: step.State) -> dict[str, float]:
        loss = self._mean_loss(step.merged_params(state))
        if loss < self._loss and number > self._step:
            self._step, self._loss = number, loss
            self._best.save(number, state, {"step": number, "validation_loss": loss})
            self._best.wait()
        return {"validation_loss": loss}

    def chosen(self) -> dict[str, Array]:
        """The parameters of the lowest loss."""
        if not self._step:
            raise errors.UserError(
                "validation loss: is not finite at any evaluation; lower optim.lr"
            )
        return step.merged_params(self._best.restore(self._plan.abstract)[0])

    def _mean_loss(self, params: losses.Params) -> float:
        """Mean over the examples, from batches of one padded shape."""
        plan = self._plan
        batches = loader.eval_batches(
            self._source,
            batch_size=plan.config.batch_size,
            image_size=plan.model.config.vision.image_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            workers=self._context.workers,
            threads=self._context.threads,
            prefetch=self._context.prefetch,
        )
        total = count = 0.0
        with batches:
            for batch in batches:
                loss, rows = plan.measure(params, sharding.put_batch(batch, plan.mesh))
                total += float(loss) * float(rows)
                count += float(rows)
        if not count:
            raise errors.UserError(
                "labels: no validation image can be read and has a domain that is trained on; "
                "label more for validation"
            )
        return total / count


class _Select:
    """What the step needs of a host batch; the label is the domain given to the example."""

    def __init__(self, train: examples_lib.Examples):
        self._domain = train.domain.astype(np.int32)

    def __call__(self, batch: feed.HostBatch) -> feed.HostBatch:
        chosen = {name: batch[name] for name in ("image", "valid", "flip", "mix") if name in batch}
        return chosen | {"label": self._domain[batch["index"]]}


def _train_batches(
    plan: recipe.Plan, train: examples_lib.Examples, context: method.Context, first: int
) -> loader.Batches:
    config = plan.config
    return loader.train_batches(
        [train.as_source()],
        mixture.parse_mix("labels=1"),
        batch_size=config.batch_size,
        steps=plan.steps,
        start_step=first,
        seed=context.seed,
        image_size=plan.model.config.vision.image_size,
        context_length=_TOKENS,
        tokenizer=tokenizer.get_tokenizer(plan.model.config.text.vocab_size),
        crop_scale=config.crop_scale,
        crop_ratio=config.crop_ratio,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        workers=context.workers,
        threads=context.threads,
        prefetch=context.prefetch,
    )


def _augmented(
    batches: Iterator[feed.HostBatch], plan: recipe.Plan, first: int, seed: int
) -> Iterator[feed.HostBatch]:
    """Adds the `flip` and `mix` that `recipe.Plan.objective` tells of, where they are asked for."""
    config = plan.config
    for number, batch in enumerate(batches, first):
        rows = len(batch["valid"])
        draw = functools.partial(
            shuffle.row_hashes,
            seed=seed,
            step=number,
            batch_size=config.batch_size,
            first_row=jax.process_index() * rows,
            rows=rows,
        )
        if config.flip:
            batch["flip"] = (draw("flip") & np.uint64(1)) == 1
        if recipe.mixup(config):
            batch["mix"] = recipe.mixup_share(draw("mix") / 2**64, recipe.mixup(config))
        yield batch


def _identity(
    plan: recipe.Plan,
    start: losses.Params,
    train: examples_lib.Examples,
    validation: examples_lib.Examples,
    seed: int,
) -> dict[str, Any]:
    """What makes two trainings the same, as a checkpoint keeps it."""
    config = json.loads(plan.config.to_json())
    return {
        "config": {k: v for k, v in config.items() if k not in _OPERATIONAL},
        "seed": seed,
        "train": train.as_source().fingerprint,
        "validation": validation.as_source().fingerprint,
        "start": checksums.params_sha256(start),
    }
