"""A sweep: runs of other configs, in turn or as a list for a launcher, and one table of them."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from clipdg_jax import errors
from clipdg_jax.data import files, mixture
from clipdg_jax.evaluation import tables
from clipdg_jax.jobs import inputs, pretrain
from clipdg_jax.study import cells as cells_lib
from clipdg_jax.study import runner
from clipdg_jax.training import dry_run, workdir


def run(config: ml_collections.ConfigDict, directory: pathlib.Path) -> None:
    """Runs the cells that are not complete; no device is touched here, they are the cells'.

    Raises:
      errors.UserError: a cell's config cannot be loaded; the directory holds other cells of the
        same names; cells failed.
      stopping.Stopped: SIGTERM came.
    """
    cells = cells_lib.expand(config.cells, _seeds(config), _fields(config))
    loaded = [_load(cell) for cell in cells]
    if config.print_array:
        print(cells_lib.array(cells, directory))
        return
    if config.dry_run:
        print(describe(cells, loaded))
        return
    if config.parallel < 1:
        raise errors.UserError(f"config.parallel: {config.parallel} is too few; 1 or more")
    identities = [files.digest(workdir.split_config(one)[0]) for one in loaded]
    _claim(directory, cells_lib.describe(cells, identities))
    runner.run_all(cells, directory, config.parallel)
    results = {"job": "sweep", "cells": [cell.name for cell in cells]}
    files.write_json(directory / "results.json", results)


def describe(cells: Sequence[cells_lib.Cell], loaded: Sequence[ml_collections.ConfigDict]) -> str:
    """The dry run's report: every cell and what it takes, as far as it pre-trains."""
    head = ("run", "steps", "examples", "FLOP", *(f"{d}-hours" for d in dry_run.DEVICES))
    rows: list[tuple[str, ...]] = []
    total = 0.0
    for cell, config in zip(cells, loaded, strict=True):
        if config.job != "pretrain":
            rows.append((cell.name, *[""] * (len(head) - 1)))
            continue
        steps = pretrain.length(config, mixture.parse_mix(config.data.mix))
        operations = pretrain.operations(config)
        total += operations
        rows.append(
            (cell.name, f"{steps:,}", f"{steps * config.batch_size:,}", *_operations(operations))
        )
    rows.append((f"{len(cells)} runs", "", "", *_operations(total)))
    return (
        f"{tables.aligned(head, rows)}\n\nHours of one device, at an assumed MFU of "
        f"{dry_run.ASSUMED_MFU}; 8 devices take an eighth."
    )


def _operations(count: float) -> list[str]:
    return [f"{count:.3g}", *(f"{dry_run.hours(count, kind):,.1f}" for kind in dry_run.DEVICES)]


def _load(cell: cells_lib.Cell) -> ml_collections.ConfigDict:
    try:
        return inputs.load(cell.config, cell.fields)
    except errors.UserError as error:
        raise errors.UserError(f"config.cells: {cell.name}: {error}") from error


def _claim(directory: pathlib.Path, cells: Mapping[str, Mapping[str, Any]]) -> None:
    """Notes the cells in the sweep's directory; those of an earlier call stay noted.

    Raises UserError where one of the same name is another run.
    """
    files.make_directory(directory)
    path = directory / cells_lib.SWEEP
    with files.lock(directory / ".sweep.lock", wait=True):
        noted = cells_lib.read(directory) if path.exists() else {}
        for name, one in cells.items():
            if name in noted and noted[name]["identity"] != one["identity"]:
                raise errors.UserError(
                    f"{path}: has another {name}, {_difference(noted[name], one)}; give another "
                    "--workdir, or the same cells"
                )
        files.write_json(path, {"cells": noted | dict(cells)})


def _difference(noted: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    for key in ("config", "fields"):
        if noted[key] != list(wanted[key]) and noted[key] != wanted[key]:
            return f"of {key} {noted[key]!r}, not {wanted[key]!r}"
    return "whose config file has changed since"


def _seeds(config: ml_collections.ConfigDict) -> list[int]:
    given: Any = config.seeds
    return [given] if isinstance(given, int) else list(given)


def _fields(config: ml_collections.ConfigDict) -> list[str]:
    given: Any = config.set
    return [given] if isinstance(given, str) else list(given)
