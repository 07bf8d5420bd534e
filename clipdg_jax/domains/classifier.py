"""A fitted method with its calibrated deciders, as it is saved, loaded and used.

A saved classifier is a directory that holds `state.safetensors`, the method, and
`classifier.json`, with the method's own description, both deciders (thresholds, curves,
intervals), and its provenance: which labels it was fitted and calibrated on. It needs neither the
run nor the encoder's checkpoint that it came from.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import safetensors
from jaxtyping import Int8

from clipdg_jax.data import files, tensors
from clipdg_jax.domains import calibration as calibration_lib
from clipdg_jax.domains import inputs as inputs_lib
from clipdg_jax.domains import methods
from clipdg_jax.domains.methods import method as method_lib
from clipdg_jax.errors import UserError

FORMAT = 1
STATE, META = "state.safetensors", "classifier.json"
_META = "clipdg_jax"  # of the safetensors file: the state's meta as JSON


@dataclasses.dataclass(frozen=True, eq=False)
class Classifier:
    """Sorts images into domains.

    Attributes:
      name: of the method, a key of `methods.METHODS`.
      method: fitted.
      calibration: its two deciders.
      provenance: JSON-able; what it was fitted and calibrated on.
    """

    name: str
    method: method_lib.Method
    calibration: calibration_lib.Calibration
    provenance: Mapping[str, Any]

    def decide(self, inputs: inputs_lib.Inputs) -> Int8[np.ndarray, " n"]:
        """The decision on each image, an index into `calibration.DECISIONS`."""
        return calibration_lib.decide(self.method.score(inputs), self.calibration)

    def save(self, directory: pathlib.Path) -> None:
        """Writes the classifier; `classifier.json`, written last, says that it is whole."""
        write_state(directory, self.method.state())
        meta = {
            "format": FORMAT,
            "method": self.name,
            "describe": self.method.describe(),
            "calibration": self.calibration.to_json(),
            "provenance": dict(self.provenance),
            "state_sha256": files.sha256(directory / STATE),
        }
        files.write_json(directory / META, meta)


def load(directory: str | pathlib.Path, mesh: jax.sharding.Mesh) -> Classifier:
    """Reads a saved classifier.

    Raises:
      UserError: there is none, or it is damaged.
    """
    directory = pathlib.Path(directory)
    path = directory / META
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        if meta["format"] != FORMAT:
            raise UserError(
                f"{path}: has format {meta['format']!r}, this version reads {FORMAT}; fit again"
            )
        name, state_sha256 = meta["method"], meta["state_sha256"]
        calibrated = calibration_lib.Calibration.from_json(meta["calibration"])
        provenance = meta["provenance"]
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{directory}: is not a saved classifier (no {META}); fit one with `python -m "
            "clipdg_jax.main --config=configs/classify.py`"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: is damaged ({error!r}); fit the classifier again") from error
    if not (directory / STATE).is_file() or files.sha256(directory / STATE) != state_sha256:
        raise UserError(f"{directory / STATE}: is not what was saved; fit the classifier again")
    return Classifier(
        name=name,
        method=methods.get(name).load(read_state(directory), mesh),
        calibration=calibrated,
        provenance=provenance,
    )


def write_state(directory: pathlib.Path, state: method_lib.State) -> None:
    """Writes a fitted method, whole or not at all."""
    files.make_directory(directory)
    tensors.write(directory / STATE, state.arrays, {_META: json.dumps(dict(state.meta))})


def read_state(directory: pathlib.Path) -> method_lib.State:
    """The fitted method that `write_state` wrote. Raises UserError where it is damaged."""
    path = directory / STATE
    try:
        with safetensors.safe_open(path, "numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return method_lib.State(arrays, json.loads(file.metadata()[_META]))
    except (OSError, KeyError, TypeError, ValueError, safetensors.SafetensorError) as error:
        what = " ".join(str(error).split())
        raise UserError(f"{path}: is damaged ({what}); remove it to fit again") from error


def is_saved(directory: pathlib.Path) -> bool:
    """Whether a whole classifier lies there."""
    return (directory / META).is_file()
