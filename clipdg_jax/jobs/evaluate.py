"""Evaluation: the checkpoints of a run in, zero-shot accuracies and predictions out."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections

from clipdg_jax import errors
from clipdg_jax.data import files, tokenizer
from clipdg_jax.evaluation import plots, predictions, suites, tables, zero_shot
from clipdg_jax.models import config as model_config
from clipdg_jax.models import flops
from clipdg_jax.models import model as model_lib
from clipdg_jax.training import checkpoints as checkpoints_lib
from clipdg_jax.training import sharding, workdir


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a config names: the chosen checkpoints (step -> digest) and the opened suites."""

    directory: pathlib.Path
    checkpoints: Mapping[int, str]
    suites: Sequence[suites.Suite]

    def fingerprints(self) -> dict[str, str]:
        """Identifies all of it, for the workdir."""
        data = {
            f"{suite.name}/{test_set.name}": test_set.source.fingerprint
            for suite in self.suites
            for test_set in suite.test_sets
        }
        return data | {f"step {step}": digest for step, digest in self.checkpoints.items()}


def run(config: ml_collections.ConfigDict, directory: pathlib.Path) -> None:
    """Evaluates, writes `results.json`, predictions and a plot, and prints a table.

    Every step's results are kept as soon as they are there: the same command again goes on.

    Raises:
      errors.UserError: a checkpoint, suite or field is missing or wrong.
    """
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
    if config.dry_run:
        print(describe(config))
        return
    inputs = open_inputs(config)
    with workdir.claim(directory, config, inputs.fingerprints()) as claimed:
        if claimed.results is not None:
            _say(f"{directory}: is complete\n{tables.format_table(claimed.results['zero_shot'])}")
            return
        steps = _evaluate(config, inputs, mesh, claimed)
        last = steps[max(steps)]
        results = {
            "job": "evaluate",
            "checkpoint": config.checkpoint,
            "step": max(steps),
            "zero_shot": last,
            "steps": steps,
            "skipped": {suite.name: dict(suite.skipped) for suite in inputs.suites},
        }
        title = f"{config.checkpoint}, step {max(steps)}"
        if jax.process_index() == 0:
            rows = [{"step": step, **zero_shot.scalars(found)} for step, found in steps.items()]
            plots.run_summary(claimed.path / "summary.png", rows, last, title)
        claimed.finish(results)
        for suite in inputs.suites:
            for name, reason in suite.skipped.items():
                _say(f"skipped {suite.name}/{name}: {reason}")
        _say(f"{title}\n{tables.format_table(last)}")


def open_inputs(config: ml_collections.ConfigDict) -> Inputs:
    """Finds the checkpoints and opens the suites that a config names.

    Raises:
      errors.UserError: naming what is missing.
    """
    directory = checkpoints_lib.directory_of(config.checkpoint)
    saved = checkpoints_lib.saved(directory)
    chosen = {step: saved[step] for step in _choose(config.step, sorted(saved), directory)}
    names, root = _suites_of(config, directory)
    return Inputs(directory, chosen, suites.load(names, root, config.missing))


def describe(config: ml_collections.ConfigDict) -> str:
    """The dry run's report: what would be evaluated, or which input is still missing."""
    try:
        inputs = open_inputs(config)
        loaded = checkpoints_lib.load_params(inputs.directory, max(inputs.checkpoints))
    except errors.UserError as error:
        return f"cannot evaluate yet: {error}"
    model = _model(loaded.architecture, config.dtype)
    lines = [
        ("checkpoints", str(inputs.directory)),
        ("steps", ", ".join(str(step) for step in inputs.checkpoints)),
        ("parameters", f"{model.num_params():,}"),
        ("FLOPs per image", f"{flops.forward_flops_image(model.config) / 1e9:.3g} GFLOP"),
        ("FLOPs per prompt", f"at most {flops.forward_flops_text(model.config) / 1e9:.3g} GFLOP"),
    ]
    for suite in inputs.suites:
        for test_set in suite.test_sets:
            what = f"{len(test_set.source):,} images, at most {len(test_set.classes)} classes"
            prompts = f"{len(test_set.templates)} prompts each"
            lines.append((f"{suite.name}/{test_set.name}", f"{test_set.domain}: {what}, {prompts}"))
        for name, reason in suite.skipped.items():
            lines.append((f"{suite.name}/{name}", f"skipped: {reason}"))
    width = max(len(label) for label, _ in lines)
    return "\n".join(f"{label.ljust(width)}  {value}" for label, value in lines)


