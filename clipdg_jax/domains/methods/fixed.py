"""What methods share that read the domain off fixed features by logistic regression."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any, Protocol, Self

import jax
import numpy as np
from jaxtyping import Array, Float, Float32, UInt8

from clipdg_jax.domains import encoder as encoder_lib
from clipdg_jax.domains import examples as examples_lib
from clipdg_jax.domains import inputs as inputs_lib
from clipdg_jax.domains import readout as readout_lib
from clipdg_jax.domains.methods import method

_FEATURES, _READOUT = "features.", "readout."


class Features(Protocol):
    """A function from images to features. Hashable: equal ones are compiled once."""

    @property
    def image_size(self) -> int:
        """Side of the images it takes, pixels."""

    @property
    def batch(self) -> int:
        """Images at a time."""

    def __call__(
        self, params: dict[str, Array], images: UInt8[Array, "b s s 3"]
    ) -> Float[Array, "b f"]:
        """One row for each image."""


class Fixed(method.Method):
    """Features that are not learned, and a logistic regression on them."""

    def __init__(
        self,
        features: Features,
        params: Mapping[str, Any],
        readout: readout_lib.Readout,
        mesh: jax.sharding.Mesh,
        meta: Mapping[str, Any],
    ):
        """
        Args:
          features: what is computed of an image; equal to `from_meta(meta)`.
          params: what `features` is given.
          readout: fitted to the features.
          mesh: the devices.
          meta: JSON-able; all that is not an array.
        """
        self._features = features
        self._params = encoder_lib.place(params, mesh)
        self._readout = readout
        self._mesh = mesh
        self._meta = dict(meta)

    @classmethod
    @abc.abstractmethod
    def from_meta(cls, meta: Mapping[str, Any]) -> Features:
        """The features that `meta` describes."""

    @classmethod
    def fit_readout(
        cls,
        train: examples_lib.Examples,
        params: Mapping[str, Any],
        l2: float,
        mesh: jax.sharding.Mesh,
        meta: Mapping[str, Any],
    ) -> Self:
        """Fits to those of the examples whose image can be decoded.

        Raises UserError as `readout.fit`.
        """
        features, placed = cls.from_meta(meta), encoder_lib.place(params, mesh)
        rows, domains, start = [], [], 0
        for inputs in train.batches(features.batch):
            domain = train.domain[start : start + len(inputs)]
            start += len(inputs)
            rows.append(_compute(features, placed, inputs, mesh)[inputs.valid])
            domains.append(domain[inputs.valid])
        readout = readout_lib.fit(np.concatenate(rows), np.concatenate(domains), l2)
        return cls(features, placed, readout, mesh, meta)

    def score(self, inputs: inputs_lib.Inputs) -> Float32[np.ndarray, "n 2"]:
        """Probabilities of natural and of rendition."""
        rows = _compute(self._features, self._params, inputs, self._mesh)
        return np.asarray(self._readout.probabilities(rows)[:, :2], np.float32)

    def state(self) -> method.State:
        """The features' parameters and the readout."""
        arrays = {_FEATURES + name: np.asarray(value) for name, value in self._params.items()}
        arrays |= {_READOUT + name: value for name, value in self._readout.arrays().items()}
        return method.State(arrays, self._meta)

    @classmethod
    def load(cls, state: method.State, mesh: jax.sharding.Mesh) -> Self:
        """The method that `state` was taken of."""
        readout = readout_lib.Readout.from_arrays(_without(state.arrays, _READOUT))
        params = _without(state.arrays, _FEATURES)
        return cls(cls.from_meta(state.meta), params, readout, mesh, state.meta)


def _compute(
    features: Features, params: Any, inputs: inputs_lib.Inputs, mesh: jax.sharding.Mesh
) -> Float32[np.ndarray, "n f"]:
    images = inputs.images(features.image_size)
    return encoder_lib.apply_batched(features, params, images, mesh, features.batch)


def _without(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """Those whose names start with the prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
