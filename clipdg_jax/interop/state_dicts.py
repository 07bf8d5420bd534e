"""Parameters to foreign state dicts and back: every leaf once, every shape checked."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from clipdg_jax.errors import UserError
from clipdg_jax.interop import leaves as leaves_lib
from clipdg_jax.models import model as model_lib

Arrays = Mapping[str, np.ndarray]


def to_ours(
    state: Arrays, model: model_lib.Model, form: str, where: str
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Our parameters from a foreign state dict.

    Args:
      state: tensors by their names there; floating point of any width.
      model: what they are the parameters of.
      form: one of `leaves.FORMATS`.
      where: the file, for messages.

    Returns:
      The parameters, float32, by canonical name, `logit_bias` among them where the state has one;
      and the tensors of the state that are no parameters.

    Raises:
      UserError: a leaf is missing, one too many, of another shape, or not finite; it is named.
    """
    taken: set[str] = set()
    params: dict[str, np.ndarray] = {}
    for leaf in leaves_lib.leaves(model, form, bias=leaves_lib.LOGIT_BIAS in state):
        parts = []
        for name in leaf.foreign:
            if name not in state:
                raise UserError(
                    f"{where}: has no {name}, which the model has; name the model that it is of"
                )
            parts.append(_checked(state[name], name, leaf.foreign_shape, where))
            taken.add(name)
        params[leaf.name] = leaf.join(parts)
    rest = tuple(sorted(state.keys() - taken))
    extra = [name for name in rest if not leaves_lib.is_buffer(name)]
    if extra:
        others = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
        raise UserError(
            f"{where}: has {extra[0]}{others}, which the model has not; name the model that it is "
            "of"
        )
    return params, rest


def to_foreign(
    params: Mapping[str, np.ndarray], model: model_lib.Model, form: str
) -> dict[str, np.ndarray]:
    """A foreign state dict, in torch's layouts, from our parameters; float32.

    Raises:
      ValueError: the parameters are not those of the model, with or without `logit_bias`.
    """
    left = dict(params)
    state: dict[str, np.ndarray] = {}
    for leaf in leaves_lib.leaves(model, form, bias=leaves_lib.LOGIT_BIAS in params):
        value = np.asarray(left.pop(leaf.name))
        if value.shape != leaf.shape:
            raise ValueError(f"{leaf.name} is {value.shape}, the model has {leaf.shape}")
        state |= leaf.cut(value)
    if left:
        raise ValueError(f"the model has no {min(left)}")
    return state


def _checked(value: np.ndarray, name: str, shape: tuple[int, ...], where: str) -> np.ndarray:
    if value.shape != shape:
        raise UserError(
            f"{where}: {name} is {list(value.shape)}, in the model it is {list(shape)}; name the "
            "model that it is of"
        )
    if value.dtype.kind != "f":
        raise UserError(f"{where}: {name} is of type {value.dtype}, not floating point")
    if not np.isfinite(value).all():
        raise UserError(f"{where}: {name} has numbers that are not finite; save the weights again")
    return value
