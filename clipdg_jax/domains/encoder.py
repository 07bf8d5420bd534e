"""The CLIP that domain methods start from or take features of, and the way it runs on batches."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float32, UInt8

from clipdg_jax.errors import UserError
from clipdg_jax.models import config as model_config
from clipdg_jax.models import model as model_lib
from clipdg_jax.training import checkpoints, sharding

Params = model_lib.Params
Apply = Callable[[Params, Array], Array]


@dataclasses.dataclass(frozen=True, eq=False)
class Encoder:
    """An image tower with its parameters.

    Attributes:
      model: its architecture.
      params: of the image tower, by canonical name, on the devices of `mesh`.
      mesh: the devices.
      origin: where the parameters come from: "scratch", or the checkpoint.
    """

    model: model_lib.Model
    params: Params
    mesh: jax.sharding.Mesh
    origin: str = "scratch"

    @property
    def image_size(self) -> int:
        return self.model.config.vision.image_size

    def features(self, images: UInt8[np.ndarray, "n s s 3"]) -> Float32[np.ndarray, "n e"]:
        """Features of length 1."""
        return apply_batched(self.model.encode_image, self.params, images, self.mesh)

    def arrays(self) -> dict[str, np.ndarray]:
        """The parameters on the host, to be saved."""
        return {name: np.asarray(value) for name, value in self.params.items()}


def scratch(
    architecture: Mapping[str, Any], dtype: str, mesh: jax.sharding.Mesh, seed: int
) -> Encoder:
    """An image tower with fresh parameters, distributed as open_clip's."""
    model = _model(model_config.from_config({**architecture, "dtype": dtype}))
    params = _compiled_init(model)(jax.random.key(seed))
    return Encoder(model, place(tower(params), mesh), mesh)


def from_checkpoint(
    directory: str, architecture: Mapping[str, Any], dtype: str, mesh: jax.sharding.Mesh
) -> Encoder:
    """The image tower of a run's latest checkpoint.

    Args:
      directory: a run's workdir, or its `checkpoints/`.
      architecture: what its image tower must be.

    Raises:
      UserError: there is no checkpoint, it is damaged, or it is of another architecture.
    """
    loaded = checkpoints.load_params(checkpoints.directory_of(directory), mesh=mesh)
    wanted = model_config.from_config({**architecture, "dtype": dtype})
    found = model_config.from_config({**loaded.architecture, "dtype": dtype})
    said, is_ = _image_tower(wanted), _image_tower(found)
    for field, value in said.items():
        other = is_[field]
        if value != other:
            raise UserError(
                f"{directory}: its image tower has {field} {other}, config.encoder.model says "
                f"{value}; name the model that the checkpoint is of"
            )
    model = _model(found)
    return Encoder(model, tower(loaded.params), mesh, f"{directory}, step {loaded.step}")


@functools.lru_cache(maxsize=32)
def _model(config: model_config.ClipConfig) -> model_lib.Model:
    """One model for each architecture, so that what encoders of one compile is compiled once."""
    return model_lib.Model(config)


@functools.lru_cache(maxsize=32)
def _compiled_init(model: model_lib.Model) -> Callable[[Array], Params]:
    return jax.jit(model.init)


def _image_tower(config: model_config.ClipConfig) -> dict[str, Any]:
    """The fields of an architecture that the image tower depends on."""
    whole = config.architecture
    own = {name: whole[name] for name in ("embed_dim", "activation", "mean", "std")}
    return {**own, **whole["vision"]}


def from_arrays(
    architecture: Mapping[str, Any], arrays: Mapping[str, np.ndarray], mesh: jax.sharding.Mesh
) -> Encoder:
    """The image tower that `Encoder.arrays` gave. `architecture` holds the dtype too."""
    model = _model(model_config.from_config(dict(architecture)))
    return Encoder(model, place(tower(arrays), mesh), mesh)


def place(params: Mapping[str, Any], mesh: jax.sharding.Mesh) -> dict[str, Array]:
    """Parameters on the devices, sharded as for training."""
    params = dict(params)
    return jax.device_put(params, sharding.param_shardings(params, mesh))


def apply_batched(
    fn: Apply,
    params: Params,
    images: UInt8[np.ndarray, "n s s 3"],
    mesh: jax.sharding.Mesh,
    batch: int = 256,
) -> np.ndarray:
    """`fn(params, images)`, in batches of one padded shape, split over the mesh.

    Args:
      fn: one output row for each image, which may not depend on the others; it is compiled once,
        as long as the same function (or bound method of the same object) is given.
      batch: images at a time, rounded up to a multiple of the devices.

    Returns:
      [n, ...] on the host.
    """
    size = -(-batch // mesh.size) * mesh.size
    compiled = _compiled(fn, mesh)
    rows = sharding.batch_sharding(mesh)
    outputs = []
    for start in range(0, max(1, len(images)), size):  # Of no image, the output's shape is asked.
        part = images[start : start + size]
        padded = np.concatenate([part, np.zeros((size - len(part), *part.shape[1:]), part.dtype)])
        output = compiled(params, jax.device_put(padded, rows))
        outputs.append(np.asarray(output)[: len(part)])
    return np.concatenate(outputs)


@functools.lru_cache(maxsize=32)
def _compiled(fn: Apply, mesh: jax.sharding.Mesh) -> Any:
    return jax.jit(fn, out_shardings=sharding.batch_sharding(mesh))


def tower(params: Mapping[str, Any]) -> dict[str, Any]:
    """Those parameters that are the image tower's."""
    return {k: v for k, v in params.items() if k.startswith(model_lib.IMAGE_TOWER)}
