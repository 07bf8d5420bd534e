"""Pre-training: a mix of datasets in, a CLIP with its zero-shot accuracies out."""

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from clipdg_jax import errors, stopping
from clipdg_jax.data import demo, loader, mixture, packing, resolve, tokenizer
from clipdg_jax.evaluation import plots, predictions, suites, tables, zero_shot
from clipdg_jax.models import config as model_config
from clipdg_jax.models import flops
from clipdg_jax.models import model as model_lib
from clipdg_jax.training import (
    agreement,
    checksums,
    dry_run,
    feed,
    loop,
    losses,
    metrics,
    optimizer,
    sharding,
    stacking,
    step,
    workdir,
)
from clipdg_jax.training import checkpoints as checkpoints_lib


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a config comes to before any data is touched."""

    config: ml_collections.ConfigDict
    model: model_lib.Model
    mesh: jax.sharding.Mesh
    mix: mixture.Mix
    steps: int
    tx: optax.GradientTransformation
    objective: losses.Objective
    abstract: step.State
    layout: packing.Layout | None  # Of the captions; None: each has a row.

    @property
    def rng(self) -> jax.Array:
        return jax.random.key(self.config.seed)

    def init(self) -> step.State:
        init = _init_params(self.model, self.config)
        return step.init_state(init, self.rng, self.tx, self.mesh)

    def train_step(self) -> step.Step:
        optim = self.config.optim
        return step.make_train_step(
            self.objective,
            self.tx,
            self.abstract,
            self.mesh,
            schedule=optimizer.schedule(optim.lr, optim.warmup, self.steps),
        )


def plan(config: ml_collections.ConfigDict, devices: Sequence[jax.Device] | None = None) -> Plan:
    """Checks a config and builds everything that needs no data.

    Args:
      config: the run's.
      devices: those to run on; all by default.

    Raises:
      errors.UserError: naming the field that is wrong.
    """
    architecture = {**config.model.to_dict(), "dtype": config.dtype}
    model = model_lib.Model(model_config.from_config(architecture))
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, devices)
    sharding.check_batch_size(config.batch_size, mesh)
    parts = mesh.size * config.accumulate
    if config.accumulate < 1 or config.batch_size % parts:
        raise errors.UserError(
            f"config.accumulate: {config.accumulate} parts on {mesh.size} devices do not divide "
            f"the batch size {config.batch_size}; give 1, or a divisor"
        )
    layout = _layout(config, model.config, parts)
    mix = mixture.parse_mix(config.data.mix)
    steps = length(config, mix)
    tx = optimizer.make_optimizer(config.optim, steps)
    rng = jax.random.key(config.seed)
    init = _init_params(model, config)
    objective = losses.contrastive_objective(
        model, config.loss, accumulate=config.accumulate, shards=mesh.size
    )
    return Plan(
        config=config,
        model=model,
        mesh=mesh,
        mix=mix,
        steps=steps,
        tx=tx,
        objective=_with_batch_metrics(objective),
        abstract=step.abstract_state(init, rng, tx, mesh),
        layout=layout,
    )


def _init_params(model: model_lib.Model, config: ml_collections.ConfigDict) -> step.Init:
    """What makes a run's parameters of a key: blocks that are scanned over stacked."""
    init = losses.wrap_init(model.init, config.loss)
    return (lambda rng: stacking.stack(init(rng))) if model.config.scan_layers else init


def _layout(
    config: ml_collections.ConfigDict, model: model_config.ClipConfig, groups: int
) -> packing.Layout | None:
    """How captions share rows; None where each has its own."""
    if not config.data.pack_rows:
        return None
    context = model.text.context_length
    return packing.layout(config.batch_size, groups, context, config.data.pack_rows)


def length(config: ml_collections.ConfigDict, mix: mixture.Mix) -> int:
    """Steps of a run: `steps`, else `examples`, else `epochs` of the mix's amounts."""
    if config.steps > 0:
        return config.steps
    if config.examples > 0:
        steps = config.examples // config.batch_size
    elif config.epochs > 0 and mix.total is not None:
        steps = mix.total // config.batch_size * config.epochs
    elif config.epochs > 0:
        raise errors.UserError(
            f"config.data.mix: {config.data.mix!r} gives shares only, so that an epoch has no "
            "length; give amounts such as natural=44M, or set config.steps or config.examples"
        )
    else:
        raise errors.UserError(
            "config.steps: is not set, nor are examples or epochs; set one of them"
        )
    if steps < 1:
        raise errors.UserError(
            f"config.batch_size: {config.batch_size} is more than the run's examples; lower it"
        )
    return steps


def operations(config: ml_collections.ConfigDict) -> float:
    """FLOP of a whole run, in closed form (`models.flops`), as its dry run has them.

    Touches no device: the captions of a batch are packed as on one.
    """
    model = model_config.from_config({**config.model.to_dict(), "dtype": config.dtype})
    layout = _layout(config, model, groups=1)
    steps = length(config, mixture.parse_mix(config.data.mix))
    return _flops_per_pair(model, layout) * config.batch_size * steps


