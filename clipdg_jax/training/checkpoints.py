"""States on disk: asynchronous, complete or absent, checked bit by bit when they come back.

A directory `checkpoints/<step>/` holds three Orbax items:

    params/    all parameters, frozen and trainable, by canonical name
    training/  the optimiser's state and the step counter
    meta/      JSON: identity, architecture, what the caller carries along, and for each array
               its dtype, shape and checksum (Orbax loads flipped bits silently)

A checkpoint under construction has another name, so that one killed halfway is never seen.
"""

import contextlib
import errno
import hashlib
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Array

from clipdg_jax import errors
from clipdg_jax.training import checksums, sharding, stacking
from clipdg_jax.training import step as step_lib

_PARAMS, _TRAINING, _META = "params", "training", "meta"
_FORMAT = 1

# What a full disk, an exhausted quota and a limit on file size say.
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_SPACE_TEXT = ("No space left on device", "Disk quota exceeded", "File too large", "ENOSPC")


class Loaded(NamedTuple):
    """A checkpoint's model: the architecture it was saved with, all parameters, the step."""

    architecture: dict[str, Any]
    params: dict[str, Array]
    step: int


class Checkpoints:
    """The checkpoints of one run. Every process makes one and calls the same methods.

    Args:
      directory: where they lie; made if missing. Remains of a killed save are removed.
      identity: the run's identity fields, JSON-able; a checkpoint with others is refused.
      architecture: the model's configuration, likewise; kept for `load_params`.
      keep: how many of the latest to keep; None keeps all.
    """

    def __init__(
        self,
        directory: str | epath.PathLike,
        *,
        identity: Mapping[str, Any],
        architecture: Mapping[str, Any],
        keep: int | None = None,
    ):
        if keep is not None and keep < 1:
            raise errors.UserError(f"checkpoints kept: {keep} is too few; use 1 or more, or None")
        # The detour through JSON makes tuples lists, as they will be when read back.
        self._meta = {
            "format": _FORMAT,
            "identity": json.loads(json.dumps(identity)),
            "architecture": json.loads(json.dumps(architecture)),
        }
        self.directory = epath.Path(directory).absolute()
        self._last = "none was saved before"
        with self._writing():
            self._manager = ocp.CheckpointManager(
                self.directory,
                item_names=(_PARAMS, _TRAINING, _META),
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=keep, cleanup_tmp_directories=True, create=True
                ),
            )

    def save(self, step: int, state: step_lib.State, extra: Mapping[str, Any] = {}) -> bool:
        """Starts saving; the state may be donated to the next step as soon as this returns.

        Args:
          step: names the checkpoint; later than all others.
          state: to be saved; the caller has made sure that its loss was finite.
          extra: JSON-able values to carry along.

        Returns:
          False where this step is already saved (then nothing is written), otherwise True.

        Raises:
          errors.UserError: no space left for this or for the previous checkpoint.
        """
        saved = self.steps()
        if step in saved:
            return False
        if saved and step < saved[-1]:
            raise ValueError(f"step {step} is earlier than the latest checkpoint, {saved[-1]}")
        params, training = _items(state)
        leaves = {**params, **training}
        sums = checksums.leaf_checksums(leaves)
        meta = self._meta | {
            "step": step,
            "extra": json.loads(json.dumps(extra)),
            "leaves": {k: [str(x.dtype), list(x.shape), sums[k]] for k, x in leaves.items()},
        }
        args = {
            _PARAMS: ocp.args.StandardSave(params),
            _TRAINING: ocp.args.StandardSave(training),
            _META: ocp.args.JsonSave(meta | {"sha256": _digest(meta)}),
        }
        with self._writing():
            self._manager.save(step, args=ocp.args.Composite(**args), force=True)
        return True

    def wait(self) -> None:
        """Returns when all is on disk; raises UserError if there was no space for it."""
        with self._writing():
            self._manager.wait_until_finished()

    def steps(self) -> list[int]:
        """The complete checkpoints, in ascending order; waits for one being saved."""
        self.wait()
        steps = sorted(self._manager.all_steps())
        self._last = f"step {steps[-1]} is kept" if steps else "none was saved before"
        return steps

    def latest(self) -> int | None:
        """The latest complete checkpoint."""
        return max(self.steps(), default=None)

    def restore(
        self, abstract: step_lib.State, step: int | None = None
    ) -> tuple[step_lib.State, dict[str, Any]]:
        """Reads a checkpoint onto whatever devices `abstract` names.

        Args:
          abstract: from `step.abstract_state`: shapes, dtypes and shardings to fill.
          step: which; the latest by default.

        Returns:
          The state, and what was given to `save` to carry along.

        Raises:
          errors.UserError: there is none; it belongs to another run or model (the field is
            named); it is damaged (the array is named).
        """
        directory, _ = _locate(self.directory, step)
        meta = _read_meta(directory)
        for section in ("architecture", "identity"):
            _check_same(directory, section, meta[section], self._meta[section])
        params, training = _items(abstract)
        _check_leaves(directory, meta["leaves"], {**params, **training})
        params = _read_arrays(directory, _PARAMS, params, meta)
        training = _read_arrays(directory, _TRAINING, training, meta)
        return _state(abstract, params, training), meta["extra"]

    def close(self) -> None:
        """Waits for the last save and frees the threads."""
        with self._writing():
            self._manager.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            full = isinstance(error, OSError) and error.errno in _NO_SPACE
            if not full and not any(text in str(error) for text in _NO_SPACE_TEXT):
                raise
            raise errors.UserError(
                f"{self.directory}: no space left for a checkpoint ({self._last}); free some or "
                "raise the quota, and give the same command again"
            ) from error


