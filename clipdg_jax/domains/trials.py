"""Fitting methods on a split and scoring labelled sets with them, each once.

A trial is one method fitted on one split in a directory of its own:

    fit/               what a training resumes from
    state.safetensors  the fitted method (see `classifier.write_state`)
    scores.parquet     what it says of every set; there once the trial is done

An ensemble has scores too, but no fit: it is put together from its members' trials.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import ml_collections

from clipdg_jax.data import files
from clipdg_jax.domains import classifier, examples, methods, scores
from clipdg_jax.domains import encoder as encoder_lib
from clipdg_jax.domains.methods import ensemble, method

ENSEMBLE = "ensemble"
SCORES = "scores.parquet"


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all trials of a run share.

    Attributes:
      config: the run's config; the section `<method>` is each method's own.
      encoder: what methods start from or take features of.
      mesh: the devices.
      say: told what is going on, line by line.
    """

    config: ml_collections.ConfigDict
    encoder: encoder_lib.Encoder
    mesh: jax.sharding.Mesh
    say: Callable[[str], None] = print


def members(setting: Setting) -> tuple[str, ...]:
    """The methods that the ensemble is made of."""
    return ensemble.members(setting.config[ENSEMBLE])


def run(
    names: Sequence[str],
    train: examples.Examples,
    validation: examples.Examples,
    sets: Mapping[str, examples.Examples],
    setting: Setting,
    directory: Path,
) -> dict[str, dict[str, scores.Scores]]:
    """Fits the methods on `train` and scores the sets, or reads what an earlier call left.

    Args:
      names: the methods; an ensemble's members are fitted too.
      validation: may choose among the states of a method's training.
      sets: what to score.
      directory: holds one directory for each method.

    Returns:
      {method: {set: scores}}, of `names` and of the members.
    """
    wanted = [name for name in names if name != ENSEMBLE]
    if ENSEMBLE in names:
        wanted += [name for name in members(setting) if name not in wanted]
    found = {
        name: _trial(name, train, validation, sets, setting, directory / name) for name in wanted
    }
    if ENSEMBLE in names:
        parts = [found[name] for name in members(setting)]
        how = setting.config[ENSEMBLE].combine
        found[ENSEMBLE] = {
            which: dataclasses.replace(
                parts[0][which],
                probability=ensemble.combine([part[which].probability for part in parts], how),
            )
            for which in sets
        }
        scores.write(directory / ENSEMBLE / SCORES, found[ENSEMBLE])
    return found


def load(name: str, setting: Setting, directory: Path) -> method.Method:
    """The method that a finished trial fitted; an ensemble of its members' trials."""
    if name == ENSEMBLE:
        parts = {part: load(part, setting, directory) for part in members(setting)}
        return ensemble.Ensemble.of(parts, setting.config[ENSEMBLE].combine)
    state = classifier.read_state(directory / name)
    return methods.get(name).load(state, setting.mesh)


def _trial(
    name: str,
    train: examples.Examples,
    validation: examples.Examples,
    sets: Mapping[str, examples.Examples],
    setting: Setting,
    directory: Path,
) -> dict[str, scores.Scores]:
    path = directory / SCORES
    if path.exists() and (directory / classifier.STATE).exists():
        return scores.read(path)
    setting.say(f"{name}: fitting on {len(train)} labels")
    workdir = directory / "fit"
    files.make_directory(workdir)
    config = setting.config
    context = method.Context(
        config=config[name],
        sections={other: config[other] for other in methods.METHODS},
        encoder=setting.encoder,
        mesh=setting.mesh,
        seed=config.seed,
        workdir=workdir,
        workers=config.data.workers,
        threads=config.data.threads,
        prefetch=config.data.prefetch,
    )
    fitted = methods.get(name).fit(train, validation, context)
    classifier.write_state(directory, fitted.state())
    found = {which: scores.of(fitted, part) for which, part in sets.items()}
    scores.write(path, found)
    return found