def _flops_per_pair(model: model_config.ClipConfig, layout: packing.Layout | None) -> float:
    """Forward and backward; where captions share rows, of the fewest that there may be."""
    if layout is None:
        return flops.train_flops_per_pair(model)
    rows = layout.sizes[0] / layout.captions
    return flops.train_flops_per_pair(model, layout.columns, rows)


def run(config: ml_collections.ConfigDict, directory: pathlib.Path) -> None:
    """Trains, evaluates and writes `results.json`; resumes what an earlier call began."""
    planned = plan(config)
    if config.dry_run:
        print(describe(planned))
        return
    tokens = tokenizer.get_tokenizer(planned.model.config.text.vocab_size)
    if config.data.demo:
        demo.ensure(config.data.root, demo.DemoSpec(**config.data.demo.to_dict()))
    sources = {name: resolve.resolve(name, config.data.root) for name in planned.mix.active_names}
    suite_list = suites.load([s for s in config.eval.suites.split(",") if s], config.data.root)
    inputs = {name: source.fingerprint for name, source in sources.items()}
    with workdir.claim(directory, config, inputs) as claimed:
        if claimed.results is not None:
            _say(f"{directory}: this run is complete\n{_table(claimed.results)}")
            return
        _train(planned, sources, suite_list, tokens, claimed)


def describe(planned: Plan) -> str:
    """The dry run's report; needs no data."""
    config = planned.config
    return dry_run.report(
        name=config.model.name,
        state=planned.abstract,
        objective=planned.objective,
        batch=abstract_batch(planned),
        scalars={},
        mesh=planned.mesh,
        batch_size=config.batch_size,
        steps=planned.steps,
        flops_per_example=_flops_per_pair(planned.model.config, planned.layout),
        captions=_captions(planned.layout),
    )


def _captions(layout: packing.Layout | None) -> str:
    """How captions lie in rows, for the dry run."""
    if layout is None:
        return "one per row"
    sizes = ", ".join(f"{size / layout.captions:.2g}" for size in layout.sizes)
    return f"packed, {sizes} rows of {layout.columns} tokens each; FLOPs are for the fewest"


def step_flops(planned: Plan, batch: Mapping[str, Any]) -> float:
    """Floating-point operations of a step on a batch of these shapes, forward and backward."""
    rows, columns = batch["tokens"].shape
    pairs = len(batch["valid"])
    return pairs * flops.train_flops_per_pair(planned.model.config, columns, rows / pairs)


def _train(
    planned: Plan,
    sources: Mapping[str, resolve.Source],
    suite_list: Sequence[suites.Suite],
    tokens: tokenizer.Tokenizer,
    claimed: workdir.Workdir,
) -> None:
    config, model = planned.config, planned.model
    identity, _ = workdir.split_config(config)
    checkpoints = checkpoints_lib.Checkpoints(
        claimed.checkpoints,
        identity=identity,
        architecture=model.config.architecture,
        keep=config.keep_checkpoints or None,
    )
    with contextlib.ExitStack() as stack:
        stack.callback(checkpoints.close)
        start = checkpoints.latest() or 0
        if start:
            state, extra = checkpoints.restore(planned.abstract, start)
            progress = loop.Progress(**extra)
            _say(f"resuming {claimed.path} at step {start} of {planned.steps}")
        else:
            state, progress = planned.init(), loop.Progress()
        batches = _batches(planned, list(sources.values()), tokens, start)
        stack.callback(batches.close)
        largest = agreement.Largest()
        device_feed = feed.DeviceFeed(
            batches, planned.mesh, lambda batch: device_batch(batch, planned.layout, largest)
        )
        stack.callback(device_feed.close)
        stack.callback(largest.close)
        log = metrics.MetricLog(claimed.path, start, planned.steps)
        stack.callback(log.close)
        evaluation = _Evaluation(planned, suite_list, tokens)
        outcome = loop.train(
            planned.train_step(),
            state,
            device_feed,
            progress=progress,
            steps=planned.steps,
            batch_size=config.batch_size,
            cadence=loop.Cadence(
                log=config.log_every,
                checkpoint=config.checkpoint_every,
                evaluate=config.eval_every,
                images=config.images_every,
                profile_start=config.profile_start,
                profile_steps=config.profile_steps,
            ),
            log=log,
            checkpoints=checkpoints,
            scalars={},
            step_flops=functools.partial(step_flops, planned),
            source_names=list(sources),
            evaluate=evaluation if suite_list else None,
            workdir=claimed.path,
        )
        if evaluation.last is None and suite_list:  # Killed between the last step and its end.
            evaluation(planned.steps, outcome.state)
        params = step.merged_params(outcome.state)
        results = {
            "job": "pretrain",
            "steps": planned.steps,
            "examples": planned.steps * config.batch_size,
            "masked": outcome.progress.masked,
            "loss": outcome.progress.metrics["loss"],
            "params_sha256": checksums.params_sha256(params),
            "zero_shot": evaluation.last or {},
        }
    if jax.process_index() == 0:
        evaluation.write_predictions(claimed.path, planned.steps)
        plots.training_summary(claimed.path, results)
    claimed.finish(results)
    _say(_table(results))