def directory_of(run: str | pathlib.Path) -> pathlib.Path:
    """Where a run's checkpoints are: `run` is its workdir or that very directory."""
    inner = pathlib.Path(run) / "checkpoints"
    return inner if inner.is_dir() else pathlib.Path(run)


def saved(directory: str | epath.PathLike) -> dict[int, str]:
    """A run's complete checkpoints, ascending: step -> a digest of all that each holds.

    Raises:
      errors.UserError: there is none, or one is damaged.
    """
    directory = epath.Path(directory).absolute()
    return {step: _digest(_read_meta(directory / str(step))) for step in _steps(directory)}


def load_params(
    directory: str | epath.PathLike, step: int | None = None, mesh: Mesh | None = None
) -> Loaded:
    """Reads the model out of any run's checkpoints, without its optimiser.

    Args:
      directory: a run's `checkpoints/`.
      step: which; the latest by default.
      mesh: where the parameters go, sharded as for training; by default whole on one device.

    Raises:
      errors.UserError: there is no such checkpoint, or it is damaged.
    """
    directory, step = _locate(epath.Path(directory).absolute(), step)
    meta = _read_meta(directory)
    abstract = {
        name: jax.ShapeDtypeStruct(shape, dtype)
        for name, (dtype, shape, _) in meta["leaves"].items()
        if not name.startswith(f"{_TRAINING}/")
    }
    if mesh is None:
        one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shardings: Mapping[str, jax.sharding.Sharding] = dict.fromkeys(abstract, one)
    else:
        shardings = sharding.param_shardings(abstract, mesh)
    placed = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=shardings[name])
        for name, leaf in abstract.items()
    }
    return Loaded(meta["architecture"], _read_arrays(directory, _PARAMS, placed, meta), step)


def _items(state: step_lib.State) -> tuple[dict[str, Any], dict[str, Any]]:
    """A state as two flat dicts: parameters by canonical name, the rest as `training/...`."""
    rest = stacking.unstack({"opt": state["opt"], "step": state["step"]})
    flat, _ = jax.tree_util.tree_flatten_with_path(rest)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in flat]
    training = {f"{_TRAINING}/{name}": leaf for name, (_, leaf) in zip(names, flat)}
    return step_lib.merged_params(state), training


