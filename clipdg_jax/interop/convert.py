"""From a file of weights to a checkpoint of ours, and back.

The weights do not say which activation they were trained with, and with the wrong one a model
works, a few points worse. So it is always stated: by the configuration beside the weights, by what
an export of ours notes in the file, or by the user; and statements that differ are refused.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors

from clipdg_jax.data import files, tensors
from clipdg_jax.errors import UserError
from clipdg_jax.interop import architectures, leaves, state_dicts, torch_file
from clipdg_jax.models import config as config_lib
from clipdg_jax.models import model as model_lib
from clipdg_jax.training import checkpoints

# What an export of ours notes in a safetensors file: the architecture, as JSON.
NOTE = "clipdg_jax.architecture"
_INDEX_SUFFIX = ".index.json"
_TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
_WIDTHS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_WIDTHS |= {"I64": "<i8", "I32": "<i4", "U8": "u1", "BOOL": "?"}


@dataclasses.dataclass(frozen=True)
class Weights:
    """A state dict as it was read: its files, tensors by foreign name, format, a note of ours."""

    path: pathlib.Path
    parts: tuple[pathlib.Path, ...]
    state: Mapping[str, np.ndarray]
    form: str
    note: Mapping[str, Any] | None


@dataclasses.dataclass(frozen=True)
class Converted:
    """A model with its parameters on the host.

    Attributes:
      config: its configuration.
      params: by canonical name, float32.
      stated: which file, or flag, said what the activation is.
      aside: tensors of the file that are no parameters.
    """

    config: config_lib.ClipConfig
    params: Mapping[str, np.ndarray]
    stated: str
    aside: tuple[str, ...]


def read_weights(path: str | pathlib.Path) -> Weights:
    """Reads safetensors, or a file of torch.save without running what it holds.

    A training checkpoint of open_clip's gives its `state_dict`; the `module.` that data-parallel
    training puts before each name is dropped. Weights that Hugging Face has cut into several files
    are read by their index, such as `model.safetensors.index.json`.

    Raises:
      UserError: there is no such file, it is damaged, or it holds no CLIP.
    """
    path = pathlib.Path(path)
    if path.name.endswith(_INDEX_SUFFIX):
        state, parts = _read_parts(path)
        note = None
    else:
        state, note = _read_file(path)
        parts = (path,)
    state = {name.removeprefix("module."): value for name, value in state.items()}
    form = leaves.recognise(state)
    if form is None:
        raise UserError(
            f"{path}: holds {min(state, default='no tensor')}, but neither visual.conv1.weight "
            "(open_clip) nor vision_model.embeddings.class_embedding (Hugging Face): only CLIP's "
            "ViT models are known"
        )
    return Weights(path, parts, state, form, note)


def to_ours(weights: Weights, model: str | None = None, activation: str | None = None) -> Converted:
    """Finds out what model the weights are of, and converts them.

    Args:
      weights: from `read_weights`.
      model: a preset's name; None where the file, or the configuration beside it, says it.
      activation: "gelu" or "quick_gelu"; likewise.

    Raises:
      UserError: the model or its activation is not known, or is stated in two ways; a leaf is
        missing, one too many, of another shape or not finite.
    """
    config, stated = _architecture(weights, model, activation)
    params, aside = state_dicts.to_ours(
        weights.state, model_lib.Model(config), weights.form, str(weights.path)
    )
    return Converted(config, params, stated, aside)


def save_checkpoint(converted: Converted, weights: Weights, out: str | pathlib.Path) -> str:
    """Writes a checkpoint, of step 0 and without an optimiser's state, below `out`.

    It is what a run leaves: `evaluate` and `finetune` take `out` as a checkpoint, `classify` as
    `config.encoder.checkpoint`.

    Returns:
      Its directory.

    Raises:
      UserError: there are checkpoints in `out` already, or no space.
    """
    directory = pathlib.Path(out) / "checkpoints"
    # Remains of a conversion that was killed are no checkpoint, and `Checkpoints` removes them.
    if directory.exists() and not all(p.name.startswith("0.") for p in directory.iterdir()):
        raise UserError(f"{directory}: is there already; choose another --out, or remove it")
    sums = {part.name: files.sha256(part) for part in weights.parts}
    kept = checkpoints.Checkpoints(
        directory, identity={"converted": sums}, architecture=converted.config.architecture
    )
    params = jax.device_put(dict(converted.params))
    kept.save(0, {"params": params, "frozen": {}, "opt": (), "step": jnp.zeros((), jnp.int32)})
    kept.close()
    return str(directory)


def export(
    checkpoint: str | pathlib.Path, out: str | pathlib.Path, form: str, step: int | None = None
) -> list[str]:
    """Writes a checkpoint's model for others: weights as safetensors, and their configuration.

    For open_clip: `open_clip_model.safetensors` and `open_clip_config.json`; the directory is
    `open_clip.create_model_and_transforms("local-dir:<out>")`, and the file loads strictly into the
    model of the same name. For Hugging Face: `model.safetensors`, `config.json` and
    `preprocessor_config.json`, which `CLIPModel.from_pretrained(<out>)` takes.

    Args:
      checkpoint: a run's workdir, or its `checkpoints/`.
      out: a directory, made if missing.
      form: one of `leaves.FORMATS`.
      step: of the checkpoint; the latest by default.

    Returns:
      The files written.

    Raises:
      UserError: there is no such checkpoint; the format has no such model; a file is there already.
    """
    loaded = checkpoints.load_params(checkpoints.directory_of(checkpoint), step)
    config = config_lib.from_config(loaded.architecture)
    model = model_lib.Model(config)
    wanted = [*model.shapes(), *({leaves.LOGIT_BIAS} & loaded.params.keys())]
    params = {name: np.asarray(loaded.params[name]) for name in wanted}
    documents: dict[str, Any]
    if form == "open_clip":
        bias = leaves.LOGIT_BIAS in params
        documents = {architectures.OPEN_CLIP_FILE: architectures.to_open_clip(config, bias)}
        weights_file = "open_clip_model.safetensors"
    else:
        params.pop(leaves.LOGIT_BIAS, None)  # CLIPModel has none; rankings do not depend on it.
        document, preprocessor = architectures.to_hugging_face(config)
        documents = {
            architectures.HUGGING_FACE_FILE: document,
            architectures.PREPROCESSOR_FILE: preprocessor,
        }
        weights_file = "model.safetensors"
    out = pathlib.Path(out)
    # The weights are written last: this model's configuration alone is what a kill has left.
    for name, document in {weights_file: None, **documents}.items():
        path = out / name
        if path.exists() and (document is None or architectures.read_json(path) != document):
            raise UserError(f"{path}: is there already; choose another --out, or remove it")
    files.make_directory(out)
    state = state_dicts.to_foreign(params, model, form)
    note = {"format": "pt", NOTE: json.dumps(config.architecture, sort_keys=True)}
    for name, document in documents.items():
        files.write_json(out / name, document)
    tensors.write(out / weights_file, state, note)
    return [str(out / name) for name in (*documents, weights_file)]


def _read_file(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, Any] | None]:
    """The tensors of one file, and our own note if there is one."""
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; give the path of the weights")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix not in _TORCH_SUFFIXES:
        raise UserError(
            f"{path}: ends with none of .safetensors, {', '.join(_TORCH_SUFFIXES)}; name it so"
        )
    found = torch_file.read(path)
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise UserError(f"{path}: holds no state_dict; save the model's state_dict")
    return {name: value for name, value in found.items() if isinstance(value, np.ndarray)}, None


def _read_parts(path: pathlib.Path) -> tuple[dict[str, np.ndarray], tuple[pathlib.Path, ...]]:
    """The tensors of the files beside an index, and these; what it names must be in them."""
    where = architectures.read_json(path).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(name, str) for name in where.values()):
        raise UserError(f"{path}: has no weight_map from tensors to files; copy it again")
    parts = tuple(path.parent / pathlib.PurePath(name).name for name in sorted({*where.values()}))
    state: dict[str, np.ndarray] = {}
    for part in parts:
        state |= _read_file(part)[0]
    absent = sorted(where.keys() - state.keys())
    if absent:
        raise UserError(f"{path}: {absent[0]} is in none of its files; copy them again")
    return state, parts


def _read_safetensors(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, Any] | None]:
    """The tensors, bfloat16 widened to float32, and our own note if there is one."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            noted = (file.metadata() or {}).get(NOTE)
        tensors = safetensors.deserialize(path.read_bytes())
        note = json.loads(noted) if noted else None
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"{path}: is not a whole safetensors file ({error}); copy it again"
        ) from error
    state = {}
    for name, tensor in tensors:
        kind = tensor["dtype"]
        if kind not in _WIDTHS:
            raise UserError(f"{path}: {name} is of type {kind}; save it as F32, F16 or BF16")
        value = np.frombuffer(tensor["data"], _WIDTHS[kind]).reshape(tensor["shape"])
        if kind == "BF16":
            value = (value.astype(np.uint32) << 16).view(np.float32)
        state[name] = value
    return state, note


