"""What every domain method is: something that is fitted to labels and scores images."""

from __future__ import annotations

import abc
import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import jax
import ml_collections
import numpy as np
from jaxtyping import Float32

from clipdg_jax.domains import encoder as encoder_lib
from clipdg_jax.domains import examples as examples_lib
from clipdg_jax.domains import inputs as inputs_lib


@dataclasses.dataclass(frozen=True)
class Context:
    """What a method may use while it is fitted.

    Attributes:
      config: the method's own section of the run's config.
      sections: the sections of all methods, by name, for those that are made of others.
      encoder: the CLIP to start from or to take features of.
      mesh: the devices.
      seed: of initialisation, order and crops.
      workdir: the method's own directory, where a training loop keeps what it resumes from.
      workers, threads, prefetch: of the loader.
    """

    config: ml_collections.ConfigDict
    sections: Mapping[str, ml_collections.ConfigDict]
    encoder: encoder_lib.Encoder
    mesh: jax.sharding.Mesh
    seed: int
    workdir: pathlib.Path
    workers: int = 0
    threads: int = 2
    prefetch: int = 4


@dataclasses.dataclass(frozen=True)
class State:
    """A fitted method as it is saved: named arrays, and what is JSON-able."""

    arrays: Mapping[str, np.ndarray]
    meta: Mapping[str, Any]


class Method(abc.ABC):
    """A fitted method. One file and one line of the registry each."""

    name: ClassVar[str]

    @classmethod
    @abc.abstractmethod
    def fit(
        cls, train: examples_lib.Examples, validation: examples_lib.Examples, context: Context
    ) -> Self:
        """Fits to `train`; `validation` may choose among states, never be learned from.

        Raises:
          UserError: a field of `context.config` is wrong, or the labels do not suffice.
        """

    @abc.abstractmethod
    def score(self, inputs: inputs_lib.Inputs) -> Float32[np.ndarray, "n 2"]:
        """Probabilities of natural and of rendition; ambiguous is what is left of 1."""

    @abc.abstractmethod
    def state(self) -> State:
        """All that `load` needs."""

    @classmethod
    @abc.abstractmethod
    def load(cls, state: State, mesh: jax.sharding.Mesh) -> Self:
        """The method as it was when `state` was taken, on these devices."""

    @abc.abstractmethod
    def describe(self) -> str:
        """What it looks at, in one line."""
