"""Domain classifiers: labels in, fitted and calibrated classifiers and their comparison out.

The workdir holds a directory for each method, with the fitted classifier (`domains.classifier`)
and its scores (`domains.trials`), and the comparison of all of them (`domains.report`).
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from clipdg_jax import errors
from clipdg_jax.data import demo, files, resolve
from clipdg_jax.domains import (
    annotators,
    calibration,
    classifier,
    examples,
    exclusion,
    labelled,
    labels,
    methods,
    report,
    scores,
    splits,
    trials,
)
from clipdg_jax.domains import encoder as encoder_lib
from clipdg_jax.domains.methods import ensemble, finetune, style
from clipdg_jax.models import config as model_config
from clipdg_jax.training import checkpoints, sharding, workdir

COMPARE = "compare"
# Labels of the simulated annotators, in the workdir.
SIMULATED = "labels.sqlite"
# In the cross-fitted comparison every record is scored by a method that did not see it.
CROSS_FITTED = "cross-fitted"
# Labels that a dry run assumes, where the labels themselves are not looked at.
DRY_RUN_LABELS = 13_000
# The methods that train on the loop, and what tells of their training without data.
PLANS = {"finetune": finetune.plan, "frozen": finetune.plan, "style": style.plan}


def run(config: ml_collections.ConfigDict, directory: pathlib.Path) -> None:
    """Fits, calibrates, saves and compares; goes on where an earlier call was stopped.

    Raises:
      errors.UserError: a field, a label, a dataset or the encoder is missing or wrong.
    """
    names = chosen_methods(config)
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
    if config.dry_run:
        print(describe(config, names, mesh))
        return
    if jax.process_count() > 1:
        raise errors.UserError(
            "--multihost: one process fits classifiers, on all devices of its host; leave it out"
        )
    if config.data.demo:
        demo.ensure(config.data.root, demo.DemoSpec(**config.data.demo.to_dict()))
    sources = _resolve(config, "datasets")
    test_sets = _resolve(config, "test_sets")
    _check(config, sources, test_sets)
    with workdir.claim(
        directory, config, _fingerprints(config, {**sources, **test_sets})
    ) as claimed:
        if claimed.results is not None:
            print(f"{directory}: this run is complete\n{report.text(claimed.results)}")
            return
        setting = trials.Setting(config, _encoder(config, mesh), mesh)
        told = {name: examples.everything(source) for name, source in test_sets.items()}
        fit = _cross_fit if config.labels.folds else _split
        compared, seen, provenance = fit(names, list(sources.values()), told, setting, claimed.path)
        results = {
            "job": "classify",
            "encoder": setting.encoder.origin,
            "labels": provenance,
            **report.write(claimed.path, compared, {**told, **seen}),
        }
        claimed.finish(results)
        print(f"{report.text(results)}\n\n{_saved(names, claimed.path)}")


def chosen_methods(config: ml_collections.ConfigDict) -> list[str]:
    """The methods that a config asks for. Raises UserError for one that does not exist."""
    named = config.compare if config.method == COMPARE else config.method
    names = [name for name in map(str.strip, named.split(",")) if name]
    for name in names:
        methods.get(name)
    if not names:
        raise errors.UserError("config.compare: is empty; name the methods to compare")
    return list(dict.fromkeys(names))


def describe(
    config: ml_collections.ConfigDict, names: Sequence[str], mesh: jax.sharding.Mesh
) -> str:
    """The dry run's report; needs no data."""
    architecture = model_config.from_config(
        {**config.encoder.model.to_dict(), "dtype": config.dtype}
    )
    count = DRY_RUN_LABELS
    if config.labels.simulate:
        count = config.labels.simulate.train
    combined = ensemble.members(config.ensemble) if trials.ENSEMBLE in names else ()
    lines = []
    for name in dict.fromkeys((*names, *combined)):
        if name in PLANS:
            planned = PLANS[name](config[name], architecture, mesh, examples=count)
            lines.append(f"{name}, {count:,} labels\n{planned.report(config.encoder.model.name)}")
        elif name == trials.ENSEMBLE:
            lines.append(f"{name}: combines its members {', '.join(combined)}, without training")
        else:
            lines.append(f"{name}: solved at once from the labels, nothing is trained in steps")
    return "\n\n".join(lines)


def _split(
    names: Sequence[str],
    sources: Sequence[resolve.Source],
    test_sets: Mapping[str, examples.Examples],
    setting: trials.Setting,
    directory: pathlib.Path,
) -> tuple[list[report.Compared], dict[str, examples.Examples], dict[str, Any]]:
    """Fits on one part of the labels, calibrates on another, and tests on a third."""
    config = setting.config
    read = _read_labels(config, sources, directory)
    parts = labelled.split(read, config.labels, config.seed)
    labelled.check(parts)
    _write_splits(directory, parts)
    provenance = {
        **read.provenance,
        "splits": {name: part.counts() for name, part in parts.items()},
    }
    sets = {"validation": parts["validation"], "test": parts["test"], **test_sets}
    found = trials.run(names, parts["train"], parts["validation"], sets, setting, directory)
    compared = []
    for name in names:
        validation = found[name]["validation"].readable()
        calibrated = _calibrate(validation, config, config.method == COMPARE)
        _save(name, calibrated, provenance, setting, directory)
        told = trials.load(name, setting, directory).describe()
        compared.append(report.Compared(name, told, calibrated, found[name]))
    return compared, {"test": parts["test"]}, provenance


