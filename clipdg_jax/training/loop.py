"""The one training loop: pre-training, classifier fitting and fine-tuning all run in it."""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from clipdg_jax import errors, stopping
from clipdg_jax.training import checkpoints as checkpoints_lib
from clipdg_jax.training import feed as feed_lib
from clipdg_jax.training import metrics as metrics_lib

State = dict[str, Any]
StepFn = Callable[[State, Mapping[str, jax.Array], Mapping[str, jax.Array]], tuple[State, Any]]
EvalFn = Callable[[int, State], Mapping[str, float]]


@dataclasses.dataclass(frozen=True)
class Cadence:
    """How often, in steps, the loop does what; 0 means only at the end (or never: images)."""

    log: int = 50
    checkpoint: int = 0
    evaluate: int = 0
    images: int = 0
    profile_start: int = 0
    profile_steps: int = 0


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a run carries from step to step beside its state; saved with each checkpoint.

    step: updates made. masked: records so far that could not be read and were masked.
    metrics: those of the last step.
    """

    step: int = 0
    masked: int = 0
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What is left when the loop ends: the final state and how far it came."""

    state: State
    progress: Progress


def train(
    step_fn: StepFn,
    state: State,
    feed: feed_lib.DeviceFeed,
    *,
    progress: Progress,
    steps: int,
    batch_size: int,
    cadence: Cadence,
    log: metrics_lib.MetricLog,
    checkpoints: checkpoints_lib.Checkpoints,
    scalars: Mapping[str, jax.Array],
    step_flops: Callable[[Mapping[str, jax.Array]], float],
    source_names: Sequence[str],
    evaluate: EvalFn | None,
    workdir: pathlib.Path,
) -> Outcome:
    """Runs the steps after `progress.step` up to `steps`.

    Metrics of a step are read while the next one runs, so that the host never stalls the device;
    before a checkpoint or an evaluation they are read at once, so that nothing is saved that
    follows from a loss not known to be finite.

    Args:
      step_fn: `(state, batch, scalars) -> (state, metrics)`; donates the state.
      state: the state after `progress.step` steps.
      feed: gives the batches of the steps after it.
      progress: how far an earlier call came; `Progress()` for a new run.
      steps: steps at the end.
      batch_size: global examples per step.
      cadence: how often to log, save, evaluate, show images and profile.
      log: where metrics go.
      checkpoints: where states go; the last step is always saved.
      scalars: traced scalars handed to the objective.
      step_flops: of a step on such a batch, for the model FLOP utilisation.
      source_names: names of the mix's datasets, for the image grids.
      evaluate: called with (step, state); returns scalars to log.
      workdir: where the profile goes.

    Raises:
      errors.UserError: the loss or the gradient is not finite; the last good checkpoint stays.
      stopping.Stopped: SIGTERM came, and the step that ran is saved. An evaluation is finished
        before. Several processes stop together: their objective's metrics hold "stop", which is
        above 0 where it has come to any of them.
    """
    start = progress.step
    meter = _Meter(start, batch_size, feed)
    pending: tuple[int, Any] | None = None
    stop = False

    def settle() -> None:
        """Reads the metrics of the step in flight, checks them and logs them when due."""
        nonlocal pending, progress, stop
        if pending is None:
            return
        step, values = pending
        pending = None
        read = {name: value.item() for name, value in jax.device_get(values).items()}
        masked = progress.masked + batch_size - int(read.pop("valid"))
        stop = read.pop("stop", 0) > 0 or (jax.process_count() == 1 and stopping.asked())
        if not read.pop("finite"):
            raise _diverged(step, read, checkpoints)
        progress = Progress(step, masked, read)
        log.progress(step, f"loss {read['loss']:.3f}")
        if _due(step, cadence.log) or step == steps:
            log.write(step, {**read, "masked": masked, **meter.read(step)})

    profiling = False
    batches = iter(feed)
    with stopping.watch():
        for step in range(start + 1, steps + 1):
            if cadence.profile_steps and step == max(cadence.profile_start, 1):
                jax.profiler.start_trace(str(workdir / "profile"))
                profiling = True
            host, batch = next(batches)
            meter.add(step_flops(batch))
            state, values = step_fn(state, batch, scalars)
            settle()
            pending = (step, values)
            if _due(step, cadence.images) or (cadence.images and step == start + 1):
                _show_inputs(log, step, host, source_names)
            if profiling and step + 1 >= max(cadence.profile_start, 1) + cadence.profile_steps:
                settle()
                jax.profiler.stop_trace()
                profiling = False
            if evaluate is not None and (_due(step, cadence.evaluate) or step == steps):
                settle()
                with meter.paused():
                    log.write(step, evaluate(step, state))
            if _due(step, cadence.checkpoint) or step == steps:
                settle()
                with meter.paused():
                    checkpoints.save(step, state, dataclasses.asdict(progress))
            if stop and step < steps:
                settle()
                checkpoints.save(step, state, dataclasses.asdict(progress))
                checkpoints.wait()
                raise stopping.Stopped(f"step {step} of {steps} is saved")
    settle()
    if profiling:
        jax.profiler.stop_trace()
    checkpoints.wait()
    return Outcome(state, progress)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _diverged(
    step: int, values: Mapping[str, float], checkpoints: checkpoints_lib.Checkpoints
) -> errors.UserError:
    checkpoints.wait()
    latest = checkpoints.latest()
    kept = f"the checkpoint of step {latest} is kept" if latest else "no checkpoint was saved yet"
    return errors.UserError(
        f"step {step}: loss {values['loss']}, gradient norm {values['grad_norm']} is not finite; "
        f"{kept}; lower config.optim.lr, warm up longer or clip, in another --workdir"
    )


def _show_inputs(
    log: metrics_lib.MetricLog, step: int, host: feed_lib.HostBatch, names: Sequence[str]
) -> None:
    for i, name in enumerate(names):
        rows = np.flatnonzero((host["source"] == i) & host["valid"])[:16]
        log.images(step, f"inputs/{name}", host["image"][rows])


class _Meter:
    """Speed since the last reading: examples/s, share of time waiting for data, MFU."""

    def __init__(self, start: int, batch_size: int, feed: feed_lib.DeviceFeed):
        self._batch_size = batch_size
        self._feed = feed
        self._step, self._time, self._waited = start, time.perf_counter(), 0.0
        self._flops: list[float] = []  # Of the steps begun since the last reading.

    def add(self, flops: float) -> None:
        self._flops.append(flops)

    def read(self, step: int) -> dict[str, float]:
        now, waited = time.perf_counter(), self._feed.waited
        seconds = max(now - self._time, 1e-9)
        steps = step - self._step  # The step that runs now is not among them.
        rate = steps * self._batch_size / seconds
        values = {
            "examples_per_second": rate,
            "examples_per_second_per_device": rate / jax.device_count(),
            "data_wait": min(1.0, (waited - self._waited) / seconds),
        }
        peak = metrics_lib.peak_flops(jax.devices()[0])
        if peak:
            values["mfu"] = sum(self._flops[:steps]) / seconds / (peak * jax.device_count())
        del self._flops[:steps]
        self._step, self._time, self._waited = step, now, waited
        return values

    def paused(self) -> "_Pause":
        return _Pause(self)

    def skip(self, seconds: float) -> None:
        self._time += seconds


class _Pause:
    """Keeps the time of an evaluation or a save out of the training speed."""

    def __init__(self, meter: _Meter):
        self._meter = meter

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *unused: object) -> None:
        self._meter.skip(time.perf_counter() - self._start)
