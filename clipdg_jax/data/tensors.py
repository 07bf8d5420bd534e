"""Arrays as a safetensors file: whole or not at all, equal arrays as equal bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.numpy

from clipdg_jax.data import files


def write(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes them atomically; UserError when they cannot be written.

    The library's own writer leaves the order of the metadata to chance, and makes a file that its
    owner alone may read.
    """
    # In C order, which the format takes for granted, without making a vector of a scalar.
    ordered = {name: np.asarray(value, order="C") for name, value in arrays.items()}
    data = memoryview(safetensors.numpy.save(ordered, dict(metadata)))
    # Eight bytes of the header's length, the header, and the tensors (safetensors, "Format").
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(bytes(data[8:start]))
    header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    with files.whole(path) as unfinished, unfinished.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        file.write(data[start:])