def _cross_fit(
    names: Sequence[str],
    sources: Sequence[resolve.Source],
    test_sets: Mapping[str, examples.Examples],
    setting: trials.Setting,
    directory: pathlib.Path,
) -> tuple[list[report.Compared], dict[str, examples.Examples], dict[str, Any]]:
    """Scores each fold by methods fitted without it; then fits on all folds.

    Of k folds, one is scored, one may choose among the states of a training, and the others train.
    A fold's thresholds are calibrated on the scores of the other folds, and those of the final
    classifier on the scores of all. The final one trains on all folds but the first, which chooses
    among its states.
    """
    config = setting.config
    read = _read_labels(config, sources, directory)
    data, count = read.examples, config.labels.folds
    labelled.check({"all folds": data})
    if count < 3:
        raise errors.UserError(
            f"config.labels.folds: is {count}; a fold is scored, one chooses and the others train, "
            "so use 3 or more, or 0 for one split"
        )
    fold = splits.folds(data.keys, count, config.seed)
    members = [data.subset(fold == k) for k in range(count)]
    chooses = [(k + 1) % count for k in range(count)]
    train = [data.subset((fold != k) & (fold != chooses[k])) for k in range(count)]
    labelled.check({f"training without fold {k}": part for k, part in enumerate(train)})
    _write_splits(directory, {f"fold {k}": part for k, part in enumerate(members)})
    held_out: list[Mapping[str, scores.Scores]] = []
    for k in range(count):
        print(f"fold {k + 1} of {count}", flush=True)
        found = trials.run(
            names,
            train[k],
            members[chooses[k]],
            {CROSS_FITTED: members[k]},
            setting,
            directory / f"fold-{k}",
        )
        held_out.append({name: found[name][CROSS_FITTED].readable() for name in names})
    print("all folds", flush=True)
    provenance = {**read.provenance, "folds": count, "counts": data.counts()}
    final = trials.run(
        names, data.subset(fold != 0), members[0], dict(test_sets), setting, directory
    )
    compared = []
    for name in names:
        parts = [found[name] for found in held_out]
        calibrated = _calibrate(scores.join(parts), config, config.method == COMPARE)
        aligned = [
            _aligned(
                part, _calibrate(scores.join(parts[:k] + parts[k + 1 :]), config, True), calibrated
            )
            for k, part in enumerate(parts)
        ]
        _save(name, calibrated, provenance, setting, directory)
        compared.append(
            report.Compared(
                name,
                trials.load(name, setting, directory).describe(),
                calibrated,
                {CROSS_FITTED: scores.join(aligned), **final[name]},
            )
        )
    return compared, {CROSS_FITTED: data}, provenance


def _calibrate(
    validation: scores.Scores, config: ml_collections.ConfigDict, allow_unreached: bool
) -> calibration.Calibration:
    return calibration.calibrate(
        validation.probability,
        validation.domain,
        allow_unreached=allow_unreached,
        **config.calibration.to_dict(),
    )


def _aligned(
    part: scores.Scores, own: calibration.Calibration, common: calibration.Calibration
) -> scores.Scores:
    """Log-odds shifted so that deciding at the common thresholds is deciding at the own ones.

    Without a common threshold nothing is taken, and scores stay as they are. Without one of its
    own, a fold's scores stay but below the common threshold: nothing of it is taken.
    """
    shifted = part.probability.copy()
    for column, (here, there) in enumerate(zip(own.deciders, common.deciders, strict=True)):
        if not np.isfinite(there.threshold):
            continue
        score = part.probability[:, column].astype(np.float64)
        taken = score >= here.threshold
        if np.isfinite(here.threshold):
            moved = _log_odds(score) - _log_odds(here.threshold) + _log_odds(there.threshold)
            shifted[:, column] = 1 / (1 + np.exp(-moved))
        # Rounding must not move a score across the threshold, itself a float32 of some score.
        goal = np.float32(there.threshold)
        above = np.maximum(shifted[:, column], goal)
        below = np.minimum(shifted[:, column], np.nextafter(goal, np.float32(-np.inf)))
        shifted[:, column] = np.where(taken, above, below)
    return dataclasses.replace(part, probability=shifted)


def _log_odds(probability: Any) -> Any:
    clipped = np.clip(np.asarray(probability, np.float64), 1e-12, 1 - 1e-12)
    return np.log(clipped) - np.log1p(-clipped)