class _Evaluation:
    """The loop's hook: zero-shot accuracies as scalars; keeps the last full result and answers."""

    def __init__(self, planned: Plan, suite_list: Sequence[suites.Suite], tokens):
        self.last: zero_shot.Results | None = None
        self._answers: dict[str, dict[str, predictions.Predictions]] = {}
        self._suites = suite_list
        self._evaluator = zero_shot.Evaluator(
            planned.model,
            tokens,
            suite_list,
            planned.mesh,
            batch_size=planned.config.eval.batch_size,
            workers=planned.config.eval.workers,
        )

    def __call__(self, step_number: int, state: step.State) -> dict[str, float]:
        del step_number
        self._answers = self._evaluator.predict(step.merged_params(state))
        self.last = zero_shot.measure(self._answers)
        return zero_shot.scalars(self.last)

    def write_predictions(self, directory: pathlib.Path, step_number: int) -> None:
        """Writes the last answers to `predictions-<step>.parquet`, as the job evaluate does."""
        if not self._answers:
            return
        items = [
            (*name, self._answers[name[0]][name[1]], keys)
            for name, keys in zero_shot.record_keys(self._suites, self._answers).items()
        ]
        path = directory / f"predictions-{step_number}.parquet"
        predictions.write(path, items, checkpoint=str(directory), step=str(step_number))


def _batches(
    planned: Plan, sources: Sequence[resolve.Source], tokens: tokenizer.Tokenizer, start: int
):
    config, model = planned.config, planned.model.config
    return loader.train_batches(
        sources,
        planned.mix,
        batch_size=config.batch_size,
        steps=planned.steps,
        start_step=start,
        seed=config.seed,
        subset_seed=config.data.subset_seed,
        image_size=model.vision.image_size,
        context_length=model.text.context_length,
        tokenizer=tokens,
        crop_scale=config.data.crop_scale,
        crop_ratio=config.data.crop_ratio,
        shuffle_block=config.data.shuffle_block,
        shuffle_window=config.data.shuffle_window,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        workers=config.data.workers,
        threads=config.data.threads,
        prefetch=config.data.prefetch,
    )


def device_fields(batch: feed.HostBatch) -> feed.HostBatch:
    """What the step needs of a batch.

    `record` is a hash of each row's (source, index), `stop` whether this process was asked to.
    """
    multiplier = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio (Knuth 6.4).
    identity = batch["index"].astype(np.uint64) * multiplier + batch["source"].astype(np.uint64)
    record = (identity * multiplier >> np.uint64(40)).astype(np.uint32)
    stop = np.full(len(record), stopping.asked())
    kept = {name: batch[name] for name in ("image", "tokens", "valid")}
    return kept | {"record": record, "stop": stop}


def device_batch(
    batch: feed.HostBatch, layout: packing.Layout | None, agree: Callable[[int], int]
) -> feed.HostBatch:
    """`device_fields`, with the captions packed where there is a layout."""
    fields = device_fields(batch)
    return fields if layout is None else fields | packing.pack(batch["tokens"], layout, agree)


def _with_batch_metrics(objective: losses.Objective) -> losses.Objective:
    """Adds to the metrics `stop` and `records`, a checksum of which records a batch held.

    `stop` is 1 where any process was asked to: all of them learn it at the same step, with metrics
    that they read anyway. The checksum is an exact integer below 2^24 that depends on the order of
    the rows, but not on the devices that hold them: equal values in two runs' metrics mean the same
    batch.
    """

    def wrapped(params, batch, scalars):
        loss, values = objective(params, batch, scalars)
        rows = jnp.arange(1, batch["record"].shape[0] + 1, dtype=jnp.uint32)
        checksum = jnp.sum(batch["record"] * (2 * rows - 1), dtype=jnp.uint32) % (1 << 24)
        return loss, values | {"records": checksum, "stop": jnp.any(batch["stop"])}

    return wrapped


def abstract_batch(planned: Plan) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a global batch, as the step takes it; of packed captions with the most rows."""
    size, model, layout = planned.config.batch_size, planned.model.config, planned.layout
    side = model.vision.image_size
    shapes = {
        "image": ((size, side, side, 3), jnp.uint8),
        "tokens": ((size, model.text.context_length), jnp.int32),
        "valid": ((size,), jnp.bool_),
        "record": ((size,), jnp.uint32),
        "stop": ((size,), jnp.bool_),
    }
    if layout is not None:
        slots = (layout.groups * layout.sizes[-1], layout.columns)
        shapes |= {"tokens": (slots, jnp.int32), "positions": (slots, jnp.int32)}
        shapes["ends"] = ((layout.groups, layout.captions), jnp.int32)
    return {name: jax.ShapeDtypeStruct(*value) for name, value in shapes.items()}


def _table(results: Mapping[str, Any]) -> str:
    return tables.format_table(results["zero_shot"]) if results["zero_shot"] else ""


def _say(text: str) -> None:
    if jax.process_index() == 0:
        print(text, flush=True)
