"""Trains one point of a combination's sweep on the one loop, resumable.

In the training's directory there are

    metrics.jsonl and TensorBoard   the loop's
    checkpoints/                    the last state
    outcome.json                    written last: steps, seconds, memory, trained parameters
"""

import contextlib
import json
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from clipdg_jax import errors
from clipdg_jax.data import files, loader, mixture, resolve, shuffle, tokenizer
from clipdg_jax.finetuning import combination as combination_lib
from clipdg_jax.finetuning import parts, setting
from clipdg_jax.finetuning import plan as plan_lib
from clipdg_jax.training import checkpoints, feed, loop, metrics, step

OUTCOME = "outcome.json"
# What is not looked at is cut short: a caption to its first and last token.
_TOKENS = 2


def fit(
    plan: plan_lib.Plan,
    point: combination_lib.Point,
    start: parts.Params,
    pretrained: setting.Pretrained,
    train: resolve.Source,
    config: Any,
    directory: Path,
) -> tuple[parts.Params, dict[str, Any]]:
    """Trains, or goes on where an earlier call in `directory` was stopped, or reads what it made.

    Args:
      point: the coefficients.
      start: what training starts from: the model's and the head's parameters.
      train: the labelled images.
      config: the run's.

    Returns:
      The parameters of the model and the head that training ends with, and what it took: `steps`,
      `seconds`, `peak_bytes` of a device, `trained` parameters, and the last `loss`.

    Raises:
      UserError: the loss is not finite, or a label has no class.
    """
    scalars = plan.scalars(point)
    path = directory / OUTCOME
    files.make_directory(directory)
    with contextlib.ExitStack() as stack:
        saved = checkpoints.Checkpoints(
            directory / "checkpoints",
            identity={"training": plan.combination.training, "point": dict(point)},
            architecture=plan.model.config.architecture,
            keep=1,
        )
        stack.callback(saved.close)
        first = saved.latest() or 0
        if first:
            state, extra = saved.restore(plan.abstract)
            progress = loop.Progress(**extra)
        else:
            state, progress = plan.init_state(start, pretrained.params), loop.Progress()
        if first < plan.steps or not path.exists():
            sources, mix = _sources(plan, train, config)
            batches = _batches(plan, sources, mix, config, first)
            stack.callback(batches.close)
            device_feed = feed.DeviceFeed(
                _prepared(batches, plan, pretrained, sources[0], first), plan.mesh, _fields(plan)
            )
            stack.callback(device_feed.close)
            log = metrics.MetricLog(directory, first, plan.steps)
            stack.callback(log.close)
            outcome = loop.train(
                plan.train_step,
                state,
                device_feed,
                progress=progress,
                steps=plan.steps,
                batch_size=plan.batch_size,
                cadence=loop.Cadence(log=config.log_every, checkpoint=config.checkpoint_every),
                log=log,
                checkpoints=saved,
                scalars=scalars,
                step_flops=lambda _: plan.flops_per_example * plan.batch_size,
                source_names=[source.name for source in sources],
                evaluate=None,
                workdir=directory,
            )
            state, progress = outcome.state, outcome.progress
            files.write_json(path, _told(plan, progress, directory))
        effective = plan.effective(step.merged_params(state), scalars)
        return effective, json.loads(path.read_text())


def _told(plan: plan_lib.Plan, progress: loop.Progress, directory: Path) -> dict[str, Any]:
    """What the training took. Its first steps, which wait for the compiler, set no pace."""
    rates = [row["examples_per_second"] for row in metrics.read(directory)]
    return {
        "steps": plan.steps,
        "examples": plan.steps * plan.batch_size,
        "seconds": plan.steps * plan.batch_size / statistics.median(rates),
        "peak_bytes": plan.peak_bytes(),
        "trained": plan.trained(),
        "masked": progress.masked,
        "loss": progress.metrics["loss"],
    }


def _sources(
    plan: plan_lib.Plan, train: resolve.Source, config: Any
) -> tuple[list[resolve.Source], mixture.Mix]:
    """The labelled images first, then what is replayed, and the rows of each in a batch."""
    data = plan.combination.data
    if not data.replay:
        return [train], mixture.parse_mix("labels=1")
    given, root = data.mix, config.data.root
    if not given:
        given, root = setting.mix_of_run(config.checkpoint)
    mix = mixture.parse_mix(given)
    total = sum(mix.active_values)
    shares = [value / total * plan.replayed for value in mix.active_values]
    return (
        [train, *(resolve.resolve(name, root) for name in mix.active_names)],
        mixture.Mix(
            ("labels", *(f"replayed/{name}" for name in mix.active_names)),
            (mixture.Fraction(config.batch_size), *shares),
            amounts=False,
        ),
    )


def _batches(
    plan: plan_lib.Plan,
    sources: list[resolve.Source],
    mix: mixture.Mix,
    config: Any,
    first: int,
) -> loader.Batches:
    text = plan.model.config.text
    return loader.train_batches(
        sources,
        mix,
        batch_size=plan.batch_size,
        steps=plan.steps,
        start_step=first,
        seed=plan.seed,
        image_size=plan.model.config.vision.image_size,
        context_length=text.context_length if plan.combination.uses_text else _TOKENS,
        tokenizer=tokenizer.get_tokenizer(text.vocab_size),
        crop_scale=config.data.crop_scale,
        crop_ratio=config.data.crop_ratio,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        workers=config.data.workers,
        threads=config.data.threads,
        prefetch=config.data.prefetch,
    )


def _prepared(
    batches: Iterator[feed.HostBatch],
    plan: plan_lib.Plan,
    pretrained: setting.Pretrained,
    train: resolve.Source,
    first: int,
) -> Iterator[feed.HostBatch]:
    """Checks the labels and, where asked for, gives labelled images a prompt of their class.

    Which template is a function of the seed, the step and the row.
    """
    for number, batch in enumerate(batches, first):
        labelled = (batch["source"] == 0) & batch["valid"]
        label = np.where(labelled, batch["label"], 0)
        wrong = np.flatnonzero((label < 0) | (label >= plan.classes))
        if len(wrong):
            record = int(batch["index"][wrong[0]])
            raise errors.UserError(
                f"{train.name}: {train.record(record).key} has the label {label[wrong[0]]}, and "
                f"there are {plan.classes} classes, from 0; import it again"
            )
        if plan.combination.data.prompts:
            rows = len(label)
            drawn = shuffle.row_hashes(
                "prompt",
                plan.seed,
                step=number,
                batch_size=plan.batch_size,
                first_row=jax.process_index() * rows,
                rows=rows,
            )
            template = (drawn % np.uint64(pretrained.templates)).astype(np.int64)
            prompt = pretrained.prompts[label * pretrained.templates + template]
            batch["tokens"] = np.where(labelled[:, None], prompt, batch["tokens"])
        yield batch


def _fields(plan: plan_lib.Plan):
    names = tuple(plan.abstract_batch())

    def select(batch: Mapping[str, np.ndarray]) -> feed.HostBatch:
        return {name: batch[name] for name in names}

    return select