def _save(
    name: str,
    calibrated: calibration.Calibration,
    provenance: Mapping[str, Any],
    setting: trials.Setting,
    directory: pathlib.Path,
) -> None:
    """Saves a classifier, unless one of its deciders takes nothing."""
    if all(not decider.refusal for decider in calibrated.deciders):
        fitted = trials.load(name, setting, directory)
        told = {"labels": dict(provenance), "encoder": setting.encoder.origin}
        classifier.Classifier(name, fitted, calibrated, told).save(directory / name)


def _write_splits(directory: pathlib.Path, parts: Mapping[str, examples.Examples]) -> None:
    """Which record was in which part, by its key."""
    files.write_json(
        directory / "splits.json", {name: list(part.keys) for name, part in parts.items()}
    )


def _read_labels(
    config: ml_collections.ConfigDict, sources: Sequence[resolve.Source], directory: pathlib.Path
) -> labelled.Read:
    """The labels that a config names, else simulated ones, else the records' own domains."""
    exclude = {}
    if config.data.exclude:
        exclude = {s.fingerprint: exclusion.read(config.data.exclude, s) for s in sources}
    if config.labels.path:
        return labelled.read(config.labels.path, sources, exclude)
    if not config.labels.simulate:
        return labelled.of_records(sources, exclude)
    if len(sources) != 1:
        raise errors.UserError("config.labels.simulate: labels one dataset; name one")
    path, given = directory / SIMULATED, config.labels.simulate
    with labels.Store(path) as store:
        annotators.simulate(
            store,
            sources[0],
            examples.everything(sources[0]).domain,
            train=given.train,
            validation_and_test=config.labels.validation + config.labels.test,
            train_noise=given.train_noise,
            annotators=given.annotators,
            error=given.error,
            seed=config.seed,
            exclude=exclude.get(sources[0].fingerprint, frozenset()),
        )
    read = labelled.read(str(path), sources, exclude)
    return dataclasses.replace(read, provenance={**read.provenance, "labels": "simulated"})


def _resolve(config: ml_collections.ConfigDict, field: str) -> dict[str, resolve.Source]:
    """The datasets by the names that the config gives them: `pool` and `test/pool` are two."""
    names = [name for name in map(str.strip, config.data[field].split(",")) if name]
    return {name: resolve.resolve(name, config.data.root) for name in names}


def _check(
    config: ml_collections.ConfigDict,
    sources: Mapping[str, resolve.Source],
    test_sets: Mapping[str, resolve.Source],
) -> None:
    """Raises UserError for what would otherwise be told after hours of fitting."""
    if not sources:
        raise errors.UserError("config.data.datasets: is empty; name what the labels are of")
    called: dict[str, str] = {}
    for name, source in sources.items():
        if called.setdefault(source.name, name) != name:
            raise errors.UserError(
                f"config.data.datasets: {called[source.name]} and {name} both say that they are "
                f"{source.name!r}, and labels could not tell them apart; make one under another "
                "name"
            )
    content = {source.fingerprint for source in sources.values()}
    for name, source in test_sets.items():
        if name in ("test", "validation", CROSS_FITTED):
            raise errors.UserError(
                f"config.data.test_sets: {name!r} is what a part of the labels is called; give "
                f"the dataset as ./{name}"
            )
        if source.fingerprint in content:
            raise errors.UserError(
                f"config.data.test_sets: {name} is among config.data.datasets too; a test set "
                "holds none of the records that are labelled for training"
            )
    calibration.calibrate(
        np.zeros((1, 2), np.float32), np.zeros(1), allow_unreached=True, **config.calibration
    )


def _fingerprints(
    config: ml_collections.ConfigDict, sources: Mapping[str, resolve.Source]
) -> dict[str, str]:
    """What identifies the datasets, the encoder's checkpoint and the labels."""
    inputs = {name: source.fingerprint for name, source in sources.items()}
    if config.encoder.checkpoint:
        saved = checkpoints.saved(checkpoints.directory_of(config.encoder.checkpoint))
        inputs["encoder"] = saved[max(saved)]
    if config.labels.path:
        inputs["labels"] = labelled.fingerprint(config.labels.path)
    if config.data.exclude:
        inputs["exclude"] = exclusion.fingerprint(config.data.exclude)
    return inputs


def _encoder(config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh) -> encoder_lib.Encoder:
    architecture = config.encoder.model.to_dict()
    if config.encoder.checkpoint:
        return encoder_lib.from_checkpoint(
            config.encoder.checkpoint, architecture, config.dtype, mesh
        )
    return encoder_lib.scratch(architecture, config.dtype, mesh, config.seed)


def _saved(names: Sequence[str], directory: pathlib.Path) -> str:
    """Where the classifiers are."""
    saved = [str(directory / name) for name in names if classifier.is_saved(directory / name)]
    return f"saved: {', '.join(saved)}" if saved else "no classifier reaches the target: none saved"
