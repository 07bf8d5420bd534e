"""A run's directory: whose it is, whether it is finished, and what it holds."""

import contextlib
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.experimental import multihost_utils

from clipdg_jax import errors
from clipdg_jax.data import files

# Fields that change how a run is executed, never what it computes. All others are identity.
OPERATIONAL = (
    "accumulate",
    "checkpoint_every",
    "data.pack_rows",
    "data.prefetch",
    "data.root",
    "data.threads",
    "data.workers",
    "deterministic",
    "dry_run",
    "eval",
    "eval_every",
    "images_every",
    "inputs",
    "keep_checkpoints",
    "log_every",
    "mesh",
    "processes",
    "profile_start",
    "profile_steps",
    "ram_gib",
)


def split_config(config: ml_collections.ConfigDict) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits a config into its identity and its operational fields, both as flat dicts."""
    identity: dict[str, Any] = {}
    operational: dict[str, Any] = {}
    for path, value in _flatten(config.to_dict()).items():
        (operational if is_operational(path) else identity)[path] = value
    return identity, operational


def is_operational(field: str) -> bool:
    """Whether a field, such as `data.root`, changes how a run is executed only.

    What follows a "=" is no part of its name.
    """
    path = field.partition("=")[0]
    return any(path == o or path.startswith(f"{o}.") for o in OPERATIONAL)


class Workdir:
    """A claimed run directory.

    Attributes:
      path: the directory.
      results: the content of `results.json` if the run is complete, else None.
    """

    def __init__(self, path: pathlib.Path, results: dict[str, Any] | None):
        self.path = path
        self.results = results

    @property
    def checkpoints(self) -> pathlib.Path:
        return self.path / "checkpoints"

    def finish(self, results: Mapping[str, Any]) -> None:
        """Writes `results.json`, whole or not at all; its presence marks the run complete."""
        if jax.process_index() == 0:
            files.write_json(self.path / "results.json", results)


@contextlib.contextmanager
def claim(
    path: pathlib.Path, config: ml_collections.ConfigDict, inputs: Mapping[str, str]
) -> Iterator[Workdir]:
    """Claims `path` for this config, on all processes; process 0 alone writes.

    Args:
      path: the run's directory; made if missing.
      config: the whole config of the run.
      inputs: name -> fingerprint of everything the run reads; part of the identity.

    Raises:
      errors.UserError: another process uses the directory, or it belongs to a run with
        another identity (the differing fields are named).
    """
    path = pathlib.Path(path).absolute()
    with contextlib.ExitStack() as held:

        def take() -> None:
            files.make_directory(path)
            held.enter_context(files.lock(path / ".lock"))
            _check_identity(path, config, inputs)

        on_process_zero(take)
        results = path / "results.json"
        yield Workdir(path, json.loads(results.read_text()) if results.exists() else None)


def on_process_zero(fn: Callable[[], None]) -> None:
    """Runs `fn` on process 0; a UserError there stops every process, not only that one."""
    failure = None
    if jax.process_index() == 0:
        try:
            fn()
        except errors.UserError as error:
            failure = error
    if jax.process_count() > 1:
        failed = multihost_utils.broadcast_one_to_all(np.array(failure is not None))
        if failed and failure is None:
            failure = errors.UserError("process 0: refused this run; its message says why")
    if failure is not None:
        raise failure


def _check_identity(
    path: pathlib.Path, config: ml_collections.ConfigDict, inputs: Mapping[str, str]
) -> None:
    identity, operational = split_config(config)
    identity |= {f"inputs.{name}": value for name, value in inputs.items()}
    identity = json.loads(json.dumps(identity))  # As it will be read back: tuples are lists.
    file = path / "config.json"
    if file.exists():
        try:
            used = json.loads(file.read_text())["identity"]
        except (ValueError, KeyError, TypeError) as error:
            raise errors.UserError(
                f"{file}: is not a run's config; give another --workdir or remove it"
            ) from error
        missing = object()
        differing = [
            f"{key} (was {used.get(key)!r}, now {identity.get(key)!r})"
            for key in sorted(used.keys() | identity.keys())
            if used.get(key, missing) != identity.get(key, missing)
        ]
        if differing:
            raise errors.UserError(
                f"workdir {path}: belongs to a run with another {', '.join(differing)}; "
                "give another --workdir or the same values"
            )
    files.write_json(file, {"identity": identity, "operational": operational})


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
