"""Several methods as one: the mean of their probabilities, geometric or arithmetic."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

import jax
import ml_collections
import numpy as np
from jaxtyping import Float32

from clipdg_jax.data import files
from clipdg_jax.domains import examples as examples_lib
from clipdg_jax.domains import inputs as inputs_lib
from clipdg_jax.domains import methods
from clipdg_jax.domains.methods import method
from clipdg_jax.errors import UserError

COMBINE = ("log", "mean")
# Smaller probabilities count as this in the geometric mean, else the 0 of one member would
# overrule all others; and what float32 leaves of 1 for ambiguous is no better known.
FLOOR = 1e-6


class Ensemble(method.Method):
    """Fitted methods that are asked together.

    Config: `members`, comma-separated names of methods, each fitted with the section of its name;
    `combine`, `log` (geometric mean, made to sum to 1 again) or `mean` (arithmetic mean).
    """

    name: ClassVar[str] = "ensemble"

    def __init__(self, parts: Mapping[str, method.Method], how: str):
        self.parts, self.how = dict(parts), how

    @classmethod
    def of(cls, parts: Mapping[str, method.Method], how: str) -> Self:
        """An ensemble of methods that are fitted already, by their names in the registry.

        Raises UserError for names that do not make an ensemble, or an unknown `how`.
        """
        _check(list(parts), how)
        return cls(parts, how)

    @classmethod
    def fit(
        cls,
        train: examples_lib.Examples,
        validation: examples_lib.Examples,
        context: method.Context,
    ) -> Self:
        """Fits one member after the other, each in the directory of its name in the workdir.

        Raises:
          UserError: `members` or `combine` is wrong, or what the members raise.
        """
        parts = {}
        for name in members(context.config):
            workdir = context.workdir / name
            files.make_directory(workdir)
            own = dataclasses.replace(context, config=context.sections[name], workdir=workdir)
            parts[name] = methods.get(name).fit(train, validation, own)
        return cls(parts, context.config.combine)

    def score(self, inputs: inputs_lib.Inputs) -> Float32[np.ndarray, "n 2"]:
        """Probabilities of natural and of rendition."""
        return combine([part.score(inputs) for part in self.parts.values()], self.how)

    def state(self) -> method.State:
        """All members' arrays, as `<member>/<name>`, and their descriptions."""
        states = {name: part.state() for name, part in self.parts.items()}
        arrays = {
            f"{name}/{key}": value
            for name, state in states.items()
            for key, value in state.arrays.items()
        }
        # A list, for the order: JSON objects may be sorted when written.
        metas = [{"name": name, "state": dict(state.meta)} for name, state in states.items()]
        return method.State(arrays, {"combine": self.how, "members": metas})

    @classmethod
    def load(cls, state: method.State, mesh: jax.sharding.Mesh) -> Self:
        """The ensemble that `state` was taken of."""
        parts = {}
        for meta in state.meta["members"]:
            prefix = meta["name"] + "/"
            own = {
                key.removeprefix(prefix): value
                for key, value in state.arrays.items()
                if key.startswith(prefix)
            }
            parts[meta["name"]] = methods.get(meta["name"]).load(
                method.State(own, meta["state"]), mesh
            )
        return cls(parts, state.meta["combine"])

    def describe(self) -> str:
        """What it looks at."""
        kind = {"log": "geometric", "mean": "arithmetic"}[self.how]
        return f"{kind} mean of {', '.join(self.parts)}"


def combine(scores: Sequence[Float32[np.ndarray, "n 2"]], how: str) -> Float32[np.ndarray, "n 2"]:
    """The mean of members' probabilities of natural and rendition; ambiguous is the rest of 1.

    Args:
      scores: of each member.
      how: `mean`, or `log`: prod_m p_m(k)^(1/m), divided by its sum over the three domains k, with
        no p_m(k) taken as smaller than `FLOOR`.
    """
    wide = np.stack(scores).astype(np.float64)
    if how == "mean":
        return wide.mean(axis=0).astype(np.float32)
    three = np.concatenate([wide, 1 - wide.sum(axis=2, keepdims=True)], axis=2)
    means = np.exp(np.log(np.maximum(three, FLOOR)).mean(axis=0))
    return (means / means.sum(axis=1, keepdims=True))[:, :2].astype(np.float32)


def members(config: ml_collections.ConfigDict) -> tuple[str, ...]:
    """The names of the members, in their order.

    Args:
      config: the section `ensemble`.

    Raises:
      UserError: fewer than two, one twice, an unknown one, or an ensemble; or `combine` is unknown.
    """
    names = tuple(name for name in map(str.strip, config.members.split(",")) if name)
    _check(names, config.combine)
    return names


def _check(names: Sequence[str], how: str) -> None:
    for name in names:
        if name == Ensemble.name:
            raise UserError("ensemble.members: an ensemble cannot be part of one; name its members")
        if name not in methods.METHODS:
            known = ", ".join(known for known in methods.METHODS if known != Ensemble.name)
            raise UserError(f"ensemble.members: {name!r} is unknown; use any of {known}")
    if len(set(names)) < len(names):
        raise UserError(f"ensemble.members: {','.join(names)} names a method twice; name it once")
    if len(names) < 2:
        raise UserError(
            f"ensemble.members: {','.join(names)!r} is less than two methods; name two or more"
        )
    if how not in COMBINE:
        raise UserError(f"ensemble.combine: {how!r} is unknown; use log or mean")