def _evaluate(
    config: ml_collections.ConfigDict,
    inputs: Inputs,
    mesh: jax.sharding.Mesh,
    claimed: workdir.Workdir,
) -> dict[int, zero_shot.Results]:
    """The results per step, in order; those that an earlier call left behind are read back."""
    kept = {step: claimed.path / f"zero_shot-{step}.json" for step in inputs.checkpoints}
    # Looked up on every process before the first evaluation, so that all see the same.
    steps = {step: json.loads(p.read_text()) for step, p in kept.items() if p.exists()}
    evaluator = None
    keys: dict[tuple[str, str], list[str]] = {}  # The same at every step: read once.
    for step in inputs.checkpoints:
        if step in steps:
            continue
        loaded = checkpoints_lib.load_params(inputs.directory, step, mesh)
        if evaluator is None:
            model = _model(loaded.architecture, config.dtype)
            evaluator = zero_shot.Evaluator(
                model,
                tokenizer.get_tokenizer(model.config.text.vocab_size),
                inputs.suites,
                mesh,
                batch_size=config.eval.batch_size,
                workers=config.eval.workers,
            )
        answers = evaluator.predict(loaded.params)
        del loaded  # Before the next one is read: the device may hold only one.
        steps[step] = zero_shot.measure(answers)
        if jax.process_index() == 0:
            keys = keys or zero_shot.record_keys(inputs.suites, answers)
            items = [(*name, answers[name[0]][name[1]], keys[name]) for name in keys]
            path = claimed.path / f"predictions-{step}.parquet"
            predictions.write(path, items, checkpoint=config.checkpoint, step=str(step))
            files.write_json(kept[step], steps[step])
        if len(inputs.checkpoints) > 1:
            _say(f"step {step}: {_means(steps[step])}")
    return dict(sorted(steps.items()))


def _means(results: zero_shot.Results) -> str:
    return ", ".join(
        f"{suite} {domain} {100 * mean:.1f} %"
        for suite, domains in zero_shot.summary(results).items()
        for domain, mean in domains.items()
    )


def _model(architecture: Mapping[str, Any], dtype: str) -> model_lib.Model:
    return model_lib.Model(model_config.from_config({**architecture, "dtype": dtype}))


def _choose(wanted: str, saved: Sequence[int], directory: pathlib.Path) -> list[int]:
    if wanted == "all":
        return list(saved)
    if wanted == "latest":
        return [saved[-1]]
    try:
        steps = sorted({int(step) for step in str(wanted).split(",")})
    except ValueError:
        raise errors.UserError(
            f"config.step: {wanted!r} is none of latest, all or comma-separated steps"
        ) from None
    missing = [str(step) for step in steps if step not in saved]
    if missing:
        raise errors.UserError(
            f"config.step: {directory} has no checkpoint of step {', '.join(missing)}; "
            f"it has {', '.join(str(step) for step in saved)}"
        )
    return steps


def _suites_of(config: ml_collections.ConfigDict, directory: pathlib.Path) -> tuple[list[str], str]:
    """The suites' names and the data root: the config's, else those of the checkpoints' run."""
    names, root = config.suites, config.data.root
    if not names or not root:
        path = directory.parent / "config.json"
        try:
            run_config = json.loads(path.read_text())["operational"]
        except (OSError, ValueError, KeyError) as error:
            raise errors.UserError(
                f"{path}: cannot be read ({type(error).__name__}); checkpoints outside a run's "
                "workdir need --config.suites=<names> and --config.data.root=<directory>"
            ) from None
        names = names or run_config["eval.suites"]
        root = root or run_config["data.root"]
    if not names:
        raise errors.UserError(
            "config.suites: is empty, and the run had none; give --config.suites=<names>"
        )
    return [name for name in names.split(",") if name], root


def _say(text: str) -> None:
    if jax.process_index() == 0:
        print(text, flush=True)
