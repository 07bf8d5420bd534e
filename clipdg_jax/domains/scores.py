"""What a fitted method says of labelled records, and the file that keeps it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float32, Int32

from clipdg_jax.data import files
from clipdg_jax.domains import examples as examples_lib
from clipdg_jax.domains.methods import method as method_lib
from clipdg_jax.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """Of n records.

    Attributes:
      keys: theirs.
      domain: what they were labelled, an index into `schema.DOMAINS`.
      probability: of natural and of rendition.
      valid: False where the image could not be decoded; its probabilities mean nothing.
    """

    keys: tuple[str, ...]
    domain: Int32[np.ndarray, " n"]
    probability: Float32[np.ndarray, "n 2"]
    valid: Bool[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.keys)

    def readable(self) -> Scores:
        """Those whose images could be decoded."""
        keys = tuple(k for k, ok in zip(self.keys, self.valid.tolist(), strict=True) if ok)
        return Scores(
            keys, self.domain[self.valid], self.probability[self.valid], self.valid[self.valid]
        )


_NONE = Scores((), np.zeros(0, np.int32), np.zeros((0, 2), np.float32), np.zeros(0, bool))


def of(method: method_lib.Method, examples: examples_lib.Examples, batch: int = 256) -> Scores:
    """Scores labelled records, `batch` at a time."""
    probability, valid = [np.zeros((0, 2), np.float32)], [np.zeros(0, bool)]
    for inputs in examples.batches(batch):
        probability.append(method.score(inputs))
        valid.append(inputs.valid)
    return Scores(
        examples.keys, examples.domain, np.concatenate(probability), np.concatenate(valid)
    )


def join(parts: list[Scores]) -> Scores:
    """Scores of several sets as one, in order."""
    return Scores(
        tuple(key for part in parts for key in part.keys),
        np.concatenate([part.domain for part in parts]),
        np.concatenate([part.probability for part in parts]),
        np.concatenate([part.valid for part in parts]),
    )


def write(path: Path, sets: Mapping[str, Scores]) -> None:
    """Writes the scores of named sets to a Parquet file, whole or not at all."""
    rows = join([_NONE, *sets.values()])  # There may be no set at all.
    columns = {
        "set": pa.array([name for name, part in sets.items() for _ in part.keys], pa.string()),
        "key": pa.array(rows.keys, pa.string()),
        "domain": rows.domain,
        "natural": rows.probability[:, 0],
        "rendition": rows.probability[:, 1],
        "valid": rows.valid,
    }
    files.make_directory(path.parent)
    with files.whole(path) as unfinished:
        pq.write_table(pa.table(columns), unfinished, compression="zstd")


def read(path: Path) -> dict[str, Scores]:
    """The scores by set. Raises UserError where the file is damaged."""
    try:
        table = pq.read_table(path)
        names = np.array(table.column("set").to_pylist())
        keys = np.array(table.column("key").to_pylist(), object)
        domain = table.column("domain").to_numpy().astype(np.int32)
        probability = np.stack(
            [table.column(name).to_numpy() for name in ("natural", "rendition")], axis=1
        )
        valid = table.column("valid").to_numpy()
    except (OSError, KeyError, pa.ArrowException) as error:
        what = " ".join(str(error).split())
        raise UserError(f"{path}: is damaged ({what}); remove it to score again") from error
    found = {}
    for name in dict.fromkeys(names.tolist()):
        rows = names == name
        found[name] = Scores(tuple(keys[rows]), domain[rows], probability[rows], valid[rows])
    return found