def _architecture(
    weights: Weights, model: str | None, activation: str | None
) -> tuple[config_lib.ClipConfig, str]:
    """The configuration, and who stated the activation; UserError where two statements differ."""
    found = architectures.beside(weights.path, weights.form)
    if weights.note is not None:
        note = config_lib.from_config(weights.note), f"{weights.path} itself"
        if found is not None:
            _agree(weights, found, note)
        found = note
    if model is not None:
        named = config_lib.from_config({"name": model}), f"--model={model}"
        if found is not None:
            _agree(weights, found, named)
        config, stated = found or named
    elif found is not None:
        config, stated = found
    else:
        raise UserError(
            f"{weights.path}: nothing in it or beside it says which model it is of; give --model, "
            f"one of {', '.join(config_lib.PRESETS)}"
        )
    if activation is not None and activation != config.activation:
        raise UserError(
            f"{weights.path}: --activation={activation}, but {stated} has {config.activation}; "
            "with the wrong one the model works, worse"
        )
    openai = set(leaves.OPENAI_MARKS) <= weights.state.keys()
    if openai and config.activation != "quick_gelu":
        raise UserError(
            f"{weights.path}: is a state dict of OpenAI's, whose activation is quick_gelu, and "
            f"{stated} has {config.activation}; name the -quickgelu model"
        )
    if found is None and not openai:
        if activation is None:
            raise UserError(
                f"{weights.path}: nothing in it or beside it says its activation, which weights do "
                "not show; state it with --activation (OpenAI's and LAION-400M's weights are "
                "quick_gelu, most others gelu)"
            )
        stated = f"--activation={activation}"
    return config, stated


def _agree(
    weights: Weights,
    first: tuple[config_lib.ClipConfig, str],
    second: tuple[config_lib.ClipConfig, str],
) -> None:
    """Raises UserError naming the first field in which two statements differ."""
    (one, who), (other, by) = first, second
    ours, theirs = _flat(one.architecture), _flat(other.architecture)
    for field in sorted(ours, key="activation".__ne__):  # what would go unnoticed comes first
        value = ours[field]
        # Where a scale starts is not part of the function, and no other format notes it.
        if field != "init_logit_scale" and theirs[field] != value:
            raise UserError(
                f"{weights.path}: {field} is {value} by {who} and {theirs[field]} by {by}; "
                "name the model that it is of"
            )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        nested = isinstance(value, dict)
        found |= _flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return found