def _state(
    abstract: step_lib.State, params: dict[str, Array], training: dict[str, Array]
) -> step_lib.State:
    """The inverse of `_items`."""
    canonical = stacking.unstack(abstract)
    tree = jax.tree.structure({"opt": canonical["opt"], "step": canonical["step"]})
    _, names = _items(abstract)
    state = {
        "params": {k: params[k] for k in canonical["params"]},
        "frozen": {k: params[k] for k in canonical["frozen"]},
        **jax.tree.unflatten(tree, [training[name] for name in names]),
    }
    return stacking.stack_as(abstract, state)


def _steps(directory: epath.Path) -> list[int]:
    steps = sorted(ocp.utils.checkpoint_steps(directory)) if directory.exists() else []
    if not steps:
        raise errors.UserError(f"{directory}: holds no checkpoint; name a run's checkpoints/")
    return steps


def _locate(directory: epath.Path, step: int | None) -> tuple[epath.Path, int]:
    steps = _steps(directory)
    if step is None:
        step = steps[-1]
    if step not in steps:
        raise errors.UserError(
            f"{directory}: has no checkpoint of step {step}; use {', '.join(map(str, steps))}"
        )
    return directory / str(step), step


def _digest(meta: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _damaged(directory: epath.Path, what: str) -> errors.UserError:
    return errors.UserError(
        f"{directory}: damaged, {what}; delete this directory to go on from the one before"
    )


def _read_meta(directory: epath.Path) -> dict[str, Any]:
    try:
        meta = json.loads((directory / _META / "metadata").read_text())
        digest = meta.pop("sha256")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise _damaged(directory, f"its meta/ cannot be read ({_brief(error)})") from error
    if digest != _digest(meta):
        raise _damaged(directory, "its meta/ does not match its own checksum")
    if meta["format"] != _FORMAT:
        raise errors.UserError(
            f"{directory}: has format {meta['format']}, this version reads {_FORMAT}; "
            "use the version of clipdg_jax that wrote it"
        )
    return meta


def _check_same(directory: epath.Path, section: str, saved: Any, here: Any) -> None:
    """Raises UserError naming the first field in which two JSON trees differ."""
    path = section
    while isinstance(saved, dict) and isinstance(here, dict) and saved != here:
        absent = object()
        key = next(k for k in {**saved, **here} if saved.get(k, absent) != here.get(k, absent))
        path, saved, here = f"{path}.{key}", saved.get(key, "absent"), here.get(key, "absent")
    if saved != here:
        raise errors.UserError(
            f"{directory}: {path} is {json.dumps(saved)} there and {json.dumps(here)} here; "
            "use the same, or another --workdir"
        )


def _check_leaves(
    directory: epath.Path, saved: Mapping[str, list[Any]], wanted: Mapping[str, Any]
) -> None:
    """Raises UserError unless names, shapes and dtypes agree: Orbax would cast silently."""
    here = {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in wanted.items()}
    there = {name: f"{dtype}{shape}" for name, (dtype, shape, _) in saved.items()}
    _check_same(directory, "arrays", there, here)


def _read_arrays(
    directory: epath.Path,
    item: str,
    abstract: Mapping[str, jax.ShapeDtypeStruct],
    meta: Mapping[str, Any],
) -> dict[str, Array]:
    try:
        with contextlib.closing(ocp.StandardCheckpointer()) as reader:
            arrays = reader.restore(directory / item, dict(abstract))
    except jax.errors.JaxRuntimeError:
        raise  # Such as too little memory on the device: not the file's fault.
    except Exception as error:  # Orbax and TensorStore raise many kinds for a damaged file.
        raise _damaged(directory, f"{item}/ cannot be read ({_brief(error)})") from error
    sums = checksums.leaf_checksums(arrays)
    wrong = [name for name in arrays if sums[name] != meta["leaves"][name][2]]
    if wrong:
        others = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise _damaged(directory, f"{wrong[0]}{others} differs from its checksum")
    return arrays


def _brief(error: BaseException) -> str:
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"
